//! `crypto_devices` and `crypto_identities`: whom a bot knows, and how far it trusts them.

use std::collections::{BTreeMap, HashMap};

use matrix_sdk_crypto::{DeviceData, UserIdentityData};
use ruma::{DeviceId, OwnedDeviceId, UserId};

use sqlx::PgConnection;

use super::{PgCryptoStore, PgCryptoStoreError, Result};
use crate::{
    model::BotId,
    store::{SealError, StoreError},
};

pub(super) const DEVICES: &str = "crypto_devices";
pub(super) const IDENTITIES: &str = "crypto_identities";

/// One device.
pub(super) async fn load(
    store: &PgCryptoStore,
    user_id: &UserId,
    device_id: &DeviceId,
) -> Result<Option<DeviceData>> {
    Ok(load_of_user(store, user_id).await?.remove(device_id))
}

/// The bot's own device.
pub(super) async fn load_own(store: &PgCryptoStore) -> Result<DeviceData> {
    let account = store.static_account().await?;
    load(store, &account.user_id, &account.device_id).await?.ok_or(PgCryptoStoreError::NoOwnDevice)
}

/// All devices of a user.
pub(super) async fn load_of_user(
    store: &PgCryptoStore,
    user_id: &UserId,
) -> Result<HashMap<OwnedDeviceId, DeviceData>> {
    if let Some(devices) = store.cache().devices(user_id) {
        return Ok(devices);
    }
    let prefetched = store.prefetched().devices.remove(user_id.as_str());
    let rows = match prefetched {
        Some(rows) => rows,
        None => from_database(store, user_id).await?,
    };
    let devices: HashMap<OwnedDeviceId, DeviceData> = rows
        .into_iter()
        .map(|(device_id, sealed)| {
            let device = store.open(DEVICES, &[user_id.as_str(), &device_id], &sealed)?;
            Ok((device_id.into(), device))
        })
        .collect::<Result<_>>()?;
    store.cache().keep_devices(user_id, devices.clone());
    Ok(devices)
}

async fn from_database(store: &PgCryptoStore, user_id: &UserId) -> Result<Vec<(String, Vec<u8>)>> {
    store.settle(|rows| rows.devices.keys().any(|(_, user, _)| user == user_id.as_str())).await?;
    let rows = sqlx::query!(
        "-- crypto_store.devices.load_of_user
        SELECT device_id, sealed_device FROM crypto_devices WHERE bot_id = $1 AND user_id = $2",
        store.bot.0,
        user_id.as_str(),
    )
    .fetch_all(store.pool())
    .await?;
    Ok(rows.into_iter().map(|row| (row.device_id, row.sealed_device)).collect())
}

/// Sealed devices by bot, user and device id; `None` for one that its user has logged out.
pub(super) type Rows = BTreeMap<(BotId, String, String), Option<Vec<u8>>>;

/// Sealed identities by bot and user.
pub(super) type IdentityRows = BTreeMap<(BotId, String), Vec<u8>>;

/// No homeserver makes longer device ids, and no index takes much longer ones.
const DEVICE_ID_BYTES: usize = 512;

/// Seals. A device whose id no index takes is left out: it is given no keys.
pub(super) fn prepare<'a>(
    store: &PgCryptoStore,
    devices: impl Iterator<Item = &'a DeviceData>,
    deleted: &[DeviceData],
) -> Result<Rows> {
    let key = |device: &DeviceData| {
        (store.bot, device.user_id().as_str().to_owned(), device.device_id().as_str().to_owned())
    };
    let mut rows = Rows::new();
    for device in devices.filter(|device| device.device_id().as_str().len() <= DEVICE_ID_BYTES) {
        store.cache().change_device(device, false);
        let (bot, user_id, device_id) = key(device);
        let sealed = store.seal(DEVICES, &[&user_id, &device_id], device)?;
        rows.insert((bot, user_id, device_id), Some(sealed));
    }
    for device in deleted {
        store.cache().change_device(device, true);
        rows.insert(key(device), None);
    }
    Ok(rows)
}

