//! `bots` and `bot_identities`: who our bots are.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use ruma::{OwnedDeviceId, OwnedUserId};
use serde::{Deserialize, Serialize};
use sqlx::PgConnection;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::{Sealer, StoreError};
use crate::model::{BotId, BotState, VerificationPolicy};

const IDENTITIES: &str = "bot_identities";

/// A bot.
#[derive(Clone, Debug)]
pub struct Bot {
    /// Our id.
    pub id: BotId,
    /// Its Matrix user.
    pub user_id: OwnedUserId,
    /// Its one device.
    pub device_id: OwnedDeviceId,
    /// Life.
    pub state: BotState,
    /// Public profile name.
    pub display_name: Option<String>,
    /// What it does when the emoji are there.
    pub verification_policy: VerificationPolicy,
    /// When its to-device inbox was last asked for at the homeserver.
    pub reconciled_at: Option<DateTime<Utc>>,
    /// Its public master key, once it has one.
    pub master_key: Option<String>,
    /// Up to which change of devices it has looked (see [`device_lists`](super::device_lists)).
    pub device_epoch: i64,
}

/// The private halves of a cross-signing identity, as unpadded base64. Wiped when dropped.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct IdentitySecrets {
    /// Master key.
    pub master: String,
    /// Self-signing key.
    pub self_signing: String,
    /// User-signing key.
    pub user_signing: String,
}

/// The public halves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicIdentity {
    /// Master key.
    pub master_key: String,
    /// Self-signing key.
    pub self_signing_key: String,
    /// User-signing key.
    pub user_signing_key: String,
}

impl Bot {
    /// A bot from the columns of its row.
    ///
    /// # Errors
    ///
    /// If the row holds what this version cannot read.
    pub fn read(
        id: BotId,
        user_id: String,
        device_id: String,
        state: &str,
        display_name: Option<String>,
        verification_policy: &str,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            id,
            user_id: OwnedUserId::try_from(user_id)?,
            device_id: device_id.into(),
            state: state.parse()?,
            display_name,
            verification_policy: verification_policy.parse()?,
            reconciled_at: None,
            master_key: None,
            device_epoch: 0,
        })
    }
}

/// A bot by its id.
///
/// # Errors
///
/// The database's own, or a row that this version cannot read.
pub async fn load(conn: &mut PgConnection, bot: BotId) -> Result<Option<Bot>, StoreError> {
    let row = sqlx::query!(
        "-- bots.load
        SELECT user_id, device_id, state, display_name, verification_policy
        FROM bots
        WHERE bot_id = $1",
        bot.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(|row| {
        Bot::read(
            bot,
            row.user_id,
            row.device_id,
            &row.state,
            row.display_name,
            &row.verification_policy,
        )
    })
    .transpose()
}

/// Which of these users are bots of ours: `(user id, bot, device id)`.
///
/// # Errors
///
/// The database's own.
pub async fn by_user_ids(
    conn: &mut PgConnection,
    user_ids: &[String],
) -> Result<Vec<(String, BotId, String)>, StoreError> {
    if user_ids.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query!(
        "-- bots.by_user_ids
        SELECT user_id, bot_id, device_id
        FROM bots
        WHERE user_id = ANY($1) AND state <> 'retired'",
        user_ids,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|r| (r.user_id, BotId(r.bot_id), r.device_id)).collect())
}

/// The public identity of a bot, once it has one.
///
/// # Errors
///
/// The database's own.
pub async fn identity(
    conn: &mut PgConnection,
    bot: BotId,
) -> Result<Option<PublicIdentity>, StoreError> {
    Ok(sqlx::query_as!(
        PublicIdentity,
        "-- bots.identity
        SELECT master_key, self_signing_key, user_signing_key
        FROM bot_identities
        WHERE bot_id = $1",
        bot.0,
    )
    .fetch_optional(conn)
    .await?)
}

/// The private identity of a bot, once it has one.
///
/// # Errors
///
/// The database's own, or a damaged seal.
pub async fn identity_secrets(
    conn: &mut PgConnection,
    sealer: &Sealer,
    bot: BotId,
) -> Result<Option<IdentitySecrets>, StoreError> {
    let sealed = sqlx::query_scalar!(
        "-- bots.identity_secrets
        SELECT sealed_secrets FROM bot_identities WHERE bot_id = $1",
        bot.0,
    )
    .fetch_optional(conn)
    .await?;
    Ok(sealed.map(|s| sealer.open_json(IDENTITIES, Some(bot), &s)).transpose()?)
}

