//! `crypto_tracked_users`: whose devices a bot keeps up to date.

use std::collections::BTreeMap;

use matrix_sdk_crypto::TrackedUser;
use ruma::UserId;
use sqlx::PgConnection;

use super::{PgCryptoStore, Result};
use crate::{model::BotId, store::StoreError};

/// All users that the bot tracks.
pub(super) async fn load(store: &PgCryptoStore) -> Result<Vec<TrackedUser>> {
    let rows = sqlx::query!(
        "-- crypto_store.users.load
        SELECT user_id, dirty FROM crypto_tracked_users WHERE bot_id = $1 ORDER BY user_id",
        store.bot.0,
    )
    .fetch_all(store.pool())
    .await?;
    rows.into_iter()
        .map(|row| {
            let user_id = UserId::parse(row.user_id).map_err(StoreError::from)?;
            Ok(TrackedUser { user_id, dirty: row.dirty })
        })
        .collect()
}

/// Tracks users, or changes whether they are dirty.
pub(super) async fn save(store: &PgCryptoStore, users: &[(&UserId, bool)]) -> Result<()> {
    if users.is_empty() {
        return Ok(());
    }
    let users: BTreeMap<_, _> =
        users.iter().map(|(user_id, dirty)| (user_id.as_str().to_owned(), *dirty)).collect();
    let (user_ids, dirty): (Vec<_>, Vec<_>) = users.into_iter().unzip();
    let mut write = store.turn().await.begin().await?;
    sqlx::query!(
        "-- crypto_store.users.save
        INSERT INTO crypto_tracked_users (bot_id, user_id, dirty)
        SELECT $1, r.user_id, r.dirty FROM UNNEST($2::TEXT[], $3::BOOLEAN[]) AS r (user_id, dirty)
        ON CONFLICT (bot_id, user_id) DO UPDATE SET dirty = EXCLUDED.dirty",
        write.bot.0,
        &user_ids,
        &dirty,
    )
    .execute(&mut *write.tx)
    .await?;
    write.commit().await
}

/// Which bots, of the whole fleet, track any of `users`: each pair of user and bot once, in order.
///
/// # Errors
///
/// The database's own.
pub async fn bots_tracking(
    conn: &mut PgConnection,
    users: &[String],
) -> Result<Vec<(String, BotId)>, StoreError> {
    let rows = sqlx::query!(
        "-- crypto_store.users.bots_tracking
        SELECT t.user_id, t.bot_id
        FROM crypto_tracked_users t
        JOIN bots b USING (bot_id)
        WHERE t.user_id = ANY ($1) AND b.state <> 'retired'
        ORDER BY t.user_id, t.bot_id",
        users,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|row| (row.user_id, BotId(row.bot_id))).collect())
}
