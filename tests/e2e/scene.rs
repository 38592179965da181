//! What most scenes begin with: a human, a code, a bot, and the encrypted room that the bot opened.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::support::{
    human::{Colour, Engine, Human, PATIENCE, Phase, Seen, Via},
    poll, random,
    world::World,
};

/// When a human thinks that a bot has not heard: longer than it takes a bot to look for what was lost.
const UNHEARD: Duration = Duration::from_secs(30);

/// A human and the bot that was signed up with the human's code.
pub struct Scene<'w> {
    pub world: &'w World,
    pub human: Box<dyn Human>,
    /// The answer of `/signup/api`.
    pub signup: Value,
    /// The direct room.
    pub room: String,
    pub username: String,
    pub code: String,
}

impl<'w> Scene<'w> {
    /// Signs a bot up, and lets the human join the room that it opens.
    pub async fn open(world: &'w World, engine: Engine) -> Result<Self> {
        let human = world.human(engine, "alice").await?;
        let code = world.greenshield.mint_code(human.user_id(), 1)?;
        let username = format!("helper{}", random::suffix());
        let signup = world.greenshield.signup(&code, &username).await?;
        let bot = text(&signup, "user_id")?;
        let invite = human.wait_invite(Some(&bot), PATIENCE).await?;
        ensure!(invite.is_direct && invite.encrypted, "{invite:?}");
        ensure!(signup["dm_room"] == invite.room_id.as_str(), "{signup} {invite:?}");
        human.join(&invite.room_id).await?;
        Ok(Self { world, human, signup, room: invite.room_id, username, code })
    }

