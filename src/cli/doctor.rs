//! `greenshield doctor`: everything that must be right, and what to change where it is not.

use std::{path::Path, time::Duration};

use clap::Args;
use secrecy::ExposeSecret as _;
use serde::Serialize;
use tokio::net::TcpStream;

use super::{
    error::{CliError, Kind},
    output, registration,
};
use crate::{
    config::Config,
    homeserver::{As, Homeserver, HomeserverError},
    registration::Registration,
    secret::{self, Alphabet},
    store::{
        Store,
        open::{self, OpenError},
        place::{self, Whereabouts},
    },
    telemetry::chain,
};

const EXAMPLES: &str = "\
Examples:
  greenshield doctor
  greenshield doctor --json | jq '.checks[] | select(.ok == false)'

Exit code: 0 if all is well, else that of the first check that failed: 3 configuration or
registration, 4 database, 5 homeserver.";

#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Arguments {
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

/// One thing that must be right.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    /// `None`: it could not be looked at.
    ok: Option<bool>,
    /// What is so; if it is wrong, what to change in which file.
    detail: String,
    #[serde(skip)]
    kind: Kind,
}

/// The checks so far; each is told as soon as it is done.
struct Report {
    json: bool,
    checks: Vec<Check>,
}

impl Report {
    fn add(&mut self, kind: Kind, name: &'static str, result: Result<String, String>) -> bool {
        let (ok, detail) = match result {
            Ok(detail) => (true, detail),
            Err(detail) => (false, detail),
        };
        self.push(Check { name, ok: Some(ok), detail, kind });
        ok
    }

    fn skip(&mut self, kind: Kind, name: &'static str, why: &str) {
        self.push(Check { name, ok: None, detail: why.to_owned(), kind });
    }

    fn push(&mut self, check: Check) {
        if !self.json {
            let mark = match check.ok {
                Some(true) => "ok  ",
                Some(false) => "FAIL",
                None => "skip",
            };
            let detail = check.detail.replace('\n', "\n       ");
            output::line(&format!("{mark}   {}: {detail}", check.name));
        }
        self.checks.push(check);
    }

    fn finish(self) -> Result<(), CliError> {
        let failed: Vec<&Check> = self.checks.iter().filter(|c| c.ok == Some(false)).collect();
        if self.json {
            let well = failed.is_empty();
            output::json(&serde_json::json!({"ok": well, "checks": self.checks}))?;
        }
        match failed.first() {
            Some(first) => Err(CliError::Unwell(failed.len(), first.kind)),
            None => Ok(()),
        }
    }
}

pub(super) async fn run(path: &Path, arguments: &Arguments) -> Result<(), CliError> {
    let mut report = Report { json: arguments.json, checks: Vec::new() };
    match Config::load(path) {
        Ok(config) => {
            report.add(Kind::Config, "config", Ok(format!("{} is valid", path.display())));
            let registration = check_registration(&config, &mut report);
            check_database(&config, &mut report).await;
            check_homeserver(&config, registration, &mut report).await;
        }
        Err(error) => {
            report.add(Kind::Config, "config", Err(chain(&error)));
        }
    }
    report.finish()
}

fn check_registration(config: &Config, report: &mut Report) -> Option<Registration> {
    let file = &config.appservice.registration_file;
    let registration = match Registration::load(file) {
        Ok(registration) => registration,
        Err(error) => {
            report.add(Kind::Config, "registration", Err(chain(&error)));
            return None;
        }
    };
    let wrong = registration.check(registration::expected(config), file, &config.path);
    let result = if wrong.is_empty() {
        Ok(format!("{} fits the configuration and covers the bots' names", file.display()))
    } else {
        Err(wrong.join("\n"))
    };
    report.add(Kind::Config, "registration", result);
    Some(registration)
}

async fn check_database(config: &Config, report: &mut Report) {
    let url = config.database.url.expose_secret();
    let opened = open::open(url, 2, &config.sealing.key).await;
    let (reached, wrong) = match opened {
        Ok(store) => {
            (Ok("reachable".to_owned()), is_copy(&store).await.then_some(OpenError::Restored))
        }
        Err(error @ (OpenError::Url(_) | OpenError::Unreachable(_))) => {
            let cure = format!("{} (in {})", chain(&error), config.path.display());
            (Err(cure), None)
        }
        Err(error) => (Ok("reachable".to_owned()), Some(error)),
    };
    if !report.add(Kind::Database, "database", reached) {
        return;
    }
    match wrong {
        None => {
            report.add(Kind::Database, "schema", Ok("up to date".to_owned()));
            report.add(Kind::Database, "sealing key", Ok("opens the database".to_owned()));
        }
        Some(error @ (OpenError::Key(_) | OpenError::NoKey)) => {
            let cure = format!("{} (in {})", chain(&error), config.path.display());
            report.add(Kind::Database, "schema", Ok("up to date".to_owned()));
            report.add(Kind::Database, "sealing key", Err(cure));
        }
        Some(error @ OpenError::Restored) => {
            report.add(Kind::Database, "schema", Ok("up to date".to_owned()));
            report.add(Kind::Database, "place", Err(chain(&error)));
        }
        Some(error) => {
            report.add(Kind::Database, "schema", Err(chain(&error)));
        }
    }
}

