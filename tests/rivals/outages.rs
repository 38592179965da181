//! The homeserver goes away, or we do: nothing is lost, and neither waits longer for the other than it
//! must.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use chrono::{DateTime, Local, NaiveDateTime, Utc};
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::{
    e2e::scene::{Scene as RealScene, unmarked},
    fast::scene::{PATIENCE, Scene},
    support::{
        fake_homeserver::Fault,
        greenshield::Greenshield,
        hold::{Fate, Holds, Moment},
        human::Engine,
        poll, report,
        world::World,
    },
};

const AREA: &str = "Outages of the homeserver";

/// What was asked for because no transaction brought it.
const RECONCILED: &str = "greenshield_reconciled_to_device_total";

/// Sooner than the ping of every minute, which would tell, too.
const SOON: Duration = Duration::from_secs(30);
/// Synapse would not come by itself for as long as this when greenshield is back.
const AWAY: Duration = Duration::from_secs(20);
/// How Synapse tells in its log when it will.
const RETRIES: &str = "Scheduling retries on greenshield in ";

#[tokio::test(flavor = "multi_thread")]
async fn a_homeserver_that_was_refused_is_told_when_the_database_is_back() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    scene.fake.wait_for_pings();
    // It is told again until it has heard.
    scene.fake.fault("/ping", 3, Fault::refusal(500, "M_UNKNOWN"));
    scene.fake.forget_like_synapse();
    let name = scene.database.path().trim_start_matches('/').to_owned();
    let mut server = scene.database.clone();
    server.set_path("postgres");
    let mut admin = PgConnection::connect(server.as_str()).await?;
    let allow = |allowed: bool| format!("ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {allowed}");
    let all =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    for statement in [allow(false), all] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut admin).await?;
    }
    alice.forget_key(&bot.room).await?;
    let asked = alice.say(&bot.room, "!ping").await?;
    poll::until("a transaction to be refused", PATIENCE, async || {
        Ok((scene.fake.refused() > 0).then_some(()))
    })
    .await?;
    wait_ready(&scene.greenshield, false).await?;

    sqlx::raw_sql(AssertSqlSafe(allow(true))).execute(&mut admin).await?;
    let back = Instant::now();
    alice.answer_to(&bot.room, &asked).await?;
    ensure!(back.elapsed() < SOON, "answered after {:?}", back.elapsed());
    wait_ready(&scene.greenshield, true).await?;
    scene.answered_once(&alice, &bot, &asked).await?;
    ensure!(metric(&scene.greenshield, RECONCILED).await? > 0, "the key came by itself");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_homeserver_that_was_cut_off_is_told_when_we_reach_it_again() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    scene.fake.wait_for_pings();
    scene.fake.forget_like_synapse();
    scene.fake.fault("", usize::MAX, Fault::Broken);
    let first = alice.say(&bot.room, "!ping").await?;
    poll::until("the answer to break off", PATIENCE, async || {
        Ok(scene.fake.calls("").iter().any(|call| call.status == 0).then_some(()))
    })
    .await?;
    scene.fake.cut_off(true);
    alice.forget_key(&bot.room).await?;
    let second = alice.say(&bot.room, "!ping").await?;
    poll::until("a transaction to fail", PATIENCE, async || {
        Ok((scene.fake.refused() > 0).then_some(()))
    })
    .await?;
    wait_ready(&scene.greenshield, false).await?;
    // As if it had lasted long: what was to be sent waits for minutes.
    let long = "WITH sends AS (
            UPDATE outbox SET attempts = 20, due_at = NOW() + INTERVAL '5 minutes'
            WHERE state = 'queued' RETURNING bot_id
        ), queued AS (
            UPDATE bot_queue SET due_at = NOW() + INTERVAL '5 minutes'
        )
        SELECT COUNT(*) FROM sends";
    let waiting: i64 = sqlx::query_scalar(long).fetch_one(&scene.sql).await?;
    ensure!(waiting > 0, "nothing was to be sent");
    poll::until("the next attempt to be minutes away", PATIENCE, async || {
        let soon = "SELECT COUNT(*) FROM outbox
            WHERE state = 'queued' AND due_at < NOW() + INTERVAL '4 minutes'";
        let soon: i64 = sqlx::query_scalar(soon).fetch_one(&scene.sql).await?;
        Ok((soon == 0).then_some(()))
    })
    .await?;

    scene.fake.cut_off(false);
    scene.fake.heal();
    let back = Instant::now();
    for asked in [&first, &second] {
        alice.answer_to(&bot.room, asked).await?;
    }
    ensure!(back.elapsed() < SOON, "answered after {:?}", back.elapsed());
    wait_ready(&scene.greenshield, true).await?;
    for asked in [&first, &second] {
        scene.answered_once(&alice, &bot, asked).await?;
    }
    ensure!(metric(&scene.greenshield, RECONCILED).await? > 0, "the key came by itself");
    Ok(())
}

