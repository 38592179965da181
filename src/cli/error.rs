//! Why a command ended early, in the kinds that scripts can tell apart.

use std::process::ExitCode;

use crate::{
    config::ConfigError,
    registration::RegistrationError,
    store::{StoreError, open::OpenError},
};

/// Why a command ended early.
#[derive(Debug, thiserror::Error)]
pub(super) enum CliError {
    /// An argument that can only be judged with the configuration.
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// The registration and the configuration disagree.
    #[error("the registration does not fit the configuration:\n  {}", .0.join("\n  "))]
    Disagree(Vec<String>),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the database failed: see the cause, and `greenshield doctor`")]
    Store(#[from] StoreError),
    /// The doctor found something, and has told it.
    #[error("{0} of the checks failed: each says what to change")]
    Unwell(usize, Kind),
    #[error("{0}")]
    Other(#[source] anyhow::Error),
}

/// What a failure is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Config,
    Database,
    Homeserver,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Config => 3,
            Self::Database => 4,
            Self::Homeserver => 5,
        }
    }
}

impl CliError {
    pub(super) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Other(_) => 1,
            Self::Usage(_) => 2,
            Self::Config(_) | Self::Registration(_) | Self::Disagree(_) => Kind::Config.code(),
            Self::Open(_) | Self::Store(_) => Kind::Database.code(),
            Self::Unwell(_, kind) => kind.code(),
        })
    }
}
