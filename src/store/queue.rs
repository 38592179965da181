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

/// Makes work due that was put off because it failed: an outage is over. One bot after the other, so that
/// not all of them ask the homeserver at once. What fails again is put off shortly, as if for the first
/// time, and no message is given up soon. The caller signals [`Signal::Work`].
///
/// # Errors
///
/// The database's own.
pub async fn resume(conn: &mut PgConnection, now: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query!(
        "-- queue.resume
        WITH put_off AS (
            SELECT bot_id,
                $1::TIMESTAMPTZ
                    + (ROW_NUMBER() OVER (ORDER BY bot_id) - 1) * INTERVAL '10 milliseconds' AS due_at
            FROM (
                SELECT bot_id FROM inbox
                WHERE kind IN ('invite', 'reconcile') AND attempts > 0 AND due_at > $1
                UNION
                SELECT bot_id FROM outbox
                WHERE state = 'queued' AND attempts > 0 AND due_at > $1
                UNION
                SELECT bot_id FROM bot_queue WHERE failures > 0 AND due_at > $1
            ) AS failed
        ), entries AS (
            UPDATE inbox i SET due_at = LEAST(i.due_at, p.due_at), attempts = 0
            FROM put_off p
            WHERE i.bot_id = p.bot_id AND i.kind IN ('invite', 'reconcile') AND i.attempts > 0
            RETURNING i.bot_id
        ), sends AS (
            -- Counted, so that tables are locked in the same order as everywhere.
            UPDATE outbox o SET due_at = LEAST(o.due_at, p.due_at), attempts = 0
            FROM put_off p, (SELECT COUNT(*) FROM entries) AS first
            WHERE o.bot_id = p.bot_id AND o.state = 'queued' AND o.attempts > 0
            RETURNING o.bot_id
        ), queued AS (
            SELECT bot_id, p.due_at
            FROM bot_queue JOIN put_off p USING (bot_id), (SELECT COUNT(*) FROM sends) AS first
            ORDER BY bot_id
            FOR UPDATE OF bot_queue
        )
        UPDATE bot_queue q
        SET due_at = LEAST(q.due_at, r.due_at),
            failures = LEAST(q.failures, 1),
            generation = q.generation + 1
        FROM queued r
        WHERE q.bot_id = r.bot_id",
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
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
    /// When the next one is due at the latest; if it failed, at this time and not before, unless only a
    /// part did.
    pub next: Option<DateTime<Utc>>,
    /// Failed steps in a row.
    pub failures: i32,
    /// Whether what is left in the inbox and the outbox waits for its own time only.
    pub rest_done: bool,
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
/// a room; it is idle if there is none of these. If it was woken meanwhile, it stays due; after a failure
/// at the distance that [`wake`] keeps.
///
/// # Errors
///
/// The database's own.
pub async fn finish(
    conn: &mut PgConnection,
    finished: Vec<FinishedRow>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    if finished.is_empty() {
        return Ok(());
    }
    let (bots, generations, next, failures, rest_done): (Vec<_>, Vec<_>, Vec<_>, Vec<_>, Vec<_>) =
        finished
            .into_iter()
            .map(|row| (row.due.bot.0, row.due.generation, row.next, row.failures, row.rest_done))
            .collect();
    sqlx::query!(
        "-- queue.finish
        WITH finished AS (
            SELECT f.bot_id, f.generation, f.failures, f.not_before,
                CASE WHEN f.rest_done THEN GREATEST(f.not_before, LEAST(
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
                )) ELSE f.next_at END AS next_at
            FROM (
                SELECT *,
                    CASE WHEN failures > 0 THEN
                        $6::TIMESTAMPTZ + LEAST(failures, 60) * INTERVAL '1 second'
                    END AS not_before
                FROM UNNEST(
                    $1::BIGINT[], $2::BIGINT[], $3::TIMESTAMPTZ[], $4::INTEGER[], $5::BOOLEAN[]
                ) AS f (bot_id, generation, next_at, failures, rest_done)
            ) AS f
        ), idle AS (
            DELETE FROM bot_queue q
            USING finished f
            WHERE q.bot_id = f.bot_id AND q.generation = f.generation AND f.next_at IS NULL
        )
        UPDATE bot_queue q
        SET due_at = CASE
                WHEN q.generation = f.generation THEN f.next_at
                ELSE LEAST(f.next_at, GREATEST(q.due_at, f.not_before))
            END,
            failures = f.failures
        FROM finished f
        WHERE q.bot_id = f.bot_id AND (f.next_at IS NOT NULL OR q.generation <> f.generation)",
        &bots,
        &generations,
        &next as &[Option<DateTime<Utc>>],
        &failures,
        &rest_done,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use chrono::Duration;

    use super::*;
    use crate::store::{
        inbox::{self, NewEntry, Work},
        outbox::{self, Outcome, OutcomeRow, Send, SendRow},
        testing::{TestDatabase, database},
        transactions,
    };

    fn now() -> DateTime<Utc> {
        DateTime::from_timestamp(1_000_000, 0).expect("a time")
    }

    fn seconds(seconds: i64) -> Duration {
        Duration::seconds(seconds)
    }

    /// When the bot is due, in milliseconds from [`now`], and its failures; nothing if it is idle.
    async fn queued(database: &TestDatabase, bot: BotId) -> String {
        let sql = format!(
            "SELECT COALESCE((
                SELECT CONCAT((EXTRACT(EPOCH FROM due_at) * 1000)::BIGINT - 1000000000, ' ', failures)
                FROM bot_queue WHERE bot_id = {bot}), 'idle')"
        );
        database.text(&sql).await
    }

    #[tokio::test]
    async fn a_step_that_failed_keeps_its_distance_though_the_bot_was_woken_meanwhile() {
        let database = database().await;
        let bot = database.bot("@a:x", "A").await;
        let mut conn = database.store.connection().await.expect("connects");
        let conn = &mut conn;
        for (failures, next, woken, expected) in [
            (3, Some(60), false, "60000 3"),
            (3, Some(60), true, "3000 3"),
            (90, Some(600), true, "60000 90"),
            // Sooner by itself than for what came.
            (3, Some(2), true, "2000 3"),
            (0, None, true, "-1000 0"),
            (0, Some(15), true, "-1000 0"),
            (0, None, false, "idle"),
        ] {
            database.execute("DELETE FROM bot_queue").await;
            wake(conn, &[bot], now() - seconds(1)).await.expect("wakes");
            let generation = database.text("SELECT generation::TEXT FROM bot_queue").await;
            let generation = generation.parse().expect("a number");
            let due = DueBot { bot, shard: 0, generation, failures: 0 };
            if woken {
                wake(conn, &[bot], now()).await.expect("wakes");
            }
            let next = next.map(|after| now() + seconds(after));
            let row = FinishedRow { due, next, failures, rest_done: failures == 0 };
            finish(conn, vec![row], now()).await.expect("ends");
            let left = queued(&database, bot).await;
            assert_eq!(left, expected, "{failures} failures, next {next:?}, woken: {woken}");
        }
    }

    #[tokio::test]
    async fn a_part_that_failed_delays_what_else_is_to_be_done_by_a_second_at_most() {
        let database = database().await;
        let bot = database.bot("@a:x", "A").await;
        let mut conn = database.store.connection().await.expect("connects");
        let conn = &mut conn;
        let sealer = database.store.sealer();
        for (rest_done, left, expected) in [
            (true, Some(5), "5000 1"),
            (true, Some(-5), "1000 1"),
            (true, None, "600000 1"),
            (false, Some(5), "600000 1"),
        ] {
            database.execute("DELETE FROM bot_queue; DELETE FROM inbox").await;
            wake(conn, &[bot], now()).await.expect("wakes");
            if let Some(left) = left {
                let due_at = now() + seconds(left);
                let entry = NewEntry { bot, work: Work::Reconcile, due_at };
                inbox::add(conn, sealer, &[entry], now()).await.expect("adds");
            }
            let generation = database.text("SELECT generation::TEXT FROM bot_queue").await;
            let generation = generation.parse().expect("a number");
            let due = DueBot { bot, shard: 0, generation, failures: 0 };
            let next = Some(now() + seconds(600));
            let row = FinishedRow { due, next, failures: 1, rest_done };
            finish(conn, vec![row], now()).await.expect("ends");
            assert_eq!(queued(&database, bot).await, expected, "{rest_done}, {left:?}");
        }
    }

    #[tokio::test]
    async fn after_an_outage_what_failed_is_due_one_bot_after_the_other() {
        let database = database().await;
        let bots = [
            database.bot("@sends:x", "A").await,
            database.bot("@joins:x", "B").await,
            database.bot("@fails:x", "C").await,
            database.bot("@waits:x", "D").await,
        ];
        let [sends, joins, fails, waits] = bots;
        let mut conn = database.store.connection().await.expect("connects");
        let conn = &mut conn;
        let sealer = database.store.sealer();
        let later = now() + seconds(300);
        for txn_id in ["first", "second"] {
            let send = Send {
                room_id: "!r:x".to_owned(),
                txn_id: txn_id.to_owned(),
                event_type: "m.room.message".to_owned(),
                content: serde_json::Value::Null,
                attempts: 0,
                created_at: now(),
            };
            let row = SendRow::new(sealer, sends, &send).expect("seals");
            outbox::insert_all(conn, vec![row]).await.expect("takes it in");
        }
        let outcome = Outcome::PutOff(later, "away".to_owned());
        let row = OutcomeRow { bot: sends, txn_id: "first".to_owned(), outcome, at: now() };
        outbox::record(conn, vec![row]).await.expect("puts it off");
        for bot in [joins, waits] {
            let entry = NewEntry { bot, work: Work::Reconcile, due_at: later };
            inbox::add(conn, sealer, &[entry], now()).await.expect("adds");
        }
        database.execute(&format!("UPDATE inbox SET attempts = 9 WHERE bot_id = {joins}")).await;
        wake(conn, &[sends, fails], later).await.expect("wakes");
        database
            .execute(&format!("UPDATE bot_queue SET failures = 9 WHERE bot_id = {fails}"))
            .await;
        let (due, _) = outbox::due(conn, sealer, &[sends], now(), 9).await.expect("looks");
        assert!(due.is_empty(), "the first holds the second back: {due:?}");

        transactions::outage_ended(conn, now()).await.expect("resumes");
        let mut left = Vec::new();
        for bot in bots {
            left.push(queued(&database, bot).await);
        }
        assert_eq!(left, ["0 0", "10 0", "20 1", "300000 0"]);
        let (due, _) = outbox::due(conn, sealer, &[sends], now(), 9).await.expect("looks");
        let due: Vec<_> = due.iter().map(|(_, send)| (&*send.txn_id, send.attempts)).collect();
        assert_eq!(due, [("first", 0), ("second", 0)]);
        let soon = now() + seconds(1);
        let (due, _) = inbox::due(conn, sealer, &bots, soon, 9).await.expect("looks");
        let due: Vec<_> = due.iter().map(|(bot, entry)| (*bot, entry.attempts)).collect();
        assert_eq!(due, [(joins, 0)], "what waits for its time goes on waiting");
    }
}
