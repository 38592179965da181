//! Rooms with many: several humans, several bots, people who come and go.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::scene::{Scene, reads, unmarked};
use crate::support::{
    human::{Engine, Human, NewRoom, PATIENCE},
    poll, random,
    world::World,
};

#[tokio::test(flavor = "multi_thread")]
async fn everybody_reads_every_bot_while_people_come_and_go() -> Result<()> {
    let world = World::shared().await?;
    let mut humans = Vec::new();
    for engine in [Engine::Rust, Engine::Js, Engine::Rust, Engine::Js] {
        humans.push(world.human(engine, "guest").await?);
    }
    let mut bots = Vec::new();
    let code = world.greenshield.mint_code(humans[0].user_id(), 3)?;
    for _ in 0..3 {
        let username = format!("helper{}", random::suffix());
        let signup = world.greenshield.signup(&code, &username).await?;
        bots.push(super::scene::text(&signup, "user_id")?);
    }
    let guests: Vec<_> = humans[1..].iter().map(|human| human.user_id()).collect();
    let invite: Vec<_> = guests.into_iter().chain(bots.iter().map(String::as_str)).collect();
    let new =
        NewRoom { name: Some("Many"), encrypted: true, invite: &invite, ..NewRoom::default() };
    let room = humans[0].create_room(new).await?;
    for human in &humans[1..] {
        human.wait_invite(Some(humans[0].user_id()), PATIENCE).await?;
        human.join(&room).await?;
    }
    for member in invite {
        humans[0].wait_member(&room, member, "join", PATIENCE).await?;
    }
    let party = Party { world, room, bots };

    let first = party.ping(&*humans[0]).await?;
    for human in &humans {
        party.reads(&**human, &first).await?;
        ensure!(human.utd_events(&party.room).await?.is_empty(), "undecryptable");
    }

    let leaver = humans.pop().context("four")?;
    leaver.leave(&party.room).await?;
    humans[0].wait_member(&party.room, leaver.user_id(), "leave", PATIENCE).await?;
    let second = party.ping(&*humans[1]).await?;
    for (before, after) in first.iter().zip(&second) {
        ensure!(before.bot == after.bot && before.session != after.session, "{before:?} {after:?}");
    }

    let late = world.human(Engine::Js, "late").await?;
    humans[0].invite(&party.room, late.user_id()).await?;
    late.wait_invite(Some(humans[0].user_id()), PATIENCE).await?;
    late.join(&party.room).await?;
    humans.push(late);
    let third = party.ping(&**humans.last().context("the late one")?).await?;
    for human in &humans {
        party.reads(&**human, &third).await?;
    }
    for human in &humans[..3] {
        party.reads(&**human, &second).await?;
        ensure!(human.utd_events(&party.room).await?.is_empty(), "undecryptable");
    }
    ensure!(party.answers_sent().await? == 9, "some bot answered something twice");
    Ok(())
}

with_both_engines!(what_was_said_to_the_invited_can_be_read_after_joining, a_reaction_does_no_harm,);

async fn what_was_said_to_the_invited_can_be_read_after_joining(engine: Engine) -> Result<()> {
    let scene = Scene::open(World::shared().await?, Engine::Rust).await?;
    let invited = scene.world.human(engine, "guest").await?;
    for visibility in ["shared", "invited"] {
        let new = NewRoom {
            encrypted: true,
            invite: &[scene.bot(), invited.user_id()],
            history_visibility: Some(visibility),
            ..NewRoom::default()
        };
        let room = scene.human.create_room(new).await?;
        scene.human.wait_member(&room, scene.bot(), "join", PATIENCE).await?;
        let answer = scene.ping_in(&room).await?;
        invited.join(&room).await?;
        reads(&*invited, &room, &answer.event_id).await?;
    }
    Ok(())
}

async fn a_reaction_does_no_harm(engine: Engine) -> Result<()> {
    let scene = Scene::open(World::shared().await?, engine).await?;
    let answer = scene.ping().await?;
    let relation = json!({ "rel_type": "m.annotation", "event_id": answer.event_id, "key": "👍" });
    let reaction = json!({ "m.relates_to": relation });
    scene.human.send_raw(&scene.room, "m.reaction", reaction).await?;
    unmarked(&scene.ping().await?)
}

/// A room, and the bots in it.
struct Party<'w> {
    world: &'w World,
    room: String,
    bots: Vec<String>,
}

#[derive(Debug)]
struct Answer {
    bot: String,
    event_id: String,
    session: String,
}

impl Party<'_> {
    /// Says `!ping`, and returns every bot's answer.
    async fn ping(&self, human: &dyn Human) -> Result<Vec<Answer>> {
        let asked = human.send_text(&self.room, "!ping").await?;
        let sql = self.world.sql().await?;
        let mut answers = Vec::new();
        for bot in &self.bots {
            let what = format!("the answer of {bot}");
            let (event_id, session) = poll::until(&what, PATIENCE, async || {
                Ok(sqlx::query_as::<_, (String, String)>(
                    "SELECT o.event_id, o.session_id FROM outbox o JOIN bots b USING (bot_id)
                    WHERE b.user_id = $1 AND o.txn_id = 'respond-' || $2 AND o.state = 'sent'",
                )
                .bind(bot)
                .bind(&asked)
                .fetch_optional(&sql)
                .await?)
            })
            .await?;
            answers.push(Answer { bot: bot.clone(), event_id, session });
        }
        Ok(answers)
    }

    async fn reads(&self, human: &dyn Human, answers: &[Answer]) -> Result<()> {
        for answer in answers {
            reads(human, &self.room, &answer.event_id).await?;
        }
        Ok(())
    }

    async fn answers_sent(&self) -> Result<i64> {
        let sql = self.world.sql().await?;
        let count = sqlx::query_scalar("SELECT COUNT(*) FROM outbox WHERE room_id = $1");
        Ok(count.bind(&self.room).fetch_one(&sql).await?)
    }
}
