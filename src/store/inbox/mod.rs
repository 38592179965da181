//! `inbox`: work in. Edges add rows, a bot's step takes them up and removes them.

mod work;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

pub use self::work::{KeyCounts, Work};
use super::{Sealer, StoreError, queue};
use crate::model::{BotId, EntryId, EventSeq};

const TABLE: &str = "inbox";

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
    /// Whether it names an event that the bot has logged already.
    pub logged: bool,
    /// Whether the bot has read this very message as another event.
    pub replayed: bool,
}

/// Adds entries in their order, and wakes their bots as [`queue::wake`] does, whose
/// signal is the caller's to give; a room event that the bot has in its inbox already is skipped.
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
        WITH new AS (
            SELECT * FROM UNNEST(
                $1::BIGINT[], $2::TEXT[], $3::BIGINT[], $4::BYTEA[], $5::TIMESTAMPTZ[]
            ) WITH ORDINALITY AS new (bot_id, kind, event_seq, payload, due_at, position)
        ), added AS (
            INSERT INTO inbox (bot_id, kind, event_seq, sealed_payload, received_at, due_at)
            SELECT bot_id, kind, event_seq, payload, $6, due_at FROM new ORDER BY position
            ON CONFLICT ON CONSTRAINT inbox_event_once DO NOTHING
            RETURNING entry_id
        ), due AS (
            -- Counted, so that the inbox is locked before the queue, as everywhere.
            SELECT bot_id, MIN(due_at) AS due_at
            FROM new, (SELECT COUNT(*) FROM added) AS first
            GROUP BY bot_id
        )
        INSERT INTO bot_queue (bot_id, shard, due_at)
        SELECT bot_id, shard, due_at
        FROM due JOIN bots USING (bot_id)
        ORDER BY bot_id
        ON CONFLICT (bot_id) DO UPDATE
        SET due_at = LEAST(
                bot_queue.due_at,
                EXCLUDED.due_at + LEAST(bot_queue.failures, 60) * INTERVAL '1 second'
            ),
            generation = bot_queue.generation + 1",
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

