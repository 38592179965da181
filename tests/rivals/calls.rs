//! Every call that greenshield makes, and a homeserver that answers it badly.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::{Value, json};

use super::{pair::each_answered_once, quiet};
use crate::{
    fast::scene::{Bot, PATIENCE, Scene},
    support::{
        fake_homeserver::{FakeHomeserver, Fault, Person, Seen, Trap},
        poll, report,
    },
};

/// Calls by a part of their path, and how many of these are made before the one that is meant: some
/// paths are read first, and then written.
const CALLS: [(&str, usize); 21] = [
    ("/register", 0),
    ("/devices/", 0),
    ("/devices/", 1),
    ("/keys/query", 0),
    ("/keys/device_signing/upload", 0),
    ("/keys/upload", 0),
    ("/keys/signatures/upload", 0),
    ("/displayname", 0),
    ("/join/", 0),
    ("/joined_rooms", 0),
    ("/state/m.room.create", 0),
    ("/createRoom", 0),
    ("/account_data/m.direct", 0),
    ("/account_data/m.direct", 1),
    ("/state/m.room.encryption", 0),
    ("/state/m.room.history_visibility", 0),
    ("/members", 0),
    ("/keys/claim", 0),
    ("/sendToDevice/", 0),
    ("/send/", 0),
    ("/sync", 0),
];

/// Neighbours in this list are made in one step: they go to different bots.
const GROUPS: usize = 6;

/// Calls that only an invitation brings.
const INVITED: [&str; 4] = ["/join/", "/account_data/m.direct", "/messages", "/leave"];

fn answers() -> Vec<(&'static str, Fault)> {
    let answer = |status, body: &str| Fault::Answer { status, body: body.to_owned() };
    vec![
        ("a rate limit", Fault::rate_limit(300)),
        ("500", Fault::refusal(500, "M_UNKNOWN")),
        ("503", Fault::refusal(503, "M_UNKNOWN")),
        ("a proxy's page with 502", Fault::html(502)),
        ("a proxy's page with 404", Fault::html(404)),
        ("a proxy's page with 200", Fault::html(200)),
        ("JSON that is no object", answer(200, "[]")),
        ("a truncated answer", Fault::Broken),
        ("an answer that got lost", Fault::Lost),
        ("no answer", Fault::Swallowed),
        ("no answer to a call that was carried out", Fault::Hang),
    ]
}

/// Each kind of bad answer has a homeserver of its own, which gives it once to every call.
#[tokio::test(flavor = "multi_thread")]
async fn every_call_gets_over_every_bad_answer() -> Result<()> {
    let mut kinds = answers();
    if !report::is_large() {
        // The rest differ in status only.
        kinds.retain(|(name, _)| {
            !["503", "a proxy's page with 502", "JSON that is no object", "no answer"]
                .contains(name)
        });
    }
    let scenes = kinds.iter().map(|(name, fault)| async move {
        gets_over(fault).await.with_context(|| format!("after {name}"))
    });
    let met: usize = try_join_all(scenes).await?.into_iter().sum();
    let note = format!(
        "Each of {} calls met each of {} bad answers (rate limits, 5xx, proxies' pages, no JSON, broken off, lost, none) and was made again; signups, invitations and messages came out as without.",
        CALLS.len() + INVITED.len() + 1,
        kinds.len()
    );
    report::row(
        "Outages of the homeserver",
        "bad answers to calls of greenshield",
        met as u64,
        0,
        &note,
    );
    Ok(())
}

