//! `crypto_olm_sessions` and `crypto_olm_hashes`: the channels to other devices, and what came through.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use matrix_sdk_crypto::olm::{OlmMessageHash, Session};
use sqlx::PgConnection;

use super::{PgCryptoStore, PgCryptoStoreError, Result, devices};
use crate::{model::BotId, store::StoreError};

pub(super) const TABLE: &str = "crypto_olm_sessions";

/// Sealed sessions and when they were used, by bot, sender key and session id.
pub(super) type Rows = BTreeMap<(BotId, String, String), (Vec<u8>, DateTime<Utc>)>;

/// Messages that were decrypted, by bot, sender key and hash, and when.
pub(super) type Hashes = BTreeMap<(BotId, String, String), DateTime<Utc>>;

/// The sessions with the device whose key is `sender_key`. The machine keeps what it gets, so this is
/// asked once per device and machine.
pub(super) async fn load(store: &PgCryptoStore, sender_key: &str) -> Result<Option<Vec<Session>>> {
    store.cache().note_sender(sender_key);
    let prefetched = store.prefetched().sessions.remove(sender_key);
    let rows = match prefetched {
        Some(rows) => rows,
        None => from_database(store, sender_key).await?,
    };
    if rows.is_empty() {
        return Ok(None);
    }

    // Every session carries our device's keys, with whatever signatures they have by now.
    let keys = devices::load_own(store).await?.as_device_keys().clone();
    rows.into_iter()
        .map(|(session_id, sealed)| {
            store.cache().note_session(&session_id);
            let pickle = store.open(TABLE, &[sender_key, &session_id], &sealed)?;
            Session::from_pickle(keys.clone(), pickle)
                .map_err(|_| PgCryptoStoreError::Pickle(TABLE))
        })
        .collect::<Result<Vec<_>>>()
        .map(Some)
}

async fn from_database(store: &PgCryptoStore, sender_key: &str) -> Result<Vec<(String, Vec<u8>)>> {
    store.settle(|rows| rows.sessions.keys().any(|(_, key, _)| key == sender_key)).await?;
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
    Ok(rows.into_iter().map(|row| (row.session_id, row.sealed_session)).collect())
}

/// Pickles and seals.
pub(super) async fn prepare(store: &PgCryptoStore, sessions: Vec<Session>) -> Result<Rows> {
    let mut rows = Rows::new();
    for session in sessions {
        let sender_key = session.sender_key().to_base64();
        let session_id = session.session_id().to_owned();
        store.cache().note_session(&session_id);
        let sealed = store.seal(TABLE, &[&sender_key, &session_id], &session.pickle().await)?;
        rows.insert((store.bot, sender_key, session_id), (sealed, store.clock.now()));
    }
    Ok(rows)
}

/// Writes what [`prepare`] made.
pub(super) async fn save(conn: &mut PgConnection, rows: Rows) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (keys, rows): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let (sealed, used_at): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let (bots, sender_keys, session_ids): (Vec<_>, Vec<_>, Vec<_>) =
        keys.into_iter().map(|(bot, sender_key, id)| (bot.0, sender_key, id)).collect();
    sqlx::query!(
        "-- crypto_store.sessions.save
        INSERT INTO crypto_olm_sessions (bot_id, sender_key, session_id, sealed_session, used_at)
        SELECT r.bot_id, r.sender_key, r.session_id, r.sealed, r.used_at
        FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::TEXT[], $4::BYTEA[], $5::TIMESTAMPTZ[])
            AS r (bot_id, sender_key, session_id, sealed, used_at)
        ON CONFLICT (bot_id, sender_key, session_id) DO UPDATE
        SET sealed_session = EXCLUDED.sealed_session, used_at = EXCLUDED.used_at",
        &bots,
        &sender_keys,
        &session_ids,
        &sealed,
        &used_at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Whether this message was decrypted before.
pub(super) async fn is_message_known(
    store: &PgCryptoStore,
    message: &OlmMessageHash,
) -> Result<bool> {
    store.settle(|rows| !rows.hashes.is_empty()).await?;
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
pub(super) async fn save_hashes(conn: &mut PgConnection, hashes: Hashes) -> Result<(), StoreError> {
    if hashes.is_empty() {
        return Ok(());
    }
    let (keys, times): (Vec<_>, Vec<_>) = hashes.into_iter().unzip();
    let (bots, sender_keys, hashes): (Vec<_>, Vec<_>, Vec<_>) =
        keys.into_iter().map(|(bot, sender_key, hash)| (bot.0, sender_key, hash)).collect();
    sqlx::query!(
        "-- crypto_store.sessions.save_hashes
        INSERT INTO crypto_olm_hashes (bot_id, sender_key, message_hash, created_at)
        SELECT r.bot_id, r.sender_key, r.message_hash, r.created_at
        FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::TEXT[], $4::TIMESTAMPTZ[])
            AS r (bot_id, sender_key, message_hash, created_at)
        ON CONFLICT (bot_id, sender_key, message_hash) DO NOTHING",
        &bots,
        &sender_keys,
        &hashes,
        &times,
    )
    .execute(conn)
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