    /// The same bot with another human, who opens a direct room and does not wait for the bot to join.
    pub async fn another_human(&self, engine: Engine, encrypted: bool) -> Result<Scene<'w>> {
        let human = self.world.human(engine, "bob").await?;
        let room = human.create_dm(self.bot(), encrypted).await?;
        let (signup, username, code) =
            (self.signup.clone(), self.username.clone(), self.code.clone());
        Ok(Scene { world: self.world, human, signup, room, username, code })
    }

    pub fn bot(&self) -> &str {
        self.signup["user_id"].as_str().unwrap_or_default()
    }

    pub fn device(&self) -> &str {
        self.signup["device_id"].as_str().unwrap_or_default()
    }

    /// Says `!ping`, and returns the answer, which must have come encrypted.
    pub async fn ping(&self) -> Result<Seen> {
        self.ping_in(&self.room).await
    }

    /// [`Scene::ping`] in another room: the answer to this very message.
    pub async fn ping_in(&self, room: &str) -> Result<Seen> {
        let asked = self.human.send_text(room, "!ping").await?;
        self.answer_to(room, &asked).await
    }

    /// The bot's `pong` to this message. Every answer is found by greenshield's own record, so that an
    /// earlier one is not taken for it, and then looked at with the human's eyes.
    pub async fn answer_to(&self, room: &str, asked: &str) -> Result<Seen> {
        let answer = self.event_id_of_answer(asked).await?;
        let seen = poll::until("the answer", PATIENCE, async || {
            let seen = self.human.wait_message(room, self.bot(), Some("pong"), PATIENCE).await?;
            let shield = self.human.shield(room, &answer).await;
            Ok(shield.ok().map(|shield| Seen { event_id: answer.clone(), shield, ..seen }))
        })
        .await?;
        ensure!(seen.encrypted && seen.decrypted, "{seen:?}");
        Ok(seen)
    }

    /// The event id of the bot's answer, from greenshield's own record.
    pub async fn event_id_of_answer(&self, asked: &str) -> Result<String> {
        let sql = self.world.sql().await?;
        poll::until("an answer in the outbox", PATIENCE, async || {
            let row: Option<(Option<String>,)> = sqlx::query_as(
                "SELECT o.event_id FROM outbox o JOIN bots b USING (bot_id)
                WHERE b.user_id = $1 AND o.txn_id = 'respond-' || $2 AND o.state = 'sent'",
            )
            .bind(self.bot())
            .bind(asked)
            .fetch_optional(&sql)
            .await?;
            Ok(row.and_then(|(event_id,)| event_id))
        })
        .await
    }

    /// Asks for a verification until the bot is ready for it; returns the flow. A busy Synapse can leave a
    /// to-device message behind, and of a request nothing tells the bot: a human who sees nothing happen
    /// breaks off and asks once more.
    pub async fn ready(&self, via: Via<'_>) -> Result<String> {
        let mut flow = self.human.request_verification(self.bot(), via).await?;
        if matches!(via, Via::ToDevice(_))
            && let Err(error) = self.human.wait_verification(&flow, Phase::Ready, UNHEARD).await
        {
            eprintln!("{} asks once more: {error:#}", self.human.user_id());
            self.human.cancel_verification(&flow).await?;
            flow = self.human.request_verification(self.bot(), via).await?;
        }
        self.human.wait_verification(&flow, Phase::Ready, PATIENCE).await?;
        Ok(flow)
    }

    /// Asks for a verification and comes as far as the emoji: both sides' must agree. Returns the flow.
    pub async fn compare(&self, via: Via<'_>) -> Result<String> {
        let flow = self.ready(via).await?;
        self.human.start_sas(&flow).await?;
        let ours = self.human.wait_verification(&flow, Phase::Sas, PATIENCE).await?;
        let theirs = self.wait_row("emoji").await?;
        let ours: Vec<String> =
            ours.emoji.context("emoji")?.into_iter().map(|emoji| emoji.symbol).collect();
        ensure!(ours.len() == 7 && ours == symbols(&theirs["emoji"]), "{ours:?} {theirs}");
        Ok(flow)
    }

    /// Verifies until both sides are done and the human's client counts the bot as verified.
    pub async fn verify(&self, via: Via<'_>) -> Result<()> {
        let flow = self.compare(via).await?;
        self.human.confirm_sas(&flow).await?;
        self.human.wait_verification(&flow, Phase::Done, PATIENCE).await?;
        let trust = self.human.wait_user_trust(self.bot(), true, PATIENCE).await?;
        ensure!(trust.msk.as_deref() == self.signup["msk_public"].as_str(), "{trust:?}");
        self.wait_row("done").await?;
        Ok(())
    }

    /// The human's client counts the bot as not verified.
    pub async fn unverified(&self) -> Result<()> {
        let trust = self.human.user_trust(self.bot()).await?;
        ensure!(!trust.verified, "verified in spite of it: {trust:?}");
        Ok(())
    }

    /// The newest verification of the bot by this human, once it is in this state.
    pub async fn wait_row(&self, state: &str) -> Result<Value> {
        let sql = self.world.sql().await?;
        poll::until(&format!("a verification that is {state}"), PATIENCE, async || {
            let row: Option<(String, Value)> = sqlx::query_as(
                "SELECT v.state, to_jsonb(v) FROM verifications v JOIN bots b USING (bot_id)
                WHERE b.user_id = $1 AND v.other_user_id = $2
                ORDER BY v.verification_id DESC LIMIT 1",
            )
            .bind(self.bot())
            .bind(self.human.user_id())
            .fetch_optional(&sql)
            .await?;
            Ok(row.filter(|(now, _)| now == state).map(|(_, row)| row))
        })
        .await
    }

    /// A certain verification of the bot, as it is now.
    pub async fn row_of(&self, flow_id: &str) -> Result<Value> {
        let row = sqlx::query_scalar(
            "SELECT to_jsonb(v) FROM verifications v JOIN bots b USING (bot_id)
            WHERE b.user_id = $1 AND v.flow_id = $2",
        );
        let sql = self.world.sql().await?;
        Ok(row.bind(self.bot()).bind(flow_id).fetch_one(&sql).await?)
    }
}

/// No mark beside a message.
pub fn unmarked(seen: &Seen) -> Result<()> {
    ensure!(seen.shield.colour == Colour::None, "{seen:?}");
    Ok(())
}

/// The human's client shows this event decrypted, and without a mark. Not always at once: of somebody whom
/// it has just met it may still be asking for the keys.
pub async fn reads(human: &dyn Human, room: &str, event_id: &str) -> Result<()> {
    let what = format!("{} to read {event_id}", human.user_id());
    let mut seen = None;
    let read = poll::until(&what, PATIENCE, async || {
        let stuck = human.utd_events(room).await?;
        let shield = seen.insert(human.shield(room, event_id).await);
        let unmarked = shield.as_ref().is_ok_and(|shield| shield.colour == Colour::None);
        Ok((unmarked && stuck.iter().all(|stuck| stuck.event_id != event_id)).then_some(()))
    })
    .await;
    read.with_context(|| format!("it shows {seen:?}"))
}

pub fn text(json: &Value, key: &str) -> Result<String> {
    Ok(json[key].as_str().with_context(|| format!("`{key}` in {json}"))?.to_owned())
}

fn symbols(emoji: &Value) -> Vec<String> {
    let emoji = emoji.as_array().into_iter().flatten();
    emoji.filter_map(|emoji| emoji["symbol"].as_str()).map(ToOwned::to_owned).collect()
}
