//! `device_lists`: the devices of the users that bots track, asked for once per change and not once
//! per bot.
//!
//! Every change that concerns any bot has a number, the device epoch. A user's row says at which number
//! the user last changed, and at which the stored answer was asked for: equal numbers mean that the
//! answer is good. A bot's row says up to which number the bot has looked; what lies beyond it is
//! looked up when the bot next has use for somebody's devices.
//!
//! Everybody here locks the epoch first and then users in the order of their bytes, whatever the
//! database's language: so nobody waits for another in a circle.

use std::collections::BTreeMap;

use chrono::{DateTime, Duration, Utc};
use ruma::OwnedUserId;
use serde_json::Value;
use sqlx::PgConnection;

use super::{Sealer, StoreError};
use crate::model::BotId;

const TABLE: &str = "device_lists";

/// An answer is asked for again after this long even if we were told of no change: a homeserver can
/// lose that, too.
const TRUSTED_FOR: Duration = Duration::hours(24);

/// For so long after it was asked a question may be of a bot whose tracking is not committed yet.
const JUST_ASKED: Duration = Duration::hours(1);
/// Within this time a second question is not noted.
const NOTED_FOR: Duration = Duration::minutes(30);

/// Notes that the devices of these users changed; those that no bot tracks are left out.
///
/// # Errors
///
/// The database's own.
pub async fn changed(conn: &mut PgConnection, users: &[String]) -> Result<(), StoreError> {
    if users.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "-- device_lists.changed
        WITH epoch AS (
            UPDATE homeserver_state SET device_epoch = device_epoch + 1
            WHERE EXISTS (SELECT FROM device_lists WHERE user_id = ANY($1))
            RETURNING device_epoch
        ), locked AS (
            SELECT d.user_id, epoch.device_epoch
            FROM epoch CROSS JOIN device_lists d
            WHERE d.user_id = ANY($1)
            ORDER BY d.user_id COLLATE \"C\"
            FOR NO KEY UPDATE OF d
        )
        UPDATE device_lists d SET changed = locked.device_epoch
        FROM locked
        WHERE d.user_id = locked.user_id",
        users,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Believes no answer any more: after an outage in which changes were lost.
///
/// # Errors
///
/// The database's own.
pub async fn all_changed(conn: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!(
        "-- device_lists.all_changed
        WITH epoch AS (
            UPDATE homeserver_state SET device_epoch = device_epoch + 1 RETURNING device_epoch
        ), locked AS (
            SELECT d.user_id, epoch.device_epoch
            FROM epoch CROSS JOIN device_lists d
            ORDER BY d.user_id COLLATE \"C\"
            FOR NO KEY UPDATE OF d
        )
        UPDATE device_lists d SET changed = locked.device_epoch
        FROM locked
        WHERE d.user_id = locked.user_id"
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Believes at most `limit` of the oldest answers no more, if they are too old. Returns how many.
///
/// # Errors
///
/// The database's own.
pub async fn expire(
    conn: &mut PgConnection,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<u64, StoreError> {
    let expired = sqlx::query!(
        "-- device_lists.expire
        WITH old AS MATERIALIZED (
            SELECT user_id FROM device_lists
            WHERE fetched_at < $1
            ORDER BY fetched_at
            LIMIT $2
        ), epoch AS (
            UPDATE homeserver_state SET device_epoch = device_epoch + 1
            WHERE EXISTS (SELECT FROM old)
            RETURNING device_epoch
        ), locked AS (
            SELECT d.user_id, epoch.device_epoch
            FROM epoch CROSS JOIN old JOIN device_lists d USING (user_id)
            ORDER BY d.user_id COLLATE \"C\"
            FOR NO KEY UPDATE OF d
        )
        UPDATE device_lists d
        SET changed = locked.device_epoch, fetched = NULL, fetched_at = NULL, sealed_answer = NULL
        FROM locked
        WHERE d.user_id = locked.user_id",
        now - TRUSTED_FOR,
        limit,
    )
    .execute(conn)
    .await?;
    Ok(expired.rows_affected())
}

/// Forgets at most `limit` users whom no bot tracks any more, unless somebody has asked about them just
/// now, and may be about to: a commit that is under way cannot be seen. Returns how many.
///
/// # Errors
///
/// The database's own.
pub async fn forget_untracked(
    conn: &mut PgConnection,
    limit: i64,
    now: DateTime<Utc>,
) -> Result<u64, StoreError> {
    let forgotten = sqlx::query!(
        "-- device_lists.forget_untracked
        DELETE FROM device_lists WHERE user_id = ANY (ARRAY(
            SELECT user_id FROM device_lists d
            WHERE NOT EXISTS (SELECT FROM crypto_tracked_users t WHERE t.user_id = d.user_id)
                AND COALESCE(asked_at < $2, TRUE)
            LIMIT $1
            FOR UPDATE SKIP LOCKED
        ))",
        limit,
        now - JUST_ASKED,
    )
    .execute(conn)
    .await?;
    Ok(forgotten.rows_affected())
}

/// Gives at most `limit` users whom a bot tracks a row if they have none, which is not to be: their
/// changes were not noted, so they are taken to have changed. Returns how many.
///
/// # Errors
///
/// The database's own.
pub async fn restore_tracked(conn: &mut PgConnection, limit: i64) -> Result<u64, StoreError> {
    let restored = sqlx::query!(
        "-- device_lists.restore_tracked
        WITH lost AS MATERIALIZED (
            SELECT DISTINCT user_id FROM crypto_tracked_users t
            WHERE NOT EXISTS (SELECT FROM device_lists d WHERE d.user_id = t.user_id)
            LIMIT $1
        ), epoch AS (
            UPDATE homeserver_state SET device_epoch = device_epoch + 1
            WHERE EXISTS (SELECT FROM lost)
            RETURNING device_epoch
        )
        INSERT INTO device_lists (user_id, changed)
        SELECT user_id, device_epoch FROM lost CROSS JOIN epoch ORDER BY user_id COLLATE \"C\"
        ON CONFLICT (user_id) DO NOTHING",
        limit,
    )
    .execute(conn)
    .await?;
    Ok(restored.rows_affected())
}

/// The users among those that `bot` tracks whose devices changed after `epoch`.
///
/// # Errors
///
/// The database's own.
pub async fn changed_since(
    conn: &mut PgConnection,
    bot: BotId,
    epoch: i64,
) -> Result<Vec<OwnedUserId>, StoreError> {
    let users = sqlx::query_scalar!(
        "-- device_lists.changed_since
        SELECT d.user_id
        FROM device_lists d
        JOIN crypto_tracked_users t ON t.user_id = d.user_id AND t.bot_id = $1
        WHERE d.changed > $2
        ORDER BY d.user_id",
        bot.0,
        epoch,
    )
    .fetch_all(conn)
    .await?;
    Ok(users.into_iter().filter_map(|user| OwnedUserId::try_from(user).ok()).collect())
}

/// Notes up to which change bots have looked.
///
/// # Errors
///
/// The database's own.
pub async fn looked(
    conn: &mut PgConnection,
    epochs: BTreeMap<BotId, i64>,
) -> Result<(), StoreError> {
    if epochs.is_empty() {
        return Ok(());
    }
    let (bots, epochs): (Vec<_>, Vec<_>) =
        epochs.into_iter().map(|(bot, epoch)| (bot.0, epoch)).unzip();
    sqlx::query!(
        "-- device_lists.looked
        UPDATE bots b SET device_epoch = GREATEST(b.device_epoch, l.epoch)
        FROM UNNEST($1::BIGINT[], $2::BIGINT[]) AS l (bot_id, epoch)
        WHERE b.bot_id = l.bot_id",
        &bots,
        &epochs,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What is known of a user's devices.
#[derive(Clone, Debug)]
pub struct Known {
    /// The user.
    pub user_id: String,
    /// The number of the user's last change: to be given back to [`keep`].
    pub changed: i64,
    /// The user's part of the answer to `/keys/query`, if it is still good.
    pub answer: Option<Value>,
}

/// What is known of these users. From now on their changes are noted, whether or not a bot is known yet
/// to track them: to be called before the homeserver is asked. No user may be named twice.
///
/// # Errors
///
/// The database's own.
pub async fn known(
    conn: &mut PgConnection,
    sealer: &Sealer,
    users: &[String],
    now: DateTime<Utc>,
) -> Result<Vec<Known>, StoreError> {
    // A row that was asked about lately stays, and is only read. Any other may be about to go: it is
    // written, and told as it then is, because a change that came while it was gone was not noted.
    let rows = sqlx::query!(
        r#"-- device_lists.known
        WITH watched AS (
            INSERT INTO device_lists AS d (user_id, asked_at)
            SELECT user_id, $2 FROM UNNEST($1::TEXT[]) AS u (user_id)
            WHERE NOT EXISTS (
                SELECT FROM device_lists asked
                WHERE asked.user_id = u.user_id AND asked.asked_at >= $3
            )
            ORDER BY user_id COLLATE "C"
            ON CONFLICT (user_id) DO UPDATE SET asked_at = EXCLUDED.asked_at
            RETURNING user_id, changed, fetched, sealed_answer
        ), known AS (
            SELECT * FROM watched
            UNION ALL
            SELECT user_id, changed, fetched, sealed_answer FROM device_lists
            WHERE user_id = ANY($1) AND asked_at >= $3
        )
        SELECT user_id AS "user_id!", changed AS "changed!",
            fetched IS NOT DISTINCT FROM changed AS "good!", sealed_answer
        FROM known"#,
        users,
        now,
        now - NOTED_FOR,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let sealed = row.sealed_answer.filter(|_| row.good);
            // One that does not open, or is another user's, is asked for anew.
            let answer = sealed.and_then(|sealed| open(sealer, &row.user_id, &sealed));
            Known { user_id: row.user_id, changed: row.changed, answer }
        })
        .collect())
}

fn open(sealer: &Sealer, user_id: &str, sealed: &[u8]) -> Option<Value> {
    match sealer.open_json::<(String, Value)>(TABLE, None, sealed) {
        Ok((owner, answer)) if owner == user_id => Some(answer),
        Ok(_) => None,
        Err(error) => {
            tracing::error!(user_id, %error, "a stored answer about devices does not open");
            None
        }
    }
}

/// Keeps answers: the user, what [`Known::changed`] was before the question, and the user's part.
///
/// # Errors
///
/// The database's own.
pub async fn keep(
    conn: &mut PgConnection,
    sealer: &Sealer,
    answers: &[(String, i64, Value)],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    if answers.is_empty() {
        return Ok(());
    }
    let (mut users, mut numbers, mut sealed) = (Vec::new(), Vec::new(), Vec::new());
    for (user, changed, answer) in answers {
        sealed.push(sealer.seal_json(TABLE, None, &(user, answer))?);
        users.push(user.clone());
        numbers.push(*changed);
    }
    sqlx::query!(
        "-- device_lists.keep
        WITH locked AS (
            SELECT user_id FROM device_lists
            WHERE user_id = ANY($1)
            ORDER BY user_id COLLATE \"C\"
            FOR NO KEY UPDATE
        )
        UPDATE device_lists d
        SET fetched = a.changed, fetched_at = $4, sealed_answer = a.sealed
        FROM locked
        JOIN UNNEST($1::TEXT[], $2::BIGINT[], $3::BYTEA[]) AS a (user_id, changed, sealed)
            USING (user_id)
        WHERE d.user_id = locked.user_id AND (d.fetched IS NULL OR d.fetched <= a.changed)",
        &users,
        &numbers,
        &sealed,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}
