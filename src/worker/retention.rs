//! Applying [`store::retention`](crate::store::retention), a batch now and then.

use std::time::{Duration, Instant};

use tracing::debug;

use super::Context;
use crate::store::{Fence, StoreError, retention};

/// How often a batch is looked for.
const EVERY: Duration = Duration::from_secs(60);
/// How often what grows slowly is looked at.
const SLOWLY: Duration = Duration::from_secs(3600);
/// How many rows of each table one batch takes: a table that gains more than this a minute is swept
/// behind the traffic, never in its way.
const BATCH: i64 = 5000;
/// Whoever has this shard sweeps for everybody.
const SHARD: i16 = 0;

/// Remembers when it last swept.
#[derive(Default)]
pub(super) struct Retention {
    last: Option<Instant>,
    last_slow: Option<Instant>,
}

impl Retention {
    /// Sweeps, if it is time and if it is for this process to do.
    pub(super) async fn sweep(
        &mut self,
        context: &Context,
        owned: impl Iterator<Item = &Fence>,
    ) -> Result<(), StoreError> {
        let Some(fence) = owned.copied().find(|fence| fence.shard == SHARD) else { return Ok(()) };
        if self.last.is_some_and(|last| last.elapsed() < EVERY) {
            return Ok(());
        }
        self.last = Some(Instant::now());
        let mut tx = context.store.begin_fenced(fence).await?;
        let now = context.clock.now();
        let mut taken = retention::sweep(&mut tx, BATCH, now).await?;
        if self.last_slow.is_none_or(|last| last.elapsed() >= SLOWLY) {
            self.last_slow = Some(Instant::now());
            taken += retention::sweep_slowly(&mut tx, BATCH, now).await?;
        }
        tx.commit().await?;
        if taken > 0 {
            debug!(taken, "removed rows whose time was over");
        }
        Ok(())
    }
}
