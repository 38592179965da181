//! Verification while the homeserver has its troubles.

use anyhow::{Result, ensure};

use super::scene::{PATIENCE, Scene};
use crate::support::{
    fake_homeserver::{Fault, Person},
    poll,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_verification_outlives_a_homeserver_that_falters() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    alice.ping(&bot.room).await?;
    scene.settled().await?;

    // Each message of the bot meets something.
    scene.fake.fault("/sendToDevice/m.key.verification.ready", 2, Fault::html(502));
    scene.fake.fault("/sendToDevice/m.key.verification.accept", 1, Fault::rate_limit(200));
    scene.fake.fault("/sendToDevice/m.key.verification.key", 1, Fault::Lost);
    scene.fake.fault("/sendToDevice/m.key.verification.mac", 2, Fault::Broken);
    scene.fake.fault("/keys/signatures/upload", 1, Fault::html(502));
    let request = alice.ask(&bot.user_id, &bot.device_id).await?;
    let sas = alice.compare(&request).await?;

    // While a human looks at the emoji, something else of the same bot fails as a whole.
    let carol = Person::new(&scene.fake, "carol").await?;
    scene.fake.fault("/keys/query", 3, Fault::html(502));
    scene.fake.fault("/sync", 2, Fault::refusal(500, "M_UNKNOWN"));
    carol.join(&bot.room).await?;
    let (asked, _) = alice.say_without_key(&bot.room, "lost").await?;
    scene.wait_parked(&asked).await?;
    alice.forget_key(&bot.room).await?;
    alice.ping(&bot.room).await?;
    poll::until("the inbox not to be given", PATIENCE, async || {
        let calls = scene.fake.calls("/sync");
        Ok(calls.iter().any(|call| call.status == 500).then_some(()))
    })
    .await?;

    alice.confirm(&sas).await?;
    alice.wait_verified(&bot.user_id).await?;
    let sql = "SELECT v.state FROM verifications v JOIN bots USING (bot_id)
        WHERE user_id = $1 AND v.finished_at IS NOT NULL";
    scene.wait_text("the verification's end", sql, &bot.user_id).await?;
    scene.fake.all_met().await?;
    let states: Vec<String> =
        sqlx::query_scalar("SELECT state FROM verifications").fetch_all(&scene.sql).await?;
    ensure!(states == ["done"], "{states:?}");
    Ok(())
}
