//! SIGKILL in the middle of a verification: the flow lives in memory only, so it is cancelled in words,
//! or it goes on; the next one succeeds either way.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::ledger::Tally;
use crate::{
    fast::scene::{Bot, PATIENCE, Scene},
    support::{
        fake_homeserver::{
            End,
            Fault::{self, Hang, Swallowed},
            Person,
        },
        hold::{Fate, Holds, Moment},
        poll, report,
    },
};

/// The bot's messages.
const MESSAGES: [&str; 4] = ["ready", "accept", "key", "mac"];
/// How many writes of a verification's story there are: none of them is missed.
const WRITES: u32 = 5;

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_message_of_a_verification_ends_it_and_the_next_one_succeeds() -> Result<()> {
    storm(false).await
}

/// As Element does it.
#[tokio::test(flavor = "multi_thread")]
async fn so_it_does_in_a_room() -> Result<()> {
    storm(true).await
}

async fn storm(in_room: bool) -> Result<()> {
    let mut flat = Flat::new(in_room).await?;
    let place = if in_room { " in a room" } else { "" };
    while flat.goes_on() {
        for message in MESSAGES {
            for fault in [Swallowed, Hang] {
                let sent = if matches!(fault, Hang) { "having sent" } else { "sending" };
                let what =
                    format!("SIGKILL in a verification{place}, the bot {sent} its `{message}`");
                flat.message(message, fault).await.context(what.clone())?;
                flat.noted(what);
            }
        }
        for skip in 0..WRITES {
            for fate in [Fate::Dies, Fate::Goes] {
                let what = format!("SIGKILL in a verification{place}, at a write of its story");
                flat.write(skip, fate).await.with_context(|| format!("{what} {skip} {fate:?}"))?;
                flat.noted(what);
            }
        }
    }
    flat.close().await
}

async fn verify(alice: &Person, bot: &Bot, in_room: bool) -> Result<End> {
    if in_room {
        return alice.verify_in(&bot.room, &bot.user_id).await;
    }
    alice.verify(&bot.user_id, &bot.device_id).await
}

struct Flat {
    scene: Scene,
    alice: Person,
    bot: Bot,
    holds: Holds,
    until: Instant,
    in_room: bool,
    tally: Tally,
    /// How many went on to their end in spite of the kill.
    done: u64,
}

impl Flat {
    async fn new(in_room: bool) -> Result<Self> {
        let (scene, alice, bot) = Scene::with_bot().await?;
        alice.ping(&bot.room).await?;
        let holds = Holds::install(&scene.database).await?;
        let until = Instant::now() + report::budget(0.03, Duration::ZERO);
        Ok(Self { scene, alice, bot, holds, until, in_room, tally: Tally::new(), done: 0 })
    }

    fn goes_on(&self) -> bool {
        self.tally.is_empty() || Instant::now() < self.until
    }

    fn noted(&mut self, what: String) {
        *self.tally.entry(what).or_default() += 1;
    }

    async fn message(&mut self, message: &str, fault: Fault) -> Result<()> {
        let mut path = format!("/sendToDevice/m.key.verification.{message}");
        let mut skip = 0;
        if self.in_room {
            // Encrypted: told by their order, the bot having nothing else to say.
            "/send/m.room.encrypted/".clone_into(&mut path);
            skip = MESSAGES.iter().position(|other| *other == message).context("its place")?;
        }
        // Having sent `ready`, it is killed so that the human's `start` is on its way to the next process.
        let is_answered = message == "ready" && matches!(fault, Hang);
        let trap = self.scene.fake.trap(&path, skip, fault);
        let refused = self.scene.fake.refused();
        let (end, killed) = tokio::join!(verify(&self.alice, &self.bot, self.in_room), async {
            trap.sprung().await?;
            self.scene.greenshield.kill9().await?;
            poll::until("the human's answer", PATIENCE, async || {
                Ok((!is_answered || self.scene.fake.refused() > refused).then_some(()))
            })
            .await?;
            self.scene.greenshield.start().await
        });
        killed?;
        self.ended(end?).await
    }

    async fn write(&mut self, skip: u32, fate: Fate) -> Result<()> {
        let moment = if fate == Fate::Dies { Moment::Statement } else { Moment::Commit };
        self.holds.arm(Some("verifications"), skip, moment).await?;
        let (end, killed) = tokio::join!(verify(&self.alice, &self.bot, self.in_room), async {
            let reached = self.holds.reached(Duration::from_secs(20)).await?;
            self.scene.greenshield.kill9().await?;
            self.holds.let_go(fate).await?;
            self.scene.greenshield.start().await?;
            anyhow::Ok(reached)
        });
        ensure!(killed?, "the write never came");
        self.ended(end?).await
    }

    /// Cancelled in words, or done after all; then another one, all the way.
    async fn ended(&mut self, end: End) -> Result<()> {
        match end {
            End::Cancelled(code) if code == "m.user" => {}
            End::Done => self.done += 1,
            End::Cancelled(code) => bail!("it was cancelled with {code}"),
        }
        // Nothing is left open; and somebody who verifies twice takes longer than a machine.
        poll::until("the story's end", PATIENCE, async || {
            let open = "SELECT COUNT(*) FROM verifications WHERE finished_at IS NULL";
            let open: i64 = sqlx::query_scalar(open).fetch_one(&self.scene.sql).await?;
            Ok((open == 0).then_some(()))
        })
        .await?;
        let again = verify(&self.alice, &self.bot, self.in_room).await?;
        ensure!(again == End::Done, "the next one: {again:?}");
        self.alice.wait_verified(&self.bot.user_id).await?;
        let answer = self.alice.ping(&self.bot.room).await?;
        ensure!(answer.shield == "None", "{answer:?}");
        Ok(())
    }

    async fn close(self) -> Result<()> {
        let (devices, masters) = (
            self.scene.fake.devices(&self.bot.user_id),
            self.scene.fake.masters(&self.bot.user_id),
        );
        ensure!(devices.len() == 1 && masters.len() == 1, "{devices:?} {masters:?}");
        ensure!(self.scene.fake.unsigned().is_empty());
        let ratchets = self.scene.fake.ratchets()?;
        ensure!(ratchets.used_twice.is_empty(), "{ratchets:?}");
        let tried: u64 = self.tally.values().sum();
        ensure!(0 < self.done && self.done < tried, "{} of {tried} went on", self.done);
        for (what, times) in &self.tally {
            let note =
                "it was cancelled in words or went on, and the next one ended with a green shield";
            report::row("Crashes", what, *times, 0, note);
        }
        Ok(())
    }
}
