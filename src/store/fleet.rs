//! The fleet as an operator looks at it: reading only, over several tables.

use chrono::{DateTime, Utc};
use ruma::UserId;
use serde::Serialize;
use sqlx::PgConnection;

use super::StoreError;
use crate::model::BotId;

/// A bot in a list.
#[derive(Clone, Debug, Serialize)]
pub struct BotRow {
    /// Our id.
    #[serde(skip)]
    pub bot_id: BotId,
    /// Its Matrix user.
    pub user_id: String,
    /// Its device.
    pub device_id: String,
    /// `provisioning`, `active` or `retired`.
    pub state: String,
    /// When it last decrypted a message.
    pub last_decrypted_at: Option<DateTime<Utc>>,
    /// What its last failing step said.
    pub last_error: Option<String>,
    /// When that was.
    pub last_error_at: Option<DateTime<Utc>>,
    /// What is wrong with the identity and devices that the homeserver shows for it.
    pub alarm: Option<String>,
    /// Since when that is known.
    pub alarm_at: Option<DateTime<Utc>>,
    /// Failed steps in a row.
    pub failures: i32,
    /// When its next step is due; `None` if it has nothing to do.
    pub next_attempt_at: Option<DateTime<Utc>>,
}

/// How much lies in a bot's inbox and outbox.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Depth {
    /// Entries of the inbox, parked ones included.
    pub inbox: i64,
    /// Messages to be sent.
    pub outbox_queued: i64,
    /// Messages that were given up.
    pub outbox_failed: i64,
}

/// A word and how often it occurs.
#[derive(Clone, Debug, Serialize)]
pub struct Count {
    /// The word.
    pub word: String,
    /// How often.
    pub count: i64,
}

/// The bots, or the one bot with this user id, in the order of their user ids.
///
/// # Errors
///
/// The database's own.
pub async fn list(
    conn: &mut PgConnection,
    only: Option<&UserId>,
) -> Result<Vec<BotRow>, StoreError> {
    Ok(sqlx::query_as!(
        BotRow,
        r#"-- fleet.list
        SELECT b.bot_id, b.user_id, b.device_id, b.state, b.last_decrypted_at, b.last_error,
            b.last_error_at, b.alarm, b.alarm_at, COALESCE(q.failures, 0) AS "failures!", q.due_at AS "next_attempt_at?"
        FROM bots b
        LEFT JOIN bot_queue q USING (bot_id)
        WHERE $1::TEXT IS NULL OR b.user_id = $1
        ORDER BY b.user_id"#,
        only.map(UserId::as_str),
    )
    .fetch_all(conn)
    .await?)
}

/// How much lies in a bot's inbox and outbox.
///
/// # Errors
///
/// The database's own.
pub async fn depth(conn: &mut PgConnection, bot: BotId) -> Result<Depth, StoreError> {
    Ok(sqlx::query_as!(
        Depth,
        r#"-- fleet.depth
        SELECT (SELECT COUNT(*) FROM inbox WHERE bot_id = $1) AS "inbox!",
            COUNT(*) FILTER (WHERE state = 'queued') AS "outbox_queued!",
            COUNT(*) FILTER (WHERE state = 'failed') AS "outbox_failed!"
        FROM outbox
        WHERE bot_id = $1"#,
        bot.0,
    )
    .fetch_one(conn)
    .await?)
}

/// The parked entries of a bot's inbox by what they wait for.
///
/// # Errors
///
/// The database's own.
pub async fn parked(conn: &mut PgConnection, bot: BotId) -> Result<Vec<Count>, StoreError> {
    Ok(sqlx::query_as!(
        Count,
        r#"-- fleet.parked
        SELECT COALESCE(waiting_reason, 'unknown') AS "word!", COUNT(*) AS "count!"
        FROM inbox
        WHERE bot_id = $1 AND waiting_for IS NOT NULL
        GROUP BY 1
        ORDER BY 1"#,
        bot.0,
    )
    .fetch_all(conn)
    .await?)
}

/// The verifications of a bot by how far they got.
///
/// # Errors
///
/// The database's own.
pub async fn verifications(conn: &mut PgConnection, bot: BotId) -> Result<Vec<Count>, StoreError> {
    Ok(sqlx::query_as!(
        Count,
        r#"-- fleet.verifications
        SELECT state AS "word!", COUNT(*) AS "count!"
        FROM verifications
        WHERE bot_id = $1
        GROUP BY 1
        ORDER BY 1"#,
        bot.0,
    )
    .fetch_all(conn)
    .await?)
}

/// What the last messages of a bot that were not sent failed with, the newest first.
///
/// # Errors
///
/// The database's own.
pub async fn send_errors(
    conn: &mut PgConnection,
    bot: BotId,
    limit: i64,
) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"-- fleet.send_errors
        SELECT error AS "error!"
        FROM outbox
        WHERE bot_id = $1 AND error IS NOT NULL AND state <> 'sent'
        ORDER BY send_id DESC
        LIMIT $2"#,
        bot.0,
        limit,
    )
    .fetch_all(conn)
    .await?)
}

/// Whether any `serve` process has been heard of since `since`.
///
/// # Errors
///
/// The database's own.
pub async fn is_served(conn: &mut PgConnection, since: DateTime<Utc>) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"-- fleet.is_served
        SELECT EXISTS (SELECT FROM processes WHERE seen_at > $1) AS "served!""#,
        since,
    )
    .fetch_one(conn)
    .await?)
}
