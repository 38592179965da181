//! Watching who writes: triggers on what belongs to a bot's worker note every write of a process that
//! does not hold the lease on the bot's shard at that moment.
//!
//! A process is told by a setting of its database connections, which it is given in the URL.

use anyhow::{Result, ensure};
use sqlx::{AssertSqlSafe, PgPool};
use url::Url;

const SCHEMA: &str = "
CREATE SCHEMA watch;
CREATE SEQUENCE watch.writes;
CREATE TABLE watch.names (process_id UUID PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE watch.trespasses (at TIMESTAMPTZ, name TEXT, relation TEXT, operation TEXT, bot_id BIGINT);
CREATE FUNCTION watch.announced() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO watch.names VALUES (NEW.process_id, current_setting('watch.name'));
    RETURN NULL;
END $$;
CREATE FUNCTION watch.written() RETURNS TRIGGER LANGUAGE plpgsql AS $$
DECLARE
    me TEXT := current_setting('watch.name', TRUE);
    bot BIGINT := CASE WHEN TG_OP = 'DELETE' THEN OLD.bot_id ELSE NEW.bot_id END;
BEGIN
    IF COALESCE(me, '') = '' THEN
        RETURN NULL;
    END IF;
    PERFORM nextval('watch.writes');
    IF NOT EXISTS (
        SELECT FROM shards s JOIN watch.names n ON n.process_id = s.owner
        WHERE s.shard = bot % 64 AND n.name = me
    ) THEN
        INSERT INTO watch.trespasses VALUES (clock_timestamp(), me, TG_TABLE_NAME, TG_OP, bot);
    END IF;
    RETURN NULL;
END $$;
";

/// Connections of the process `name` to this database.
pub fn url(database: &Url, name: &str) -> Url {
    let mut url = database.clone();
    url.query_pairs_mut().append_pair("options[watch.name]", name);
    url
}

/// Puts the triggers there, while only the process `name` runs.
pub async fn install(sql: &PgPool, name: &str) -> Result<()> {
    sqlx::raw_sql(SCHEMA).execute(sql).await?;
    sqlx::query("INSERT INTO watch.names SELECT process_id, $1 FROM processes")
        .bind(name)
        .execute(sql)
        .await?;
    let mut triggers = vec![
        "CREATE TRIGGER announced AFTER INSERT ON processes
        FOR EACH ROW EXECUTE FUNCTION watch.announced()"
            .to_owned(),
    ];
    let crypto: Vec<String> = sqlx::query_scalar(
        "SELECT tablename::text FROM pg_tables
        WHERE schemaname = 'public' AND tablename LIKE 'crypto\\_%'",
    )
    .fetch_all(sql)
    .await?;
    ensure!(crypto.len() > 10, "{crypto:?}");
    let all = "INSERT OR UPDATE OR DELETE";
    // Anybody puts something into an inbox or an outbox, wakes a bot or asks for one; only a worker says
    // what became of it.
    let workers = [
        ("outbox", "UPDATE"),
        ("event_log", "INSERT"),
        ("inbox", "UPDATE OR DELETE"),
        ("bot_queue", "DELETE"),
        ("bots", "UPDATE"),
        ("bot_identities", all),
        ("verifications", all),
        ("repairs", all),
        ("signups", "UPDATE OF steps, finished_at"),
    ];
    let tables = crypto.iter().map(|table| (table.as_str(), all));
    for (table, when) in tables.chain(workers) {
        let trigger = format!(
            "CREATE TRIGGER written AFTER {when} ON {table}
            FOR EACH ROW EXECUTE FUNCTION watch.written()"
        );
        triggers.push(trigger);
    }
    // One at a time: together they would hold locks that the program at work takes in another order.
    for trigger in triggers {
        sqlx::query(AssertSqlSafe(trigger)).execute(sql).await?;
    }
    Ok(())
}

/// Asserts that nobody wrote what was not theirs to write; tells how many writes were looked at.
pub async fn nobody_trespassed(sql: &PgPool) -> Result<u64> {
    let trespasses: Vec<String> =
        sqlx::query_scalar("SELECT t::text FROM watch.trespasses t ORDER BY at LIMIT 20")
            .fetch_all(sql)
            .await?;
    ensure!(trespasses.is_empty(), "{trespasses:#?}");
    let writes: i64 =
        sqlx::query_scalar("SELECT last_value FROM watch.writes").fetch_one(sql).await?;
    ensure!(writes > 10, "only {writes} writes were watched");
    Ok(writes.unsigned_abs())
}
