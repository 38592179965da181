//! What there is once per bot: `crypto_values`, `crypto_custom_values` and `crypto_lease_locks`.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use matrix_sdk_crypto::{
    olm::{PickledCrossSigningIdentity, PrivateCrossSigningIdentity},
    store::types::{BackupDecryptionKey, BackupKeys, Changes, DehydratedDeviceKey},
};
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use sqlx::PgConnection;

use super::{PgCryptoStore, PgCryptoStoreError, Result};
use crate::{model::BotId, store::StoreError};

pub(super) const TABLE: &str = "crypto_values";
pub(super) const CUSTOM: &str = "crypto_custom_values";

const PRIVATE_IDENTITY: &str = "private_identity";
pub(super) const NEXT_BATCH_TOKEN: &str = "next_batch_token";
const BACKUP_VERSION: &str = "backup_version";
const BACKUP_DECRYPTION_KEY: &str = "backup_decryption_key";
pub(super) const DEHYDRATED_DEVICE_KEY: &str = "dehydrated_device_key";

/// The value called `name`.
pub(super) async fn load<T: DeserializeOwned>(
    store: &PgCryptoStore,
    name: &'static str,
) -> Result<Option<T>> {
    let prefetched = store.prefetched().values.as_ref().map(|values| values.get(name).cloned());
    let sealed = if let Some(sealed) = prefetched {
        sealed
    } else {
        store.settle(|rows| !rows.values.is_empty()).await?;
        sqlx::query_scalar!(
            "-- crypto_store.values.load
            SELECT sealed_value FROM crypto_values WHERE bot_id = $1 AND name = $2",
            store.bot.0,
            name,
        )
        .fetch_optional(store.pool())
        .await?
    };
    sealed.map(|sealed| store.open(TABLE, &[name], &sealed)).transpose()
}

/// The private cross-signing keys.
pub(super) async fn load_identity(
    store: &PgCryptoStore,
) -> Result<Option<PrivateCrossSigningIdentity>> {
    load(store, PRIVATE_IDENTITY).await?.map(read_identity).transpose()
}

fn read_identity(pickle: PickledCrossSigningIdentity) -> Result<PrivateCrossSigningIdentity> {
    PrivateCrossSigningIdentity::from_pickle(pickle).map_err(|_| PgCryptoStoreError::Pickle(TABLE))
}

/// Whether the value called `name` opens, and is what it should be.
pub(super) fn try_to_open(store: &PgCryptoStore, name: &str, sealed: &[u8]) -> Result<()> {
    let key = [name];
    match name {
        PRIVATE_IDENTITY => store.open(TABLE, &key, sealed).and_then(read_identity).map(drop),
        BACKUP_DECRYPTION_KEY => store.open::<BackupDecryptionKey>(TABLE, &key, sealed).map(drop),
        DEHYDRATED_DEVICE_KEY => store.open::<DehydratedDeviceKey>(TABLE, &key, sealed).map(drop),
        _ => store.open::<String>(TABLE, &key, sealed).map(drop),
    }
}

/// Both halves of what is known of the backup.
pub(super) async fn load_backup_keys(store: &PgCryptoStore) -> Result<BackupKeys> {
    Ok(BackupKeys {
        backup_version: load(store, BACKUP_VERSION).await?,
        decryption_key: load(store, BACKUP_DECRYPTION_KEY).await?,
    })
}

/// Sealed values by bot and name.
pub(super) type Rows = BTreeMap<(BotId, String), Vec<u8>>;

