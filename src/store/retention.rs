//! How long rows are kept: every table that grows with traffic has a rule here, applied a batch at a
//! time by whichever process holds shard 0.
//!
//! | rows | kept | because |
//! | --- | --- | --- |
//! | `transactions` | 7 days | a homeserver retries for hours |
//! | `to_device_seen`, `crypto_olm_hashes` | 60 days | longer than a homeserver keeps an inbox that is reconciled twice a day |
//! | `events`, with `event_log` | 90 days | what a bot has not read by then it will not read |
//! | `outbox` | for good, without the content after 7 days | the same transaction id is the same event, for good |
//! | `verifications` | 365 days after their end | their story is asked for late |
//!
//! All other tables grow with the number of bots, rooms and humans only.

use chrono::{DateTime, Duration, Utc};
use sqlx::PgConnection;

use super::{StoreError, crypto_store, device_lists};

const TRANSACTIONS: Duration = Duration::days(7);
const SEEN: Duration = Duration::days(60);
const EVENTS: Duration = Duration::days(90);
const SENT_CONTENT: Duration = Duration::days(7);
const VERIFICATIONS: Duration = Duration::days(365);

/// Applies every rule to at most `batch` rows each; returns how many rows it took.
///
/// # Errors
///
/// The database's own.
pub async fn sweep(
    conn: &mut PgConnection,
    batch: i64,
    now: DateTime<Utc>,
) -> Result<u64, StoreError> {
    let mut taken = sqlx::query!(
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
    taken += sqlx::query!(
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
    taken += crypto_store::prune_olm_hashes(conn, now - SEEN, batch).await?;
    taken += device_lists::expire(conn, batch, now).await?;
    taken += sqlx::query!(
        "-- retention.events
        DELETE FROM events WHERE event_seq = ANY (ARRAY(
            SELECT event_seq FROM events WHERE received_at < $1 ORDER BY received_at LIMIT $2
        ))",
        now - EVENTS,
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    taken += sqlx::query!(
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
    taken += sqlx::query!(
        "-- retention.verifications
        DELETE FROM verifications WHERE verification_id = ANY (ARRAY(
            SELECT verification_id FROM verifications WHERE finished_at < $1 LIMIT $2
        ))",
        now - VERIFICATIONS,
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use crate::{
        clock::Clock,
        store::testing::{TestDatabase, database},
    };

    use super::*;

    async fn left(database: &TestDatabase) -> String {
        database
            .text(
                "SELECT CONCAT_WS(' ',
                    (SELECT COUNT(*) FROM transactions),
                    (SELECT COUNT(*) FROM to_device_seen),
                    (SELECT COUNT(*) FROM crypto_olm_hashes),
                    (SELECT COUNT(*) FROM events),
                    (SELECT COUNT(*) FROM event_log),
                    (SELECT COUNT(*) FROM outbox),
                    (SELECT COUNT(*) FROM outbox WHERE sealed_content <> ''),
                    (SELECT COUNT(*) FROM verifications))",
            )
            .await
    }

    #[tokio::test]
    async fn what_is_old_goes_and_what_is_young_or_open_stays() {
        let database = database().await;
        let bot = database.bot("@bot_a:x", "DEV").await;
        for (name, age) in [("old", 400), ("young", 1)] {
            database
                .execute(&format!(
                    "INSERT INTO transactions VALUES ('{name}', '', NOW() - INTERVAL '{age} days');
                    INSERT INTO to_device_seen VALUES ({bot}, '{name}', NOW() - INTERVAL '{age} days');
                    INSERT INTO crypto_olm_hashes (bot_id, sender_key, message_hash, created_at)
                        VALUES ({bot}, '{name}', '{name}', NOW() - INTERVAL '{age} days');
                    INSERT INTO events (event_id, room_id, sender, event_type, origin_server_ts,
                        received_at, sealed_event)
                        VALUES ('${name}', '!r', '@a:x', 't', 0, NOW() - INTERVAL '{age} days', '');
                    INSERT INTO event_log SELECT {bot}, event_seq, event_seq, 'ok', NOW()
                        FROM events WHERE event_id = '${name}';
                    INSERT INTO outbox (bot_id, room_id, txn_id, event_type, sealed_content, due_at,
                        created_at, finished_at, state)
                        VALUES ({bot}, '!r', '{name}', 't', 'x', NOW(), NOW(),
                            NOW() - INTERVAL '{age} days', 'sent');
                    INSERT INTO verifications (bot_id, flow_id, other_user_id, we_started, state,
                        created_at, updated_at, finished_at)
                        VALUES ({bot}, '{name}', '@a:x', FALSE, 'done', NOW(), NOW(),
                            NOW() - INTERVAL '{age} days')",
                ))
                .await;
        }
        let now = Clock::system().now();
        let mut conn = database.store.connection().await.expect("connects");
        let taken = sweep(&mut conn, 100, now).await.expect("sweeps");
        assert_eq!((taken, left(&database).await.as_str()), (6, "1 1 1 1 1 2 1 1"));
        assert_eq!(sweep(&mut conn, 100, now).await.expect("sweeps"), 0);
    }

    #[tokio::test]
    async fn every_table_and_column_is_described() {
        let database = database().await;
        let undescribed = database
            .text(
                "SELECT COALESCE(STRING_AGG(c.relname || COALESCE('.' || a.attname, ''), ', '), '')
                FROM pg_class c
                LEFT JOIN LATERAL (
                    SELECT attname, attnum FROM pg_attribute
                    WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
                    UNION ALL SELECT NULL, 0
                ) a ON TRUE
                WHERE c.relnamespace = 'public'::REGNAMESPACE AND c.relkind = 'r'
                    AND c.relname <> '_sqlx_migrations'
                    AND NOT EXISTS (
                        SELECT FROM pg_description d
                        WHERE d.objoid = c.oid AND d.objsubid = a.attnum
                            AND d.classoid = 'pg_class'::REGCLASS
                    )",
            )
            .await;
        assert_eq!(undescribed, "", "COMMENT ON these in the migration that makes them");
    }
}
