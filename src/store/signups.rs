//! `signups`, and the birth of rows in `bots`: how a bot comes to be.
//!
//! The edge inserts both rows and wakes the bot; the worker does the steps and records each; the edge
//! reads the row until it is finished or has failed.

use chrono::{DateTime, Utc};
use ruma::{OwnedDeviceId, OwnedRoomId, OwnedUserId, UserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;

use super::{Sealer, StoreError};
use crate::model::{BotId, CodeId, SignupId, VerificationPolicy};

const TABLE: &str = "signups";

/// Which step failed last, and what the caller is told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The step's name.
    pub step: String,
    /// The error code.
    pub errcode: String,
    /// The text, which names the cure.
    pub error: String,
    /// Whether the worker tries again by itself.
    pub retry: bool,
    /// When it failed.
    #[serde(default)]
    pub at: Option<DateTime<Utc>>,
}

/// A signup, done or not.
#[derive(Clone, Debug)]
pub struct Signup {
    /// Our id.
    pub id: SignupId,
    /// The code that was used.
    pub code: CodeId,
    /// The bot that it makes.
    pub bot: BotId,
    /// The bot's user.
    pub user_id: OwnedUserId,
    /// The bot's device.
    pub device_id: OwnedDeviceId,
    /// SHA-256 of the Idempotency-Key, if one was sent.
    pub idempotency_hash: Option<Vec<u8>>,
    /// Each step by name with true, false or a list.
    pub steps: Value,
    /// The space that the bot joined.
    pub space_id: Option<OwnedRoomId>,
    /// The direct room with the inviter.
    pub dm_room: Option<OwnedRoomId>,
    /// The last step that failed.
    pub failure: Option<Failure>,
    /// When the last step was done.
    pub finished_at: Option<DateTime<Utc>>,
    /// When a caller was first given the whole answer.
    pub answered_at: Option<DateTime<Utc>>,
}

impl Signup {
    /// Whether a step is done.
    #[must_use]
    pub fn has(&self, step: &str) -> bool {
        self.steps.get(step).and_then(Value::as_bool) == Some(true)
    }
}

/// A signup that is to be.
#[derive(Clone, Copy, Debug)]
pub struct NewSignup<'a> {
    /// The code that was used.
    pub code: CodeId,
    /// The name that was asked for.
    pub username: &'a str,
    /// The bot's user.
    pub user_id: &'a UserId,
    /// The bot's device, minted once.
    pub device_id: &'a str,
    /// The bot's public name.
    pub display_name: &'a str,
    /// What the bot does when it is asked to verify.
    pub verification_policy: VerificationPolicy,
    /// SHA-256 of the Idempotency-Key, if one was sent.
    pub idempotency_hash: Option<&'a [u8; 32]>,
    /// The human of the direct room.
    pub inviter: &'a UserId,
    /// The text of the first message.
    pub intro: &'a str,
}

struct Row {
    signup_id: i64,
    code_id: i64,
    bot_id: i64,
    user_id: String,
    device_id: String,
    idempotency_hash: Option<Vec<u8>>,
    steps: Value,
    space_id: Option<String>,
    dm_room: Option<String>,
    failure: Option<Value>,
    finished_at: Option<DateTime<Utc>>,
    answered_at: Option<DateTime<Utc>>,
}

impl TryFrom<Row> for Signup {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: SignupId(row.signup_id),
            code: CodeId(row.code_id),
            bot: BotId(row.bot_id),
            user_id: row.user_id.try_into()?,
            device_id: row.device_id.into(),
            idempotency_hash: row.idempotency_hash,
            steps: row.steps,
            space_id: row.space_id.map(OwnedRoomId::try_from).transpose()?,
            dm_room: row.dm_room.map(OwnedRoomId::try_from).transpose()?,
            failure: row.failure.map(serde_json::from_value).transpose()?,
            finished_at: row.finished_at,
            answered_at: row.answered_at,
        })
    }
}

/// What no step of has been done.
fn no_steps() -> Value {
    serde_json::json!({
        "user": false,
        "device": false,
        "identity": false,
        "keys": false,
        "profile": false,
        "rooms": [],
        "dm": false,
        "intro": false,
    })
}

/// Makes the rows of a new bot and its signup, with every step still to do; `None` if the user id is
/// taken by another bot. The caller wakes the bot.
///
/// # Errors
///
/// The database's own.
pub async fn insert(
    conn: &mut PgConnection,
    sealer: &Sealer,
    new: NewSignup<'_>,
    now: DateTime<Utc>,
) -> Result<Option<(SignupId, BotId)>, StoreError> {
    let bot = sqlx::query_scalar!(
        "-- signups.insert_bot
        INSERT INTO bots (user_id, device_id, display_name, verification_policy, created_at)
        VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (user_id) DO NOTHING
        RETURNING bot_id",
        new.user_id.as_str(),
        new.device_id,
        new.display_name,
        new.verification_policy.as_str(),
        now,
    )
    .fetch_optional(&mut *conn)
    .await?;
    let Some(bot) = bot.map(BotId) else {
        return Ok(None);
    };
    let sealed_intro = sealer.seal(TABLE, Some(bot), new.intro.as_bytes())?;
    let signup = sqlx::query_scalar!(
        "-- signups.insert
        INSERT INTO signups (
            code_id, bot_id, username, idempotency_hash, inviter, steps, sealed_intro, created_at
        )
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
        RETURNING signup_id",
        new.code.0,
        bot.0,
        new.username,
        new.idempotency_hash.map(<[u8; 32]>::as_slice),
        new.inviter.as_str(),
        no_steps(),
        sealed_intro,
        now,
    )
    .fetch_one(conn)
    .await?;
    Ok(Some((SignupId(signup), bot)))
}

