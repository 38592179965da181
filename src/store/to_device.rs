//! `to_device_seen`: what makes a to-device message that comes twice harmless.
//!
//! A message reaches us by transaction, and again whenever a bot's inbox is reconciled. Every message
//! leaves a digest here, which is kept longer than the homeserver keeps the message.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use sqlx::PgConnection;

use super::StoreError;
use crate::model::{BotId, foreign};

/// Fields of a to-device message's content that rows are found by.
const IDS: [&str; 4] = ["transaction_id", "session_id", "room_id", "request_id"];

/// Whether this is a to-device message, as far as we can know: it says from whom it is and what, and
/// what rows are found by can be an id.
#[must_use]
pub fn is_sound(event: &Value) -> bool {
    let id = |value: &Value| value.as_str().is_some_and(foreign::is_id);
    let Some(content) = event.get("content").and_then(Value::as_object) else { return false };
    ["sender", "type"].iter().all(|key| event.get(key).is_some_and(id))
        && IDS
            .iter()
            .filter_map(|key| content.get(*key))
            .all(|value| !value.is_string() || id(value))
}

/// What makes two deliveries the same message: sender, type and content.
#[must_use]
pub fn digest(event: &Value) -> Vec<u8> {
    let mut hash = Sha256::new();
    for key in ["sender", "type", "content"] {
        // `Value` keeps object keys sorted, so equal contents have equal text.
        hash.update(event.get(key).unwrap_or(&Value::Null).to_string());
        hash.update([0]);
    }
    hash.finalize().to_vec()
}

/// Records messages, and says which of them (by index) are new. Of two equal ones the first is new.
///
/// # Errors
///
/// The database's own.
pub async fn record(
    conn: &mut PgConnection,
    messages: &[(BotId, Vec<u8>)],
    now: DateTime<Utc>,
) -> Result<Vec<usize>, StoreError> {
    if messages.is_empty() {
        return Ok(Vec::new());
    }
    let (bots, digests): (Vec<i64>, Vec<Vec<u8>>) =
        messages.iter().map(|(bot, digest)| (bot.0, digest.clone())).unzip();
    let rows = sqlx::query!(
        "-- to_device.record
        INSERT INTO to_device_seen (bot_id, digest, seen_at)
        SELECT DISTINCT bot_id, digest, $3::TIMESTAMPTZ
        FROM UNNEST($1::BIGINT[], $2::BYTEA[]) AS new (bot_id, digest)
        ORDER BY bot_id, digest
        ON CONFLICT (bot_id, digest) DO NOTHING
        RETURNING bot_id, digest",
        &bots,
        &digests,
        now,
    )
    .fetch_all(conn)
    .await?;
    let mut fresh: HashSet<(BotId, Vec<u8>)> =
        rows.into_iter().map(|r| (BotId(r.bot_id), r.digest)).collect();
    Ok(messages
        .iter()
        .enumerate()
        .filter(|(_, message)| fresh.remove(*message))
        .map(|(index, _)| index)
        .collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_digest_is_of_the_message_and_not_of_its_delivery() {
        let by_transaction = json!({"sender": "@a:x", "type": "m.room.encrypted",
            "content": {"b": 1, "a": 2}, "to_user_id": "@bot:x", "to_device_id": "D"});
        let by_sync =
            json!({"sender": "@a:x", "type": "m.room.encrypted", "content": {"a": 2, "b": 1}});
        let other =
            json!({"sender": "@b:x", "type": "m.room.encrypted", "content": {"a": 2, "b": 1}});

        assert_eq!(digest(&by_transaction), digest(&by_sync));
        assert_ne!(digest(&by_transaction), digest(&other));
    }
}
