//! What strangers write, made fit for a database.
//!
//! Anybody on Matrix can put any JSON into what a homeserver brings us. PostgreSQL keeps no U+0000 in
//! a text and no long text in an index: where such a thing reached a query, the query failed, and what
//! comes again for ever would fail for ever.

use std::borrow::Cow;

use serde_json::{Map, Value};
use vodozemac::{Curve25519PublicKey, megolm::MegolmMessage};

/// The most that any id of Matrix may have, in bytes.
const ID_BYTES: usize = 255;

/// What a word of somebody else becomes that is none of the specification's.
const OTHER: &str = "other";

/// JSON text without U+0000 in its strings, which can only stand there escaped: each becomes U+FFFD.
#[must_use]
pub fn without_nul(json: &[u8]) -> Cow<'_, [u8]> {
    const ESCAPED: &[u8] = b"\\u0000";
    if !json.windows(ESCAPED.len()).any(|window| window == ESCAPED) {
        return Cow::Borrowed(json);
    }
    let mut clean = json.to_vec();
    let mut at = 0;
    while let Some(rest) = clean.get_mut(at..).filter(|rest| !rest.is_empty()) {
        if rest.starts_with(ESCAPED)
            && let Some(digits) = rest.get_mut(2..ESCAPED.len())
        {
            digits.copy_from_slice(b"fffd");
        }
        // A backslash takes the next character with it, which may be a backslash, too.
        at += if rest.starts_with(b"\\") { 2 } else { 1 };
    }
    Cow::Owned(clean)
}

/// Whether this can be an id of Matrix, or what is used like one: not too long, and without U+0000.
#[must_use]
pub fn is_id(text: &str) -> bool {
    text.len() <= ID_BYTES && !text.contains('\0')
}

/// `word` if it is one of those that are known: a row or a log line repeats no text of strangers.
#[must_use]
pub fn known_word(word: &str, known: &[&'static str]) -> &'static str {
    known.iter().find(|known| **known == word).copied().unwrap_or(OTHER)
}

/// What is kept of the content of a room's `m.room.encryption`: what sending heeds. Whatever else stands in
/// it, or if it has none, the room is encrypted: what is returned is never nothing.
#[must_use]
pub fn encryption(content: Option<&Value>) -> Value {
    let field = |name: &str| content.and_then(|content| content.get(name));
    let mut kept = Map::new();
    if let Some(algorithm) = field("algorithm").and_then(Value::as_str).filter(|it| is_name(it)) {
        kept.insert("algorithm".to_owned(), algorithm.into());
    }
    for name in ["rotation_period_ms", "rotation_period_msgs"] {
        if let Some(period) = field(name).and_then(Value::as_u64) {
            kept.insert(name.to_owned(), period.into());
        }
    }
    kept.into()
}

/// The visibility that the content of a room's `m.room.history_visibility` means. What is not understood
/// means `shared`, as the specification has it.
#[must_use]
pub fn history_visibility(content: Option<&Value>) -> &'static str {
    const KNOWN: [&str; 4] = ["invited", "joined", "shared", "world_readable"];
    let word = content.and_then(|content| content.get("history_visibility")?.as_str());
    KNOWN.into_iter().find(|known| Some(*known) == word).unwrap_or("shared")
}

/// Whether this follows the specification's grammar for names such as those of algorithms, in which
/// nobody can write a sentence.
fn is_name(text: &str) -> bool {
    let may = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    is_id(text) && text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(may)
}

/// Whether this is a device's Curve25519 key: whatever else somebody writes in its place is looked up
/// nowhere.
#[must_use]
pub fn is_device_key(text: &str) -> bool {
    Curve25519PublicKey::from_base64(text).is_ok()
}

/// Which message of its Megolm session this ciphertext is. `None` for what no session made.
#[must_use]
pub fn message_index(ciphertext: &str) -> Option<u32> {
    Some(MegolmMessage::from_base64(ciphertext).ok()?.message_index())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vodozemac::megolm::{GroupSession, SessionConfig};

    use super::*;

    #[test]
    fn only_an_escaped_nul_is_taken_out() {
        for (json, clean) in [
            (r#"{"a":"b"}"#, r#"{"a":"b"}"#),
            (r#"{"\u0000a":"b\u0000"}"#, r#"{"\ufffda":"b\ufffd"}"#),
            (r#"["\\u0000"]"#, r#"["\\u0000"]"#),
            (r#"["\\\u0000\u0000"]"#, r#"["\\\ufffd\ufffd"]"#),
            (r#"["\u000"#, r#"["\u000"#),
            (r#"["\"#, r#"["\"#),
        ] {
            assert_eq!(&*without_nul(json.as_bytes()), clean.as_bytes(), "{json}");
        }
    }

    #[test]
    fn of_a_rooms_settings_only_what_sending_heeds_is_kept() {
        let told = json!({ "algorithm": "m.megolm.v1.aes-sha2", "rotation_period_ms": 1000,
            "rotation_period_msgs": 7, "note": "canary", "rotation": { "period": "canary" } });
        let kept = json!({ "algorithm": "m.megolm.v1.aes-sha2", "rotation_period_ms": 1000,
            "rotation_period_msgs": 7 });
        assert_eq!(encryption(Some(&told)), kept);
        assert_eq!(
            encryption(Some(
                &json!({ "algorithm": "org.example.rot13", "rotation_period_ms": -1 })
            )),
            json!({ "algorithm": "org.example.rot13" })
        );
        // Not one of these is "unencrypted".
        for odd in [
            json!(null),
            json!("canary"),
            json!([]),
            json!({ "algorithm": "A canary" }),
            json!({ "algorithm": "x".repeat(256), "rotation_period_ms": "canary" }),
            json!({ "algorithm": ["canary"], "rotation_period_msgs": 1.5 }),
        ] {
            assert_eq!(encryption(Some(&odd)), json!({}), "{odd}");
        }
        assert_eq!(encryption(None), json!({}));

        assert_eq!(history_visibility(Some(&json!({ "history_visibility": "joined" }))), "joined");
        for odd in [json!({ "history_visibility": "canary" }), json!({}), json!("joined")] {
            assert_eq!(history_visibility(Some(&odd)), "shared", "{odd}");
        }
        assert_eq!(history_visibility(None), "shared");
    }

    #[test]
    fn messages_of_a_session_are_numbered() {
        let mut session = GroupSession::new(SessionConfig::version_1());
        for index in 0..300 {
            assert_eq!(message_index(&session.encrypt("x").to_base64()), Some(index));
        }
        assert_eq!(message_index("bm90aGluZw"), None);
        assert_eq!(message_index("\u{fffd}"), None);
    }

    #[test]
    fn ids_are_short_and_words_are_known() {
        assert!(is_id("$event") && is_id(&"x".repeat(255)));
        assert!(!is_id(&"x".repeat(256)) && !is_id("a\0b"));
        assert!(is_device_key(&Curve25519PublicKey::from([7; 32]).to_base64()));
        assert!(!is_device_key("text of a stranger"));
        assert_eq!(known_word("m.user", &["m.user"]), "m.user");
        assert_eq!(known_word("text of a stranger", &["m.user"]), "other");
    }
}
