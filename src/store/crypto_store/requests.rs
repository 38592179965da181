//! `crypto_requests` and `crypto_secrets`: what a bot has asked other devices for, and the secrets that
//! came.

use std::collections::BTreeMap;

use matrix_sdk_crypto::{GossipRequest, SecretInfo, store::types::SecretsInboxItem};
use ruma::{TransactionId, events::secret::request::SecretName};
use zeroize::Zeroizing;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{PgCryptoStore, Result};
use crate::{
    model::{BotId, foreign},
    store::StoreError,
};

pub(super) const REQUESTS: &str = "crypto_requests";
pub(super) const SECRETS: &str = "crypto_secrets";

/// The request with this id.
pub(super) async fn load(
    store: &PgCryptoStore,
    request_id: &TransactionId,
) -> Result<Option<GossipRequest>> {
    // Named by whoever answers: an id that no request of ours has need not be looked for. And the
    // machine asks with every to-device message that was sent.
    if !foreign::is_id(request_id.as_str()) || store.cache().no_requests() {
        return Ok(None);
    }
    store.settle(|rows| !rows.requests.is_empty()).await?;
    let sealed = sqlx::query_scalar!(
        "-- crypto_store.requests.load
        SELECT sealed_request FROM crypto_requests WHERE bot_id = $1 AND request_id = $2",
        store.bot.0,
        request_id.as_str(),
    )
    .fetch_optional(store.pool())
    .await?;
    sealed.map(|sealed| store.open(REQUESTS, &[request_id.as_str()], &sealed)).transpose()
}

/// The newest request for this room key or secret.
pub(super) async fn load_by_info(
    store: &PgCryptoStore,
    info: &SecretInfo,
) -> Result<Option<GossipRequest>> {
    let info_key = info.as_key();
    if info_key.contains('\0') || store.cache().no_requests() {
        return Ok(None);
    }
    store.settle(|rows| !rows.requests.is_empty()).await?;
    let row = sqlx::query!(
        "-- crypto_store.requests.load_by_info
        SELECT request_id, sealed_request FROM crypto_requests
        WHERE bot_id = $1 AND info_key = $2
        ORDER BY created_at DESC, request_id
        LIMIT 1",
        store.bot.0,
        info_key,
    )
    .fetch_optional(store.pool())
    .await?;
    row.map(|row| store.open(REQUESTS, &[&row.request_id], &row.sealed_request)).transpose()
}

/// The requests that are still to be sent.
pub(super) async fn load_unsent(store: &PgCryptoStore) -> Result<Vec<GossipRequest>> {
    // The machine asks before everything it sends, and hardly ever finds any.
    if store.cache().no_requests() {
        return Ok(Vec::new());
    }
    store.settle(|rows| !rows.requests.is_empty()).await?;
    let rows = sqlx::query!(
        "-- crypto_store.requests.load_unsent
        SELECT request_id, sent_out, sealed_request FROM crypto_requests
        WHERE bot_id = $1
        ORDER BY created_at, request_id",
        store.bot.0,
    )
    .fetch_all(store.pool())
    .await?;
    store.cache().note_requests(!rows.is_empty());
    rows.into_iter()
        .filter(|row| !row.sent_out)
        .map(|row| store.open(REQUESTS, &[&row.request_id], &row.sealed_request))
        .collect()
}

/// What a request is stored with.
#[derive(Clone, Debug)]
pub(super) struct Row {
    info_key: String,
    sent_out: bool,
    created_at: DateTime<Utc>,
    sealed: Vec<u8>,
}

/// Sealed requests by bot and id.
pub(super) type Rows = BTreeMap<(BotId, String), Row>;

/// Seals.
pub(super) fn prepare(store: &PgCryptoStore, requests: Vec<GossipRequest>) -> Result<Rows> {
    if !requests.is_empty() {
        store.cache().note_requests(true);
    }
    requests
        .into_iter()
        .map(|request| {
            let row = Row {
                info_key: request.info.as_key(),
                sent_out: request.sent_out,
                created_at: store.clock.now(),
                sealed: store.seal(REQUESTS, &[request.request_id.as_str()], &request)?,
            };
            Ok(((store.bot, request.request_id.as_str().to_owned()), row))
        })
        .collect()
}

