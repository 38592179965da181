//! All SQL, and nothing but SQL.
//!
//! Postgres is the only seam between the parts of greenshield: edges write rows, workers turn rows
//! into homeserver calls and more rows, edges read rows. The functions here are free functions over a
//! connection, grouped by table, so that a caller composes several of them in one transaction; `now`
//! and random values are passed in.
//!
//! - [`Store`] is the pool and the [`Sealer`]; whatever is secret goes through the latter.
//! - [`fence`] keeps a worker that lost its lease from writing.
//! - [`crypto_store`] is matrix-sdk-crypto's `CryptoStore` on the same database.

pub mod alarms;
pub mod bots;
pub mod briefing;
pub mod codes;
pub mod committer;
pub mod crypto_store;
pub mod device_lists;
pub mod events;
pub mod fence;
pub mod fleet;
pub mod health;
pub mod inbox;
pub mod leases;
pub mod open;
pub mod outbox;
pub mod place;
pub mod provisioning;
pub mod queue;
pub mod repairs;
pub mod retention;
pub mod rooms;
pub mod rows;
pub mod sealer;
pub mod signals;
pub mod signups;
#[cfg(test)]
pub(crate) mod testing;
pub mod to_device;
pub mod tokens;
pub mod transactions;
pub mod verifications;
mod warm;

use std::sync::Arc;

use sqlx::{
    Connection as _, PgPool, Postgres, Transaction,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions},
};

/// One connection, in or outside a transaction: what the functions of this module take.
pub use sqlx::PgConnection as Connection;

use self::warm::Warm;
pub use self::{
    committer::Committer,
    crypto_store::PgCryptoStore,
    fence::Fence,
    rows::Rows,
    sealer::{SealError, Sealer, WrappingKey},
    signals::{Signal, Signals},
};

/// A transaction.
pub type Tx = Transaction<'static, Postgres>;
/// A connection of the pool.
pub type PooledConnection = PoolConnection<Postgres>;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database refused or could not be reached.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// Migrations could not be applied, or the database is newer than this program.
    #[error("the database's schema does not fit")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A sealed value did not open.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// A column holds what this version does not know.
    #[error("a row holds something that this version does not know")]
    Unknown(#[from] crate::model::UnknownWord),
    /// A value could not be written or read as JSON.
    #[error("a row's JSON does not fit")]
    Json(#[from] serde_json::Error),
    /// A stored Matrix id is not one.
    #[error("a row holds a malformed Matrix id")]
    Id(#[from] ruma::IdParseError),
    /// An Olm account with other keys was to overwrite the one that is stored.
    #[error("the store holds another account of this bot, which is never overwritten")]
    OtherAccount,
    /// The tables are a restored copy, and nobody has said what was lost.
    #[error(
        "these tables were restored from a backup, or moved here: before anything is served, run \
         `greenshield restored`, which says what it does"
    )]
    Restored,
    /// Another process has taken this shard's lease over.
    #[error("the lease on this shard was lost to another process")]
    LeaseLost,
    /// A commit of many failed, for all of them.
    #[error(transparent)]
    Commit(std::sync::Arc<Self>),
    /// The process is stopping.
    #[error("greenshield is stopping")]
    Stopped,
}

impl StoreError {
    /// Whether it is about what was to be written, and not about the database or the way to it.
    fn is_of_the_rows(&self) -> bool {
        match self {
            Self::Database(error) => error.as_database_error().is_some(),
            _ => true,
        }
    }
}

/// The database and the key to what is sealed in it; cheap to clone.
#[derive(Clone)]
pub struct Store {
    pool: PgPool,
    warm: Arc<Warm>,
    sealer: Sealer,
}

/// The migrations, compiled in.
pub static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!();

impl Store {
    /// A store over a pool whose schema is up to date.
    #[must_use]
    pub fn new(pool: PgPool, sealer: Sealer) -> Self {
        Self { warm: Arc::new(Warm::of(&pool)), pool, sealer }
    }

    /// The pool.
    #[must_use]
    pub const fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// A connection of the pool.
    ///
    /// # Errors
    ///
    /// If the database cannot be reached, or all connections stay busy for too long.
    pub async fn connection(&self) -> Result<PooledConnection, StoreError> {
        Ok(self.pool.acquire().await?)
    }

    /// A transaction.
    ///
    /// # Errors
    ///
    /// As [`Store::connection`].
    pub async fn begin(&self) -> Result<Tx, StoreError> {
        Ok(self.pool.begin().await?)
    }

    /// The sealer.
    #[must_use]
    pub const fn sealer(&self) -> &Sealer {
        &self.sealer
    }
}

/// A database that says nothing for so long is not there any more, or the way to it is not: no work in one
/// piece takes longer. Without a limit nobody would ever tell: the kernel asks after hours, if at all.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// How long a connection that comes back may take to say that it is whole.
const SOON: std::time::Duration = std::time::Duration::from_secs(5);

/// `work`, or an error if the database does not answer for `patience`. What it was done on is not to be used
/// again.
async fn within<T>(
    patience: std::time::Duration,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    tokio::time::timeout(patience, work).await.unwrap_or_else(|_| Err(timed_out().into()))
}

fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

/// For how long a connection is taken to be whole after its last use.
const TRUSTED_FOR: std::time::Duration = std::time::Duration::from_secs(1);

/// Opens a pool of at most `max_connections`; connects on first use.
#[must_use]
pub fn pool(options: PgConnectOptions, max_connections: u32) -> PgPool {
    // Every statement of this crate stays prepared on every connection.
    let options = options.statement_cache_capacity(256).options([
        // A process that freezes in a transaction keeps its shard's row locked, and the next copy of what
        // it was taking in waiting: for no longer than the shortest lease there is.
        ("idle_in_transaction_session_timeout", "5s"),
        // Every statement here has its index and is planned once: to plan it takes longer than to
        // run it, and a plan that was made while a table was empty must do when it is full.
        ("plan_cache_mode", "force_generic_plan"),
        ("enable_seqscan", "off"),
        ("jit", "off"),
    ]);
    PgPoolOptions::new()
        .max_connections(max_connections)
        .acquire_timeout(std::time::Duration::from_secs(10))
        // One that was used a moment ago need not be asked whether it is still there.
        .test_before_acquire(false)
        .before_acquire(|conn, meta| {
            Box::pin(async move {
                if meta.idle_for > TRUSTED_FOR {
                    conn.ping().await?;
                }
                Ok(true)
            })
        })
        // Nobody waits for it, but its place in the pool is taken until it has answered. sqlx asks once
        // more right after this, and would wait for ever.
        .after_release(|conn, _| {
            Box::pin(async move {
                tokio::time::timeout(SOON, conn.ping())
                    .await
                    .unwrap_or_else(|_| Err(timed_out()))?;
                Ok(true)
            })
        })
        .connect_lazy_with(options)
}
