//! `greenshield serve`

use super::{error::CliError, migrate, registration};
use crate::{
    app,
    config::{Config, LogFormat},
    registration::Registration,
    store::{StoreError, open::OpenError},
    telemetry::{self, Format},
};

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
    let store = migrate::store(&config).await?;
    app::serve(config, registered, store).await.map_err(|error| match error.downcast_ref() {
        Some(StoreError::Restored) => OpenError::Restored.into(),
        _ => CliError::Other(error),
    })
}
