//! The contestants, each a process of its own: greenshield as its operator runs it, and the ceiling.

use std::{
    fs,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    ceiling::NewBot,
    homeserver::{Homeserver, SERVER_NAME},
    human::Human,
    usage::{self, Cluster},
};

/// How many bots sign up at the same time.
const SIGNUPS_AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Greenshield,
    Ceiling,
}

impl Kind {
    pub const BOTH: [Self; 2] = [Self::Greenshield, Self::Ceiling];

    pub fn name(self) -> &'static str {
        match self {
            Self::Greenshield => "greenshield",
            Self::Ceiling => "ceiling",
        }
    }
}

/// A process that ends with this value.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Contestant {
    pub kind: Kind,
    pub database: Option<String>,
    process: Option<Process>,
    dir: tempfile::TempDir,
    homeserver: Homeserver,
    appservice: String,
    public: String,
    operator: String,
    http: reqwest::Client,
}

impl Contestant {
    /// Installs and starts one for `homeserver`.
    pub async fn start(kind: Kind, homeserver: &Homeserver, cluster: &Cluster) -> Result<Self> {
        let listener = || Ok::<_, anyhow::Error>(format!("127.0.0.1:{}", free_port()?));
        let mut this = Self {
            kind,
            database: None,
            process: None,
            dir: tempfile::tempdir()?,
            homeserver: homeserver.clone(),
            appservice: listener()?,
            public: listener()?,
            operator: listener()?,
            http: reqwest::Client::builder().no_proxy().build()?,
        };
        let hs_token = match kind {
            Kind::Greenshield => this.install(cluster).await?,
            Kind::Ceiling => "ceiling".to_owned(),
        };
        homeserver.connect(&format!("http://{}", this.appservice), &hs_token);
        this.launch()?;
        this.ready().await?;
        Ok(this)
    }

    /// Writes greenshield's configuration, all by default but for addresses; its `hs_token`.
    async fn install(&mut self, cluster: &Cluster) -> Result<String> {
        let name = format!("fleet_{}_{}", std::process::id(), free_port()?);
        let database = cluster.create(&name).await?;
        self.database = Some(name);
        let mut key = [0_u8; 32];
        getrandom::fill(&mut key).map_err(|error| anyhow::anyhow!("no random bytes: {error}"))?;
        let config = json!({
            "homeserver": { "url": self.homeserver.url, "server_name": SERVER_NAME },
            "appservice": { "listen": self.appservice, "url": format!("http://{}", self.appservice),
                "registration_file": "registration.yaml" },
            "public": { "listen": self.public, "base_url": format!("http://{}", self.public) },
            "operator": { "listen": self.operator },
            "database": { "url": database.as_str() },
            "sealing": { "key": base64::engine::general_purpose::STANDARD.encode(key) },
            // All bots sign up from one address.
            "limits": { "signup_attempts_per_minute": 10_000_000 },
        });
        fs::write(self.config(), serde_yaml::to_string(&config)?)?;
        self.run(&["registration"])?;
        let file = fs::read_to_string(self.dir.path().join("registration.yaml"))?;
        let registration: Value = serde_yaml::from_str(&file)?;
        let token = registration["hs_token"].as_str().context("no `hs_token`")?;
        Ok(token.to_owned())
    }

    fn config(&self) -> PathBuf {
        self.dir.path().join("config.yaml")
    }

