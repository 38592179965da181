//! Room keys that come late, get lost, or are refused.

use anyhow::{Result, ensure};

use super::scene::{PATIENCE, Scene};
use crate::support::{fake_homeserver::Delivery, poll};

#[tokio::test(flavor = "multi_thread")]
async fn a_key_after_its_event_is_waited_for() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    scene.fake.to_device(Delivery::Late);
    let asked = alice.say(&bot.room, "!ping").await?;
    ensure!(scene.wait_parked(&asked).await? == "room_key_missing");
    scene.fake.to_device(Delivery::Pushed);
    let answer = scene.answered_once(&alice, &bot, &asked).await?;
    ensure!(answer.body == "pong" && answer.shield == "None", "{answer:?}");
    ensure!(scene.decryption(&asked).await?.0 == "late");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_no_transaction_brings_is_fetched() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    scene.fake.to_device(Delivery::InboxOnly);
    let asked = alice.say(&bot.room, "!ping").await?;
    scene.answered_once(&alice, &bot, &asked).await?;
    poll::until("the inbox at the homeserver to be emptied", PATIENCE, async || {
        Ok((scene.fake.inbox_len(&bot.user_id, &bot.device_id) == 0).then_some(()))
    })
    .await?;
    ensure!(scene.decryption(&asked).await?.0 == "late");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_key_is_told_by_its_code() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    alice.ping(&bot.room).await?;
    scene.settled().await?;
    // Told before the event, and after it.
    scene.fake.hold_events(true);
    let (first, sent) = alice.say_without_key(&bot.room, "!ping").await?;
    alice.withhold(&bot.user_id, &bot.device_id, &sent, &bot.room, "m.blacklisted").await;
    scene.settled_but_events().await?;
    scene.fake.hold_events(false);
    ensure!(scene.wait_parked(&first).await? == "room_key_withheld:m.blacklisted");

    let (second, sent) = alice.say_without_key(&bot.room, "!ping").await?;
    ensure!(scene.wait_parked(&second).await? == "room_key_missing");
    alice.withhold(&bot.user_id, &bot.device_id, &sent, &bot.room, "m.unverified").await;
    poll::until("the reason to be corrected", PATIENCE, async || {
        let reason = scene.wait_parked(&second).await?;
        Ok((reason == "room_key_withheld:m.unverified").then_some(()))
    })
    .await
}

/// An answer that is lost on the way, and a homeserver that has no sliding sync to fetch it with,
/// must not keep a bot from everything else.
#[tokio::test(flavor = "multi_thread")]
async fn a_bot_goes_on_while_its_inbox_cannot_be_asked_for() -> Result<()> {
    use crate::support::fake_homeserver::Fault;
    let (scene, alice, bot) = Scene::with_bot().await?;
    scene.fake.fault("/sync", usize::MAX, Fault::refusal(403, "M_FORBIDDEN"));
    let (lost, _) = alice.say_without_key(&bot.room, "!ping").await?;
    scene.wait_parked(&lost).await?;
    poll::until("the inbox to be asked for", PATIENCE, async || {
        let calls = scene.fake.calls("/sync");
        Ok(calls.iter().any(|call| call.status == 403).then_some(()))
    })
    .await?;
    alice.forget_key(&bot.room).await?;
    alice.ping(&bot.room).await?;
    scene.fake.heal();
    Ok(())
}
