//! Fleets of growing size: what bots cost that do nothing, and whether a few busy ones get dearer for
//! the many idle ones beside them.

use std::{sync::Arc, time::Duration};

use anyhow::Result;

use super::{paced, span, warm, warmed};
use crate::{
    contestant::Kind,
    options::{Options, Scenario},
    results::{Record, Results, millis, number},
    scene::Scene,
    usage::Cluster,
};

/// How many bots talk, whatever the size of the fleet.
const ACTIVE: usize = 10;
/// From this size on a fleet counts as one for the scenario `idle`.
const MANY: usize = 1000;
/// What happens at the start is looked at for so long.
const START: u64 = 10;

pub async fn run(options: &Options, cluster: &Arc<Cluster>, results: &mut Results) -> Result<()> {
    let usual: &[usize] =
        if options.wants(Scenario::Sizes) { &[1, 10, 100, 1000, 10_000] } else { &[1000, 10_000] };
    for bots in options.sizes(usual) {
        for kind in options.contestants() {
            let mut scene = Scene::open(kind, cluster, bots).await?;
            let idle = (kind == Kind::Greenshield).then_some(idle(options, &mut scene).await?);
            let is_many = bots >= MANY || options.quick;
            if let Some(idle) = &idle
                && options.wants(Scenario::Idle)
                && is_many
            {
                results.add(idle.clone());
            }
            if !options.wants(Scenario::Sizes) {
                break;
            }
            let resident = scene.contestant.resident_mib()?;
            let rooms = warmed(&mut scene, bots.min(ACTIVE)).await?;
            let mut record = warm::run(options, &scene, &rooms).await?;
            record.figures.extend(paced::run(options, &scene, &rooms).await?.figures);
            record.figures.extend(idle.map(|idle| idle.figures).unwrap_or_default());
            "sizes".clone_into(&mut record.scenario);
            record.bots = bots;
            results.add(record.with("idle_rss_mib", resident));
        }
    }
    Ok(())
}

/// Starts it again, and lets it be.
async fn idle(options: &Options, scene: &mut Scene) -> Result<Record> {
    let bots = number(scene.bots.len());
    let mut size = 0;
    if let Some(database) = &scene.contestant.database {
        size = scene.cluster.size(database).await? - scene.empty;
    }
    let before = scene.homeserver.with(|state| state.calls.all);
    let ready = if scene.contestant.kind == Kind::Greenshield {
        scene.contestant.restart().await?
    } else {
        Duration::ZERO
    };
    tokio::time::sleep(span(options, START).saturating_sub(ready)).await;
    let calls = scene.homeserver.with(|state| state.calls.all) - before;
    Ok(Record::new("idle", scene.contestant.kind.name(), scene.bots.len())
        .with("onboarded_per_s", bots / scene.onboarding.as_secs_f64())
        .with("ready_ms", millis(ready))
        .with("calls_at_start", number(usize::try_from(calls)?))
        .with("idle_rss_mib", scene.contestant.resident_mib()?)
        .with("kib_per_bot", number(usize::try_from(size)?) / 1024.0 / bots))
}
