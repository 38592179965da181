//! Applying [`store::retention`](crate::store::retention), now and then, beside the other work: some
//! looks are long, and neither leases nor steps wait for them. What has grown faster than one batch takes
//! is taken batch after batch, with rests between them.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::Context;
use crate::{
    clock::Clock,
    store::{Store, StoreError, retention, retention::Rules},
    telemetry::chain,
};

/// How often a batch is looked for.
const EVERY: Duration = Duration::from_secs(60);
/// How often what grows slowly is looked at.
const SLOWLY: Duration = Duration::from_secs(3600);
/// When that is first done: a process that has just begun has other work.
const FIRST_SLOWLY: Duration = Duration::from_secs(300);
/// How many rows of each table one batch takes: a statement of this size is soon over, and keeps no
/// commit of the fleet waiting for long.
const BATCH: i64 = 5000;
/// The least rest after a full batch. It is as long as the batch took if that was longer: a sweep never
/// has the database to itself for more than half of the time.
const BREATH: Duration = Duration::from_millis(50);
/// Whoever has this shard sweeps for everybody.
pub(super) const SHARD: i16 = 0;

/// When the next sweeps are due, and the one that is under way.
pub(super) struct Retention {
    next: Instant,
    next_slow: Instant,
    running: JoinSet<()>,
}

impl Default for Retention {
    fn default() -> Self {
        let now = Instant::now();
        Self { next: now, next_slow: now + FIRST_SLOWLY, running: JoinSet::new() }
    }
}

impl Retention {
    /// Begins a sweep, if it is time and none is under way.
    pub(super) fn sweep(&mut self, context: &Context) {
        while self.running.try_join_next().is_some() {}
        if self.running.is_empty()
            && let Some(what) = self.due(Instant::now())
        {
            self.running.spawn(run(context.store.clone(), context.clock.clone(), what));
        }
    }

    /// Breaks off what is under way: nothing depends on it.
    pub(super) async fn stop(&mut self) {
        self.running.shutdown().await;
    }

    /// What is to be swept now.
    fn due(&mut self, now: Instant) -> Option<What> {
        if now < self.next {
            return None;
        }
        self.next = now + EVERY;
        if now < self.next_slow {
            return Some(What::GrowsFast);
        }
        self.next_slow = now + SLOWLY;
        Some(What::Everything)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    GrowsFast,
    Everything,
}

impl What {
    fn rules(self) -> &'static [Rules] {
        match self {
            Self::GrowsFast => &[Rules::Messages],
            Self::Everything => &Rules::ALL,
        }
    }
}

async fn run(store: Store, clock: Clock, what: What) {
    match sweep(&store, &clock, what).await {
        Ok(0) => {}
        Ok(taken) => debug!(taken, "removed rows whose time was over"),
        Err(error) => warn!(error = chain(&error), "a sweep of what is old failed"),
    }
}

/// Takes all whose time is over, and tells how many rows that were.
async fn sweep(store: &Store, clock: &Clock, what: What) -> Result<u64, StoreError> {
    let mut taken = 0;
    for rules in what.rules() {
        loop {
            let began = Instant::now();
            let mut conn = store.connection().await?;
            let swept = retention::sweep(&mut conn, *rules, BATCH, clock.now()).await?;
            drop(conn);
            taken += swept.taken;
            if !swept.is_full {
                break;
            }
            tokio::time::sleep(began.elapsed().max(BREATH)).await;
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing;

    #[tokio::test]
    async fn a_sweep_takes_all_that_is_old_however_much_it_is() {
        let database = testing::database().await;
        let bot = database.bot("@bot_a:x", "DEV").await;
        let old = 2 * BATCH + 2000;
        // Of what grows fast and of what is looked at rarely; one in each is young.
        database
            .execute(&format!(
                "INSERT INTO outbox (bot_id, room_id, txn_id, event_type, sealed_content, state,
                    created_at, due_at, finished_at)
                SELECT {bot}, '!r', 'old' || n, 'm', 'x', 'sent', NOW(), NOW(),
                    NOW() - INTERVAL '400 days'
                FROM GENERATE_SERIES(1, {old}) AS n;
                INSERT INTO outbox (bot_id, room_id, txn_id, event_type, sealed_content, state,
                    created_at, due_at, finished_at)
                VALUES ({bot}, '!r', 'young', 'm', 'x', 'sent', NOW(), NOW(), NOW());
                INSERT INTO transactions
                SELECT 'old' || n, '', NOW() - INTERVAL '8 days' FROM GENERATE_SERIES(1, {old}) AS n;
                INSERT INTO transactions VALUES ('young', '', NOW());
                INSERT INTO crypto_withheld_sessions
                    (bot_id, room_id, session_id, sealed_entry, created_at)
                SELECT {bot}, '!r', 'old' || n, '', NOW() - INTERVAL '91 days'
                FROM GENERATE_SERIES(1, {old}) AS n;
                INSERT INTO crypto_withheld_sessions
                    (bot_id, room_id, session_id, sealed_entry, created_at)
                VALUES ({bot}, '!r', 'young', '', NOW())"
            ))
            .await;
        let taken = sweep(&database.store, &Clock::system(), What::Everything).await;
        // Each old message twice: its content, and then its row.
        assert_eq!(taken.expect("sweeps"), 4 * old.unsigned_abs());
        let left = "SELECT CONCAT_WS(' ', (SELECT STRING_AGG(txn_id, ',') FROM outbox),
            (SELECT STRING_AGG(txn_id, ',') FROM transactions),
            (SELECT STRING_AGG(session_id, ',') FROM crypto_withheld_sessions))";
        assert_eq!(database.text(left).await, "young young young");
    }

    #[tokio::test]
    async fn a_sweep_that_is_broken_off_leaves_nothing_running() {
        let mut retention = Retention::default();
        retention.running.spawn(std::future::pending());
        retention.stop().await;
        assert!(retention.running.is_empty());
    }

    #[test]
    fn what_grows_fast_is_swept_every_minute_and_everything_every_hour() {
        let mut retention = Retention::default();
        let begun = retention.next;
        let mut everything = Vec::new();
        for second in 0..=2 * 3600 {
            let what = retention.due(begun + Duration::from_secs(second));
            assert_eq!(what.is_some(), second % 60 == 0);
            if what == Some(What::Everything) {
                everything.push(second);
            }
        }
        assert_eq!(everything, [300, 3900]);
    }
}
