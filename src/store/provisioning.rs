//! `signups`, as the worker sees them: which steps are done, and what came of them.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;

use super::{Sealer, Signal, StoreError};
use crate::model::{BotId, SignupId};

/// The steps by which a bot comes to be, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    /// The Matrix user exists.
    pub user: bool,
    /// Its device exists, without keys.
    pub device: bool,
    /// The cross-signing identity is published.
    pub identity: bool,
    /// The device's keys are published, signed, with one-time and fallback keys.
    pub keys: bool,
    /// The display name is set.
    pub profile: bool,
    /// The space and rooms that were joined.
    pub rooms: Vec<String>,
    /// The direct room with the inviter exists.
    pub dm: bool,
    /// The first message is in it, encrypted.
    pub intro: bool,
}

/// A signup with steps to do.
#[derive(Clone, Debug)]
pub struct OpenSignup {
    /// Its id.
    pub id: SignupId,
    /// The human of the direct room.
    pub inviter: String,
    /// What is done.
    pub steps: Steps,
    /// The first message.
    pub intro: String,
    /// The direct room, once it exists.
    pub dm_room: Option<String>,
}

/// The unfinished signup of a bot.
///
/// # Errors
///
/// The database's own.
pub async fn open(
    conn: &mut PgConnection,
    sealer: &Sealer,
    bot: BotId,
) -> Result<Option<OpenSignup>, StoreError> {
    let Some(row) = sqlx::query!(
        "-- provisioning.open
        SELECT signup_id, inviter, steps, sealed_intro, dm_room
        FROM signups
        WHERE bot_id = $1 AND finished_at IS NULL",
        bot.0,
    )
    .fetch_optional(conn)
    .await?
    else {
        return Ok(None);
    };
    Ok(Some(OpenSignup {
        id: SignupId(row.signup_id),
        inviter: row.inviter,
        steps: serde_json::from_value(row.steps)?,
        intro: String::from_utf8_lossy(&sealer.open("signups", Some(bot), &row.sealed_intro)?)
            .into_owned(),
        dm_room: row.dm_room,
    }))
}

/// Records that a step is done.
///
/// # Errors
///
/// The database's own.
pub async fn record(
    conn: &mut PgConnection,
    signup: SignupId,
    steps: &Steps,
    space_id: Option<&str>,
    dm_room: Option<&str>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- provisioning.record
        UPDATE signups
        SET steps = $2, space_id = COALESCE($3, space_id), dm_room = COALESCE($4, dm_room),
            failure = NULL
        WHERE signup_id = $1",
        signup.0,
        serde_json::to_value(steps)?,
        space_id,
        dm_room,
    )
    .execute(&mut *conn)
    .await?;
    Signal::Progress.notify(conn).await
}

/// Records that a step failed. `retry` tells whether it will be tried again without anybody asking.
///
/// # Errors
///
/// The database's own.
pub async fn record_failure(
    conn: &mut PgConnection,
    signup: SignupId,
    step: &str,
    errcode: &str,
    error: &str,
    retry: bool,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let failure =
        json!({ "step": step, "errcode": errcode, "error": error, "retry": retry, "at": now });
    sqlx::query!(
        "-- provisioning.record_failure
        UPDATE signups SET failure = $2 WHERE signup_id = $1",
        signup.0,
        failure,
    )
    .execute(&mut *conn)
    .await?;
    Signal::Progress.notify(conn).await
}

/// Records that all steps are done: the bot is active.
///
/// # Errors
///
/// The database's own.
pub async fn finish(
    conn: &mut PgConnection,
    signup: SignupId,
    bot: BotId,
    steps: &Steps,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    record(conn, signup, steps, None, None).await?;
    sqlx::query!(
        "-- provisioning.finish
        UPDATE signups SET finished_at = $2 WHERE signup_id = $1",
        signup.0,
        now,
    )
    .execute(&mut *conn)
    .await?;
    sqlx::query!(
        "-- provisioning.activate
        UPDATE bots SET state = 'active', activated_at = $2, reconciled_at = $2
        WHERE bot_id = $1 AND state = 'provisioning'",
        bot.0,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}
