//! What a contestant costs: processor time and memory of its processes, statements and commits of its
//! database. Read from the kernel and from Postgres, not from the contestant.

use std::{collections::HashMap, fs, time::Duration};

use anyhow::{Context as _, Result};
use sqlx::{Connection as _, PgConnection};
use tokio::sync::Mutex;

/// Ticks of the kernel's accounting: Linux shows user space 100 a second on every machine.
const TICK: Duration = Duration::from_millis(10);

/// The private Postgres cluster, looked at as its superuser.
pub struct Cluster {
    pub url: url::Url,
    postmaster: u32,
    /// What readings are taken with: a new connection costs as much as some messages.
    conn: Mutex<PgConnection>,
}

/// A reading; the difference of two is what something cost.
#[derive(Clone, Debug)]
pub struct Reading {
    pub own: Duration,
    pub postgres: Duration,
    pub statements: i64,
    pub lsn: Option<String>,
}

/// What lies between two readings.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    pub own: Duration,
    pub postgres: Duration,
    pub statements: i64,
    /// Transactions that wrote, from the write-ahead log.
    pub commits: i64,
}

impl Cluster {
    /// The cluster at `DATABASE_URL`.
    pub async fn of_environment() -> Result<Self> {
        let url = std::env::var("DATABASE_URL")
            .context("run this with `scripts/with-postgres --durable`: DATABASE_URL is not set")?;
        let url: url::Url = url.parse()?;
        let mut conn = PgConnection::connect(url.as_str()).await?;
        for extension in ["pg_stat_statements", "pg_walinspect"] {
            sqlx::query(sqlx::AssertSqlSafe(format!("CREATE EXTENSION IF NOT EXISTS {extension}")))
                .execute(&mut conn)
                .await
                .context("PostgreSQL 15 or newer with its contrib modules is needed")?;
        }
        let file: String = sqlx::query_scalar("SELECT pg_read_file('postmaster.pid')")
            .fetch_one(&mut conn)
            .await?;
        let pid = file.lines().next().unwrap_or_default();
        let postmaster = pid.trim().parse().context("postmaster.pid")?;
        Ok(Self { url, postmaster, conn: Mutex::new(conn) })
    }

