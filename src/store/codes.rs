//! `signup_codes`: codes by which owners sign bots up. Only their digests are kept.

use chrono::{DateTime, Utc};
use ruma::{OwnedUserId, UserId};
use sqlx::PgConnection;

use super::StoreError;
use crate::model::CodeId;

/// A code as an operator sees it.
#[derive(Clone, Debug)]
pub struct Code {
    /// Our id.
    pub id: CodeId,
    /// Its first characters.
    pub hint: String,
    /// What the operator called it.
    pub label: String,
    /// The human with whom its bots open their direct room.
    pub inviter: OwnedUserId,
    /// How many bots it may make.
    pub max_uses: i32,
    /// How many it has made.
    pub used: i32,
    /// When it was minted.
    pub created_at: DateTime<Utc>,
    /// When it stops working.
    pub expires_at: Option<DateTime<Utc>>,
    /// When an operator ended it.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// A code that is to be.
#[derive(Clone, Copy, Debug)]
pub struct NewCode<'a> {
    /// SHA-256 of the code.
    pub hash: &'a [u8; 32],
    /// Its first characters.
    pub hint: &'a str,
    /// What the operator calls it.
    pub label: &'a str,
    /// The human with whom its bots open their direct room.
    pub inviter: &'a UserId,
    /// How many bots it may make.
    pub max_uses: i32,
    /// When it stops working.
    pub expires_at: Option<DateTime<Utc>>,
}

struct Row {
    code_id: i64,
    code_hint: String,
    label: String,
    inviter: String,
    max_uses: i32,
    used: i32,
    created_at: DateTime<Utc>,
    expires_at: Option<DateTime<Utc>>,
    revoked_at: Option<DateTime<Utc>>,
}

impl TryFrom<Row> for Code {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: CodeId(row.code_id),
            hint: row.code_hint,
            label: row.label,
            inviter: row.inviter.try_into()?,
            max_uses: row.max_uses,
            used: row.used,
            created_at: row.created_at,
            expires_at: row.expires_at,
            revoked_at: row.revoked_at,
        })
    }
}

/// Keeps a new code.
///
/// # Errors
///
/// The database's own.
pub async fn insert(
    conn: &mut PgConnection,
    code: NewCode<'_>,
    now: DateTime<Utc>,
) -> Result<CodeId, StoreError> {
    let id = sqlx::query_scalar!(
        "-- codes.insert
        INSERT INTO signup_codes (
            code_hash, code_hint, label, inviter, max_uses, created_at, expires_at
        )
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        RETURNING code_id",
        code.hash,
        code.hint,
        code.label,
        code.inviter.as_str(),
        code.max_uses,
        now,
        code.expires_at,
    )
    .fetch_one(conn)
    .await?;
    Ok(CodeId(id))
}

/// The code with this digest, held until the end of the transaction: signups with one code take turns.
///
/// # Errors
///
/// The database's own, or a row that this version cannot read.
pub async fn hold(conn: &mut PgConnection, hash: &[u8; 32]) -> Result<Option<Code>, StoreError> {
    sqlx::query_as!(
        Row,
        "-- codes.hold
        SELECT
            code_id, code_hint, label, inviter, max_uses, used, created_at, expires_at, revoked_at
        FROM signup_codes
        WHERE code_hash = $1
        FOR UPDATE",
        hash,
    )
    .fetch_optional(conn)
    .await?
    .map(Code::try_from)
    .transpose()
}

/// Uses a code up once more; false if no use was left.
///
/// # Errors
///
/// The database's own.
pub async fn use_once(conn: &mut PgConnection, code: CodeId) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "-- codes.use_once
        UPDATE signup_codes SET used = used + 1 WHERE code_id = $1 AND used < max_uses",
        code.0,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// All codes, the newest first.
///
/// # Errors
///
/// The database's own, or a row that this version cannot read.
pub async fn list(conn: &mut PgConnection) -> Result<Vec<Code>, StoreError> {
    sqlx::query_as!(
        Row,
        "-- codes.list
        SELECT
            code_id, code_hint, label, inviter, max_uses, used, created_at, expires_at, revoked_at
        FROM signup_codes
        ORDER BY code_id DESC",
    )
    .fetch_all(conn)
    .await?
    .into_iter()
    .map(Code::try_from)
    .collect()
}

/// Ends a code; bots that it made stay. False if there is none, or it was ended before.
///
/// # Errors
///
/// The database's own.
pub async fn revoke(
    conn: &mut PgConnection,
    code: CodeId,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "-- codes.revoke
        UPDATE signup_codes SET revoked_at = $2 WHERE code_id = $1 AND revoked_at IS NULL",
        code.0,
        now,
    )
    .execute(conn)
    .await?;
    Ok(done.rows_affected() == 1)
}
