//! A homeserver that is slow, rate-limits, breaks off or refuses.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use super::scene::{PATIENCE, Scene};
use crate::support::{
    fake_homeserver::{FakeHomeserver, Fault, Person},
    poll,
};

/// Each of them a few times in a row on one path.
fn trouble(fake: &FakeHomeserver, path: &str) {
    fake.fault(path, 1, Fault::rate_limit(300));
    fake.fault(path, 1, Fault::refusal(500, "M_UNKNOWN"));
    fake.fault(path, 1, Fault::html(502));
    fake.fault(path, 1, Fault::html(200));
    fake.fault(path, 1, Fault::Broken);
}

async fn gets_over(path: &str) -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    // Somebody new, so that there are devices to ask for and keys to claim.
    let carol = Person::new(&scene.fake, "carol").await?;
    carol.join(&bot.room).await?;
    let before = scene.fake.calls(path).len();
    trouble(&scene.fake, path);
    let asked = alice.say(&bot.room, "!ping").await?;
    let answer = scene.answered_once(&alice, &bot, &asked).await?;
    ensure!(answer.shield == "None", "{answer:?}");
    carol.answer_to(&bot.room, &asked).await?;
    scene.fake.all_met().await?;
    let calls = scene.fake.calls(path).len() - before;
    ensure!(calls > 5, "{path} was called {calls} times");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn it_gets_over_trouble_with_send() -> Result<()> {
    gets_over("/send/").await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_gets_over_trouble_with_key_claims() -> Result<()> {
    gets_over("/keys/claim").await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_gets_over_trouble_with_key_queries() -> Result<()> {
    gets_over("/keys/query").await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_gets_over_trouble_with_to_device_messages() -> Result<()> {
    gets_over("/sendToDevice/").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_answer_is_lost_is_in_the_room_once() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    for path in ["/keys/claim", "/sendToDevice/", "/send/"] {
        scene.fake.fault(path, 2, Fault::Lost);
    }
    let carol = Person::new(&scene.fake, "carol").await?;
    carol.join(&bot.room).await?;
    let asked = alice.say(&bot.room, "!ping").await?;
    scene.answered_once(&alice, &bot, &asked).await?;
    carol.answer_to(&bot.room, &asked).await?;
    scene.fake.all_met().await?;
    let said = scene.fake.said_by(&bot.user_id, &bot.room);
    ensure!(said.len() == 2, "the intro and one answer, not {said:?}");
    ensure!(scene.fake.calls("/send/").len() == 4, "the intro, and three attempts");
    Ok(())
}

/// One-time keys whose private halves could not be written: nobody may ever get one of them, and the
/// bot must not end with others under the same names.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_could_not_be_committed_are_not_published() -> Result<()> {
    let (mut scene, alice, bot) = Scene::with_bot().await?;
    // Somebody whose devices cannot be asked for gives the machine another question, always.
    let room = scene.fake.room(&alice.user_id, true, &[&bot.user_id, "@x:dead.example"]);
    alice.ping(&room).await?;
    sqlx::raw_sql(
        "CREATE SEQUENCE refusals;
        CREATE FUNCTION refuse_once() RETURNS TRIGGER LANGUAGE plpgsql AS $$
        BEGIN
            IF nextval('refusals') = 1 THEN RAISE EXCEPTION 'refused on purpose'; END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER refuse_once BEFORE UPDATE ON crypto_accounts
        FOR EACH ROW EXECUTE FUNCTION refuse_once()",
    )
    .execute(&scene.sql)
    .await?;
    // A machine that is opened anew asks at once about whom it could not ask before.
    scene.greenshield.restart().await?;
    let untouched: bool =
        sqlx::query_scalar("SELECT NOT is_called FROM refusals").fetch_one(&scene.sql).await?;
    ensure!(untouched, "something else has met the refusal");
    let uploads = scene.fake.calls("/keys/upload").len();
    scene.fake.drain_one_time_keys(&bot.user_id, &bot.device_id);
    let counts = json!({ "org.matrix.msc3202.device_one_time_keys_count": bot.map(json!({})) });
    ensure!(scene.fake.transaction("drained", &counts).await?.0 == 200);
    let pool = || scene.fake.one_time_keys(&bot.user_id, &bot.device_id);
    poll::until("the pool to be full", PATIENCE, async || Ok((pool() >= 50).then_some(()))).await?;
    scene.settled().await?;
    let refused: i64 =
        sqlx::query_scalar("SELECT last_value FROM refusals").fetch_one(&scene.sql).await?;
    ensure!(refused > 1, "the account was written once more, after a refusal");
    let made = scene.fake.calls("/keys/upload").split_off(uploads);
    ensure!(made.len() == 1 && made.iter().all(|call| call.status == 200), "{made:?}");
    // Whoever takes one of them is understood.
    let carol = Person::new(&scene.fake, "carol").await?;
    carol.join(&bot.room).await?;
    carol.ping(&bot.room).await?;
    let repaired: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM repairs").fetch_one(&scene.sql).await?;
    ensure!(repaired == 0, "it was taken for sick");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_homeserver_is_waited_for() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    scene.fake.fault("/send/", 1, Fault::Slow(Duration::from_secs(3)));
    let asked = alice.say(&bot.room, "!ping").await?;
    scene.answered_once(&alice, &bot, &asked).await?;
    ensure!(scene.fake.slowed("/send/") == 1, "it was not slow");
    ensure!(scene.fake.calls("/send/").len() == 2, "the intro and one attempt");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_room_fails_visibly_and_alone() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let other = scene.bot(&alice).await?;
    let refused = scene.fake.room(&alice.user_id, true, &[&bot.user_id]);
    scene.fake.fault(&format!("{refused}/send/"), usize::MAX, Fault::refusal(403, "M_FORBIDDEN"));
    let asked = alice.say(&refused, "!ping").await?;
    let sql = "SELECT error FROM outbox WHERE state = 'failed' AND txn_id = 'respond-' || $1";
    let error = scene.wait_text("a failed message", sql, &asked).await?;
    ensure!(error.contains("403") && error.contains("M_FORBIDDEN"), "{error}");
    alice.ping(&bot.room).await?;
    alice.ping(&other.room).await?;
    scene.fake.heal();
    alice.ping(&refused).await?;
    Ok(())
}

/// A message waiting for its next attempt holds back those behind it, and costs nothing meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_wait_is_a_quiet_one() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    scene.fake.fault("/send/", usize::MAX, Fault::rate_limit(4000));
    let first = alice.say(&bot.room, "!ping").await?;
    poll::until("the rate limit to be met", PATIENCE, async || {
        let calls = scene.fake.calls("/send/");
        Ok(calls.iter().any(|call| call.status == 429).then_some(()))
    })
    .await?;
    let second = alice.say(&bot.room, "!ping").await?;
    let sql = "SELECT state FROM outbox WHERE txn_id = 'respond-' || $1 AND state = 'queued'";
    scene.wait_text("the second answer to wait behind the first", sql, &second).await?;
    scene.fake.heal();
    scene.answered_once(&alice, &bot, &first).await?;
    scene.answered_once(&alice, &bot, &second).await?;
    let order: Vec<_> =
        alice.read(&bot.room).await?.into_iter().filter_map(|read| read.answers).collect();
    ensure!(order == [first, second], "{order:?}");
    let steps = scene.metric("greenshield_step_seconds_count").await?;
    ensure!(steps > 0.0 && steps < 60.0, "{steps} steps: it was spinning");
    Ok(())
}
