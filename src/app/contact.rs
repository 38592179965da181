//! In touch with the homeserver: it is asked to ping us at the start, whenever something has come
//! between us and it, and once a minute in case nobody noticed.
//!
//! A homeserver whose transactions failed tries again later and later, on Synapse up to eight minutes
//! apart; a ping that goes through makes it try at once. Two things tell us that it may be waiting so:
//! calls of ours fail, so that it may not have reached us either; or its transactions were refused,
//! because the database was away or another process died. What it dropped meanwhile is asked for, bot
//! by bot.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::{
    appservice::Refusals,
    clock::Clock,
    homeserver::{Homeserver, HomeserverError},
    operator::Readiness,
    store::{Store, StoreError, transactions},
    telemetry::chain,
};

/// Between the first sign of trouble and the first ping: one call that broke off is nothing.
const SETTLE: Duration = Duration::from_secs(1);
/// Between two pings that went well.
const EVERY: Duration = Duration::from_secs(60);
/// Between two pings that failed, at first and at most.
const SOON: Duration = Duration::from_millis(200);
const LATE: Duration = Duration::from_secs(10);

/// What stays in touch.
pub(super) struct Contact {
    pub homeserver: Homeserver,
    /// Our id at the homeserver.
    pub appservice_id: String,
    /// Whether nobody took transactions in before us.
    pub was_away: bool,
    pub readiness: Readiness,
    pub refusals: Refusals,
    pub store: Store,
    pub clock: Clock,
}

impl Contact {
    /// Until `stop`.
    pub(super) async fn keep(self, stop: CancellationToken) {
        let homeserver = async {
            if self.greet().await > 0 || self.was_away {
                // What came before the homeserver had counted us as back, it dropped, too.
                self.outage_ended().await;
            }
            loop {
                self.trouble().await;
            }
        };
        let refusals = async {
            loop {
                self.refused().await;
            }
        };
        let never = Box::pin(async { tokio::join!(homeserver, refusals) });
        stop.run_until_cancelled(never).await;
    }

    /// Waits until a call of ours finds the homeserver away, and then until it is back.
    async fn trouble(&self) {
        if tokio::time::timeout(EVERY, self.homeserver.trouble()).await.is_ok() {
            tokio::time::sleep(SETTLE).await;
        }
        if self.greet().await > 0 {
            self.outage_ended().await;
        }
    }

    /// Waits until a transaction is refused or may have been, then until the database takes one, and then
    /// until the homeserver knows that.
    async fn refused(&self) {
        self.refusals.noticed().await;
        tokio::time::sleep(SETTLE).await;
        self.outage_ended().await;
        self.greet().await;
        // What came before the homeserver had counted us as back, it dropped, too.
        self.outage_ended().await;
    }

    /// Has the homeserver ping us, however long that takes; tells how many attempts failed. What it
    /// says when it cannot is what an operator needs to read.
    async fn greet(&self) -> u32 {
        let mut wait = SOON;
        let mut failures = 0;
        loop {
            match self.ping().await {
                Ok(()) => {
                    if !self.readiness.is_heard() || failures > 0 {
                        info!("the homeserver reaches us");
                    }
                    self.readiness.heard();
                    self.homeserver.forget_trouble();
                    return failures;
                }
                Err(error) => {
                    if error.is_temporary() {
                        self.readiness.lost();
                    }
                    warn!(
                        error = chain(&error),
                        "the homeserver cannot be asked to reach us yet; `greenshield doctor` tells why"
                    );
                }
            }
            failures += 1;
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LATE);
        }
    }

    async fn ping(&self) -> Result<(), HomeserverError> {
        self.homeserver.ping(&self.appservice_id, "greenshield").await
    }

    /// Has every bot ask for what the homeserver dropped; waits for a database that is away.
    async fn outage_ended(&self) {
        while let Err(error) = self.note_outage().await {
            warn!(error = chain(&error), "cannot note the end of an outage yet");
            tokio::time::sleep(SETTLE).await;
        }
        info!("an outage is over: asking for what the homeserver dropped meanwhile");
    }

    async fn note_outage(&self) -> Result<(), StoreError> {
        transactions::outage_ended(&mut *self.store.connection().await?, self.clock.now()).await
    }
}
