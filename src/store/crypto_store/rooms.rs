//! What a bot knows of rooms: settings, withheld keys and offers of history.

use std::collections::{BTreeMap, HashSet};

use matrix_sdk_crypto::store::types::{
    Changes, RoomKeyWithheldEntry, RoomPendingKeyBundleDetails, RoomSettings,
    StoredRoomKeyBundleData,
};
use ruma::{OwnedRoomId, RoomId, UserId};

use super::{PgCryptoStore, Result, Write};

const SETTINGS: &str = "crypto_room_settings";
const WITHHELD: &str = "crypto_withheld_sessions";
const BUNDLES: &str = "crypto_room_key_bundles";
const PENDING: &str = "crypto_pending_key_bundles";

/// How the bot encrypts in this room.
pub(super) async fn load_settings(
    store: &PgCryptoStore,
    room_id: &RoomId,
) -> Result<Option<RoomSettings>> {
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

/// Changes of rooms, sealed and in the order of their keys.
pub(super) struct Rows {
    settings: BTreeMap<String, Vec<u8>>,
    withheld: BTreeMap<(String, String), Vec<u8>>,
    bundles: BTreeMap<(String, String), Vec<u8>>,
    pending: BTreeMap<String, Vec<u8>>,
    no_longer_pending: Vec<String>,
    downloaded: Vec<String>,
}

impl Rows {
    /// Seals.
    pub(super) fn prepare(store: &PgCryptoStore, changes: &Changes) -> Result<Self> {
        let mut rows = Self {
            settings: BTreeMap::new(),
            withheld: BTreeMap::new(),
            bundles: BTreeMap::new(),
            pending: BTreeMap::new(),
            no_longer_pending: Vec::new(),
            downloaded: sorted(&changes.room_key_backups_fully_downloaded),
        };
        for (room_id, settings) in &changes.room_settings {
            let room_id = room_id.as_str();
            rows.settings.insert(room_id.to_owned(), store.seal(SETTINGS, &[room_id], settings)?);
        }
        for (room_id, entries) in &changes.withheld_session_info {
            for (session_id, entry) in entries {
                let sealed = store.seal(WITHHELD, &[room_id.as_str(), session_id], entry)?;
                rows.withheld.insert((room_id.as_str().to_owned(), session_id.clone()), sealed);
            }
        }
        for bundle in &changes.received_room_key_bundles {
            let room_id = bundle.bundle_data.room_id.as_str();
            let sender = bundle.sender_user.as_str();
            let sealed = store.seal(BUNDLES, &[room_id, sender], bundle)?;
            rows.bundles.insert((room_id.to_owned(), sender.to_owned()), sealed);
        }
        for (room_id, details) in &changes.rooms_pending_key_bundle {
            let room_id = room_id.as_str();
            if let Some(details) = details {
                rows.pending.insert(room_id.to_owned(), store.seal(PENDING, &[room_id], details)?);
            } else {
                rows.no_longer_pending.push(room_id.to_owned());
            }
        }
        rows.no_longer_pending.sort();
        Ok(rows)
    }

    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.settings.is_empty()
            && self.withheld.is_empty()
            && self.bundles.is_empty()
            && self.pending.is_empty()
            && self.no_longer_pending.is_empty()
            && self.downloaded.is_empty()
    }

    /// Writes.
    pub(super) async fn save(self, write: &mut Write<'_>) -> Result<()> {
        save_settings(write, self.settings).await?;
        save_withheld(write, self.withheld).await?;
        save_bundles(write, self.bundles).await?;
        save_pending(write, self.pending, &self.no_longer_pending).await?;
        save_downloaded(write, &self.downloaded).await
    }
}

fn sorted(rooms: &HashSet<OwnedRoomId>) -> Vec<String> {
    let mut rooms: Vec<_> = rooms.iter().map(|room_id| room_id.as_str().to_owned()).collect();
    rooms.sort();
    rooms
}

