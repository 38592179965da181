//! The command line: arguments in, an exit code out.
//!
//! Each command has a file. What a command has to say goes to standard output, as text or with
//! `--json` as one object; log lines and errors go to standard error, errors with their cause.

mod bots;
mod codes;
mod doctor;
mod error;
mod keys;
mod migrate;
mod output;
mod registration;
mod restored;
mod serve;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

use self::error::CliError;
use crate::{config::Config, telemetry};

const EXAMPLES: &str = "\
Examples:
  cp config.example.yaml config.yaml          then edit it
  greenshield registration                    writes registration.yaml: give it to the homeserver
  greenshield migrate                         prepares the database
  greenshield doctor                          tells what is still wrong, and what to change
  greenshield serve
  greenshield codes mint --inviter @alice:example.org --expires 7d
  greenshield bots repair @bot_helper:example.org

Exit codes:
  0 done   1 something else failed   2 wrong arguments   3 configuration or registration
  4 database   5 homeserver";

/// Gives a fleet of Matrix bots end-to-end encryption, a cross-signed identity each, and verification.
#[derive(Debug, Parser)]
#[command(version, after_long_help = EXAMPLES, after_help = "See --help for examples and exit codes.")]
struct Arguments {
    /// The configuration file.
    #[arg(long, env = "GREENSHIELD_CONFIG", default_value = "config.yaml", global = true)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs greenshield, until SIGTERM or SIGINT. Migrates the database first.
    Serve,
    /// Prepares the database, or brings it up to date.
    ///
    /// The first time it also makes the data key that seals everything, wrapped by `sealing.key`.
    /// Refuses a database that a newer greenshield has migrated, and a wrong `sealing.key`.
    Migrate,
    /// Writes the registration file, with random tokens, for the homeserver's admin.
    Registration(registration::Arguments),
    /// Checks everything that must be right, and says which line to change in which file.
    Doctor(doctor::Arguments),
    /// Codes by which owners sign bots up.
    #[command(subcommand)]
    Codes(codes::Command),
    /// The bots: how they are, and how to mend one.
    #[command(subcommand)]
    Bots(bots::Command),
    /// After a backup was restored: has every bot start anew where going on would not be safe.
    #[command(after_long_help = restored::EXPLANATION)]
    Restored(restored::Arguments),
    /// The key that seals the database.
    #[command(subcommand)]
    Keys(keys::Command),
}

/// Runs the command that the process was started with.
#[must_use]
pub fn main() -> ExitCode {
    telemetry::tell_panics();
    // Wrong arguments end here, with exit code 2.
    let arguments = Arguments::parse();
    let result = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Other(error.into()))
        .and_then(|runtime| runtime.block_on(run(arguments)));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            error.exit_code()
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), CliError> {
    let path = arguments.config;
    match arguments.command {
        Command::Serve => serve::run(Config::load(&path)?).await,
        Command::Migrate => migrate::run(&configured(&path)?).await,
        Command::Registration(arguments) => registration::run(&configured(&path)?, &arguments),
        Command::Doctor(arguments) => {
            log_warnings()?;
            doctor::run(&path, &arguments).await
        }
        Command::Codes(command) => codes::run(&configured(&path)?, command).await,
        Command::Bots(command) => bots::run(&configured(&path)?, command).await,
        Command::Restored(arguments) => restored::run(&configured(&path)?, &arguments).await,
        Command::Keys(command) => keys::run(&configured(&path)?, command).await,
    }
}

/// The configuration for a command that is done at once: such logs only what is wrong.
fn configured(path: &Path) -> Result<Config, CliError> {
    log_warnings()?;
    Ok(Config::load(path)?)
}

fn log_warnings() -> Result<(), CliError> {
    telemetry::init(telemetry::Format::Text, "warn").map_err(|error| CliError::Other(error.into()))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn help_has_examples() {
        let help = Arguments::command().render_long_help().to_string();
        assert!(
            help.contains("greenshield doctor") && help.contains("GREENSHIELD_CONFIG"),
            "{help}"
        );
    }
}
