//! `save_changes`: everything that one step of the machine changed, in one transaction.

use matrix_sdk_crypto::store::types::Changes;

use super::{PgCryptoStore, Result, devices, group_sessions, requests, rooms, sessions, values};

/// Saves `changes`, all or nothing.
///
/// First everything is pickled and sealed, which takes no connection; then it is written table by
/// table, always in the same order, a statement per table that has changes.
pub(super) async fn save(store: &PgCryptoStore, changes: Changes) -> Result<()> {
    let turn = store.turn().await;

    let values = values::prepare(store, &changes).await?;
    let rooms = rooms::Rows::prepare(store, &changes)?;
    let secrets = requests::prepare_secrets(store, &changes.secrets)?;
    let requests = requests::prepare(store, changes.key_requests)?;
    let devices =
        devices::prepare(store, changes.devices.new.iter().chain(&changes.devices.changed))?;
    let deleted_devices = changes.devices.deleted;
    let identities = devices::prepare_identities(
        store,
        changes.identities.new.iter().chain(&changes.identities.changed),
    )?;
    let sessions = sessions::prepare(store, changes.sessions).await?;
    let hashes = changes.message_hashes;
    let inbound = group_sessions::prepare_inbound(store, changes.inbound_group_sessions).await?;
    let outbound = group_sessions::prepare_outbound(store, changes.outbound_group_sessions).await?;

    // The machine saves after every sync, changed or not.
    let nothing = values.is_empty()
        && rooms.is_empty()
        && secrets.is_empty()
        && requests.is_empty()
        && devices.is_empty()
        && deleted_devices.is_empty()
        && identities.is_empty()
        && sessions.is_empty()
        && hashes.is_empty()
        && inbound.is_empty()
        && outbound.is_empty();
    if nothing {
        return Ok(());
    }

    let mut write = turn.begin().await?;
    values::save(&mut write, values).await?;
    devices::save(&mut write, devices).await?;
    devices::delete(&mut write, &deleted_devices).await?;
    devices::save_identities(&mut write, identities).await?;
    sessions::save(&mut write, sessions).await?;
    sessions::save_hashes(&mut write, hashes).await?;
    group_sessions::save_inbound(&mut write, inbound, None).await?;
    group_sessions::save_outbound(&mut write, outbound).await?;
    requests::save(&mut write, requests).await?;
    requests::save_secrets(&mut write, secrets).await?;
    rooms.save(&mut write).await?;
    write.commit().await
}
