//! Which messages are commands, and what is answered. No side effects.

use serde_json::{Value, json};

use crate::model::{self, Heard};

/// What a bot can be asked without a program of its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// `!ping`
    Ping,
    /// `!whoami`
    WhoAmI,
    /// `!help`
    Help,
}

const HELP: &str = "I answer by myself:
!ping: whether I am there
!whoami: my Matrix id, device and fingerprint
!help: this list
Where there are several of us, add one's Matrix id to ask only that one, like !ping @bot:example.org";

impl Command {
    fn named(word: &str) -> Option<Self> {
        match word {
            "!ping" => Some(Self::Ping),
            "!whoami" => Some(Self::WhoAmI),
            "!help" => Some(Self::Help),
            _ => None,
        }
    }

    /// The command in a message, if it is one and meant for the bot that hears it: nothing but the
    /// command, or the command with one bot's id, public name or mention after it, or before it as
    /// Element writes it.
    #[must_use]
    pub fn of(heard: &Heard<'_>) -> Option<Self> {
        let event = heard.event;
        if event["type"] != "m.room.message" || event["content"]["msgtype"] != "m.text" {
            return None;
        }
        let content = &event["content"];
        if content["m.relates_to"]["rel_type"] == "m.replace" {
            return None;
        }
        let body = content["body"].as_str()?.trim();
        if let Some(command) = Self::named(body) {
            return Some(command);
        }
        let (first, after) = body.split_once(char::is_whitespace)?;
        let (before, last) = body.rsplit_once(char::is_whitespace)?;
        let (command, addressed) = match (Self::named(first), Self::named(last)) {
            (Some(command), None) => (command, after),
            (None, Some(command)) => (command, before),
            _ => return None,
        };
        let addressed = addressed.trim().trim_end_matches([':', ',']);
        is_addressed(content, addressed, heard).then_some(command)
    }

    /// What the bot that was asked answers.
    #[must_use]
    pub fn text(self, bot: &Heard<'_>) -> String {
        match self {
            Self::Ping => "pong".to_owned(),
            Self::WhoAmI => {
                let key =
                    bot.master_key.map_or_else(|| "not there yet".to_owned(), model::fingerprint);
                format!("I am {}\nDevice: {}\nFingerprint: {key}", bot.user_id, bot.device_id)
            }
            Self::Help => HELP.to_owned(),
        }
    }
}

fn is_addressed(content: &Value, addressed: &str, bot: &Heard<'_>) -> bool {
    if addressed == bot.user_id.as_str() {
        return true;
    }
    // A mention puts the public name into the body and the id beside it. Names are not unique: where
    // the ids are there, they decide.
    match content["m.mentions"]["user_ids"].as_array().filter(|ids| !ids.is_empty()) {
        Some(ids) => ids.iter().any(|id| id == bot.user_id.as_str()),
        None => bot.display_name.is_some_and(|name| name == addressed),
    }
}

/// The content that answers a message with `body`: a notice, so that no bot takes it for a question, in
/// reply to the message and in its thread.
#[must_use]
pub fn reply(heard: &Heard<'_>, body: &str) -> Value {
    let mut relation = json!({"m.in_reply_to": {"event_id": heard.event_id}});
    let theirs = &heard.event["content"]["m.relates_to"];
    if let (Some("m.thread"), Some(root)) =
        (theirs["rel_type"].as_str(), theirs["event_id"].as_str())
    {
        relation["rel_type"] = "m.thread".into();
        relation["event_id"] = root.into();
        relation["is_falling_back"] = false.into();
    }
    json!({
        "msgtype": "m.notice",
        "body": body,
        "m.relates_to": relation,
        "m.mentions": {"user_ids": [heard.sender]},
    })
}

#[cfg(test)]
mod tests {
    use ruma::{device_id, user_id};

    use super::*;

    fn heard(event: &Value) -> Heard<'_> {
        Heard {
            user_id: user_id!("@bot_a:example.org"),
            device_id: device_id!("GSA"),
            display_name: Some("Alpha Bot"),
            master_key: Some("abcdefgh"),
            event,
            event_id: "$e",
            sender: "@alice:example.org",
            age_ms: 0,
        }
    }

    fn message(body: &str) -> Value {
        json!({"type": "m.room.message", "content": {"msgtype": "m.text", "body": body}})
    }

    #[test]
    fn a_command_is_the_whole_message_or_names_the_bot() {
        for (body, expected) in [
            ("!ping", Some(Command::Ping)),
            ("  !whoami\n", Some(Command::WhoAmI)),
            ("!help", Some(Command::Help)),
            ("!ping @bot_a:example.org", Some(Command::Ping)),
            ("@bot_a:example.org: !ping", Some(Command::Ping)),
            ("Alpha Bot: !help", Some(Command::Help)),
            ("!ping @bot_b:example.org", None),
            ("Beta Bot: !ping", None),
            ("!ping !ping", None),
            ("!pong", None),
            ("please !ping", None),
            ("!PING", None),
            ("", None),
        ] {
            assert_eq!(Command::of(&heard(&message(body))), expected, "{body}");
        }
    }

    #[test]
    fn mentioned_ids_decide_over_names() {
        let mut event = message("Alpha Bot: !ping");
        event["content"]["m.mentions"] = json!({"user_ids": ["@bot_b:example.org"]});
        assert_eq!(Command::of(&heard(&event)), None);
        event["content"]["m.mentions"] = json!({"user_ids": ["@bot_a:example.org"]});
        assert_eq!(Command::of(&heard(&event)), Some(Command::Ping));
    }

    #[test]
    fn only_texts_are_commands() {
        let mut notice = message("!ping");
        notice["content"]["msgtype"] = "m.notice".into();
        let mut edit = message("!ping");
        edit["content"]["m.relates_to"] = json!({"rel_type": "m.replace", "event_id": "$a"});
        let mut topic = message("!ping");
        topic["type"] = "m.room.topic".into();
        for event in [notice, edit, topic, json!({}), json!([]), json!({"content": 1})] {
            assert_eq!(Command::of(&heard(&event)), None, "{event}");
        }
    }

    #[test]
    fn an_answer_is_a_notice_in_reply_and_stays_in_the_thread() {
        let mut event = message("!ping");
        let content = reply(&heard(&event), "pong");
        let expected = json!({
            "msgtype": "m.notice",
            "body": "pong",
            "m.relates_to": {"m.in_reply_to": {"event_id": "$e"}},
            "m.mentions": {"user_ids": ["@alice:example.org"]},
        });
        assert_eq!(content, expected);

        event["content"]["m.relates_to"] = json!({"rel_type": "m.thread", "event_id": "$root"});
        let content = reply(&heard(&event), "pong");
        assert_eq!(content["m.relates_to"]["event_id"], "$root");
        assert_eq!(content["m.relates_to"]["rel_type"], "m.thread");
        assert_eq!(content["m.relates_to"]["m.in_reply_to"]["event_id"], "$e");
    }

    #[test]
    fn who_am_i_tells_what_to_compare() {
        let text = Command::WhoAmI.text(&heard(&json!({})));
        assert_eq!(text, "I am @bot_a:example.org\nDevice: GSA\nFingerprint: abcd efgh");
    }
}
