//! Two processes behind haproxy, configured as `docs/OPERATIONS.md` says, and a real homeserver.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::scene::{Scene, unmarked};
use crate::support::{
    balancer::Balancer,
    greenshield::Greenshield,
    human::{Engine, PATIENCE},
    poll,
    postgres::Database,
    process::Signal,
    report,
    synapse::Synapse,
    world::World,
};

const LEASE: u64 = 5;
/// Two of the balancer's checks, the first wait of a homeserver that repeats, a lease and a look are ten
/// seconds. A balancer that waits for one that hangs takes a minute, `timeout server`; in which round it
/// meets that one is left to chance, so all of them are timed.
const SECONDS: Duration = Duration::from_secs(50);
/// How often each bot is asked each time: transactions go to both in turn.
const ROUNDS: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_behind_the_balancer_is_killed_and_hangs() -> Result<()> {
    let (world, mut other, balancer) = start().await?;
    let near = Scene::open(&world, Engine::Rust).await?;
    // Bots are dealt to the shards in turn, and each process has half of these.
    let half = "SELECT setval(pg_get_serial_sequence('bots', 'bot_id'), (SELECT MAX(bot_id) FROM bots) + 31)";
    sqlx::query(half).execute(&world.sql().await?).await?;
    let far = Scene::open(&world, Engine::Rust).await?;
    let scenes = [&near, &far];
    signs_up(&world, &balancer, near.human.user_id()).await?;
    let mut asked = answered(scenes).await?.1;

    other.kill9().await?;
    let (killed, count) = answered(scenes).await?;
    asked += count;
    other.start().await?;
    shared(&world).await?;

    let mut signal = |signal| ensure_signal(&mut other, signal);
    signal(Signal::Stop)?;
    let (frozen, count) = answered(scenes).await?;
    asked += count;
    signal(Signal::Cont)?;
    shared(&world).await?;
    asked += answered(scenes).await?.1;

    for scene in scenes {
        said_once(&world, scene, asked).await?;
    }
    ensure!(killed.max(frozen) < SECONDS, "killed {killed:?}, frozen {frozen:?}");
    let note = format!(
        "Behind haproxy with the configuration of OPERATIONS.md, on a real Synapse: all was answered once, after at most {:.1} s where one of two was killed, and {:.1} s where it hung.",
        killed.as_secs_f64(),
        frozen.as_secs_f64()
    );
    report::row("Several processes", "Behind the balancer", 2, 0, &note);
    Ok(())
}

async fn start() -> Result<(World, Greenshield, Balancer)> {
    let postgres = Database::create().await?;
    let mut synapse = Synapse::prepare()?;
    let mut balancer = Balancer::prepare()?;
    let mut greenshield = Greenshield::install(&synapse.url(), &postgres.url())?;
    greenshield.configure(|config| {
        config["appservice"]["url"] = balancer.appservice_url().into();
        config["public"]["base_url"] = balancer.public_url().into();
        config["workers"] = json!({ "lease_seconds": LEASE });
    })?;
    greenshield.run(&["registration", "--force"])?;
    let mut other = greenshield.beside(&postgres.url())?;
    synapse.start(&[&greenshield.registration()]).await?;
    balancer.start([&greenshield, &other])?;
    let (one, another) = tokio::join!(greenshield.start(), other.start());
    one?;
    another?;
    let world = World { greenshield, synapse, postgres };
    shared(&world).await?;
    Ok((world, other, balancer))
}

fn ensure_signal(greenshield: &mut Greenshield, signal: Signal) -> Result<()> {
    let process = greenshield.process().context("it runs")?;
    ensure!(process.signal(signal), "it is gone");
    Ok(())
}

/// Through the balancer, by whichever process.
async fn signs_up(world: &World, balancer: &Balancer, inviter: &str) -> Result<()> {
    let code = world.greenshield.mint_code(inviter, 1)?;
    let url = format!("{}/signup/api", balancer.public_url());
    let body = json!({ "code": code, "username": "balanced" });
    let answer = crate::support::http().post(url).json(&body).send().await?;
    ensure!(answer.status() == 200, "{}", answer.text().await?);
    Ok(())
}

/// Until both have half of the shards.
async fn shared(world: &World) -> Result<()> {
    let sql = world.sql().await?;
    poll::until("both to have half of the shards", PATIENCE, async || {
        let shares: Vec<i64> = sqlx::query_scalar(
            "SELECT COUNT(*) FROM shards WHERE expires_at > NOW() GROUP BY owner",
        )
        .fetch_all(&sql)
        .await?;
        Ok((shares == [32, 32]).then_some(()))
    })
    .await
}

/// Asks both bots, a few times; how long all of it took, and how often each was asked.
async fn answered(scenes: [&Scene<'_>; 2]) -> Result<(Duration, usize)> {
    let began = Instant::now();
    for _ in 0..ROUNDS {
        let (one, other) = tokio::join!(scenes[0].ping(), scenes[1].ping());
        unmarked(&one?)?;
        unmarked(&other?)?;
    }
    Ok((began.elapsed(), ROUNDS))
}

/// By the homeserver's own record: the intro, and one answer to each question.
async fn said_once(world: &World, scene: &Scene<'_>, asked: usize) -> Result<()> {
    let url = format!(
        "{}/_synapse/admin/v1/rooms/{}/messages?dir=b&limit=100",
        world.synapse.url(),
        scene.room
    );
    let token = world.synapse.admin_token().await?;
    let answer: Value =
        crate::support::http().get(url).bearer_auth(token).send().await?.json().await?;
    let events = answer["chunk"].as_array().with_context(|| format!("{answer}"))?;
    let said = events
        .iter()
        .filter(|event| event["type"] == "m.room.encrypted" && event["sender"] == scene.bot())
        .count();
    ensure!(said == asked + 1, "{said} messages of {} for {asked} questions", scene.bot());
    Ok(())
}
