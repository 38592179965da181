//! A fresh database for every world.

use std::{env, fs, path::Path, process::Command, thread, time::Duration};

use anyhow::{Context as _, Result, ensure};
use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, PgPool, Row as _, postgres::PgPoolOptions,
};
use url::Url;

use super::random;

/// A database named `gs_<process id>_<random>`, dropped at the end.
pub struct Database {
    server: Url,
    name: String,
}

impl Database {
    pub async fn create() -> Result<Self> {
        let server = env::var("GREENSHIELD_TEST_DATABASE_URL")
            .or_else(|_| env::var("DATABASE_URL"))
            .context(
                "Tests need a PostgreSQL. Run them with scripts/test, or name a server on which \
                 they may create databases in GREENSHIELD_TEST_DATABASE_URL.",
            )?;
        let server: Url = server.parse().context("GREENSHIELD_TEST_DATABASE_URL")?;
        let name = format!("gs_{}_{}", std::process::id(), random::suffix());
        let mut connection = PgConnection::connect(server.as_str()).await?;
        drop_orphans(&mut connection).await?;
        sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&mut connection)
            .await?;
        Ok(Self { server, name })
    }

    /// The URL to give to a program.
    pub fn url(&self) -> Url {
        let mut url = self.server.clone();
        url.set_path(&self.name);
        url
    }

    pub async fn pool(&self) -> Result<PgPool> {
        pool(&self.url()).await
    }
}

/// A small pool for the calling test; pools are not to be shared between runtimes.
pub async fn pool(url: &Url) -> Result<PgPool> {
    let options = PgPoolOptions::new().max_connections(4);
    Ok(options.acquire_timeout(Duration::from_secs(10)).connect(url.as_str()).await?)
}

/// `pg_dump` of a database into a file.
pub fn dump(database: &Url, file: &Path) -> Result<()> {
    run(program("pg_dump")
        .args(["--format=custom", "--dbname", database.as_str(), "--file"])
        .arg(file))
}

/// `pg_restore` of such a file into an empty database.
pub fn restore(file: &Path, database: &Url) -> Result<()> {
    run(program("pg_restore").args(["--exit-on-error", "--dbname", database.as_str()]).arg(file))
}

/// A program of the newest PostgreSQL here; Debian keeps them out of the way.
fn program(name: &str) -> Command {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .map(|version| version.path().join("bin").join(name))
        .filter(|program| program.exists())
        .max();
    Command::new(newest.unwrap_or_else(|| name.into()))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    Ok(())
}

/// A killed test process, and a world shared by a whole process, drop nothing: the next process
/// does it for them. Without FORCE: what is still in use stays.
async fn drop_orphans(connection: &mut PgConnection) -> Result<()> {
    let rows = sqlx::query(
        "SELECT datname::text, split_part(datname, '_', 2) FROM pg_database \
         WHERE datname ~ '^gs_[0-9]+_[0-9a-f]{12}$'",
    )
    .fetch_all(&mut *connection)
    .await?;
    for row in rows {
        let (name, owner): (String, String) = (row.get(0), row.get(1));
        if !std::path::Path::new("/proc").join(owner).exists() {
            let drop = format!("DROP DATABASE IF EXISTS {name}");
            let _ = sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut *connection).await;
        }
    }
    Ok(())
}

impl Drop for Database {
    /// Best effort, on a thread of its own: a runtime may be around us, and may be shutting down.
    fn drop(&mut self) {
        let server = self.server.clone();
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let dropped = thread::spawn(move || -> Result<()> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut connection = PgConnection::connect(server.as_str()).await?;
                sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut connection).await?;
                Ok(())
            })
        });
        let _ = dropped.join();
    }
}