    pub async fn connect(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect(self.url.as_str()).await?)
    }

    pub async fn version(&self) -> Result<String> {
        let sql = "SELECT SPLIT_PART(CURRENT_SETTING('server_version'), ' ', 1)";
        Ok(sqlx::query_scalar(sql).fetch_one(&mut self.connect().await?).await?)
    }

    /// How the durability of commits is set.
    pub async fn durability(&self) -> Result<String> {
        let sql = "SELECT 'fsync=' || CURRENT_SETTING('fsync') || ', synchronous_commit=' ||
            CURRENT_SETTING('synchronous_commit')";
        Ok(sqlx::query_scalar(sql).fetch_one(&mut self.connect().await?).await?)
    }

    /// A new, empty database; its URL.
    pub async fn create(&self, name: &str) -> Result<url::Url> {
        let sql = format!("CREATE DATABASE {name}");
        sqlx::query(sqlx::AssertSqlSafe(sql)).execute(&mut self.connect().await?).await?;
        let mut url = self.url.clone();
        url.set_path(name);
        Ok(url)
    }

    /// Bytes on disk.
    pub async fn size(&self, name: &str) -> Result<i64> {
        let mut conn = self.connect().await?;
        sqlx::query("CHECKPOINT").execute(&mut conn).await?;
        Ok(sqlx::query_scalar("SELECT pg_database_size($1)")
            .bind(name)
            .fetch_one(&mut conn)
            .await?)
    }

    /// What `pid` and, if it has one, its database have cost so far: before something is measured.
    pub async fn read_before(&self, pid: u32, database: Option<&str>) -> Result<Reading> {
        let (statements, lsn) = self.written(database).await?;
        let (own, postgres) = self.times(pid, database)?;
        Ok(Reading { own, postgres, statements, lsn })
    }

    /// [`Cluster::read_before`], after it was: neither reading is part of what lies between them.
    pub async fn read_after(&self, pid: u32, database: Option<&str>) -> Result<Reading> {
        let (own, postgres) = self.times(pid, database)?;
        let (statements, lsn) = self.written(database).await?;
        Ok(Reading { own, postgres, statements, lsn })
    }

    fn times(&self, pid: u32, database: Option<&str>) -> Result<(Duration, Duration)> {
        let postgres = if database.is_some() { self.ticks()? } else { 0 };
        Ok((processor_time(pid)?, TICK * postgres))
    }

    /// Statements so far, and where the write-ahead log ends.
    async fn written(&self, database: Option<&str>) -> Result<(i64, Option<String>)> {
        let Some(database) = database else { return Ok((0, None)) };
        Ok(sqlx::query_as(
            "SELECT COALESCE((
                SELECT SUM(calls)::BIGINT FROM pg_stat_statements AS s
                JOIN pg_database AS d ON d.oid = s.dbid WHERE d.datname = $1
            ), 0), pg_current_wal_flush_lsn()::TEXT",
        )
        .bind(database)
        .fetch_one(&mut *self.conn.lock().await)
        .await?)
    }

    /// When greenshield logged those of these events that it did: seconds since 1970.
    pub async fn logged_at(&self, database: &str, events: &[String]) -> Result<Vec<(String, f64)>> {
        let mut url = self.url.clone();
        url.set_path(database);
        let logged = sqlx::query_as(
            "SELECT event_id, EXTRACT(EPOCH FROM MIN(logged_at))::FLOAT8
            FROM event_log JOIN events USING (event_seq)
            WHERE event_id = ANY($1)
            GROUP BY event_id",
        );
        let mut conn = PgConnection::connect(url.as_str()).await?;
        Ok(logged.bind(events).fetch_all(&mut conn).await?)
    }

    /// What lies between two readings.
    pub async fn cost(&self, from: &Reading, to: &Reading) -> Result<Cost> {
        let mut commits = 0;
        if let (Some(from), Some(to)) = (&from.lsn, &to.lsn) {
            commits = sqlx::query_scalar(
                "SELECT COALESCE(SUM(count), 0)::BIGINT
                FROM pg_get_wal_stats($1::PG_LSN, $2::PG_LSN, TRUE)
                WHERE \"resource_manager/record_type\" = 'Transaction/COMMIT'",
            )
            .bind(from)
            .bind(to)
            .fetch_one(&mut *self.conn.lock().await)
            .await?;
        }
        Ok(Cost {
            own: to.own.saturating_sub(from.own),
            postgres: to.postgres.saturating_sub(from.postgres),
            statements: to.statements - from.statements,
            commits,
        })
    }

    /// Ticks of the postmaster, its children, and those of its children that have ended.
    fn ticks(&self) -> Result<u32> {
        let postmaster = ticks(self.postmaster)?;
        let children = processes()?.into_iter().filter(|(_, parent)| *parent == self.postmaster);
        let children = children.filter_map(|(pid, _)| Some(ticks(pid).ok()?.own));
        Ok(postmaster.own + postmaster.reaped + children.sum::<u32>())
    }
}

struct Ticks {
    parent: u32,
    own: u32,
    /// Of children that have ended and were waited for.
    reaped: u32,
}

fn ticks(pid: u32) -> Result<Ticks> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name stands in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(") ").context("/proc/PID/stat")?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let number = |index: usize| -> u32 {
        fields.get(index).and_then(|field| field.parse().ok()).unwrap_or_default()
    };
    Ok(Ticks { parent: number(1), own: number(11) + number(12), reaped: number(13) + number(14) })
}

/// All processes with their parents.
fn processes() -> Result<HashMap<u32, u32>> {
    let entries = fs::read_dir("/proc")?.filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(pids.filter_map(|pid: u32| Some((pid, ticks(pid).ok()?.parent))).collect())
}

/// Processor time of a process so far.
pub fn processor_time(pid: u32) -> Result<Duration> {
    Ok(TICK * ticks(pid)?.own)
}

/// Memory of a process that is in use now, in MiB.
pub fn resident_mib(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: u32 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(f64::from(kib) / 1024.0)
}
