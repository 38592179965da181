//! `bot_queue`: which bots have work, and when.
//!
//! Whoever gives a bot work wakes it in the same transaction. A worker takes due bots of its shards,
//! and after the step says when the next one is due; a wake that came during the step is kept, because
//! it raised the generation.

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
/// been failing keeps a second of distance per failure, up to a minute, however much comes for it.
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
    Signal::Work.notify(conn).await
}

/// Due bots of `shards`, the longest waiting first, without those in `busy`.
///
/// # Errors
///
/// The database's own.
pub async fn due(
    conn: &mut PgConnection,
    shards: &[i16],
    busy: &[BotId],
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Vec<DueBot>, StoreError> {
    let busy: Vec<i64> = busy.iter().map(|b| b.0).collect();
    let rows = sqlx::query!(
        "-- queue.due
        SELECT bot_id, shard, generation, failures
        FROM bot_queue
        WHERE shard = ANY($1) AND due_at <= $2 AND bot_id <> ALL($3)
        ORDER BY due_at
        LIMIT $4",
        shards,
        now,
        &busy,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|r| DueBot {
            bot: BotId(r.bot_id),
            shard: r.shard,
            generation: r.generation,
            failures: r.failures,
        })
        .collect())
}

/// When the next bot of `shards` becomes due, if any has work at all.
///
/// # Errors
///
/// The database's own.
pub async fn next_due(
    conn: &mut PgConnection,
    shards: &[i16],
    busy: &[BotId],
) -> Result<Option<DateTime<Utc>>, StoreError> {
    let busy: Vec<i64> = busy.iter().map(|b| b.0).collect();
    Ok(sqlx::query_scalar!(
        "-- queue.next_due
        SELECT MIN(due_at) FROM bot_queue WHERE shard = ANY($1) AND bot_id <> ALL($2)",
        shards,
        &busy,
    )
    .fetch_one(conn)
    .await?)
}

/// Ends a step: the bot is next due at `next`, or idle if that is `None`; if it was woken meanwhile,
/// it stays due.
///
/// # Errors
///
/// The database's own.
pub async fn finish(
    conn: &mut PgConnection,
    bot: DueBot,
    next: Option<DateTime<Utc>>,
    failures: i32,
) -> Result<(), StoreError> {
    let Some(next) = next else {
        sqlx::query!(
            "-- queue.finish_idle
            DELETE FROM bot_queue WHERE bot_id = $1 AND generation = $2",
            bot.bot.0,
            bot.generation,
        )
        .execute(&mut *conn)
        .await?;
        return Ok(());
    };
    sqlx::query!(
        "-- queue.finish
        UPDATE bot_queue
        SET due_at = CASE WHEN generation = $2 THEN $3 ELSE due_at END, failures = $4
        WHERE bot_id = $1",
        bot.bot.0,
        bot.generation,
        next,
        failures,
    )
    .execute(conn)
    .await?;
    Ok(())
}
