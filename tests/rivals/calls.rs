//! Every call that greenshield makes while it serves, and a homeserver that answers it badly: all but the
//! cancel of a verification that a restart has broken off. (The doctor's two calls tell what they get.)

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::try_join_all;
use serde_json::{Value, json};

use super::{pair::each_answered_once, quiet};
use crate::{
    fast::scene::{Bot, PATIENCE, Scene},
    support::{
        fake_homeserver::{Delivery, FakeHomeserver, Fault, Person, Seen, Trap},
        poll, report,
        synapse::SERVER_NAME,
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

/// Calls that only an invitation brings, or makes in another place.
const INVITED: [(&str, usize); 4] =
    [("/join/", 0), ("/account_data/m.direct", 0), ("/messages", 0), ("/leave", 0)];

/// What a room key brings that lies in the device's inbox only: a page of the inbox, and the next one,
/// which deletes it. When it is time the bot then looks how the homeserver shows it.
const FETCHED: [(&str, usize); 3] = [("/sync", 0), ("/sync", 1), ("/keys/query", 0)];

/// What somebody brings who is new in a room.
const JOINED: [(&str, usize); 3] = [("/keys/query", 0), ("/keys/claim", 0), ("/sendToDevice/", 0)];

/// What one-time keys bring that are gone.
const REFILLED: [(&str, usize); 1] = [("/keys/upload", 0)];

/// What a repair makes, when an upload has been refused because of other keys: some of it, because what
/// fails in a row is waited for longer and longer.
const REPAIRED: [(&str, usize); 3] =
    [("/devices/", 0), ("/keys/upload", 0), ("/keys/signatures/upload", 0)];

/// By how much greenshield's clock and the one here may run apart meanwhile.
pub(super) const CLOCKS: Duration = Duration::from_millis(10);

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
    let met: Vec<usize> = try_join_all(scenes).await?;
    let note = format!(
        "Calls in {} places met each of {} bad answers (rate limits, 5xx, proxies' pages, no JSON, broken off, lost, none) and were made again; signups, invitations, messages, refills of keys and a repair came out as without.",
        met.iter().min().context("an answer")?,
        kinds.len()
    );
    report::row(
        "Outages of the homeserver",
        "bad answers to calls of greenshield",
        met.iter().sum::<usize>() as u64,
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
    let ping = fake.trap("/ping", 0, fault.clone());
    scene.greenshield.restart().await?;
    let mut met = sprung(vec![ping]).await?;
    // What fails in a row is waited for longer and longer: a few calls for each of several signups.
    let mut bot = None;
    for group in 0..GROUPS {
        let calls: Vec<_> = CALLS.into_iter().skip(group).step_by(GROUPS).collect();
        let traps = set(&fake, &calls, fault);
        let made = rooms_made(&fake);
        let signed_up = scene.bot(&alice).await?;
        // What a proxy answers with 200 has made none.
        let lied = usize::from(matches!(fault, Fault::Answer { status: 200, .. }));
        ensure!(rooms_made(&fake) <= made + 1 + lied, "more than one room was made");
        ensure!(fake.masters(&signed_up.user_id).len() == 1 && fake.unsigned().is_empty());
        let asked = alice.say(&signed_up.room, "!ping").await?;
        alice.answer_to(&signed_up.room, &asked).await?;
        each_answered_once(&scene, &alice, &signed_up, &[asked]).await?;
        met += sprung(traps).await?;
        bot = Some(signed_up);
    }
    let bot = bot.context("a bot")?;

    let before = INVITED.map(|(path, _)| fake.calls(path).len());
    let traps = set(&fake, &INVITED, fault);
    let room = fake.room(&alice.user_id, true, &[]);
    invite(&fake, &room, &alice.user_id, &bot);
    let elsewhere = fake.room("@eve:elsewhere.test", true, &["@eve:elsewhere.test"]);
    invite(&fake, &elsewhere, "@eve:elsewhere.test", &bot);
    alice.ping(&room).await?;
    met += sprung(traps).await?;
    poll::until("the other invitation to be declined", PATIENCE, async || {
        Ok(fake.calls("/leave").iter().any(|call| call.status == 200).then_some(()))
    })
    .await?;
    quiet(&scene).await?;
    for ((path, _), before) in INVITED.into_iter().zip(before) {
        ended_well(path, &fake.calls(path)[before..])?;
    }

    met += fetches(&scene, &alice, &bot, fault).await?;
    met += refills_and_repairs(&scene, &alice, &bot, fault).await?;
    quiet(&scene).await?;
    alice.ping(&bot.room).await?;
    for path in CALLS.map(|(path, _)| path).into_iter().chain(["/ping"]) {
        ended_well(path, &fake.calls(path))?;
    }
    Ok(met)
}

/// A room key is looked for, and what it brings is answered; then also for somebody new.
async fn fetches(scene: &Scene, alice: &Person, bot: &Bot, fault: &Fault) -> Result<usize> {
    // No other look at the inbox is to meet the traps.
    scene.settled().await?;
    let fake = &scene.fake;
    let traps = set(fake, &FETCHED, fault);
    let look = "UPDATE bots SET identity_checked_at = NULL";
    sqlx::query(look).execute(&scene.sql).await?;
    fake.to_device(Delivery::InboxOnly);
    alice.forget_key(&bot.room).await?;
    let asked = alice.say(&bot.room, "!ping").await?;
    alice.answer_to(&bot.room, &asked).await?;
    fake.to_device(Delivery::Pushed);
    let met = sprung(traps).await?;
    ensure!(scene.decryption(&asked).await? == ("late".to_owned(), 1), "it had its key at once");
    quiet(scene).await?;

    let carol = Person::new(fake, "carol").await?;
    carol.join(&bot.room).await?;
    let traps = set(fake, &JOINED, fault);
    let asked = alice.say(&bot.room, "!ping").await?;
    alice.answer_to(&bot.room, &asked).await?;
    carol.answer_to(&bot.room, &asked).await?;
    Ok(met + sprung(traps).await?)
}

/// One-time keys are gone, twice; the second time the homeserver says that it holds others.
async fn refills_and_repairs(
    scene: &Scene,
    alice: &Person,
    bot: &Bot,
    fault: &Fault,
) -> Result<usize> {
    let fake = &scene.fake;
    let traps = set(fake, &REFILLED, fault);
    drained(scene, bot, "drained").await?;
    let mut met = sprung(traps).await?;
    quiet(scene).await?;
    alice.ping(&bot.room).await?;

    let conflict = json!({ "errcode": "M_UNKNOWN",
        "error": "One time key signed_curve25519:AAAAAQ already exists." });
    fake.fault("/keys/upload", 1, Fault::Answer { status: 400, body: conflict.to_string() });
    let traps = set(fake, &REPAIRED, fault);
    drained(scene, bot, "drained again").await?;
    met += sprung(traps).await?;
    let sql = "SELECT outcome FROM repairs JOIN bots USING (bot_id) WHERE user_id = $1";
    let outcome = scene.wait_text("the repair to end", sql, &bot.user_id).await?;
    ensure!(outcome == "new_device", "{outcome}");
    ensure!(fake.masters(&bot.user_id).len() == 1 && fake.unsigned().is_empty());
    // She sees the new device, and gives it a key.
    alice.read(&bot.room).await?;
    alice.forget_key(&bot.room).await?;
    Ok(met)
}

async fn drained(scene: &Scene, bot: &Bot, txn_id: &str) -> Result<()> {
    scene.fake.drain_one_time_keys(&bot.user_id, &bot.device_id);
    let counts = json!({
        "org.matrix.msc3202.device_one_time_keys_count": bot.map(json!({})) });
    ensure!(scene.fake.transaction(txn_id, &counts).await?.0 == 200);
    Ok(())
}

fn set(fake: &FakeHomeserver, calls: &[(&str, usize)], fault: &Fault) -> Vec<Trap> {
    calls.iter().map(|(path, skip)| fake.trap(path, *skip, fault.clone())).collect()
}

/// Until all of them have come, and met their fault; how many they were.
async fn sprung(traps: Vec<Trap>) -> Result<usize> {
    for trap in &traps {
        trap.sprung().await?;
    }
    Ok(traps.len())
}

fn ended_well(path: &str, calls: &[Seen]) -> Result<()> {
    let last = calls.last().with_context(|| format!("{path} was not called"))?;
    let well = last.status == 200 || (last.status == 404 && last.method == "GET");
    ensure!(well, "{path} ended with {last:?}");
    Ok(())
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
    let watch = async {
        let rooms = format!("{}/send/", bot.room);
        for path in [rooms.as_str(), "/createRoom"] {
            let failed = poll::until("four failures", PATIENCE, async || {
                alice.ping(&other.room).await?;
                let failed = refused(fake, path);
                Ok((failed.len() >= 4).then_some(failed))
            })
            .await?;
            ever_more_seldom(path, &failed)?;
        }
        fake.heal();
        Ok(())
    };
    signs_up_meanwhile(&scene, &alice, watch).await?;
    alice.answer_to(&bot.room, &asked).await?;
    Ok(())
}

/// A signup that meets what `watch` looks at, and goes on when that has ended.
pub(super) async fn signs_up_meanwhile(
    scene: &Scene,
    human: &Person,
    watch: impl Future<Output = Result<()>>,
) -> Result<()> {
    let code = scene.greenshield.mint_code(&human.user_id, 1)?;
    let (signup, watched) = tokio::join!(scene.sign_up(&code, "waits", Some("key")), watch);
    watched?;
    ensure!(signup?.0 == 200, "the signup did not go on");
    Ok(())
}

/// The calls with this in their path that the homeserver did not take.
pub(super) fn refused(fake: &FakeHomeserver, path: &str) -> Vec<Seen> {
    let mut refused = fake.calls(path);
    refused.retain(|call| call.status >= 400);
    refused
}

/// Each wait is at least twice as long as the one before had to be. A busy machine only adds to them.
pub(super) fn ever_more_seldom(path: &str, calls: &[Seen]) -> Result<()> {
    let waits: Vec<Duration> = calls.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    let mut least = Duration::from_millis(500);
    for wait in &waits {
        ensure!(*wait + CLOCKS >= least, "{path}: {waits:?}");
        least *= 2;
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
        // Nobody is a user before.
        let user = format!("@bot_{name}:{SERVER_NAME}");
        let user = if path == "/register" { "" } else { &user };
        scene.fake.fault_of(user, path, Fault::refusal(403, "M_FORBIDDEN"));
        let (status, said) = scene.sign_up(&code, &name, Some("key")).await?;
        ensure!(status == 502 && said["step"] == step, "{path}: {status} {said}");
        ensure!(text(&said).contains("403 M_FORBIDDEN: as the test wants it"), "{path}: {said}");
        alice.ping(&bot.room).await.with_context(|| format!("{path} of another bot"))?;
        scene.fake.heal();
        let (status, said) = scene.sign_up(&code, &name, Some("key")).await?;
        ensure!(status == 200, "{path}, healed: {status} {said}");
    }

    let other = scene.bot(&alice).await?;
    let paths = ["/keys/query", "/keys/claim", "/sendToDevice/", "/members"];
    for (n, path) in paths.into_iter().enumerate().step_by(every) {
        let carol = Person::new(&scene.fake, &format!("carol{n}")).await?;
        carol.join(&bot.room).await?;
        scene.settled().await?;
        if path == "/members" {
            sqlx::query("UPDATE rooms SET members_complete = FALSE").execute(&scene.sql).await?;
        }
        scene.fake.fault_of(&bot.user_id, path, Fault::refusal(403, "M_FORBIDDEN"));
        let asked = alice.say(&bot.room, "!ping").await?;
        let sql = "SELECT error FROM outbox WHERE state = 'failed' AND txn_id = 'respond-' || $1";
        let error = scene.wait_text(&format!("a message that {path} fails"), sql, &asked).await?;
        ensure!(error.contains("403") && error.contains("M_FORBIDDEN"), "{path}: {error}");
        alice.ping(&other.room).await.with_context(|| format!("{path} of another bot"))?;
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
