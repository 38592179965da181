//! `crypto_tracked_users`: whose devices a bot keeps up to date.

use std::collections::BTreeMap;

use matrix_sdk_crypto::TrackedUser;
use ruma::UserId;
use sqlx::PgConnection;

use super::{PgCryptoStore, Result};
use crate::{model::BotId, store::StoreError};

/// All users that the bot tracks.
pub(super) async fn load(store: &PgCryptoStore) -> Result<Vec<TrackedUser>> {
    let prefetched = store.prefetched().tracked.take();
    let rows = match prefetched {
        Some(rows) => rows,
        None => from_database(store).await?,
    };
    rows.into_iter()
        .map(|(user_id, dirty)| {
            let user_id = UserId::parse(user_id).map_err(StoreError::from)?;
            Ok(TrackedUser { user_id, dirty })
        })
        .collect()
}

async fn from_database(store: &PgCryptoStore) -> Result<Vec<(String, bool)>> {
    store.settle(|rows| !rows.tracked.is_empty()).await?;
    let rows = sqlx::query!(
        "-- crypto_store.users.load
        SELECT user_id, dirty FROM crypto_tracked_users WHERE bot_id = $1 ORDER BY user_id",
        store.bot.0,
    )
    .fetch_all(store.pool())
    .await?;
    Ok(rows.into_iter().map(|row| (row.user_id, row.dirty)).collect())
}

/// Whether the devices of a bot's tracked user changed.
pub(super) type Rows = BTreeMap<(BotId, String), bool>;

/// Tracks users, or changes whether they are dirty.
pub(super) async fn save(conn: &mut PgConnection, rows: Rows) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (keys, dirty): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
    let (bots, user_ids): (Vec<_>, Vec<_>) =
        keys.into_iter().map(|(bot, user_id)| (bot.0, user_id)).unzip();
    // From now on we are to be told of their changes. Who was asked about has a row already, which stays.
    sqlx::query!(
        "-- crypto_store.users.save
        WITH saved AS (
            SELECT * FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::BOOLEAN[])
                AS r (bot_id, user_id, dirty)
        ), watched AS (
            INSERT INTO device_lists (user_id)
            SELECT user_id FROM saved GROUP BY user_id ORDER BY user_id COLLATE \"C\"
            ON CONFLICT (user_id) DO NOTHING
        )
        INSERT INTO crypto_tracked_users (bot_id, user_id, dirty)
        SELECT bot_id, user_id, dirty FROM saved
        ON CONFLICT (bot_id, user_id) DO UPDATE SET dirty = EXCLUDED.dirty",
        &bots,
        &user_ids,
        &dirty,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The users with whom a bot has nothing to do any more, as far as the members of its rooms are known.
///
/// # Errors
///
/// The database's own.
pub async fn strangers(conn: &mut PgConnection, bot: BotId) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"-- crypto_store.users.strangers
        SELECT user_id AS "user_id!" FROM strangers($1) AS user_id"#,
        bot.0,
    )
    .fetch_all(conn)
    .await?)
}

/// Forgets users, with their devices and identities. No machine of the bot may be open: it remembers
/// whom it tracks.
///
/// # Errors
///
/// The database's own.
pub async fn forget(
    conn: &mut PgConnection,
    bot: BotId,
    users: &[String],
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- crypto_store.users.forget
        WITH devices AS (
            DELETE FROM crypto_devices WHERE bot_id = $1 AND user_id = ANY($2)
        ), identities AS (
            DELETE FROM crypto_identities WHERE bot_id = $1 AND user_id = ANY($2)
        )
        DELETE FROM crypto_tracked_users WHERE bot_id = $1 AND user_id = ANY($2)",
        bot.0,
        users,
    )
    .execute(conn)
    .await?;
    Ok(())
}
