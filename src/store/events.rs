//! `events` and `event_log`: room events, stored once, and what each bot reads of them.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;

use super::{Sealer, StoreError, rooms::Room};
use crate::model::{BotId, Decryption, EventSeq, foreign};

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
    /// Which message of the session it is.
    pub message_index: Option<u32>,
    /// Milliseconds, as the sender's homeserver says.
    pub origin_server_ts: i64,
    /// The whole event.
    pub json: Value,
}

impl NewEvent {
    /// An event of this room from its JSON; `None` if it lacks what every event has, or has it as no
    /// event may. What stands where a session's id belongs and is none is looked for in vain.
    #[must_use]
    pub fn read(room_id: String, json: Value) -> Option<Self> {
        let id = |value: Option<&Value>| {
            value?.as_str().filter(|id| foreign::is_id(id)).map(ToOwned::to_owned)
        };
        let event_type = id(json.get("type"))?;
        // Whatever a message in the clear says of sessions says nothing of ours.
        let encrypted = (event_type == "m.room.encrypted").then(|| json.get("content")).flatten();
        let content = |key| encrypted?.get(key);
        let session_id = id(content("session_id"));
        let message_index =
            content("ciphertext").and_then(Value::as_str).and_then(foreign::message_index);
        Some(Self {
            event_id: id(json.get("event_id"))?,
            room_id,
            sender: id(json.get("sender"))?,
            event_type,
            session_id,
            message_index,
            origin_server_ts: json.get("origin_server_ts").and_then(Value::as_i64).unwrap_or(0),
            json,
        })
    }
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
    /// Which message of the session it is.
    pub message_index: Option<i64>,
    /// Whether an earlier event was this very message, and some bot read it: then this is a replay.
    pub replayed: bool,
    /// Milliseconds, as the sender's homeserver says.
    pub origin_server_ts: i64,
    /// When we got it.
    pub received_at: DateTime<Utc>,
    /// As received.
    pub json: Value,
    /// As decrypted, once some bot has.
    pub clear: Option<Value>,
    /// What is known of its room.
    pub room: Option<Room>,
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
    let mut indices = Vec::with_capacity(events.len());
    let mut timestamps = Vec::with_capacity(events.len());
    let mut sealed = Vec::with_capacity(events.len());
    for event in events {
        ids.push(event.event_id.clone());
        rooms.push(event.room_id.clone());
        senders.push(event.sender.clone());
        types.push(event.event_type.clone());
        sessions.push(event.session_id.clone());
        indices.push(event.message_index.map(i64::from));
        timestamps.push(event.origin_server_ts);
        sealed.push(sealer.seal_json(TABLE, None, &event.json)?);
    }
    let rows = sqlx::query!(
        r#"-- events.store
        WITH new AS (
            INSERT INTO events (
                event_id, room_id, sender, event_type, session_id, message_index,
                origin_server_ts, received_at, sealed_event
            )
            SELECT event_id, room_id, sender, event_type, session_id, message_index,
                origin_server_ts, $9, sealed
            FROM UNNEST(
                $1::TEXT[], $2::TEXT[], $3::TEXT[], $4::TEXT[], $5::TEXT[], $6::BIGINT[],
                $7::BIGINT[], $8::BYTEA[]
            ) WITH ORDINALITY AS new (
                event_id, room_id, sender, event_type, session_id, message_index,
                origin_server_ts, sealed, position
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
        &indices as &[Option<i64>],
        &timestamps,
        &sealed,
        now,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut stored: Vec<_> =
        rows.into_iter().map(|r| (r.event_id, EventSeq(r.event_seq), r.is_new)).collect();
    let found: HashSet<&str> = stored.iter().map(|(id, ..)| id.as_str()).collect();
    ids.retain(|id| !found.contains(id.as_str()));
    if !ids.is_empty() {
        // Stored by a transaction that ended while this one waited for it: too late for its snapshot.
        let late = sqlx::query!(
            "-- events.store_late
            SELECT event_id, event_seq FROM events WHERE event_id = ANY($1)",
            &ids,
        )
        .fetch_all(conn)
        .await?;
        stored.extend(late.into_iter().map(|r| (r.event_id, EventSeq(r.event_seq), false)));
    }
    Ok(stored)
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
        r#"-- events.load
        SELECT event_seq, event_id, room_id, sender, event_type, session_id, message_index,
            origin_server_ts, received_at, sealed_event, sealed_clear,
            r.version AS "room_version?", r.encryption,
            r.encryption_checked AS "encryption_checked?",
            r.history_visibility AS "history_visibility?",
            r.members_complete AS "members_complete?",
            EXISTS (
                SELECT FROM events earlier
                WHERE earlier.session_id = e.session_id AND earlier.message_index = e.message_index
                    AND earlier.sender = e.sender AND earlier.event_seq < e.event_seq
                    AND earlier.sealed_clear IS NOT NULL
            ) AS "replayed!"
        FROM events e LEFT JOIN rooms r USING (room_id)
        WHERE event_seq = ANY($1)
        ORDER BY event_seq"#,
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
                room: row.room_version.map(|version| Room {
                    encryption: row.encryption,
                    encryption_checked: row.encryption_checked.unwrap_or_default(),
                    history_visibility: row.history_visibility.unwrap_or_default(),
                    members_complete: row.members_complete.unwrap_or_default(),
                    version,
                }),
                seq: EventSeq(row.event_seq),
                event_id: row.event_id,
                room_id: row.room_id,
                sender: row.sender,
                event_type: row.event_type,
                session_id: row.session_id,
                message_index: row.message_index,
                replayed: row.replayed,
                origin_server_ts: row.origin_server_ts,
                received_at: row.received_at,
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

/// What an encrypted event says inside, sealed.
#[derive(Clone, Debug)]
pub struct ClearRow {
    clear_type: Option<String>,
    sealed: Vec<u8>,
    by: BotId,
    at: DateTime<Utc>,
}

impl ClearRow {
    /// Seals `clear`, which `by` has decrypted.
    ///
    /// # Errors
    ///
    /// Only if sealing fails.
    pub fn new(
        sealer: &Sealer,
        clear: &Value,
        by: BotId,
        now: DateTime<Utc>,
    ) -> Result<Self, StoreError> {
        let clear_type = clear.get("type").and_then(Value::as_str).map(ToOwned::to_owned);
        Ok(Self { clear_type, sealed: sealer.seal_json(TABLE, None, clear)?, by, at: now })
    }
}

/// An event for a bot to read.
#[derive(Clone, Debug)]
pub struct LogRow {
    /// The reader.
    pub bot: BotId,
    /// The event.
    pub event: EventSeq,
    /// How it reads.
    pub decryption: Decryption,
}

/// Records what events say inside, of which the first bot to decrypt one is the one that counts, and
/// logs events for their readers, each once however often this is called, in this order.
///
/// # Errors
///
/// The database's own.
pub async fn record(
    conn: &mut PgConnection,
    clear: BTreeMap<EventSeq, ClearRow>,
    logged: Vec<LogRow>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    if clear.is_empty() && logged.is_empty() {
        return Ok(());
    }
    let (seqs, rows): (Vec<_>, Vec<_>) = clear.into_iter().map(|(seq, row)| (seq.0, row)).unzip();
    let (types, sealed, by, at): (Vec<_>, Vec<_>, Vec<_>, Vec<_>) =
        rows.into_iter().map(|row| (row.clear_type, row.sealed, row.by.0, row.at)).collect();
    let (bots, events, decryptions): (Vec<_>, Vec<_>, Vec<_>) = logged
        .into_iter()
        .map(|row| (row.bot.0, row.event.0, row.decryption.as_str().to_owned()))
        .collect();
    sqlx::query!(
        "-- events.record
        WITH clear AS (
            UPDATE events e
            SET clear_type = c.clear_type, sealed_clear = c.sealed, decrypted_by = c.decrypted_by,
                decrypted_at = c.decrypted_at
            FROM UNNEST($5::BIGINT[], $6::TEXT[], $7::BYTEA[], $8::BIGINT[], $9::TIMESTAMPTZ[])
                AS c (event_seq, clear_type, sealed, decrypted_by, decrypted_at)
            WHERE e.event_seq = c.event_seq AND e.sealed_clear IS NULL
        ), new AS (
            SELECT n.bot_id, n.event_seq, n.decryption,
                ROW_NUMBER() OVER (PARTITION BY n.bot_id ORDER BY n.position) AS place
            FROM UNNEST($1::BIGINT[], $2::BIGINT[], $3::TEXT[])
                WITH ORDINALITY AS n (bot_id, event_seq, decryption, position)
            WHERE NOT EXISTS (
                SELECT FROM event_log l WHERE l.bot_id = n.bot_id AND l.event_seq = n.event_seq
            )
        ), counted AS (
            UPDATE bots b
            SET last_update_id = b.last_update_id + c.events,
                last_decrypted_at = CASE WHEN c.decrypted THEN $4 ELSE b.last_decrypted_at END
            FROM (
                SELECT bot_id, COUNT(*) AS events, BOOL_OR(decryption IN ('ok', 'late')) AS decrypted
                FROM new
                GROUP BY bot_id
            ) AS c
            WHERE b.bot_id = c.bot_id
            RETURNING b.bot_id, b.last_update_id - c.events AS before
        )
        INSERT INTO event_log (bot_id, update_id, event_seq, decryption, logged_at)
        SELECT n.bot_id, c.before + n.place, n.event_seq, n.decryption, $4
        FROM new n
        JOIN counted c USING (bot_id)
        ORDER BY n.bot_id, n.place",
        &bots,
        &events,
        &decryptions,
        now,
        &seqs,
        &types as &[Option<String>],
        &sealed,
        &by,
        &at,
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{clock::Clock, store::testing::database};

    /// Two transactions store the same event at once: both learn its number.
    #[tokio::test]
    async fn what_another_stores_meanwhile_is_known() {
        let database = database().await;
        let (sealer, now) = (database.store.sealer(), Clock::system().now());
        let event = json!({ "event_id": "$a", "sender": "@a:x", "type": "m.room.message" });
        let event = NewEvent::read("!r:x".to_owned(), event).expect("an event");
        let mut first = database.pool().begin().await.expect("begins");
        let stored = store(&mut first, sealer, std::slice::from_ref(&event), now).await;
        let stored = stored.expect("stores");
        let mut second = database.pool().begin().await.expect("begins");
        let both = async {
            let late = store(&mut second, sealer, std::slice::from_ref(&event), now).await;
            late.expect("stores")
        };
        let commit = async {
            database.wait_for_a_lock().await;
            first.commit().await.expect("commits");
        };
        let (late, ()) = tokio::join!(both, commit);
        let [(id, seq, true)] = stored.as_slice() else { panic!("{stored:?}") };
        assert_eq!(late, [(id.clone(), *seq, false)]);
    }
}
