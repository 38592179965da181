//! Fifty messages a second, evenly: how long an answer takes when nobody is busy.

use std::time::Duration;

use anyhow::Result;

use super::span;
use crate::{
    options::Options,
    results::{Record, number, percentile},
    scene::{Room, Scene},
};

const INTERVAL: Duration = Duration::from_millis(20);

pub async fn run(options: &Options, scene: &Scene, rooms: &[Room]) -> Result<Record> {
    let span = span(options, 20);
    let messages = usize::try_from(span.as_millis() / INTERVAL.as_millis())?;
    let course = scene.prepare(rooms, messages).await?;
    scene.contestant.settled().await?;
    let course = scene.run_paced(course, INTERVAL).await?;
    scene.check(&course, rooms).await?;
    let latencies = course.latencies();
    let record = Record::new("paced", scene.contestant.kind.name(), rooms.len())
        .with("p50_ms", percentile(&latencies, 0.5))
        .with("p99_ms", percentile(&latencies, 0.99))
        .with("max_ms", percentile(&latencies, 1.0))
        .with("messages", number(latencies.len()));
    let logged = scene.until_logged(&course).await?;
    if logged.is_empty() {
        return Ok(record);
    }
    Ok(record
        .with("logged_p50_ms", percentile(&logged, 0.5))
        .with("logged_p99_ms", percentile(&logged, 0.99)))
}
