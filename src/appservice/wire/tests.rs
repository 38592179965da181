//! What homeservers send, and what nobody should.

use serde_json::json;

use super::*;
use crate::store::rooms::Fact;

fn read(body: &Value) -> Transaction {
    Transaction::read(body.to_string().as_bytes()).expect("an object")
}

fn key(user: &str, device: &str) -> (String, String) {
    (user.to_owned(), device.to_owned())
}

#[test]
fn synapse_sends_key_counts_under_two_names_at_once() {
    let counts = json!({"@bot:x": {"DEV": {"signed_curve25519": 42}}});
    let transaction = read(&json!({
        "events": [],
        "org.matrix.msc3202.device_one_time_keys_count": counts,
        "org.matrix.msc3202.device_one_time_key_counts": counts,
        "org.matrix.msc3202.device_unused_fallback_key_types": {"@bot:x": {"DEV": ["signed_curve25519"]}},
    }));
    let counts = &transaction.key_counts[&key("@bot:x", "DEV")];
    assert_eq!(counts.one_time_keys, Some(42));
    assert_eq!(counts.fallback_keys, Some(vec!["signed_curve25519".to_owned()]));
}

#[test]
fn a_drained_pool_is_zero_and_an_absent_device_is_no_news() {
    let transaction = read(&json!({
        "org.matrix.msc3202.device_one_time_keys_count": {"@bot:x": {"DEV": {}}},
    }));
    assert_eq!(transaction.key_counts[&key("@bot:x", "DEV")].one_time_keys, Some(0));
    assert_eq!(transaction.key_counts[&key("@bot:x", "DEV")].fallback_keys, None);
    assert!(read(&json!({"events": []})).key_counts.is_empty());
}

#[test]
fn stable_and_unstable_names_are_both_read() {
    let message = |to: &str| {
        json!({"type": "m.room.encrypted", "sender": "@a:x", "content": {}, "to_user_id": to,
            "to_device_id": "DEV"})
    };
    let transaction = read(&json!({
        "to_device": [message("@one:x")],
        "de.sorunome.msc2409.to_device": [message("@two:x")],
        "device_lists": {"changed": ["@a:x"]},
        "org.matrix.msc3202.device_lists": {"changed": ["@a:x", "@b:x"], "left": ["@c:x"]},
    }));
    let to: Vec<_> = transaction.to_device.iter().map(|m| m.to_user_id.as_str()).collect();
    assert_eq!(to, ["@one:x", "@two:x"]);
    assert_eq!(transaction.changed_users, ["@a:x", "@b:x"]);
    assert!(transaction.to_device[0].json.get("to_user_id").is_none());
}

#[test]
fn one_bad_item_does_not_reject_the_rest() {
    let good = json!({"event_id": "$1", "room_id": "!r:x", "sender": "@a:x", "type": "m.room.message",
        "origin_server_ts": 1, "content": {}});
    let transaction = read(&json!({
        "events": [7, {"event_id": "$0"}, good],
        "to_device": ["x", {"type": "t", "sender": "@a:x", "content": 3, "to_user_id": "@b:x", "to_device_id": "D"}],
        "org.matrix.msc3202.device_lists": {"changed": [null, "@a:x"]},
        "org.matrix.msc3202.device_one_time_keys_count": {"@bot:x": 7, "@c:x": {"D": "many"}},
    }));
    assert_eq!(transaction.events.len(), 1);
    assert_eq!(transaction.changed_users, ["@a:x"]);
    assert_eq!(transaction.skipped, 5);
}

#[test]
fn a_list_that_is_none_is_counted_and_takes_no_other_with_it() {
    let transaction = read(&json!({
        "events": {"event_id": "$1"},
        "to_device": "m",
        "de.sorunome.msc2409.to_device": null,
        "device_lists": ["@a:x"],
        "org.matrix.msc3202.device_lists": {"changed": "@a:x", "left": 3},
        "device_one_time_keys_count": [],
        "device_unused_fallback_key_types": {"@bot:x": {"DEV": []}},
    }));
    assert_eq!(transaction.skipped, 5);
    assert_eq!(transaction.key_counts[&key("@bot:x", "DEV")].fallback_keys, Some(Vec::new()));
    assert!(transaction.events.is_empty() && transaction.changed_users.is_empty());
}

#[test]
fn a_state_event_counts_whatever_its_content_holds() {
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let event = |kind: &str, key: &str, content: &str| {
        format!(
            r#"{{"event_id": "$1", "room_id": "!r:x", "sender": "@a:x", "type": "{kind}", "state_key": "{key}", "content": {content}}}"#
        )
    };
    let events = [
        event("m.room.encryption", "", &format!(r#"{{"algorithm": "m.x", "a": {deep}}}"#)),
        event("m.room.encryption", "", &deep),
        event("m.room.encryption", "", r#"{"algorithm": "m.x", "\ud800": 1}"#),
        event(
            "m.room.member",
            "@a:x",
            &format!(r#"{{"membership": "leave", "a": {}}}"#, "9".repeat(400)),
        ),
    ];
    let body = format!(r#"{{"events": [{}]}}"#, events.join(","));
    let transaction = Transaction::read(body.as_bytes()).expect("an object");
    let facts: Vec<_> =
        transaction.events.iter().filter_map(super::super::room_facts::fact).collect();
    let nothing = || Fact::Encryption(json!({}));
    let user_id = "@a:x".to_owned();
    let expected = [
        Fact::Encryption(json!({ "algorithm": "m.x" })),
        nothing(),
        nothing(),
        Fact::Member { user_id, membership: "leave".to_owned() },
    ];
    assert_eq!(facts, expected);
    assert_eq!(transaction.skipped, 0);
}

#[test]
fn what_no_parser_takes_is_skipped_by_itself() {
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let digits = "9".repeat(400);
    let event = |id: &str, content: &str| {
        format!(
            r#"{{"event_id": "{id}", "room_id": "!r:x", "sender": "@a:x", "type": "t", "content": {content}}}"#
        )
    };
    let message = |content: &str| {
        format!(
            r#"{{"type": "t", "sender": "@a:x", "content": {content}, "to_user_id": "@b:x", "to_device_id": "D"}}"#
        )
    };
    let body = format!(
        r#"{{"events": [{}, {}, {}, {}, {}], "to_device": [{}, {}, {}],
            "ephemeral": {deep}, "device_lists": {{"changed": ["@a:x", {deep}], "x": {digits}}},
            "device_one_time_keys_count": {{"@b:x": {{"D": {digits}}}, "@c:x": {{"D": {{}}}}}}}}"#,
        event("$deep", &format!(r#"{{"a": {deep}}}"#)),
        event("$digits", &format!(r#"{{"a": {digits}}}"#)),
        event("$half", r#"{"a": "\ud800"}"#),
        event(&"x".repeat(3000), "{}"),
        event("$good", r#"{"a": "\u0000"}"#),
        message(&format!(r#"{{"a": {deep}}}"#)),
        message(&format!(r#"{{"session_id": "{}"}}"#, "x".repeat(3000))),
        message(r#"{"a": 1}"#),
    );
    let transaction = Transaction::read(body.as_bytes()).expect("an object");
    let ids: Vec<_> = transaction.events.iter().map(|e| e.event_id.as_str()).collect();
    assert_eq!(ids, ["$good"]);
    assert_eq!(transaction.events[0].content_str("a"), Some("\u{fffd}"));
    assert_eq!(transaction.to_device.len(), 1);
    assert_eq!(transaction.changed_users, ["@a:x"]);
    assert_eq!(transaction.key_counts.len(), 1);
    assert_eq!(transaction.skipped, 7);
}