async fn gets_over(fault: &Fault) -> Result<usize> {
    let mut scene = Scene::start().await?;
    let fake = scene.fake.clone();
    let alice = Person::new(&fake, "alice").await?;
    let lobby = fake.room(&alice.user_id, false, &[]);
    scene.greenshield.configure(|config| {
        config["signup"] = json!({ "rooms": [lobby] });
        config["homeserver"]["timeout_seconds"] = 2.into();
    })?;
    let before = fake.calls("").len();
    let ping = fake.trap("/ping", 0, fault.clone());
    scene.greenshield.restart().await?;
    sprung("/ping", ping).await?;
    // What fails in a row is waited for longer and longer: a few calls for each of several signups.
    let mut bot = None;
    for group in 0..GROUPS {
        let calls: Vec<_> = CALLS.iter().skip(group).step_by(GROUPS).collect();
        let traps: Vec<_> =
            calls.iter().map(|(path, skip)| fake.trap(path, *skip, fault.clone())).collect();
        let made = rooms_made(&fake);
        let signed_up = scene.bot(&alice).await?;
        // What a proxy answers with 200 has made none.
        let lied = usize::from(matches!(fault, Fault::Answer { status: 200, .. }));
        ensure!(rooms_made(&fake) <= made + 1 + lied, "more than one room was made");
        ensure!(fake.masters(&signed_up.user_id).len() == 1 && fake.unsigned().is_empty());
        let asked = alice.say(&signed_up.room, "!ping").await?;
        alice.answer_to(&signed_up.room, &asked).await?;
        each_answered_once(&scene, &alice, &signed_up, &[asked]).await?;
        for ((path, _), trap) in calls.into_iter().zip(traps) {
            sprung(path, trap).await?;
        }
        bot = Some(signed_up);
    }
    let bot = bot.context("a bot")?;

    for path in INVITED {
        fake.trap(path, 0, fault.clone());
    }
    let room = fake.room(&alice.user_id, true, &[]);
    invite(&fake, &room, &alice.user_id, &bot);
    let elsewhere = fake.room("@eve:elsewhere.test", true, &["@eve:elsewhere.test"]);
    invite(&fake, &elsewhere, "@eve:elsewhere.test", &bot);
    alice.ping(&room).await?;
    poll::until("the other invitation to be declined", PATIENCE, async || {
        Ok(fake.calls("/leave").iter().any(|call| call.status == 200).then_some(()))
    })
    .await?;
    quiet(&scene).await?;
    alice.ping(&bot.room).await?;
    let calls = fake.calls("");
    for path in CALLS.iter().map(|(path, _)| *path).chain(INVITED).chain(["/ping"]) {
        let last = calls.iter().rfind(|call| call.path.contains(path)).context(path)?;
        let well = last.status == 200 || (last.status == 404 && last.method == "GET");
        ensure!(well, "{path} ended with {last:?}");
    }
    ensure!(calls.len() > before);
    Ok(CALLS.len() + INVITED.len() + 1)
}

async fn sprung(path: &str, trap: Trap) -> Result<()> {
    let sprung = tokio::time::timeout(PATIENCE, trap.sprung()).await;
    sprung.with_context(|| format!("{path} was not called"))
}

/// Those that the homeserver says were made: the answer may have got lost.
fn rooms_made(fake: &FakeHomeserver) -> usize {
    fake.calls("/createRoom").iter().filter(|call| call.status == 200).count()
}

pub(super) fn invite(fake: &FakeHomeserver, room: &str, by: &str, bot: &Bot) {
    let content = json!({ "membership": "invite", "is_direct": true });
    fake.say(room, by, "m.room.member", Some(&bot.user_id), content);
}

/// However long it lasts, what fails is tried a bounded number of times, and ever more seldom.
#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_failing_is_tried_ever_more_seldom() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let other = scene.bot(&alice).await?;
    scene.settled().await?;
    let fake = &scene.fake;
    fake.fault(&format!("{}/send/", bot.room), usize::MAX, Fault::refusal(500, "M_UNKNOWN"));
    fake.fault("/createRoom", usize::MAX, Fault::html(502));
    let asked = alice.say(&bot.room, "!ping").await?;
    let code = scene.greenshield.mint_code(&alice.user_id, 1)?;
    let url = scene.greenshield.public_url();
    let signup = crate::fast::scene::sign_up(&url, &code, "waits", Some("key"));
    let began = Instant::now();
    let watch = async {
        while began.elapsed() < Duration::from_secs(9) {
            alice.ping(&other.room).await?;
        }
        let rooms = format!("{}/send/", bot.room);
        for path in [rooms.as_str(), "/createRoom"] {
            let mut failed = fake.calls(path);
            failed.retain(|call| call.status >= 500);
            ensure!((3..=6).contains(&failed.len()), "{path}: {} times", failed.len());
            ever_more_seldom(path, &failed)?;
        }
        fake.heal();
        anyhow::Ok(())
    };
    let (signup, watched) = tokio::join!(signup, watch);
    watched?;
    ensure!(signup?.0 == 200, "the signup did not go on");
    alice.answer_to(&bot.room, &asked).await?;
    Ok(())
}

