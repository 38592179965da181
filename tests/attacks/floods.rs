//! More verifications than anybody means: by one, by a crowd, wrapped in Olm, to many bots at once. They
//! cost little, and stand in nobody's way who verifies in a room of their own.

use anyhow::{Result, ensure};
use futures_util::future::join_all;
use serde_json::{Value, json};

use super::{
    strangers::{message, request},
    tools::{addressed, peak_memory, unharmed},
};
use crate::{
    fast::scene::{Bot, PATIENCE, Scene},
    support::{
        fake_homeserver::{End, Person},
        poll, report,
    },
};

const TO_DEVICE: &str = "de.sorunome.msc2409.to_device";
/// How many verifications a bot has under way in one room, and over to-device messages; and how many one
/// human begins in ten minutes without bringing one to its end.
const MOST: i64 = 32;
/// How much lies before the bot when the one who asks without end lets it come up a little: others' words
/// come in their turn, and so after all of it.
const BACKLOG: usize = 300;
/// A program that grows by more than this under a flood keeps what it should not, in MiB.
const MEMORY: f64 = 60.0;

/// An honest human comes to a green shield, and is answered.
async fn green(human: &Person, room: &str, bot: &Bot) -> Result<()> {
    human.ping(room).await?;
    let end = human.verify_in(room, &bot.user_id).await?;
    ensure!(end == End::Done, "{} in {room}: {end:?}", human.user_id);
    human.wait_verified(&bot.user_id).await?;
    human.ping(room).await?;
    Ok(())
}

/// Somebody with a room of their own with the bot.
async fn neighbour(scene: &Scene, name: &str, bot: &Bot) -> Result<(Person, String)> {
    let person = Person::new(&scene.fake, name).await?;
    let room = scene.fake.room(&person.user_id, true, &[&bot.user_id]);
    person.ping(&room).await?;
    Ok((person, room))
}

async fn count(scene: &Scene, sql: &'static str, argument: &str) -> Result<i64> {
    Ok(sqlx::query_scalar(sql).bind(argument).fetch_one(&scene.sql).await?)
}

const BEGUN_BY: &str = "SELECT COUNT(*) FROM verifications WHERE other_user_id = $1";

#[tokio::test(flavor = "multi_thread")]
async fn one_member_who_asks_without_end_is_heeded_a_few_times() -> Result<()> {
    let (mut scene, alice, bot) = Scene::with_bot().await?;
    let (mallory, room) = neighbour(&scene, "mallory", &bot).await?;
    let (carol, hers) = neighbour(&scene, "carol", &bot).await?;
    scene.settled().await?;
    let before = peak_memory(&mut scene.greenshield)?;
    let asking = request(&bot.user_id, &mallory.device_id);
    let over = std::sync::atomic::AtomicBool::new(false);
    let mut asked = 0_u64;
    let flood = async {
        while asked < 2000 || !over.load(std::sync::atomic::Ordering::Relaxed) {
            mallory.say_event(&room, "m.room.message", &asking).await?;
            asked += 1;
            if asked.is_multiple_of(100) {
                poll::until("her requests to be taken up", PATIENCE, async || {
                    let sql = "SELECT COUNT(*) FROM inbox";
                    let left: i64 = sqlx::query_scalar(sql).fetch_one(&scene.sql).await?;
                    Ok((left as usize + scene.fake.unpushed() <= BACKLOG).then_some(()))
                })
                .await?;
            }
        }
        anyhow::Ok(())
    };
    let honest = async {
        let honest = green(&alice, &bot.room, &bot).await;
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        honest
    };
    let (flood, honest) = tokio::join!(flood, honest);
    flood?;
    honest?;
    scene.settled_but_verifying().await?;

    let rows = count(&scene, BEGUN_BY, &mallory.user_id).await?;
    ensure!((2..=MOST).contains(&rows), "{rows} rows of {asked} requests");
    let queries = scene.fake.calls("/keys/query");
    let about_her =
        queries.iter().filter(|call| call.body.to_string().contains(&mallory.user_id)).count();
    ensure!(about_her < 3 * MOST as usize, "{about_her} queries of her devices");
    let said = scene.fake.said_by(&bot.user_id, &room).len();
    ensure!(said < 3 * MOST as usize, "the bot said {said} things in her room");
    green(&carol, &hers, &bot).await?;
    let grown = peak_memory(&mut scene.greenshield)? - before;
    ensure!(grown < MEMORY, "{grown} MiB more");
    unharmed(&scene).await?;
    let note = format!(
        "{rows} rows; {said} messages and {about_her} key queries for it; at most {grown:.0} MiB more; others were answered and verified the bot meanwhile and afterwards"
    );
    report::row("Attackers", "Verification requests of one member of a room", asked, 0, &note);
    Ok(())
}

