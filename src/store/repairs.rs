//! `repairs`: wishes to mend a bot's device, and what came of them.
//!
//! A wish is a row; a step of the bot takes it up ([`open`]), gives the old device up in one commit
//! ([`switch`]), and says how it ended. The new device's id is minted with the wish: however often the
//! work is broken off, it makes that one device.

use chrono::{DateTime, Duration, Utc};
use ruma::{OwnedDeviceId, UserId};
use sqlx::PgConnection;

use super::{Signal, StoreError, crypto_store, queue};
use crate::model::{BotId, RepairOutcome, RepairReason};

/// Nothing is repaired by itself again within this time: what breaks so soon wants a human.
const REST: Duration = Duration::hours(1);

/// A repair that has not ended.
#[derive(Clone, Debug)]
pub struct OpenRepair {
    /// Why.
    pub reason: RepairReason,
    /// The device id that it gets if it needs one.
    pub new_device_id: OwnedDeviceId,
    /// Whether the old device was given up already.
    pub switched: bool,
}

/// The last repair of a bot.
#[derive(Clone, Debug)]
pub struct Repair {
    /// Why.
    pub reason: RepairReason,
    /// When it was asked for.
    pub asked_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// How it ended.
    pub outcome: Option<RepairOutcome>,
    /// Why it was refused, or what its last attempt failed with.
    pub error: Option<String>,
    /// The device that it had before, if that was given up.
    pub old_device_id: Option<String>,
}

/// Asks for a repair, and wakes the bot. One that is under way already is left to go on (one that was
/// only to look takes the new reason over, and keeps its device id); one that nobody asked for is not begun within an hour of the last. Tells whether a repair is under way now.
///
/// # Errors
///
/// The database's own.
pub async fn ask(
    conn: &mut PgConnection,
    bot: BotId,
    reason: RepairReason,
    new_device_id: &str,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let rested_since = if reason.is_automatic() { now - REST } else { now };
    let under_way = sqlx::query_scalar!(
        r#"-- repairs.ask
        WITH asked AS (
            INSERT INTO repairs AS r (bot_id, reason, new_device_id, asked_at)
            VALUES ($1, $2, $3, $4)
            ON CONFLICT (bot_id) DO UPDATE
            SET reason = EXCLUDED.reason,
                new_device_id = CASE
                    WHEN r.finished_at IS NULL THEN r.new_device_id ELSE EXCLUDED.new_device_id
                END,
                old_device_id = NULL, asked_at = EXCLUDED.asked_at, switched_at = NULL,
                finished_at = NULL, outcome = NULL, error = NULL
            WHERE r.finished_at <= $5
                OR (r.finished_at IS NULL AND r.switched_at IS NULL AND r.reason = 'asked')
            RETURNING bot_id
        )
        SELECT EXISTS (SELECT FROM asked) OR EXISTS (
            SELECT FROM repairs WHERE bot_id = $1 AND finished_at IS NULL
        ) AS "under_way!""#,
        bot.0,
        reason.as_str(),
        new_device_id,
        now,
        rested_since,
    )
    .fetch_one(&mut *conn)
    .await?;
    if under_way {
        queue::wake_everywhere(conn, &[bot], now).await?;
    }
    Ok(under_way)
}

/// The bots that live, in the order of their ids.
///
/// # Errors
///
/// The database's own.
pub async fn living(conn: &mut PgConnection) -> Result<Vec<BotId>, StoreError> {
    let bots = sqlx::query_scalar!(
        "-- repairs.living
        SELECT bot_id FROM bots WHERE state = 'active' ORDER BY bot_id"
    )
    .fetch_all(conn)
    .await?;
    Ok(bots.into_iter().map(BotId).collect())
}

