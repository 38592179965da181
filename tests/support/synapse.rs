//! A real homeserver: Synapse, on loopback, with SQLite, alone in a directory of its own.
//!
//! Stopping and starting it again keeps its data, as a restart does in life.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::Deserialize;
use serde_json::{Value, json};
use sha1::Sha1;
use tokio::sync::OnceCell;

use super::{
    installed, ports,
    process::{Guarded, Output},
    random,
    scratch::Scratch,
};

/// The server name of every homeserver here.
pub const SERVER_NAME: &str = "localhost.test";

/// A first start creates the whole database schema, beside other things on two cores.
const START: Duration = Duration::from_secs(120);

/// What a human needs to log in.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub homeserver: String,
    pub user_id: String,
    pub password: String,
}

pub struct Synapse {
    port: u16,
    shared_secret: String,
    admin_token: OnceCell<String>,
    process: Option<Guarded>,
    /// After the process: a directory is removed when nobody writes to it any more.
    dir: Scratch,
}

impl Synapse {
    /// A homeserver that does not run yet, but already has its address.
    pub fn prepare() -> Result<Self> {
        let dir = Scratch::new("synapse")?;
        fs::write(dir.path().join("log.yaml"), include_str!("synapse/log.yaml"))?;
        let key = STANDARD_NO_PAD.encode(random::bytes::<32>());
        fs::write(dir.path().join("signing.key"), format!("ed25519 a_test {key}\n"))?;
        Ok(Self {
            port: ports::free(),
            shared_secret: random::secret(),
            admin_token: OnceCell::new(),
            process: None,
            dir,
        })
    }

    /// Starts it with the application services of these registration files.
    pub async fn start(&mut self, registrations: &[&Path]) -> Result<()> {
        let config = self.dir.path().join("homeserver.yaml");
        let yaml = include_str!("synapse/homeserver.yaml")
            .replace("<<server_name>>", SERVER_NAME)
            .replace("<<port>>", &self.port.to_string())
            .replace("<<dir>>", &self.dir.path().display().to_string())
            .replace("<<secret>>", &self.shared_secret)
            .replace("<<registrations>>", &serde_json::to_string(registrations)?);
        fs::write(&config, yaml)?;
        self.start_again().await
    }

    /// Starts it again as it was before [`Self::stop`] or [`Self::kill`].
    pub async fn start_again(&mut self) -> Result<()> {
        let mut program = Command::new(installed::synapse_python()?);
        program
            .args(["-m", "synapse.app.homeserver", "-c", "homeserver.yaml"])
            .current_dir(self.dir.path());
        let log = self.log();
        let process = self.process.insert(Guarded::start("Synapse", &program, &log, Output::Log)?);
        let health = format!("http://127.0.0.1:{}/health", self.port);
        process.wait_for_http(&health, START).await
    }

    /// Stops it as an administrator does.
    pub async fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("Synapse is not running")?;
        process.stop(Duration::from_secs(30)).await
    }

    /// Stops it as a power cut does.
    pub async fn kill(&mut self) -> Result<()> {
        self.process.take().context("Synapse is not running")?.kill().await
    }

    /// The running program, to freeze it or to read its log.
    pub fn process(&self) -> Option<&Guarded> {
        self.process.as_ref()
    }

    /// Its log, with a line for every request.
    pub fn log(&self) -> PathBuf {
        self.dir.path().join("synapse.log")
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn user_id(localpart: &str) -> String {
        format!("@{localpart}:{SERVER_NAME}")
    }

    /// Registers a human. The name gets a random ending: tests may share a homeserver.
    pub async fn register_human(&self, localpart: &str) -> Result<Credentials> {
        let localpart = format!("{localpart}-{}", random::suffix());
        let password = random::secret();
        self.register(&localpart, &password, false).await?;
        let user_id = Self::user_id(&localpart);
        Ok(Credentials { homeserver: self.url(), user_id, password })
    }

    /// The access token of an administrator, registered when first asked for.
    pub async fn admin_token(&self) -> Result<&str> {
        let register = async || {
            let localpart = format!("admin-{}", random::suffix());
            let account = self.register(&localpart, &random::secret(), true).await?;
            account.access_token.context("an administrator is logged in at once")
        };
        Ok(self.admin_token.get_or_try_init(register).await?)
    }

    /// Registration by shared secret, which works while registration is closed. Only an
    /// administrator gets a device from it: a human's client creates its own.
    async fn register(&self, localpart: &str, password: &str, admin: bool) -> Result<Account> {
        let url = format!("{}/_synapse/admin/v1/register", self.url());
        let http = super::http();
        let nonce: Nonce = http.get(&url).send().await?.error_for_status()?.json().await?;
        let role = if admin { "admin" } else { "notadmin" };
        let mut mac = Hmac::<Sha1>::new_from_slice(self.shared_secret.as_bytes())?;
        mac.update([&nonce.nonce, localpart, password, role].join("\0").as_bytes());
        let mac: String =
            mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        let body = json!({
            "nonce": nonce.nonce, "username": localpart, "password": password,
            "admin": admin, "mac": mac, "inhibit_login": !admin,
        });
        let response = http.post(&url).json(&body).send().await?;
        let status = response.status();
        let answer: Value = response.json().await?;
        ensure!(status.is_success(), "registering {localpart}: {status} {answer}");
        Ok(serde_json::from_value(answer)?)
    }
}

#[derive(Deserialize)]
struct Nonce {
    nonce: String,
}

#[derive(Deserialize)]
struct Account {
    access_token: Option<String>,
}
