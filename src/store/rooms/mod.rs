//! `rooms` and `room_members`: what sending needs to know of a room, kept from the events that come
//! and completed by asking the homeserver.
//!
//! Two sources write here. Events are always newer than anything we hold. An answer to a question may
//! be older than an event that came meanwhile: it is written only if the room's version is still the
//! one from before the question.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use ruma::{OwnedRoomId, OwnedUserId};
use serde_json::Value;
use sqlx::PgConnection;

use super::{Fence, StoreError};
use crate::model::BotId;

/// A change that an event told.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// `m.room.member`.
    Member {
        /// Whose membership.
        user_id: String,
        /// `join`, `invite`, `leave`, ...
        membership: String,
    },
    /// `m.room.encryption`, with what is kept of its content.
    Encryption(Value),
    /// `m.room.history_visibility`.
    HistoryVisibility(&'static str),
    /// The last of our bots has left: from now on we hear nothing of the room.
    Unwatched,
}

/// What is known of a room.
#[derive(Clone, Debug, Default)]
pub struct Room {
    /// What is kept of `m.room.encryption`, if the room is known to be encrypted.
    pub encryption: Option<Value>,
    /// Whether a missing `encryption` means "unencrypted" and not "unknown".
    pub encryption_checked: bool,
    /// As in `m.room.history_visibility`.
    pub history_visibility: String,
    /// Whether the members are all known.
    pub members_complete: bool,
    /// To be given back when an answer is written.
    pub version: i64,
}

/// Applies facts in their order.
///
/// # Errors
///
/// The database's own.
pub async fn apply(
    conn: &mut PgConnection,
    facts: &[(String, Fact)],
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    if facts.is_empty() {
        return Ok(());
    }
    let mut rooms: Vec<String> = facts.iter().map(|(room, _)| room.clone()).collect();
    rooms.sort_unstable();
    rooms.dedup();
    sqlx::query!(
        "-- rooms.touch
        INSERT INTO rooms (room_id, version, updated_at)
        SELECT room_id, 1, $2 FROM UNNEST($1::TEXT[]) AS new (room_id)
        ON CONFLICT (room_id) DO UPDATE SET version = rooms.version + 1, updated_at = $2",
        &rooms,
        now,
    )
    .execute(&mut *conn)
    .await?;
    // The last word on each member wins; one statement may touch a row only once.
    let mut members = BTreeMap::new();
    for (room, fact) in facts {
        match fact {
            Fact::Member { user_id, membership } => {
                members.insert((room.clone(), user_id.clone()), membership.clone());
            }
            Fact::Encryption(content) => set_encryption(conn, room, content).await?,
            Fact::Unwatched => forget(conn, room).await?,
            Fact::HistoryVisibility(visibility) => {
                sqlx::query!(
                    "-- rooms.set_history_visibility
                    UPDATE rooms SET history_visibility = $2 WHERE room_id = $1",
                    room,
                    visibility,
                )
                .execute(&mut *conn)
                .await?;
            }
        }
    }
    let mut room_ids = Vec::new();
    let mut user_ids = Vec::new();
    let mut memberships = Vec::new();
    for ((room, user), membership) in members {
        room_ids.push(room);
        user_ids.push(user);
        memberships.push(membership);
    }
    upsert_members(conn, &room_ids, &user_ids, &memberships).await
}

/// What we know is out of date as soon as nobody of ours is there; that it is encrypted stays true.
async fn forget(conn: &mut PgConnection, room: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "-- rooms.forget
        UPDATE rooms SET members_complete = FALSE, encryption_checked = encryption IS NOT NULL
        WHERE room_id = $1",
        room,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Encryption only ever turns on: the content may change, but it is never unset.
async fn set_encryption(
    conn: &mut PgConnection,
    room: &str,
    content: &Value,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- rooms.set_encryption
        UPDATE rooms SET encryption = $2, encryption_checked = TRUE WHERE room_id = $1",
        room,
        content,
    )
    .execute(conn)
    .await?;
    Ok(())
}