/// Seals the values among `changes`.
pub(super) async fn prepare(store: &PgCryptoStore, changes: &Changes) -> Result<Rows> {
    let mut rows = Rows::new();
    let key = |name: &str| (store.bot, name.to_owned());
    if let Some(identity) = &changes.private_identity {
        let sealed = store.seal(TABLE, &[PRIVATE_IDENTITY], &identity.pickle().await)?;
        rows.insert(key(PRIVATE_IDENTITY), sealed);
    }
    if let Some(token) = &changes.next_batch_token {
        let sealed = store.seal(TABLE, &[NEXT_BATCH_TOKEN], token)?;
        rows.insert(key(NEXT_BATCH_TOKEN), sealed);
    }
    if let Some(version) = &changes.backup_version {
        let sealed = store.seal(TABLE, &[BACKUP_VERSION], version)?;
        rows.insert(key(BACKUP_VERSION), sealed);
    }
    if let Some(secret) = &changes.backup_decryption_key {
        let sealed = store.seal(TABLE, &[BACKUP_DECRYPTION_KEY], secret)?;
        rows.insert(key(BACKUP_DECRYPTION_KEY), sealed);
    }
    if let Some(secret) = &changes.dehydrated_device_pickle_key {
        let sealed = store.seal(TABLE, &[DEHYDRATED_DEVICE_KEY], secret)?;
        rows.insert(key(DEHYDRATED_DEVICE_KEY), sealed);
    }
    Ok(rows)
}

/// Writes what [`prepare`] made.
pub(super) async fn save(conn: &mut PgConnection, rows: Rows) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (keys, sealed): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let (bots, names): (Vec<_>, Vec<_>) = keys.into_iter().map(|(bot, name)| (bot.0, name)).unzip();
    sqlx::query!(
        "-- crypto_store.values.save
        INSERT INTO crypto_values (bot_id, name, sealed_value)
        SELECT r.bot_id, r.name, r.sealed
        FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::BYTEA[]) AS r (bot_id, name, sealed)
        ON CONFLICT (bot_id, name) DO UPDATE SET sealed_value = EXCLUDED.sealed_value",
        &bots,
        &names,
        &sealed,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Deletes the value called `name`.
pub(super) async fn delete(store: &PgCryptoStore, name: &'static str) -> Result<()> {
    let mut write = store.turn().await.begin().await?;
    sqlx::query!(
        "-- crypto_store.values.delete
        DELETE FROM crypto_values WHERE bot_id = $1 AND name = $2",
        write.bot.0,
        name,
    )
    .execute(&mut *write.tx)
    .await?;
    write.commit().await
}

/// The custom value called `name`.
pub(super) async fn load_custom(store: &PgCryptoStore, name: &str) -> Result<Option<Vec<u8>>> {
    let prefetched =
        store.prefetched().custom_values.as_ref().map(|values| values.get(name).cloned());
    let sealed = if let Some(sealed) = prefetched {
        sealed
    } else {
        sqlx::query_scalar!(
            "-- crypto_store.values.load_custom
            SELECT sealed_value FROM crypto_custom_values WHERE bot_id = $1 AND name = $2",
            store.bot.0,
            name,
        )
        .fetch_optional(store.pool())
        .await?
    };
    sealed
        .map(|sealed| store.open_bytes(CUSTOM, &[name], &sealed).map(|value| value.to_vec()))
        .transpose()
}

/// Sets the custom value called `name`.
pub(super) async fn save_custom(store: &PgCryptoStore, name: &str, value: Vec<u8>) -> Result<()> {
    let sealed = store.seal_bytes(CUSTOM, &[name], &Zeroizing::new(value))?;
    let mut write = store.turn().await.begin().await?;
    sqlx::query!(
        "-- crypto_store.values.save_custom
        INSERT INTO crypto_custom_values (bot_id, name, sealed_value) VALUES ($1, $2, $3)
        ON CONFLICT (bot_id, name) DO UPDATE SET sealed_value = EXCLUDED.sealed_value",
        write.bot.0,
        name,
        sealed,
    )
    .execute(&mut *write.tx)
    .await?;
    write.commit().await
}

