//! All at once, after a restart: bots and humans who know each other, first contacts, humans who start
//! a new room key with every few messages, and verifications by emoji meanwhile. Nothing may fail.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::{span, warmed};
use crate::{
    contestant::Kind,
    homeserver::{course::Course, state::State},
    options::Options,
    results::{Record, millis, number, percentile},
    scene::{Room, Scene},
    usage::Cluster,
};

/// Every so many messages of a room the human starts a new key.
const NEW_KEY: usize = 10;
/// One message in so many is a first contact.
const FIRST_CONTACT: usize = 20;
/// Verifications at a time.
const VERIFICATIONS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(60);
const PER_SECOND: usize = 400;

pub async fn run(options: &Options, cluster: &Arc<Cluster>, kind: Kind) -> Result<Record> {
    let bots = if options.quick { 10 } else { 200 };
    let mut scene = Scene::open(kind, cluster, bots).await?;
    let known = warmed(&mut scene, bots).await?;
    let total = PER_SECOND * usize::try_from(span(options, 15).as_secs())?;
    let verifying = verifiers(&mut scene).await?;
    let (course, rooms) = prepare(&mut scene, &known, total).await?;
    if kind == Kind::Greenshield {
        scene.contestant.restart().await?;
    }

    let over = AtomicBool::new(false);
    let begun = Instant::now();
    let course = async {
        let outcome = scene.run(course, options.outstanding, None).await;
        over.store(true, Ordering::Relaxed);
        outcome
    };
    let (outcome, verified) = tokio::join!(course, verify(&verifying, &over));
    let (outcome, verified) = (outcome?, verified?);
    let elapsed = begun.elapsed().as_secs_f64();
    ensure!(outcome.all == total, "{} of {total} answered", outcome.all);
    check(&outcome.course, &rooms).await?;
    let latencies = outcome.course.latencies();
    let record = Record::new("mixed", kind.name(), bots)
        .with("messages_per_s", number(outcome.answered) / outcome.elapsed.as_secs_f64())
        .with("cpu_ms", millis(outcome.cost.own + outcome.cost.postgres) / number(outcome.all))
        .with("p50_ms", percentile(&latencies, 0.5))
        .with("p99_ms", percentile(&latencies, 0.99))
        .with("messages", number(outcome.all));
    Ok(match kind {
        Kind::Greenshield => record.with("verifications_per_s", number(verified) / elapsed),
        Kind::Ceiling => record,
    })
}

/// Messages with the keys that go before each, and the room of each message.
async fn prepare(scene: &mut Scene, known: &[Room], total: usize) -> Result<(Course, Vec<Room>)> {
    let strangers = scene.humans(total.div_ceil(FIRST_CONTACT)).await?;
    let mut new_rooms = scene.rooms(strangers.len(), &strangers).await?.into_iter();
    scene.hold();
    let id = scene.homeserver.with(State::number);
    let (mut pings, mut rooms) = (Vec::with_capacity(total), Vec::with_capacity(total));
    for index in 0..total {
        let stranger = (index % FIRST_CONTACT == 0).then(|| new_rooms.next()).flatten();
        let room = stranger.unwrap_or_else(|| known[index % known.len()].clone());
        if (index / known.len()) % NEW_KEY == NEW_KEY - 1 {
            room.human.discard_key(&room.id).await?;
        }
        room.human.share(&room.id, &room.bots).await?;
        let mut ping = room.ping(id, index).await?;
        ping.keys = scene.homeserver.with(|state| state.queue.to_device.drain(..).collect());
        pings.push(ping);
        rooms.push(room);
    }
    Ok((Course { id, pings, ..Course::default() }, rooms))
}

async fn check(course: &Course, rooms: &[Room]) -> Result<()> {
    ensure!(course.doubled == 0, "{} messages were answered twice", course.doubled);
    for (ping, room) in course.pings.iter().zip(rooms).step_by(37) {
        let Some(content) = &ping.answer else { continue };
        room.human.sync().await?;
        let said = room.human.read(&ping.room, &room.bot.user_id, content).await?;
        ensure!(said == "pong", "the answer was {said:?}");
    }
    Ok(())
}

/// Humans who verify bots, each in a room with its bot, which heeds no strangers.
async fn verifiers(scene: &mut Scene) -> Result<Vec<Room>> {
    if scene.contestant.kind == Kind::Ceiling {
        return Ok(Vec::new());
    }
    let count = scene.bots.len();
    let humans = scene.humans(count).await?;
    scene.rooms(count, &humans).await
}

/// A few verifications at a time, until `over`; how many came to a good end.
async fn verify(rooms: &[Room], over: &AtomicBool) -> Result<usize> {
    let rooms = rooms.iter().take_while(|_| !over.load(Ordering::Relaxed));
    let verified: Vec<()> = futures_util::stream::iter(rooms)
        .map(async |room| {
            let verifying = room.human.verify(&room.bot.user_id, &room.bot.device_id);
            tokio::time::timeout(PATIENCE, verifying).await?
        })
        .buffer_unordered(VERIFICATIONS)
        .try_collect()
        .await?;
    Ok(verified.len())
}
