//! `crypto_accounts`: the Olm account, a bot's most precious row.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use matrix_sdk_crypto::olm::Account;
use sqlx::PgConnection;

use super::{PgCryptoStore, PgCryptoStoreError, Result};
use crate::{model::BotId, store::StoreError};

const TABLE: &str = "crypto_accounts";

/// The account, if there is one; remembers who it is.
pub(super) async fn load(store: &PgCryptoStore) -> Result<Option<Account>> {
    let prefetched = store.prefetched().account.take();
    let row = match prefetched {
        Some(row) => Some(row),
        None => from_database(store).await?,
    };
    let Some((identity_key, sealed)) = row else { return Ok(None) };
    let pickle = store.open(TABLE, &[&identity_key], &sealed)?;
    let account = Account::from_pickle(pickle).map_err(|_| PgCryptoStoreError::Pickle(TABLE))?;
    store.set_static_account(account.static_data().clone());
    Ok(Some(account))
}

async fn from_database(store: &PgCryptoStore) -> Result<Option<(String, Vec<u8>)>> {
    store.settle(|rows| !rows.accounts.is_empty()).await?;
    let row = sqlx::query!(
        "-- crypto_store.account.load
        SELECT identity_key, sealed_account FROM crypto_accounts WHERE bot_id = $1",
        store.bot.0,
    )
    .fetch_optional(store.pool())
    .await?;
    Ok(row.map(|row| (row.identity_key, row.sealed_account)))
}

/// What an account is stored with.
#[derive(Clone, Debug)]
pub(super) struct Row {
    identity_key: String,
    sealed: Vec<u8>,
    updated_at: DateTime<Utc>,
}

/// Sealed accounts.
pub(super) type Rows = BTreeMap<BotId, Row>;

/// Pickles and seals; remembers who it is.
pub(super) fn prepare(store: &PgCryptoStore, account: &Account) -> Result<Rows> {
    let identity_key = account.identity_keys().curve25519.to_base64();
    let sealed = store.seal(TABLE, &[&identity_key], &account.pickle())?;
    let row = Row { identity_key, sealed, updated_at: store.clock.now() };
    Ok([(store.bot, row)].into())
}

/// Writes what [`prepare`] made, never over an account with other keys: that would be the end of every
/// session that the bot has, and nothing does it on purpose.
pub(super) async fn save(conn: &mut PgConnection, rows: Rows) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (bots, rows): (Vec<_>, Vec<_>) = rows.into_iter().map(|(bot, row)| (bot.0, row)).unzip();
    let (identity_keys, sealed, updated_at): (Vec<_>, Vec<_>, Vec<_>) =
        rows.into_iter().map(|row| (row.identity_key, row.sealed, row.updated_at)).collect();
    let saved = sqlx::query!(
        "-- crypto_store.account.save
        INSERT INTO crypto_accounts AS a (bot_id, identity_key, sealed_account, updated_at)
        SELECT r.bot_id, r.identity_key, r.sealed, r.updated_at
        FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::BYTEA[], $4::TIMESTAMPTZ[])
            AS r (bot_id, identity_key, sealed, updated_at)
        ON CONFLICT (bot_id) DO UPDATE
        SET sealed_account = EXCLUDED.sealed_account, updated_at = EXCLUDED.updated_at
        WHERE a.identity_key = EXCLUDED.identity_key",
        &bots,
        &identity_keys,
        &sealed,
        &updated_at,
    )
    .execute(conn)
    .await?;
    if saved.rows_affected() < bots.len() as u64 {
        return Err(StoreError::OtherAccount);
    }
    Ok(())
}
