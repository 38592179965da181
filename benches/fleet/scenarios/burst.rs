//! One transaction with a hundred messages and their hundred room keys, for a hundred bots none of
//! which is in memory, from a hundred humans whom they have never met.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};

use crate::{
    contestant::Kind,
    results::{Record, millis, number},
    scene::Scene,
    usage::Cluster,
};

const BOTS: usize = 100;

pub async fn run(cluster: &Arc<Cluster>, kind: Kind) -> Result<Record> {
    let mut scene = Scene::open(kind, cluster, BOTS).await?;
    let humans = scene.humans(BOTS).await?;
    let rooms = scene.rooms(BOTS, &humans).await?;
    // The ceiling knows nothing after a restart: its machines stay open.
    if kind == Kind::Greenshield {
        scene.contestant.restart().await?;
        scene.contestant.settled().await?;
    }
    scene.hold();
    let course = scene.prepare(&rooms, BOTS).await?;
    let before = scene.homeserver.with(|state| {
        state.queue.acknowledged.clear();
        state.queue.to_device.len()
    });
    ensure!(before == BOTS, "{before} room keys wait instead of {BOTS}");
    let outcome = scene.run(course, BOTS, None).await?;
    scene.check(&outcome.course, &rooms).await?;
    let first: Option<Duration> =
        scene.homeserver.with(|state| state.queue.acknowledged.first().copied());
    let first = first.context("no transaction was pushed")?;
    let latencies = outcome.course.latencies();
    Ok(Record::new("burst", kind.name(), BOTS)
        .with("acknowledged_ms", millis(first))
        .with("first_answer_ms", latencies.first().copied().map_or(f64::NAN, millis))
        .with("last_answer_ms", latencies.last().copied().map_or(f64::NAN, millis))
        .with("cpu_ms", millis(outcome.cost.own + outcome.cost.postgres) / number(outcome.all)))
}
