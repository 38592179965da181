//! How the homeserver reaches greenshield: one process or several in turn, at once or only when it is
//! asked to.

use std::{sync::Arc, time::Duration};

use tokio::sync::Notify;

use super::{FakeHomeserver, Inner, push::Appservice};

/// How long a transaction waits after one that failed.
const PAUSE: Duration = Duration::from_millis(100);
/// How long a balancer waits for one of several before it tries another.
const IMPATIENCE: Duration = Duration::from_secs(2);

/// Where transactions go, and when.
#[derive(Default)]
pub struct Reach {
    /// Processes beside the one in the registration.
    others: Vec<String>,
    turn: usize,
    /// After a failure nothing is sent before a ping: a homeserver that counts us as down.
    patient: bool,
    pinged: Arc<Notify>,
    /// Nothing gets through.
    cut_off: bool,
    /// The paths of calls that have met a slow answer.
    pub waiting: Vec<String>,
}

impl Reach {
    /// Whom the next request goes to: each in turn, as from a balancer.
    pub fn next(&mut self, to: &Appservice) -> Appservice {
        self.turn += 1;
        let mut to = to.clone();
        if self.cut_off {
            "http://127.0.0.1:9".clone_into(&mut to.url);
        } else if let Some(other) = self.others.get(self.turn % (self.others.len() + 1)) {
            to.url.clone_from(other);
        }
        to
    }

    pub fn timeout(&self) -> Duration {
        if self.others.is_empty() { Duration::from_secs(60) } else { IMPATIENCE }
    }

    pub fn pinged(&self) {
        self.pinged.notify_waiters();
    }
}

/// Until a transaction that failed is tried again.
pub(super) async fn pause(inner: &Inner) {
    let pinged = Arc::clone(&inner.lock().reach.pinged);
    let pinged = pinged.notified();
    if inner.lock().reach.patient {
        pinged.await;
    } else {
        tokio::time::sleep(PAUSE).await;
    }
}

impl FakeHomeserver {
    /// There is one more process, which gets its share of the transactions.
    pub fn also_reach(&self, url: &str) {
        self.lock().reach.others.push(url.to_owned());
    }

    /// From now on a transaction that failed is not tried again before greenshield asks to be pinged.
    pub fn wait_for_pings(&self) {
        self.lock().reach.patient = true;
    }

    /// Whether greenshield is out of reach.
    pub fn cut_off(&self, cut_off: bool) {
        self.lock().reach.cut_off = cut_off;
    }

    /// How many calls with this in their path have met a slow answer so far.
    pub fn slowed(&self, path: &str) -> usize {
        let state = self.lock();
        state.reach.waiting.iter().filter(|waiting| waiting.contains(path)).count()
    }
}
