//! Whom a bot heeds, and whom not.

use super::*;
use crate::{clock::Clock, store::testing};

fn in_room<'a>(bot: BotId, sender: &'a str, room: &'a str) -> Asked<'a> {
    Asked { bot, sender, room: Some(room), begins: true }
}

async fn heeds(conn: &mut PgConnection, asked: Asked<'_>, now: DateTime<Utc>) -> bool {
    which(conn, &[asked], now).await.unwrap().contains(&0)
}

#[tokio::test]
async fn a_human_who_brings_none_to_its_end_is_heeded_again_later() {
    let database = testing::database().await;
    let bot = database.bot("@bot_a:x", "D").await;
    let now = Clock::system().now();
    let mut conn = database.store.connection().await.unwrap();
    let her = || in_room(bot, "@mallory:x", "!r:x");
    for n in 0..MOST_RECENT {
        assert!(heeds(&mut conn, her(), now).await, "after {n}");
        let flow = n.to_string();
        begin(&mut conn, bot, "@mallory:x", &flow, Some("!r:x"), false, now).await.unwrap();
        database.execute("UPDATE verifications SET state = 'cancelled', finished_at = NOW()").await;
    }
    assert!(!heeds(&mut conn, her(), now).await);
    assert!(heeds(&mut conn, in_room(bot, "@alice:x", "!r:x"), now).await);
    assert!(heeds(&mut conn, her(), now + RECENT).await);
    database.execute("UPDATE verifications SET state = 'done' WHERE flow_id = '31'").await;
    assert!(heeds(&mut conn, her(), now).await, "she has verified the bot since");
}

#[tokio::test]
async fn a_room_that_is_full_fills_no_other() {
    let database = testing::database().await;
    let bot = database.bot("@bot_a:x", "D").await;
    let now = Clock::system().now();
    let mut conn = database.store.connection().await.unwrap();
    for n in 0..MOST_OPEN {
        let human = format!("@h{n}:x");
        begin(&mut conn, bot, &human, "f", Some("!full:x"), false, now).await.unwrap();
    }
    assert!(!heeds(&mut conn, in_room(bot, "@alice:x", "!full:x"), now).await);
    assert!(heeds(&mut conn, in_room(bot, "@alice:x", "!other:x"), now).await);
    assert!(heeds(&mut conn, in_room(bot, "@h0:x", "!full:x"), now).await, "it ends hers before");
    for n in 0..MOST_OPEN_IN_ALL - MOST_OPEN {
        let (human, room) = (format!("@o{n}:x"), format!("!{}:x", n / 30));
        begin(&mut conn, bot, &human, "f", Some(&room), false, now).await.unwrap();
    }
    assert!(!heeds(&mut conn, in_room(bot, "@alice:x", "!other:x"), now).await);
}

#[tokio::test]
async fn of_many_at_once_the_newest_of_each_of_the_first_humans_is_heeded() {
    let database = testing::database().await;
    let bot = database.bot("@bot_a:x", "D").await;
    let mut conn = database.store.connection().await.unwrap();
    let humans: Vec<String> = (0..40).map(|n| format!("@h{n}:x")).collect();
    let twice = humans.iter().flat_map(|human| [human, human]);
    let asked: Vec<_> = twice.map(|human| in_room(bot, human, "!r:x")).collect();
    let heeded = which(&mut conn, &asked, Clock::system().now()).await.unwrap();
    assert_eq!(heeded, (0..usize::try_from(MOST_OPEN).unwrap()).map(|n| 2 * n + 1).collect());
}

#[tokio::test]
async fn strangers_are_heeded_nowhere_but_in_a_room() {
    let database = testing::database().await;
    let bot = database.bot("@bot_a:x", "D").await;
    let now = Clock::system().now();
    let mut conn = database.store.connection().await.unwrap();
    let straight = |begins| Asked { bot, sender: "@alice:x", room: None, begins };
    assert!(!heeds(&mut conn, straight(true), now).await);
    assert!(!heeds(&mut conn, straight(false), now).await);
    assert!(heeds(&mut conn, in_room(bot, "@alice:x", "!r:x"), now).await);
}
