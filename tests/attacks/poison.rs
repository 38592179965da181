//! What anybody on Matrix can make a homeserver bring: it must not stop the transactions, which come
//! again for ever, nor a bot.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::tools::{forget_peak, peak_memory, unharmed};
use crate::{
    fast::scene::{Bot, PATIENCE, Scene},
    support::{
        fake_homeserver::{Delivery, Person},
        poll, random, report,
    },
};

/// A text that no compression makes shorter.
fn noise(bytes: usize) -> String {
    (0..bytes / 12).map(|_| random::suffix()).collect()
}

fn nested(depth: usize) -> String {
    format!("{}{}", "[".repeat(depth), "]".repeat(depth))
}

/// Contents that some parser, query or index has its trouble with.
fn contents() -> Vec<String> {
    let long = noise(9000);
    vec![
        format!(r#"{{"body": {}}}"#, nested(3000)),
        format!(r#"{{"n": {}}}"#, "9".repeat(400)),
        r#"{"n": 1e999, "m": -0, "k": 1E-400}"#.to_owned(),
        r#"{"half": "\ud800", "body": "x"}"#.to_owned(),
        r#"{"nul": "\u0000", "body": "a\u0000b", "msgtype": "m.text"}"#.to_owned(),
        r#"{"algorithm": "m.megolm.v1.aes-sha2", "session_id": "\u0000", "sender_key": "\u0000", "device_id": "\u0000", "ciphertext": "\u0000"}"#.to_owned(),
        format!(r#"{{"algorithm": "m.megolm.v1.aes-sha2", "session_id": "{long}", "ciphertext": "x", "sender_key": "y", "device_id": "z"}}"#),
        format!(r#"{{"membership": "{long}", "history_visibility": "{long}\u0000"}}"#),
        format!(r#"{{"transaction_id": "{long}", "from_device": "X", "methods": ["m.sas.v1"], "timestamp": 1}}"#),
        r#"{"transaction_id": "\u0000", "from_device": "\u0000", "methods": ["m.sas.v1"], "timestamp": 1}"#.to_owned(),
        format!(r#"{{"algorithm": "m.megolm.v1.aes-sha2", "room_id": "!r:x", "session_id": "{long}", "sender_key": "AAAA", "code": "m.blacklisted", "reason": "\u0000"}}"#),
        r#"{"algorithm": "m.megolm.v1.aes-sha2", "room_id": "!r:x", "session_id": "\u0000", "sender_key": "A\u0000", "code": "m.unverified"}"#.to_owned(),
        format!(r#"{{"action": "request", "request_id": "{long}", "requesting_device_id": "\u0000", "body": {{"algorithm": "m.megolm.v1.aes-sha2", "room_id": "!r:x", "sender_key": "\u0000", "session_id": "\u0000"}}}}"#),
        r#"{"code": "\u0000", "reason": "\u0000", "transaction_id": "t\u0000"}"#.to_owned(),
        r#"{"transaction_id": 7, "session_id": [], "room_id": {}}"#.to_owned(),
        r#"{"a": 1, "a": 2, "a": {"a": null}}"#.to_owned(),
        format!(r#"{{"algorithm": "m.olm.v1.curve25519-aes-sha2", "sender_key": "{long}", "ciphertext": {{"\u0000": {{"type": 0, "body": "\u0000"}}}}}}"#),
    ]
}

const TYPES: [&str; 14] = [
    "m.room.message",
    "m.room.encrypted",
    "m.room_key",
    "m.room_key.withheld",
    "m.room_key_request",
    "m.forwarded_room_key",
    "m.secret.request",
    "m.secret.send",
    "m.dummy",
    "m.key.verification.request",
    "m.key.verification.start",
    "m.key.verification.cancel",
    "m.key.verification.mac",
    r"org.example.\u0000",
];

const STATE: [&str; 5] = [
    "m.room.member",
    "m.room.encryption",
    "m.room.history_visibility",
    r"m.room.\u0000",
    "m.room.create",
];

/// Room events and to-device messages: each content under each type.
fn poisons(alice: &str, bot: &Bot, room: &str) -> (Vec<String>, Vec<String>) {
    let (user, device) = (&bot.user_id, &bot.device_id);
    let mut events = Vec::new();
    let mut messages = Vec::new();
    for (n, content) in contents().into_iter().enumerate() {
        for (m, kind) in TYPES.iter().enumerate() {
            events.push(format!(
                r#"{{"event_id": "$p{n}-{m}", "room_id": "{room}", "sender": "{alice}", "type": "{kind}", "content": {content}, "origin_server_ts": 1}}"#
            ));
            messages.push(format!(
                r#"{{"type": "{kind}", "sender": "{alice}", "content": {content}, "to_user_id": "{user}", "to_device_id": "{device}"}}"#
            ));
        }
        for (m, kind) in STATE.iter().enumerate() {
            events.push(format!(
                r#"{{"event_id": "$s{n}-{m}", "room_id": "!other{n}:x", "sender": "{alice}", "type": "{kind}", "state_key": "", "content": {content}, "origin_server_ts": 99999999999999999999999}}"#
            ));
        }
    }
    // Ids and places that are none.
    let long = noise(5000);
    for odd in [r"\u0000", long.as_str(), "", "../..", "💣", "@bot_x:elsewhere.example"] {
        for field in ["event_id", "room_id", "sender", "type", "state_key"] {
            let mut event = json!({ "event_id": format!("$o{}", events.len()), "room_id": room,
                "sender": alice, "type": "m.room.message", "content": {} });
            event[field] = "ODD".into();
            events.push(event.to_string().replace("ODD", odd));
        }
        for field in ["sender", "type", "to_user_id", "to_device_id"] {
            let mut message = json!({ "sender": alice, "type": "m.dummy", "content": {},
                "to_user_id": user, "to_device_id": device });
            message[field] = "ODD".into();
            messages.push(message.to_string().replace("ODD", odd));
        }
    }
    (events, messages)
}

/// Everybody still answers, under a new room key.
async fn alive(alice: &Person, bots: &[&Bot]) -> Result<()> {
    for bot in bots {
        alice.forget_key(&bot.room).await?;
        alice.ping(&bot.room).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poisoned_transaction_is_taken_in_and_stops_nobody() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let other = scene.bot(&alice).await?;
    let plain = scene.fake.room(&alice.user_id, false, &[&bot.user_id]);
    scene.settled().await?;
    let (events, messages) = poisons(&alice.user_id, &bot, &plain);
    let long = noise(5000);
    let around = [
        format!(r#"{{"events": [], "unknown": {}, "ephemeral": [{}]}}"#, nested(9000), nested(200)),
        format!(
            r#"{{"events": {{}}, "to_device": 7, "device_lists": [], "n": {}}}"#,
            "1".repeat(500)
        ),
        format!(
            r#"{{"device_lists": {{"changed": ["\u0000", "{long}", "nobody", 7, {}]}},
                "org.matrix.msc3202.device_lists": {{"changed": {{}}}}}}"#,
            nested(500)
        ),
        format!(
            r#"{{"device_one_time_keys_count": {{"\u0000": {{"\u0000": {{"signed_curve25519": 1}}}},
                "{}": {{"{}": {{"signed_curve25519": 99999999999999999999999, "x": -1}}}}, "{long}": 3}},
                "device_unused_fallback_key_types": {{"{}": {{"{}": ["\u0000", 7, null]}}}}}}"#,
            bot.user_id, bot.device_id, bot.user_id, bot.device_id
        ),
        r#"{"events": [], "events": [7], "events": [null, [], "x", {}]}"#.to_owned(),
        "{}".to_owned(),
    ];
    let mut number = 0;
    let mut push = async |body: String| -> Result<()> {
        number += 1;
        let (status, answer) =
            scene.fake.raw_transaction(&format!("poison{number}"), body, None).await?;
        ensure!((status, &answer) == (200, &json!({})), "poison{number}: {status} {answer}");
        Ok(())
    };
    for body in around {
        push(body).await?;
    }
    // By kind, so that a poison cannot hide behind one that stopped everything before it.
    for chunk in events.chunks(40) {
        push(format!(r#"{{"events": [{}]}}"#, chunk.join(","))).await?;
    }
    for chunk in messages.chunks(40) {
        push(format!(r#"{{"de.sorunome.msc2409.to_device": [{}]}}"#, chunk.join(","))).await?;
    }
    alive(&alice, &[&bot, &other]).await?;
    poll::until("the poisons to be digested", PATIENCE, async || {
        let left: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM inbox WHERE kind = 'to_device'")
            .fetch_one(&scene.sql)
            .await?;
        Ok((left == 0).then_some(()))
    })
    .await?;
    unharmed(&scene).await?;
    let items = (events.len() + messages.len()) as u64;
    let note = "every transaction was taken in, no bot had an error, both answered under new keys";
    report::row("Attackers", "Poisoned room events and to-device messages", items, 0, note);
    Ok(())
}

/// What nobody sees before the bot has decrypted it.
#[tokio::test(flavor = "multi_thread")]
async fn poison_inside_the_encryption_stops_nobody() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let other = scene.bot(&alice).await?;
    alice.ping(&bot.room).await?;
    let deep: Value = (0..300).fold(Value::Null, |inner, _| json!([inner]));
    let long = noise(9000);
    let withheld = |session: &str| {
        json!({ "algorithm": "m.megolm.v1.aes-sha2", "room_id": bot.room, "session_id": session,
            "sender_key": alice.sender_key(), "code": "m.blacklisted" })
    };
    let special = [
        ("org.example.deep", json!({ "a": deep })),
        ("m.key.verification.request", json!({ "a": deep })),
        ("m.room_key.withheld", withheld("a\0b")),
        ("m.room_key.withheld", withheld(&long)),
        (long.as_str(), json!({})),
    ];
    let contents = contents();
    let parsed: Vec<Value> =
        contents.iter().filter_map(|content| serde_json::from_str(content).ok()).collect();
    let all = parsed.iter().flat_map(|content| TYPES.iter().map(move |kind| (*kind, content)));
    let mut messages = 0;
    for (kind, content) in all.chain(special.iter().map(|(kind, content)| (*kind, content))) {
        alice.send_in_olm(&bot.user_id, &bot.device_id, kind, content).await?;
        messages += 1;
    }
    for content in contents {
        for kind in TYPES {
            let encrypted = alice.encrypt_raw(&bot.room, kind, content.clone(), true).await?;
            scene.fake.say(&bot.room, &alice.user_id, "m.room.encrypted", None, encrypted);
            messages += 1;
        }
    }
    alive(&alice, &[&bot, &other]).await?;
    scene.settled().await?;
    unharmed(&scene).await?;
    let failed: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM event_log JOIN events USING (event_seq)
        WHERE decryption <> 'ok' AND clear_type IS NULL AND event_type = 'm.room.encrypted'",
    )
    .fetch_one(&scene.sql)
    .await?;
    ensure!(failed > 0, "nothing of it was too odd to be read");
    let note = "read, or logged as failed; no bot had an error, both answered under new keys";
    report::row("Attackers", "Poison inside Olm and Megolm", messages, 0, note);
    Ok(())
}

/// The same, where a bot fetches what transactions did not bring, and where it asks for members.
#[tokio::test(flavor = "multi_thread")]
async fn poison_in_an_answer_of_the_homeserver_keeps_nothing_else_back() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let deep: Value = (0..300).fold(Value::Null, |inner, _| json!([inner]));
    scene.fake.to_device(Delivery::InboxOnly);
    let poison = |kind: &str, content: Value| {
        let event = json!({ "type": kind, "sender": alice.user_id, "content": content });
        scene.fake.send_to_device(&bot.user_id, &bot.device_id, &event);
    };
    poison("org.example.deep", json!({ "a": deep }));
    poison(
        "m.room_key.withheld",
        json!({ "algorithm": "m.megolm.v1.aes-sha2", "room_id": "!r:x",
        "session_id": noise(9000), "sender_key": alice.sender_key(), "code": "m.blacklisted" }),
    );
    poison(
        "m.key.verification.request",
        json!({ "transaction_id": "a\0b", "from_device": "\0",
        "methods": ["m.sas.v1"], "timestamp": 1 }),
    );
    poison(
        "m.room_key.withheld",
        json!({ "algorithm": "m.megolm.v1.aes-sha2", "room_id": "!r:x",
        "session_id": "\0", "sender_key": alice.sender_key(), "code": "m.blacklisted", "reason": "\0" }),
    );
    let asked = alice.say(&bot.room, "!ping").await?;
    alice.answer_to(&bot.room, &asked).await?;
    ensure!(scene.decryption(&asked).await?.0 == "late", "its key came by the inbox");

    // A member of the next room has put anything into its own membership, and has a device of any name.
    scene.fake.to_device(Delivery::Pushed);
    let mallory = Person::new(&scene.fake, "mallory").await?;
    mallory.another_device(&noise(6000)).await?;
    let room = scene.fake.room(&alice.user_id, true, &[&mallory.user_id, &bot.user_id]);
    let content = json!({ "membership": "join", "deep": deep, "displayname": "a\0b" });
    scene.fake.say(&room, &mallory.user_id, "m.room.member", Some(&mallory.user_id), content);
    alice.ping(&room).await?;
    unharmed(&scene).await
}

/// The most that a transaction may have by default.
const LIMIT: usize = 50 * 1024 * 1024;
const LIMIT_MIB: f64 = 50.0;
/// What is taken in takes several times its size for a moment: as it came, copied without what no database
/// keeps, parsed, sealed, as a statement's parameters, and, when its bots read it, all that once more.
const TIMES: f64 = 10.0;

#[tokio::test(flavor = "multi_thread")]
async fn megabytes_are_taken_or_refused_in_bounded_memory() -> Result<()> {
    let (mut scene, alice, bot) = Scene::with_bot().await?;
    let filled = |begin: &str, item: &str, end: &str| {
        let times = (LIMIT - begin.len() - end.len()) / item.len();
        format!("{begin}{}{end}", item.repeat(times))
    };
    let depth = (LIMIT - 20) / 2;
    let mut bodies = vec![
        ("numbers for events", filled(r#"{"events": [0"#, ",1234567", "]}")),
        ("messages to nobody", filled(r#"{"to_device": [{}"#, r#",{"content":{"body":0}}"#, "]}")),
        ("characters that no database keeps", filled(r#"{"events": [""#, r"\u0000", r#""]}"#)),
        ("one depth", format!(r#"{{"unknown": {}}}"#, nested(depth))),
    ];
    let event = |n: usize| {
        json!({ "event_id": format!("$big{n}"), "room_id": bot.room, "sender": alice.user_id,
            "type": "m.room.message", "origin_server_ts": 1,
            "content": { "msgtype": "m.text", "body": "x".repeat(60_000) } })
        .to_string()
    };
    let events: Vec<String> = (0..LIMIT / (event(0).len() + 20)).map(event).collect();
    bodies.push((
        "events as large as they may be",
        format!(r#"{{"events": [{}]}}"#, events.join(",")),
    ));
    forget_peak(&mut scene.greenshield)?;
    let before = peak_memory(&mut scene.greenshield)?;
    let most = TIMES * LIMIT_MIB;
    for (n, (what, body)) in bodies.into_iter().enumerate() {
        ensure!((LIMIT - 100_000..=LIMIT).contains(&body.len()), "{what}: {} bytes", body.len());
        let (status, answer) = scene.fake.raw_transaction(&format!("mb{n}"), body, None).await?;
        ensure!(status == 200, "{what}: {status} {answer}");
        scene.settled().await?;
        let peak = peak_memory(&mut scene.greenshield)? - before;
        println!("after {what}: {peak:.0} MiB at most");
        ensure!(peak < most, "{what}: {peak} MiB at once");
    }
    let sql = "SELECT COUNT(*) FROM events WHERE event_id LIKE '$big%'";
    let kept: i64 = sqlx::query_scalar(sql).fetch_one(&scene.sql).await?;
    ensure!(usize::try_from(kept)? == events.len(), "{kept} of {} events", events.len());

    let half = format!(r#"{{"events": [{}"#, nested(1_000_000));
    let (status, answer) = scene.fake.raw_transaction("half", half, None).await?;
    ensure!(status == 400 && answer["errcode"] == "M_NOT_JSON", "{status} {answer}");
    alive(&alice, &[&bot]).await?;
    unharmed(&scene).await
}
