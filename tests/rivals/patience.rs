//! How long greenshield waits for a homeserver that refuses, and what waits with it.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::calls::{CLOCKS, ever_more_seldom, invite, refused, signs_up_meanwhile};
use crate::{
    fast::scene::{Bot, PATIENCE, Scene},
    support::{fake_homeserver::Fault, poll},
};

/// A rate limit of no time at all is no leave to hammer, and costs no message and no signup.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_of_nothing_is_not_obeyed() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let other = scene.bot(&alice).await?;
    scene.settled().await?;
    let fake = &scene.fake;
    let sends = [format!("{}/send/", bot.room), format!("{}/send/", other.room)];
    fake.fault(&sends[0], usize::MAX, Fault::rate_limit(0));
    fake.fault(&sends[1], usize::MAX, Fault::Later { status: 503, seconds: 0 });
    fake.fault("/register", usize::MAX, Fault::rate_limit(0));
    let asked = alice.say(&bot.room, "!ping").await?;
    let also = alice.say(&other.room, "!ping").await?;
    let watch = async {
        for path in [sends[0].as_str(), sends[1].as_str(), "/register"] {
            let refused = poll::until("four attempts", PATIENCE, async || {
                let refused = refused(fake, path);
                Ok((refused.len() >= 4).then_some(refused))
            })
            .await?;
            ever_more_seldom(path, &refused)?;
        }
        fake.heal();
        Ok(())
    };
    signs_up_meanwhile(&scene, &alice, watch).await?;
    alice.answer_to(&bot.room, &asked).await?;
    alice.answer_to(&other.room, &also).await?;
    Ok(())
}

/// What it asks for is waited for, whether a homeserver says it or what stands before one.
#[tokio::test(flavor = "multi_thread")]
async fn the_wait_that_is_asked_for_is_kept() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    for fault in [Fault::rate_limit(3000), Fault::Later { status: 503, seconds: 3 }] {
        let sends = scene.fake.calls("/send/").len();
        scene.fake.fault("/send/", 1, fault.clone());
        let asked = alice.say(&bot.room, "!ping").await?;
        let left = poll::until("an answer that is put off", PATIENCE, async || {
            let left = "SELECT EXTRACT(EPOCH FROM due_at - NOW())::FLOAT8 FROM outbox
                WHERE txn_id = 'respond-' || $1 AND attempts = 1";
            let left = sqlx::query_scalar::<_, f64>(left).bind(&asked);
            Ok(left.fetch_optional(&scene.sql).await?)
        })
        .await?;
        // It is spread over a quarter more.
        ensure!(left <= 3.75, "{fault:?}: {left} s were left");
        alice.answer_to(&bot.room, &asked).await?;
        let calls = scene.fake.calls("/send/");
        let [refused, again] = &calls[sends..] else {
            anyhow::bail!("{fault:?}: {} attempts", calls.len() - sends)
        };
        let waited = again.at - refused.at;
        let kept = waited + CLOCKS >= Duration::from_secs(3);
        ensure!(refused.status >= 400 && kept, "{fault:?}: {waited:?}");
    }
    Ok(())
}

/// A homeserver that was started without our registration refuses every call: that is an outage, and no
/// message's fault.
#[tokio::test(flavor = "multi_thread")]
async fn a_homeserver_that_does_not_know_us_is_waited_for() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    scene.fake.fault("", usize::MAX, Fault::refusal(401, "M_UNKNOWN_TOKEN"));
    let asked = alice.say(&bot.room, "!ping").await?;
    let sql = "SELECT error FROM outbox
        WHERE txn_id = 'respond-' || $1 AND state = 'queued' AND attempts >= 2";
    let error = scene.wait_text("a message that is put off", sql, &asked).await?;
    ensure!(error.contains("M_UNKNOWN_TOKEN"), "{error}");
    scene.fake.heal();
    scene.answered_once(&alice, &bot, &asked).await?;
    Ok(())
}

