//! `crypto_olm_sessions` and `crypto_olm_hashes`: the channels to other devices, and what came through.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use matrix_sdk_crypto::olm::{OlmMessageHash, Session};
use sqlx::PgConnection;

use super::{PgCryptoStore, PgCryptoStoreError, Result, Write, devices};
use crate::store::StoreError;

const TABLE: &str = "crypto_olm_sessions";

/// Sealed sessions by sender key and session id.
pub(super) type Rows = BTreeMap<(String, String), Vec<u8>>;

/// The sessions with the device whose key is `sender_key`. The machine keeps what it gets, so this is
/// asked once per device and machine.
pub(super) async fn load(store: &PgCryptoStore, sender_key: &str) -> Result<Option<Vec<Session>>> {
    let rows = sqlx::query!(
        "-- crypto_store.sessions.load
        SELECT session_id, sealed_session FROM crypto_olm_sessions
        WHERE bot_id = $1 AND sender_key = $2
        ORDER BY session_id",
        store.bot.0,
        sender_key,
    )
    .fetch_all(store.pool())
    .await?;
    if rows.is_empty() {
        return Ok(None);
    }

    // Every session carries our device's keys, with whatever signatures they have by now.
    let keys = devices::load_own(store).await?.as_device_keys().clone();
    rows.into_iter()
        .map(|row| {
            let pickle = store.open(TABLE, &[sender_key, &row.session_id], &row.sealed_session)?;
            Session::from_pickle(keys.clone(), pickle)
                .map_err(|_| PgCryptoStoreError::Pickle(TABLE))
        })
        .collect::<Result<Vec<_>>>()
        .map(Some)
}

/// Pickles and seals.
pub(super) async fn prepare(store: &PgCryptoStore, sessions: Vec<Session>) -> Result<Rows> {
    let mut rows = Rows::new();
    for session in sessions {
        let sender_key = session.sender_key().to_base64();
        let session_id = session.session_id().to_owned();
        let sealed = store.seal(TABLE, &[&sender_key, &session_id], &session.pickle().await)?;
        rows.insert((sender_key, session_id), sealed);
    }
    Ok(rows)
}

/// Writes what [`prepare`] made.
pub(super) async fn save(write: &mut Write<'_>, rows: Rows) -> Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let (keys, sealed): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let (sender_keys, session_ids): (Vec<_>, Vec<_>) = keys.into_iter().unzip();
    sqlx::query!(
        "-- crypto_store.sessions.save
        INSERT INTO crypto_olm_sessions (bot_id, sender_key, session_id, sealed_session, used_at)
        SELECT $1, r.sender_key, r.session_id, r.sealed, $5
        FROM UNNEST($2::TEXT[], $3::TEXT[], $4::BYTEA[]) AS r (sender_key, session_id, sealed)
        ON CONFLICT (bot_id, sender_key, session_id) DO UPDATE
        SET sealed_session = EXCLUDED.sealed_session, used_at = EXCLUDED.used_at",
        write.bot.0,
        &sender_keys,
        &session_ids,
        &sealed,
        write.now,
    )
    .execute(&mut *write.tx)
    .await?;
    Ok(())
}

/// Whether this message was decrypted before.
pub(super) async fn is_message_known(
    store: &PgCryptoStore,
    message: &OlmMessageHash,
) -> Result<bool> {
    Ok(sqlx::query_scalar!(
        r#"-- crypto_store.sessions.is_message_known
        SELECT EXISTS (
            SELECT FROM crypto_olm_hashes
            WHERE bot_id = $1 AND sender_key = $2 AND message_hash = $3
        ) AS "known!""#,
        store.bot.0,
        message.sender_key,
        message.hash,
    )
    .fetch_one(store.pool())
    .await?)
}

/// Remembers messages that were decrypted.
pub(super) async fn save_hashes(write: &mut Write<'_>, hashes: Vec<OlmMessageHash>) -> Result<()> {
    if hashes.is_empty() {
        return Ok(());
    }
    let hashes: BTreeSet<_> = hashes.into_iter().map(|h| (h.sender_key, h.hash)).collect();
    let (sender_keys, hashes): (Vec<_>, Vec<_>) = hashes.into_iter().unzip();
    sqlx::query!(
        "-- crypto_store.sessions.save_hashes
        INSERT INTO crypto_olm_hashes (bot_id, sender_key, message_hash, created_at)
        SELECT $1, r.sender_key, r.message_hash, $4
        FROM UNNEST($2::TEXT[], $3::TEXT[]) AS r (sender_key, message_hash)
        ON CONFLICT (bot_id, sender_key, message_hash) DO NOTHING",
        write.bot.0,
        &sender_keys,
        &hashes,
        write.now,
    )
    .execute(&mut *write.tx)
    .await?;
    Ok(())
}

/// Forgets at most `limit` messages, of any bot, that were decrypted before `before`; returns how many.
///
/// # Errors
///
/// The database's own.
pub async fn prune_olm_hashes(
    conn: &mut PgConnection,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<u64, StoreError> {
    let pruned = sqlx::query!(
        "-- crypto_store.sessions.prune_olm_hashes
        DELETE FROM crypto_olm_hashes
        WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM crypto_olm_hashes
            WHERE created_at < $1
            ORDER BY created_at
            LIMIT $2
            FOR UPDATE SKIP LOCKED
        ))",
        before,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(pruned.rows_affected())
}