async fn upsert_members(
    conn: &mut PgConnection,
    rooms: &[String],
    users: &[String],
    memberships: &[String],
) -> Result<(), StoreError> {
    if rooms.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "-- rooms.upsert_members
        INSERT INTO room_members (room_id, user_id, membership)
        SELECT room_id, user_id, membership
        FROM UNNEST($1::TEXT[], $2::TEXT[], $3::TEXT[]) AS new (room_id, user_id, membership)
        ON CONFLICT (room_id, user_id) DO UPDATE SET membership = EXCLUDED.membership",
        rooms,
        users,
        memberships,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// What is known of a room; nothing known is the default.
///
/// # Errors
///
/// The database's own.
pub async fn load(conn: &mut PgConnection, room: &str) -> Result<Room, StoreError> {
    let row = sqlx::query_as!(
        Room,
        r#"-- rooms.load
        SELECT encryption, encryption_checked, history_visibility, members_complete, version
        FROM rooms
        WHERE room_id = $1"#,
        room,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.unwrap_or_else(|| Room { history_visibility: "shared".to_owned(), ..Room::default() }))
}

/// Whether the room is known to be unencrypted, at this very moment.
///
/// # Errors
///
/// The database's own.
pub async fn is_unencrypted(conn: &mut PgConnection, room: &str) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"-- rooms.is_unencrypted
        SELECT EXISTS (
            SELECT FROM rooms
            WHERE room_id = $1 AND encryption_checked AND encryption IS NULL
        ) AS "unencrypted!""#,
        room,
    )
    .fetch_one(conn)
    .await?)
}

/// What is known of these rooms; those of which nothing is known are left out.
///
/// # Errors
///
/// The database's own.
pub async fn load_many(
    conn: &mut PgConnection,
    rooms: &[String],
) -> Result<Vec<(String, Room)>, StoreError> {
    if rooms.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query!(
        "-- rooms.load_many
        SELECT room_id, encryption, encryption_checked, history_visibility, members_complete,
            version
        FROM rooms
        WHERE room_id = ANY($1)",
        rooms,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows
        .into_iter()
        .map(|row| {
            let room = Room {
                encryption: row.encryption,
                encryption_checked: row.encryption_checked,
                history_visibility: row.history_visibility,
                members_complete: row.members_complete,
                version: row.version,
            };
            (row.room_id, room)
        })
        .collect())
}

/// What the homeserver answered about a room.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What is kept of `m.room.encryption`, if there is one.
    pub encryption: Option<Value>,
    /// As in `m.room.history_visibility`.
    pub history_visibility: &'static str,
    /// Everybody's membership.
    pub members: BTreeMap<String, String>,
}

/// Writes what the homeserver answered about a room, and tells what is known of it then. Not written,
/// and nothing returned, if an event has told something newer since `version`.
///
/// # Errors
///
/// [`StoreError::LeaseLost`] if `fence` does not hold any more, or the database's own.
pub async fn answer(
    conn: &mut PgConnection,
    fence: Fence,
    room: &str,
    version: i64,
    answer: &Answer,
    now: DateTime<Utc>,
) -> Result<Option<Room>, StoreError> {
    let (users, memberships): (Vec<_>, Vec<_>) =
        answer.members.iter().map(|(user, membership)| (user.clone(), membership.clone())).unzip();
    let row = sqlx::query!(
        r#"-- rooms.answer
        WITH held AS (
            SELECT FROM shards WHERE shard = $8 AND fence = $9 AND owner = $10 FOR SHARE
        ), answered AS (
            INSERT INTO rooms (
                room_id, encryption, encryption_checked, history_visibility, members_complete,
                version, updated_at
            )
            SELECT $1, $2, TRUE, $3, TRUE, 1, $5 FROM held
            ON CONFLICT (room_id) DO UPDATE
            SET encryption = COALESCE(EXCLUDED.encryption, rooms.encryption),
                encryption_checked = TRUE,
                history_visibility = EXCLUDED.history_visibility,
                members_complete = TRUE,
                version = rooms.version + 1,
                updated_at = $5
            WHERE rooms.version = $4
            RETURNING room_id, encryption, encryption_checked, history_visibility,
                members_complete, version
        ), gone AS (
            DELETE FROM room_members
            WHERE room_id IN (SELECT room_id FROM answered)
                AND user_id NOT IN (SELECT UNNEST($6::TEXT[]))
        ), there AS (
            INSERT INTO room_members (room_id, user_id, membership)
            SELECT room_id, user_id, membership
            FROM answered, UNNEST($6::TEXT[], $7::TEXT[]) AS told (user_id, membership)
            ON CONFLICT (room_id, user_id) DO UPDATE SET membership = EXCLUDED.membership
        )
        SELECT encryption, encryption_checked AS "encryption_checked?", history_visibility AS "history_visibility?",
            members_complete AS "members_complete?", version AS "version?"
        FROM held LEFT JOIN answered ON TRUE"#,
        room,
        answer.encryption,
        answer.history_visibility,
        version,
        now,
        &users,
        &memberships,
        fence.shard,
        fence.number,
        fence.owner,
    )
    .fetch_optional(conn)
    .await?
    .ok_or(StoreError::LeaseLost)?;
    Ok(row.version.zip(row.history_visibility).map(|(version, history_visibility)| Room {
        encryption: row.encryption,
        encryption_checked: row.encryption_checked.unwrap_or_default(),
        history_visibility,
        members_complete: row.members_complete.unwrap_or_default(),
        version,
    }))
}

