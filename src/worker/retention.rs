//! Applying [`store::retention`](crate::store::retention), a batch now and then, beside the other work:
//! some looks are long, and neither leases nor steps wait for them.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::Context;
use crate::{
    store::{StoreError, retention},
    telemetry::chain,
};

/// How often a batch is looked for.
const EVERY: Duration = Duration::from_secs(60);
/// How often what grows slowly is looked at.
const SLOWLY: Duration = Duration::from_secs(3600);
/// When that is first done: a process that has just begun has other work.
const FIRST_SLOWLY: Duration = Duration::from_secs(300);
/// How many rows of each table one batch takes: a table that gains more than this a minute is swept
/// behind the traffic, never in its way.
const BATCH: i64 = 5000;
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
            self.running.spawn(run(context.clone(), what));
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

async fn run(context: Context, what: What) {
    match sweep(&context, what).await {
        Ok(0) => {}
        Ok(taken) => debug!(taken, "removed rows whose time was over"),
        Err(error) => warn!(error = chain(&error), "a sweep of what is old failed"),
    }
}

async fn sweep(context: &Context, what: What) -> Result<u64, StoreError> {
    let mut conn = context.store.connection().await?;
    let now = context.clock.now();
    let mut taken = retention::sweep(&mut conn, BATCH, now).await?;
    if what == What::Everything {
        taken += retention::sweep_slowly(&mut conn, BATCH, now).await?;
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

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
