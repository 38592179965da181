//! `shards` and `processes`: who works which bots.
//!
//! A process takes its fair share of the shards and renews them; each change of owner raises the
//! shard's fence. A shard is free to take when nobody owns it, when its lease ran out, or when its
//! owner's advisory lock is free, which means that the owner's connection, and so the owner, is gone:
//! a killed process is replaced at once, a frozen one when its lease ends.
//!
//! Time is the database's here, and nowhere else: processes whose clocks differ must agree on when a
//! lease ends.
//!
//! Who dies or stands still may have had a transaction that nobody answered. The homeserver repeats it
//! without its to-device messages and its changes of devices, and nobody else knows: so whoever notices
//! declares an outage. If the one that notices dies before it has, the next one notices that.

#[cfg(test)]
mod tests;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgConnection};
use uuid::Uuid;

use super::{Fence, SOON, Store, StoreError, place, transactions, within};

/// Any number: the lock under which processes announce themselves.
const ANNOUNCING: i64 = 0x6772_6565_6e5f_6869;

/// This process among those that share the database. Dropping it closes the connection that holds its
/// lock, by which others see that it is gone.
pub struct Process {
    /// Random, new at every start.
    pub id: Uuid,
    /// Whether no other took transactions in when it was announced: then an outage was declared.
    pub is_first: bool,
    lock: PgConnection,
    /// How many shards there are, as of the last renewal.
    shards: u64,
}

/// What a renewal brought.
pub struct Renewal {
    /// What the process owns now.
    pub fences: Vec<Fence>,
    /// Whether a process has died, or stood still for longer than its lease, perhaps this one: then an
    /// outage was declared.
    pub is_after_outage: bool,
}

impl Process {
    /// Announces a process, on a connection of its own to the store's database. If nobody else is alive,
    /// what the homeserver dropped meanwhile is to be asked for: declares an outage that ended `now`.
    ///
    /// # Errors
    ///
    /// [`StoreError::Restored`] if the database may not be served yet, or its own.
    pub async fn announce(
        store: &Store,
        lease: Duration,
        now: DateTime<Utc>,
    ) -> Result<Self, StoreError> {
        within(2 * lease, Self::announce_now(store, lease, now)).await
    }

    async fn announce_now(
        store: &Store,
        lease: Duration,
        now: DateTime<Utc>,
    ) -> Result<Self, StoreError> {
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
        let mut tx = lock.begin().await?;
        // One at a time: of several that start at once, the first looks before any other is there.
        sqlx::query!(
            "-- leases.announcing
            SELECT pg_advisory_xact_lock($1)",
            ANNOUNCING,
        )
        .execute(&mut *tx)
        .await?;
        // One that was killed a moment ago has let go of its lock.
        let is_first = sqlx::query_scalar!(
            r#"-- leases.is_first
            SELECT NOT EXISTS (
                SELECT FROM processes p
                WHERE seen_at > CLOCK_TIMESTAMP() - MAKE_INTERVAL(secs => $1) AND EXISTS (
                    SELECT FROM pg_locks l
                    WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
                        AND ((l.classid::BIGINT << 32) | l.objid::BIGINT) = p.lock_key
                )
            ) AS "is_first!""#,
            lease.as_secs_f64(),
        )
        .fetch_one(&mut *tx)
        .await?;
        sqlx::query!(
            "-- leases.announce
            INSERT INTO processes (process_id, lock_key, started_at, seen_at)
            VALUES ($1, $2, CLOCK_TIMESTAMP(), CLOCK_TIMESTAMP())",
            id,
            key,
        )
        .execute(&mut *tx)
        .await?;
        if is_first {
            transactions::outage_ended(&mut tx, now).await?;
        }
        tx.commit().await?;
        Ok(Self { id, is_first, lock, shards: u64::MAX })
    }

    /// Renews what this process owns, lets go of what is more than its fair share, and takes what is free
    /// up to that share. Also forgets processes that are gone.
    ///
    /// # Errors
    ///
    /// The database's own: then nothing may be taken for owned.
    pub async fn renew(
        &mut self,
        lease: Duration,
        now: DateTime<Utc>,
    ) -> Result<Renewal, StoreError> {
        // Half a lease: a database that hangs must not make us believe that we still own something.
        within(lease / 2, self.renew_now(lease, now)).await
    }

