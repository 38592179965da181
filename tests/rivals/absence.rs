//! What the homeserver forgets when a process dies, or stands still, with a transaction that it has not
//! answered: to-device messages, and that somebody's devices changed. Nobody else has seen them.

use anyhow::{Result, ensure};

use super::{
    pair::{NAMES, Pair},
    quiet,
};
use crate::{
    fast::scene::{Bot, PATIENCE},
    support::{
        fake_homeserver::{End, Person},
        hold::{Fate, Holds, Moment},
        poll,
        process::Signal,
        report,
    },
};

const AREA: &str = "Several processes";
const LEASE: u64 = 6;

/// Two processes, a bot with nothing to do, and a homeserver that forgets.
async fn start() -> Result<(Pair, Holds, Person, Bot)> {
    let pair = Pair::start(LEASE).await?;
    let alice = Person::new(&pair.scene.fake, "alice").await?;
    let bot = pair.bot_of(0, &alice).await?;
    alice.ping(&bot.room).await?;
    let holds = Holds::install(&pair.database_url()).await?;
    pair.scene.settled().await?;
    pair.scene.fake.forget_like_synapse();
    Ok((pair, holds, alice, bot))
}

async fn kill_both(pair: &mut Pair) -> Result<()> {
    for which in 0..NAMES.len() {
        pair.greenshield(which).kill9().await?;
    }
    Ok(())
}

async fn start_both(pair: &mut Pair) -> Result<()> {
    let Pair { scene, other, .. } = pair;
    let (one, other) = tokio::join!(scene.greenshield.start(), other.start());
    one?;
    other
}

/// Until the homeserver has forgotten more than these.
async fn forgotten(pair: &Pair, refused: usize) -> Result<()> {
    poll::until("a transaction to be forgotten", PATIENCE, async || {
        Ok((pair.scene.fake.refused() > refused).then_some(()))
    })
    .await
}

/// When the last outage ended, as far as anybody has noticed.
async fn outage(pair: &Pair) -> Result<String> {
    let sql = "SELECT CONCAT(reconcile_before) FROM homeserver_state";
    Ok(sqlx::query_scalar(sql).fetch_one(&pair.scene.sql).await?)
}

async fn noticed(pair: &Pair, before: &str) -> Result<()> {
    poll::until("the outage to be noticed", PATIENCE, async || {
        Ok((outage(pair).await? != before).then_some(()))
    })
    .await
}

/// The next answer is for this phone, too.
async fn reads(pair: &Pair, alice: &Person, bot: &Bot, phone: &Person) -> Result<()> {
    let asked = alice.say(&bot.room, "!ping").await?;
    phone.answer_to(&bot.room, &asked).await?;
    quiet(&pair.scene).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_while_both_were_dead_is_asked_for_when_both_start_at_once() -> Result<()> {
    let (mut pair, _, alice, bot) = start().await?;
    kill_both(&mut pair).await?;
    let refused = pair.scene.fake.refused();
    let phone = alice.another_device("PHONE").await?;
    forgotten(&pair, refused).await?;
    start_both(&mut pair).await?;
    reads(&pair, &alice, &bot, &phone).await?;

    kill_both(&mut pair).await?;
    let refused = pair.scene.fake.refused();
    let (end, back) = tokio::join!(alice.verify(&bot.user_id, &bot.device_id), async {
        forgotten(&pair, refused).await?;
        start_both(&mut pair).await
    });
    back?;
    ensure!(end? == End::Done);
    let note = "A device that was added, and a verification that was asked for, were forgotten by the homeserver with the refused transaction, and taken up.";
    report::row(AREA, "Both dead, and started at once", 2, 0, note);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_process_took_with_it_is_asked_for_by_the_other() -> Result<()> {
    let (mut pair, mut holds, alice, bot) = start().await?;
    let before = outage(&pair).await?;
    let refused = pair.scene.fake.refused();
    holds.arm(Some("transactions"), 0, Moment::Statement).await?;
    let phone = alice.another_device("PHONE").await?;
    let killed = pair.held(&mut holds).await?;
    pair.greenshield(killed).kill9().await?;
    holds.let_go(Fate::Dies).await?;
    forgotten(&pair, refused).await?;
    noticed(&pair, &before).await?;
    reads(&pair, &alice, &bot, &phone).await?;
    pair.greenshield(killed).start().await?;
    pair.shared().await?;
    quiet(&pair.scene).await?;

    holds.arm(Some("transactions"), 0, Moment::Statement).await?;
    let (end, died) = tokio::join!(alice.verify(&bot.user_id, &bot.device_id), async {
        let killed = pair.held(&mut holds).await?;
        pair.greenshield(killed).kill9().await?;
        holds.let_go(Fate::Dies).await
    });
    died?;
    ensure!(end? == End::Done);
    let note = "A device that was added, and a verification that was asked for, in that transaction were forgotten by the homeserver, and taken up by the other process.";
    report::row(AREA, "kill -9 of one of two while it takes a transaction in", 2, 0, note);
    Ok(())
}

/// It is never killed, and never wakes: the end of its lease tells.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_frozen_process_has_is_asked_for_when_its_lease_ends() -> Result<()> {
    let (mut pair, mut holds, alice, bot) = start().await?;
    let before = outage(&pair).await?;
    let refused = pair.scene.fake.refused();
    holds.arm(Some("transactions"), 0, Moment::Statement).await?;
    let phone = alice.another_device("PHONE").await?;
    let frozen = pair.held(&mut holds).await?;
    pair.signal(frozen, Signal::Stop)?;
    holds.let_go(Fate::Goes).await?;
    forgotten(&pair, refused).await?;
    noticed(&pair, &before).await?;
    reads(&pair, &alice, &bot, &phone).await?;
    pair.signal(frozen, Signal::Cont)?;
    pair.shared().await
}
