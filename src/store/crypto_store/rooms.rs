//! What a bot knows of rooms: settings, withheld keys and offers of history.

use std::collections::{BTreeMap, BTreeSet};

use matrix_sdk_crypto::store::types::{
    Changes, RoomKeyWithheldEntry, RoomPendingKeyBundleDetails, RoomSettings,
    StoredRoomKeyBundleData,
};
use ruma::{RoomId, UserId};
use sqlx::PgConnection;

use super::{PgCryptoStore, Result};
use crate::{
    model::{BotId, foreign},
    store::StoreError,
};

pub(super) const SETTINGS: &str = "crypto_room_settings";
pub(super) const WITHHELD: &str = "crypto_withheld_sessions";
pub(super) const BUNDLES: &str = "crypto_room_key_bundles";
pub(super) const PENDING: &str = "crypto_pending_key_bundles";

/// How the bot encrypts in this room.
pub(super) async fn load_settings(
    store: &PgCryptoStore,
    room_id: &RoomId,
) -> Result<Option<RoomSettings>> {
    store.settle(|rows| !rows.rooms.is_empty()).await?;
    let sealed = sqlx::query_scalar!(
        "-- crypto_store.rooms.load_settings
        SELECT sealed_settings FROM crypto_room_settings WHERE bot_id = $1 AND room_id = $2",
        store.bot.0,
        room_id.as_str(),
    )
    .fetch_optional(store.pool())
    .await?;
    sealed.map(|sealed| store.open(SETTINGS, &[room_id.as_str()], &sealed)).transpose()
}

/// Why the bot does not get this room key.
pub(super) async fn load_withheld(
    store: &PgCryptoStore,
    room_id: &RoomId,
    session_id: &str,
) -> Result<Option<RoomKeyWithheldEntry>> {
    store.settle(|rows| !rows.rooms.is_empty()).await?;
    let sealed = sqlx::query_scalar!(
        "-- crypto_store.rooms.load_withheld
        SELECT sealed_entry FROM crypto_withheld_sessions
        WHERE bot_id = $1 AND room_id = $2 AND session_id = $3",
        store.bot.0,
        room_id.as_str(),
        session_id,
    )
    .fetch_optional(store.pool())
    .await?;
    sealed.map(|sealed| store.open(WITHHELD, &[room_id.as_str(), session_id], &sealed)).transpose()
}

/// All keys of this room that the bot does not get.
pub(super) async fn load_withheld_of_room(
    store: &PgCryptoStore,
    room_id: &RoomId,
) -> Result<Vec<RoomKeyWithheldEntry>> {
    store.settle(|rows| !rows.rooms.is_empty()).await?;
    let rows = sqlx::query!(
        "-- crypto_store.rooms.load_withheld_of_room
        SELECT session_id, sealed_entry FROM crypto_withheld_sessions
        WHERE bot_id = $1 AND room_id = $2
        ORDER BY session_id",
        store.bot.0,
        room_id.as_str(),
    )
    .fetch_all(store.pool())
    .await?;
    rows.into_iter()
        .map(|row| store.open(WITHHELD, &[room_id.as_str(), &row.session_id], &row.sealed_entry))
        .collect()
}

/// The history of this room that this user offered.
pub(super) async fn load_bundle(
    store: &PgCryptoStore,
    room_id: &RoomId,
    sender: &UserId,
) -> Result<Option<StoredRoomKeyBundleData>> {
    store.settle(|rows| !rows.rooms.is_empty()).await?;
    let sealed = sqlx::query_scalar!(
        "-- crypto_store.rooms.load_bundle
        SELECT sealed_bundle FROM crypto_room_key_bundles
        WHERE bot_id = $1 AND room_id = $2 AND sender_user_id = $3",
        store.bot.0,
        room_id.as_str(),
        sender.as_str(),
    )
    .fetch_optional(store.pool())
    .await?;
    sealed
        .map(|sealed| store.open(BUNDLES, &[room_id.as_str(), sender.as_str()], &sealed))
        .transpose()
}

/// Whose offer of this room's history the bot waits for.
pub(super) async fn load_pending(
    store: &PgCryptoStore,
    room_id: &RoomId,
) -> Result<Option<RoomPendingKeyBundleDetails>> {
    store.settle(|rows| !rows.rooms.is_empty()).await?;
    let sealed = sqlx::query_scalar!(
        "-- crypto_store.rooms.load_pending
        SELECT sealed_details FROM crypto_pending_key_bundles WHERE bot_id = $1 AND room_id = $2",
        store.bot.0,
        room_id.as_str(),
    )
    .fetch_optional(store.pool())
    .await?;
    sealed.map(|sealed| store.open(PENDING, &[room_id.as_str()], &sealed)).transpose()
}

