//! Two words for what a failing step means: try again soon, or only after somebody changed something.

use std::{error::Error, time::Duration};

use crate::{
    crypto::CryptoError,
    homeserver::HomeserverError,
    store::{SealError, StoreError},
};

/// Why a step, or a part of one, failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// It may succeed by itself: an outage, a rate limit, a busy database.
    #[error("{source}")]
    Retry {
        /// What happened.
        source: Box<dyn Error + Send + Sync>,
        /// How long we were asked to wait.
        after: Option<Duration>,
        /// Whether the bot's machine may go on: not if its own store failed, because its memory may
        /// then be ahead of the database.
        machine_is_whole: bool,
    },
    /// It will not succeed by itself: a refusal, a damaged row. It is still tried again, rarely.
    #[error("{error}")]
    Fail {
        /// A Matrix error code, for whoever asked.
        errcode: String,
        /// What happened, and where there is one, the cure.
        error: String,
    },
    /// Another process has the shard: nothing was written, nothing is to be.
    #[error("the lease was lost")]
    LeaseLost,
}

impl StepError {
    /// A failure that waiting does not cure.
    pub fn fail(errcode: impl Into<String>, error: impl Into<String>) -> Self {
        Self::Fail { errcode: errcode.into(), error: error.into() }
    }

    /// Something outside the machine, that may succeed by itself.
    pub fn retry(source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Retry { source: source.into(), after: None, machine_is_whole: true }
    }

    /// Whether the bot's machine may go on.
    #[must_use]
    pub const fn machine_is_whole(&self) -> bool {
        match self {
            Self::Retry { machine_is_whole, .. } => *machine_is_whole,
            Self::Fail { .. } => true,
            Self::LeaseLost => false,
        }
    }

    /// Whether it may succeed by itself.
    #[must_use]
    pub const fn is_retry(&self) -> bool {
        matches!(self, Self::Retry { .. })
    }

    /// Whether the homeserver is away: then it says nothing about what was asked of it.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        let Self::Retry { source, .. } = self else { return false };
        source.downcast_ref().is_some_and(HomeserverError::is_away)
    }

    /// Whether something that is stored of the bot does not open any more.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        let Self::Retry { source, .. } = self else { return false };
        source.downcast_ref().is_some_and(CryptoError::is_damage)
    }

    /// The Matrix error code to tell whoever waits.
    #[must_use]
    pub fn errcode(&self) -> &str {
        match self {
            Self::Fail { errcode, .. } => errcode,
            _ => "GREENSHIELD_HOMESERVER_UNREACHABLE",
        }
    }

    /// How long we were asked to wait.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Retry { after, .. } => *after,
            _ => None,
        }
    }
}

impl From<HomeserverError> for StepError {
    fn from(error: HomeserverError) -> Self {
        if error.is_temporary() {
            let after = error.retry_after();
            return Self::Retry { source: Box::new(error), after, machine_is_whole: true };
        }
        let errcode = error.errcode().unwrap_or("M_UNKNOWN").to_owned();
        let mut text = error.to_string();
        if errcode == "M_UNKNOWN_DEVICE" {
            text.push_str(": the bot's device was deleted there; run `greenshield bots repair`");
        }
        Self::Fail { errcode, error: text }
    }
}

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::LeaseLost => Self::LeaseLost,
            StoreError::Seal(error) => error.into(),
            error => Self::retry(error),
        }
    }
}

impl From<SealError> for StepError {
    fn from(error: SealError) -> Self {
        Self::fail("M_UNKNOWN", error.to_string())
    }
}

impl From<CryptoError> for StepError {
    fn from(error: CryptoError) -> Self {
        if error.is_lease_lost() {
            return Self::LeaseLost;
        }
        match error {
            CryptoError::Identity(_) | CryptoError::UnknownAlgorithm(_) => {
                Self::fail("M_UNKNOWN", error.to_string())
            }
            error => Self::Retry { source: Box::new(error), after: None, machine_is_whole: false },
        }
    }
}
