//! The registration file: what the homeserver and we agree on.
//!
//! `greenshield registration` writes it once; the homeserver's admin gives the same file to the
//! homeserver. [`Registration::check`] tells each way in which it and the configuration disagree.

use std::{
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use regex::Regex;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, Serializer};
use url::Url;

use crate::yaml;

/// How many characters our tokens have.
pub const TOKEN_LENGTH: usize = 64;
/// How many characters our unused sender's name has.
pub const SENDER_LENGTH: usize = 32;

/// What the homeserver and we agree on.
#[derive(Debug, Serialize, Deserialize)]
pub struct Registration {
    /// Our id.
    pub id: String,
    /// Where the homeserver finds us.
    pub url: String,
    /// What we show the homeserver.
    #[serde(serialize_with = "expose")]
    pub as_token: SecretString,
    /// What the homeserver shows us.
    #[serde(serialize_with = "expose")]
    pub hs_token: SecretString,
    /// The name of a user that the homeserver makes for us: random, and never used, because every bot
    /// is a user of the namespace.
    pub sender_localpart: String,
    /// Whether the homeserver limits how fast bots send.
    #[serde(default = "yes")]
    pub rate_limited: bool,
    /// To-device messages, by the name of the specification to come.
    #[serde(default)]
    pub receive_ephemeral: bool,
    /// To-device messages, by the name that Synapse knows.
    #[serde(default, rename = "de.sorunome.msc2409.push_ephemeral")]
    pub push_ephemeral: bool,
    /// Device lists and key counts.
    #[serde(default, rename = "org.matrix.msc3202")]
    pub msc3202: bool,
    /// Making devices without logging in.
    #[serde(default, rename = "io.element.msc4190")]
    pub msc4190: bool,
    /// Whose users, rooms and aliases are ours.
    pub namespaces: Namespaces,
}

/// Whose users, rooms and aliases are ours.
#[derive(Debug, Serialize, Deserialize)]
pub struct Namespaces {
    /// Users.
    #[serde(default)]
    pub users: Vec<Namespace>,
}

/// A set of ids.
#[derive(Debug, Serialize, Deserialize)]
pub struct Namespace {
    /// Whether they are ours alone.
    pub exclusive: bool,
    /// Which they are.
    pub regex: String,
}

/// What the configuration says that the registration has to say too.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// `appservice.id`.
    pub id: &'a str,
    /// `appservice.url`.
    pub url: &'a Url,
    /// `homeserver.server_name`.
    pub server_name: &'a str,
    /// `bots.localpart_prefix`.
    pub localpart_prefix: &'a str,
}

/// Why there is no usable registration.
#[derive(Debug, thiserror::Error)]
pub enum RegistrationError {
    /// It is not there.
    #[error(
        "{} is not there: write it with `greenshield registration`, then give it to the homeserver \
         (`app_service_config_files` in Synapse's homeserver.yaml)",
        .0.display()
    )]
    Absent(PathBuf),
    /// It could not be read or written.
    #[error("{} cannot be read or written: see its permissions", .0.display())]
    Io(PathBuf, #[source] std::io::Error),
    /// It is not a registration.
    #[error("{} is no registration: {problem}: mend that line, or write it anew with \
             `greenshield registration --force`", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What was wanted where, with the line; never what is there.
        problem: String,
    },
    /// One is there already.
    #[error(
        "{} is there already and is left alone: its tokens are what the homeserver knows. To replace \
         it, give --force, then give the homeserver the new file and restart it",
        .0.display()
    )]
    Exists(PathBuf),
}

impl Registration {
    /// A registration that fits `expected`, with secrets that the caller drew: two of
    /// [`TOKEN_LENGTH`], and a name of [`SENDER_LENGTH`].
    #[must_use]
    pub fn new(
        expected: Expected<'_>,
        as_token: SecretString,
        hs_token: SecretString,
        sender_localpart: String,
    ) -> Self {
        let regex = namespace_of(expected.localpart_prefix, expected.server_name);
        Self {
            id: expected.id.to_owned(),
            url: expected.url.as_str().trim_end_matches('/').to_owned(),
            as_token,
            hs_token,
            sender_localpart,
            rate_limited: false,
            receive_ephemeral: true,
            push_ephemeral: true,
            msc3202: true,
            msc4190: true,
            namespaces: Namespaces { users: vec![Namespace { exclusive: true, regex }] },
        }
    }

