//! `event_log` as the built-in responder sees it: what it has still to look at.

use chrono::{DateTime, Utc};
use ruma::{OwnedDeviceId, OwnedUserId};
use serde_json::Value;
use sqlx::PgConnection;

use super::{Sealer, StoreError};
use crate::model::BotId;

const EVENTS: &str = "events";

/// An event that a bot was shown and the responder not yet.
#[derive(Clone, Debug)]
pub struct Pending {
    /// The bot that was shown it.
    pub bot: BotId,
    /// The bot's user.
    pub user_id: OwnedUserId,
    /// The bot's device.
    pub device_id: OwnedDeviceId,
    /// The bot's public name.
    pub display_name: Option<String>,
    /// The bot's public master key.
    pub master_key: Option<String>,
    /// Its place in the bot's log.
    pub update_id: i64,
    /// The event.
    pub event_id: String,
    /// The room.
    pub room_id: String,
    /// Who sent it.
    pub sender: String,
    /// Whether that is a bot of ours.
    pub sender_is_bot: bool,
    /// Milliseconds, as the sending homeserver says.
    pub origin_server_ts: i64,
    /// When we got it.
    pub received_at: DateTime<Utc>,
    sealed: Vec<u8>,
}

impl Pending {
    /// The event in the clear; as received, if it was not or could not be decrypted.
    ///
    /// # Errors
    ///
    /// A damaged seal, or something else than JSON in it.
    pub fn open(&self, sealer: &Sealer) -> Result<Value, StoreError> {
        Ok(sealer.open_json(EVENTS, None, &self.sealed)?)
    }
}

/// Up to `limit` events that the responder has still to look at, the longest waiting first, held until
/// the end of the transaction.
///
/// # Errors
///
/// The database's own, or a row that this version cannot read.
pub async fn claim(conn: &mut PgConnection, limit: i64) -> Result<Vec<Pending>, StoreError> {
    let rows = sqlx::query!(
        r#"-- responses.claim
        SELECT
            l.bot_id, b.user_id, b.device_id, b.display_name, i.master_key AS "master_key?",
            l.update_id, e.event_id, e.room_id, e.sender, e.origin_server_ts, e.received_at,
            EXISTS (SELECT FROM bots s WHERE s.user_id = e.sender) AS "sender_is_bot!",
            COALESCE(e.sealed_clear, e.sealed_event) AS "sealed!"
        FROM event_log l
        JOIN events e USING (event_seq)
        JOIN bots b USING (bot_id)
        LEFT JOIN bot_identities i USING (bot_id)
        WHERE l.respond
        ORDER BY l.logged_at, l.bot_id, l.update_id
        LIMIT $1
        FOR UPDATE OF l SKIP LOCKED"#,
        limit,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Pending {
                bot: BotId(row.bot_id),
                user_id: row.user_id.try_into()?,
                device_id: row.device_id.into(),
                display_name: row.display_name,
                master_key: row.master_key,
                update_id: row.update_id,
                event_id: row.event_id,
                room_id: row.room_id,
                sender: row.sender,
                sender_is_bot: row.sender_is_bot,
                origin_server_ts: row.origin_server_ts,
                received_at: row.received_at,
                sealed: row.sealed,
            })
        })
        .collect()
}

/// Marks claimed events as looked at.
///
/// # Errors
///
/// The database's own.
pub async fn handled(conn: &mut PgConnection, pending: &[Pending]) -> Result<(), StoreError> {
    let bots: Vec<i64> = pending.iter().map(|p| p.bot.0).collect();
    let updates: Vec<i64> = pending.iter().map(|p| p.update_id).collect();
    sqlx::query!(
        "-- responses.handled
        UPDATE event_log l SET respond = FALSE
        FROM UNNEST($1::BIGINT[], $2::BIGINT[]) AS h (bot_id, update_id)
        WHERE l.bot_id = h.bot_id AND l.update_id = h.update_id",
        &bots,
        &updates,
    )
    .execute(conn)
    .await?;
    Ok(())
}
