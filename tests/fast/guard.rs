//! What the homeserver wrongly shows of a bot is told in the log, in a metric, and in its row.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::scene::{Bot, PATIENCE, Scene};
use crate::support::{fake_homeserver::Fault, poll};

/// Has the bot look now.
async fn look(scene: &Scene, bot: &Bot) -> Result<()> {
    sqlx::query("UPDATE bots SET identity_checked_at = NULL WHERE user_id = $1")
        .bind(&bot.user_id)
        .execute(&scene.sql)
        .await?;
    scene.ask_reconcile(bot).await
}

/// The bot's alarm, once `until` says so.
async fn wait_alarm(scene: &Scene, bot: &Bot, until: fn(Option<&str>) -> bool) -> Result<String> {
    poll::until("another alarm", PATIENCE, async || {
        let alarm: Option<String> = sqlx::query_scalar("SELECT alarm FROM bots WHERE user_id = $1")
            .bind(&bot.user_id)
            .fetch_one(&scene.sql)
            .await?;
        Ok(until(alarm.as_deref()).then_some(alarm.unwrap_or_default()))
    })
    .await
}

/// What is wrong, the metric that counts it, and what the alarm says.
const WRONG: [(&str, &str, &str); 4] = [
    (
        "its own device unsigned",
        "greenshield_own_keys_wrong{what=\"device_unsigned\"}",
        "the bot's device is not signed by its identity",
    ),
    (
        "its own device gone",
        "greenshield_own_keys_wrong{what=\"device_missing\"}",
        "the homeserver does not show the bot's device",
    ),
    ("a foreign device with keys", "greenshield_foreign_devices", "has not signed (ALIEN)"),
    (
        "another master key",
        "greenshield_identity_mismatch",
        "another cross-signing identity for this bot than ours",
    ),
];

fn make_wrong(scene: &Scene, bot: &Bot, what: &str) {
    let (user, device, fake) = (&bot.user_id, &bot.device_id, &scene.fake);
    match what {
        "its own device unsigned" => fake.change_keys(user, device, |keys| {
            if let Some(keys) = keys {
                // The device's own signature stays, the identity's goes.
                let own = format!("ed25519:{device}");
                if let Some(signatures) = keys["signatures"][user].as_object_mut() {
                    signatures.retain(|key, _| *key == own);
                }
            }
        }),
        "its own device gone" => fake.change_keys(user, device, |keys| *keys = None),
        "a foreign device with keys" => fake.change_keys(user, "ALIEN", |keys| {
            *keys = Some(json!({
                "user_id": user, "device_id": "ALIEN", "algorithms": [],
                "keys": { "curve25519:ALIEN": "k", "ed25519:ALIEN": "k" }, "signatures": {},
            }));
        }),
        _ => fake.change_master(user, |master| {
            master["keys"] = json!({ "ed25519:alien": "alien" });
        }),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_told_in_log_metric_and_row_until_it_is_gone() -> Result<()> {
    let (scene, _alice, bot) = Scene::with_bot().await?;
    for (what, metric, says) in WRONG {
        let (mut keys, mut master) = (None, Value::Null);
        scene.fake.change_keys(&bot.user_id, &bot.device_id, |shown| keys = shown.clone());
        scene.fake.change_master(&bot.user_id, |shown| master = shown.clone());
        make_wrong(&scene, &bot, what);
        look(&scene, &bot).await?;
        let alarm = wait_alarm(&scene, &bot, |alarm| alarm.is_some()).await?;
        ensure!(alarm.contains(says) && !alarm.contains(';'), "{what}: {alarm}");
        ensure!((scene.metric(metric).await? - 1.0).abs() < 0.1, "{what}: {metric}");
        let log = std::fs::read_to_string(scene.greenshield.log())?;
        let line = log.lines().rfind(|line| line.contains("does not show the bot as it is"));
        let told = line.is_some_and(|line| {
            line.contains("ERROR") && line.contains(says) && line.contains(&bot.user_id)
        });
        ensure!(told, "{what}: {line:?}");
        let shown = scene.greenshield.run(&["bots", "show", &bot.user_id, "--json"])?;
        let shown: Value = serde_json::from_str(&shown)?;
        ensure!(shown["alarm"] == alarm && shown["alarm_at"].is_string(), "{what}: {shown}");
        for command in [&["bots", "list"][..], &["bots", "show", &bot.user_id]] {
            let shown = scene.greenshield.run(command)?;
            ensure!(shown.contains(&alarm), "{what}: {shown}");
        }

        scene.fake.change_keys(&bot.user_id, &bot.device_id, |shown| *shown = keys);
        scene.fake.change_keys(&bot.user_id, "ALIEN", |shown| *shown = None);
        scene.fake.change_master(&bot.user_id, |shown| *shown = master);
        look(&scene, &bot).await?;
        wait_alarm(&scene, &bot, |alarm| alarm.is_none()).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_fails_is_no_look_and_one_that_succeeds_needs_no_sync() -> Result<()> {
    let (scene, _alice, bot) = Scene::with_bot().await?;
    make_wrong(&scene, &bot, "a foreign device with keys");
    scene.fake.fault("/keys/query", 2, Fault::html(502));
    let before = scene.fake.calls("/keys/query").len();
    look(&scene, &bot).await?;
    wait_alarm(&scene, &bot, |alarm| alarm.is_some()).await?;
    let asked = scene.fake.calls("/keys/query");
    let answers: Vec<u16> = asked[before..].iter().map(|call| call.status).collect();
    ensure!(answers == [502, 502, 200], "{answers:?}");

    // Its messages are refused it for good: what others see of it is looked at all the same.
    scene.fake.change_keys(&bot.user_id, "ALIEN", |keys| *keys = None);
    scene.fake.fault("/sync", usize::MAX, Fault::refusal(403, "M_FORBIDDEN"));
    look(&scene, &bot).await?;
    wait_alarm(&scene, &bot, |alarm| alarm.is_none()).await?;
    Ok(())
}
