//! A thousand humans log in with a new device, and a thousand bots know them. Then each bot is asked
//! something: before it answers, it has to know the new devices. How many users are looked up?

use std::sync::Arc;

use anyhow::{Result, ensure};
use ruma::OwnedUserId;
use serde_json::json;

use super::GENTLE;
use crate::{
    contestant::Kind,
    human::Human,
    options::Options,
    results::{Record, number},
    scene::{Room, Scene},
    usage::Cluster,
};

/// Humans and bots of one room.
const EACH: usize = 10;

pub async fn run(options: &Options, cluster: &Arc<Cluster>) -> Result<Record> {
    let count = if options.quick { 20 } else { 1000 };
    let mut scene = Scene::open(Kind::Greenshield, cluster, count).await?;
    let humans = scene.humans(count).await?;
    let rooms = crowded(&scene, &humans)?;
    scene.contestant.settled().await?;
    let course = scene.prepare(&rooms, rooms.len()).await?;
    let outcome = scene.run(course, GENTLE, None).await?;
    scene.check(&outcome.course, &rooms).await?;
    scene.contestant.settled().await?;

    scene.hold();
    let before = scene.homeserver.with(|state| state.calls);
    for human in &humans {
        human.another_device().await?;
    }
    let changed = scene.homeserver.with(|state| state.queue.changed.len());
    ensure!(changed == count, "{changed} humans changed instead of {count}");
    let course = scene.prepare(&rooms, rooms.len()).await?;
    let outcome = scene.run(course, GENTLE, None).await?;
    scene.check(&outcome.course, &rooms).await?;
    scene.contestant.settled().await?;
    let after = scene.homeserver.with(|state| state.calls);
    let figure = |after: u64, before: u64| usize::try_from(after - before).map(number);
    Ok(Record::new("device_changes", "greenshield", count)
        .with("users_queried", figure(after.users_queried, before.users_queried)?)
        .with("queries", figure(after.queries, before.queries)?)
        .with("one_by_one", number(count * EACH.min(count)))
        .with("answered", number(outcome.all)))
}

/// Rooms of ten humans with ten bots; one entry for each bot, asked by one of its humans.
fn crowded(scene: &Scene, humans: &[Arc<Human>]) -> Result<Vec<Room>> {
    let mut rooms = Vec::with_capacity(scene.bots.len());
    for (bots, humans) in scene.bots.chunks(EACH).zip(humans.chunks(EACH)) {
        let id: Arc<str> = scene.homeserver.with(|state| {
            let request = json!({ "initial_state": [{ "type": "m.room.encryption",
                "content": { "algorithm": "m.megolm.v1.aes-sha2" } }] });
            let room = state.create(humans[0].name(), &request);
            for human in &humans[1..] {
                state.member(&room, human.name(), human.name(), "join");
            }
            for bot in bots {
                state.member(&room, &bot.user_id, &bot.user_id, "join");
            }
            room.into()
        });
        let users = bots.iter().map(|bot| OwnedUserId::try_from(bot.user_id.as_str()));
        let users: Arc<[OwnedUserId]> = users.collect::<Result<_, _>>()?;
        for (bot, human) in bots.iter().zip(humans.iter().cycle()) {
            let (id, human, bots) = (Arc::clone(&id), Arc::clone(human), Arc::clone(&users));
            rooms.push(Room { id, human, bot: bot.clone(), bots });
        }
    }
    Ok(rooms)
}
