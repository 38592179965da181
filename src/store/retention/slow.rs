//! What grows slowly, and needs long looks to find.

use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgConnection};

use super::{EVENTS, LEFT, OFFERS, OLM_LEAST, OLM_SESSIONS, Swept, YEAR};
use crate::store::{StoreError, device_lists, inbox};

/// Users whom nobody has to do with.
pub(super) async fn forget_strangers(
    conn: &mut PgConnection,
    batch: i64,
    now: DateTime<Utc>,
) -> Result<Swept, StoreError> {
    let mut tx = conn.begin().await?;
    let mut swept = Swept::default();
    swept.add(inbox::ask_to_forget_strangers(&mut tx, batch, now).await?, batch);
    tx.commit().await?;
    swept.add(device_lists::forget_untracked(conn, batch, now).await?, batch);
    swept.add(device_lists::restore_tracked(conn, batch).await?, batch);
    Ok(swept)
}

/// The inbox of bots that cannot work, sent messages, and codes.
pub(super) async fn sweep_work(
    conn: &mut PgConnection,
    batch: i64,
    now: DateTime<Utc>,
) -> Result<Swept, StoreError> {
    let mut swept = Swept::default();
    let taken = sqlx::query!(
        "-- retention.inbox
        DELETE FROM inbox WHERE entry_id = ANY (ARRAY(
            SELECT entry_id FROM inbox WHERE received_at < $1 LIMIT $2
        ))",
        now - EVENTS,
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    swept.add(taken, batch);
    let taken = sqlx::query!(
        "-- retention.outbox
        DELETE FROM outbox WHERE send_id = ANY (ARRAY(
            SELECT send_id FROM outbox
            WHERE finished_at < $1 AND sealed_content = ''
            ORDER BY finished_at
            LIMIT $2
        ))",
        now - YEAR,
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    swept.add(taken, batch);
    let taken = sqlx::query!(
        "-- retention.signup_codes
        DELETE FROM signup_codes WHERE code_id = ANY (ARRAY(
            SELECT code_id FROM signup_codes c
            WHERE LEAST(expires_at, revoked_at) < $1
                AND NOT EXISTS (SELECT FROM signups s WHERE s.code_id = c.code_id)
            LIMIT $2
        ))",
        now - YEAR,
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    swept.add(taken, batch);
    Ok(swept)
}

/// Rooms without a bot, and members who are none.
pub(super) async fn sweep_rooms(
    conn: &mut PgConnection,
    batch: i64,
    now: DateTime<Utc>,
) -> Result<Swept, StoreError> {
    // No member and an unknown one are the same where not all are known, and where all are known too.
    // Whoever joins meanwhile stays: that is asked again of the row as it is when it goes.
    let mut swept = Swept::default();
    let taken = sqlx::query!(
        "-- retention.former_members
        DELETE FROM room_members WHERE (room_id, user_id) IN (
            SELECT room_id, user_id FROM room_members
            WHERE membership NOT IN ('join', 'invite')
            LIMIT $1
        ) AND membership NOT IN ('join', 'invite')",
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    swept.add(taken, batch);
    let taken = sqlx::query!(
        "-- retention.members_of_no_room_of_ours
        WITH left_rooms AS (
            SELECT room_id FROM rooms r
            WHERE updated_at < $1
                AND EXISTS (SELECT FROM room_members m WHERE m.room_id = r.room_id)
                AND NOT EXISTS (
                    SELECT FROM room_members m JOIN bots USING (user_id)
                    WHERE m.room_id = r.room_id AND m.membership IN ('join', 'invite')
                )
            LIMIT $2
            FOR NO KEY UPDATE SKIP LOCKED
        ), unknown AS (
            UPDATE rooms SET members_complete = FALSE, version = version + 1
            WHERE room_id IN (SELECT room_id FROM left_rooms)
        )
        DELETE FROM room_members WHERE room_id IN (SELECT room_id FROM left_rooms)",
        now - LEFT,
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    swept.add(taken, batch);
    let taken = sqlx::query!(
        "-- retention.rooms
        DELETE FROM rooms WHERE room_id = ANY (ARRAY(
            SELECT room_id FROM rooms r
            WHERE updated_at < $1
                AND NOT EXISTS (SELECT FROM room_members m WHERE m.room_id = r.room_id)
            LIMIT $2
        ))",
        now - YEAR,
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    swept.add(taken, batch);
    let taken = sqlx::query!(
        "-- retention.outbound_sessions
        DELETE FROM crypto_outbound_group_sessions WHERE (bot_id, room_id) IN (
            SELECT bot_id, room_id FROM crypto_outbound_group_sessions s
            WHERE NOT EXISTS (SELECT FROM rooms r WHERE r.room_id = s.room_id)
            LIMIT $1
        )",
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    swept.add(taken, batch);
    Ok(swept)
}

/// Keys that nothing comes under any more.
pub(super) async fn sweep_sessions(
    conn: &mut PgConnection,
    batch: i64,
    now: DateTime<Utc>,
) -> Result<Swept, StoreError> {
    let mut swept = Swept::default();
    let taken = sqlx::query!(
        "-- retention.inbound_sessions
        DELETE FROM crypto_inbound_group_sessions WHERE (bot_id, room_id, session_id) IN (
            SELECT bot_id, room_id, session_id FROM crypto_inbound_group_sessions s
            WHERE created_at < $1
                AND NOT EXISTS (
                    SELECT FROM events e
                    WHERE e.session_id = s.session_id AND e.room_id = s.room_id
                )
            LIMIT $2
        )",
        now - YEAR,
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    swept.add(taken, batch);
    let taken = sqlx::query!(
        "-- retention.olm_sessions
        DELETE FROM crypto_olm_sessions WHERE (bot_id, sender_key, session_id) IN (
            SELECT bot_id, sender_key, session_id
            FROM (
                SELECT bot_id, sender_key, session_id, used_at,
                    ROW_NUMBER() OVER (
                        PARTITION BY bot_id, sender_key ORDER BY used_at DESC, session_id
                    ) AS age
                FROM crypto_olm_sessions
                WHERE used_at < $1
            ) s
            WHERE used_at < $2 OR age > $3
            LIMIT $4
        )",
        now - OLM_LEAST,
        now - YEAR,
        OLM_SESSIONS,
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    swept.add(taken, batch);
    let taken = sqlx::query!(
        "-- retention.withheld_sessions
        DELETE FROM crypto_withheld_sessions WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM crypto_withheld_sessions WHERE created_at < $1 LIMIT $2
        ))",
        now - OFFERS,
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    swept.add(taken, batch);
    let taken = sqlx::query!(
        "-- retention.key_bundles
        DELETE FROM crypto_room_key_bundles WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM crypto_room_key_bundles WHERE created_at < $1 LIMIT $2
        ))",
        now - OFFERS,
        batch,
    )
    .execute(&mut *conn)
    .await?
    .rows_affected();
    swept.add(taken, batch);
    Ok(swept)
}
