//! What can go wrong, and how it looks to the crypto machine.

use matrix_sdk_crypto::store::CryptoStoreError;

use crate::{
    store::{SealError, StoreError},
    telemetry::chain,
};

/// Why the crypto store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum PgCryptoStoreError {
    /// Our own store: the database, the seal, or the lease.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored pickle is no longer understood.
    #[error("what is stored in {0} can no longer be unpickled")]
    Pickle(&'static str),
    /// Sessions were asked for before there is an account.
    #[error("the bot has no account yet")]
    NoAccount,
    /// Something failed before, and the machine did not tell.
    #[error("the crypto store failed: {0}")]
    Failed(String),
    /// The account's own device is missing.
    #[error("the bot's own device is not in its store")]
    NoOwnDevice,
}

impl From<sqlx::Error> for PgCryptoStoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl From<SealError> for PgCryptoStoreError {
    fn from(error: SealError) -> Self {
        Self::Store(error.into())
    }
}

impl From<PgCryptoStoreError> for CryptoStoreError {
    fn from(error: PgCryptoStoreError) -> Self {
        match error {
            // Unwrapped, so that whoever gets it can tell a lost lease from a failed database.
            PgCryptoStoreError::Store(error) => Self::backend(error),
            PgCryptoStoreError::NoAccount => Self::AccountUnset,
            error => Self::backend(error),
        }
    }
}

/// What is remembered of an error.
#[derive(Debug)]
pub(super) enum Failure {
    Lease,
    Damage,
    Other(String),
}

impl Failure {
    /// Nothing for what is an answer rather than a failure.
    pub(super) fn of(error: &PgCryptoStoreError) -> Option<Self> {
        match error {
            PgCryptoStoreError::NoAccount | PgCryptoStoreError::NoOwnDevice => None,
            PgCryptoStoreError::Store(StoreError::LeaseLost) => Some(Self::Lease),
            PgCryptoStoreError::Store(StoreError::Seal(_)) | PgCryptoStoreError::Pickle(_) => {
                Some(Self::Damage)
            }
            error => Some(Self::Other(chain(error))),
        }
    }

    /// An error of the same kind.
    pub(super) fn again(&self) -> PgCryptoStoreError {
        match self {
            Self::Lease => StoreError::LeaseLost.into(),
            Self::Damage => PgCryptoStoreError::Pickle("the crypto store"),
            Self::Other(said) => PgCryptoStoreError::Failed(said.clone()),
        }
    }
}

/// Whether a crypto operation failed because the shard's lease was lost: not to be retried here.
#[must_use]
pub fn lease_lost(error: &CryptoStoreError) -> bool {
    matches!(
        error,
        CryptoStoreError::Backend(error)
            if matches!(error.downcast_ref(), Some(StoreError::LeaseLost))
    )
}

/// Whether a crypto operation failed because a stored value does not open any more: trying again does
/// not help.
#[must_use]
pub fn is_damage(error: &CryptoStoreError) -> bool {
    let CryptoStoreError::Backend(error) = error else { return false };
    matches!(
        error.downcast_ref(),
        Some(StoreError::Seal(SealError::Damaged(_) | SealError::Content(..)))
    ) || matches!(error.downcast_ref(), Some(PgCryptoStoreError::Pickle(_)))
}
