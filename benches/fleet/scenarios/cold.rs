//! First contact: a new human in a new room sends a room key and a message, all bots at once. The bot
//! has to learn who is there and which devices they have, and to give out a key of its own.

use std::time::Duration;

use anyhow::Result;

use crate::{
    options::Options,
    results::{Record, millis, number},
    scene::Scene,
};

/// Messages in all: few bots meet several humans, one after the other.
const MESSAGES: usize = 200;

pub async fn run(options: &Options, scene: &mut Scene, bots: usize) -> Result<Record> {
    let wanted = if options.quick { MESSAGES / 4 } else { MESSAGES };
    let rounds = wanted.div_ceil(bots).max(1);
    let (mut elapsed, mut answered, mut cpu) = (Duration::ZERO, 0, Duration::ZERO);
    for _ in 0..rounds {
        let humans = scene.humans(bots).await?;
        let rooms = scene.rooms(bots, &humans).await?;
        scene.hold();
        let course = scene.prepare(&rooms, bots).await?;
        let outcome = scene.run(course, bots, None).await?;
        scene.check(&outcome.course, &rooms).await?;
        elapsed += outcome.elapsed;
        answered += outcome.answered;
        cpu += outcome.cost.own + outcome.cost.postgres;
    }
    let answered = number(answered);
    Ok(Record::new("cold", scene.contestant.kind.name(), bots)
        .with("messages_per_s", answered / elapsed.as_secs_f64())
        .with("cpu_ms", millis(cpu) / answered)
        .with("messages", answered))
}