/// Wishes each of these bots the new device beside it, and wakes them. However far an earlier repair has
/// got, it is begun anew: what it has done may be of a future that is gone.
///
/// # Errors
///
/// The database's own.
pub async fn renew(
    conn: &mut PgConnection,
    devices: &[(BotId, String)],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let (bots, ids): (Vec<BotId>, Vec<String>) = devices.iter().cloned().unzip();
    let keys: Vec<i64> = bots.iter().map(|bot| bot.0).collect();
    sqlx::query!(
        "-- repairs.renew
        INSERT INTO repairs AS r (bot_id, reason, new_device_id, asked_at)
        SELECT bot_id, $3, device_id, $4
        FROM UNNEST($1::BIGINT[], $2::TEXT[]) AS new (bot_id, device_id)
        ON CONFLICT (bot_id) DO UPDATE
        SET reason = EXCLUDED.reason, new_device_id = EXCLUDED.new_device_id,
            asked_at = EXCLUDED.asked_at, old_device_id = NULL, switched_at = NULL,
            finished_at = NULL, outcome = NULL, error = NULL",
        &keys,
        &ids,
        RepairReason::NewDevice.as_str(),
        now,
    )
    .execute(&mut *conn)
    .await?;
    queue::wake(conn, &bots, now).await
}

