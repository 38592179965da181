//! A bug that panics in one bot's step: the same parts as `greenshield serve`, in this process, with a
//! responder that has the bug.

use std::{
    pin::pin,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use anyhow::{Context as _, Result, bail, ensure};
use greenshield::{
    app, config::Config, model::Heard, registration::Registration, responder, store,
};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::scene::{Bot, PATIENCE, STEP_PANICS, Scene};
use crate::support::{self, fake_homeserver::Person, poll};

static SICK: OnceLock<String> = OnceLock::new();
static CURED: AtomicBool = AtomicBool::new(false);
static PANICKED: AtomicUsize = AtomicUsize::new(0);

/// The responder, but for one of the bots, until it is cured.
fn respond(heard: &Heard<'_>) -> Option<Value> {
    if SICK.get().is_some_and(|sick| heard.user_id.as_str() == sick)
        && !CURED.load(Ordering::SeqCst)
    {
        PANICKED.fetch_add(1, Ordering::SeqCst);
        panic!("on purpose, in a step");
    }
    responder::answer(heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_panics_is_counted_and_costs_no_other_bot_and_no_message() -> Result<()> {
    let (mut scene, alice, sick) = Scene::with_bot().await?;
    let others = [scene.bot(&alice).await?, scene.bot(&alice).await?];
    for bot in others.iter().chain([&sick]) {
        alice.ping(&bot.room).await?;
    }
    scene.greenshield.stop().await?;
    let _ = SICK.set(sick.user_id.clone());

    let config = Config::load(scene.greenshield.config())?;
    let registration = Registration::load(&config.appservice.registration_file)?;
    let store = store::open::open(scene.database.as_str(), 16, &config.sealing.key).await?;
    let stop = CancellationToken::new();
    let serving = app::serve_until(config, registration, store, respond, stop.clone());
    let mut serving = pin!(serving);
    tokio::select! {
        ended = serving.as_mut() => bail!("it ended: {ended:?}"),
        told = story(&scene, &alice, &sick, &others) => told?,
    }
    stop.cancel();
    serving.await
}

async fn story(scene: &Scene, alice: &Person, sick: &Bot, others: &[Bot; 2]) -> Result<()> {
    let ready = format!("{}/health/ready", scene.greenshield.operator_url());
    poll::until("it to be ready", PATIENCE, async || {
        let answer = support::http().get(&ready).send().await;
        Ok(answer.is_ok_and(|answer| answer.status().is_success()).then_some(()))
    })
    .await?;
    let asked = alice.say(&sick.room, "!ping").await?;
    poll::until("a step to panic", PATIENCE, async || {
        Ok((scene.metric(STEP_PANICS).await? >= 1.0).then_some(()))
    })
    .await?;
    let said = scene.wait_text(
        "the bot's error",
        "SELECT last_error FROM bots WHERE user_id = $1 AND last_error IS NOT NULL",
        &sick.user_id,
    );
    let said = said.await?;
    ensure!(said.contains("a step panicked") && !said.contains("on purpose"), "{said}");

    for other in others {
        alice.ping(&other.room).await.context("another bot")?;
    }
    let unwell: Vec<String> = sqlx::query_scalar(
        "SELECT user_id FROM bots WHERE last_error IS NOT NULL AND user_id <> $1",
    )
    .bind(&sick.user_id)
    .fetch_all(&scene.sql)
    .await?;
    ensure!(unwell.is_empty(), "{unwell:?}");

    CURED.store(true, Ordering::SeqCst);
    // Its turn comes again: sooner here than after a bug, which waiting does not cure.
    scene.due_now().await?;
    alice.answer_to(&sick.room, &asked).await?;
    alice.ping(&sick.room).await?;
    let read = alice.read(&sick.room).await?;
    let answers = read.iter().filter(|read| read.answers.as_ref() == Some(&asked)).count();
    ensure!(answers == 1 && scene.decryption(&asked).await?.1 == 1, "{read:?}");
    poll::until("all bots to be well", PATIENCE, async || {
        let unwell = "SELECT COUNT(*) FROM bots WHERE last_error IS NOT NULL";
        let unwell: i64 = sqlx::query_scalar(unwell).fetch_one(&scene.sql).await?;
        Ok((unwell == 0).then_some(()))
    })
    .await?;
    let panicked = PANICKED.load(Ordering::SeqCst);
    let counted = scene.metric(STEP_PANICS).await?;
    ensure!((counted - panicked as f64).abs() < 0.1, "{counted} of {panicked} panics were counted");
    Ok(())
}
