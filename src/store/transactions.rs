//! `transactions` and `homeserver_state`: what the homeserver pushed, and when.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{Signal, StoreError, device_lists, queue};

/// Takes a transaction in, unless exactly this one, id and body, was taken in before.
///
/// # Errors
///
/// The database's own.
pub async fn take_in(
    conn: &mut PgConnection,
    txn_id: &str,
    body_digest: &[u8],
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    // Where another process notes that it was heard, it is noted: nobody waits for one that stands still.
    let done = sqlx::query!(
        "-- transactions.take_in
        WITH heard AS (
            UPDATE homeserver_state SET last_transaction_at = $3
            WHERE singleton IN (SELECT singleton FROM homeserver_state FOR UPDATE SKIP LOCKED)
        )
        INSERT INTO transactions (txn_id, body_digest, received_at)
        VALUES ($1, $2, $3)
        ON CONFLICT (txn_id, body_digest) DO NOTHING",
        txn_id,
        body_digest,
        now,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Declares an outage that ended at `now`: whatever bots were last reconciled before that is swept, and
/// what is known of devices is believed no more, because a transaction that comes again brings no
/// changes of devices. What failed meanwhile is tried again now.
///
/// # Errors
///
/// The database's own.
pub async fn outage_ended(conn: &mut PgConnection, now: DateTime<Utc>) -> Result<(), StoreError> {
    sqlx::query!(
        "-- transactions.outage_ended
        UPDATE homeserver_state SET reconcile_before = $1",
        now,
    )
    .execute(&mut *conn)
    .await?;
    device_lists::all_changed(&mut *conn).await?;
    queue::resume(&mut *conn, now).await?;
    Signal::Work.notify(conn).await
}