/// All rooms whose history the bot waits for.
pub(super) async fn load_all_pending(
    store: &PgCryptoStore,
) -> Result<Vec<RoomPendingKeyBundleDetails>> {
    store.settle(|rows| !rows.rooms.is_empty()).await?;
    let rows = sqlx::query!(
        "-- crypto_store.rooms.load_all_pending
        SELECT room_id, sealed_details FROM crypto_pending_key_bundles
        WHERE bot_id = $1
        ORDER BY room_id",
        store.bot.0,
    )
    .fetch_all(store.pool())
    .await?;
    rows.into_iter().map(|row| store.open(PENDING, &[&row.room_id], &row.sealed_details)).collect()
}

/// Whether all keys of this room were fetched from the backup.
pub(super) async fn is_downloaded(store: &PgCryptoStore, room_id: &RoomId) -> Result<bool> {
    store.settle(|rows| !rows.rooms.is_empty()).await?;
    Ok(sqlx::query_scalar!(
        r#"-- crypto_store.rooms.is_downloaded
        SELECT EXISTS (
            SELECT FROM crypto_downloaded_rooms WHERE bot_id = $1 AND room_id = $2
        ) AS "downloaded!""#,
        store.bot.0,
        room_id.as_str(),
    )
    .fetch_one(store.pool())
    .await?)
}

/// Changes of rooms, sealed, the bot in every key; `None` where there is nothing any more.
#[derive(Clone, Debug, Default)]
pub(super) struct Rows {
    settings: BTreeMap<(BotId, String), Vec<u8>>,
    withheld: BTreeMap<(BotId, String, String), Vec<u8>>,
    bundles: BTreeMap<(BotId, String, String), Vec<u8>>,
    pending: BTreeMap<(BotId, String), Option<Vec<u8>>>,
    downloaded: BTreeSet<(BotId, String)>,
}

impl Rows {
    /// Seals.
    pub(super) fn prepare(store: &PgCryptoStore, changes: &Changes) -> Result<Self> {
        let bot = store.bot;
        let mut rows = Self::default();
        for (room_id, settings) in &changes.room_settings {
            let sealed = store.seal(SETTINGS, &[room_id.as_str()], settings)?;
            rows.settings.insert((bot, room_id.to_string()), sealed);
        }
        for (room_id, entries) in &changes.withheld_session_info {
            // What came inside Olm was seen by nobody: what is no id is no session's.
            for (session_id, entry) in entries.iter().filter(|(id, _)| foreign::is_id(id)) {
                let sealed = store.seal(WITHHELD, &[room_id.as_str(), session_id], entry)?;
                rows.withheld.insert((bot, room_id.to_string(), session_id.clone()), sealed);
            }
        }
        for bundle in &changes.received_room_key_bundles {
            let (room_id, sender) = (&bundle.bundle_data.room_id, &bundle.sender_user);
            let sealed = store.seal(BUNDLES, &[room_id.as_str(), sender.as_str()], bundle)?;
            rows.bundles.insert((bot, room_id.to_string(), sender.to_string()), sealed);
        }
        for (room_id, details) in &changes.rooms_pending_key_bundle {
            let sealed = details
                .as_ref()
                .map(|details| store.seal(PENDING, &[room_id.as_str()], details))
                .transpose()?;
            rows.pending.insert((bot, room_id.to_string()), sealed);
        }
        rows.downloaded.extend(
            changes.room_key_backups_fully_downloaded.iter().map(|room| (bot, room.to_string())),
        );
        Ok(rows)
    }

    /// Takes the rows of `newer` in; where both have one, the newer one stays.
    pub(super) fn merge(&mut self, newer: Self) {
        self.settings.extend(newer.settings);
        self.withheld.extend(newer.withheld);
        self.bundles.extend(newer.bundles);
        self.pending.extend(newer.pending);
        self.downloaded.extend(newer.downloaded);
    }

    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.settings.is_empty()
            && self.withheld.is_empty()
            && self.bundles.is_empty()
            && self.pending.is_empty()
            && self.downloaded.is_empty()
    }

    /// Writes.
    pub(super) async fn save(self, conn: &mut PgConnection) -> Result<(), StoreError> {
        save_settings(conn, self.settings).await?;
        save_withheld(conn, self.withheld).await?;
        save_bundles(conn, self.bundles).await?;
        save_pending(conn, self.pending).await?;
        save_downloaded(conn, self.downloaded).await
    }
}

