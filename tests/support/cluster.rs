//! A PostgreSQL of a test's own, to make it fall over and to keep it from its disk.
//!
//! PostgreSQL refuses to run as root: for root it runs as the user `postgres`.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use url::Url;

use super::{
    poll::Wait,
    ports,
    process::{Guarded, Output, Signal},
    scratch::Scratch,
};

/// Small, so that a limit on the size of files can spare the write-ahead log or hit it.
pub const WAL_SEGMENT: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// Commits are as durable as the operating system: no test pulls the plug.
const OPTIONS: [&str; 5] = [
    "listen_addresses=127.0.0.1",
    "max_connections=100",
    "fsync=off",
    "synchronous_commit=on",
    "restart_after_crash=on",
];

pub struct Cluster {
    server: Option<Guarded>,
    bin: PathBuf,
    port: u16,
    dir: Scratch,
}

impl Cluster {
    /// A new one, running, with an empty database.
    pub async fn start() -> Result<Self> {
        let mut this = Self {
            server: None,
            bin: programs()?,
            port: ports::free(),
            dir: Scratch::new("postgres")?,
        };
        if is_root() {
            run(Command::new("chown").arg("postgres").arg(this.dir.path()))?;
        }
        let mut initdb = this.program("initdb");
        initdb.arg("--pgdata").arg(this.data()).args([
            "--username=postgres",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--no-sync",
            "--wal-segsize=1",
        ]);
        run(&mut initdb)?;
        this.up().await?;
        this.admin("CREATE DATABASE greenshield").await?;
        Ok(this)
    }

    /// The database for greenshield.
    pub fn url(&self) -> Url {
        self.database("greenshield")
    }

    fn database(&self, name: &str) -> Url {
        let url = format!("postgres://postgres@127.0.0.1:{}/{name}", self.port);
        url.parse().expect("this is a URL")
    }

    /// Runs SQL, connected to another database than greenshield's.
    pub async fn admin(&self, sql: &str) -> Result<()> {
        let mut connection = PgConnection::connect(self.database("postgres").as_str()).await?;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut connection).await?;
        Ok(())
    }

    /// Starts it, and waits until it lets somebody in.
    pub async fn up(&mut self) -> Result<()> {
        let mut program = self.program("postgres");
        program.arg("-D").arg(self.data()).args(["-p", &self.port.to_string()]);
        program.arg("-c").arg(format!("unix_socket_directories={}", self.dir.path().display()));
        for option in OPTIONS {
            program.args(["-c", option]);
        }
        let log = self.dir.path().join("log");
        let mut wait = Wait::new("PostgreSQL to start", PATIENCE);
        let mut server = Guarded::start("PostgreSQL", &program, &log, Output::Log)?;
        while PgConnection::connect(self.database("postgres").as_str()).await.is_err() {
            wait.again().await.with_context(|| server.log_tail())?;
            if !server.is_running() {
                // What is left of the one before may still hold its memory.
                server = Guarded::start("PostgreSQL", &program, &log, Output::Log)?;
            }
        }
        self.server = Some(server);
        Ok(())
    }

    /// It falls over where it stands, and will have to recover from its log.
    pub async fn fall(&mut self) -> Result<()> {
        let mut server = self.server.take().context("PostgreSQL is not running")?;
        server.signal(Signal::Quit);
        let mut wait = Wait::new("PostgreSQL to end", PATIENCE);
        while server.is_running() {
            wait.again().await.with_context(|| server.log_tail())?;
        }
        Ok(())
    }

    /// The disk is well again. If it gave up meanwhile, whoever looks after it starts it again.
    pub async fn recover(&mut self) -> Result<()> {
        let mut wait = Wait::new("PostgreSQL to recover", PATIENCE);
        loop {
            if !self.server.as_mut().is_some_and(Guarded::is_running) {
                return self.up().await;
            }
            self.limit_files(None)?;
            if PgConnection::connect(self.database("postgres").as_str()).await.is_ok() {
                return Ok(());
            }
            wait.again().await?;
        }
    }

    /// No write of it gets beyond so many bytes of a file: the kernel refuses, as it does when a disk
    /// is full, for as long as this is so. Every process of it is told.
    pub fn limit_files(&self, bytes: Option<u64>) -> Result<()> {
        let server = self.server.as_ref().context("PostgreSQL is not running")?;
        let limit = bytes.map_or_else(|| "unlimited".to_owned(), |bytes| bytes.to_string());
        let tell = |pid: u32| {
            let mut prlimit = as_owner("prlimit");
            prlimit.args(["--pid", &pid.to_string(), &format!("--fsize={limit}:")]);
            anyhow::Ok(prlimit.output()?.status.success())
        };
        // The server first: what it starts from now on has its limit.
        let mut told = tell(server.pid())?;
        for child in children(server.pid())? {
            // Some end just now.
            told |= tell(child)?;
        }
        ensure!(told, "no process of PostgreSQL could be limited");
        Ok(())
    }

    /// What it has logged since [`Self::forget_log`].
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// Empties the log. What is larger than a limit of [`Self::limit_files`] takes no line about it.
    pub fn forget_log(&self) -> Result<()> {
        fs::File::create(self.dir.path().join("log"))?;
        Ok(())
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn program(&self, name: &str) -> Command {
        let mut command = as_owner(self.bin.join(name));
        command.current_dir(self.dir.path());
        command
    }
}

/// A program run by the user whose PostgreSQL it is.
fn as_owner(program: impl AsRef<OsStr>) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]).arg(program);
    command
}

/// Where the newest PostgreSQL of this machine has its programs.
fn programs() -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    let version = |bin: &PathBuf| {
        let name = bin.parent()?.file_name()?.to_str()?;
        name.parse::<u32>().ok()
    };
    found.sort_by_key(version);
    if let Some(bin) = found.pop() {
        return Ok(bin);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut paths = std::env::split_paths(&path);
    match paths.find(|path| path.join("initdb").exists()) {
        Some(bin) => Ok(bin),
        None => bail!("PostgreSQL's initdb is missing: run scripts/setup"),
    }
}

fn children(pid: u32) -> Result<Vec<u32>> {
    let parent_of = |stat: &Path| -> Option<u32> {
        let stat = fs::read_to_string(stat).ok()?;
        stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
    };
    let processes = fs::read_dir("/proc")?.filter_map(|entry| {
        let entry = entry.ok()?;
        let child = entry.file_name().to_str()?.parse().ok()?;
        (parent_of(&entry.path().join("stat"))? == pid).then_some(child)
    });
    Ok(processes.collect())
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    Ok(())
}
