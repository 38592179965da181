//! `crypto_devices` and `crypto_identities`: whom a bot knows, and how far it trusts them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use matrix_sdk_crypto::{DeviceData, UserIdentityData};
use ruma::{DeviceId, OwnedDeviceId, UserId};

use super::{PgCryptoStore, PgCryptoStoreError, Result, Write};

const DEVICES: &str = "crypto_devices";
const IDENTITIES: &str = "crypto_identities";

/// One device.
pub(super) async fn load(
    store: &PgCryptoStore,
    user_id: &UserId,
    device_id: &DeviceId,
) -> Result<Option<DeviceData>> {
    let sealed = sqlx::query_scalar!(
        "-- crypto_store.devices.load
        SELECT sealed_device FROM crypto_devices
        WHERE bot_id = $1 AND user_id = $2 AND device_id = $3",
        store.bot.0,
        user_id.as_str(),
        device_id.as_str(),
    )
    .fetch_optional(store.pool())
    .await?;
    sealed
        .map(|sealed| store.open(DEVICES, &[user_id.as_str(), device_id.as_str()], &sealed))
        .transpose()
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
    let rows = sqlx::query!(
        "-- crypto_store.devices.load_of_user
        SELECT device_id, sealed_device FROM crypto_devices WHERE bot_id = $1 AND user_id = $2",
        store.bot.0,
        user_id.as_str(),
    )
    .fetch_all(store.pool())
    .await?;
    rows.into_iter()
        .map(|row| {
            let device =
                store.open(DEVICES, &[user_id.as_str(), &row.device_id], &row.sealed_device)?;
            Ok((row.device_id.into(), device))
        })
        .collect()
}

/// Sealed devices by user and device id.
pub(super) type Rows = BTreeMap<(String, String), Vec<u8>>;

/// No homeserver makes longer device ids, and no index takes much longer ones.
const DEVICE_ID_BYTES: usize = 512;

/// Seals. A device whose id no index takes is left out: it is given no keys.
pub(super) fn prepare<'a>(
    store: &PgCryptoStore,
    devices: impl Iterator<Item = &'a DeviceData>,
) -> Result<Rows> {
    devices
        .filter(|device| device.device_id().as_str().len() <= DEVICE_ID_BYTES)
        .map(|device| {
            let (user_id, device_id) = key(device);
            let sealed = store.seal(DEVICES, &[&user_id, &device_id], device)?;
            Ok(((user_id, device_id), sealed))
        })
        .collect()
}

fn key(device: &DeviceData) -> (String, String) {
    (device.user_id().as_str().to_owned(), device.device_id().as_str().to_owned())
}

/// Writes what [`prepare`] made.
pub(super) async fn save(write: &mut Write<'_>, rows: Rows) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let (keys, sealed): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let (user_ids, device_ids): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
    sqlx::query!(
        "-- crypto_store.devices.save
        INSERT INTO crypto_devices (bot_id, user_id, device_id, sealed_device)
        SELECT $1, r.user_id, r.device_id, r.sealed
        FROM UNNEST($2::TEXT[], $3::TEXT[], $4::BYTEA[]) AS r (user_id, device_id, sealed)
        ON CONFLICT (bot_id, user_id, device_id) DO UPDATE
        SET sealed_device = EXCLUDED.sealed_device",
        write.bot.0,
        &user_ids,
        &device_ids,
        &sealed,
    )
    .execute(&mut *write.tx)
    .await?;
    Ok(())
}

/// Deletes devices that their users have logged out.
pub(super) async fn delete(write: &mut Write<'_>, devices: &[DeviceData]) -> Result<()> {
    if devices.is_empty() {
        return Ok(());
    }
    let keys: BTreeSet<_> = devices.iter().map(key).collect();
    let (user_ids, device_ids): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
    sqlx::query!(
        "-- crypto_store.devices.delete
        DELETE FROM crypto_devices AS d
        USING UNNEST($2::TEXT[], $3::TEXT[]) AS r (user_id, device_id)
        WHERE d.bot_id = $1 AND d.user_id = r.user_id AND d.device_id = r.device_id",
        write.bot.0,
        &user_ids,
        &device_ids,
    )
    .execute(&mut *write.tx)
    .await?;
    Ok(())
}

/// The cross-signing identity of a user.
pub(super) async fn load_identity(
    store: &PgCryptoStore,
    user_id: &UserId,
) -> Result<Option<UserIdentityData>> {
    let sealed = sqlx::query_scalar!(
        "-- crypto_store.devices.load_identity
        SELECT sealed_identity FROM crypto_identities WHERE bot_id = $1 AND user_id = $2",
        store.bot.0,
        user_id.as_str(),
    )
    .fetch_optional(store.pool())
    .await?;
    sealed.map(|sealed| store.open(IDENTITIES, &[user_id.as_str()], &sealed)).transpose()
}

/// Seals, by user.
pub(super) fn prepare_identities<'a>(
    store: &PgCryptoStore,
    identities: impl Iterator<Item = &'a UserIdentityData>,
) -> Result<BTreeMap<String, Vec<u8>>> {
    identities
        .map(|identity| {
            let user_id = identity.user_id().as_str();
            Ok((user_id.to_owned(), store.seal(IDENTITIES, &[user_id], identity)?))
        })
        .collect()
}

/// Writes what [`prepare_identities`] made.
pub(super) async fn save_identities(
    write: &mut Write<'_>,
    rows: BTreeMap<String, Vec<u8>>,
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let (user_ids, sealed): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    sqlx::query!(
        "-- crypto_store.devices.save_identities
        INSERT INTO crypto_identities (bot_id, user_id, sealed_identity)
        SELECT $1, r.user_id, r.sealed FROM UNNEST($2::TEXT[], $3::BYTEA[]) AS r (user_id, sealed)
        ON CONFLICT (bot_id, user_id) DO UPDATE SET sealed_identity = EXCLUDED.sealed_identity",
        write.bot.0,
        &user_ids,
        &sealed,
    )
    .execute(&mut *write.tx)
    .await?;
    Ok(())
}
