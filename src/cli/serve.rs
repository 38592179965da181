//! `greenshield serve`

use std::time::Duration;

use tracing::{info, warn};

use super::{error::CliError, migrate, registration};
use crate::{
    app,
    config::{Config, LogFormat},
    registration::Registration,
    store::{Store, StoreError, open::OpenError},
    telemetry::{self, Format, chain},
};

/// Between two looks for a database that is away, at first and at most.
const SOON: Duration = Duration::from_millis(500);
const LATE: Duration = Duration::from_secs(10);

pub(super) async fn run(config: Config) -> Result<(), CliError> {
    let format = match config.log.format {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    };
    telemetry::init(format, &config.log.filter).map_err(|error| CliError::Other(error.into()))?;
    let file = &config.appservice.registration_file;
    let registered = Registration::load(file)?;
    let wrong = registered.check(registration::expected(&config), file, &config.path);
    if !wrong.is_empty() {
        return Err(CliError::Disagree(wrong));
    }
    let mut told = Box::pin(app::told_to_stop());
    let store = tokio::select! {
        () = &mut told => return Ok(()),
        store = open(&config) => store?,
    };
    app::serve(config, registered, store, told).await.map_err(|error| match error.downcast_ref() {
        Some(StoreError::Restored) => OpenError::Restored.into(),
        _ => CliError::Other(error),
    })
}

/// The store. A database that is away, as when both start with the machine, is waited for, however long
/// that takes; one that says no is not.
async fn open(config: &Config) -> Result<Store, CliError> {
    let mut wait = SOON;
    loop {
        match migrate::store(config).await {
            Err(CliError::Open(error)) if error.is_away() => {
                warn!(error = chain(&error), "waiting for the database");
            }
            Ok(store) => {
                if wait > SOON {
                    info!("the database is there");
                }
                return Ok(store);
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LATE);
    }
}
