//! What a repair asks of a bot's crypto store: whether the account is whole, and giving a device up.

use ruma::UserId;
use sqlx::PgConnection;

use super::{PgCryptoStore, PgCryptoStoreError, Result, account};
use crate::{
    model::BotId,
    store::{SealError, StoreError},
};

/// What is stored of a bot's Olm account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccountState {
    /// It opens.
    Whole {
        /// The device that it is of.
        device_id: String,
        /// Its public Curve25519 key, unpadded base64.
        curve25519: String,
    },
    /// There is none.
    Missing,
    /// There is one that does not open.
    Damaged,
}

impl PgCryptoStore {
    /// What is stored of the account.
    ///
    /// # Errors
    ///
    /// The database's own; a damaged account is no error here.
    pub async fn account_state(&self) -> Result<AccountState> {
        match account::load(self).await {
            Ok(Some(account)) => Ok(AccountState::Whole {
                device_id: account.device_id().to_string(),
                curve25519: account.identity_keys().curve25519.to_base64(),
            }),
            Ok(None) => Ok(AccountState::Missing),
            Err(error) if is_damage(&error) => Ok(AccountState::Damaged),
            Err(error) => Err(error),
        }
    }
}

/// Whether what is stored will never open, whatever is tried.
pub(super) const fn is_damage(error: &PgCryptoStoreError) -> bool {
    matches!(
        error,
        PgCryptoStoreError::Pickle(_)
            | PgCryptoStoreError::Store(StoreError::Seal(
                SealError::Damaged(_) | SealError::Content(..)
            ))
    )
}

/// Removes all that belongs to a bot's device, so that a new one can take its place. Room keys stay:
/// they open old messages on any device. What is known of other users stays too, to be asked for again;
/// of the bot itself nothing is believed until the homeserver and `bot_identities` agree.
///
/// # Errors
///
/// The database's own.
pub async fn forget_device(
    conn: &mut PgConnection,
    bot: BotId,
    user_id: &UserId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- crypto_store.device.forget_device
        WITH accounts AS (DELETE FROM crypto_accounts WHERE bot_id = $1),
            kept_values AS (DELETE FROM crypto_values WHERE bot_id = $1),
            custom_values AS (DELETE FROM crypto_custom_values WHERE bot_id = $1),
            locks AS (DELETE FROM crypto_lease_locks WHERE bot_id = $1),
            olm_sessions AS (DELETE FROM crypto_olm_sessions WHERE bot_id = $1),
            olm_hashes AS (DELETE FROM crypto_olm_hashes WHERE bot_id = $1),
            outbound AS (DELETE FROM crypto_outbound_group_sessions WHERE bot_id = $1),
            requests AS (DELETE FROM crypto_requests WHERE bot_id = $1),
            secrets AS (DELETE FROM crypto_secrets WHERE bot_id = $1),
            own_devices AS (DELETE FROM crypto_devices WHERE bot_id = $1 AND user_id = $2),
            own_identity AS (DELETE FROM crypto_identities WHERE bot_id = $1 AND user_id = $2)
        UPDATE crypto_tracked_users SET dirty = TRUE WHERE bot_id = $1",
        bot.0,
        user_id.as_str(),
    )
    .execute(conn)
    .await?;
    Ok(())
}
