//! What may be written in the file: the keys and their defaults.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{ConfigError, InvitePolicy, LogFormat};
use crate::yaml::{self, Wrong};

macro_rules! section {
    ($name:ident { $($field:ident: $kind:ty = $default:expr),+ $(,)? }) => {
        // No `Debug`: some of it is secret.
        #[derive(Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub(super) struct $name {
            $(pub(super) $field: $kind,)+
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $($field: $default,)+ }
            }
        }
    };
}

section!(Raw {
    homeserver: Homeserver = Homeserver::default(),
    appservice: Appservice = Appservice::default(),
    public: Public = Public::default(),
    operator: Operator = Operator::default(),
    database: Database = Database::default(),
    sealing: Sealing = Sealing::default(),
    bots: Bots = Bots::default(),
    signup: Signup = Signup::default(),
    limits: Limits = Limits::default(),
    workers: Workers = Workers::default(),
    log: Log = Log::default(),
});

// `None` is "not given": `check` says which of them must be.

section!(Homeserver {
    url: Option<String> = None,
    server_name: Option<String> = None,
    timeout_seconds: u64 = 60,
});

section!(Appservice {
    id: String = "greenshield".to_owned(),
    listen: String = "127.0.0.1:29400".to_owned(),
    url: String = "http://127.0.0.1:29400".to_owned(),
    registration_file: PathBuf = PathBuf::from("registration.yaml"),
});

section!(Public {
    listen: String = "127.0.0.1:29401".to_owned(),
    base_url: String = "http://127.0.0.1:29401".to_owned(),
    trusted_proxies: Vec<String> = vec!["127.0.0.0/8".to_owned(), "::1".to_owned()],
});

section!(Operator { listen: String = "127.0.0.1:29402".to_owned() });

section!(Database {
    url: Option<String> = None,
    url_file: Option<PathBuf> = None,
    max_connections: u32 = 16,
});

section!(Sealing {
    key: Option<String> = None,
    key_file: Option<PathBuf> = None,
});

section!(Bots {
    localpart_prefix: String = "bot_".to_owned(),
    invite_policy: InvitePolicy = InvitePolicy::Homeserver,
    invite_allow: Vec<String> = Vec::new(),
    verification_policy: String = "auto".to_owned(),
    responder: bool = true,
});

section!(Signup {
    enabled: bool = true,
    space: Option<String> = None,
    rooms: Vec<String> = Vec::new(),
});

section!(Limits {
    transaction_body_bytes: usize = 52_428_800,
    request_body_bytes: usize = 65_536,
    signup_attempts_per_minute: u32 = 10,
});

section!(Workers {
    concurrency: usize = 64,
    machine_cache_mib: usize = 192,
    lease_seconds: u64 = 15,
});

section!(Log {
    format: LogFormat = LogFormat::Text,
    filter: String = "greenshield=info".to_owned(),
});

impl Raw {
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        yaml::read(text).map_err(|Wrong { key, problem }| ConfigError::Malformed {
            path: path.to_owned(),
            key: if key.is_empty() { "the file".to_owned() } else { format!("`{key}`") },
            problem,
        })
    }
}
