//! `verifications`: the story of every verification. The flow itself lives in the machine's memory;
//! these rows outlive a restart, so that what was left hanging can be cancelled.

use std::collections::HashSet;

use chrono::{DateTime, Duration, Utc};
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

/// The most verifications that a bot has under way in one room, and the most over to-device messages:
/// each lasts ten minutes at most, and lies in memory. Counted by rooms, so that who fills one with
/// people of theirs is in nobody's way in another.
const MOST_OPEN: i64 = 32;
/// The most in all rooms together.
const MOST_OPEN_IN_ALL: i64 = 512;
/// The most that one human begins in [`RECENT`] without bringing one to its end.
const MOST_RECENT: i64 = 32;
const RECENT: Duration = Duration::minutes(10);
/// The most messages of verifications that are taken of one human at once, the newest: one has six.
const MOST_AT_ONCE: i64 = 16;

/// A message of a verification that came for a bot.
#[derive(Clone, Debug)]
pub struct Asked<'a> {
    /// For whom.
    pub bot: BotId,
    /// From whom.
    pub sender: &'a str,
    /// In which room; `None` over to-device.
    pub room: Option<&'a str>,
    /// Whether it begins a verification.
    pub begins: bool,
}

/// Which of these messages, told by their place, a bot heeds: not those of strangers, with whom it shares no
/// room, and not more than it can have to do with at a time. Of one human who begins several at once the
/// newest counts, of many humans the first. Whoever is left out can ask again.
///
/// Where a bot's rooms are not all known yet, nobody counts as a stranger; who speaks in a room is none.
///
/// # Errors
///
/// The database's own.
pub async fn which(
    conn: &mut PgConnection,
    asked: &[Asked<'_>],
    now: DateTime<Utc>,
) -> Result<HashSet<usize>, StoreError> {
    if asked.is_empty() {
        return Ok(HashSet::new());
    }
    let bots: Vec<i64> = asked.iter().map(|asked| asked.bot.0).collect();
    let senders: Vec<String> = asked.iter().map(|asked| asked.sender.to_owned()).collect();
    let rooms: Vec<Option<String>> =
        asked.iter().map(|asked| asked.room.map(ToOwned::to_owned)).collect();
    let begins: Vec<bool> = asked.iter().map(|asked| asked.begins).collect();
    let heeded = sqlx::query_scalar!(
        r#"-- verifications.which
        WITH known AS (
            SELECT position, asked.bot_id, sender, asked.room_id, begins
            FROM UNNEST($1::BIGINT[], $2::TEXT[], $3::TEXT[], $4::BOOLEAN[])
                WITH ORDINALITY AS asked (bot_id, sender, room_id, begins, position)
            JOIN bots b USING (bot_id)
            WHERE asked.room_id IS NOT NULL OR EXISTS (
                SELECT FROM room_members mine
                JOIN rooms r USING (room_id)
                LEFT JOIN room_members theirs
                    ON theirs.room_id = mine.room_id AND theirs.user_id = asked.sender
                        AND theirs.membership IN ('join', 'invite')
                WHERE mine.user_id = b.user_id AND mine.membership = 'join'
                    AND (theirs.user_id IS NOT NULL OR NOT r.members_complete)
            )
        ), counted AS (
            SELECT *, ROW_NUMBER() OVER newest AS number,
                COUNT(*) FILTER (WHERE begins) OVER newest AS begun
            FROM known
            WINDOW newest AS (PARTITION BY bot_id, sender ORDER BY position DESC)
        ), few AS (
            SELECT * FROM counted c
            WHERE number <= $5
                AND (
                    NOT begins
                    -- Of two at once the machine cancels both.
                    OR begun = 1 AND (
                        SELECT COUNT(*) FROM verifications v
                        WHERE v.bot_id = c.bot_id AND v.other_user_id = c.sender
                            AND v.created_at > $8
                            AND NOT EXISTS (
                                SELECT FROM verifications d
                                WHERE d.bot_id = v.bot_id AND d.other_user_id = v.other_user_id
                                    AND d.created_at > $8 AND d.state = 'done'
                                    AND d.verification_id >= v.verification_id
                            )
                    ) < $9
                )
        ), placed AS (
            SELECT *,
                COUNT(*) FILTER (WHERE begins)
                    OVER (PARTITION BY bot_id, room_id ORDER BY position) AS here,
                COUNT(*) FILTER (WHERE begins)
                    OVER (PARTITION BY bot_id ORDER BY position) AS anywhere
            FROM few
        )
        SELECT position AS "position!"
        FROM placed p
        WHERE NOT begins
            OR here + (
                SELECT COUNT(*) FROM verifications v
                WHERE v.bot_id = p.bot_id AND v.finished_at IS NULL
                    AND v.other_user_id <> p.sender AND v.room_id IS NOT DISTINCT FROM p.room_id
            ) <= $6
            AND anywhere + (
                SELECT COUNT(*) FROM verifications v
                WHERE v.bot_id = p.bot_id AND v.finished_at IS NULL
                    AND v.other_user_id <> p.sender
            ) <= $7"#,
        &bots,
        &senders,
        &rooms as &[Option<String>],
        &begins,
        MOST_AT_ONCE,
        MOST_OPEN,
        MOST_OPEN_IN_ALL,
        now - RECENT,
        MOST_RECENT,
    )
    .fetch_all(conn)
    .await?;
    let dropped = asked.len() - heeded.len();
    if dropped > 0 {
        tracing::info!(
            dropped,
            "messages of verifications are not heeded: of strangers, or too many"
        );
        metrics::counter!("greenshield_verification_messages_dropped_total")
            .increment(dropped as u64);
    }
    Ok(heeded.into_iter().filter_map(|position| usize::try_from(position - 1).ok()).collect())
}

/// Leaves out to-device messages of verifications that a bot does not heed: see [`which`].
///
/// # Errors
///
/// The database's own.
pub async fn heeded(
    conn: &mut PgConnection,
    messages: Vec<(BotId, Value)>,
    now: DateTime<Utc>,
) -> Result<Vec<(BotId, Value)>, StoreError> {
    let mut asked = Vec::new();
    let mut positions = Vec::new();
    for (position, (bot, event)) in messages.iter().enumerate() {
        let text = |key: &str| event.get(key).and_then(Value::as_str).unwrap_or_default();
        if let Some(kind) = text("type").strip_prefix("m.key.verification.") {
            let begins = matches!(kind, "request" | "start");
            asked.push(Asked { bot: *bot, sender: text("sender"), room: None, begins });
            positions.push(position);
        }
    }
    let heeded = which(conn, &asked, now).await?;
    let gone = positions.into_iter().enumerate().filter(|(index, _)| !heeded.contains(index));
    let gone: HashSet<usize> = gone.map(|(_, position)| position).collect();
    let kept = messages.into_iter().enumerate().filter(|(position, _)| !gone.contains(position));
    Ok(kept.map(|(_, message)| message).collect())
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

#[cfg(test)]
mod tests;