/// In a room of all, and then straight to the bots, thousands in parallel.
#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_asks_at_once_fills_its_own_room_only() -> Result<()> {
    let (mut scene, alice, bot) = Scene::with_bot().await?;
    let bots = [bot, scene.bot(&alice).await?, scene.bot(&alice).await?];
    let (carol, hers) = neighbour(&scene, "carol", &bots[0]).await?;
    let mut crowd = Vec::new();
    for number in 0..500 {
        crowd.push(Person::nameless(&scene.fake, &format!("crowd{number}")).await?);
    }
    let members = crowd.iter().map(|person| person.user_id.as_str());
    let members: Vec<&str> = members.chain(bots.iter().map(|bot| bot.user_id.as_str())).collect();
    let room = scene.fake.room(members[0], false, &members[1..]);
    scene.settled().await?;
    let before = peak_memory(&mut scene.greenshield)?;

    let everybody = async {
        for person in &crowd {
            let asking = request(&bots[0].user_id, &person.device_id);
            scene.fake.say(&room, &person.user_id, "m.room.message", None, asking);
        }
    };
    let ((), honest) = tokio::join!(everybody, green(&alice, &bots[0].room, &bots[0]));
    honest?;
    scene.settled_but_verifying().await?;
    let in_room = "SELECT COUNT(*) FROM verifications WHERE room_id = $1";
    let rows = count(&scene, in_room, &room).await?;
    ensure!((2..=MOST).contains(&rows), "{rows} rows of a crowd");
    // Each step looks at all of them, and those that have not moved cost nothing.
    let versions = async || -> Result<Option<String>> {
        let versions = "SELECT STRING_AGG(CONCAT(verification_id, ' ', xmin), ', '
                ORDER BY verification_id)
            FROM verifications WHERE room_id = $1 AND finished_at IS NULL";
        Ok(sqlx::query_scalar(versions).bind(&room).fetch_one(&scene.sql).await?)
    };
    let open = versions().await?;
    for _ in 0..3 {
        alice.ping(&bots[0].room).await?;
    }
    ensure!(open.is_some() && versions().await? == open, "written again: {open:?}");

    let mut asked = 0;
    let mut transactions = Vec::new();
    for (number, people) in crowd.chunks(20).enumerate() {
        let messages: Vec<Value> = people
            .iter()
            .flat_map(|person| bots.iter().map(move |bot| (person, bot)))
            .flat_map(|(person, bot)| {
                ["one", "two"]
                    .map(|flow| message(bot, &person.user_id, "request", flow, &person.device_id))
            })
            .collect();
        asked += messages.len() as u64;
        transactions.push((format!("crowd{number}"), json!({ TO_DEVICE: messages })));
    }
    let pushed = join_all(transactions.iter().map(|(id, body)| scene.fake.transaction(id, body)));
    let (pushed, honest) = tokio::join!(pushed, green(&carol, &hers, &bots[0]));
    honest?;
    for answer in pushed {
        ensure!(answer?.0 == 200);
    }
    scene.settled_but_verifying().await?;
    let straight: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT COUNT(*), COUNT(*) FILTER (WHERE finished_at IS NULL) FROM verifications
        WHERE room_id IS NULL GROUP BY bot_id",
    )
    .fetch_all(&scene.sql)
    .await?;
    let few = |(rows, open): &(i64, i64)| (2..=MOST).contains(open) && *rows <= 2 * MOST;
    ensure!(straight.len() == bots.len() && straight.iter().all(few), "{straight:?}");
    for bot in &bots {
        alice.ping(&bot.room).await?;
        ensure!(alice.verify_in(&bot.room, &bot.user_id).await? == End::Done);
    }
    let grown = peak_memory(&mut scene.greenshield)? - before;
    ensure!(grown < MEMORY, "{grown} MiB more");
    unharmed(&scene).await?;
    let note = format!(
        "{rows} under way in the room, and of those to devices (rows, open) {straight:?} with each bot; at most {grown:.0} MiB more; others were answered and verified the bots in rooms of their own"
    );
    let people = crowd.len() as u64;
    report::row("Attackers", "Verification requests of a crowd, in a room", people, 0, &note);
    report::row("Attackers", "Verification requests of a crowd, in parallel", asked, 0, &note);
    Ok(())
}