/// A transaction that is abandoned by the homeserver is not on our disk, and will come again without
/// its to-device messages, though we have refused nothing.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_homeserver_did_not_wait_for_is_asked_for() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let sweeps = scene.fake.calls("/sync").len();
    let mut lock = scene.sql.begin().await?;
    sqlx::query("LOCK TABLE transactions").execute(&mut *lock).await?;
    let body = serde_json::json!({ "events": [] });
    let put = scene.fake.transaction("abandoned", &body);
    ensure!(tokio::time::timeout(Duration::from_secs(1), put).await.is_err(), "it was answered");
    lock.rollback().await?;
    poll::until("lost messages to be asked for", PATIENCE, async || {
        Ok((scene.fake.calls("/sync").len() > sweeps).then_some(()))
    })
    .await?;
    alice.ping(&bot.room).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn synapse_and_greenshield_go_away_in_turn_and_everything_is_answered() -> Result<()> {
    // How long Synapse lets pass between two attempts at the end of the rotations.
    let backoff = if report::is_large() { 64.0 } else { 8.0 };
    let mut world = World::start().await?;
    let scene = RealScene::open(&world, Engine::Rust).await?;
    unmarked(&scene.ping().await?)?;
    let mut asked = Vec::new();
    let bob = world.human(Engine::Rust, "bob").await?;
    let (human, signup, room) = (scene.human, scene.signup, scene.room);
    let (username, code) = (scene.username, scene.code);

    // greenshield is away, and the key of the room changes whenever bob leaves.
    world.greenshield.stop().await?;
    let mut rotations = 0;
    while next_attempt(&world)?.is_none_or(|(wait, _)| wait < backoff) {
        human.invite(&room, bob.user_id()).await?;
        bob.join(&room).await?;
        human.wait_member(&room, bob.user_id(), "join", PATIENCE).await?;
        asked.push(human.send_text(&room, "!ping").await?);
        bob.leave(&room).await?;
        human.wait_member(&room, bob.user_id(), "leave", PATIENCE).await?;
        asked.push(human.send_text(&room, "!ping").await?);
        rotations += 1;
    }
    let due = poll::until("Synapse to wait for long", 2 * PATIENCE, async || {
        let due = next_attempt(&world)?.map(|(_, due)| due);
        Ok(due.filter(|due| *due > Utc::now() + AWAY))
    })
    .await?;
    world.greenshield.start().await?;
    let back = Instant::now();
    let would_wait = (due - Utc::now()).as_seconds_f64();
    let scene = RealScene { world: &world, human, signup, room, username, code };
    scene.event_id_of_answer(&asked[0]).await?;
    let first = back.elapsed();
    let sql = world.sql().await?;
    let sent = "SELECT finished_at FROM outbox WHERE txn_id = 'respond-' || $1";
    let sent: DateTime<Utc> = sqlx::query_scalar(sent).bind(&asked[0]).fetch_one(&sql).await?;
    ensure!(sent < due, "the first answer came at {sent}, and Synapse by itself at {due}");
    for asked in &asked {
        unmarked(&scene.answer_to(&scene.room, asked).await?)?;
    }
    let all = back.elapsed();

    let brought = metric(&world.greenshield, RECONCILED).await?;
    ensure!(brought > 0, "the homeserver brought all room keys by itself");

    // Synapse is away, and all answers are still to be sent: they are not even taken into the outbox.
    let mut holds = Holds::install(&world.postgres.url()).await?;
    holds.arm(Some("event_log"), 0, Moment::Statement).await?;
    let mut again = Vec::new();
    for _ in 0..5 {
        again.push(scene.human.send_text(&scene.room, "!ping").await?);
    }
    // A Synapse that is killed forgets what it had queued for us, and nobody can know.
    poll::until("all to have been pushed", PATIENCE, async || {
        let events = sqlx::query_scalar("SELECT COUNT(*) FROM events WHERE event_id = ANY($1)");
        let pushed: i64 = events.bind(&again).fetch_one(&sql).await?;
        Ok((pushed == 5).then_some(()))
    })
    .await?;
    let (human, signup, room) = (scene.human, scene.signup, scene.room);
    let (username, code) = (scene.username, scene.code);
    ensure!(holds.reached(PATIENCE).await?, "nothing was to be logged");
    world.synapse.kill().await?;
    holds.let_go(Fate::Goes).await?;
    poll::until("all answers to be queued, and one to have failed", PATIENCE, async || {
        let (queued, tried): (i64, i64) = sqlx::query_as(
            "SELECT COUNT(*), COUNT(*) FILTER (WHERE attempts > 0) FROM outbox
            JOIN UNNEST($1) AS asked ON txn_id = 'respond-' || asked WHERE state = 'queued'",
        )
        .bind(&again)
        .fetch_one(&sql)
        .await?;
        Ok((queued == 5 && tried > 0).then_some(()))
    })
    .await?;
    // Somebody looks for something there, whatever was still to be sent.
    let look = "UPDATE bots SET reconciled_at = NULL";
    sqlx::query(look).execute(&sql).await?;
    wait_ready(&world.greenshield, false).await?;
    world.synapse.start_again().await?;
    wait_ready(&world.greenshield, true).await?;
    let scene = RealScene { world: &world, human, signup, room, username, code };
    for asked in &again {
        unmarked(&scene.answer_to(&scene.room, asked).await?)?;
    }
    unmarked(&scene.ping().await?)?;
    ensure!(scene.human.utd_events(&scene.room).await?.is_empty());
    // The intro, the two pings, and an answer each.
    let said = said_by_bot(&scene).await?;
    let expected = 3 + asked.len() + again.len();
    ensure!(said == expected, "{said} messages, not {expected}");
    let log = "SELECT COUNT(*) FROM event_log WHERE decryption = 'failed'";
    let failed: i64 = sqlx::query_scalar(log).fetch_one(&sql).await?;
    ensure!(failed == 0, "{failed} events could not be decrypted");
    let note = format!(
        "With a real Synapse that would have waited {would_wait:.0} s more, the first answer came {:.1} s after greenshield was back, and all {} messages, said with {rotations} room keys that greenshield was not there to get, were answered {:.1} s after; a Synapse that was killed was found again, and each message was answered once.",
        first.as_secs_f64(),
        asked.len(),
        all.as_secs_f64()
    );
    report::row(AREA, "greenshield away while room keys change", rotations, 0, &note);
    report::row(AREA, "Synapse killed under messages", 1, 0, &note);
    Ok(())
}

