//! `events` and `event_log`: room events, stored once, and what each bot reads of them.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;

use super::{Sealer, StoreError};
use crate::model::{BotId, Decryption, EventSeq};

const TABLE: &str = "events";

/// A room event as it came.
#[derive(Clone, Debug)]
pub struct NewEvent {
    /// Matrix event id.
    pub event_id: String,
    /// Where.
    pub room_id: String,
    /// Who.
    pub sender: String,
    /// The type on the wire.
    pub event_type: String,
    /// The Megolm session, if it is encrypted.
    pub session_id: Option<String>,
    /// Milliseconds, as the sender's homeserver says.
    pub origin_server_ts: i64,
    /// The whole event.
    pub json: Value,
}

/// A stored event, opened.
#[derive(Clone, Debug)]
pub struct StoredEvent {
    /// Our id.
    pub seq: EventSeq,
    /// Matrix event id.
    pub event_id: String,
    /// Where.
    pub room_id: String,
    /// Who.
    pub sender: String,
    /// The type on the wire.
    pub event_type: String,
    /// The Megolm session, if it is encrypted.
    pub session_id: Option<String>,
    /// As received.
    pub json: Value,
    /// As decrypted, once some bot has.
    pub clear: Option<Value>,
}

/// Stores events; those known already keep their row. Returns `(event id, seq, is new)` of all.
///
/// # Errors
///
/// The database's own.
pub async fn store(
    conn: &mut PgConnection,
    sealer: &Sealer,
    events: &[NewEvent],
    now: DateTime<Utc>,
) -> Result<Vec<(String, EventSeq, bool)>, StoreError> {
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let mut ids = Vec::with_capacity(events.len());
    let mut rooms = Vec::with_capacity(events.len());
    let mut senders = Vec::with_capacity(events.len());
    let mut types = Vec::with_capacity(events.len());
    let mut sessions = Vec::with_capacity(events.len());
    let mut timestamps = Vec::with_capacity(events.len());
    let mut sealed = Vec::with_capacity(events.len());
    for event in events {
        ids.push(event.event_id.clone());
        rooms.push(event.room_id.clone());
        senders.push(event.sender.clone());
        types.push(event.event_type.clone());
        sessions.push(event.session_id.clone());
        timestamps.push(event.origin_server_ts);
        sealed.push(sealer.seal_json(TABLE, None, &event.json)?);
    }
    let rows = sqlx::query!(
        r#"-- events.store
        WITH new AS (
            INSERT INTO events (
                event_id, room_id, sender, event_type, session_id, origin_server_ts, received_at,
                sealed_event
            )
            SELECT event_id, room_id, sender, event_type, session_id, origin_server_ts, $8, sealed
            FROM UNNEST(
                $1::TEXT[], $2::TEXT[], $3::TEXT[], $4::TEXT[], $5::TEXT[], $6::BIGINT[],
                $7::BYTEA[]
            ) WITH ORDINALITY AS new (
                event_id, room_id, sender, event_type, session_id, origin_server_ts, sealed,
                position
            )
            ORDER BY position
            ON CONFLICT (event_id) DO NOTHING
            RETURNING event_id, event_seq
        )
        SELECT event_id AS "event_id!", event_seq AS "event_seq!", TRUE AS "is_new!" FROM new
        UNION ALL
        SELECT event_id, event_seq, FALSE FROM events WHERE event_id = ANY($1)"#,
        &ids,
        &rooms,
        &senders,
        &types,
        &sessions as &[Option<String>],
        &timestamps,
        &sealed,
        now,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|r| (r.event_id, EventSeq(r.event_seq), r.is_new)).collect())
}

/// Opens events by their ids. One whose seal is broken is left out and reported.
///
/// # Errors
///
/// The database's own.
pub async fn load(
    conn: &mut PgConnection,
    sealer: &Sealer,
    events: &[EventSeq],
) -> Result<Vec<StoredEvent>, StoreError> {
    if events.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<i64> = events.iter().map(|e| e.0).collect();
    let rows = sqlx::query!(
        "-- events.load
        SELECT event_seq, event_id, room_id, sender, event_type, session_id, sealed_event,
            sealed_clear
        FROM events
        WHERE event_seq = ANY($1)
        ORDER BY event_seq",
        &ids,
    )
    .fetch_all(conn)
    .await?;
    let mut loaded = Vec::with_capacity(rows.len());
    for row in rows {
        let opened = sealer.open_json(TABLE, None, &row.sealed_event).and_then(|json| {
            let clear = row.sealed_clear.map(|c| sealer.open_json(TABLE, None, &c)).transpose()?;
            Ok((json, clear))
        });
        match opened {
            Ok((json, clear)) => loaded.push(StoredEvent {
                seq: EventSeq(row.event_seq),
                event_id: row.event_id,
                room_id: row.room_id,
                sender: row.sender,
                event_type: row.event_type,
                session_id: row.session_id,
                json,
                clear,
            }),
            Err(error) => {
                tracing::error!(event_id = row.event_id, %error, "a stored event does not open");
            }
        }
    }
    Ok(loaded)
}

/// Records what an event says inside. The first bot to decrypt it is the one that counts.
///
/// # Errors
///
/// The database's own.
pub async fn set_clear(
    conn: &mut PgConnection,
    sealer: &Sealer,
    event: EventSeq,
    clear: &Value,
    by: BotId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sealed = sealer.seal_json(TABLE, None, clear)?;
    sqlx::query!(
        "-- events.set_clear
        UPDATE events
        SET clear_type = $2, sealed_clear = $3, decrypted_by = $4, decrypted_at = $5
        WHERE event_seq = $1 AND sealed_clear IS NULL",
        event.0,
        clear.get("type").and_then(Value::as_str),
        sealed,
        by.0,
        now,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "-- events.bot_can_read
        UPDATE bots SET last_decrypted_at = $2 WHERE bot_id = $1",
        by.0,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Logs an event for a bot, once however often it is called. `respond` asks the built-in responder
/// to look at it.
///
/// # Errors
///
/// The database's own.
pub async fn log(
    conn: &mut PgConnection,
    bot: BotId,
    event: EventSeq,
    decryption: Decryption,
    respond: bool,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- events.log
        WITH next AS (
            UPDATE bots SET last_update_id = last_update_id + 1
            WHERE bot_id = $1
                AND NOT EXISTS (SELECT FROM event_log WHERE bot_id = $1 AND event_seq = $2)
            RETURNING last_update_id
        )
        INSERT INTO event_log (bot_id, update_id, event_seq, decryption, respond, logged_at)
        SELECT $1, last_update_id, $2, $3, $4, $5 FROM next",
        bot.0,
        event.0,
        decryption.as_str(),
        respond,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Which of these events the bot has logged already.
///
/// # Errors
///
/// The database's own.
pub async fn logged(
    conn: &mut PgConnection,
    bot: BotId,
    events: &[EventSeq],
) -> Result<Vec<EventSeq>, StoreError> {
    let ids: Vec<i64> = events.iter().map(|e| e.0).collect();
    let rows = sqlx::query_scalar!(
        "-- events.logged
        SELECT event_seq FROM event_log WHERE bot_id = $1 AND event_seq = ANY($2)",
        bot.0,
        &ids,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(EventSeq).collect())
}
