//! `crypto_accounts`: the Olm account, a bot's most precious row.

use matrix_sdk_crypto::{olm::Account, store::types::PendingChanges};

use super::{PgCryptoStore, PgCryptoStoreError, Result};

const TABLE: &str = "crypto_accounts";

/// The account, if there is one; remembers who it is.
pub(super) async fn load(store: &PgCryptoStore) -> Result<Option<Account>> {
    let Some(row) = sqlx::query!(
        "-- crypto_store.account.load
        SELECT identity_key, sealed_account FROM crypto_accounts WHERE bot_id = $1",
        store.bot.0,
    )
    .fetch_optional(store.pool())
    .await?
    else {
        return Ok(None);
    };
    let pickle = store.open(TABLE, &[&row.identity_key], &row.sealed_account)?;
    let account = Account::from_pickle(pickle).map_err(|_| PgCryptoStoreError::Pickle(TABLE))?;
    store.set_static_account(account.static_data().clone());
    Ok(Some(account))
}

/// Saves the account, never over one with other keys: that would be the end of every session that the
/// bot has, and nothing does it on purpose.
pub(super) async fn save(store: &PgCryptoStore, changes: PendingChanges) -> Result<()> {
    let Some(account) = changes.account else { return Ok(()) };
    let turn = store.turn().await;

    let identity_key = account.identity_keys().curve25519.to_base64();
    let sealed = store.seal(TABLE, &[&identity_key], &account.pickle())?;
    let mut write = turn.begin().await?;
    let saved = sqlx::query!(
        "-- crypto_store.account.save
        INSERT INTO crypto_accounts AS a (bot_id, identity_key, sealed_account, updated_at)
        VALUES ($1, $2, $3, $4)
        ON CONFLICT (bot_id) DO UPDATE
        SET sealed_account = EXCLUDED.sealed_account, updated_at = EXCLUDED.updated_at
        WHERE a.identity_key = EXCLUDED.identity_key",
        write.bot.0,
        identity_key,
        sealed,
        write.now,
    )
    .execute(&mut *write.tx)
    .await?;
    if saved.rows_affected() == 0 {
        return Err(PgCryptoStoreError::OtherAccount);
    }
    write.commit().await?;

    store.set_static_account(account.static_data().clone());
    Ok(())
}