    /// Reads the file at `path`.
    ///
    /// # Errors
    ///
    /// If it is absent, unreadable or no registration.
    pub fn load(path: &Path) -> Result<Self, RegistrationError> {
        let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => RegistrationError::Absent(path.to_owned()),
            _ => RegistrationError::Io(path.to_owned(), error),
        })?;
        yaml::read(&text).map_err(|wrong| RegistrationError::Malformed {
            path: path.to_owned(),
            problem: match wrong.key.as_str() {
                "" => format!("it {}", wrong.problem),
                key => format!("`{key}` {}", wrong.problem),
            },
        })
    }

    /// Writes the file at `path`, readable by its owner only; one that is there is replaced only if
    /// `force`.
    ///
    /// # Errors
    ///
    /// [`RegistrationError::Exists`], or if it cannot be written.
    pub fn write(&self, path: &Path, force: bool) -> Result<(), RegistrationError> {
        let failed = |error| RegistrationError::Io(path.to_owned(), error);
        if path.exists() && !force {
            return Err(RegistrationError::Exists(path.to_owned()));
        }
        // Beside it and then moved there: nobody ever reads half a file, and the mode is that of a
        // new one.
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let beside = path.with_file_name(name);
        match std::fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&beside)
            .map_err(failed)?;
        file.write_all(self.to_yaml().as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        std::fs::rename(&beside, path).map_err(failed)
    }

    /// The file's text, secrets included.
    #[must_use]
    pub fn to_yaml(&self) -> String {
        let body = serde_yaml::to_string(self).unwrap_or_default();
        format!(
            "# Written by `greenshield registration`. Give this file to the homeserver: in Synapse,\n\
             # name it under `app_service_config_files` in homeserver.yaml. It holds secrets.\n{body}"
        )
    }

    /// Each way in which this and the configuration disagree, as a sentence that says which line to
    /// change in which file; empty if all is well.
    #[must_use]
    pub fn check(&self, expected: Expected<'_>, file: &Path, config: &Path) -> Vec<String> {
        let (file, config) = (file.display(), config.display());
        let mut wrong = Vec::new();
        if self.id != expected.id {
            wrong.push(format!(
                "`id` in {file} is `{}`, `appservice.id` in {config} is `{}`: change the latter",
                self.id, expected.id
            ));
        }
        if !Url::parse(&self.url).is_ok_and(|url| url == *expected.url) {
            wrong.push(format!(
                "`url` in {file} is not `{}`, the `appservice.url` in {config}: change the one that \
                 the homeserver cannot reach",
                expected.url
            ));
        }
        if !self.covers(&sample(expected)) {
            wrong.push(format!(
                "`namespaces.users` in {file} does not cover the users that \
                 `bots.localpart_prefix` in {config} makes: add `- {{exclusive: true, regex: '{}'}}`",
                namespace_of(expected.localpart_prefix, expected.server_name)
            ));
        }
        if self.rate_limited {
            wrong.push(format!(
                "`rate_limited` in {file} is not false: bots would be slowed down, set it to false"
            ));
        }
        for (given, name, why) in [
            (self.receive_ephemeral || self.push_ephemeral, "receive_ephemeral", "room keys"),
            (self.push_ephemeral, "de.sorunome.msc2409.push_ephemeral", "room keys from Synapse"),
            (self.msc3202, "org.matrix.msc3202", "news of devices and key counts"),
            (self.msc4190, "io.element.msc4190", "the right to make devices"),
        ] {
            if !given {
                wrong.push(format!(
                    "`{name}` in {file} is not true: without it we are not given {why}; set it to true"
                ));
            }
        }
        for (token, name) in [(&self.as_token, "as_token"), (&self.hs_token, "hs_token")] {
            if token.expose_secret().len() < 16 {
                wrong.push(format!(
                    "`{name}` in {file} is too short to be a secret: write the file anew with \
                     `greenshield registration --force`"
                ));
            }
        }
        wrong
    }

    /// Whether `user_id` lies in a user namespace.
    #[must_use]
    pub fn covers(&self, user_id: &str) -> bool {
        // Synapse matches at the beginning of the id, whether or not the pattern says so.
        self.namespaces.users.iter().any(|namespace| {
            Regex::new(&format!("^(?:{})", namespace.regex)).is_ok_and(|r| r.is_match(user_id))
        })
    }
}

/// Whether a user id is that of a bot of ours: what the namespace that we write covers.
///
/// # Errors
///
/// Only if the pattern is too large to compile.
pub fn bots(prefix: &str, server_name: &str) -> Result<Regex, regex::Error> {
    Regex::new(&namespace_of(prefix, server_name))
}

/// The pattern of all bots' ids.
fn namespace_of(prefix: &str, server_name: &str) -> String {
    format!("^@{}[a-z0-9._=/+-]+:{}$", regex::escape(prefix), regex::escape(server_name))
}

