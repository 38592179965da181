//! `outbox`: work out. The only way into a room.

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::PgConnection;

use super::{Sealer, StoreError};
use crate::model::BotId;

const TABLE: &str = "outbox";

/// A message that somebody asks a bot to send, sealed.
#[derive(Clone, Debug)]
pub struct SendRow {
    bot: BotId,
    room_id: String,
    txn_id: String,
    event_type: String,
    sealed: Vec<u8>,
    created_at: DateTime<Utc>,
}

impl SendRow {
    /// Seals `send`.
    ///
    /// # Errors
    ///
    /// Only if sealing fails.
    pub fn new(sealer: &Sealer, bot: BotId, send: &Send) -> Result<Self, StoreError> {
        Ok(Self {
            bot,
            room_id: send.room_id.clone(),
            txn_id: send.txn_id.clone(),
            event_type: send.event_type.clone(),
            sealed: sealer.seal_json(TABLE, Some(bot), &send.content)?,
            created_at: send.created_at,
        })
    }
}

/// A message waiting to be sent.
#[derive(Clone, Debug)]
pub struct Send {
    /// Where to.
    pub room_id: String,
    /// The asker's id for it: the same id is the same message, for good.
    pub txn_id: String,
    /// Type before encryption.
    pub event_type: String,
    /// Content before encryption.
    pub content: Value,
    /// How often it was tried.
    pub attempts: i32,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// How a message went out.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// The event id that the homeserver gave it.
    pub event_id: String,
    /// The Megolm session, if it was encrypted.
    pub session_id: Option<String>,
    /// How many devices were given that session for this message.
    pub devices: Option<i32>,
}

/// What became of an attempt to send a message.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It is in the room.
    Sent(Sent),
    /// It is tried again at this time; why.
    PutOff(DateTime<Utc>, String),
    /// It is given up; why.
    Failed(String),
}

/// [`Outcome`], of which message, and when.
#[derive(Clone, Debug)]
pub struct OutcomeRow {
    /// Whose message.
    pub bot: BotId,
    /// Which one.
    pub txn_id: String,
    /// What became of it.
    pub outcome: Outcome,
    /// When.
    pub at: DateTime<Utc>,
}

/// Takes messages in; one whose id is there already is the same message, and changes nothing.
///
/// # Errors
///
/// The database's own.
pub async fn insert_all(conn: &mut PgConnection, rows: Vec<SendRow>) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let (bots, rooms, txns, types, sealed, created): (
        Vec<_>,
        Vec<_>,
        Vec<_>,
        Vec<_>,
        Vec<_>,
        Vec<_>,
    ) = rows
        .into_iter()
        .map(|row| (row.bot.0, row.room_id, row.txn_id, row.event_type, row.sealed, row.created_at))
        .collect();
    sqlx::query!(
        "-- outbox.insert_all
        INSERT INTO outbox (
            bot_id, room_id, txn_id, event_type, sealed_content, due_at, created_at
        )
        SELECT bot_id, room_id, txn_id, event_type, sealed, created_at, created_at
        FROM UNNEST(
            $1::BIGINT[], $2::TEXT[], $3::TEXT[], $4::TEXT[], $5::BYTEA[], $6::TIMESTAMPTZ[]
        ) WITH ORDINALITY AS new (
            bot_id, room_id, txn_id, event_type, sealed, created_at, position
        )
        ORDER BY position
        ON CONFLICT ON CONSTRAINT outbox_txn_once DO NOTHING",
        &bots,
        &rooms,
        &txns,
        &types,
        &sealed,
        &created,
    )
    .execute(conn)
    .await?;
    Ok(())
}

/// Records what became of messages.
///
/// # Errors
///
/// The database's own.
pub async fn record(conn: &mut PgConnection, rows: Vec<OutcomeRow>) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut columns = Columns::default();
    for OutcomeRow { bot, txn_id, outcome, at } in rows {
        columns.bots.push(bot.0);
        columns.txns.push(txn_id);
        columns.at.push(at);
        let (state, sent, due, error) = match outcome {
            Outcome::Sent(sent) => ("sent", Some(sent), None, None),
            Outcome::PutOff(due_at, error) => ("queued", None, Some(due_at), Some(error)),
            Outcome::Failed(error) => ("failed", None, None, Some(error)),
        };
        let Sent { event_id, session_id, devices } = sent.unwrap_or_default();
        columns.states.push(state.to_owned());
        columns.events.push((state == "sent").then_some(event_id));
        columns.sessions.push(session_id);
        columns.devices.push(devices);
        columns.due.push(due);
        columns.errors.push(error);
    }
    sqlx::query!(
        "-- outbox.record
        UPDATE outbox o
        SET state = r.state,
            event_id = r.event_id,
            session_id = r.session_id,
            devices = r.devices,
            encrypted = CASE WHEN r.state = 'sent' THEN r.session_id IS NOT NULL END,
            error = r.error,
            due_at = COALESCE(r.due_at, o.due_at),
            attempts = o.attempts + (r.state <> 'sent')::INTEGER,
            finished_at = CASE WHEN r.state <> 'queued' THEN r.at END
        FROM UNNEST(
            $1::BIGINT[], $2::TEXT[], $3::TEXT[], $4::TEXT[], $5::TEXT[], $6::INTEGER[],
            $7::TIMESTAMPTZ[], $8::TEXT[], $9::TIMESTAMPTZ[]
        ) AS r (bot_id, txn_id, state, event_id, session_id, devices, due_at, error, at)
        WHERE o.bot_id = r.bot_id AND o.txn_id = r.txn_id AND o.state = 'queued'",
        &columns.bots,
        &columns.txns,
        &columns.states,
        &columns.events as &[Option<String>],
        &columns.sessions as &[Option<String>],
        &columns.devices as &[Option<i32>],
        &columns.due as &[Option<DateTime<Utc>>],
        &columns.errors as &[Option<String>],
        &columns.at,
    )
    .execute(conn)
    .await?;
    Ok(())
}