/// A count of greenshield's.
async fn metric(greenshield: &Greenshield, name: &str) -> Result<u64> {
    let url = format!("{}/metrics", greenshield.operator_url());
    let metrics = crate::support::http().get(url).send().await?.text().await?;
    let count = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    Ok(count.unwrap_or_default())
}

/// Until `/health/ready` says so.
async fn wait_ready(greenshield: &Greenshield, ready: bool) -> Result<()> {
    let url = format!("{}/health/ready", greenshield.operator_url());
    let http = crate::support::http();
    poll::until(&format!("readiness to be {ready}"), PATIENCE, async || {
        let answer = http.get(&url).send().await?;
        Ok((answer.status().is_success() == ready).then_some(()))
    })
    .await
}

/// How many seconds Synapse lets pass before its next attempt to reach greenshield, and when that is.
fn next_attempt(world: &World) -> Result<Option<(f64, DateTime<Utc>)>> {
    let log = std::fs::read_to_string(world.synapse.log()).context("Synapse's log")?;
    let Some((before, wait)) = log.lines().rev().find_map(|line| line.split_once(RETRIES)) else {
        return Ok(None);
    };
    let wait: f64 = wait.trim_end_matches('s').parse().with_context(|| wait.to_owned())?;
    let said = before.split(" INFO ").next().unwrap_or_default();
    let said = NaiveDateTime::parse_from_str(said, "%Y-%m-%d %H:%M:%S,%3f")?;
    let said = said.and_local_timezone(Local).single().context("a time")?;
    Ok(Some((wait, said.to_utc() + Duration::from_secs_f64(wait))))
}

/// How many messages the bot has sent into its room, as the homeserver tells.
async fn said_by_bot(scene: &RealScene<'_>) -> Result<usize> {
    let registration = std::fs::read_to_string(scene.world.greenshield.registration())?;
    let registration: Value = serde_yaml::from_str(&registration)?;
    let token = registration["as_token"].as_str().context("an as_token")?;
    let path = format!("_matrix/client/v3/rooms/{}/messages", scene.room);
    let room = url::Url::parse(&scene.world.synapse.url())?.join(&path)?;
    let said =
        |event: &&Value| event["sender"] == scene.bot() && event["type"] == "m.room.encrypted";
    let (mut count, mut from) = (0, None::<String>);
    loop {
        let mut url = room.clone();
        let query = [("user_id", scene.bot()), ("dir", "b"), ("limit", "500")];
        url.query_pairs_mut().extend_pairs(query);
        url.query_pairs_mut().extend_pairs(from.map(|from| ("from", from)));
        let answer = crate::support::http().get(url).bearer_auth(token).send().await?;
        let page: Value = answer.error_for_status()?.json().await?;
        let events = page["chunk"].as_array().context("events")?;
        count += events.iter().filter(said).count();
        from = page["end"].as_str().map(ToOwned::to_owned);
        if events.is_empty() || from.is_none() {
            return Ok(count);
        }
    }
}
