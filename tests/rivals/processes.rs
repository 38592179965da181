//! Processes that come and go: killed, or restarted one after the other.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::pair::{Pair, each_answered_once};
use crate::{
    fast::scene::Bot,
    support::{fake_homeserver::Person, report},
};

const AREA: &str = "Several processes";

#[tokio::test(flavor = "multi_thread")]
async fn one_is_killed_and_the_other_answers_long_before_the_lease_ends() -> Result<()> {
    let mut pair = Pair::start(15).await?;
    let alice = Person::new(&pair.scene.fake, "alice").await?;
    let bots = [pair.bot_of(0, &alice).await?, pair.bot_of(1, &alice).await?];
    pair.scene.fake.forget_like_synapse();
    let mut asked: [Vec<String>; 2] = Default::default();
    let mut longest = Duration::ZERO;
    let budget = report::budget(0.05, Duration::ZERO);
    let (began, mut kills) = (Instant::now(), 0);
    while kills == 0 || began.elapsed() < budget {
        for (bot, asked) in bots.iter().zip(&mut asked) {
            asked.push(alice.say(&bot.room, "!ping").await?);
            alice.answer_to(&bot.room, asked.last().context("asked")?).await?;
        }
        let killed = pair.works(&bots[0]).await?;
        asked[0].push(alice.say(&bots[0].room, "!ping").await?);
        let at = Instant::now();
        pair.greenshield(killed).kill9().await?;
        pair.lasts_long(killed).await?;
        for (bot, asked) in bots.iter().zip(&mut asked) {
            asked.push(alice.say(&bot.room, "!ping").await?);
            for asked in asked.iter().rev().take(2) {
                pair.answer(&alice, bot, asked).await?;
            }
        }
        longest = longest.max(at.elapsed());
        pair.has_all(1 - killed).await?;
        pair.greenshield(killed).start().await?;
        pair.shared().await?;
        kills += 1;
    }
    for (bot, asked) in bots.iter().zip(&asked) {
        each_answered_once(&pair.scene, &alice, bot, asked).await?;
    }
    let looked = pair.is_whole().await?;
    let note = format!(
        "After a kill -9 of one of two processes, all bots had answered after at most {:.1} s; each message was answered once ({looked}).",
        longest.as_secs_f64()
    );
    report::row(AREA, "kill -9 of one of two processes", kills, 0, &note);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_under_load_loses_and_doubles_nothing() -> Result<()> {
    let mut pair = Pair::start(6).await?;
    let alice = Person::new(&pair.scene.fake, "alice").await?;
    let bots = [pair.bot_of(0, &alice).await?, pair.bot_of(1, &alice).await?];
    pair.scene.fake.forget_like_synapse();
    let budget = report::budget(0.05, Duration::ZERO);
    let began = Instant::now();
    let mut asked: [Vec<String>; 2] = Default::default();
    let mut restarts = 0;
    while restarts < 4 || began.elapsed() < budget {
        // An upgrade: one stops, the new one starts, then the other.
        let restarted = restarts % 2;
        let restart = async {
            let greenshield = pair.greenshield(restarted);
            greenshield.stop().await?;
            greenshield.start().await
        };
        let (done, said) = tokio::join!(restart, talk(&alice, &bots, &mut asked, 6));
        done?;
        said?;
        restarts += 1;
    }
    for (bot, asked) in bots.iter().zip(&asked) {
        // Some wait for a key that the homeserver has dropped.
        for asked in asked {
            pair.answer(&alice, bot, asked).await?;
        }
        each_answered_once(&pair.scene, &alice, bot, asked).await?;
    }
    let looked = pair.is_whole().await?;
    let messages: usize = asked.iter().map(Vec::len).sum();
    let note = format!(
        "{messages} messages, said all through the restarts, were answered once each ({looked})."
    );
    report::row(AREA, "rolling restart under load", restarts as u64, 0, &note);
    Ok(())
}

/// A few questions to each bot, as fast as a client can.
async fn talk(
    alice: &Person,
    bots: &[Bot; 2],
    asked: &mut [Vec<String>; 2],
    times: usize,
) -> Result<()> {
    for n in 0..times {
        for (bot, asked) in bots.iter().zip(&mut *asked) {
            if n % 3 == 0 {
                alice.forget_key(&bot.room).await?;
            }
            asked.push(alice.say(&bot.room, "!ping").await?);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}