/// Removes the custom value called `name`.
pub(super) async fn delete_custom(store: &PgCryptoStore, name: &str) -> Result<()> {
    let mut write = store.turn().await.begin().await?;
    sqlx::query!(
        "-- crypto_store.values.delete_custom
        DELETE FROM crypto_custom_values WHERE bot_id = $1 AND name = $2",
        write.bot.0,
        name,
    )
    .execute(&mut *write.tx)
    .await?;
    write.commit().await
}

/// Takes or extends a lock; the generation it is held in, or nothing if somebody else holds it.
pub(super) async fn try_lock(
    store: &PgCryptoStore,
    duration_ms: u32,
    name: &str,
    holder: &str,
) -> Result<Option<u64>> {
    let mut write = store.turn().await.begin().await?;
    let now = write.now;
    let generation = sqlx::query_scalar!(
        "-- crypto_store.values.try_lock
        INSERT INTO crypto_lease_locks AS l (bot_id, name, holder, expires_at)
        VALUES ($1, $2, $3, $4)
        ON CONFLICT (bot_id, name) DO UPDATE
        SET holder = EXCLUDED.holder,
            expires_at = EXCLUDED.expires_at,
            generation = l.generation + (l.holder <> EXCLUDED.holder)::INTEGER
        WHERE l.holder = EXCLUDED.holder OR l.expires_at < $5
        RETURNING l.generation",
        write.bot.0,
        name,
        holder,
        now + TimeDelta::milliseconds(duration_ms.into()),
        now,
    )
    .fetch_optional(&mut *write.tx)
    .await?;
    write.commit().await?;
    Ok(generation.map(i64::unsigned_abs))
}

/// How many bytes this bot's sealed values take: a scan of all its rows, for diagnostics.
pub(super) async fn size(store: &PgCryptoStore) -> Result<Option<usize>> {
    store.settle(|_| true).await?;
    let bytes = sqlx::query_scalar!(
        r#"-- crypto_store.values.size
        SELECT SUM(bytes)::BIGINT AS "bytes" FROM (
            SELECT OCTET_LENGTH(sealed_account) FROM crypto_accounts WHERE bot_id = $1
            UNION ALL SELECT OCTET_LENGTH(sealed_value) FROM crypto_values WHERE bot_id = $1
            UNION ALL SELECT OCTET_LENGTH(sealed_value) FROM crypto_custom_values WHERE bot_id = $1
            UNION ALL SELECT OCTET_LENGTH(sealed_session) FROM crypto_olm_sessions WHERE bot_id = $1
            UNION ALL SELECT OCTET_LENGTH(sealed_session) FROM crypto_inbound_group_sessions WHERE bot_id = $1
            UNION ALL SELECT OCTET_LENGTH(sealed_session) FROM crypto_outbound_group_sessions WHERE bot_id = $1
            UNION ALL SELECT OCTET_LENGTH(sealed_device) FROM crypto_devices WHERE bot_id = $1
            UNION ALL SELECT OCTET_LENGTH(sealed_identity) FROM crypto_identities WHERE bot_id = $1
            UNION ALL SELECT OCTET_LENGTH(sealed_request) FROM crypto_requests WHERE bot_id = $1
            UNION ALL SELECT OCTET_LENGTH(sealed_secret) FROM crypto_secrets WHERE bot_id = $1
            UNION ALL SELECT OCTET_LENGTH(sealed_entry) FROM crypto_withheld_sessions WHERE bot_id = $1
            UNION ALL SELECT OCTET_LENGTH(sealed_settings) FROM crypto_room_settings WHERE bot_id = $1
            UNION ALL SELECT OCTET_LENGTH(sealed_bundle) FROM crypto_room_key_bundles WHERE bot_id = $1
            UNION ALL SELECT OCTET_LENGTH(sealed_details) FROM crypto_pending_key_bundles WHERE bot_id = $1
        ) AS sealed (bytes)"#,
        store.bot.0,
    )
    .fetch_one(store.pool())
    .await?;
    Ok(bytes.and_then(|bytes| usize::try_from(bytes).ok()))
}
