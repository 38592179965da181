//! `outbox`: work out. The only way into a room.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;

use super::{Sealer, Signal, StoreError};
use crate::model::{BotId, SendId};

const TABLE: &str = "outbox";

/// A message that somebody asks a bot to send.
#[derive(Clone, Copy, Debug)]
pub struct NewSend<'a> {
    /// Who sends.
    pub bot: BotId,
    /// Where to.
    pub room_id: &'a str,
    /// The asker's id for it: the same id is the same message, for good.
    pub txn_id: &'a str,
    /// Type before encryption.
    pub event_type: &'a str,
    /// Content before encryption.
    pub content: &'a Value,
}

/// A message waiting to be sent.
#[derive(Clone, Debug)]
pub struct Send {
    /// Its id.
    pub id: SendId,
    /// Where to.
    pub room_id: String,
    /// Type before encryption.
    pub event_type: String,
    /// Content before encryption.
    pub content: Value,
    /// How often it was tried.
    pub attempts: i32,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// How a message went out.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// The event id that the homeserver gave it.
    pub event_id: String,
    /// The Megolm session, if it was encrypted.
    pub session_id: Option<String>,
    /// How many devices were given that session for this message.
    pub devices: Option<i32>,
}

/// Asks for a message to be sent; asking again with the same txn id changes nothing and returns the
/// same id. The caller wakes the bot.
///
/// # Errors
///
/// The database's own.
pub async fn insert(
    conn: &mut PgConnection,
    sealer: &Sealer,
    send: NewSend<'_>,
    now: DateTime<Utc>,
) -> Result<SendId, StoreError> {
    let sealed = sealer.seal_json(TABLE, Some(send.bot), send.content)?;
    let id = sqlx::query_scalar!(
        r#"-- outbox.insert
        WITH new AS (
            INSERT INTO outbox (
                bot_id, room_id, txn_id, event_type, sealed_content, due_at, created_at
            )
            VALUES ($1, $2, $3, $4, $5, $6, $6)
            ON CONFLICT ON CONSTRAINT outbox_txn_once DO NOTHING
            RETURNING send_id
        )
        SELECT send_id AS "send_id!" FROM new
        UNION ALL
        SELECT send_id FROM outbox WHERE bot_id = $1 AND txn_id = $3
        LIMIT 1"#,
        send.bot.0,
        send.room_id,
        send.txn_id,
        send.event_type,
        sealed,
        now,
    )
    .fetch_one(conn)
    .await?;
    Ok(SendId(id))
}

/// The bot's due messages, in the order of asking. A later message never overtakes an earlier one of
/// the same room: while one waits for its next attempt, those behind it wait with it.
///
/// # Errors
///
/// The database's own.
pub async fn due(
    conn: &mut PgConnection,
    sealer: &Sealer,
    bot: BotId,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<Send>, StoreError> {
    let rows = sqlx::query!(
        "-- outbox.due
        SELECT send_id, room_id, event_type, sealed_content, attempts, created_at
        FROM outbox o
        WHERE bot_id = $1 AND state = 'queued' AND due_at <= $2
            AND NOT EXISTS (
                SELECT FROM outbox earlier
                WHERE earlier.bot_id = $1 AND earlier.state = 'queued' AND earlier.due_at > $2
                    AND earlier.room_id = o.room_id AND earlier.send_id < o.send_id
            )
        ORDER BY send_id
        LIMIT $3",
        bot.0,
        now,
        limit,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut sends = Vec::with_capacity(rows.len());
    for row in rows {
        match sealer.open_json(TABLE, Some(bot), &row.sealed_content) {
            Ok(content) => sends.push(Send {
                id: SendId(row.send_id),
                room_id: row.room_id,
                event_type: row.event_type,
                content,
                attempts: row.attempts,
                created_at: row.created_at,
            }),
            Err(error) => {
                tracing::error!(%bot, send = row.send_id, %error, "giving up a message that does not open");
                let said = "its sealed content does not open";
                fail(conn, SendId(row.send_id), said, now).await?;
                let said = format!("a message was not sent: {said}");
                super::bots::note_error(conn, bot, Some(&said), now).await?;
            }
        }
    }
    Ok(sends)
}

/// When the bot's next queued message becomes due. Only the first of each room counts: those behind it
/// wait with it.
///
/// # Errors
///
/// The database's own.
pub async fn next_due(
    conn: &mut PgConnection,
    bot: BotId,
) -> Result<Option<DateTime<Utc>>, StoreError> {
    Ok(sqlx::query_scalar!(
        "-- outbox.next_due
        SELECT MIN(due_at)
        FROM (
            SELECT DISTINCT ON (room_id) due_at
            FROM outbox
            WHERE bot_id = $1 AND state = 'queued'
            ORDER BY room_id, send_id
        ) AS first_of_room",
        bot.0,
    )
    .fetch_one(conn)
    .await?)
}

/// Records that a message is in the room.
///
/// # Errors
///
/// The database's own.
pub async fn sent(
    conn: &mut PgConnection,
    send: SendId,
    sent: &Sent,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- outbox.sent
        UPDATE outbox
        SET state = 'sent', event_id = $2, session_id = $3, devices = $4,
            encrypted = $3::TEXT IS NOT NULL, error = NULL, finished_at = $5
        WHERE send_id = $1",
        send.0,
        sent.event_id,
        sent.session_id,
        sent.devices,
        now,
    )
    .execute(&mut *conn)
    .await?;
    Signal::Progress.notify(conn).await
}

/// Puts a message off after a failed attempt.
///
/// # Errors
///
/// The database's own.
pub async fn put_off(
    conn: &mut PgConnection,
    send: SendId,
    error: &str,
    due_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- outbox.put_off
        UPDATE outbox SET attempts = attempts + 1, error = $2, due_at = $3 WHERE send_id = $1",
        send.0,
        error,
        due_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Gives a message up.
///
/// # Errors
///
/// The database's own.
pub async fn fail(
    conn: &mut PgConnection,
    send: SendId,
    error: &str,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- outbox.fail
        UPDATE outbox
        SET state = 'failed', attempts = attempts + 1, error = $2, finished_at = $3
        WHERE send_id = $1",
        send.0,
        error,
        now,
    )
    .execute(&mut *conn)
    .await?;
    Signal::Progress.notify(conn).await
}

/// What became of a message: the event id once it is sent, the error once it is given up.
///
/// # Errors
///
/// The database's own.
pub async fn outcome(
    conn: &mut PgConnection,
    bot: BotId,
    txn_id: &str,
) -> Result<Option<Result<Sent, String>>, StoreError> {
    let row = sqlx::query!(
        "-- outbox.outcome
        SELECT state, event_id, session_id, devices, error
        FROM outbox
        WHERE bot_id = $1 AND txn_id = $2 AND state <> 'queued'",
        bot.0,
        txn_id,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| match (row.state.as_str(), row.event_id) {
        ("sent", Some(event_id)) => {
            Ok(Sent { event_id, session_id: row.session_id, devices: row.devices })
        }
        _ => Err(row.error.unwrap_or_default()),
    }))
}