/// What they are shows only when the machine has had them.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrapped_in_olm_is_heeded_no_more_than_what_is_not() -> Result<()> {
    let (mut scene, alice, bot) = Scene::with_bot().await?;
    let (mallory, _) = neighbour(&scene, "mallory", &bot).await?;
    let stranger = Person::new(&scene.fake, "stranger").await?;
    alice.ping(&bot.room).await?;
    scene.settled().await?;
    let before = peak_memory(&mut scene.greenshield)?;
    let wrapped = async |who: &Person, kind: &str, flow: String| -> Result<Value> {
        let plain = message(&bot, &who.user_id, kind, &flow, &who.device_id);
        let kind = format!("m.key.verification.{kind}");
        let wrapped = who.wrap(&bot.user_id, &bot.device_id, &kind, &plain["content"]).await?;
        Ok(addressed(&wrapped, &bot.user_id, &bot.device_id))
    };
    let mut messages = Vec::new();
    for n in 0..501 {
        messages.push(wrapped(&mallory, "request", format!("m{n}")).await?);
    }
    for n in 0..100 {
        messages.push(wrapped(&mallory, "key", format!("unknown{n}")).await?);
        messages.push(wrapped(&stranger, "key", format!("unknown{n}")).await?);
        messages.push(wrapped(&stranger, "request", format!("s{n}")).await?);
    }
    let asked = messages.len() as u64;
    let body = json!({ TO_DEVICE: messages });
    let (pushed, honest) =
        tokio::join!(scene.fake.transaction("wrapped", &body), green(&alice, &bot.room, &bot));
    ensure!(pushed?.0 == 200);
    honest?;
    scene.settled_but_verifying().await?;
    ensure!(count(&scene, BEGUN_BY, &stranger.user_id).await? == 0, "a row for a stranger");
    let rows = count(&scene, BEGUN_BY, &mallory.user_id).await?;
    ensure!((1..=10).contains(&rows), "{rows} rows of {asked} messages");
    let said = scene.fake.calls("/sendToDevice/m.key.verification");
    let to = |who: &Person| {
        said.iter().filter(|call| call.body.to_string().contains(&who.user_id)).count()
    };
    ensure!(to(&stranger) == 0, "a stranger was answered: {said:?}");
    let answers = to(&mallory);
    ensure!((1..=20).contains(&answers), "{answers} answers: {said:?}");
    // She can be served as everybody else.
    mallory.sync().await?;
    ensure!(mallory.verify(&bot.user_id, &bot.device_id).await? == End::Done);
    let grown = peak_memory(&mut scene.greenshield)? - before;
    ensure!(grown < MEMORY, "{grown} MiB more");
    unharmed(&scene).await?;
    let note = format!("{rows} rows and {answers} answers; none for strangers");
    report::row("Attackers", "Verification messages wrapped in Olm", asked, 0, &note);
    Ok(())
}
