//! How a bot comes to be when things go wrong meanwhile.

use anyhow::{Result, ensure};

use super::scene::{Bot, PATIENCE, Scene, sign_up};
use crate::support::{
    fake_homeserver::{Fault, Person},
    poll,
};

/// The promises about identities, whatever happened.
pub fn whole(scene: &Scene, bot: &Bot) -> Result<()> {
    let masters = scene.fake.masters(&bot.user_id);
    ensure!(masters.len() == 1, "{masters:?}");
    let ours = bot.signup["msk_public"].as_str().unwrap_or_default();
    ensure!(masters[0] == format!("ed25519:{ours}"), "{masters:?} is not {ours}");
    let unsigned = scene.fake.unsigned();
    ensure!(unsigned.is_empty(), "published without a signature: {unsigned:?}");
    let devices = scene.fake.calls("/devices/");
    let made = devices.iter().filter(|call| call.method == "PUT" && call.user == bot.user_id);
    ensure!(made.count() == 1, "{devices:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_call_of_a_signup_changes_nothing() -> Result<()> {
    let mut scene = Scene::start().await?;
    let alice = Person::new(&scene.fake, "alice").await?;
    let paths = [
        "/register",
        "/keys/device_signing/upload",
        "/keys/upload",
        "/keys/signatures/upload",
        "/createRoom",
        "/sendToDevice/",
        "/send/",
    ];
    for (n, path) in paths.into_iter().enumerate() {
        let code = scene.greenshield.mint_code(&alice.user_id, 1)?;
        let name = format!("crash{n}");
        let before = scene.fake.calls(path).len();
        scene.fake.fault(path, 1, Fault::Hang);
        let (url, fake) = (scene.greenshield.public_url(), scene.fake.clone());
        let (first, crash) = tokio::join!(sign_up(&url, &code, &name, Some("key")), async {
            poll::until(path, PATIENCE, async || {
                Ok((fake.calls(path).len() > before).then_some(()))
            })
            .await?;
            scene.greenshield.kill9().await
        });
        crash?;
        ensure!(first.is_err(), "{path}: {first:?}");
        scene.greenshield.start().await?;
        let (status, answer) = scene.sign_up(&code, &name, Some("key")).await?;
        ensure!(status == 200, "{path}: {status} {answer}");
        let bot = Bot::of(answer)?;
        whole(&scene, &bot)?;
        alice.join(&bot.room).await?;
        let intro = bot.signup["intro_text"].as_str().unwrap_or_default();
        let read = alice.read(&bot.room).await?;
        let intros: Vec<_> = read.iter().filter(|read| read.body == intro).collect();
        ensure!(intros.len() == 1 && intros[0].shield == "None", "{path}: {read:?}");
        ensure!(alice.ping(&bot.room).await?.shield == "None", "{path}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signup_gets_over_trouble() -> Result<()> {
    let scene = Scene::start().await?;
    let alice = Person::new(&scene.fake, "alice").await?;
    // Every failure doubles the wait before the next attempt: a few of them are enough.
    scene.fake.fault("/devices/", 1, Fault::html(502));
    scene.fake.fault("/keys/device_signing/upload", 1, Fault::rate_limit(100));
    scene.fake.fault("/keys/upload", 1, Fault::Lost);
    scene.fake.fault("/createRoom", 1, Fault::Lost);
    scene.fake.fault("/members", 1, Fault::html(502));
    let bot = scene.bot(&alice).await?;
    whole(&scene, &bot)?;
    scene.fake.all_met().await?;
    let rooms = scene.fake.calls("/createRoom");
    let made = rooms.iter().filter(|call| call.status == 200);
    ensure!(made.count() == 1, "one room was made, and found again: {rooms:?}");
    ensure!(alice.ping(&bot.room).await?.shield == "None");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_codes_last_use_is_won_once() -> Result<()> {
    let scene = Scene::start().await?;
    let alice = Person::new(&scene.fake, "alice").await?;
    let code = scene.greenshield.mint_code(&alice.user_id, 1)?;
    let (one, other) =
        tokio::join!(scene.sign_up(&code, "one", None), scene.sign_up(&code, "other", None));
    let (one, other) = (one?, other?);
    let mut statuses = [one.0, other.0];
    statuses.sort_unstable();
    ensure!(statuses == [200, 403], "{one:?} {other:?}");
    let loser = if one.0 == 200 { other } else { one };
    ensure!(loser.1["errcode"] == "GREENSHIELD_INVALID_CODE", "{loser:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_call_gets_the_same_bot_and_token() -> Result<()> {
    let scene = Scene::start().await?;
    let alice = Person::new(&scene.fake, "alice").await?;
    let code = scene.greenshield.mint_code(&alice.user_id, 2)?;
    let same = || scene.sign_up(&code, "same", Some("key"));
    let (one, other) = tokio::join!(same(), same());
    let (one, other, later) = (one?, other?, same().await?);
    ensure!(one.0 == 200 && one == other && one == later, "{one:?} {other:?} {later:?}");
    let stranger = scene.sign_up(&code, "same", Some("another key")).await?;
    ensure!(stranger.0 == 409 && stranger.1["errcode"] == "M_USER_IN_USE", "{stranger:?}");
    whole(&scene, &Bot::of(one.1)?)
}
