//! SIGKILL at random instants, hundreds of times.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{ledger::Tally, village::Village};
use crate::{
    fast::scene::Scene,
    support::{
        fake_homeserver::Fault,
        hold::{Fate, Holds, Moment},
        report,
    },
};

/// How long a chosen instant is waited for, before it becomes a random one.
const PATIENCE: Duration = Duration::from_secs(3);
/// For how long the next process works beside what is left of the one before.
const LATE: Duration = Duration::from_secs(1);
const ANY_MOMENT: &str = "SIGKILL at a random moment";
const CALL: &str = "SIGKILL with a random call to the homeserver under way";
const WRITE: &str = "SIGKILL at a random write or commit";
const LATE_WRITE: &str = "SIGKILL at a random write or commit, which ends under the next process";

/// The calls at which greenshield is killed; "" is any.
const CALLS: [&str; 8] =
    ["", "", "/send/", "/sendToDevice/", "/keys/claim", "/keys/query", "/keys/upload", "/sync"];

#[tokio::test(flavor = "multi_thread")]
async fn what_is_killed_again_and_again_loses_and_doubles_nothing() -> Result<()> {
    storm("kills", false, 0.35).await
}

/// As Synapse does it: a transaction that was not taken comes again with its room events only.
#[tokio::test(flavor = "multi_thread")]
async fn nor_does_it_when_the_homeserver_forgets_what_it_could_not_push() -> Result<()> {
    storm("kills, forgetful", true, 0.2).await
}

async fn storm(name: &str, forgetful: bool, share: f64) -> Result<()> {
    let seed = report::seed(name);
    let mut village = Village::found().await?;
    if forgetful {
        village.scene.fake.forget_like_synapse();
    }
    let holds = Holds::install(&village.scene.database).await?;
    let until = Instant::now() + report::budget(share, Duration::from_secs(12));
    let mut killer = Killer { dice: StdRng::seed_from_u64(seed + 1), holds, tally: Tally::new() };
    let Village { scene, folk } = &mut village;
    tokio::try_join!(folk.talk(seed, until), killer.kill_until(scene, until))?;
    ensure!(!killer.tally.is_empty() && !folk.said.is_empty(), "no kill, or nobody said a word");
    // In the suite there are too few for each kind to have its turn.
    if report::is_large() {
        for kind in [ANY_MOMENT, CALL, WRITE, LATE_WRITE] {
            ensure!(killer.tally.contains_key(kind), "never: {kind}: {:?}", killer.tally);
        }
    }
    let homeserver =
        if forgetful { ", the homeserver forgetting what it could not push" } else { "" };
    let tally = killer.tally.into_iter().map(|(what, times)| (what + homeserver, times)).collect();
    village.close("Crashes", &tally).await
}

struct Killer {
    dice: StdRng,
    holds: Holds,
    tally: Tally,
}

impl Killer {
    /// Kills and starts again until it is time; then it is left running.
    async fn kill_until(&mut self, scene: &mut Scene, until: Instant) -> Result<()> {
        while Instant::now() < until {
            let what = match self.dice.random_range(0..4) {
                0 => self.at_a_call(scene).await?,
                1 => self.at_a_write(scene).await?,
                _ => self.at_any_moment(scene).await?,
            };
            *self.tally.entry(what.to_owned()).or_default() += 1;
            // Most die young, some while they start, some at work.
            if self.dice.random_bool(0.7) {
                scene.greenshield.wait_ready().await?;
            }
        }
        Ok(())
    }

    async fn at_any_moment(&mut self, scene: &mut Scene) -> Result<&'static str> {
        let life = Duration::from_millis(self.dice.random_range(0..1500));
        tokio::time::sleep(life).await;
        scene.greenshield.kill9().await?;
        scene.greenshield.launch()?;
        Ok(ANY_MOMENT)
    }

    /// With a call on its way to the homeserver, which carries it out or does not.
    async fn at_a_call(&mut self, scene: &mut Scene) -> Result<&'static str> {
        let path = *CALLS.choose(&mut self.dice).unwrap_or(&"");
        let fault = if self.dice.random() { Fault::Hang } else { Fault::Swallowed };
        let trap = scene.fake.trap(path, self.dice.random_range(0..12), fault);
        let sprung = tokio::time::timeout(PATIENCE, trap.sprung()).await.is_ok();
        scene.greenshield.kill9().await?;
        scene.fake.heal();
        scene.greenshield.launch()?;
        Ok(if sprung { CALL } else { ANY_MOMENT })
    }

    /// In the middle of a database transaction, which then ends either way, perhaps after the next
    /// process has begun its work.
    async fn at_a_write(&mut self, scene: &mut Scene) -> Result<&'static str> {
        let skip = self.dice.random_range(0..150);
        let moment = if self.dice.random() { Moment::Statement } else { Moment::Commit };
        let fate = if self.dice.random() { Fate::Goes } else { Fate::Dies };
        let late = self.dice.random_bool(0.3);
        self.holds.arm(None, skip, moment).await?;
        let reached = self.holds.reached(PATIENCE).await?;
        scene.greenshield.kill9().await?;
        if late {
            scene.greenshield.launch()?;
            // It may need a row that the dead one still holds.
            let _ = tokio::time::timeout(LATE, scene.greenshield.wait_ready()).await;
            self.holds.let_go(fate).await?;
        } else {
            self.holds.let_go(fate).await?;
            scene.greenshield.launch()?;
        }
        Ok(match (reached, late) {
            (false, _) => ANY_MOMENT,
            (true, false) => WRITE,
            (true, true) => LATE_WRITE,
        })
    }
}
