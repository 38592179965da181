//! A database of one's own, with bots in it.

use anyhow::{Context as _, Result};
use greenshield::{
    model::BotId,
    store::{Fence, MIGRATIONS, PgCryptoStore, Sealer, Store},
};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, postgres::PgConnectOptions};
use uuid::Uuid;

pub struct Database {
    pub store: Store,
    admin: PgConnectOptions,
    name: String,
}

impl Database {
    pub async fn create() -> Result<Self> {
        let url = std::env::var("DATABASE_URL")
            .context("run this with `scripts/with-postgres`: DATABASE_URL is not set")?;
        let admin: PgConnectOptions = url.parse()?;
        let name = format!("hot_{}", Uuid::new_v4().simple());
        let mut conn = PgConnection::connect_with(&admin).await?;
        let sql = format!("CREATE DATABASE {name}");
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await?;
        let pool = greenshield::store::pool(admin.clone().database(&name), 8);
        MIGRATIONS.run(&pool).await?;
        Ok(Self { store: Store::new(pool, Sealer::generate()?), admin, name })
    }

    /// A new bot's store, with the right to write.
    pub async fn bot(&self, user_id: &str, device_id: &str) -> Result<(PgCryptoStore, Fence)> {
        let (bot, shard): (i64, i16) = sqlx::query_as(
            "INSERT INTO bots (user_id, device_id, created_at) VALUES ($1, $2, NOW())
            RETURNING bot_id, shard",
        )
        .bind(user_id)
        .bind(device_id)
        .fetch_one(self.store.pool())
        .await?;
        let owner = Uuid::new_v4();
        let number: i64 = sqlx::query_scalar(
            "UPDATE shards SET fence = fence + 1, owner = $2 WHERE shard = $1 RETURNING fence",
        )
        .bind(shard)
        .bind(owner)
        .fetch_one(self.store.pool())
        .await?;
        let fence = Fence { shard, owner, number };
        Ok((PgCryptoStore::new(self.store.clone(), BotId(bot), fence), fence))
    }

    pub async fn drop(self) {
        // Its connections go with it.
        drop(self.store);
        let sql = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        if let Ok(mut conn) = PgConnection::connect_with(&self.admin).await {
            let _ = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut conn).await;
        }
    }
}