#[derive(Default)]
struct Columns {
    bots: Vec<i64>,
    txns: Vec<String>,
    states: Vec<String>,
    events: Vec<Option<String>>,
    sessions: Vec<Option<String>>,
    devices: Vec<Option<i32>>,
    due: Vec<Option<DateTime<Utc>>>,
    errors: Vec<Option<String>>,
    at: Vec<DateTime<Utc>>,
}

/// The due messages of bots, each bot's in the order of asking and at most `limit` of them. A later
/// message never overtakes an earlier one of the same room: while one waits for its next attempt,
/// those behind it wait with it. Beside them, what became of those whose seal is broken.
///
/// # Errors
///
/// The database's own.
pub async fn due(
    conn: &mut PgConnection,
    sealer: &Sealer,
    bots: &[BotId],
    now: DateTime<Utc>,
    limit: i64,
) -> Result<(Vec<(BotId, Send)>, Vec<OutcomeRow>), StoreError> {
    let ids: Vec<i64> = bots.iter().map(|bot| bot.0).collect();
    let rows = sqlx::query!(
        r#"-- outbox.due
        SELECT b.bot_id AS "bot_id!", s.room_id, s.txn_id, s.event_type, s.sealed_content,
            s.attempts, s.created_at
        FROM UNNEST($1::BIGINT[]) AS b (bot_id)
        CROSS JOIN LATERAL (
            SELECT * FROM outbox o
            WHERE o.bot_id = b.bot_id AND o.state = 'queued' AND o.due_at <= $2
                AND NOT EXISTS (
                    SELECT FROM outbox earlier
                    WHERE earlier.bot_id = b.bot_id AND earlier.state = 'queued'
                        AND earlier.due_at > $2 AND earlier.room_id = o.room_id
                        AND earlier.send_id < o.send_id
                )
            ORDER BY o.send_id
            LIMIT $3
        ) AS s
        ORDER BY s.send_id"#,
        &ids,
        now,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let (mut sends, mut broken) = (Vec::with_capacity(rows.len()), Vec::new());
    for row in rows {
        let bot = BotId(row.bot_id);
        match sealer.open_json(TABLE, Some(bot), &row.sealed_content) {
            Ok(content) => {
                let send = Send {
                    room_id: row.room_id,
                    txn_id: row.txn_id,
                    event_type: row.event_type,
                    content,
                    attempts: row.attempts,
                    created_at: row.created_at,
                };
                sends.push((bot, send));
            }
            Err(error) => {
                tracing::error!(%bot, txn_id = row.txn_id, %error, "giving up a message that does not open");
                let outcome = Outcome::Failed("its sealed content does not open".to_owned());
                broken.push(OutcomeRow { bot, txn_id: row.txn_id, outcome, at: now });
            }
        }
    }
    Ok((sends, broken))
}

/// What a bot of ours sent as this event, before encryption: its type and content. `None` if none of
/// them did, if that is not recorded yet, or if it is too long ago.
///
/// # Errors
///
/// The database's own, or a damaged seal.
pub async fn said(
    conn: &mut PgConnection,
    sealer: &Sealer,
    event_id: &str,
) -> Result<Option<(String, Value)>, StoreError> {
    let row = sqlx::query!(
        "-- outbox.said
        SELECT bot_id, event_type, sealed_content FROM outbox
        WHERE event_id = $1 AND sealed_content <> ''",
        event_id,
    )
    .fetch_optional(conn)
    .await?;
    row.map(|row| {
        let content = sealer.open_json(TABLE, Some(BotId(row.bot_id)), &row.sealed_content)?;
        Ok((row.event_type, content))
    })
    .transpose()
}

/// What became of a message: the event id once it is sent, the error once it is given up.
///
/// # Errors
///
/// The database's own.
pub async fn outcome(
    conn: &mut PgConnection,
    bot: BotId,
    txn_id: &str,
) -> Result<Option<Result<Sent, String>>, StoreError> {
    let row = sqlx::query!(
        "-- outbox.outcome
        SELECT state, event_id, session_id, devices, error
        FROM outbox
        WHERE bot_id = $1 AND txn_id = $2 AND state <> 'queued'",
        bot.0,
        txn_id,
    )
    .fetch_optional(conn)
    .await?;
    Ok(row.map(|row| match (row.state.as_str(), row.event_id) {
        ("sent", Some(event_id)) => {
            Ok(Sent { event_id, session_id: row.session_id, devices: row.devices })
        }
        _ => Err(row.error.unwrap_or_default()),
    }))
}
