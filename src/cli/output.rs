//! What commands say.

use std::io::{self, Write as _};

use serde::Serialize;

use super::error::CliError;
use crate::telemetry::chain;

/// One line on standard output. A reader that has gone away (`| head`) is no failure.
pub(super) fn line(text: &str) {
    let _ = writeln!(io::stdout().lock(), "{text}");
}

/// One JSON value on standard output.
pub(super) fn json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string(value).map_err(|error| CliError::Other(error.into()))?;
    line(&text);
    Ok(())
}

/// An error and its causes on standard error.
pub(super) fn error(error: &CliError) {
    let _ = writeln!(io::stderr().lock(), "error: {}", chain(error));
}