async fn is_copy(store: &Store) -> bool {
    let Ok(mut conn) = store.connection().await else { return false };
    matches!(place::whereabouts(&mut conn).await, Ok(Whereabouts::Copy))
}

async fn check_homeserver(
    config: &Config,
    registration: Option<Registration>,
    report: &mut Report,
) {
    const KIND: Kind = Kind::Homeserver;
    let Some(registration) = registration else {
        report.skip(KIND, "homeserver", "needs a registration");
        return;
    };
    let as_token = registration.as_token.clone();
    let at = &config.homeserver;
    let homeserver = match Homeserver::new(&at.url, as_token, at.timeout) {
        Ok(homeserver) => homeserver,
        Err(error) => {
            report.add(KIND, "homeserver", Err(chain(&error)));
            return;
        }
    };
    let versions = homeserver.versions().await;
    let versions = versions
        .map(|versions| {
            let newest = versions.last().map_or("no version", String::as_str);
            format!("{} answers, up to {newest}", config.homeserver.url)
        })
        .map_err(|error| {
            format!(
                "{}\nchange `homeserver.url` in {} to where its client API answers",
                chain(&error),
                config.path.display()
            )
        });
    if report.add(KIND, "homeserver", versions) {
        let known = check_token(config, &registration, &homeserver).await;
        if report.add(KIND, "as_token", known) {
            check_push(config, &homeserver, report).await;
        }
    }
}

/// Whether the homeserver knows this registration, and is the one of the configured name.
async fn check_token(
    config: &Config,
    registration: &Registration,
    homeserver: &Homeserver,
) -> Result<String, String> {
    let (file, config_file) =
        (config.appservice.registration_file.display(), config.path.display());
    let user = homeserver.whoami(As::Service).await.map_err(|error| match &error {
        HomeserverError::Refused { errcode, .. }
            if matches!(errcode.as_str(), "M_UNKNOWN_TOKEN" | "M_FORBIDDEN") =>
        {
            format!(
                "{}\nthe homeserver does not know this as_token: name {file} under \
                 `app_service_config_files` in Synapse's homeserver.yaml, and restart Synapse",
                chain(&error)
            )
        }
        _ => chain(&error),
    })?;
    if user.server_name() != config.homeserver.server_name {
        return Err(format!(
            "the homeserver calls itself `{}`: change `homeserver.server_name` in {config_file}",
            user.server_name()
        ));
    }
    if user.localpart() != registration.sender_localpart {
        return Err(format!(
            "the homeserver takes us for {user}, but `sender_localpart` in {file} is `{}`: give the \
             homeserver this file, and restart it",
            registration.sender_localpart
        ));
    }
    Ok(format!("the homeserver knows us as {user}"))
}

/// Whether the homeserver reaches us: only to be seen while something listens.
async fn check_push(config: &Config, homeserver: &Homeserver, report: &mut Report) {
    let listen = config.appservice.listen;
    let connected = TcpStream::connect(listen);
    if !matches!(tokio::time::timeout(Duration::from_secs(2), connected).await, Ok(Ok(_))) {
        let why = format!("nothing listens at {listen}: run this again beside `greenshield serve`");
        report.skip(Kind::Homeserver, "push", &why);
        return;
    }
    let result = match secret::random_string(Alphabet::Lower, 16) {
        Ok(transaction) => homeserver
            .ping(&config.appservice.id, &transaction)
            .await
            .map(|()| "the homeserver reaches us".to_owned())
            .map_err(|error| {
                format!(
                    "{}\nchange `appservice.url` in {} and `url` in {} to what the homeserver reaches; \
                     if the tokens differ, give the homeserver the latter file and restart both",
                    chain(&error),
                    config.path.display(),
                    config.appservice.registration_file.display()
                )
            }),
        Err(error) => Err(error.to_string()),
    };
    report.add(Kind::Homeserver, "push", result);
}
