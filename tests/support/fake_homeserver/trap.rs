//! Which call meets which fault, and how a test learns that it has.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::sync::Notify;

use super::{FakeHomeserver, Fault, person::PATIENCE};
use crate::support::poll;

/// A fault that waits for its calls.
pub struct Planned {
    /// Whose calls; empty for everybody's.
    user: String,
    path: String,
    skip: usize,
    left: usize,
    fault: Fault,
    met: Arc<Notify>,
}

impl Planned {
    pub fn new(path: &str, skip: usize, left: usize, fault: Fault) -> Self {
        let (user, path) = (String::new(), path.to_owned());
        Self { user, path, skip, left, fault, met: Arc::default() }
    }

    /// The fault, if this call of greenshield is one that it waits for.
    pub fn hits(&mut self, user: &str, path: &str) -> Option<(Fault, Arc<Notify>)> {
        let is_meant = user.contains(&self.user) && path.contains(&self.path);
        if self.left == 0 || !is_meant {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        if self.left < usize::MAX {
            self.left -= 1;
        }
        Some((self.fault.clone(), Arc::clone(&self.met)))
    }
}

/// One call that meets a fault, for a test that wants to act at that very instant.
pub struct Trap {
    path: String,
    met: Arc<Notify>,
}

impl Trap {
    /// Until the call has come, and met its fault.
    pub async fn sprung(&self) -> Result<()> {
        let sprung = tokio::time::timeout(PATIENCE, self.met.notified()).await;
        sprung.with_context(|| format!("{} was not called", self.path))
    }
}

impl FakeHomeserver {
    /// Until all faults have been met that were to be met a certain number of times.
    pub async fn all_met(&self) -> Result<()> {
        let unmet = || {
            let state = self.lock();
            let finite =
                state.faults.iter().filter(|planned| (1..usize::MAX).contains(&planned.left));
            finite.map(|planned| planned.path.clone()).collect::<Vec<_>>()
        };
        poll::until("all faults to be met", PATIENCE, async || Ok(unmet().is_empty().then_some(())))
            .await
            .with_context(|| format!("{:?}", unmet()))
    }

    /// [`FakeHomeserver::fault`] until it heals, in calls as this user only.
    pub fn fault_of(&self, user: &str, path: &str, fault: Fault) {
        let planned = Planned::new(path, 0, usize::MAX, fault);
        self.lock().faults.push(Planned { user: user.to_owned(), ..planned });
    }

    /// After `skip` others, one call of greenshield whose path contains `path` meets `fault`.
    pub fn trap(&self, path: &str, skip: usize, fault: Fault) -> Trap {
        let planned = Planned::new(path, skip, 1, fault);
        let trap = Trap { path: path.to_owned(), met: Arc::clone(&planned.met) };
        self.lock().faults.push(planned);
        trap
    }
}
