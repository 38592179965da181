//! Log lines, through `tracing`.

use std::io::IsTerminal as _;

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, filter::filter_fn, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// In which form log lines are written.
#[derive(Clone, Copy, Debug)]
pub enum Format {
    /// For people.
    Text,
    /// For machines, one object a line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one.
    #[error("`log.filter` is no filter: write it like `greenshield=info,warn`")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// Somebody was first.
    #[error("logging is set up already")]
    Twice(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Sends log lines that pass `filter` to standard error, for the rest of the process.
///
/// Whatever the filter says, of the libraries nothing below `info` passes: at `debug` and `trace` they
/// tell of what they work on, which is requests with their tokens, and keys. Of those that see what is
/// encrypted nothing passes at all.
///
/// # Errors
///
/// If the filter is malformed, or this is not the first call.
pub fn init(format: Format, filter: &str) -> Result<(), LogError> {
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let filters =
        tracing_subscriber::registry().with(EnvFilter::try_new(filter)?).with(filter_fn(is_safe));
    match format {
        Format::Text => filters.with(lines.with_ansi(std::io::stderr().is_terminal())).try_init(),
        Format::Json => filters.with(lines.json().flatten_event(true)).try_init(),
    }
    .map_err(|error| LogError::Twice(error.into()))
}

/// Libraries that see messages and keys in the clear, by how their names begin. At every level they
/// repeat what did not fit ("invalid type: string ..."), which may be a whole message. What of it matters
/// our own lines and counters tell.
const CLEAR: [&str; 3] = ["matrix_sdk", "ruma", "vodozemac"];

/// Whether lines of this origin and level never carry a secret. Spans of libraries go, too: their
/// fields hold what strangers have written.
fn is_safe(line: &Metadata<'_>) -> bool {
    let origin = line.target().split("::").next().unwrap_or_default();
    let sees_clear = CLEAR.iter().any(|library| origin.starts_with(library));
    let library = *line.level() <= Level::INFO && line.is_event() && !sees_clear;
    origin == env!("CARGO_PKG_NAME") || library
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing::{debug, error, info, info_span};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("one writer").write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn libraries_say_little_however_much_is_asked_for() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone());
        let all = EnvFilter::new("trace");
        let logs = tracing_subscriber::registry().with(all).with(filter_fn(is_safe)).with(layer);
        tracing::subscriber::with_default(logs, || {
            let span = info_span!(target: "library::module", "x", algorithm = "canary");
            let _entered = span.enter();
            debug!(target: "library::module", "canary");
            error!(target: "matrix_sdk_any::machine", "canary");
            error!(target: "ruma_common", "canary");
            error!(target: "vodozemac", "canary");
            info!(target: "library::module", "said");
            debug!("ours");
        });
        let said = String::from_utf8(lines.0.lock().expect("it is free").clone()).expect("text");
        assert!(
            said.contains("said") && said.contains("ours") && !said.contains("canary"),
            "{said}"
        );
    }
}
