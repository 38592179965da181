//! "Soon", without data: Postgres NOTIFY on one side, a counter to wait on at the other.
//!
//! A signal only ever makes somebody look earlier than their slow timer would. It carries nothing and
//! may be lost (a dropped connection, a restart); whoever waits re-reads the rows that matter.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sqlx::{
    PgConnection, PgPool,
    postgres::{PgListener, PgNotification},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{SOON, StoreError, within};
use crate::telemetry::chain;

/// After so long without a signal the connection is asked whether it is still there.
const QUIET: Duration = Duration::from_secs(15);

/// What a signal is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A bot has work: for the workers.
    Work,
    /// A step of a signup, or a send, came to an end: for whoever waits for it.
    Progress,
}

impl Signal {
    const ALL: [Self; 2] = [Self::Work, Self::Progress];

    const fn channel(self) -> &'static str {
        match self {
            Self::Work => "greenshield_work",
            Self::Progress => "greenshield_progress",
        }
    }

    /// Gives the signal when the transaction that `conn` is in commits.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn notify(self, conn: &mut PgConnection) -> Result<(), StoreError> {
        sqlx::query!(
            "-- signals.notify
            SELECT pg_notify($1, '')",
            self.channel()
        )
        .execute(conn)
        .await?;
        Ok(())
    }
}

/// Hears the signals of one database; cheap to clone.
#[derive(Clone)]
pub struct Signals {
    senders: Arc<[watch::Sender<u64>; 2]>,
    alone: Arc<AtomicBool>,
}

impl Default for Signals {
    fn default() -> Self {
        Self {
            senders: Arc::new(std::array::from_fn(|_| watch::Sender::new(0))),
            alone: Arc::default(),
        }
    }
}

impl Signals {
    /// A receiver that changes with every signal of this kind from now on.
    #[must_use]
    pub fn subscribe(&self, signal: Signal) -> watch::Receiver<u64> {
        self.sender(signal).subscribe()
    }

    /// Whether this process works every bot there is: then whoever is to hear is here, and a signal
    /// need not go through the database, which would cost each commit a lock that all commits share.
    pub fn set_alone(&self, alone: bool) {
        self.alone.store(alone, Ordering::Relaxed);
    }

    /// Gives signals to other processes when the transaction that `conn` is in commits. The caller
    /// [gives](Self::give) them here, once it has.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn announce(
        &self,
        signals: &[Signal],
        conn: &mut PgConnection,
    ) -> Result<(), StoreError> {
        if self.alone.load(Ordering::Relaxed) {
            return Ok(());
        }
        for signal in signals {
            signal.notify(conn).await?;
        }
        Ok(())
    }

    /// Gives a signal inside this process, without the database.
    pub fn give(&self, signal: Signal) {
        self.sender(signal).send_modify(|n| *n = n.wrapping_add(1));
    }

    fn sender(&self, signal: Signal) -> &watch::Sender<u64> {
        &self.senders[signal as usize]
    }

    /// Listens until `stop`; reconnects by itself, and after every reconnection gives all signals,
    /// because some may have been missed.
    pub async fn listen(self, pool: PgPool, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                result = self.listen_once(&pool) => {
                    if let Err(error) = result {
                        warn!(error = chain(&error), "lost the database's notifications; connecting again");
                    }
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_millis(500)) => {}
            }
        }
    }

    async fn listen_once(&self, pool: &PgPool) -> Result<(), StoreError> {
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen_all(Signal::ALL.map(Signal::channel)).await?;
        debug!("listening for notifications");
        for signal in Signal::ALL {
            self.give(signal);
        }
        // `try_recv` returns `None` when the connection broke, and reconnects on its own: say so.
        loop {
            match tokio::time::timeout(QUIET, listener.try_recv()).await {
                Ok(Ok(Some(notification))) => self.heard(&notification),
                Ok(Ok(None)) => Signal::ALL.into_iter().for_each(|signal| self.give(signal)),
                Ok(Err(error)) => return Err(error.into()),
                // Nobody says anything, or the way here is broken and nobody could tell.
                Err(_) => within(SOON, is_there(&mut listener)).await?,
            }
        }
    }

    fn heard(&self, notification: &PgNotification) {
        if let Some(signal) =
            Signal::ALL.into_iter().find(|s| s.channel() == notification.channel())
        {
            self.give(signal);
        }
    }
}

async fn is_there(listener: &mut PgListener) -> Result<(), StoreError> {
    sqlx::query!(
        "-- signals.is_there
        SELECT TRUE AS there"
    )
    .fetch_one(listener)
    .await?;
    Ok(())
}
