//! What comes twice, and key counts.

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::sync::Notify;

use super::scene::{PATIENCE, Scene};
use crate::support::{fake_homeserver::Fault, poll};

const EVENTS: &str = "events";
const TO_DEVICE: &str = "de.sorunome.msc2409.to_device";
const COUNTS: &str = "org.matrix.msc3202.device_one_time_keys_count";
const FALLBACK: &str = "org.matrix.msc3202.device_unused_fallback_key_types";

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_twice_is_answered_once() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let asked = alice.say(&bot.room, "!ping").await?;
    alice.answer_to(&bot.room, &asked).await?;
    let events = scene.fake.timeline(&bot.room);
    let event = events.iter().find(|event| event["event_id"] == asked.as_str());
    let event = event.cloned().unwrap_or_default();
    let body = json!({ EVENTS: [event] });
    let with_more = json!({ EVENTS: [event, event], "ephemeral": [] });
    for (id, body) in [("again", &body), ("again", &body), ("again", &with_more), ("other", &body)]
    {
        ensure!(scene.fake.transaction(id, body).await? == (200, json!({})));
    }
    scene.answered_once(&alice, &bot, &asked).await?;
    Ok(())
}

/// A bot that was invited reads back what was said meanwhile, perhaps before a transaction brings it:
/// those that were in the room before hear of it all the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_bot_reads_back_is_pushed_to_the_others() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let invited = scene.bot(&alice).await?;
    let room = scene.fake.room(&alice.user_id, true, &[&bot.user_id]);
    alice.ping(&room).await?;

    let read_on = Arc::new(Notify::new());
    scene.fake.fault("/messages", 1, Fault::Until(Arc::clone(&read_on)));
    let invite = json!({ "membership": "invite" });
    scene.fake.hold_events(true);
    scene.fake.say(&room, &alice.user_id, "m.room.member", Some(&invited.user_id), invite);
    let message = alice.encrypt(&room, "!ping", true).await?;
    scene.fake.hold_events(false);
    poll::until("the invited bot to read back", PATIENCE, async || {
        Ok((scene.fake.slowed("/messages") > 0).then_some(()))
    })
    .await?;
    scene.fake.hold_events(true);
    let asked = scene.fake.say(&room, &alice.user_id, "m.room.encrypted", None, message);
    read_on.notify_one();
    let answer = alice.answer_to(&room, &asked).await?;
    ensure!(answer.sender == invited.user_id, "nobody else has heard of it: {answer:?}");
    ensure!(scene.decryption(&asked).await?.1 == 1);

    scene.fake.hold_events(false);
    poll::until("the other bot's answer, too", PATIENCE, async || {
        let mut read = alice.read(&room).await?;
        read.retain(|read| read.answers.as_deref() == Some(&asked));
        Ok((read.len() > 1).then_some(()))
    })
    .await?;
    ensure!(scene.decryption(&asked).await?.1 == 2, "each logged it once");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replayed_to_device_message_is_taken_in_once() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let asked = alice.say(&bot.room, "!ping").await?;
    // What lies in the inbox now, until the bot empties it, is what is pushed: all of it comes again,
    // twice.
    let mut replayed = scene.fake.inbox(&bot.user_id, &bot.device_id);
    ensure!(!replayed.is_empty(), "the room key is in the inbox");
    alice.answer_to(&bot.room, &asked).await?;
    scene.settled().await?;
    for message in &mut replayed {
        message["to_user_id"] = bot.user_id.clone().into();
        message["to_device_id"] = bot.device_id.clone().into();
    }
    replayed.extend(replayed.clone());
    let to_devices = scene.fake.calls("/sendToDevice/").len();
    ensure!(scene.fake.transaction("replay", &json!({ TO_DEVICE: replayed })).await?.0 == 200);
    scene.answered_once(&alice, &bot, &asked).await?;
    // A message that an Olm session does not know makes the machine start another one.
    ensure!(scene.fake.calls("/sendToDevice/").len() == to_devices, "it was taken for broken");
    scene.answered_once(&alice, &bot, &alice.say(&bot.room, "!ping").await?).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_pool_is_refilled_once() -> Result<()> {
    let (scene, _alice, bot) = Scene::with_bot().await?;
    let pool = || scene.fake.one_time_keys(&bot.user_id, &bot.device_id);
    let uploads = || scene.fake.calls("/keys/upload").len();
    ensure!(pool() >= 49, "{}", pool());
    let before = uploads();

    let silent = json!({ EVENTS: [], COUNTS: {} });
    let full = json!({ COUNTS: bot.map(json!({ "signed_curve25519": 50 })) });
    let enough = json!({ COUNTS: bot.map(json!({ "signed_curve25519": 25 })) });
    for (id, body) in [("silent", silent), ("full", full), ("enough", enough)] {
        ensure!(scene.fake.transaction(id, &body).await?.0 == 200, "`{id}`");
        scene.settled().await?;
        ensure!(uploads() == before, "`{id}` led to an upload");
    }

    scene.fake.drain_one_time_keys(&bot.user_id, &bot.device_id);
    let drained = json!({ COUNTS: bot.map(json!({})),
        "org.matrix.msc3202.device_one_time_key_counts": bot.map(json!({})) });
    ensure!(scene.fake.transaction("drained", &drained).await?.0 == 200);
    poll::until("the pool to be full", PATIENCE, async || Ok((pool() >= 50).then_some(()))).await?;
    scene.settled().await?;
    ensure!(uploads() == before + 1, "{} uploads", uploads() - before);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_has_a_fallback_key_from_the_start_and_keeps_it_for_a_week() -> Result<()> {
    let (scene, _alice, bot) = Scene::with_bot().await?;
    let fallback = || scene.fake.fallback_key(&bot.user_id, &bot.device_id);
    let first = fallback();
    ensure!(first.is_some(), "no fallback key");
    // matrix-sdk-crypto 0.18 replaces even a used one only when it is a week old.
    for (id, types) in
        [("used", json!([])), ("unused", json!(["signed_curve25519"])), ("used again", json!([]))]
    {
        let body = json!({ FALLBACK: bot.map(types) });
        ensure!(scene.fake.transaction(id, &body).await?.0 == 200, "`{id}`");
        scene.settled().await?;
        ensure!(fallback() == first, "replaced when `{id}`, though young");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_is_long_past_is_forgotten_by_itself() -> Result<()> {
    let mut scene = Scene::start().await?;
    sqlx::query(
        "INSERT INTO transactions VALUES
            ('old', '', NOW() - INTERVAL '8 days'), ('young', '', NOW() - INTERVAL '6 days')",
    )
    .execute(&scene.sql)
    .await?;
    scene.greenshield.restart().await?;
    poll::until("what is old to be gone", PATIENCE, async || {
        let left: String =
            sqlx::query_scalar("SELECT STRING_AGG(txn_id, ' ' ORDER BY txn_id) FROM transactions")
                .fetch_one(&scene.sql)
                .await?;
        Ok((left == "young").then_some(()))
    })
    .await
}
