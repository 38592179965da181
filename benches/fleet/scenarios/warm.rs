//! Bots and humans who know each other: the most messages a second, and what one costs.

use anyhow::Result;

use super::span;
use crate::{
    options::Options,
    results::{Record, millis, number},
    scene::{Room, Scene},
};

/// More than the ceiling answers in a second.
const MOST_PER_SECOND: usize = 6000;
/// A room key lasts for 10,000 messages, other scenarios' among them.
const MOST_PER_ROOM: usize = 8500;

pub async fn run(options: &Options, scene: &Scene, rooms: &[Room]) -> Result<Record> {
    let limit = span(options, 8);
    let messages = MOST_PER_SECOND * usize::try_from(limit.as_secs())?;
    let messages = messages.min(MOST_PER_ROOM * rooms.len());
    let course = scene.prepare(rooms, messages).await?;
    let outcome = scene.run(course, options.outstanding, Some(limit)).await?;
    scene.check(&outcome.course, rooms).await?;
    let (cost, all) = (outcome.cost, number(outcome.all));
    let mut record = Record::new("warm", scene.contestant.kind.name(), rooms.len())
        .with("messages_per_s", number(outcome.answered) / outcome.elapsed.as_secs_f64())
        .with("cpu_ms", millis(cost.own + cost.postgres) / all)
        .with("own_cpu_ms", millis(cost.own) / all)
        .with("rss_mib", scene.contestant.resident_mib()?)
        .with("messages", all);
    if scene.contestant.database.is_some() {
        record = record
            .with("postgres_cpu_ms", millis(cost.postgres) / all)
            .with("statements", f64::from(i32::try_from(cost.statements)?) / all)
            .with("commits", f64::from(i32::try_from(cost.commits)?) / all);
    }
    Ok(record)
}
