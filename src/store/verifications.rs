//! `verifications`: the story of every verification. The flow itself lives in the machine's memory;
//! these rows outlive a restart, so that what was left hanging can be cancelled.

use chrono::{DateTime, Utc};
use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::Value;
use sqlx::PgConnection;

use super::{Signal, StoreError};
use crate::model::{BotId, VerificationId, VerificationState};

/// A verification that has not ended.
#[derive(Clone, Debug)]
pub struct OpenVerification {
    /// Our id.
    pub id: VerificationId,
    /// The request's event id in a room, the transaction id over to-device.
    pub flow_id: String,
    /// The human.
    pub other_user_id: OwnedUserId,
    /// The human's device, once known.
    pub other_device_id: Option<String>,
    /// The room; `None` over to-device.
    pub room_id: Option<OwnedRoomId>,
    /// When it began.
    pub created_at: DateTime<Utc>,
    /// How far it got.
    pub state: VerificationState,
    /// Whether the human has confirmed.
    pub mac_received: bool,
    /// The owner's decision: `confirm`, `mismatch` or `cancel`.
    pub decision: Option<String>,
}

/// A verification as it is now.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The human's device, once known.
    pub other_device_id: Option<String>,
    /// The seven emoji, as JSON, once they are there.
    pub emoji: Option<Value>,
    /// The three numbers.
    pub decimals: Option<Value>,
    /// Why it was cancelled.
    pub cancel_code: Option<String>,
    /// The same in a sentence.
    pub cancel_reason: Option<String>,
}

/// Notes a verification the first time it is heard of.
///
/// # Errors
///
/// The database's own.
pub async fn begin(
    conn: &mut PgConnection,
    bot: BotId,
    other_user: &str,
    flow_id: &str,
    room: Option<&str>,
    we_started: bool,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- verifications.begin
        INSERT INTO verifications (
            bot_id, flow_id, other_user_id, room_id, we_started, state, created_at, updated_at
        )
        VALUES ($1, $2, $3, $4, $5, 'requested', $6, $6)
        ON CONFLICT ON CONSTRAINT verifications_flow_once DO NOTHING",
        bot.0,
        flow_id,
        other_user,
        room,
        we_started,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// The verifications of a bot that have not ended, oldest first.
///
/// # Errors
///
/// The database's own.
pub async fn open(
    conn: &mut PgConnection,
    bot: BotId,
) -> Result<Vec<OpenVerification>, StoreError> {
    let rows = sqlx::query!(
        "-- verifications.open
        SELECT verification_id, flow_id, other_user_id, other_device_id, room_id, created_at,
            state, mac_received, decision
        FROM verifications
        WHERE bot_id = $1 AND finished_at IS NULL
        ORDER BY verification_id",
        bot.0,
    )
    .fetch_all(conn)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(OpenVerification {
                id: VerificationId(row.verification_id),
                flow_id: row.flow_id,
                other_user_id: OwnedUserId::try_from(row.other_user_id)?,
                other_device_id: row.other_device_id,
                room_id: row.room_id.map(OwnedRoomId::try_from).transpose()?,
                created_at: row.created_at,
                state: row.state.parse()?,
                mac_received: row.mac_received,
                decision: row.decision,
            })
        })
        .collect()
}

/// Notes that the human's MAC has come.
///
/// # Errors
///
/// The database's own.
pub async fn mac_received(
    conn: &mut PgConnection,
    bot: BotId,
    other_user: &str,
    flow_id: &str,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- verifications.mac_received
        UPDATE verifications SET mac_received = TRUE, updated_at = $4
        WHERE bot_id = $1 AND other_user_id = $2 AND flow_id = $3 AND finished_at IS NULL",
        bot.0,
        other_user,
        flow_id,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Notes how far a verification has got. One that has ended stays as it ended.
///
/// # Errors
///
/// The database's own.
pub async fn advance(
    conn: &mut PgConnection,
    id: VerificationId,
    state: VerificationState,
    progress: &Progress,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let ended = matches!(state, VerificationState::Done | VerificationState::Cancelled);
    sqlx::query!(
        "-- verifications.advance
        UPDATE verifications
        SET state = $2,
            other_device_id = COALESCE($3, other_device_id),
            emoji = COALESCE($4, emoji),
            decimals = COALESCE($5, decimals),
            cancel_code = $6,
            cancel_reason = $7,
            updated_at = $8::TIMESTAMPTZ,
            finished_at = CASE WHEN $9 THEN $8::TIMESTAMPTZ END
        WHERE verification_id = $1 AND finished_at IS NULL",
        id.0,
        state.as_str(),
        progress.other_device_id,
        progress.emoji,
        progress.decimals,
        progress.cancel_code,
        progress.cancel_reason,
        now,
        ended,
    )
    .execute(&mut *conn)
    .await?;
    Signal::Progress.notify(conn).await
}

/// Whether any verification of the bot is under way.
///
/// # Errors
///
/// The database's own.
pub async fn any_open(conn: &mut PgConnection, bot: BotId) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"-- verifications.any_open
        SELECT EXISTS (
            SELECT FROM verifications WHERE bot_id = $1 AND finished_at IS NULL
        ) AS "exists!""#,
        bot.0,
    )
    .fetch_one(conn)
    .await?)
}
