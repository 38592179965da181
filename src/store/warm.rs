//! Connections that are used again before they have gone cold.
//!
//! The pool hands its connections out in turn, and asks each that comes back whether it is still there.
//! So whoever needs one gets the one that has lain longest, of which nothing is left in the processor's
//! caches: its first statements take several times as long. Here the last one that came back is the
//! first to go, and is not asked; one that has lain for long goes back to the pool, and so does one on
//! which anything failed.

use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

use sqlx::{Connection as _, PgConnection, PgPool};

use super::{PATIENCE, PooledConnection, Store, StoreError, TRUSTED_FOR, timed_out};

/// How many wait here at most: the others are the pool's, for whoever holds one for longer.
const MOST: u32 = 6;

/// Connections on which all went well, the last one on top.
pub(super) struct Warm {
    stack: Mutex<Vec<(PooledConnection, Instant)>>,
    most: usize,
}

impl Warm {
    /// For connections of this pool, of which one hears signals and half of the others stay with it.
    pub(super) fn of(pool: &PgPool) -> Self {
        let most = (pool.options().get_max_connections().saturating_sub(1) / 2).min(MOST);
        Self { stack: Mutex::default(), most: most as usize }
    }

    fn take(&self) -> Option<PooledConnection> {
        let mut stack = self.stack.lock().unwrap_or_else(PoisonError::into_inner);
        match stack.pop() {
            Some((conn, since)) if since.elapsed() < TRUSTED_FOR => Some(conn),
            // Those below have lain longer.
            _ => {
                stack.clear();
                None
            }
        }
    }

    fn put(&self, conn: PooledConnection) {
        let mut stack = self.stack.lock().unwrap_or_else(PoisonError::into_inner);
        if stack.len() < self.most {
            stack.push((conn, Instant::now()));
        }
    }
}

impl Drop for Warm {
    /// On its way back to the pool a connection needs a runtime, which may be gone by now.
    fn drop(&mut self) {
        let stack = self.stack.get_mut().unwrap_or_else(PoisonError::into_inner);
        for (conn, _) in stack.drain(..) {
            drop(conn.detach());
        }
    }
}

impl Store {
    /// Does `work` on a connection, each statement for itself. A database that does not answer is not waited
    /// for.
    ///
    /// # Errors
    ///
    /// The work's, or as [`Store::connection`].
    pub async fn run<T, E: From<StoreError>>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut conn = match self.warm.take() {
            Some(conn) => conn,
            None => self.connection().await?,
        };
        if let Ok(done) = tokio::time::timeout(PATIENCE, work(&mut conn)).await {
            let done = done?;
            self.warm.put(conn);
            return Ok(done);
        }
        // In the pool it would wait on, and keep its place.
        drop(conn.detach());
        Err(StoreError::from(timed_out()).into())
    }

    /// Does `work` in a transaction: all of it, or nothing.
    ///
    /// # Errors
    ///
    /// The work's, or the database's own.
    pub async fn transaction<T>(
        &self,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.run(async |conn| {
            let mut tx = conn.begin().await?;
            let done = work(&mut tx).await?;
            tx.commit().await?;
            Ok(done)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use crate::store::{Connection, StoreError, testing::database};

    #[test]
    fn a_connection_that_waits_outlives_the_runtime_without_harm() {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let database = runtime.block_on(async {
            let database = database().await;
            let ask = async |conn: &mut Connection| {
                sqlx::query!("-- warm.tests.ask\nSELECT 1 AS one").fetch_one(conn).await?;
                Ok::<_, StoreError>(())
            };
            database.store.run(ask).await.expect("asks");
            database
        });
        assert_eq!(database.store.warm.stack.lock().expect("whole").len(), 1);
        drop(runtime);
        drop(database);
    }
}
