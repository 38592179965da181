//! Holding greenshield at an exact statement, without its knowledge: triggers in its database wait for
//! a lock that the test has. So a test can kill it between any two writes.
//!
//! What a killed process has said to Postgres lives on for a moment: its backend waits for the lock,
//! too, and what then becomes of the transaction is the test's choice, [`Fate`].

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use url::Url;

use super::poll;

/// The advisory lock that everything waits for.
const LOCK: &str = "71, 1";

const TRIGGERS: &str = "
CREATE SCHEMA storm;
CREATE SEQUENCE storm.hits;
CREATE TABLE storm.plan (relation TEXT, moment TEXT NOT NULL, hit BIGINT NOT NULL);
CREATE FUNCTION storm.hold() RETURNS TRIGGER LANGUAGE plpgsql AS $$
DECLARE plan storm.plan;
BEGIN
    SELECT * INTO plan FROM storm.plan;
    IF plan.moment = TG_ARGV[0] AND COALESCE(plan.relation, TG_TABLE_NAME) = TG_TABLE_NAME THEN
        IF nextval('storm.hits') = plan.hit THEN
            -- Who waits here, for everybody to see.
            PERFORM set_config('application_name', COALESCE(current_setting('watch.name', TRUE), ''), TRUE);
            PERFORM pg_advisory_xact_lock_shared(71, 1);
        END IF;
    END IF;
    RETURN NULL;
END $$;
";

/// Where in a database transaction greenshield is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// After a statement has written, before greenshield hears of it.
    Statement,
    /// In the commit: it will come true, or not, and greenshield never hears of it.
    Commit,
}

/// What becomes of a transaction whose author is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes as far as the author had said.
    Goes,
    /// It is rolled back.
    Dies,
}

/// The triggers, on every table.
pub struct Holds(PgConnection);

impl Holds {
    /// Puts them there. greenshield has made its tables already.
    pub async fn install(database: &Url) -> Result<Self> {
        let mut sql = PgConnection::connect(database.as_str()).await?;
        sqlx::raw_sql(TRIGGERS).execute(&mut sql).await?;
        let tables: Vec<String> = sqlx::query_scalar(
            "SELECT tablename::text FROM pg_tables
            WHERE schemaname = 'public' AND tablename NOT LIKE '\\_sqlx%'",
        )
        .fetch_all(&mut sql)
        .await?;
        for table in tables {
            let trigger = format!(
                "CREATE TRIGGER storm_statement AFTER INSERT OR UPDATE OR DELETE ON {table}
                FOR EACH STATEMENT EXECUTE FUNCTION storm.hold('Statement');
                CREATE CONSTRAINT TRIGGER storm_commit AFTER INSERT OR UPDATE OR DELETE ON {table}
                DEFERRABLE INITIALLY DEFERRED
                FOR EACH ROW EXECUTE FUNCTION storm.hold('Commit')",
            );
            sqlx::raw_sql(AssertSqlSafe(trigger)).execute(&mut sql).await?;
        }
        Ok(Self(sql))
    }

    /// From now on the write into `table`, or into any, that follows `skip` others is held.
    pub async fn arm(&mut self, table: Option<&str>, skip: u32, moment: Moment) -> Result<()> {
        if let Some(table) = table {
            let known: bool = sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL")
                .bind(table)
                .fetch_one(&mut self.0)
                .await?;
            if !known {
                bail!("there is no table {table}: name the one that has taken its place");
            }
        }
        self.run(&format!("SELECT pg_advisory_lock({LOCK}), setval('storm.hits', 1, FALSE)"))
            .await?;
        sqlx::query("INSERT INTO storm.plan VALUES ($1, $2, $3)")
            .bind(table)
            .bind(format!("{moment:?}"))
            .bind(i64::from(skip) + 1)
            .execute(&mut self.0)
            .await?;
        Ok(())
    }

    /// Waits until something is held; whether it was, in this time.
    pub async fn reached(&mut self, patience: Duration) -> Result<bool> {
        let reached = poll::until("a write to be held", patience, async || {
            let held = self.held().await?;
            Ok((!held.is_empty()).then_some(()))
        })
        .await;
        Ok(reached.is_ok())
    }

    /// The setting `watch.name` of the connection that is held.
    pub async fn held_name(&mut self) -> Result<String> {
        let held = self.held().await?;
        sqlx::query_scalar("SELECT application_name FROM pg_stat_activity WHERE pid = ANY($1)")
            .bind(&held)
            .fetch_one(&mut self.0)
            .await
            .context("nothing is held")
    }

    /// Lets go of what is held, greenshield being dead, and holds nothing from now on. Returns when
    /// what it had begun is done or undone.
    pub async fn let_go(&mut self, fate: Fate) -> Result<()> {
        let held = self.held().await?;
        self.run("DELETE FROM storm.plan").await?;
        if fate == Fate::Dies {
            self.terminate(&held).await?;
        }
        self.run(&format!("SELECT pg_advisory_unlock({LOCK})")).await?;
        poll::until("what was held to end", Duration::from_secs(30), async || {
            let left: i64 = sqlx::query_scalar(
                "SELECT COUNT(*) FROM pg_stat_activity WHERE pid = ANY($1) AND state <> 'idle'",
            )
            .bind(&held)
            .fetch_one(&mut self.0)
            .await?;
            Ok((left == 0).then_some(()))
        })
        .await
    }

    async fn terminate(&mut self, held: &[i32]) -> Result<()> {
        sqlx::query("SELECT pg_terminate_backend(pid, 10000) FROM UNNEST($1) AS pid")
            .bind(held)
            .execute(&mut self.0)
            .await
            .context("ending what was held")?;
        Ok(())
    }

    /// The backends that wait for our lock.
    async fn held(&mut self) -> Result<Vec<i32>> {
        Ok(sqlx::query_scalar(
            "SELECT pid FROM pg_locks
            WHERE locktype = 'advisory' AND classid = 71 AND objid = 1 AND NOT granted
                AND database = (SELECT oid FROM pg_database WHERE datname = CURRENT_DATABASE())",
        )
        .fetch_all(&mut self.0)
        .await?)
    }

    async fn run(&mut self, sql: &str) -> Result<()> {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.0).await?;
        Ok(())
    }
}
