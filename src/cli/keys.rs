//! `greenshield keys rotate`

use std::path::{Path, PathBuf};

use clap::Subcommand;
use secrecy::ExposeSecret as _;
use zeroize::Zeroizing;

use super::{error::CliError, output};
use crate::{
    clock::Clock,
    config::{self, Config},
    store::{WrappingKey, open},
};

const ROTATE_EXAMPLES: &str = "\
Running processes go on with the data key that they have. Before any of them is started again,
`sealing.key` must be the new key: with the old one it refuses to start.

Examples:
  openssl rand -base64 32 > new.key && chmod 600 new.key
  greenshield keys rotate --new-key-file new.key
  then set sealing.key_file to new.key, and keep the old key as long as you keep old backups";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Changes the key that wraps the data key, while greenshield runs.
    #[command(after_long_help = ROTATE_EXAMPLES)]
    Rotate {
        /// A file with the new key: the base64 of 32 bytes.
        #[arg(long, value_name = "FILE")]
        new_key_file: PathBuf,
    },
}

pub(super) async fn run(config: &Config, command: Command) -> Result<(), CliError> {
    let Command::Rotate { new_key_file } = command;
    let new = read(&new_key_file)?;
    let old = &config.sealing.key;
    if old.expose_secret() == new.expose_secret() {
        let error = format!("{} holds the key that is in use already", new_key_file.display());
        return Err(CliError::Usage(error));
    }
    let url = config.database.url.expose_secret();
    open::rotate(url, old, &new, Clock::system().now()).await?;
    output::line("The data key is wrapped by the new key now. Running processes go on.");
    output::line(&format!(
        "Now, before any of them is started again: in {} remove `sealing.key`, and set \
         `sealing.key_file` to {}.",
        config.path.display(),
        new_key_file.display()
    ));
    output::line("Backups of the database from before need the old key: keep it as long as those.");
    Ok(())
}

fn read(file: &Path) -> Result<WrappingKey, CliError> {
    let text = std::fs::read_to_string(file)
        .map(Zeroizing::new)
        .map_err(|error| CliError::Usage(format!("{} cannot be read: {error}", file.display())))?;
    config::wrapping_key(&text).ok_or_else(|| {
        CliError::Usage(format!(
            "{} does not hold the base64 of 32 bytes: make one with `openssl rand -base64 32`",
            file.display()
        ))
    })
}
