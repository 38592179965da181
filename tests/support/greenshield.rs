//! The binary under test, run as its operator runs it: a config file, `registration`, `serve`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use url::Url;

use super::{
    installed, ports,
    process::{Guarded, Output},
    random,
    scratch::Scratch,
    synapse::SERVER_NAME,
};

const START: Duration = Duration::from_secs(60);

pub struct Greenshield {
    config: PathBuf,
    public: String,
    operator: String,
    appservice: String,
    process: Option<Guarded>,
    dir: Scratch,
}

impl Greenshield {
    /// Writes `config.yaml` and lets greenshield write its registration. Nothing runs yet: the
    /// homeserver must read the registration first.
    pub fn install(homeserver: &str, database: &Url) -> Result<Self> {
        let dir = Scratch::new("greenshield")?;
        let listener = || format!("127.0.0.1:{}", ports::free());
        let this = Self {
            config: dir.path().join("config.yaml"),
            public: listener(),
            operator: listener(),
            appservice: listener(),
            process: None,
            dir,
        };
        let config = json!({
            "homeserver": { "url": homeserver, "server_name": SERVER_NAME },
            "appservice": {
                "listen": this.appservice,
                "url": this.appservice_url(),
                "registration_file": "registration.yaml",
            },
            "public": { "listen": this.public, "base_url": this.public_url() },
            "operator": { "listen": this.operator },
            "database": { "url": database.as_str() },
            "sealing": { "key": random::secret() },
            "bots": { "localpart_prefix": "bot_" },
            // All scenes of a process sign up from one address.
            "limits": { "signup_attempts_per_minute": 100_000 },
        });
        fs::write(&this.config, serde_yaml::to_string(&config)?)?;
        this.run(&["registration"])?;
        let registration = this.registration();
        ensure!(registration.exists(), "greenshield wrote no {}", registration.display());
        Ok(this)
    }

    /// Another one beside this one: the same registration and sealing key, listeners of its own, and a
    /// database that is the same or a copy of it. It does not run yet.
    pub fn beside(&self, database: &Url) -> Result<Self> {
        let dir = Scratch::new("greenshield")?;
        let listener = || format!("127.0.0.1:{}", ports::free());
        let this = Self {
            config: dir.path().join("config.yaml"),
            public: listener(),
            operator: listener(),
            appservice: listener(),
            process: None,
            dir,
        };
        fs::copy(self.registration(), this.registration())?;
        fs::copy(&self.config, &this.config)?;
        this.configure(|config| {
            // `appservice.url` stays what the homeserver was told: a balancer would stand there.
            config["appservice"]["listen"] = this.appservice.clone().into();
            config["public"]["listen"] = this.public.clone().into();
            config["operator"]["listen"] = this.operator.clone().into();
            config["database"]["url"] = database.as_str().into();
        })?;
        Ok(this)
    }

    /// Changes the configuration, for the next start.
    pub fn configure(&self, change: impl FnOnce(&mut Value)) -> Result<()> {
        let mut config = serde_yaml::from_str(&fs::read_to_string(&self.config)?)?;
        change(&mut config);
        Ok(fs::write(&self.config, serde_yaml::to_string(&config)?)?)
    }

    /// The registration file, for the homeserver.
    pub fn registration(&self) -> PathBuf {
        self.dir.path().join("registration.yaml")
    }

    /// Runs `greenshield serve`, and waits until it is ready.
    pub async fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready().await
    }

    /// Runs `greenshield serve` without waiting: for tests of what it does before it is ready.
    pub fn launch(&mut self) -> Result<()> {
        let mut program = Command::new(installed::greenshield()?);
        program.args(["serve", "--config"]).arg(&self.config).current_dir(self.dir.path());
        let log = self.log();
        self.process = Some(Guarded::start("greenshield", &program, &log, Output::Log)?);
        Ok(())
    }

    pub async fn wait_ready(&mut self) -> Result<()> {
        let ready = format!("http://{}/health/ready", self.operator);
        self.process
            .as_mut()
            .context("greenshield is not running")?
            .wait_for_http(&ready, START)
            .await
    }

    /// Stops it as an operator does: SIGTERM, and time to finish.
    pub async fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("greenshield is not running")?;
        process.stop(Duration::from_secs(30)).await
    }

    /// Kills it where it stands.
    pub async fn kill9(&mut self) -> Result<()> {
        self.process.take().context("greenshield is not running")?.kill().await
    }

    pub async fn restart(&mut self) -> Result<()> {
        self.stop().await?;
        self.start().await
    }

    /// The running program, to freeze it or to look whether it still runs.
    pub fn process(&mut self) -> Option<&mut Guarded> {
        self.process.as_mut()
    }

    /// What it said last, while it runs.
    pub fn log_tail(&self) -> Option<String> {
        self.process.as_ref().map(Guarded::log_tail)
    }

    pub fn log(&self) -> PathBuf {
        self.dir.path().join("greenshield.log")
    }

    pub fn config(&self) -> &Path {
        &self.config
    }

    pub fn public_url(&self) -> String {
        format!("http://{}", self.public)
    }

    pub fn operator_url(&self) -> String {
        format!("http://{}", self.operator)
    }

    pub fn appservice_url(&self) -> String {
        format!("http://{}", self.appservice)
    }

    /// Runs a subcommand with our config, however it ends.
    pub fn output(&self, arguments: &[&str]) -> Result<std::process::Output> {
        let mut program = Command::new(installed::greenshield()?);
        program.args(arguments).arg("--config").arg(&self.config);
        Ok(program.current_dir(self.dir.path()).output()?)
    }

    /// Runs a subcommand with our config, and returns what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.output(arguments)?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let complained = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "greenshield {}: {}\n{printed}{complained}",
            arguments.join(" "),
            output.status,
        );
        Ok(printed)
    }

    /// A sign-up code for bots that this human will be the inviter of.
    pub fn mint_code(&self, inviter: &str, uses: u32) -> Result<String> {
        let uses = uses.to_string();
        let printed =
            self.run(&["codes", "mint", "--inviter", inviter, "--uses", &uses, "--json"])?;
        let minted: Value = serde_json::from_str(&printed)
            .with_context(|| format!("`codes mint --json` printed {printed}"))?;
        let code = minted["code"].as_str().with_context(|| format!("no code in {minted}"))?;
        Ok(code.to_owned())
    }

    /// Creates a bot: `POST /signup/api`.
    pub async fn signup(&self, code: &str, username: &str) -> Result<Value> {
        self.post("/signup/api", &json!({ "code": code, "username": username })).await
    }

    /// Repairs or completes a bot's identity: `POST /signup/api/crosssign`.
    pub async fn crosssign(&self, token: &str) -> Result<Value> {
        self.post("/signup/api/crosssign", &json!({ "access_token": token })).await
    }

    /// Posts JSON to the public listener. An answer that is not 2xx is an error with its body.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let url = format!("{}{path}", self.public_url());
        let response = super::http().post(&url).json(body).send().await?;
        let status = response.status();
        let answer = response.text().await?;
        ensure!(status.is_success(), "POST {path}: {status}\n{answer}");
        serde_json::from_str(&answer).with_context(|| format!("POST {path} answered {answer}"))
    }
}
