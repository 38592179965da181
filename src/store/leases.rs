//! `shards` and `processes`: who works which bots.
//!
//! A process takes its fair share of the shards and renews them; each change of owner raises the
//! shard's fence. A shard is free to take when nobody owns it, when its lease ran out, or when its
//! owner's advisory lock is free, which means that the owner's connection, and so the owner, is gone:
//! a killed process is replaced at once, a frozen one when its lease ends.

use chrono::{DateTime, Duration, Utc};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::{Fence, Store, StoreError, place};

/// This process among those that share the database. Dropping it closes the connection that holds its
/// lock, by which others see that it is gone.
pub struct Process {
    /// Random, new at every start.
    pub id: Uuid,
    lock: PgConnection,
    /// How many shards there are, as of the last renewal.
    shards: u64,
}

impl Process {
    /// Announces a process, on a connection of its own to the store's database.
    ///
    /// # Errors
    ///
    /// [`StoreError::Restored`] if the database may not be served yet, or its own.
    pub async fn announce(store: &Store, now: DateTime<Utc>) -> Result<Self, StoreError> {
        let id = Uuid::new_v4();
        let mut lock = PgConnection::connect_with(&store.pool().connect_options()).await?;
        place::settle(&mut lock, now).await?;
        let key = lock_key(id);
        sqlx::query!(
            "-- leases.lock
            SELECT pg_advisory_lock($1)",
            key,
        )
        .execute(&mut lock)
        .await?;
        sqlx::query!(
            "-- leases.announce
            INSERT INTO processes (process_id, lock_key, started_at, seen_at) VALUES ($1, $2, $3, $3)",
            id,
            key,
            now,
        )
        .execute(&mut lock)
        .await?;
        Ok(Self { id, lock, shards: u64::MAX })
    }

