//! Fences: how a worker that has lost its lease is kept from writing.
//!
//! A worker carries the [`Fence`] of the shard that it leased. Each of its transactions starts by
//! holding that shard's row in share mode: as long as the transaction lasts nobody can take the lease
//! over, and if somebody already has, the number differs and the transaction ends with
//! [`StoreError::LeaseLost`] before anything was written.

use std::collections::HashSet;

use sqlx::{PgConnection, Postgres, Transaction};
use uuid::Uuid;

use super::{Store, StoreError};

/// The right to write for the bots of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fence {
    /// The shard.
    pub shard: i16,
    /// The process that leased it.
    pub owner: Uuid,
    /// The number that rises with every change of owner.
    pub number: i64,
}

impl Fence {
    /// Holds the lease for the rest of the transaction that `conn` is in.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`] if another process has it.
    pub async fn hold(self, conn: &mut PgConnection) -> Result<(), StoreError> {
        let held = sqlx::query_scalar!(
            r#"-- fence.hold
            SELECT TRUE AS "held!" FROM shards
            WHERE shard = $1 AND fence = $2 AND owner = $3
            FOR SHARE"#,
            self.shard,
            self.number,
            self.owner,
        )
        .fetch_optional(conn)
        .await?;
        held.map(|_| ()).ok_or(StoreError::LeaseLost)
    }
}

impl Fence {
    /// Holds those of `fences` that are still good for the rest of the transaction, in the order of
    /// their shards, and says which these are: of two of one shard, the newer one at most.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn hold_all(
        fences: &HashSet<Self>,
        conn: &mut PgConnection,
    ) -> Result<HashSet<Self>, StoreError> {
        let (shards, numbers, owners): (Vec<_>, Vec<_>, Vec<_>) =
            fences.iter().map(|fence| (fence.shard, fence.number, fence.owner)).collect();
        let held = sqlx::query!(
            r#"-- fence.hold_all
            SELECT f.shard AS "shard!", f.fence AS "fence!", f.owner AS "owner!"
            FROM shards s
            JOIN UNNEST($1::SMALLINT[], $2::BIGINT[], $3::UUID[]) AS f (shard, fence, owner)
                ON s.shard = f.shard AND s.fence = f.fence AND s.owner = f.owner
            ORDER BY s.shard
            FOR SHARE OF s"#,
            &shards,
            &numbers,
            &owners,
        )
        .fetch_all(conn)
        .await?;
        Ok(held
            .into_iter()
            .map(|row| Self { shard: row.shard, owner: row.owner, number: row.fence })
            .collect())
    }
}

impl Store {
    /// Proves that `fence` holds at this moment.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`], or the database's own.
    pub async fn prove(&self, fence: Fence) -> Result<(), StoreError> {
        self.run(async |conn| fence.hold(conn).await).await
    }

    /// A transaction in which `fence` holds.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`], or the database's own.
    pub async fn begin_fenced(
        &self,
        fence: Fence,
    ) -> Result<Transaction<'static, Postgres>, StoreError> {
        let mut tx = self.pool().begin().await?;
        fence.hold(&mut tx).await?;
        Ok(tx)
    }
}
