//! From what was written to what can be relied on.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ipnet::IpNet;
use secrecy::{ExposeSecret as _, SecretBox, SecretString};
use url::Url;
use zeroize::Zeroizing;

use super::{
    Appservice, Bots, Config, ConfigError, Database, Homeserver, InvitePolicy, Limits, Log,
    Operator, Public, Sealing, Signup, Workers, raw,
};

/// The file that is being checked: makes errors that name it.
#[derive(Clone, Copy)]
struct File<'a>(&'a Path);

pub(super) fn config(raw: raw::Raw, path: &Path) -> Result<Config, ConfigError> {
    let file = File(path);
    Ok(Config {
        path: path.to_owned(),
        homeserver: homeserver(file, raw.homeserver)?,
        appservice: appservice(file, raw.appservice)?,
        public: public(file, &raw.public)?,
        operator: Operator { listen: file.address("operator.listen", &raw.operator.listen)? },
        database: database(file, raw.database)?,
        sealing: Sealing { key: sealing_key(file, raw.sealing)? },
        bots: bots(file, raw.bots)?,
        signup: signup(file, &raw.signup)?,
        limits: limits(file, &raw.limits)?,
        workers: workers(file, &raw.workers)?,
        log: log(file, raw.log)?,
    })
}

fn homeserver(file: File<'_>, raw: raw::Homeserver) -> Result<Homeserver, ConfigError> {
    const URL_CURE: &str = "set it to where the homeserver's client API is, such as \
                            `http://127.0.0.1:8008`";
    const NAME_CURE: &str = "set it to the part after the colon in your users' ids, such as \
                             `example.org`";
    let url = raw.url.ok_or_else(|| file.invalid("homeserver.url", "is missing", URL_CURE))?;
    let name = raw
        .server_name
        .ok_or_else(|| file.invalid("homeserver.server_name", "is missing", NAME_CURE))?;
    Ok(Homeserver {
        url: file.url("homeserver.url", &url)?,
        server_name: file.parse("homeserver.server_name", &name, NAME_CURE)?,
        timeout: Duration::from_secs(file.at_least(
            "homeserver.timeout_seconds",
            raw.timeout_seconds,
            1,
            "an answer takes its time",
        )?),
    })
}

fn appservice(file: File<'_>, raw: raw::Appservice) -> Result<Appservice, ConfigError> {
    if raw.id.trim().is_empty() {
        return Err(file.invalid("appservice.id", "is empty", "leave it out, or give a word"));
    }
    Ok(Appservice {
        listen: file.address("appservice.listen", &raw.listen)?,
        url: file.url("appservice.url", &raw.url)?,
        registration_file: file.resolve(&raw.registration_file),
        id: raw.id,
    })
}

fn public(file: File<'_>, raw: &raw::Public) -> Result<Public, ConfigError> {
    let like = "`127.0.0.1`, `10.0.0.0/8` or `2001:db8::/32`";
    let proxies: Vec<Proxies> = file.all("public.trusted_proxies", &raw.trusted_proxies, like)?;
    Ok(Public {
        listen: file.address("public.listen", &raw.listen)?,
        base_url: file.url("public.base_url", &raw.base_url)?,
        trusted_proxies: proxies.into_iter().map(|proxies| proxies.0).collect(),
    })
}

/// An address, or a network of them.
struct Proxies(IpNet);

impl FromStr for Proxies {
    type Err = ipnet::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse::<IpAddr>() {
            Ok(addr) => Ok(Self(addr.to_canonical().into())),
            Err(_) => text.parse().map(Self),
        }
    }
}

fn database(file: File<'_>, raw: raw::Database) -> Result<Database, ConfigError> {
    const CURE: &str = "write it like `postgres://user:password@host:5432/greenshield`";
    let url = file.secret("database.url", raw.url, raw.url_file)?;
    let scheme = Url::parse(url.expose_secret()).map(|u| u.scheme().to_owned());
    if !matches!(scheme.as_deref(), Ok("postgres" | "postgresql")) {
        return Err(file.invalid("database.url", "is no PostgreSQL URL", CURE));
    }
    let max_connections = file.at_least(
        "database.max_connections",
        raw.max_connections,
        2,
        "one listens for others",
    )?;
    Ok(Database { url, max_connections })
}

