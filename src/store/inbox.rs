//! `inbox`: work in. Edges add rows, a bot's step takes them up and removes them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;

use super::{Sealer, StoreError};
use crate::model::{BotId, EntryId, EventSeq};

const TABLE: &str = "inbox";

/// What an entry is about.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// A to-device message, as JSON event.
    ToDevice(Value),
    /// How many one-time keys and which fallback keys the homeserver still holds.
    KeyCounts(KeyCounts),
    /// Users whose devices changed.
    DeviceLists(Vec<String>),
    /// A room event to read.
    RoomEvent(EventSeq),
    /// An invitation of the bot into a room.
    Invite(EventSeq),
    /// Ask the homeserver for to-device messages that transactions lost.
    Reconcile,
}

/// Counts as a transaction tells them: an absent word is "no news", an empty pool is an explicit zero.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyCounts {
    /// One-time keys left on the homeserver; `None` when the transaction did not say.
    pub one_time_keys: Option<u64>,
    /// Unused fallback key algorithms; `None` when the transaction did not say.
    pub fallback_keys: Option<Vec<String>>,
}

/// An entry to be added.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// For whom.
    pub bot: BotId,
    /// What.
    pub work: Work,
    /// Not before this time.
    pub due_at: DateTime<Utc>,
}

/// An entry as it lies in the inbox.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its id.
    pub id: EntryId,
    /// What.
    pub work: Work,
    /// When it came.
    pub received_at: DateTime<Utc>,
    /// How often it was tried.
    pub attempts: i32,
}

impl Work {
    const fn kind(&self) -> &'static str {
        match self {
            Self::ToDevice(_) => "to_device",
            Self::KeyCounts(_) => "key_counts",
            Self::DeviceLists(_) => "device_lists",
            Self::RoomEvent(_) => "room_event",
            Self::Invite(_) => "invite",
            Self::Reconcile => "reconcile",
        }
    }

    const fn event(&self) -> Option<EventSeq> {
        match self {
            Self::RoomEvent(event) | Self::Invite(event) => Some(*event),
            _ => None,
        }
    }

    fn payload(&self, sealer: &Sealer, bot: BotId) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(match self {
            Self::ToDevice(event) => Some(sealer.seal_json(TABLE, Some(bot), event)?),
            Self::KeyCounts(counts) => Some(sealer.seal_json(TABLE, Some(bot), counts)?),
            Self::DeviceLists(users) => Some(sealer.seal_json(TABLE, Some(bot), users)?),
            Self::RoomEvent(_) | Self::Invite(_) | Self::Reconcile => None,
        })
    }

    fn parse(
        kind: &str,
        event: Option<i64>,
        payload: Option<&[u8]>,
        sealer: &Sealer,
        bot: BotId,
    ) -> Result<Option<Self>, StoreError> {
        Ok(match (kind, event, payload) {
            ("to_device", _, Some(p)) => {
                Some(Self::ToDevice(sealer.open_json(TABLE, Some(bot), p)?))
            }
            ("key_counts", _, Some(p)) => {
                Some(Self::KeyCounts(sealer.open_json(TABLE, Some(bot), p)?))
            }
            ("device_lists", _, Some(p)) => {
                Some(Self::DeviceLists(sealer.open_json(TABLE, Some(bot), p)?))
            }
            ("room_event", Some(event), _) => Some(Self::RoomEvent(EventSeq(event))),
            ("invite", Some(event), _) => Some(Self::Invite(EventSeq(event))),
            ("reconcile", ..) => Some(Self::Reconcile),
            _ => None,
        })
    }
}