async fn save_settings(write: &mut Write<'_>, rows: BTreeMap<String, Vec<u8>>) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let (room_ids, sealed): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    sqlx::query!(
        "-- crypto_store.rooms.save_settings
        INSERT INTO crypto_room_settings (bot_id, room_id, sealed_settings)
        SELECT $1, r.room_id, r.sealed FROM UNNEST($2::TEXT[], $3::BYTEA[]) AS r (room_id, sealed)
        ON CONFLICT (bot_id, room_id) DO UPDATE SET sealed_settings = EXCLUDED.sealed_settings",
        write.bot.0,
        &room_ids,
        &sealed,
    )
    .execute(&mut *write.tx)
    .await?;
    Ok(())
}

async fn save_withheld(
    write: &mut Write<'_>,
    rows: BTreeMap<(String, String), Vec<u8>>,
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let (keys, sealed): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let (room_ids, session_ids): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
    sqlx::query!(
        "-- crypto_store.rooms.save_withheld
        INSERT INTO crypto_withheld_sessions (bot_id, room_id, session_id, sealed_entry)
        SELECT $1, r.room_id, r.session_id, r.sealed
        FROM UNNEST($2::TEXT[], $3::TEXT[], $4::BYTEA[]) AS r (room_id, session_id, sealed)
        ON CONFLICT (bot_id, room_id, session_id) DO UPDATE
        SET sealed_entry = EXCLUDED.sealed_entry",
        write.bot.0,
        &room_ids,
        &session_ids,
        &sealed,
    )
    .execute(&mut *write.tx)
    .await?;
    Ok(())
}

async fn save_bundles(
    write: &mut Write<'_>,
    rows: BTreeMap<(String, String), Vec<u8>>,
) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let (keys, sealed): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let (room_ids, senders): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
    sqlx::query!(
        "-- crypto_store.rooms.save_bundles
        INSERT INTO crypto_room_key_bundles (bot_id, room_id, sender_user_id, sealed_bundle)
        SELECT $1, r.room_id, r.sender, r.sealed
        FROM UNNEST($2::TEXT[], $3::TEXT[], $4::BYTEA[]) AS r (room_id, sender, sealed)
        ON CONFLICT (bot_id, room_id, sender_user_id) DO UPDATE
        SET sealed_bundle = EXCLUDED.sealed_bundle",
        write.bot.0,
        &room_ids,
        &senders,
        &sealed,
    )
    .execute(&mut *write.tx)
    .await?;
    Ok(())
}

async fn save_pending(
    write: &mut Write<'_>,
    rows: BTreeMap<String, Vec<u8>>,
    no_longer: &[String],
) -> Result<()> {
    if !rows.is_empty() {
        let (room_ids, sealed): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        sqlx::query!(
            "-- crypto_store.rooms.save_pending
            INSERT INTO crypto_pending_key_bundles (bot_id, room_id, sealed_details)
            SELECT $1, r.room_id, r.sealed
            FROM UNNEST($2::TEXT[], $3::BYTEA[]) AS r (room_id, sealed)
            ON CONFLICT (bot_id, room_id) DO UPDATE SET sealed_details = EXCLUDED.sealed_details",
            write.bot.0,
            &room_ids,
            &sealed,
        )
        .execute(&mut *write.tx)
        .await?;
    }
    if !no_longer.is_empty() {
        sqlx::query!(
            "-- crypto_store.rooms.delete_pending
            DELETE FROM crypto_pending_key_bundles WHERE bot_id = $1 AND room_id = ANY ($2)",
            write.bot.0,
            no_longer,
        )
        .execute(&mut *write.tx)
        .await?;
    }
    Ok(())
}

async fn save_downloaded(write: &mut Write<'_>, room_ids: &[String]) -> Result<()> {
    if room_ids.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "-- crypto_store.rooms.save_downloaded
        INSERT INTO crypto_downloaded_rooms (bot_id, room_id)
        SELECT $1, r.room_id FROM UNNEST($2::TEXT[]) AS r (room_id)
        ON CONFLICT (bot_id, room_id) DO NOTHING",
        write.bot.0,
        room_ids,
    )
    .execute(&mut *write.tx)
    .await?;
    Ok(())
}
