//! What can be wrong with a configuration file.

use std::path::PathBuf;

/// A mistake in the configuration, told so that it can be mended: which file, which key, what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file itself.
    #[error(
        "{} cannot be read: copy config.example.yaml there, or name another file with --config or \
         GREENSHIELD_CONFIG",
        path.display()
    )]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not YAML, has an unknown key, or a value of another kind.
    #[error("{}: {key} {problem}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        key: String,
        /// What was wanted, with the line; never what is there.
        problem: String,
    },
    /// A value that cannot be used.
    #[error("{}: `{key}` {problem}: {cure}", path.display())]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Where in it, as a dotted path.
        key: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        cure: String,
    },
}
