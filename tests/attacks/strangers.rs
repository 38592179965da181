//! Verifications that nobody meant.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::tools::{memory, unharmed};
use crate::{
    fast::scene::{Bot, PATIENCE, Scene},
    support::{fake_homeserver::Person, poll, report},
};

const TO_DEVICE: &str = "de.sorunome.msc2409.to_device";
const DROPPED: &str = "greenshield_verification_messages_dropped_total";

/// A verification message straight to a bot's device.
pub fn message(bot: &Bot, sender: &str, kind: &str, flow: &str, from_device: &str) -> Value {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis() as u64;
    json!({ "type": format!("m.key.verification.{kind}"), "sender": sender,
        "to_user_id": bot.user_id, "to_device_id": bot.device_id,
        "content": { "transaction_id": flow, "from_device": from_device, "timestamp": now,
            "methods": ["m.sas.v1"], "method": "m.sas.v1", "code": "m.user", "reason": "x",
            "hashes": ["sha256"], "key_agreement_protocols": ["curve25519-hkdf-sha256"],
            "message_authentication_codes": ["hkdf-hmac-sha256.v2"],
            "short_authentication_string": ["emoji", "decimal"] } })
}

/// A request as it is said in a room.
pub fn request(to: &str, from_device: &str) -> Value {
    json!({ "msgtype": "m.key.verification.request", "to": to, "body": "verify",
        "from_device": from_device, "methods": ["m.sas.v1"] })
}