/// Has every bot start a new room key with its next message to each room.
///
/// # Errors
///
/// The database's own.
pub async fn forget_room_keys(conn: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!(
        "-- repairs.forget_room_keys
        DELETE FROM crypto_outbound_group_sessions"
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Forgets the Olm sessions of bots that are not made yet, whose signup goes on with the device it has.
///
/// # Errors
///
/// The database's own.
pub async fn forget_unfinished_sessions(conn: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!(
        "-- repairs.forget_unfinished_sessions
        DELETE FROM crypto_olm_sessions s USING bots b
        WHERE b.bot_id = s.bot_id AND b.state <> 'active'"
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The repair of this bot that has not ended.
///
/// # Errors
///
/// The database's own.
pub async fn open(conn: &mut PgConnection, bot: BotId) -> Result<Option<OpenRepair>, StoreError> {
    let row = sqlx::query!(
        r#"-- repairs.open
        SELECT reason, new_device_id, switched_at IS NOT NULL AS "switched!"
        FROM repairs
        WHERE bot_id = $1 AND finished_at IS NULL"#,
        bot.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(|row| {
        Ok(OpenRepair {
            reason: row.reason.parse()?,
            new_device_id: row.new_device_id.into(),
            switched: row.switched,
        })
    })
    .transpose()
}

/// The last repair of this bot, ended or not.
///
/// # Errors
///
/// The database's own.
pub async fn last(conn: &mut PgConnection, bot: BotId) -> Result<Option<Repair>, StoreError> {
    let row = sqlx::query!(
        "-- repairs.last
        SELECT reason, asked_at, finished_at, outcome, error, old_device_id
        FROM repairs
        WHERE bot_id = $1",
        bot.0,
    )
    .fetch_optional(conn)
    .await?;
    row.map(|row| {
        Ok(Repair {
            reason: row.reason.parse()?,
            asked_at: row.asked_at,
            finished_at: row.finished_at,
            outcome: row.outcome.map(|outcome| outcome.parse()).transpose()?,
            error: row.error,
            old_device_id: row.old_device_id,
        })
    })
    .transpose()
}

/// Gives the old device up: the bot has the new id, and nothing of the old account is left but the room
/// keys that it had. Returns the new id. To be called under the fence, in a transaction.
///
/// # Errors
///
/// The database's own.
pub async fn switch(
    conn: &mut PgConnection,
    bot: BotId,
    user_id: &UserId,
    now: DateTime<Utc>,
) -> Result<OwnedDeviceId, StoreError> {
    sqlx::query!(
        "-- repairs.switch
        UPDATE repairs r SET old_device_id = b.device_id, switched_at = $2, error = NULL
        FROM bots b
        WHERE r.bot_id = $1 AND b.bot_id = r.bot_id AND r.finished_at IS NULL",
        bot.0,
        now,
    )
    .execute(&mut *conn)
    .await?;
    let new_device_id = sqlx::query_scalar!(
        "-- repairs.new_device_id
        UPDATE bots b SET device_id = r.new_device_id
        FROM repairs r
        WHERE b.bot_id = $1 AND r.bot_id = b.bot_id AND r.finished_at IS NULL
        RETURNING b.device_id",
        bot.0,
    )
    .fetch_one(&mut *conn)
    .await?;
    // Both are of the old device: nobody can read the messages any more, and the counts would mislead.
    sqlx::query!(
        "-- repairs.clear_inbox
        DELETE FROM inbox WHERE bot_id = $1 AND kind IN ('to_device', 'key_counts')",
        bot.0,
    )
    .execute(&mut *conn)
    .await?;
    crypto_store::forget_device(conn, bot, user_id).await?;
    Ok(new_device_id.into())
}

/// Notes what an attempt failed with; the repair stays open.
///
/// # Errors
///
/// The database's own.
pub async fn note_failure(
    conn: &mut PgConnection,
    bot: BotId,
    error: &str,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- repairs.note_failure
        UPDATE repairs SET error = $2 WHERE bot_id = $1 AND finished_at IS NULL",
        bot.0,
        error,
    )
    .execute(&mut *conn)
    .await?;
    Signal::Progress.notify(conn).await
}

/// Notes how a repair ended; `error` is why it was refused.
///
/// # Errors
///
/// The database's own.
pub async fn finish(
    conn: &mut PgConnection,
    bot: BotId,
    outcome: RepairOutcome,
    error: Option<&str>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- repairs.finish
        UPDATE repairs SET outcome = $2, error = $3, finished_at = $4
        WHERE bot_id = $1 AND finished_at IS NULL",
        bot.0,
        outcome.as_str(),
        error,
        now,
    )
    .execute(&mut *conn)
    .await?;
    Signal::Progress.notify(conn).await
}

#[cfg(test)]
mod tests {
    use ruma::user_id;

    use super::*;
    use crate::store::testing::{self, TestDatabase};

    fn at(minutes: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + Duration::minutes(minutes)
    }

    async fn ask_at(
        database: &TestDatabase,
        bot: BotId,
        reason: RepairReason,
        device: &str,
        minutes: i64,
    ) -> bool {
        let mut conn = database.store.connection().await.expect("connects");
        ask(&mut conn, bot, reason, device, at(minutes)).await.expect("asks")
    }

    #[tokio::test]
    async fn a_wish_is_kept_until_it_ends_and_an_automatic_one_rests_after_it() {
        let database = testing::database().await;
        let bot = database.bot("@bot_a:x", "OLD").await;
        let mut conn = database.store.connection().await.expect("connects");
        assert!(ask_at(&database, bot, RepairReason::OneTimeKeys, "NEW", 0).await);
        assert!(ask_at(&database, bot, RepairReason::Asked, "OTHER", 1).await);
        let wish = open(&mut conn, bot).await.expect("loads").expect("a wish");
        assert_eq!((wish.reason, wish.new_device_id.as_str()), (RepairReason::OneTimeKeys, "NEW"));
        assert_eq!(database.text("SELECT COUNT(*)::TEXT FROM bot_queue").await, "1");

        // What was only to look takes a graver reason over, and keeps its device id.
        let other = database.bot("@bot_b:x", "OLD").await;
        assert!(ask_at(&database, other, RepairReason::Asked, "FIRST", 0).await);
        assert!(ask_at(&database, other, RepairReason::OneTimeKeys, "SECOND", 1).await);
        let wish = open(&mut conn, other).await.expect("loads").expect("a wish");
        assert_eq!(
            (wish.reason, wish.new_device_id.as_str()),
            (RepairReason::OneTimeKeys, "FIRST")
        );

        finish(&mut conn, bot, RepairOutcome::NewDevice, None, at(2)).await.expect("ends");
        assert!(open(&mut conn, bot).await.expect("loads").is_none());
        assert!(!ask_at(&database, bot, RepairReason::Account, "NEWER", 61).await);
        assert!(ask_at(&database, bot, RepairReason::Asked, "NEWER", 61).await);
        finish(&mut conn, bot, RepairOutcome::Refused, Some("no"), at(61)).await.expect("ends");
        assert!(ask_at(&database, bot, RepairReason::Account, "NEWEST", 121).await);
        let last = last(&mut conn, bot).await.expect("loads").expect("a repair");
        assert!(last.outcome.is_none() && last.error.is_none(), "{last:?}");
    }

    #[tokio::test]
    async fn a_switch_clears_the_old_device_and_keeps_room_keys_and_other_bots() {
        let database = testing::database().await;
        let bot = database.bot("@bot_a:x", "OLD").await;
        let other = database.bot("@bot_b:x", "OTHER").await;
        for bot in [bot, other] {
            database
                .execute(&format!(
                    "INSERT INTO crypto_accounts VALUES ({bot}, 'k', '', NOW());
                    INSERT INTO crypto_values VALUES ({bot}, 'private_identity', '');
                    INSERT INTO crypto_olm_sessions VALUES ({bot}, 'k', 's', '');
                    INSERT INTO crypto_outbound_group_sessions VALUES ({bot}, '!r', '');
                    INSERT INTO crypto_inbound_group_sessions
                        VALUES ({bot}, '!r', 's', 'k', 1, FALSE, NULL, '');
                    INSERT INTO crypto_devices VALUES ({bot}, '@bot_a:x', 'OLD', ''),
                        ({bot}, '@alice:x', 'HERS', '');
                    INSERT INTO crypto_tracked_users VALUES ({bot}, '@alice:x', FALSE);
                    INSERT INTO inbox (bot_id, kind, received_at, due_at) VALUES
                        ({bot}, 'to_device', NOW(), NOW()), ({bot}, 'key_counts', NOW(), NOW()),
                        ({bot}, 'reconcile', NOW(), NOW())"
                ))
                .await;
        }
        assert!(ask_at(&database, bot, RepairReason::Asked, "NEW", 0).await);
        let mut conn = database.store.connection().await.expect("connects");
        let new = switch(&mut conn, bot, user_id!("@bot_a:x"), at(1)).await.expect("switches");
        assert_eq!(new, "NEW");

        let left = |bot: BotId| {
            format!(
                "SELECT CONCAT_WS(' ', (SELECT device_id FROM bots WHERE bot_id = {bot}),
                    (SELECT COUNT(*) FROM crypto_accounts WHERE bot_id = {bot}),
                    (SELECT COUNT(*) FROM crypto_values WHERE bot_id = {bot}),
                    (SELECT COUNT(*) FROM crypto_olm_sessions WHERE bot_id = {bot}),
                    (SELECT COUNT(*) FROM crypto_outbound_group_sessions WHERE bot_id = {bot}),
                    (SELECT COUNT(*) FROM crypto_inbound_group_sessions WHERE bot_id = {bot}),
                    (SELECT STRING_AGG(device_id, ',' ORDER BY device_id) FROM crypto_devices
                        WHERE bot_id = {bot}),
                    (SELECT dirty FROM crypto_tracked_users WHERE bot_id = {bot}),
                    (SELECT STRING_AGG(kind, ',' ORDER BY kind) FROM inbox WHERE bot_id = {bot}))"
            )
        };
        assert_eq!(database.text(&left(bot)).await, "NEW 0 0 0 0 1 HERS t reconcile");
        let untouched = "OTHER 1 1 1 1 1 HERS,OLD f key_counts,reconcile,to_device";
        assert_eq!(database.text(&left(other)).await, untouched);
        let wish = open(&mut conn, bot).await.expect("loads").expect("a wish");
        assert!(wish.switched);
        let last = last(&mut conn, bot).await.expect("loads").expect("a repair");
        assert_eq!(last.old_device_id.as_deref(), Some("OLD"));
    }
}