/// Keeps a bot's identity. The first one written stays: there is no second identity.
///
/// # Errors
///
/// The database's own.
pub async fn keep_identity(
    conn: &mut PgConnection,
    sealer: &Sealer,
    bot: BotId,
    public: &PublicIdentity,
    secrets: &IdentitySecrets,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let sealed = sealer.seal_json(IDENTITIES, Some(bot), secrets)?;
    sqlx::query!(
        "-- bots.keep_identity
        INSERT INTO bot_identities (
            bot_id, master_key, self_signing_key, user_signing_key, sealed_secrets, created_at
        )
        VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (bot_id) DO NOTHING",
        bot.0,
        public.master_key,
        public.self_signing_key,
        public.user_signing_key,
        sealed,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Replaces the private halves of a bot's identity, which do not open any more, by another copy of the
/// same ones: `public` are theirs, and only where it is kept so they are written.
///
/// # Errors
///
/// The database's own.
pub async fn mend_identity(
    conn: &mut PgConnection,
    sealer: &Sealer,
    bot: BotId,
    public: &PublicIdentity,
    secrets: &IdentitySecrets,
) -> Result<(), StoreError> {
    let sealed = sealer.seal_json(IDENTITIES, Some(bot), secrets)?;
    sqlx::query!(
        "-- bots.mend_identity
        UPDATE bot_identities SET sealed_secrets = $5
        WHERE bot_id = $1 AND master_key = $2 AND self_signing_key = $3 AND user_signing_key = $4",
        bot.0,
        public.master_key,
        public.self_signing_key,
        public.user_signing_key,
        sealed,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Records that the bot's to-device inbox was asked for.
///
/// # Errors
///
/// The database's own.
pub async fn reconciled(
    conn: &mut PgConnection,
    bot: BotId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- bots.reconciled
        UPDATE bots SET reconciled_at = $2 WHERE bot_id = $1",
        bot.0,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What a bot's last failing step said, or that a step succeeded (`None`).
#[derive(Clone, Debug)]
pub struct Note {
    /// The bot.
    pub bot: BotId,
    /// What the step said.
    pub error: Option<String>,
    /// When.
    pub at: DateTime<Utc>,
}

/// Records how steps ended.
///
/// # Errors
///
/// The database's own.
pub async fn note(conn: &mut PgConnection, notes: BTreeMap<BotId, Note>) -> Result<(), StoreError> {
    if notes.is_empty() {
        return Ok(());
    }
    let (bots, errors, at): (Vec<_>, Vec<_>, Vec<_>) =
        notes.into_values().map(|note| (note.bot.0, note.error, note.at)).collect();
    sqlx::query!(
        "-- bots.note
        UPDATE bots b
        SET last_error = n.error,
            last_error_at = CASE WHEN n.error IS NULL THEN b.last_error_at ELSE n.at END
        FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::TIMESTAMPTZ[]) AS n (bot_id, error, at)
        WHERE b.bot_id = n.bot_id AND b.last_error IS DISTINCT FROM n.error",
        &bots,
        &errors as &[Option<String>],
        &at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Whether there is an Olm account of this bot, whole or not.
///
/// # Errors
///
/// The database's own.
pub async fn has_account(conn: &mut PgConnection, bot: BotId) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"-- bots.has_account
        SELECT EXISTS (SELECT FROM crypto_accounts WHERE bot_id = $1) AS "exists!""#,
        bot.0,
    )
    .fetch_one(conn)
    .await?)
}

/// Bots whose to-device inbox was not asked for since `before` (or since the last outage), the
/// longest ago first; marks them as asked for at `now`.
///
/// # Errors
///
/// The database's own.
pub async fn claim_for_reconcile(
    conn: &mut PgConnection,
    shards: &[i16],
    before: DateTime<Utc>,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<Vec<BotId>, StoreError> {
    let rows = sqlx::query_scalar!(
        "-- bots.claim_for_reconcile
        UPDATE bots SET reconciled_at = $4
        WHERE bot_id IN (
            SELECT b.bot_id
            FROM bots b, homeserver_state h
            WHERE b.state = 'active' AND b.shard = ANY($1)
                AND COALESCE(b.reconciled_at, '-infinity')
                    < GREATEST($2::TIMESTAMPTZ, h.reconcile_before)
            ORDER BY b.reconciled_at NULLS FIRST
            LIMIT $3
            FOR UPDATE OF b SKIP LOCKED
        )
        RETURNING bot_id",
        shards,
        before,
        limit,
        now,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(BotId).collect())
}
