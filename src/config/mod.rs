//! The configuration file: strict, typed, and every mistake told with its key and its cure.
//!
//! [`Config::load`] reads a YAML file into `raw` (what may be written) and turns it into the types
//! here (what can be relied on). An unknown key is an error, so that a misspelt one is never silently
//! ignored. Secrets are given as `x`, or as `x_file` naming a file that holds nothing else; relative
//! paths are relative to the configuration file.

mod check;
mod error;
mod raw;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId};
use secrecy::{SecretBox, SecretString};
use serde::{Deserialize, Serialize};
use url::Url;

pub use self::{check::wrapping_key, error::ConfigError};
use crate::model::VerificationPolicy;

/// Everything that an operator decides.
#[derive(Debug)]
pub struct Config {
    /// The file that it was read from, for messages.
    pub path: PathBuf,
    /// The homeserver that we serve.
    pub homeserver: Homeserver,
    /// What the homeserver calls.
    pub appservice: Appservice,
    /// What owners and bots call.
    pub public: Public,
    /// What operators call.
    pub operator: Operator,
    /// The database.
    pub database: Database,
    /// Sealing at rest.
    pub sealing: Sealing,
    /// How bots behave.
    pub bots: Bots,
    /// How bots come to be.
    pub signup: Signup,
    /// How much is accepted.
    pub limits: Limits,
    /// How much is done at a time.
    pub workers: Workers,
    /// What is logged.
    pub log: Log,
}

/// The homeserver that we serve.
#[derive(Debug)]
pub struct Homeserver {
    /// Where its client-server API is.
    pub url: Url,
    /// The part after the colon in its users' ids.
    pub server_name: OwnedServerName,
    /// How long it may take for one call.
    pub timeout: Duration,
}

/// What the homeserver calls.
#[derive(Debug)]
pub struct Appservice {
    /// Our id at the homeserver.
    pub id: String,
    /// Where we listen for it.
    pub listen: SocketAddr,
    /// Where it finds us.
    pub url: Url,
    /// The file that it was given too.
    pub registration_file: PathBuf,
}

/// What owners and bots call.
#[derive(Debug)]
pub struct Public {
    /// Where we listen for them.
    pub listen: SocketAddr,
    /// Where they find us.
    pub base_url: Url,
    /// Who is believed about whom they speak for.
    pub trusted_proxies: Vec<IpNet>,
}

/// What operators call.
#[derive(Debug)]
pub struct Operator {
    /// Where we listen for them.
    pub listen: SocketAddr,
}

/// The database.
#[derive(Debug)]
pub struct Database {
    /// Where it is, with the password.
    pub url: SecretString,
    /// The most connections that one process opens.
    pub max_connections: u32,
}

/// Sealing at rest.
#[derive(Debug)]
pub struct Sealing {
    /// The key that wraps the database's data key.
    pub key: SecretBox<[u8; 32]>,
}

/// How bots behave.
#[derive(Debug)]
pub struct Bots {
    /// How their localparts begin.
    pub localpart_prefix: String,
    /// Whose invitations they accept.
    pub invite_policy: InvitePolicy,
    /// The users of [`InvitePolicy::List`].
    pub invite_allow: Vec<OwnedUserId>,
    /// What a new bot does when it is asked to verify.
    pub verification_policy: VerificationPolicy,
    /// Whether they answer `!ping`, `!whoami` and `!help` by themselves.
    pub responder: bool,
}

/// Whose invitations bots accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InvitePolicy {
    /// Everybody's.
    Anyone,
    /// Those of users of our own homeserver.
    Homeserver,
    /// Those of the users in `bots.invite_allow`.
    List,
}

/// How bots come to be.
#[derive(Debug)]
pub struct Signup {
    /// Whether anybody can sign a bot up.
    pub enabled: bool,
    /// The space that new bots join.
    pub space: Option<OwnedRoomId>,
    /// The rooms that new bots join.
    pub rooms: Vec<OwnedRoomId>,
}

/// How much is accepted.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest transaction.
    pub transaction_body_bytes: usize,
    /// The largest other request.
    pub request_body_bytes: usize,
    /// How often in a minute one address may try a code or a token, and one code be tried.
    pub signup_attempts_per_minute: u32,
}

/// How much is done at a time.
#[derive(Clone, Copy, Debug)]
pub struct Workers {
    /// How many bots are worked at once.
    pub concurrency: usize,
    /// How much memory the machines that stay open may take together, in MiB.
    pub machine_cache_mib: usize,
    /// How long a process keeps its bots after it was last heard of.
    pub lease: Duration,
}

/// What is logged.
#[derive(Clone, Debug)]
pub struct Log {
    /// In which form.
    pub format: LogFormat,
    /// How much, in the syntax of `RUST_LOG`.
    pub filter: String,
}

/// In which form log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, one object a line.
    Json,
}

impl Config {
    /// Reads and checks the file at `path`, and the files with secrets that it names.
    ///
    /// # Errors
    ///
    /// The first mistake, with the file, the key and the cure.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// As [`Config::load`], from `text` as if it were in the file at `path`.
    ///
    /// # Errors
    ///
    /// As [`Config::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        check::config(raw::Raw::parse(text, path)?, path)
    }
}