/// Writes what [`prepare`] made.
pub(super) async fn save(conn: &mut PgConnection, rows: Rows) -> Result<(), StoreError> {
    let (mut kept, mut deleted) = (Vec::new(), Vec::new());
    for (key, sealed) in rows {
        match sealed {
            Some(sealed) => kept.push((key, sealed)),
            None => deleted.push(key),
        }
    }
    delete(conn, deleted).await?;
    if kept.is_empty() {
        return Ok(());
    }
    let (keys, sealed): (Vec<_>, Vec<_>) = kept.into_iter().unzip();
    let (bots, user_ids, device_ids): (Vec<_>, Vec<_>, Vec<_>) =
        keys.into_iter().map(|(bot, user_id, device_id)| (bot.0, user_id, device_id)).collect();
    sqlx::query!(
        "-- crypto_store.devices.save
        INSERT INTO crypto_devices (bot_id, user_id, device_id, sealed_device)
        SELECT r.bot_id, r.user_id, r.device_id, r.sealed
        FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::TEXT[], $4::BYTEA[])
            AS r (bot_id, user_id, device_id, sealed)
        ON CONFLICT (bot_id, user_id, device_id) DO UPDATE
        SET sealed_device = EXCLUDED.sealed_device",
        &bots,
        &user_ids,
        &device_ids,
        &sealed,
    )
    .execute(conn)
    .await?;
    Ok(())
}

async fn delete(
    conn: &mut PgConnection,
    keys: Vec<(BotId, String, String)>,
) -> Result<(), StoreError> {
    if keys.is_empty() {
        return Ok(());
    }
    let (bots, user_ids, device_ids): (Vec<_>, Vec<_>, Vec<_>) =
        keys.into_iter().map(|(bot, user_id, device_id)| (bot.0, user_id, device_id)).collect();
    sqlx::query!(
        "-- crypto_store.devices.delete
        DELETE FROM crypto_devices AS d
        USING UNNEST($1::BIGINT[], $2::TEXT[], $3::TEXT[]) AS r (bot_id, user_id, device_id)
        WHERE d.bot_id = r.bot_id AND d.user_id = r.user_id AND d.device_id = r.device_id",
        &bots,
        &user_ids,
        &device_ids,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The cross-signing identity of a user.
pub(super) async fn load_identity(
    store: &PgCryptoStore,
    user_id: &UserId,
) -> Result<Option<UserIdentityData>> {
    if let Some(identity) = store.cache().identity(user_id) {
        return Ok(identity
            .map(|json| serde_json::from_slice(&json))
            .transpose()
            .map_err(|error| SealError::Content(IDENTITIES, error))?);
    }
    let prefetched = store.prefetched().identities.remove(user_id.as_str());
    let sealed = if let Some(sealed) = prefetched {
        sealed
    } else {
        store
            .settle(|rows| rows.identities.contains_key(&(store.bot, user_id.to_string())))
            .await?;
        sqlx::query_scalar!(
            "-- crypto_store.devices.load_identity
            SELECT sealed_identity FROM crypto_identities WHERE bot_id = $1 AND user_id = $2",
            store.bot.0,
            user_id.as_str(),
        )
        .fetch_optional(store.pool())
        .await?
    };
    let json = sealed
        .map(|sealed| store.open_bytes(IDENTITIES, &[user_id.as_str()], &sealed))
        .transpose()?;
    let identity = json
        .as_ref()
        .map(|json| serde_json::from_slice(json))
        .transpose()
        .map_err(|error| SealError::Content(IDENTITIES, error))?;
    store.cache().keep_identity(user_id, json.map(|json| json.to_vec()));
    Ok(identity)
}

/// Seals.
pub(super) fn prepare_identities<'a>(
    store: &PgCryptoStore,
    identities: impl Iterator<Item = &'a UserIdentityData>,
) -> Result<IdentityRows> {
    identities
        .map(|identity| {
            let user_id = identity.user_id();
            let json = serde_json::to_vec(identity)
                .map_err(|error| SealError::Content(IDENTITIES, error))?;
            let sealed = store.seal_bytes(IDENTITIES, &[user_id.as_str()], &json)?;
            store.cache().keep_identity(user_id, Some(json));
            Ok(((store.bot, user_id.to_string()), sealed))
        })
        .collect()
}

/// Writes what [`prepare_identities`] made.
pub(super) async fn save_identities(
    conn: &mut PgConnection,
    rows: IdentityRows,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (keys, sealed): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let (bots, user_ids): (Vec<_>, Vec<_>) =
        keys.into_iter().map(|(bot, user_id)| (bot.0, user_id)).unzip();
    sqlx::query!(
        "-- crypto_store.devices.save_identities
        INSERT INTO crypto_identities (bot_id, user_id, sealed_identity)
        SELECT r.bot_id, r.user_id, r.sealed
        FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::BYTEA[]) AS r (bot_id, user_id, sealed)
        ON CONFLICT (bot_id, user_id) DO UPDATE SET sealed_identity = EXCLUDED.sealed_identity",
        &bots,
        &user_ids,
        &sealed,
    )
    .execute(conn)
    .await?;
    Ok(())
}