/// The signup that made, or makes, the bot of this user.
///
/// # Errors
///
/// The database's own, or a row that this version cannot read.
pub async fn by_user(
    conn: &mut PgConnection,
    user_id: &UserId,
) -> Result<Option<Signup>, StoreError> {
    sqlx::query_as!(
        Row,
        "-- signups.by_user
        SELECT
            s.signup_id, s.code_id, s.bot_id, b.user_id, b.device_id, s.idempotency_hash, s.steps,
            s.space_id, s.dm_room, s.failure, s.finished_at, s.answered_at
        FROM signups s
        JOIN bots b USING (bot_id)
        WHERE b.user_id = $1",
        user_id.as_str(),
    )
    .fetch_optional(conn)
    .await?
    .map(Signup::try_from)
    .transpose()
}

/// The signup that made, or makes, this bot.
///
/// # Errors
///
/// The database's own, or a row that this version cannot read.
pub async fn by_bot(conn: &mut PgConnection, bot: BotId) -> Result<Option<Signup>, StoreError> {
    sqlx::query_as!(
        Row,
        "-- signups.by_bot
        SELECT
            s.signup_id, s.code_id, s.bot_id, b.user_id, b.device_id, s.idempotency_hash, s.steps,
            s.space_id, s.dm_room, s.failure, s.finished_at, s.answered_at
        FROM signups s
        JOIN bots b USING (bot_id)
        WHERE s.bot_id = $1",
        bot.0,
    )
    .fetch_optional(conn)
    .await?
    .map(Signup::try_from)
    .transpose()
}

/// The text of a bot's first message.
///
/// # Errors
///
/// The database's own, or a damaged seal.
pub async fn intro(
    conn: &mut PgConnection,
    sealer: &Sealer,
    bot: BotId,
) -> Result<String, StoreError> {
    let sealed = sqlx::query_scalar!(
        "-- signups.intro
        SELECT sealed_intro FROM signups WHERE bot_id = $1",
        bot.0,
    )
    .fetch_one(conn)
    .await?;
    let intro = sealer.open(TABLE, Some(bot), &sealed)?;
    Ok(String::from_utf8_lossy(&intro).into_owned())
}

/// Forgets the last failure, because the signup is taken up again. The caller wakes the bot.
///
/// # Errors
///
/// The database's own.
pub async fn resume(conn: &mut PgConnection, signup: SignupId) -> Result<(), StoreError> {
    sqlx::query!(
        "-- signups.resume
        UPDATE signups SET failure = NULL WHERE signup_id = $1 AND failure IS NOT NULL",
        signup.0,
    )
    .execute(&mut *conn)
    .await?;
    // The first message is a step, too: one that was given up is sent after all.
    sqlx::query!(
        "-- signups.resume_intro
        UPDATE outbox o SET state = 'queued', attempts = 0, error = NULL, finished_at = NULL
        FROM signups s
        WHERE s.signup_id = $1 AND s.finished_at IS NULL AND o.bot_id = s.bot_id
            AND o.txn_id = 'signup-intro' AND o.state = 'failed'",
        signup.0,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Takes back a signup whose user could not be made, and gives its code the use back: nothing of it
/// exists at the homeserver. False if it has got further.
///
/// # Errors
///
/// The database's own.
pub async fn take_back(conn: &mut PgConnection, signup: SignupId) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "-- signups.take_back
        WITH gone AS (
            DELETE FROM bots b
            USING signups s
            WHERE s.signup_id = $1 AND s.bot_id = b.bot_id AND b.state = 'provisioning'
                AND s.steps -> 'user' = 'false'
            RETURNING b.bot_id, s.code_id
        ), woken AS (
            DELETE FROM bot_queue WHERE bot_id IN (SELECT bot_id FROM gone)
        ), given AS (
            DELETE FROM inbox WHERE bot_id IN (SELECT bot_id FROM gone)
        ), asked AS (
            DELETE FROM outbox WHERE bot_id IN (SELECT bot_id FROM gone)
        )
        UPDATE signup_codes c SET used = GREATEST(used - 1, 0)
        FROM gone
        WHERE c.code_id = gone.code_id",
        signup.0,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Records that a caller was given the whole answer; the first time counts.
///
/// # Errors
///
/// The database's own.
pub async fn answered(
    conn: &mut PgConnection,
    signup: SignupId,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "-- signups.answered
        UPDATE signups SET answered_at = $2 WHERE signup_id = $1 AND answered_at IS NULL",
        signup.0,
        now,
    )
    .execute(conn)
    .await?;
    Ok(())
}