pub(super) fn ever_more_seldom(path: &str, calls: &[Seen]) -> Result<()> {
    let waits: Vec<Duration> = calls.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    for pair in waits.windows(2) {
        ensure!(pair[1] > pair[0].mul_f64(1.3), "{path}: {waits:?}");
    }
    Ok(())
}

/// A homeserver that says no for good: the step fails, says so, and can be done again; others go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_fails_its_step_alone_and_says_so() -> Result<()> {
    let (mut scene, alice, bot) = Scene::with_bot().await?;
    let lobby = scene.fake.room(&alice.user_id, false, &[]);
    scene.greenshield.configure(|config| config["signup"] = json!({ "rooms": [lobby] }))?;
    scene.greenshield.restart().await?;
    let steps = [
        ("/register", "user"),
        ("/devices/", "device"),
        ("/keys/query", "identity"),
        ("/keys/device_signing/upload", "identity"),
        ("/keys/upload", "identity"),
        ("/keys/signatures/upload", "identity"),
        ("/displayname", "profile"),
        ("/join/", "dm"),
        ("/joined_rooms", "dm"),
        ("/createRoom", "dm"),
        ("/account_data/m.direct", "dm"),
        ("/members", "intro"),
        ("/keys/claim", "intro"),
        ("/sendToDevice/", "intro"),
        ("/send/", "intro"),
    ];
    // Each costs seconds: the suite takes every other one.
    let every = if report::is_large() { 1 } else { 2 };
    for (n, (path, step)) in steps.into_iter().enumerate().step_by(every) {
        let code = scene.greenshield.mint_code(&alice.user_id, 1)?;
        let name = format!("refused{n}");
        scene.fake.fault(path, usize::MAX, Fault::refusal(403, "M_FORBIDDEN"));
        let (status, said) = scene.sign_up(&code, &name, Some("key")).await?;
        scene.fake.heal();
        ensure!(status == 502 && said["step"] == step, "{path}: {status} {said}");
        ensure!(text(&said).contains("403 M_FORBIDDEN: as the test wants it"), "{path}: {said}");
        alice.ping(&bot.room).await.with_context(|| format!("{path} of another bot"))?;
        let (status, said) = scene.sign_up(&code, &name, Some("key")).await?;
        ensure!(status == 200, "{path}, healed: {status} {said}");
    }

    let paths = ["/keys/query", "/keys/claim", "/sendToDevice/", "/members"];
    for (n, path) in paths.into_iter().enumerate().step_by(every) {
        let carol = Person::new(&scene.fake, &format!("carol{n}")).await?;
        carol.join(&bot.room).await?;
        scene.settled().await?;
        if path == "/members" {
            sqlx::query("UPDATE rooms SET members_complete = FALSE").execute(&scene.sql).await?;
        }
        scene.fake.fault(path, usize::MAX, Fault::refusal(403, "M_FORBIDDEN"));
        let asked = alice.say(&bot.room, "!ping").await?;
        let sql = "SELECT error FROM outbox WHERE state = 'failed' AND txn_id = 'respond-' || $1";
        let error = scene.wait_text(&format!("a message that {path} fails"), sql, &asked).await?;
        ensure!(error.contains("403") && error.contains("M_FORBIDDEN"), "{path}: {error}");
        scene.fake.heal();
        let healed = alice.say(&bot.room, "!ping").await?;
        alice.answer_to(&bot.room, &healed).await.with_context(|| format!("{path}, healed"))?;
        carol.answer_to(&bot.room, &healed).await.with_context(|| format!("{path}, for carol"))?;
    }
    Ok(())
}

fn text(answer: &Value) -> &str {
    answer["error"].as_str().unwrap_or_default()
}