/// The due entries of bots, each bot's oldest first and at most `limit` of them, and beside them the
/// entries whose seal is broken, to be removed so that they cannot stop the ones behind them.
///
/// # Errors
///
/// The database's own.
pub async fn due(
    conn: &mut PgConnection,
    sealer: &Sealer,
    bots: &[BotId],
    now: DateTime<Utc>,
    limit: i64,
) -> Result<(Vec<(BotId, Entry)>, Vec<(BotId, EntryId)>), StoreError> {
    let ids: Vec<i64> = bots.iter().map(|bot| bot.0).collect();
    let rows = sqlx::query!(
        r#"-- inbox.due
        SELECT b.bot_id AS "bot_id!", i.entry_id, i.kind, i.event_seq, i.sealed_payload,
            i.received_at, i.attempts,
            (
                -- Not EXISTS, for which the whole table may be read and hashed.
                SELECT l.update_id FROM event_log l
                WHERE l.bot_id = b.bot_id AND l.event_seq = i.event_seq
                LIMIT 1
            ) IS NOT NULL AS "logged!",
            (
                SELECT l.update_id
                FROM events mine
                JOIN events other USING (session_id, message_index, sender)
                JOIN event_log l ON l.event_seq = other.event_seq AND l.bot_id = b.bot_id
                WHERE mine.event_seq = i.event_seq AND other.event_seq <> i.event_seq
                    AND l.decryption IN ('ok', 'late')
                LIMIT 1
            ) IS NOT NULL AS "replayed!"
        FROM UNNEST($1::BIGINT[]) AS b (bot_id)
        CROSS JOIN LATERAL (
            SELECT * FROM inbox
            WHERE bot_id = b.bot_id AND due_at <= $2
            ORDER BY entry_id
            LIMIT $3
        ) AS i
        ORDER BY i.entry_id"#,
        &ids,
        now,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let mut entries = Vec::with_capacity(rows.len());
    let mut broken = Vec::new();
    for row in rows {
        let (bot, id) = (BotId(row.bot_id), EntryId(row.entry_id));
        match Work::parse(&row.kind, row.event_seq, row.sealed_payload.as_deref(), sealer, bot) {
            Ok(Some(work)) => {
                let entry = Entry {
                    id,
                    work,
                    received_at: row.received_at,
                    attempts: row.attempts,
                    logged: row.logged,
                    replayed: row.replayed,
                };
                entries.push((bot, entry));
            }
            Ok(None) => broken.push((bot, id)),
            Err(error) => {
                tracing::error!(%bot, entry = %id, kind = row.kind, %error, "dropping an inbox entry that does not open");
                broken.push((bot, id));
            }
        }
    }
    Ok((entries, broken))
}

/// Removes entries whose work is done, makes those of other bots due that wait to decrypt one of the
/// `read` events, and says whose these are.
///
/// # Errors
///
/// The database's own.
pub async fn finish(
    conn: &mut PgConnection,
    done: &[EntryId],
    read: &[EventSeq],
    now: DateTime<Utc>,
) -> Result<Vec<BotId>, StoreError> {
    if done.is_empty() && read.is_empty() {
        return Ok(Vec::new());
    }
    let done: Vec<i64> = done.iter().map(|entry| entry.0).collect();
    let read: Vec<i64> = read.iter().map(|event| event.0).collect();
    let mut bots = sqlx::query_scalar!(
        "-- inbox.finish
        WITH done AS (
            DELETE FROM inbox WHERE entry_id = ANY($1)
        )
        UPDATE inbox SET due_at = $3
        WHERE event_seq = ANY($2) AND waiting_for IS NOT NULL AND entry_id <> ALL($1)
        RETURNING bot_id",
        &done,
        &read,
        now,
    )
    .fetch_all(conn)
    .await?;
    bots.sort_unstable();
    bots.dedup();
    Ok(bots.into_iter().map(BotId).collect())
}

/// An encrypted event that waits until `due_at`, or until the key of its session comes.
#[derive(Clone, Debug)]
pub struct ParkedRow {
    /// Its entry.
    pub entry: EntryId,
    /// The Megolm session.
    pub session: String,
    /// Why it cannot be decrypted, in a word.
    pub reason: String,
    /// When it is tried again in any case.
    pub due_at: DateTime<Utc>,
}

/// Parks events.
///
/// # Errors
///
/// The database's own.
pub async fn park(conn: &mut PgConnection, rows: Vec<ParkedRow>) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (entries, sessions, reasons, due): (Vec<_>, Vec<_>, Vec<_>, Vec<_>) =
        rows.into_iter().map(|row| (row.entry.0, row.session, row.reason, row.due_at)).collect();
    sqlx::query!(
        "-- inbox.park
        UPDATE inbox i
        SET waiting_for = p.session, waiting_reason = p.reason, due_at = p.due_at,
            attempts = i.attempts + 1
        FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::TEXT[], $4::TIMESTAMPTZ[])
            AS p (entry_id, session, reason, due_at)
        WHERE i.entry_id = p.entry_id",
        &entries,
        &sessions,
        &reasons,
        &due,
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
    sessions: &[(BotId, String)],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    if sessions.is_empty() {
        return Ok(());
    }
    let (bots, sessions): (Vec<_>, Vec<_>) =
        sessions.iter().map(|(bot, session)| (bot.0, session.clone())).unzip();
    sqlx::query!(
        "-- inbox.unpark_sessions
        UPDATE inbox i SET due_at = $3
        FROM UNNEST($1::BIGINT[], $2::TEXT[]) AS s (bot_id, session)
        WHERE i.bot_id = s.bot_id AND i.waiting_for = s.session",
        &bots,
        &sessions,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Asks for reconciles; one that is asked for already comes at the earlier of the two times.
///
/// # Errors
///
/// The database's own.
pub async fn ask_reconciles(
    conn: &mut PgConnection,
    reconciles: BTreeMap<BotId, DateTime<Utc>>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    if reconciles.is_empty() {
        return Ok(());
    }
    let (bots, due): (Vec<_>, Vec<_>) =
        reconciles.into_iter().map(|(bot, due_at)| (bot.0, due_at)).unzip();
    sqlx::query!(
        "-- inbox.ask_reconciles
        WITH asked AS (
            SELECT * FROM UNNEST($1::BIGINT[], $2::TIMESTAMPTZ[]) AS a (bot_id, due_at)
        ), earlier AS (
            UPDATE inbox i SET due_at = LEAST(i.due_at, a.due_at)
            FROM asked a
            WHERE i.bot_id = a.bot_id AND i.kind = 'reconcile'
            RETURNING i.bot_id
        )
        INSERT INTO inbox (bot_id, kind, received_at, due_at)
        SELECT bot_id, 'reconcile', $3, due_at
        FROM asked
        WHERE bot_id NOT IN (SELECT bot_id FROM earlier)",
        &bots,
        &due,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Asks those of these bots that have strangers to forget, at most `limit`, to do it in their own step:
/// nobody else may write for them. Returns how many.
///
/// # Errors
///
/// The database's own.
pub async fn ask_to_forget_strangers(
    conn: &mut PgConnection,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<u64, StoreError> {
    let bots = sqlx::query_scalar!(
        "-- inbox.ask_to_forget_strangers
        INSERT INTO inbox (bot_id, kind, received_at, due_at)
        SELECT bot_id, 'forget_strangers', $2::TIMESTAMPTZ, $2
        FROM bots b
        WHERE b.state = 'active'
            AND EXISTS (SELECT FROM strangers(b.bot_id))
            AND NOT EXISTS (
                SELECT FROM inbox i WHERE i.bot_id = b.bot_id AND i.kind = 'forget_strangers'
            )
        LIMIT $1
        RETURNING bot_id",
        limit,
        now,
    )
    .fetch_all(&mut *conn)
    .await?;
    let bots: Vec<BotId> = bots.into_iter().map(BotId).collect();
    queue::wake(conn, &bots, now).await?;
    Ok(bots.len() as u64)
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
