//! A process whose way to the database breaks, and nobody is told.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::pair::{Pair, each_answered_once};
use crate::{
    fast::scene::PATIENCE,
    support::{fake_homeserver::Person, poll, postgres::Database, relay::Relay, report},
};

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_the_database_without_a_word_is_replaced_and_comes_back() -> Result<()> {
    let database = Database::create().await?;
    let relay = Relay::to(&database.url()).await?;
    let by_relay = relay.url(&database.url())?;
    let pair = Pair::on(database, &by_relay, 5).await?;
    let alice = Person::new(&pair.scene.fake, "alice").await?;
    let bot = pair.bot_of(1, &alice).await?;
    let mut asked = vec![alice.say(&bot.room, "!ping").await?];
    alice.answer_to(&bot.room, &asked[0]).await?;

    relay.break_off();
    let began = Instant::now();
    let question = alice.say(&bot.room, "!ping").await?;
    pair.answer(&alice, &bot, &question).await?;
    let took = began.elapsed();
    ensure!(pair.works(&bot).await? == 0, "it has lost the bot");
    asked.push(question);

    relay.mend();
    pair.shared().await?;
    let question = alice.say(&bot.room, "!ping").await?;
    pair.answer(&alice, &bot, &question).await?;
    ensure!(pair.works(&bot).await? == 1, "it has the bot again");
    asked.push(question);
    let log = pair.other.log();
    poll::until("it to listen anew", PATIENCE, async || {
        let said = std::fs::read_to_string(&log)?;
        Ok(said.contains("lost the database's notifications").then_some(()))
    })
    .await?;
    each_answered_once(&pair.scene, &alice, &bot, &asked).await?;
    let looked = pair.is_whole().await?;
    let note = format!(
        "The way to the database broke without a word for one of two processes: the other answered after {:.1} s with a lease of 5 s, and the one took its share again when the way was mended ({looked}).",
        took.as_secs_f64()
    );
    report::row("Several processes", "A database that is silent", 1, 0, &note);
    Ok(())
}
