//! The built-in responder: what a bot answers with no program of its owner running.
//!
//! No side effects: the worker asks it about each message that it logs, and the answer goes into the
//! outbox in the commit that logs the message, so a message that was seen is a message that will be
//! answered, once. An answer's transaction id is made of the event's.
//!
//! Bots never answer bots, nor notices: two fleets cannot keep each other talking.

pub mod commands;

use serde_json::Value;

use self::commands::Command;
use crate::model::Heard;

/// How old a message may be when it reaches us: what a room said before the bot was there, or while
/// the homeserver was away, is not answered. Waiting for its key afterwards does not count.
const STALE_MS: i64 = 10 * 60 * 1000;

/// The content of the answer to a message, if it asks for one.
#[must_use]
pub fn answer(heard: &Heard<'_>) -> Option<Value> {
    if heard.age_ms > STALE_MS {
        return None;
    }
    let command = Command::of(heard)?;
    Some(commands::reply(heard, &command.text(heard)))
}

#[cfg(test)]
mod tests {
    use ruma::{device_id, user_id};
    use serde_json::json;

    use super::*;

    fn answered(body: &str, msgtype: &str, age_ms: i64) -> Option<Value> {
        let event = json!({
            "type": "m.room.message", "content": {"msgtype": msgtype, "body": body},
        });
        answer(&Heard {
            user_id: user_id!("@bot_a:example.org"),
            device_id: device_id!("GSA"),
            display_name: Some("Alpha"),
            master_key: None,
            event: &event,
            event_id: "$e1",
            sender: "@alice:example.org",
            age_ms,
        })
    }

    #[test]
    fn a_command_is_answered_and_nothing_else() {
        let answer = answered("!ping", "m.text", 1).expect("an answer");
        assert_eq!((&answer["msgtype"], &answer["body"]), (&"m.notice".into(), &"pong".into()));
        assert_eq!(answer["m.relates_to"]["m.in_reply_to"]["event_id"], "$e1");
        assert_eq!(answered("hello", "m.text", 1), None);
        assert_eq!(answered("!ping", "m.notice", 1), None);
    }

    #[test]
    fn an_old_message_is_not_answered() {
        assert!(answered("!ping", "m.text", STALE_MS).is_some());
        assert_eq!(answered("!ping", "m.text", STALE_MS + 1), None);
    }
}