    /// The program's log.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn greenshield(&self, arguments: &[&str]) -> Command {
        // As for the tests: another build can be named, to hold it beside this one.
        let named = std::env::var_os("GREENSHIELD_BIN");
        let program = named.unwrap_or_else(|| env!("CARGO_BIN_EXE_greenshield").into());
        let mut command = Command::new(program);
        command.args(arguments).arg("--config").arg(self.config()).current_dir(self.dir.path());
        command.env_remove("DATABASE_URL");
        command
    }

    /// Runs a subcommand of greenshield; what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.greenshield(arguments).output()?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "greenshield {arguments:?}: {complaint}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn launch(&mut self) -> Result<()> {
        let mut command = match self.kind {
            Kind::Greenshield => self.greenshield(&["serve"]),
            Kind::Ceiling => {
                let mut command = Command::new(std::env::current_exe()?);
                command.args(["ceiling", &self.homeserver.url, &self.appservice]);
                command
            }
        };
        let log = fs::File::options().create(true).append(true).open(self.log())?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.process = Some(Process(command.spawn().context("starting the contestant")?));
        Ok(())
    }

    async fn ready(&mut self) -> Result<()> {
        let url = match self.kind {
            Kind::Greenshield => format!("http://{}/health/ready", self.operator),
            Kind::Ceiling => format!("http://{}/ready", self.appservice),
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = self.http.get(&url).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            let process = self.process.as_mut().context("not running")?;
            ensure!(process.0.try_wait()?.is_none(), "it ended: {}", self.log_tail());
            ensure!(Instant::now() < deadline, "it is not ready: {}", self.log_tail());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, |process| process.0.id())
    }

    pub fn resident_mib(&self) -> Result<f64> {
        usage::resident_mib(self.pid())
    }

    /// Stops it as an operator does, and starts it again; from its start until it was ready.
    pub async fn restart(&mut self) -> Result<Duration> {
        if let Some(mut process) = self.process.take() {
            let pid = process.0.id().to_string();
            Command::new("kill").args(["-TERM", &pid]).status()?;
            tokio::task::spawn_blocking(move || process.0.wait()).await??;
        }
        let begun = Instant::now();
        self.launch()?;
        self.ready().await?;
        Ok(begun.elapsed())
    }

    /// Makes `count` bots: greenshield's by sign-ups of one human's code, the ceiling's by a word.
    pub async fn bots(&self, count: usize) -> Result<Vec<NewBot>> {
        match self.kind {
            Kind::Greenshield => self.sign_up(count).await,
            Kind::Ceiling => {
                let bots = (0..count).map(|index| NewBot {
                    user_id: format!("@bot_b{index}:{SERVER_NAME}"),
                    device_id: format!("CEILING{index}"),
                });
                let bots: Vec<NewBot> = bots.collect();
                let url = format!("http://{}/bots", self.appservice);
                let answer = self.http.post(url).json(&bots).send().await?;
                ensure!(answer.status().is_success(), "{}", answer.text().await?);
                Ok(bots)
            }
        }
    }

    async fn sign_up(&self, count: usize) -> Result<Vec<NewBot>> {
        let inviter = Human::new(&self.homeserver, "inviter").await?;
        let uses = count.to_string();
        let minted =
            self.run(&["codes", "mint", "--inviter", inviter.name(), "--uses", &uses, "--json"])?;
        let minted: Value = serde_json::from_str(&minted)?;
        let code = minted["code"].as_str().context("no code")?.to_owned();
        let mut bots = Vec::with_capacity(count);
        let mut signing_up = JoinSet::new();
        for index in 0..count {
            if signing_up.len() == SIGNUPS_AT_ONCE {
                bots.extend(signing_up.join_next().await.transpose()?.transpose()?);
            }
            let url = format!("http://{}/signup/api", self.public);
            let body = json!({ "code": code, "username": format!("b{index}") });
            let request = self.http.post(url).json(&body);
            signing_up.spawn(async move {
                let answer = request.send().await?;
                ensure!(answer.status().is_success(), "sign-up: {}", answer.text().await?);
                Ok(answer.json::<NewBot>().await?)
            });
        }
        while let Some(bot) = signing_up.join_next().await {
            bots.push(bot??);
        }
        Ok(bots)
    }

    /// Until it has nothing left to do, told by the processor time that it takes.
    pub async fn settled(&self) -> Result<()> {
        self.homeserver.pushed().await?;
        let deadline = Instant::now() + PATIENCE;
        let mut calm = 0;
        while calm < 3 {
            let before = usage::processor_time(self.pid())?;
            tokio::time::sleep(Duration::from_millis(200)).await;
            let busy = usage::processor_time(self.pid())?.saturating_sub(before);
            let quiet =
                busy <= Duration::from_millis(20) && self.homeserver.with(|s| s.queue.is_empty());
            calm = if quiet { calm + 1 } else { 0 };
            ensure!(Instant::now() < deadline, "it does not settle: {}", self.log_tail());
        }
        Ok(())
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