async fn save_settings(
    conn: &mut PgConnection,
    rows: BTreeMap<(BotId, String), Vec<u8>>,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (bots, room_ids, sealed): (Vec<_>, Vec<_>, Vec<_>) =
        rows.into_iter().map(|((bot, room_id), sealed)| (bot.0, room_id, sealed)).collect();
    sqlx::query!(
        "-- crypto_store.rooms.save_settings
        INSERT INTO crypto_room_settings (bot_id, room_id, sealed_settings)
        SELECT r.bot_id, r.room_id, r.sealed
        FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::BYTEA[]) AS r (bot_id, room_id, sealed)
        ON CONFLICT (bot_id, room_id) DO UPDATE SET sealed_settings = EXCLUDED.sealed_settings",
        &bots,
        &room_ids,
        &sealed,
    )
    .execute(conn)
    .await?;
    Ok(())
}

async fn save_withheld(
    conn: &mut PgConnection,
    rows: BTreeMap<(BotId, String, String), Vec<u8>>,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (bots, room_ids, session_ids, sealed): (Vec<_>, Vec<_>, Vec<_>, Vec<_>) = rows
        .into_iter()
        .map(|((bot, room_id, session_id), sealed)| (bot.0, room_id, session_id, sealed))
        .collect();
    sqlx::query!(
        "-- crypto_store.rooms.save_withheld
        INSERT INTO crypto_withheld_sessions (bot_id, room_id, session_id, sealed_entry)
        SELECT r.bot_id, r.room_id, r.session_id, r.sealed
        FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::TEXT[], $4::BYTEA[])
            AS r (bot_id, room_id, session_id, sealed)
        ON CONFLICT (bot_id, room_id, session_id) DO UPDATE
        SET sealed_entry = EXCLUDED.sealed_entry",
        &bots,
        &room_ids,
        &session_ids,
        &sealed,
    )
    .execute(conn)
    .await?;
    Ok(())
}

async fn save_bundles(
    conn: &mut PgConnection,
    rows: BTreeMap<(BotId, String, String), Vec<u8>>,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (bots, room_ids, senders, sealed): (Vec<_>, Vec<_>, Vec<_>, Vec<_>) = rows
        .into_iter()
        .map(|((bot, room_id, sender), sealed)| (bot.0, room_id, sender, sealed))
        .collect();
    sqlx::query!(
        "-- crypto_store.rooms.save_bundles
        INSERT INTO crypto_room_key_bundles (bot_id, room_id, sender_user_id, sealed_bundle)
        SELECT r.bot_id, r.room_id, r.sender, r.sealed
        FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::TEXT[], $4::BYTEA[])
            AS r (bot_id, room_id, sender, sealed)
        ON CONFLICT (bot_id, room_id, sender_user_id) DO UPDATE
        SET sealed_bundle = EXCLUDED.sealed_bundle",
        &bots,
        &room_ids,
        &senders,
        &sealed,
    )
    .execute(conn)
    .await?;
    Ok(())
}

async fn save_pending(
    conn: &mut PgConnection,
    rows: BTreeMap<(BotId, String), Option<Vec<u8>>>,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (mut bots, mut room_ids, mut sealed) = (Vec::new(), Vec::new(), Vec::new());
    let (mut bots_without, mut rooms_without) = (Vec::new(), Vec::new());
    for ((bot, room_id), details) in rows {
        if let Some(details) = details {
            bots.push(bot.0);
            room_ids.push(room_id);
            sealed.push(details);
        } else {
            bots_without.push(bot.0);
            rooms_without.push(room_id);
        }
    }
    sqlx::query!(
        "-- crypto_store.rooms.save_pending
        INSERT INTO crypto_pending_key_bundles (bot_id, room_id, sealed_details)
        SELECT r.bot_id, r.room_id, r.sealed
        FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::BYTEA[]) AS r (bot_id, room_id, sealed)
        ON CONFLICT (bot_id, room_id) DO UPDATE SET sealed_details = EXCLUDED.sealed_details",
        &bots,
        &room_ids,
        &sealed,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "-- crypto_store.rooms.delete_pending
        DELETE FROM crypto_pending_key_bundles AS p
        USING UNNEST($1::BIGINT[], $2::TEXT[]) AS r (bot_id, room_id)
        WHERE p.bot_id = r.bot_id AND p.room_id = r.room_id",
        &bots_without,
        &rooms_without,
    )
    .execute(conn)
    .await?;
    Ok(())
}

async fn save_downloaded(
    conn: &mut PgConnection,
    rows: BTreeSet<(BotId, String)>,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (bots, room_ids): (Vec<_>, Vec<_>) =
        rows.into_iter().map(|(bot, room_id)| (bot.0, room_id)).unzip();
    sqlx::query!(
        "-- crypto_store.rooms.save_downloaded
        INSERT INTO crypto_downloaded_rooms (bot_id, room_id)
        SELECT r.bot_id, r.room_id FROM UNNEST($1::BIGINT[], $2::TEXT[]) AS r (bot_id, room_id)
        ON CONFLICT (bot_id, room_id) DO NOTHING",
        &bots,
        &room_ids,
    )
    .execute(conn)
    .await?;
    Ok(())
}
