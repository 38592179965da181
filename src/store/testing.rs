//! Databases for tests: each test has its own, made from a migrated template and dropped after it.

use std::{
    str::FromStr as _,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sha2::{Digest as _, Sha256};
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, PgConnection, PgPool,
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tokio::sync::OnceCell;
use uuid::Uuid;

use super::{Fence, MIGRATIONS, Sealer, Store};
use crate::{clock::Clock, model::BotId};

/// Any number: the lock under which templates are made.
const TEMPLATE_LOCK: i64 = 0x6772_6565_6e74_6573;

/// The longest that a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A database left behind by a test that was killed is dropped when it is as old as this.
const STALE: Duration = Duration::from_hours(1);

/// A database of one's own; dropped with this.
pub(crate) struct TestDatabase {
    /// A store on it.
    pub(crate) store: Store,
    options: PgConnectOptions,
    name: String,
}

/// A new, migrated, empty database.
pub(crate) async fn database() -> TestDatabase {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();

    let template = TEMPLATE.get_or_init(|| async { template(&admin_options()).await }).await;
    made_from(template).await
}

/// A new database without even a schema.
pub(crate) async fn empty_database() -> TestDatabase {
    made_from("template1").await
}

async fn made_from(template: &str) -> TestDatabase {
    let admin = admin_options();
    let mut conn = PgConnection::connect_with(&admin).await.expect("a Postgres to test on");
    let name = format!("gs_test_{}_{}", unix_seconds(), Uuid::new_v4().simple());
    execute(&mut conn, format!("CREATE DATABASE {name} TEMPLATE {template}")).await;
    conn.close().await.expect("closes");

    let sealer = Sealer::generate().expect("randomness");
    let options = admin.database(&name);
    TestDatabase { store: Store::new(pool(&options), sealer), options, name }
}

impl TestDatabase {
    /// Its pool.
    pub(crate) fn pool(&self) -> &PgPool {
        self.store.pool()
    }

    /// The same database as another process would see it: another pool.
    pub(crate) fn reopen(&self) -> Store {
        Store::new(pool(&self.options), self.store.sealer().clone())
    }

    /// Where it is.
    pub(crate) fn url(&self) -> String {
        self.options.to_url_lossy().to_string()
    }

    /// Runs statements that a test makes up.
    pub(crate) async fn execute(&self, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::raw_sql(sql).execute(self.pool()).await.expect("executes");
    }

    /// The one text that a statement of a test returns.
    pub(crate) async fn text(&self, sql: &str) -> String {
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::query_scalar(sql).fetch_one(self.pool()).await.expect("one text")
    }

    /// Until this statement counts something: asked again and again, as fast as the database answers.
    pub(crate) async fn wait_for(&self, count: &str) {
        let counted = async { while self.text(count).await == "0" {} };
        tokio::time::timeout(PATIENCE, counted).await.expect(count);
    }

    /// Until some statement waits for a lock.
    pub(crate) async fn wait_for_a_lock(&self) {
        let waiting = "SELECT COUNT(*)::TEXT FROM pg_stat_activity
            WHERE datname = CURRENT_DATABASE() AND wait_event_type = 'Lock'";
        self.wait_for(waiting).await;
    }

    /// A new bot.
    pub(crate) async fn bot(&self, user_id: &str, device_id: &str) -> BotId {
        let bot_id = sqlx::query_scalar!(
            "-- testing.bot
            INSERT INTO bots (user_id, device_id, created_at) VALUES ($1, $2, $3) RETURNING bot_id",
            user_id,
            device_id,
            Clock::system().now(),
        )
        .fetch_one(self.pool())
        .await
        .expect("makes a bot");
        BotId(bot_id)
    }

    /// Takes over the lease on the bot's shard, from whoever has it.
    pub(crate) async fn lease(&self, bot: BotId) -> Fence {
        let owner = Uuid::new_v4();
        let row = sqlx::query!(
            "-- testing.lease
            UPDATE shards SET fence = fence + 1, owner = $2
            WHERE shard = (SELECT shard FROM bots WHERE bot_id = $1)
            RETURNING shard, fence",
            bot.0,
            owner,
        )
        .fetch_one(self.pool())
        .await
        .expect("takes the lease");
        Fence { shard: row.shard, owner, number: row.fence }
    }
}

impl Drop for TestDatabase {
    /// Drops the database, whatever is still connected to it. On a thread of its own: the test's
    /// runtime may be on its way out.
    fn drop(&mut self) {
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let dropper = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async {
                if let Ok(mut conn) = PgConnection::connect_with(&admin_options()).await {
                    let _ = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut conn).await;
                }
            });
        });
        let _ = dropper.join();
    }
}

