//! `bot_tokens`: access tokens that owners hold. Only their digests are kept.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::StoreError;
use crate::model::BotId;

/// Keeps a token's digest; one that is known already is left as it is.
///
/// # Errors
///
/// The database's own.
pub async fn insert(
    conn: &mut PgConnection,
    bot: BotId,
    hash: &[u8; 32],
    label: &str,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- tokens.insert
        INSERT INTO bot_tokens (bot_id, token_hash, label, created_at)
        VALUES ($1, $2, $3, $4)
        ON CONFLICT (token_hash) DO NOTHING",
        bot.0,
        hash,
        label,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The bot that a token speaks for, if the token is valid and the bot not retired.
///
/// # Errors
///
/// The database's own.
pub async fn bot_of(conn: &mut PgConnection, hash: &[u8; 32]) -> Result<Option<BotId>, StoreError> {
    let bot = sqlx::query_scalar!(
        "-- tokens.bot_of
        SELECT t.bot_id
        FROM bot_tokens t
        JOIN bots b USING (bot_id)
        WHERE t.token_hash = $1 AND t.revoked_at IS NULL AND b.state <> 'retired'",
        hash,
    )
    .fetch_optional(conn)
    .await?;
    Ok(bot.map(BotId))
}