/// Writes what [`prepare`] made.
pub(super) async fn save(conn: &mut PgConnection, rows: Rows) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (keys, rows): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let (bots, request_ids): (Vec<_>, Vec<_>) =
        keys.into_iter().map(|(bot, request_id)| (bot.0, request_id)).unzip();
    let created_at: Vec<_> = rows.iter().map(|row| row.created_at).collect();
    let sent_out: Vec<_> = rows.iter().map(|row| row.sent_out).collect();
    let (info_keys, sealed): (Vec<_>, Vec<_>) =
        rows.into_iter().map(|row| (row.info_key, row.sealed)).unzip();
    sqlx::query!(
        "-- crypto_store.requests.save
        INSERT INTO crypto_requests (
            bot_id, request_id, info_key, sent_out, created_at, sealed_request
        )
        SELECT r.bot_id, r.request_id, r.info_key, r.sent_out, r.created_at, r.sealed
        FROM UNNEST(
            $1::BIGINT[], $2::TEXT[], $3::TEXT[], $4::BOOLEAN[], $5::TIMESTAMPTZ[], $6::BYTEA[]
        ) AS r (bot_id, request_id, info_key, sent_out, created_at, sealed)
        ON CONFLICT (bot_id, request_id) DO UPDATE
        SET info_key = EXCLUDED.info_key,
            sent_out = EXCLUDED.sent_out,
            sealed_request = EXCLUDED.sealed_request",
        &bots,
        &request_ids,
        &info_keys,
        &sent_out,
        &created_at,
        &sealed,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Deletes the request with this id.
pub(super) async fn delete(store: &PgCryptoStore, request_id: &TransactionId) -> Result<()> {
    let mut write = store.turn().await.begin().await?;
    sqlx::query!(
        "-- crypto_store.requests.delete
        DELETE FROM crypto_requests WHERE bot_id = $1 AND request_id = $2",
        write.bot.0,
        request_id.as_str(),
    )
    .execute(&mut *write.tx)
    .await?;
    write.commit().await
}

/// The secrets that came under this name.
pub(super) async fn load_secrets(
    store: &PgCryptoStore,
    name: &SecretName,
) -> Result<Vec<Zeroizing<String>>> {
    store.settle(|rows| !rows.secrets.is_empty()).await?;
    let sealed = sqlx::query_scalar!(
        "-- crypto_store.requests.load_secrets
        SELECT sealed_secret FROM crypto_secrets WHERE bot_id = $1 AND secret_name = $2",
        store.bot.0,
        name.as_ref(),
    )
    .fetch_all(store.pool())
    .await?;
    sealed
        .into_iter()
        .map(|sealed| store.open(SECRETS, &[name.as_ref()], &sealed).map(Zeroizing::new))
        .collect()
}

/// Sealed secrets by bot, name and keyed hash.
pub(super) type SecretRows = BTreeMap<(BotId, String, Vec<u8>), Vec<u8>>;

/// Seals, by name and keyed hash: the same secret from several devices is one.
pub(super) fn prepare_secrets(
    store: &PgCryptoStore,
    secrets: &[SecretsInboxItem],
) -> Result<SecretRows> {
    secrets
        .iter()
        .map(|item| {
            let name = item.secret_name.as_ref();
            let mut keyed = Zeroizing::new(store.bot.0.to_be_bytes().to_vec());
            keyed.extend_from_slice(item.secret.as_bytes());
            let digest = store.store.sealer().hash(SECRETS, &keyed).to_vec();
            let sealed = store.seal(SECRETS, &[name], &*item.secret)?;
            Ok(((store.bot, name.to_owned(), digest), sealed))
        })
        .collect()
}

/// Writes what [`prepare_secrets`] made.
pub(super) async fn save_secrets(
    conn: &mut PgConnection,
    rows: SecretRows,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (keys, sealed): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let (bots, names, digests): (Vec<_>, Vec<_>, Vec<_>) =
        keys.into_iter().map(|(bot, name, digest)| (bot.0, name, digest)).collect();
    sqlx::query!(
        "-- crypto_store.requests.save_secrets
        INSERT INTO crypto_secrets (bot_id, secret_name, digest, sealed_secret)
        SELECT r.bot_id, r.secret_name, r.digest, r.sealed
        FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::BYTEA[], $4::BYTEA[])
            AS r (bot_id, secret_name, digest, sealed)
        ON CONFLICT (bot_id, secret_name, digest) DO NOTHING",
        &bots,
        &names,
        &digests,
        &sealed,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Deletes the secrets that came under this name.
pub(super) async fn delete_secrets(store: &PgCryptoStore, name: &SecretName) -> Result<()> {
    let mut write = store.turn().await.begin().await?;
    sqlx::query!(
        "-- crypto_store.requests.delete_secrets
        DELETE FROM crypto_secrets WHERE bot_id = $1 AND secret_name = $2",
        write.bot.0,
        name.as_ref(),
    )
    .execute(&mut *write.tx)
    .await?;
    write.commit().await
}