    /// Renews what this process owns, lets go of what is more than its fair share, takes what is free
    /// up to that share, and returns what it owns now. Also forgets processes that are gone.
    ///
    /// # Errors
    ///
    /// The database's own: then nothing may be taken for owned.
    pub async fn renew(
        &mut self,
        lease: Duration,
        now: DateTime<Utc>,
    ) -> Result<Vec<Fence>, StoreError> {
        // Half a lease: a database that hangs must not make us believe that we still own something.
        let patience = (lease / 2).to_std().unwrap_or_default();
        tokio::time::timeout(patience, self.renew_now(lease, now))
            .await
            .map_err(|_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))?
    }

    /// Statement by statement: a process that freezes within a transaction would keep the shards locked,
    /// and nobody could take them over until the database ends it.
    async fn renew_now(
        &mut self,
        lease: Duration,
        now: DateTime<Utc>,
    ) -> Result<Vec<Fence>, StoreError> {
        sqlx::query!(
            "-- leases.seen
            UPDATE processes SET seen_at = $2 WHERE process_id = $1",
            self.id,
            now,
        )
        .execute(&mut self.lock)
        .await?;
        sqlx::query!(
            "-- leases.forget_processes
            DELETE FROM processes p
            WHERE p.process_id <> $1 AND NOT EXISTS (
                SELECT FROM pg_locks l
                WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                    AND ((l.classid::BIGINT << 32) | l.objid::BIGINT) = p.lock_key
            )",
            self.id,
        )
        .execute(&mut self.lock)
        .await?;
        let live: i64 = sqlx::query_scalar!(
            r#"-- leases.live
            SELECT COUNT(*) AS "count!" FROM processes WHERE seen_at > $1"#,
            now - lease,
        )
        .fetch_one(&mut self.lock)
        .await?;
        let shards: i64 = sqlx::query_scalar!(
            r#"-- leases.shards
            SELECT COUNT(*) AS "count!" FROM shards"#
        )
        .fetch_one(&mut self.lock)
        .await?;
        self.shards = shards.unsigned_abs();
        let live = live.max(1);
        let share = (shards + live - 1) / live;
        sqlx::query!(
            "-- leases.let_go
            UPDATE shards SET owner = NULL, expires_at = NULL
            WHERE owner = $1 AND shard NOT IN (
                SELECT shard FROM shards WHERE owner = $1 ORDER BY shard LIMIT $2
            )",
            self.id,
            share,
        )
        .execute(&mut self.lock)
        .await?;
        // `SKIP LOCKED`: a shard in the middle of somebody's write is taken next time.
        sqlx::query!(
            "-- leases.take
            UPDATE shards SET owner = $1, fence = fence + 1, expires_at = $3
            WHERE shard IN (
                SELECT s.shard FROM shards s
                WHERE (
                    s.owner IS NULL
                    OR s.expires_at < $2
                    OR s.owner NOT IN (SELECT process_id FROM processes)
                ) AND s.owner IS DISTINCT FROM $1
                ORDER BY s.shard
                LIMIT GREATEST($4 - (SELECT COUNT(*) FROM shards WHERE owner = $1), 0)
                FOR UPDATE SKIP LOCKED
            )",
            self.id,
            now,
            now + lease,
            share,
        )
        .execute(&mut self.lock)
        .await?;
        let owned = sqlx::query!(
            "-- leases.renew
            UPDATE shards SET expires_at = $2 WHERE owner = $1
            RETURNING shard, fence",
            self.id,
            now + lease,
        )
        .fetch_all(&mut self.lock)
        .await?;
        Ok(owned
            .into_iter()
            .map(|row| Fence { shard: row.shard, owner: self.id, number: row.fence })
            .collect())
    }

    /// Whether any other process is alive: one that was killed a moment ago is not.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn is_alone(
        &mut self,
        lease: Duration,
        now: DateTime<Utc>,
    ) -> Result<bool, StoreError> {
        Ok(sqlx::query_scalar!(
            r#"-- leases.is_alone
            SELECT NOT EXISTS (
                SELECT FROM processes p
                WHERE process_id <> $1 AND seen_at > $2 AND EXISTS (
                    SELECT FROM pg_locks l
                    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                        AND ((l.classid::BIGINT << 32) | l.objid::BIGINT) = p.lock_key
                )
            ) AS "alone!""#,
            self.id,
            now - lease,
        )
        .fetch_one(&mut self.lock)
        .await?)
    }

    /// Whether `owned` shards are all there are.
    #[must_use]
    pub const fn owns_all(&self, owned: usize) -> bool {
        owned as u64 >= self.shards
    }

    /// Lets everything go, so that others can take over at once.
    ///
    /// # Errors
    ///
    /// The database's own: then others take over when the connection is gone.
    pub async fn leave(mut self) -> Result<(), StoreError> {
        sqlx::query!(
            "-- leases.leave
            UPDATE shards SET owner = NULL, expires_at = NULL WHERE owner = $1",
            self.id,
        )
        .execute(&mut self.lock)
        .await?;
        sqlx::query!(
            "-- leases.bye
            DELETE FROM processes WHERE process_id = $1",
            self.id,
        )
        .execute(&mut self.lock)
        .await?;
        self.lock.close().await?;
        Ok(())
    }
}

/// How many processes of this database, or of the one that it is a copy of, are alive on this PostgreSQL.
///
/// # Errors
///
/// The database's own.
pub async fn alive(conn: &mut PgConnection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"-- leases.alive
        SELECT COUNT(*) AS "count!" FROM processes p
        WHERE EXISTS (
            SELECT FROM pg_locks l
            WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                AND ((l.classid::BIGINT << 32) | l.objid::BIGINT) = p.lock_key
        )"#,
    )
    .fetch_one(conn)
    .await?)
}

/// The advisory lock's key: half of the random id.
fn lock_key(id: Uuid) -> i64 {
    let (high, _) = id.as_u64_pair();
    i64::from_ne_bytes(high.to_ne_bytes())
}