fn sealing_key(file: File<'_>, raw: raw::Sealing) -> Result<SecretBox<[u8; 32]>, ConfigError> {
    let text = file.secret("sealing.key", raw.key, raw.key_file)?;
    wrapping_key(text.expose_secret()).ok_or_else(|| {
        file.invalid(
            "sealing.key",
            "is not the base64 of 32 bytes",
            "make one with `openssl rand -base64 32`",
        )
    })
}

/// A sealing key as it is written: the base64 of 32 bytes, white space around it apart.
#[must_use]
pub fn wrapping_key(text: &str) -> Option<SecretBox<[u8; 32]>> {
    let bytes = STANDARD.decode(text.trim()).map(Zeroizing::new).ok()?;
    let key: [u8; 32] = bytes.as_slice().try_into().ok()?;
    Some(SecretBox::new(Box::new(key)))
}

fn bots(file: File<'_>, raw: raw::Bots) -> Result<Bots, ConfigError> {
    let prefix = &raw.localpart_prefix;
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._=/-".contains(&b);
    if !(1..=32).contains(&prefix.len()) || !prefix.bytes().all(legal) {
        return Err(file.invalid(
            "bots.localpart_prefix",
            "cannot begin a Matrix localpart",
            "use 1 to 32 characters of `a-z 0-9 . _ = / -`",
        ));
    }
    let invite_allow = file.all("bots.invite_allow", &raw.invite_allow, "`@user:example.org`")?;
    if raw.invite_policy == InvitePolicy::List && invite_allow.is_empty() {
        return Err(file.invalid(
            "bots.invite_allow",
            "is empty while `bots.invite_policy` is `list`",
            "name the users whose invitations bots accept",
        ));
    }
    Ok(Bots {
        invite_policy: raw.invite_policy,
        invite_allow,
        verification_policy: file.parse(
            "bots.verification_policy",
            &raw.verification_policy,
            "write `auto`, `owner` or `off` (in quotes: YAML takes a bare off for false)",
        )?,
        responder: raw.responder,
        localpart_prefix: raw.localpart_prefix,
    })
}

fn signup(file: File<'_>, raw: &raw::Signup) -> Result<Signup, ConfigError> {
    const CURE: &str = "write a room id such as `!abc:example.org`, not an alias";
    let space = raw.space.as_deref();
    Ok(Signup {
        enabled: raw.enabled,
        space: space.map(|id| file.parse("signup.space", id, CURE)).transpose()?,
        rooms: file.all("signup.rooms", &raw.rooms, "`!abc:example.org` (an id, not an alias)")?,
    })
}

fn limits(file: File<'_>, raw: &raw::Limits) -> Result<Limits, ConfigError> {
    const TRANSACTION: &str = "a homeserver sends up to 100 events of 64 KiB and more at a time";
    Ok(Limits {
        transaction_body_bytes: file.at_least(
            "limits.transaction_body_bytes",
            raw.transaction_body_bytes,
            8 << 20,
            TRANSACTION,
        )?,
        request_body_bytes: file.at_least(
            "limits.request_body_bytes",
            raw.request_body_bytes,
            8 << 10,
            "a signup with its intro must fit",
        )?,
        signup_attempts_per_minute: file.at_least(
            "limits.signup_attempts_per_minute",
            raw.signup_attempts_per_minute,
            1,
            "to allow none, set `signup.enabled` to false",
        )?,
    })
}

fn workers(file: File<'_>, raw: &raw::Workers) -> Result<Workers, ConfigError> {
    let lease = file.at_least(
        "workers.lease_seconds",
        raw.lease_seconds,
        5,
        "a busy process must have the time to renew it",
    )?;
    Ok(Workers {
        concurrency: file.at_least("workers.concurrency", raw.concurrency, 1, "work needs one")?,
        machine_cache_mib: file.at_least(
            "workers.machine_cache_mib",
            raw.machine_cache_mib,
            1,
            "a machine that is opened anew for every message costs more than it saves",
        )?,
        lease: Duration::from_secs(lease),
    })
}