    /// Statement by statement: a process that freezes within a transaction would keep the shards locked,
    /// and nobody could take them over until the database ends it.
    async fn renew_now(
        &mut self,
        lease: Duration,
        now: DateTime<Utc>,
    ) -> Result<Renewal, StoreError> {
        let lease = lease.as_secs_f64();
        let stood_still = sqlx::query_scalar!(
            r#"-- leases.seen
            UPDATE processes p SET seen_at = CLOCK_TIMESTAMP()
            FROM processes last WHERE p.process_id = $1 AND last.process_id = $1
            RETURNING last.seen_at < CLOCK_TIMESTAMP() - MAKE_INTERVAL(secs => $2) AS "stood_still!""#,
            self.id,
            lease,
        )
        .fetch_one(&mut self.lock)
        .await?;
        let gone = sqlx::query!(
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
        .await?
        .rows_affected();
        let live: i64 = sqlx::query_scalar!(
            r#"-- leases.live
            SELECT COUNT(*) AS "count!" FROM processes
            WHERE seen_at > CLOCK_TIMESTAMP() - MAKE_INTERVAL(secs => $1)"#,
            lease,
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
        let taken_from_others: i64 = sqlx::query_scalar!(
            r#"-- leases.take
            WITH free AS (
                SELECT s.shard, s.owner FROM shards s
                WHERE (
                    s.owner IS NULL
                    OR s.expires_at < CLOCK_TIMESTAMP()
                    OR s.owner NOT IN (SELECT process_id FROM processes)
                ) AND s.owner IS DISTINCT FROM $1
                ORDER BY s.shard
                LIMIT GREATEST($3 - (SELECT COUNT(*) FROM shards WHERE owner = $1), 0)
                FOR UPDATE SKIP LOCKED
            ), taken AS (
                UPDATE shards s
                SET owner = $1, fence = fence + 1,
                    expires_at = CLOCK_TIMESTAMP() + MAKE_INTERVAL(secs => $2)
                FROM free WHERE free.shard = s.shard
            )
            SELECT COUNT(owner) AS "count!" FROM free"#,
            self.id,
            lease,
            share,
        )
        .fetch_one(&mut self.lock)
        .await?;
        let owned = sqlx::query!(
            "-- leases.renew
            UPDATE shards SET expires_at = CLOCK_TIMESTAMP() + MAKE_INTERVAL(secs => $2)
            WHERE owner = $1
            RETURNING shard, fence",
            self.id,
            lease,
        )
        .fetch_all(&mut self.lock)
        .await?;
        let is_after_outage = stood_still || gone > 0 || taken_from_others > 0;
        if is_after_outage {
            transactions::outage_ended(&mut self.lock, now).await?;
        }
        let fence = |shard, number| Fence { shard, owner: self.id, number };
        let fences = owned.into_iter().map(|row| fence(row.shard, row.fence)).collect();
        Ok(Renewal { fences, is_after_outage })
    }

    /// Whether `owned` shards are all there are.
    #[must_use]
    pub const fn owns_all(&self, owned: usize) -> bool {
        owned as u64 >= self.shards
    }

    /// It takes no more transactions in, while running steps end: who starts now is not to count on it.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn stopping(&mut self) -> Result<(), StoreError> {
        let stopping = sqlx::query!(
            "-- leases.stopping
            UPDATE processes SET seen_at = 'epoch' WHERE process_id = $1",
            self.id,
        );
        let done = async {
            stopping.execute(&mut self.lock).await?;
            Ok(())
        };
        within(SOON, done).await
    }

    /// Lets everything go, so that others can take over at once.
    ///
    /// # Errors
    ///
    /// The database's own: then others take over when the connection is gone.
    pub async fn leave(self) -> Result<(), StoreError> {
        within(SOON, self.leave_now()).await
    }

    async fn leave_now(mut self) -> Result<(), StoreError> {
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
