//! A connection that stays with whoever uses one all the time.
//!
//! The pool hands its connections out in turn, and what PostgreSQL keeps for each has left the
//! processor's caches until it is that one's turn again: its first statements then take several times as
//! long. Nobody waits for the connection: if it is in use, another is taken from the pool.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use sqlx::{Connection as _, PgConnection};

use super::{PooledConnection, Store, StoreError, TRUSTED_FOR};

/// See the module.
pub struct Warm {
    store: Store,
    kept: Mutex<Option<(PooledConnection, Instant)>>,
}

impl Warm {
    /// Keeps nothing yet.
    #[must_use]
    pub const fn new(store: Store) -> Self {
        Self { store, kept: Mutex::new(None) }
    }

    /// The connection that was [put](Self::put) back, unless that was long ago: the pool asks such a one
    /// first whether it is still there.
    ///
    /// # Errors
    ///
    /// As [`Store::connection`].
    pub async fn take(&self) -> Result<PooledConnection, StoreError> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        match kept {
            Some((conn, at)) if at.elapsed() < TRUSTED_FOR => Ok(conn),
            _ => self.store.connection().await,
        }
    }

    /// Does `work` in one transaction on it: all of it, or nothing.
    ///
    /// # Errors
    ///
    /// The work's, or the database's own.
    pub async fn transaction<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut conn = self.take().await?;
        let mut tx = conn.begin().await?;
        let done = work(&mut tx).await?;
        tx.commit().await?;
        self.put(conn);
        Ok(done)
    }

    /// Keeps a connection on which all went well.
    pub fn put(&self, conn: PooledConnection) {
        let kept = Some((conn, Instant::now()));
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = kept;
    }
}