fn log(file: File<'_>, raw: raw::Log) -> Result<Log, ConfigError> {
    tracing_subscriber::EnvFilter::try_new(&raw.filter).map_err(|_| {
        file.invalid("log.filter", "is no filter", "write it like `greenshield=info,warn`")
    })?;
    Ok(Log { format: raw.format, filter: raw.filter })
}

impl File<'_> {
    fn invalid(self, key: &str, problem: &str, cure: &str) -> ConfigError {
        ConfigError::Invalid {
            path: self.0.to_owned(),
            key: key.to_owned(),
            problem: problem.to_owned(),
            cure: cure.to_owned(),
        }
    }

    fn parse<T: FromStr>(self, key: &str, text: &str, cure: &str) -> Result<T, ConfigError> {
        // What is there is not repeated: a secret may stand in the wrong place.
        text.parse().map_err(|_| self.invalid(key, "does not fit", cure))
    }

    fn all<T: FromStr>(
        self,
        key: &str,
        texts: &[String],
        like: &str,
    ) -> Result<Vec<T>, ConfigError> {
        let cure = format!("write each like {like}");
        let item = |(n, text): (usize, &String)| self.parse(&format!("{key}[{n}]"), text, &cure);
        texts.iter().enumerate().map(item).collect()
    }

    fn at_least<T: Copy + PartialOrd + std::fmt::Display>(
        self,
        key: &str,
        value: T,
        least: T,
        why: &str,
    ) -> Result<T, ConfigError> {
        if value < least {
            let problem = format!("cannot be {value}");
            return Err(self.invalid(key, &problem, &format!("give at least {least} ({why})")));
        }
        Ok(value)
    }

    fn address(self, key: &str, text: &str) -> Result<SocketAddr, ConfigError> {
        self.parse(key, text, "write an IP address and a port, such as `127.0.0.1:29400`")
    }

    fn url(self, key: &str, text: &str) -> Result<Url, ConfigError> {
        let cure = "write it like `https://example.org` or `http://127.0.0.1:8008`, without user, \
                    password and query";
        let url: Url = self.parse(key, text, cure)?;
        let nobody = url.username().is_empty() && url.password().is_none();
        let plain = url.query().is_none() && url.fragment().is_none() && nobody;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() || !plain {
            return Err(self.invalid(key, "does not fit", cure));
        }
        Ok(url)
    }

    fn resolve(self, path: &Path) -> PathBuf {
        self.0.parent().unwrap_or_else(|| Path::new("")).join(path)
    }

    /// The secret `key`, which may be given in place or as a file.
    fn secret(
        self,
        key: &str,
        given: Option<String>,
        from: Option<PathBuf>,
    ) -> Result<SecretString, ConfigError> {
        let cure = format!("give it there, or name a file that holds it as `{key}_file`");
        let text = match (given, from) {
            (Some(_), Some(_)) => {
                let cure = format!("remove `{key}` or `{key}_file`");
                return Err(self.invalid(key, "is given twice", &cure));
            }
            (None, None) => return Err(self.invalid(key, "is missing", &cure)),
            (Some(text), None) => Zeroizing::new(text),
            (None, Some(path)) => {
                let path = self.resolve(&path);
                Zeroizing::new(std::fs::read_to_string(&path).map_err(|error| {
                    // Its name is not repeated: it may be the secret itself, in the wrong place.
                    let problem = format!("names a file that cannot be read ({error})");
                    let cure = "make that file, or name another";
                    self.invalid(&format!("{key}_file"), &problem, cure)
                })?)
            }
        };
        let text = text.trim();
        if text.is_empty() {
            return Err(self.invalid(key, "is empty", &cure));
        }
        Ok(text.to_owned().into())
    }
}
