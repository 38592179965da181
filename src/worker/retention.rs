//! Applying [`store::retention`](crate::store::retention), a batch now and then, beside the other work:
//! some looks are long, and neither leases nor steps wait for them.

use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;
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
    running: Option<AbortOnDropHandle<()>>,
}

impl Default for Retention {
    fn default() -> Self {
        let now = Instant::now();
        Self { next: now, next_slow: now + FIRST_SLOWLY, running: None }
    }
}

impl Retention {
    /// Begins a sweep, if it is time and none is under way.
    pub(super) fn sweep(&mut self, context: &Context) {
        let now = Instant::now();
        if now < self.next || self.running.as_ref().is_some_and(|sweep| !sweep.is_finished()) {
            return;
        }
        self.next = now + EVERY;
        let slowly = now >= self.next_slow;
        if slowly {
            self.next_slow = now + SLOWLY;
        }
        self.running = Some(AbortOnDropHandle::new(begin(context.clone(), slowly)));
    }
}

fn begin(context: Context, slowly: bool) -> JoinHandle<()> {
    tokio::spawn(async move {
        match sweep(&context, slowly).await {
            Ok(0) => {}
            Ok(taken) => debug!(taken, "removed rows whose time was over"),
            Err(error) => warn!(error = chain(&error), "a sweep of what is old failed"),
        }
    })
}

async fn sweep(context: &Context, slowly: bool) -> Result<u64, StoreError> {
    let mut conn = context.store.connection().await?;
    let now = context.clock.now();
    let mut taken = retention::sweep(&mut conn, BATCH, now).await?;
    if slowly {
        taken += retention::sweep_slowly(&mut conn, BATCH, now).await?;
    }
    Ok(taken)
}
