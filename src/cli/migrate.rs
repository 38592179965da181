//! `greenshield migrate`

use secrecy::ExposeSecret as _;

use super::{error::CliError, output};
use crate::{
    clock::Clock,
    config::Config,
    store::{Store, open},
};

pub(super) async fn run(config: &Config) -> Result<(), CliError> {
    store(config).await?;
    output::line("The database is up to date.");
    Ok(())
}

/// The store, brought up to date.
pub(super) async fn store(config: &Config) -> Result<Store, CliError> {
    let url = config.database.url.expose_secret();
    let now = Clock::system().now();
    let connections = config.database.max_connections;
    Ok(open::open_and_migrate(url, connections, &config.sealing.key, now).await?)
}
