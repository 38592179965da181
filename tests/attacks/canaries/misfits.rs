//! Messages with texts where something else is wanted: a parser that complains quotes them.

use anyhow::Result;
use serde_json::{Value, json};

use super::Story;
use crate::{fast::scene::Bot, support::fake_homeserver::Person};

const MEGOLM: &str = "m.megolm.v1.aes-sha2";

/// To-device messages: each `CODE` becomes a canary.
fn to_device(alice: &Person, room: &str) -> Vec<(&'static str, Value)> {
    let (device, sender_key) = (&alice.device_id, alice.sender_key());
    vec![
        ("org.example.custom", json!({})),
        (
            "m.room_key.withheld",
            json!({ "algorithm": MEGOLM, "room_id": room, "session_id": "x",
                "sender_key": sender_key, "code": "m.blacklisted" }),
        ),
        (
            "m.room_key.withheld",
            json!({ "algorithm": MEGOLM, "room_id": room, "session_id": "y",
                "sender_key": sender_key, "code": "CODE" }),
        ),
        (
            "m.room_key.withheld",
            json!({ "algorithm": MEGOLM, "room_id": ["CODE"], "session_id": {}, "code": 7 }),
        ),
        ("m.secret.send", json!({ "request_id": "x" })),
        ("m.secret.send", json!({ "request_id": ["CODE"] })),
        ("m.secret.request", json!({ "name": ["CODE"], "action": "CODE", "request_id": "x" })),
        (
            "m.room_key_request",
            json!({ "action": ["CODE"], "body": "CODE", "requesting_device_id": device }),
        ),
        (
            "m.room_key",
            json!({ "algorithm": MEGOLM, "room_id": room, "session_id": "x",
                "session_key": "CODE" }),
        ),
        ("m.room_key", json!({ "algorithm": ["CODE"], "room_id": "CODE", "session_key": "CODE" })),
        (
            "m.forwarded_room_key",
            json!({ "algorithm": MEGOLM, "room_id": room, "session_id": "x", "session_key": "CODE",
                "sender_key": "CODE", "forwarding_curve25519_key_chain": "CODE" }),
        ),
        ("m.room.encrypted", json!({ "algorithm": "CODE" })),
        (
            "m.room.encrypted",
            json!({ "algorithm": "m.olm.v1.curve25519-aes-sha2", "sender_key": "CODE",
                "ciphertext": {} }),
        ),
        (
            "m.room.encrypted",
            json!({ "algorithm": "m.olm.v1.curve25519-aes-sha2", "sender_key": sender_key,
                "ciphertext": "CODE" }),
        ),
        ("m.key.verification.cancel", json!({ "transaction_id": "x", "code": "CODE" })),
        ("m.key.verification.cancel", json!({ "transaction_id": "x", "code": ["CODE"] })),
        (
            "m.key.verification.request",
            json!({ "transaction_id": "x", "from_device": device, "methods": "CODE",
                "timestamp": 1 }),
        ),
        (
            "m.key.verification.request",
            json!({ "transaction_id": "x", "from_device": device, "methods": ["m.sas.v1"],
                "timestamp": "CODE" }),
        ),
        (
            "m.key.verification.start",
            json!({ "transaction_id": "x", "from_device": device, "method": "m.sas.v1",
                "hashes": "CODE", "key_agreement_protocols": {} }),
        ),
        (
            "m.key.verification.mac",
            json!({ "transaction_id": "x", "mac": "CODE", "keys": ["CODE"] }),
        ),
        ("m.dummy", json!(["CODE"])),
    ]
}

/// What is encrypted in rooms: each `CODE` becomes a canary.
fn clear_texts(alice: &Person, bot: &Bot) -> Vec<String> {
    let (room, device) = (&bot.room, &alice.device_id);
    let event = |kind: Value, content: Value| {
        json!({ "type": kind, "room_id": room, "content": content }).to_string()
    };
    let message = "m.room.message";
    let reference = json!({ "rel_type": "m.reference", "event_id": ["CODE"] });
    vec![
        "CODE".to_owned(),
        r#""CODE""#.to_owned(),
        r#"["CODE"]"#.to_owned(),
        json!({ "type": message, "room_id": "CODE", "content": {} }).to_string(),
        json!({ "type": message, "room_id": ["CODE"], "content": {} }).to_string(),
        event(json!(["CODE"]), json!({})),
        event(json!(message), json!("CODE")),
        event(json!(message), json!({ "msgtype": ["CODE"], "body": ["CODE"] })),
        event(
            json!(message),
            json!({ "msgtype": "m.key.verification.request", "body": "x", "from_device": device,
                "methods": "CODE", "to": bot.user_id }),
        ),
        event(
            json!("m.key.verification.start"),
            json!({ "method": ["CODE"], "m.relates_to": reference }),
        ),
        event(
            json!("m.key.verification.cancel"),
            json!({ "code": ["CODE"], "reason": ["CODE"], "m.relates_to": "CODE" }),
        ),
    ]
}

impl Story {
    /// Each in the clear, and inside Olm.
    pub(super) async fn say_to_device(&mut self, alice: &Person, bot: &Bot) -> Result<()> {
        let (user, device) = (&bot.user_id, &bot.device_id);
        for in_olm in [false, true] {
            for (kind, content) in to_device(alice, &bot.room) {
                let how = if in_olm { ", inside Olm" } else { "" };
                let canary = self.canary(&format!("a to-device message, {kind}{how}"));
                let text = content.to_string().replace("CODE", &canary);
                let mut content: Value = serde_json::from_str(&text)?;
                if let Some(content) = content.as_object_mut() {
                    content.insert("secret".to_owned(), canary.as_str().into());
                    content.insert("reason".to_owned(), canary.as_str().into());
                }
                if in_olm {
                    alice.send_in_olm(user, device, kind, &content).await?;
                } else {
                    let event =
                        json!({ "type": kind, "sender": alice.user_id, "content": content });
                    self.scene.fake.send_to_device(user, device, &event);
                }
            }
        }
        alice.ping(&bot.room).await?;
        self.taken_in().await
    }

    /// Whatever becomes of each: the bot gets over it.
    pub(super) async fn say_misfits(&mut self, alice: &Person, bot: &Bot) -> Result<()> {
        let (user, device) = (&bot.user_id, &bot.device_id);
        for clear in clear_texts(alice, bot) {
            let canary = self.canary(&format!("what is encrypted as {clear}"));
            let clear = clear.replace("CODE", &canary);
            let said = alice.say_bytes(&bot.room, user, device, &clear).await?;
            self.read(&said).await?;
        }
        alice.ping(&bot.room).await?;
        Ok(())
    }
}