/// Adds entries in their order; a room event that the bot has in its inbox already is skipped.
///
/// # Errors
///
/// The database's own.
pub async fn add(
    conn: &mut PgConnection,
    sealer: &Sealer,
    entries: &[NewEntry],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut bots = Vec::with_capacity(entries.len());
    let mut kinds = Vec::with_capacity(entries.len());
    let mut events = Vec::with_capacity(entries.len());
    let mut payloads = Vec::with_capacity(entries.len());
    let mut due = Vec::with_capacity(entries.len());
    for entry in entries {
        bots.push(entry.bot.0);
        kinds.push(entry.work.kind().to_owned());
        events.push(entry.work.event().map(|e| e.0));
        payloads.push(entry.work.payload(sealer, entry.bot)?);
        due.push(entry.due_at);
    }
    sqlx::query!(
        "-- inbox.add
        INSERT INTO inbox (bot_id, kind, event_seq, sealed_payload, received_at, due_at)
        SELECT bot_id, kind, event_seq, payload, $6, due_at
        FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::BIGINT[], $4::BYTEA[], $5::TIMESTAMPTZ[])
            WITH ORDINALITY AS new (bot_id, kind, event_seq, payload, due_at, position)
        ORDER BY position
        ON CONFLICT ON CONSTRAINT inbox_event_once DO NOTHING",
        &bots,
        &kinds,
        &events as &[Option<i64>],
        &payloads as &[Option<Vec<u8>>],
        &due,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The due entries of a bot, oldest first. An entry whose seal is broken is dropped here and
/// reported, so that it cannot stop the ones behind it.
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
) -> Result<Vec<Entry>, StoreError> {
    let rows = sqlx::query!(
        "-- inbox.due
        SELECT entry_id, kind, event_seq, sealed_payload, received_at, attempts
        FROM inbox
        WHERE bot_id = $1 AND due_at <= $2
        ORDER BY entry_id
        LIMIT $3",
        bot.0,
        now,
        limit,
    )
    .fetch_all(&mut *conn)
    .await?;
    let mut entries = Vec::with_capacity(rows.len());
    let mut broken = Vec::new();
    for row in rows {
        let id = EntryId(row.entry_id);
        match Work::parse(&row.kind, row.event_seq, row.sealed_payload.as_deref(), sealer, bot) {
            Ok(Some(work)) => entries.push(Entry {
                id,
                work,
                received_at: row.received_at,
                attempts: row.attempts,
            }),
            Ok(None) => broken.push(id),
            Err(error) => {
                tracing::error!(%bot, entry = %id, kind = row.kind, %error, "dropping an inbox entry that does not open");
                broken.push(id);
            }
        }
    }
    if !broken.is_empty() {
        let said = "an entry of its inbox did not open, and was dropped: see the log";
        super::bots::note_error(conn, bot, Some(said), now).await?;
        remove(conn, &broken).await?;
    }
    Ok(entries)
}

/// When the bot's next entry becomes due.
///
/// # Errors
///
/// The database's own.
pub async fn next_due(
    conn: &mut PgConnection,
    bot: BotId,
) -> Result<Option<DateTime<Utc>>, StoreError> {
    Ok(sqlx::query_scalar!(
        "-- inbox.next_due
        SELECT MIN(due_at) FROM inbox WHERE bot_id = $1",
        bot.0,
    )
    .fetch_one(conn)
    .await?)
}

/// Removes entries whose work is done.
///
/// # Errors
///
/// The database's own.
pub async fn remove(conn: &mut PgConnection, entries: &[EntryId]) -> Result<(), StoreError> {
    if entries.is_empty() {
        return Ok(());
    }
    let ids: Vec<i64> = entries.iter().map(|e| e.0).collect();
    sqlx::query!(
        "-- inbox.remove
        DELETE FROM inbox WHERE entry_id = ANY($1)",
        &ids,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Parks an encrypted event until `due_at`, or until the key of `session` comes.
///
/// # Errors
///
/// The database's own.
pub async fn park(
    conn: &mut PgConnection,
    entry: EntryId,
    session: &str,
    reason: &str,
    due_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- inbox.park
        UPDATE inbox
        SET waiting_for = $2, waiting_reason = $3, due_at = $4, attempts = attempts + 1
        WHERE entry_id = $1",
        entry.0,
        session,
        reason,
        due_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Makes entries that wait for one of these sessions due.
///
/// # Errors
///
/// The database's own.
pub async fn unpark_sessions(
    conn: &mut PgConnection,
    bot: BotId,
    sessions: &[String],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    if sessions.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "-- inbox.unpark_sessions
        UPDATE inbox SET due_at = $3 WHERE bot_id = $1 AND waiting_for = ANY($2)",
        bot.0,
        sessions,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Makes entries of other bots that wait to decrypt this event due, and says whose.
///
/// # Errors
///
/// The database's own.
pub async fn unpark_event(
    conn: &mut PgConnection,
    event: EventSeq,
    now: DateTime<Utc>,
) -> Result<Vec<BotId>, StoreError> {
    let bots = sqlx::query_scalar!(
        "-- inbox.unpark_event
        UPDATE inbox SET due_at = $2
        WHERE event_seq = $1 AND waiting_for IS NOT NULL
        RETURNING bot_id",
        event.0,
        now,
    )
    .fetch_all(conn)
    .await?;
    Ok(bots.into_iter().map(BotId).collect())
}

/// Asks for a reconcile at `due_at`; one that is asked for already comes at the earlier of the two.
///
/// # Errors
///
/// The database's own.
pub async fn ask_reconcile(
    conn: &mut PgConnection,
    bot: BotId,
    due_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- inbox.ask_reconcile
        WITH asked AS (
            UPDATE inbox SET due_at = LEAST(due_at, $2)
            WHERE bot_id = $1 AND kind = 'reconcile'
            RETURNING entry_id
        )
        INSERT INTO inbox (bot_id, kind, received_at, due_at)
        SELECT $1, 'reconcile', $3, $2
        WHERE NOT EXISTS (SELECT FROM asked)",
        bot.0,
        due_at,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Puts an entry off after a failed attempt.
///
/// # Errors
///
/// The database's own.
pub async fn put_off(
    conn: &mut PgConnection,
    entry: EntryId,
    due_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- inbox.put_off
        UPDATE inbox SET due_at = $2, attempts = attempts + 1 WHERE entry_id = $1",
        entry.0,
        due_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}
