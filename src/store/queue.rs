//! `bot_queue`: which bots have work, and when.
//!
//! Whoever gives a bot work wakes it in the same transaction. A worker takes due bots of its shards
//! ([`briefing`](super::briefing)), and after the step says when the next one is due; a wake that came
//! during the step is kept, because it raised the generation.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{Signal, StoreError};
use crate::model::BotId;

/// A bot whose step is due.
#[derive(Clone, Copy, Debug)]
pub struct DueBot {
    /// The bot.
    pub bot: BotId,
    /// Its shard.
    pub shard: i16,
    /// To be given back to [`finish`].
    pub generation: i64,
    /// Failed steps in a row.
    pub failures: i32,
}

/// Makes a step of each bot due at `due_at`, or earlier if one is due already. A bot whose steps have
/// been failing keeps a second of distance per failure, up to a minute, however much comes for it
/// ([`inbox::add`](super::inbox::add) does the same in its own statement: change both). The caller
/// signals [`Signal::Work`].
///
/// # Errors
///
/// The database's own.
pub async fn wake(
    conn: &mut PgConnection,
    bots: &[BotId],
    due_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    if bots.is_empty() {
        return Ok(());
    }
    let ids: Vec<i64> = bots.iter().map(|b| b.0).collect();
    sqlx::query!(
        "-- queue.wake
        INSERT INTO bot_queue (bot_id, shard, due_at)
        SELECT bot_id, shard, $2
        FROM bots
        WHERE bot_id = ANY($1)
        ORDER BY bot_id
        ON CONFLICT (bot_id) DO UPDATE
        SET due_at = LEAST(
                bot_queue.due_at,
                EXCLUDED.due_at + LEAST(bot_queue.failures, 60) * INTERVAL '1 second'
            ),
            generation = bot_queue.generation + 1",
        &ids,
        due_at,
    )
    .execute(&mut *conn)
    .await?;
    Ok(())
}

/// [`wake`], and tells every process when the transaction that `conn` is in commits.
///
/// # Errors
///
/// The database's own.
pub async fn wake_everywhere(
    conn: &mut PgConnection,
    bots: &[BotId],
    due_at: DateTime<Utc>,
) -> Result<(), StoreError> {
    wake(conn, bots, due_at).await?;
    Signal::Work.notify(conn).await
}

/// When the next bot of `shards` becomes due, if any has work at all.
///
/// # Errors
///
/// The database's own.
pub async fn next_due(
    conn: &mut PgConnection,
    shards: &[i16],
) -> Result<Option<DateTime<Utc>>, StoreError> {
    Ok(sqlx::query_scalar!(
        "-- queue.next_due
        SELECT q.due_at FROM bot_queue q JOIN bots USING (bot_id)
        WHERE q.shard = ANY($1)
        ORDER BY q.due_at
        LIMIT 1",
        shards,
    )
    .fetch_optional(conn)
    .await?)
}

/// A step that ended.
#[derive(Clone, Debug)]
pub struct FinishedRow {
    /// Whose step.
    pub due: DueBot,
    /// When the next one is due at the latest; if it failed, at this time and not before.
    pub next: Option<DateTime<Utc>>,
    /// Failed steps in a row.
    pub failures: i32,
}

/// Locks the rows of these bots, in the order that [`wake`] takes them in.
///
/// # Errors
///
/// The database's own.
pub async fn lock(
    conn: &mut PgConnection,
    woken: &[BotId],
    finished: &[FinishedRow],
) -> Result<(), StoreError> {
    let bots: Vec<i64> = woken
        .iter()
        .map(|bot| bot.0)
        .chain(finished.iter().map(|finished| finished.due.bot.0))
        .collect();
    if bots.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "-- queue.lock
        SELECT bot_id FROM bot_queue WHERE bot_id = ANY($1) ORDER BY bot_id FOR UPDATE",
        &bots,
    )
    .fetch_all(conn)
    .await?;
    Ok(())
}

/// Ends steps. A bot is next due when it is said, when its first inbox entry is, or the first message of
/// a room; it is idle if there is none of these. If it was woken meanwhile, it stays due.
///
/// # Errors
///
/// The database's own.
pub async fn finish(conn: &mut PgConnection, finished: Vec<FinishedRow>) -> Result<(), StoreError> {
    if finished.is_empty() {
        return Ok(());
    }
    let (bots, generations, next, failures): (Vec<_>, Vec<_>, Vec<_>, Vec<_>) = finished
        .into_iter()
        .map(|row| (row.due.bot.0, row.due.generation, row.next, row.failures))
        .collect();
    sqlx::query!(
        "-- queue.finish
        WITH finished AS (
            SELECT f.bot_id, f.generation, f.failures,
                CASE WHEN f.failures > 0 THEN f.next_at ELSE LEAST(
                    f.next_at,
                    (SELECT MIN(i.due_at) FROM inbox i WHERE i.bot_id = f.bot_id),
                    (
                        SELECT MIN(first_of_room.due_at)
                        FROM (
                            SELECT DISTINCT ON (o.room_id) o.due_at
                            FROM outbox o
                            WHERE o.bot_id = f.bot_id AND o.state = 'queued'
                            ORDER BY o.room_id, o.send_id
                        ) AS first_of_room
                    )
                ) END AS next_at
            FROM UNNEST($1::BIGINT[], $2::BIGINT[], $3::TIMESTAMPTZ[], $4::INTEGER[])
                AS f (bot_id, generation, next_at, failures)
        ), idle AS (
            DELETE FROM bot_queue q
            USING finished f
            WHERE q.bot_id = f.bot_id AND q.generation = f.generation AND f.next_at IS NULL
        )
        UPDATE bot_queue q
        SET due_at = CASE WHEN q.generation = f.generation THEN f.next_at ELSE q.due_at END,
            failures = f.failures
        FROM finished f
        WHERE q.bot_id = f.bot_id AND (f.next_at IS NOT NULL OR q.generation <> f.generation)",
        &bots,
        &generations,
        &next as &[Option<DateTime<Utc>>],
        &failures,
    )
    .execute(conn)
    .await?;
    Ok(())
}