fn sample(expected: Expected<'_>) -> String {
    format!("@{}a0._=/-z:{}", expected.localpart_prefix, expected.server_name)
}

const fn yes() -> bool {
    true
}

fn expose<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn url() -> Url {
        Url::parse("http://127.0.0.1:29400").expect("a URL")
    }

    fn expected(url: &Url) -> Expected<'_> {
        Expected { id: "greenshield", url, server_name: "example.org", localpart_prefix: "bot_" }
    }

    fn registration() -> Registration {
        Registration::new(
            expected(&url()),
            "a".repeat(64).into(),
            "b".repeat(64).into(),
            "c".repeat(32),
        )
    }

    fn check(registration: &Registration) -> Vec<String> {
        registration.check(expected(&url()), Path::new("reg.yaml"), Path::new("config.yaml"))
    }

    #[test]
    fn the_example_is_what_we_write() {
        let example = include_str!("../registration.example.yaml");
        let mut ours: serde_yaml::Value =
            serde_yaml::from_str(&registration().to_yaml()).expect("YAML");
        let mut theirs: serde_yaml::Value = serde_yaml::from_str(example).expect("YAML");
        for secret in ["as_token", "hs_token", "sender_localpart"] {
            for file in [&mut ours, &mut theirs] {
                assert!(file.as_mapping_mut().expect("a map").remove(secret).is_some());
            }
        }
        assert_eq!(ours, theirs);
        let parsed: Registration = serde_yaml::from_str(example).expect("a registration");
        assert_eq!(check(&parsed), Vec::<String>::new());
    }

    #[test]
    fn the_namespace_covers_bots_and_nobody_else() {
        let ours = registration();
        assert_eq!(ours.namespaces.users[0].regex, r"^@bot_[a-z0-9._=/+-]+:example\.org$");
        assert!(ours.covers("@bot_deploy:example.org"));
        assert!(!ours.covers("@bot_:example.org"));
        assert!(!ours.covers("@robot_a:example.org"));
        assert!(!ours.covers("@bot_a:exampleXorg"));
        assert!(!ours.covers("@bot_a:example.org.evil"));
    }

    #[test]
    fn each_disagreement_names_the_line_and_the_file() {
        let mut other = registration();
        other.id = "other".to_owned();
        other.url = "http://elsewhere".to_owned();
        other.namespaces.users[0].regex = "@robot_.*".to_owned();
        other.msc4190 = false;
        other.rate_limited = true;
        let wrong = check(&other);

        assert_eq!(wrong.len(), 5, "{wrong:?}");
        for line in
            ["`id`", "`url`", "`namespaces.users`", "`io.element.msc4190`", "`rate_limited`"]
        {
            assert!(wrong.iter().any(|w| w.starts_with(line) && w.contains("reg.yaml")), "{line}");
        }
    }

    #[test]
    fn a_file_that_is_none_is_told_without_its_secrets() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("registration.yaml");
        let whole = registration().to_yaml();
        for (text, told) in [
            ("canary-token".to_owned(), "it does not fit, expected struct Registration"),
            (whole.replace("id: greenshield", "id: [canary-token]"), "`id` does not fit"),
            (whole.replace("rate_limited: false", "rate_limited: canary-token"), "`rate_limited`"),
            (whole.replace("as_token: ", "as-token: "), "missing field `as_token`"),
            (whole.replace("as_token: ", "as_token: \"canary-token"), "it is no YAML"),
        ] {
            std::fs::write(&path, &text).expect("writes");
            let error = Registration::load(&path).expect_err(&text).to_string();
            assert!(error.contains(told) && error.contains("registration.yaml"), "{error}");
            let secrets = ["canary", &"a".repeat(64), &"b".repeat(64)];
            assert!(!secrets.iter().any(|secret| error.contains(*secret)), "{error}");
        }
        let url = Url::parse("http://127.0.0.1:29400").expect("a URL");
        let mut other = registration();
        other.url = "http://user:canary@elsewhere".to_owned();
        let wrong = other.check(expected(&url), &path, Path::new("config.yaml")).concat();
        assert!(wrong.contains("`url`") && !wrong.contains("canary"), "{wrong}");
    }

    #[test]
    fn a_file_is_private_and_replaced_only_by_force() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("registration.yaml");
        assert!(matches!(Registration::load(&path), Err(RegistrationError::Absent(_))));

        registration().write(&path, false).expect("writes");
        let mode = std::fs::metadata(&path).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(check(&Registration::load(&path).expect("loads")), Vec::<String>::new());

        let again = registration().write(&path, false);
        assert!(matches!(again, Err(RegistrationError::Exists(_))));
        registration().write(&path, true).expect("replaces");
    }
}
