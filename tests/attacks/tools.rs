//! What attackers need, and what tells whether they got anywhere.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    fast::scene::{STEP_PANICS, Scene},
    support::greenshield::Greenshield,
};

/// A YAML file of greenshield's.
pub fn yaml(path: &Path) -> Result<Value> {
    serde_yaml::from_str(&fs::read_to_string(path)?).with_context(|| path.display().to_string())
}

/// Changes the configuration; greenshield must be started again to heed it.
pub fn configure(greenshield: &Greenshield, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut config = yaml(greenshield.config())?;
    change(&mut config);
    Ok(fs::write(greenshield.config(), serde_yaml::to_string(&config)?)?)
}

/// A token of the registration file.
pub fn token(greenshield: &Greenshield, name: &str) -> Result<String> {
    let registration = yaml(&greenshield.registration())?;
    registration[name].as_str().map(ToOwned::to_owned).context("a registration has tokens")
}

/// A message as a transaction brings it for this device.
pub fn addressed(message: &Value, user: &str, device: &str) -> Value {
    let mut message = message.clone();
    message["to_user_id"] = user.into();
    message["to_device_id"] = device.into();
    message
}

/// Everything that greenshield logged so far.
pub fn log(greenshield: &Greenshield) -> Result<String> {
    Ok(String::from_utf8_lossy(&fs::read(greenshield.log())?).into_owned())
}

/// The running program's memory, in MiB.
pub fn memory(greenshield: &mut Greenshield) -> Result<f64> {
    status(greenshield, "VmRSS:")
}

/// The most that it has had since it began, or since [`forget_peak`], in MiB.
pub fn peak_memory(greenshield: &mut Greenshield) -> Result<f64> {
    status(greenshield, "VmHWM:")
}

fn status(greenshield: &mut Greenshield, what: &'static str) -> Result<f64> {
    let pid = greenshield.process().context("greenshield runs")?.pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(what)).context(what)?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// The peak is what the program has now.
pub fn forget_peak(greenshield: &mut Greenshield) -> Result<()> {
    let pid = greenshield.process().context("greenshield runs")?.pid();
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// Nothing panicked, and no bot is in trouble.
pub async fn unharmed(scene: &Scene) -> Result<()> {
    ensure!(scene.metric(STEP_PANICS).await? == 0.0, "a step panicked");
    let log = log(&scene.greenshield)?;
    let panicked: Vec<&str> = log.lines().filter(|line| line.contains("panicked")).collect();
    ensure!(panicked.is_empty(), "{panicked:?}");
    let sick: Vec<String> =
        sqlx::query_scalar("SELECT last_error FROM bots WHERE last_error IS NOT NULL")
            .fetch_all(&scene.sql)
            .await?;
    ensure!(sick.is_empty(), "{sick:?}");
    Ok(())
}

/// An answer, as it came over the wire.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// The status, and the error code if it is an error in Matrix's shape.
    pub fn told(&self) -> String {
        let json = self.json();
        match (json["errcode"].as_str(), json["error"].as_str()) {
            (Some(errcode), Some(error)) if error.len() > 10 => {
                format!("{} {errcode}", self.status)
            }
            _ => self.status.to_string(),
        }
    }
}

/// Sends these bytes to a listener, and reads whatever it says until it closes.
pub async fn raw(url: &str, request: &[u8]) -> Result<Answer> {
    let mut stream = TcpStream::connect(url.trim_start_matches("http://")).await?;
    // It may answer and close before it has read everything.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut answer));
    let _ = read.await.context("no end of the answer")?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("no HTTP: {answer:?}"))?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

/// A request with these header lines and this body.
pub fn request(method: &str, path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    for header in headers {
        head.push_str(&format!("{header}\r\n"));
    }
    if !headers.iter().any(|header| header.to_lowercase().starts_with("transfer-encoding")) {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    let mut request = format!("{head}\r\n").into_bytes();
    request.extend_from_slice(body);
    request
}

/// `pg_dump --inserts` of greenshield's database.
pub fn dump(greenshield: &Greenshield) -> Result<String> {
    let url = yaml(greenshield.config())?["database"]["url"].as_str().map(ToOwned::to_owned);
    let output = Command::new(pg_dump()).args(["--inserts", "--dbname"]).args(url).output()?;
    let complained = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "pg_dump: {complained}");
    let dump = String::from_utf8(output.stdout)?;
    // Newer ones begin and end with a random word, against dumps that are made to be malicious.
    let same = dump.lines().filter(|line| !line.contains("restrict "));
    Ok(same.collect::<Vec<_>>().join("\n"))
}

/// Debian keeps it beside the server.
fn pg_dump() -> PathBuf {
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = installed.map(|entry| entry.path().join("bin/pg_dump")).collect();
    found.retain(|path| path.exists());
    found.sort();
    found.pop().unwrap_or_else(|| "pg_dump".into())
}