/// An invitation that cannot be answered is told; one that can be, in part, costs nothing that was said.
#[tokio::test(flavor = "multi_thread")]
async fn an_invitation_that_is_refused_is_told_and_loses_no_message() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let fake = &scene.fake;
    let no = || Fault::refusal(403, "M_FORBIDDEN");
    for (path, by) in [
        ("/join/", alice.user_id.as_str()),
        ("/leave", "@eve:elsewhere.test"),
        ("/messages", alice.user_id.as_str()),
    ] {
        let room = fake.room(by, true, &[by]);
        fake.fault(path, usize::MAX, no());
        invite(fake, &room, by, &bot);
        is_told(&scene, &bot).await.with_context(|| path)?;
        fake.heal();
        alice.ping(&bot.room).await.with_context(|| format!("{path}, healed"))?;
    }

    for path in ["/account_data/m.direct", "/keys/upload"] {
        let room = fake.room(&alice.user_id, true, &[]);
        fake.fault(path, usize::MAX, no());
        if path == "/keys/upload" {
            drained(&scene, &bot).await?;
        }
        // The bot is invited only, and gets there when this is said.
        fake.fault("/join/", 1, Fault::rate_limit(2000));
        let joins = refused(fake, "/join/").len();
        invite(fake, &room, &alice.user_id, &bot);
        poll::until("the first attempt to join", PATIENCE, async || {
            Ok((refused(fake, "/join/").len() > joins).then_some(()))
        })
        .await?;
        let asked = alice.say(&room, "!ping").await?;
        alice.answer_to(&room, &asked).await.with_context(|| path)?;
        if path == "/account_data/m.direct" {
            is_told(&scene, &bot).await.with_context(|| path)?;
        }
        fake.heal();
    }
    Ok(())
}

/// Until the bot's `last_error` tells of the invitation; then it is cleared.
async fn is_told(scene: &Scene, bot: &Bot) -> Result<()> {
    let sql = "SELECT last_error FROM bots
        WHERE user_id = $1 AND last_error LIKE 'an invitation was left alone: %403 M_FORBIDDEN%'";
    scene.wait_text("the refused invitation to be told", sql, &bot.user_id).await?;
    let clear = sqlx::query("UPDATE bots SET last_error = NULL WHERE user_id = $1");
    clear.bind(&bot.user_id).execute(&scene.sql).await?;
    Ok(())
}

/// The bot is told that its one-time keys are gone, and greenshield has tried to upload new ones.
async fn drained(scene: &Scene, bot: &Bot) -> Result<()> {
    scene.fake.drain_one_time_keys(&bot.user_id, &bot.device_id);
    let uploads = refused(&scene.fake, "/keys/upload").len();
    let counts = json!({
        "org.matrix.msc3202.device_one_time_keys_count": bot.map(json!({})) });
    ensure!(scene.fake.transaction("drained", &counts).await?.0 == 200);
    poll::until("an upload to be refused", PATIENCE, async || {
        Ok((refused(&scene.fake, "/keys/upload").len() > uploads).then_some(()))
    })
    .await
}

/// What the homeserver never takes is tried beside the messages, and makes none of them later and later:
/// the bot keeps a second of distance for each failure that is counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_never_taken_slows_no_message() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    scene.fake.fault("/keys/upload", usize::MAX, Fault::refusal(403, "M_FORBIDDEN"));
    drained(&scene, &bot).await?;
    for n in 0..10 {
        let tried = refused(&scene.fake, "/keys/upload").len();
        alice.ping(&bot.room).await?;
        let failures: i32 = sqlx::query_scalar(
            "SELECT failures FROM bot_queue JOIN bots USING (bot_id) WHERE user_id = $1",
        )
        .bind(&bot.user_id)
        .fetch_one(&scene.sql)
        .await?;
        ensure!(failures <= 1, "message {n} came after {failures} failures");
        poll::until("the upload to be tried beside the message", PATIENCE, async || {
            Ok((refused(&scene.fake, "/keys/upload").len() > tried).then_some(()))
        })
        .await?;
    }
    Ok(())
}
