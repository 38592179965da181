//! How long rows are kept: every table that can grow has a rule here, applied a batch at a time by
//! whichever process holds shard 0, each statement for itself: two that sweep at once do no harm. What
//! is not named here grows with the number of bots only; a test says of each table why.
//!
//! | rows | kept | because |
//! | --- | --- | --- |
//! | `transactions` | 7 days | a homeserver retries for hours |
//! | `to_device_seen`, `crypto_olm_hashes` | 60 days | longer than a homeserver keeps an inbox that is reconciled twice a day |
//! | `events`, with `event_log` and `inbox` | 90 days | what a bot has not read by then it will not read |
//! | `outbox` | a year, without the content after 7 days | the same transaction id is the same event |
//! | `device_lists` | as long as a bot tracks the user, or may be about to; an answer a day | a homeserver can lose a change |
//! | `verifications` | a year after their end, 30 days if cancelled | their story is asked for late |
//! | `room_members` | while they are joined or invited, and one of our bots is there | sending asks for no others |
//! | `rooms`, `crypto_outbound_group_sessions` | a year after the last of our bots left | a bot that comes back knows that it was encrypted |
//! | `signup_codes` | a year after their end, unless they made bots | an operator may look for one |
//! | `crypto_inbound_group_sessions` | a year, or as long as messages come under them | a room may never rotate its keys |
//! | `crypto_olm_sessions` | a year after their last use, and the last 20 of each device | a device that is mended often leaves many |
//! | `crypto_withheld_sessions`, `crypto_room_key_bundles` | 90 days | as the events that they are about |
//! | `crypto_tracked_users`, `crypto_devices`, `crypto_identities` | while the bot shares a room with the user, and while `verifications` has one with them | a bot encrypts for nobody else, and strangers cannot make it look at them (`verifications::heeded`) |

mod slow;
#[cfg(test)]
mod tests;

use chrono::{DateTime, Duration, Utc};
use sqlx::PgConnection;

use super::{StoreError, crypto_store, device_lists};

const TRANSACTIONS: Duration = Duration::days(7);
const SEEN: Duration = Duration::days(60);
const EVENTS: Duration = Duration::days(90);
const SENT_CONTENT: Duration = Duration::days(7);
const YEAR: Duration = Duration::days(365);
const CANCELLED: Duration = Duration::days(30);
const LEFT: Duration = Duration::days(30);
const OFFERS: Duration = Duration::days(90);
/// How many Olm sessions with one device are kept whatever their age, and the least age of the others.
const OLM_SESSIONS: i64 = 20;
const OLM_LEAST: Duration = Duration::days(7);

/// Rules that are applied together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Of what grows with every message.
    Messages,
    /// Of users whom nobody has to do with.
    Strangers,
    /// Of work that is over.
    Work,
    /// Of rooms without a bot, and members who are none.
    Rooms,
    /// Of keys that nothing comes under any more.
    Sessions,
}

impl Rules {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Messages, Self::Strangers, Self::Work, Self::Rooms, Self::Sessions];
}

/// What a sweep took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// How many rows.
    pub taken: u64,
    /// Whether any rule took as many as it may at once: there may be more.
    pub is_full: bool,
}

impl Swept {
    fn add(&mut self, taken: u64, batch: i64) {
        self.taken += taken;
        self.is_full |= taken >= batch.unsigned_abs();
    }
}

/// Applies these rules to at most `batch` rows each.
///
/// # Errors
///
/// The database's own.
pub async fn sweep(
    conn: &mut PgConnection,
    rules: Rules,
    batch: i64,
    now: DateTime<Utc>,
) -> Result<Swept, StoreError> {
    match rules {
        Rules::Messages => sweep_messages(conn, batch, now).await,
        Rules::Strangers => slow::forget_strangers(conn, batch, now).await,
        Rules::Work => slow::sweep_work(conn, batch, now).await,
        Rules::Rooms => slow::sweep_rooms(conn, batch, now).await,
        Rules::Sessions => slow::sweep_sessions(conn, batch, now).await,
    }
}

async fn sweep_messages(
    conn: &mut PgConnection,
    batch: i64,
    now: DateTime<Utc>,
) -> Result<Swept, StoreError> {
    let mut swept = Swept::default();
    let taken = sqlx::query!(
        "-- retention.transactions
        DELETE FROM transactions WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM transactions WHERE received_at < $1 LIMIT $2
        ))",
        now - TRANSACTIONS,
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    swept.add(taken, batch);
    let taken = sqlx::query!(
        "-- retention.to_device_seen
        DELETE FROM to_device_seen WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM to_device_seen WHERE seen_at < $1 LIMIT $2
        ))",
        now - SEEN,
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    swept.add(taken, batch);
    swept.add(crypto_store::prune_olm_hashes(conn, now - SEEN, batch).await?, batch);
    swept.add(device_lists::expire(conn, batch, now).await?, batch);
    let events = sqlx::query_scalar!(
        r#"-- retention.events
        WITH gone AS (
            DELETE FROM events WHERE event_seq = ANY (ARRAY(
                SELECT event_seq
                FROM (
                    SELECT event_seq, received_at FROM events ORDER BY event_seq LIMIT $2
                ) AS oldest
                WHERE received_at < $1
            ))
            RETURNING event_seq
        ), unread AS (
            DELETE FROM inbox WHERE event_seq IN (SELECT event_seq FROM gone)
        ), read AS (
            DELETE FROM event_log WHERE event_seq IN (SELECT event_seq FROM gone)
        )
        SELECT COUNT(*) AS "count!" FROM gone"#,
        now - EVENTS,
        batch,
    )
    .fetch_one(&mut *conn)
    .await?;
    swept.add(events.unsigned_abs(), batch);
    let taken = sqlx::query!(
        "-- retention.sent_content
        UPDATE outbox SET sealed_content = ''
        WHERE send_id = ANY (ARRAY(
            SELECT send_id FROM outbox
            WHERE finished_at < $1 AND sealed_content <> ''
            ORDER BY finished_at
            LIMIT $2
        ))",
        now - SENT_CONTENT,
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    swept.add(taken, batch);
    let taken = sqlx::query!(
        "-- retention.verifications
        DELETE FROM verifications WHERE verification_id = ANY (ARRAY(
            SELECT verification_id FROM verifications
            WHERE finished_at < CASE state WHEN 'cancelled' THEN $1::TIMESTAMPTZ ELSE $2 END
            LIMIT $3
        ))",
        now - CANCELLED,
        now - YEAR,
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    swept.add(taken, batch);
    Ok(swept)
}