/// Users with one of these memberships, in a stable order.
///
/// # Errors
///
/// The database's own.
pub async fn members(
    conn: &mut PgConnection,
    room: &str,
    memberships: &[String],
) -> Result<Vec<OwnedUserId>, StoreError> {
    let rows = sqlx::query_scalar!(
        "-- rooms.members
        SELECT user_id FROM room_members
        WHERE room_id = $1 AND membership = ANY($2)
        ORDER BY user_id",
        room,
        memberships,
    )
    .fetch_all(conn)
    .await?;
    // A member whose id no longer parses can hold no device that we could reach.
    Ok(rows.into_iter().filter_map(|id| OwnedUserId::try_from(id).ok()).collect())
}

/// At most `limit` rooms in which the user is joined, and of whose members not all are known.
///
/// # Errors
///
/// The database's own.
pub async fn unknown(
    conn: &mut PgConnection,
    user: &str,
    limit: i64,
) -> Result<Vec<OwnedRoomId>, StoreError> {
    let rows = sqlx::query_scalar!(
        "-- rooms.unknown
        SELECT room_id
        FROM room_members m
        JOIN rooms r USING (room_id)
        WHERE m.user_id = $1 AND m.membership = 'join' AND NOT r.members_complete
        LIMIT $2",
        user,
        limit,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().filter_map(|id| OwnedRoomId::try_from(id).ok()).collect())
}

/// Rooms in which both users are joined or invited.
///
/// # Errors
///
/// The database's own.
pub async fn shared_rooms(
    conn: &mut PgConnection,
    one: &str,
    other: &str,
) -> Result<Vec<OwnedRoomId>, StoreError> {
    let rows = sqlx::query_scalar!(
        "-- rooms.shared_rooms
        SELECT a.room_id
        FROM room_members a
        JOIN room_members b USING (room_id)
        WHERE a.user_id = $1 AND a.membership = 'join'
            AND b.user_id = $2 AND b.membership IN ('join', 'invite')",
        one,
        other,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().filter_map(|id| OwnedRoomId::try_from(id).ok()).collect())
}

/// Bots that are joined to these rooms: `(room id, bot, its user id)`.
///
/// # Errors
///
/// The database's own.
pub async fn joined_bots(
    conn: &mut PgConnection,
    rooms: &[String],
) -> Result<Vec<(String, BotId, String)>, StoreError> {
    if rooms.is_empty() {
        return Ok(Vec::new());
    }
    let rows = sqlx::query!(
        "-- rooms.joined_bots
        SELECT m.room_id, b.bot_id, b.user_id
        FROM room_members m
        JOIN bots b USING (user_id)
        WHERE m.room_id = ANY($1) AND m.membership = 'join' AND b.state <> 'retired'",
        rooms,
    )
    .fetch_all(conn)
    .await?;
    Ok(rows.into_iter().map(|r| (r.room_id, BotId(r.bot_id), r.user_id)).collect())
}
