//! What is measured. Each scenario runs on both contestants where both can do it, one after the other.

mod burst;
mod cold;
mod device_changes;
mod grow;
mod mixed;
mod paced;
mod warm;

use std::{sync::Arc, time::Duration};

use anyhow::Result;

use crate::{
    contestant::Kind,
    options::{Options, Scenario},
    results::Results,
    scene::{Room, Scene},
    usage::Cluster,
};

/// The most humans that the bots of a fleet are shared among.
const HUMANS: usize = 50;
/// Messages under way at once while a room's keys are exchanged beforehand.
const GENTLE: usize = 32;

/// Runs what the options name.
pub async fn run(options: &Options, cluster: &Arc<Cluster>, results: &mut Results) -> Result<()> {
    let talking = [Scenario::Warm, Scenario::Paced, Scenario::Cold];
    if talking.iter().any(|scenario| options.wants(*scenario)) {
        for bots in options.sizes(&[10, 100, 1000]) {
            for kind in options.contestants().repeat(options.rounds) {
                talk(options, cluster, results, kind, bots).await?;
            }
        }
    }
    let wants = |scenario| options.wants(scenario);
    for kind in options.contestants().repeat(options.rounds) {
        if wants(Scenario::Burst) {
            results.add(burst::run(cluster, kind).await?);
        }
        if wants(Scenario::Mixed) {
            results.add(mixed::run(options, cluster, kind).await?);
        }
    }
    if wants(Scenario::DeviceChanges) && options.contestants().contains(&Kind::Greenshield) {
        results.add(device_changes::run(options, cluster).await?);
    }
    if wants(Scenario::Idle) || wants(Scenario::Sizes) {
        grow::run(options, cluster, results).await?;
    }
    Ok(())
}

/// The scenarios that share a fleet whose bots have talked before.
async fn talk(
    options: &Options,
    cluster: &Arc<Cluster>,
    results: &mut Results,
    kind: Kind,
    bots: usize,
) -> Result<()> {
    let mut scene = Scene::open(kind, cluster, bots).await?;
    if options.wants(Scenario::Warm) || options.wants(Scenario::Paced) {
        let rooms = warmed(&mut scene, bots).await?;
        if options.wants(Scenario::Warm) {
            results.add(warm::run(options, &scene, &rooms).await?);
        }
        if options.wants(Scenario::Paced) {
            results.add(paced::run(options, &scene, &rooms).await?);
        }
    }
    if options.wants(Scenario::Cold) {
        results.add(cold::run(options, &mut scene, bots).await?);
    }
    Ok(())
}

/// Rooms of the first `bots` bots with a human each, in which both have spoken.
pub async fn warmed(scene: &mut Scene, bots: usize) -> Result<Vec<Room>> {
    let humans = scene.humans(bots.min(HUMANS)).await?;
    let rooms = scene.rooms(bots, &humans).await?;
    let course = scene.prepare(&rooms, rooms.len()).await?;
    let outcome = scene.run(course, GENTLE, None).await?;
    scene.check(&outcome.course, &rooms).await?;
    scene.contestant.settled().await?;
    Ok(rooms)
}

/// How long a measurement lasts.
fn span(options: &Options, seconds: u64) -> Duration {
    Duration::from_secs(if options.quick { seconds.div_ceil(5) } else { seconds })
}