async fn rows(scene: &Scene) -> Result<i64> {
    Ok(sqlx::query_scalar("SELECT COUNT(*) FROM verifications").fetch_one(&scene.sql).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_cannot_make_a_bot_look_at_them() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let mallory = Person::new(&scene.fake, "mallory").await?;
    alice.ping(&bot.room).await?;
    let sent = scene.fake.calls("/sendToDevice/").len();
    let kinds = ["request", "start", "ready", "accept", "key", "mac", "done", "cancel"];
    let messages: Vec<Value> = kinds
        .iter()
        .map(|kind| message(&bot, &mallory.user_id, kind, "flow", &mallory.device_id))
        .collect();
    ensure!(scene.fake.transaction("stranger", &json!({ TO_DEVICE: messages })).await?.0 == 200);
    // The same when they are found in the bot's inbox.
    for kind in kinds {
        let mut message = message(&bot, &mallory.user_id, kind, "other", &mallory.device_id);
        message.as_object_mut().into_iter().for_each(|m| drop(m.remove("to_user_id")));
        scene.fake.send_to_device(&bot.user_id, &bot.device_id, &message);
    }
    scene.ask_reconcile(&bot).await?;
    poll::until("all to be dropped, pushed and fetched", PATIENCE, async || {
        let dropped = scene.metric(DROPPED).await?;
        let fetched = scene.fake.inbox_len(&bot.user_id, &bot.device_id) == 0;
        Ok((dropped >= 24.0 && fetched).then_some(()))
    })
    .await?;
    alice.ping(&bot.room).await?;
    ensure!(rows(&scene).await? == 0, "a row for a stranger");
    let asked = scene.fake.calls("/keys/query");
    ensure!(asked.iter().all(|call| !call.body.to_string().contains("@mallory")), "{asked:?}");
    let cancels = scene.fake.calls("/sendToDevice/m.key.verification");
    ensure!(cancels.is_empty(), "{cancels:?}");
    ensure!(scene.fake.calls("/sendToDevice/").len() == sent, "something was sent");
    unharmed(&scene).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_from_a_device_of_somebody_else_is_not_heeded() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let other = scene.bot(&alice).await?;
    let mallory = Person::new(&scene.fake, "mallory").await?;
    mallory.join(&bot.room).await?;
    let hers = alice.another_device("HERS").await?;
    mallory.ping(&bot.room).await?;
    scene.settled().await?;
    let forged = [
        message(&bot, &mallory.user_id, "request", "one", &hers.device_id),
        message(&bot, &mallory.user_id, "start", "two", "NOBODYS"),
        message(&bot, &bot.user_id, "request", "three", &bot.device_id),
        message(&bot, &other.user_id, "request", "four", &other.device_id),
    ];
    ensure!(scene.fake.transaction("forged", &json!({ TO_DEVICE: forged })).await?.0 == 200);
    // In a room, one that is for another bot, and one without a device.
    let room = scene.fake.room(&alice.user_id, false, &[&bot.user_id, &other.user_id]);
    for (to, device) in
        [(&other.user_id, alice.device_id.as_str()), (&bot.user_id, "NOBODYS"), (&bot.user_id, "")]
    {
        scene.fake.say(&room, &alice.user_id, "m.room.message", None, request(to, device));
    }
    mallory.ping(&bot.room).await?;
    let sql = "SELECT user_id FROM verifications JOIN bots USING (bot_id) WHERE user_id = $1";
    scene.wait_text("the request for the other bot", sql, &other.user_id).await?;
    scene.settled_but_verifying().await?;
    ensure!(rows(&scene).await? == 1, "a forged request was heeded");
    unharmed(&scene).await
}

/// In a room that they share, and straight to the bot.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_end_or_confirm_the_verification_of_another() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let mallory = Person::new(&scene.fake, "mallory").await?;
    mallory.join(&bot.room).await?;
    alice.ping(&bot.room).await?;
    mallory.ping(&bot.room).await?;
    let asked = alice.ask_in(&bot.room, &bot.user_id).await?;
    let sas = alice.compare(&asked).await?;
    let flow = asked.flow_id().as_str();
    let sql = "SELECT flow_id FROM verifications WHERE flow_id = $1 AND state = 'emoji'";
    scene.wait_text("the bot's emoji", sql, flow).await?;
    let relation = json!({ "rel_type": "m.reference", "event_id": flow });
    for (kind, mut content) in [
        ("mac", json!({ "mac": { "ed25519:FIRST": "AAAA" }, "keys": "AAAA" })),
        ("cancel", json!({ "code": "m.user", "reason": "x" })),
        ("done", json!({})),
    ] {
        let straight = message(&bot, &mallory.user_id, kind, flow, &mallory.device_id);
        let body = json!({ TO_DEVICE: [straight] });
        ensure!(scene.fake.transaction(kind, &body).await?.0 == 200);
        content["m.relates_to"] = relation.clone();
        mallory.say_event(&bot.room, &format!("m.key.verification.{kind}"), &content).await?;
    }
    mallory.ping(&bot.room).await?;
    let is_open = "SELECT state FROM verifications WHERE flow_id = $1 AND NOT mac_received";
    let state = scene.wait_text("the verification as it was", is_open, flow).await?;
    ensure!(state == "emoji", "{state}");
    alice.confirm(&sas).await?;
    alice.wait_verified(&bot.user_id).await?;
    ensure!(rows(&scene).await? == 1, "a verification with mallory");
    unharmed(&scene).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_requests_leaves_a_bot_that_can_be_verified() -> Result<()> {
    let (mut scene, alice, bot) = Scene::with_bot().await?;
    alice.ping(&bot.room).await?;
    scene.settled().await?;
    let before = memory(&mut scene.greenshield)?;
    let mut asked = 0_u64;
    for n in 0..10 {
        // Alice's client has gone mad, and so has half of the world.
        let hers = (0..200).map(|m| {
            message(&bot, &alice.user_id, "request", &format!("a{n}-{m}"), &alice.device_id)
        });
        let theirs = (0..200).map(|m| {
            let stranger = format!("@s{n}-{m}:elsewhere.example");
            message(&bot, &stranger, "request", &format!("s{n}-{m}"), "FIRST")
        });
        let messages: Vec<Value> = hers.chain(theirs).collect();
        asked += messages.len() as u64;
        let body = json!({ TO_DEVICE: messages });
        ensure!(scene.fake.transaction(&format!("flood{n}"), &body).await?.0 == 200);
    }
    alice.ping(&bot.room).await?;
    poll::until("the flood to be taken in", PATIENCE, async || {
        let left: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM inbox WHERE kind = 'to_device'")
            .fetch_one(&scene.sql)
            .await?;
        Ok((left == 0).then_some(()))
    })
    .await?;
    let rows = rows(&scene).await?;
    ensure!((1..=40).contains(&rows), "{rows} rows of {asked} requests");
    let after = memory(&mut scene.greenshield)?;
    ensure!(after - before < 50.0, "{before} MiB before, {after} MiB after");

    alice.sync().await?;
    let request = alice.ask(&bot.user_id, &bot.device_id).await?;
    let sas = alice.compare(&request).await?;
    alice.confirm(&sas).await?;
    alice.wait_verified(&bot.user_id).await?;
    println!("{asked} requests: {rows} rows, memory {before:.0} -> {after:.0} MiB");
    unharmed(&scene).await?;
    let note = "rows and memory bounded; the bot answers, and is verified right afterwards";
    report::row("Attackers", "Verification requests at once", asked, 0, note);
    Ok(())
}
