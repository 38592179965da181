//! What the machine saves, pickled and sealed into rows.

use std::collections::BTreeMap;

use matrix_sdk_crypto::{DeviceData, olm::Account, store::types::Changes};
use ruma::UserId;

use super::{
    PgCryptoStore, Result, account, devices, group_sessions, requests, rooms, rows::CryptoRows,
    sessions, values,
};

/// Everything that one step of the machine changed. All or nothing: it is pickled while the turn is
/// held, and gathered or written as one.
pub(super) async fn save(store: &PgCryptoStore, changes: Changes) -> Result<()> {
    let turn = store.turn().await;
    let now = store.clock.now();
    let devices = &changes.devices;
    let identities = &changes.identities;
    let rows = CryptoRows {
        values: values::prepare(store, &changes).await?,
        rooms: rooms::Rows::prepare(store, &changes)?,
        secrets: requests::prepare_secrets(store, &changes.secrets)?,
        devices: devices::prepare(
            store,
            devices.new.iter().chain(&devices.changed),
            &devices.deleted,
        )?,
        identities: devices::prepare_identities(
            store,
            identities.new.iter().chain(&identities.changed),
        )?,
        inbound: group_sessions::prepare_inbound(store, &changes.inbound_group_sessions).await?,
        requests: requests::prepare(store, changes.key_requests)?,
        sessions: sessions::prepare(store, changes.sessions).await?,
        hashes: changes
            .message_hashes
            .into_iter()
            .map(|hash| ((store.bot, hash.sender_key, hash.hash), now))
            .collect(),
        ..CryptoRows::default()
    };
    if is_own_device_among(store, &devices.changed) {
        // Each session has a copy of it, so the machine gives them up.
        store.cache().forget_sessions();
    }
    turn.gather_with(rows, changes.outbound_group_sessions).await
}

fn is_own_device_among(store: &PgCryptoStore, devices: &[DeviceData]) -> bool {
    store.get_static_account().is_some_and(|own| {
        let mut devices = devices.iter();
        devices.any(|it| it.user_id() == own.user_id && it.device_id() == own.device_id)
    })
}

/// The Olm account.
pub(super) async fn save_account(store: &PgCryptoStore, account: Option<Account>) -> Result<()> {
    let Some(account) = account else { return Ok(()) };
    let turn = store.turn().await;
    let accounts = account::prepare(store, &account)?;
    turn.gather(CryptoRows { accounts, ..CryptoRows::default() }).await?;
    store.set_static_account(account.static_data().clone());
    Ok(())
}

/// Whose devices the bot keeps up to date, and whether they changed.
pub(super) async fn save_tracked(store: &PgCryptoStore, users: &[(&UserId, bool)]) -> Result<()> {
    let turn = store.turn().await;
    let tracked: BTreeMap<_, _> =
        users.iter().map(|(user, dirty)| ((store.bot, user.to_string()), *dirty)).collect();
    turn.gather(CryptoRows { tracked, ..CryptoRows::default() }).await
}