fn admin_options() -> PgConnectOptions {
    let url = std::env::var("GREENSHIELD_TEST_DATABASE_URL")
        .or_else(|_| std::env::var("DATABASE_URL"))
        .expect("GREENSHIELD_TEST_DATABASE_URL or DATABASE_URL says where to make databases");
    PgConnectOptions::from_str(&url).expect("a Postgres URL")
}

fn pool(options: &PgConnectOptions) -> PgPool {
    PgPoolOptions::new().max_connections(8).connect_lazy_with(options.clone())
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

async fn execute(conn: &mut PgConnection, statement: String) {
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(conn).await.expect("executes");
}

/// The name of a migrated database, made by the first process that needs it. The name says which
/// migrations it has, so test processes of different versions do not get in each other's way.
async fn template(admin: &PgConnectOptions) -> String {
    let mut digest = Sha256::new();
    for migration in MIGRATIONS.iter() {
        digest.update(&*migration.checksum);
    }
    let digest = digest.finalize();
    let (head, _) = digest.split_at(8);
    let head = u64::from_be_bytes(head.try_into().expect("eight bytes"));
    let name = format!("gs_template_{head:016x}");

    // The lock lasts as long as this connection.
    let mut conn = PgConnection::connect_with(admin).await.expect("a Postgres to test on");
    sqlx::query!("-- testing.template\nSELECT pg_advisory_lock($1)", TEMPLATE_LOCK)
        .execute(&mut conn)
        .await
        .expect("locks");
    drop_stale(&mut conn).await;
    if !exists(&mut conn, &name).await {
        // Renamed only when it is complete.
        let unfinished = format!("{name}_unfinished");
        execute(&mut conn, format!("DROP DATABASE IF EXISTS {unfinished} WITH (FORCE)")).await;
        execute(&mut conn, format!("CREATE DATABASE {unfinished}")).await;
        let options = admin.clone().database(&unfinished);
        let mut fresh = PgConnection::connect_with(&options).await.expect("connects");
        MIGRATIONS.run(&mut fresh).await.expect("migrates");
        fresh.close().await.expect("closes");
        execute(&mut conn, format!("ALTER DATABASE {unfinished} RENAME TO {name}")).await;
    }
    conn.close().await.expect("closes");
    name
}

async fn exists(conn: &mut PgConnection, name: &str) -> bool {
    sqlx::query_scalar!(
        r#"-- testing.exists
        SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1) AS "exists!""#,
        name,
    )
    .fetch_one(conn)
    .await
    .expect("looks")
}

/// Drops what killed tests left behind.
async fn drop_stale(conn: &mut PgConnection) {
    let names = sqlx::query_scalar!(
        r#"-- testing.drop_stale
        SELECT datname::TEXT AS "name!" FROM pg_database WHERE datname LIKE 'gs\_test\_%'"#,
    )
    .fetch_all(&mut *conn)
    .await
    .expect("lists databases");
    let oldest = unix_seconds() - STALE.as_secs();
    for name in names {
        let made = name.split('_').nth(2).and_then(|seconds| seconds.parse::<u64>().ok());
        if made.is_some_and(|made| made < oldest) {
            let statement = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
            let _ = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *conn).await;
        }
    }
}
