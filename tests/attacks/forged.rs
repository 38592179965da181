//! A homeserver, or a human, who puts somebody else's name to something, or something somewhere else.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use vodozemac::megolm::{GroupSession, SessionConfig};

use super::tools::{addressed, unharmed};
use crate::{
    fast::scene::{PATIENCE, Scene},
    support::{
        fake_homeserver::{Delivery, Person},
        poll, report,
    },
};

const TO_DEVICE: &str = "de.sorunome.msc2409.to_device";

/// How an event was logged, once so many bots have done it.
async fn logged(scene: &Scene, event_id: &str, bots: usize) -> Result<Vec<String>> {
    let sql = "SELECT decryption FROM event_log JOIN events USING (event_seq) WHERE event_id = $1";
    poll::until("the event's log rows", PATIENCE, async || {
        let rows: Vec<String> =
            sqlx::query_scalar(sql).bind(event_id).fetch_all(&scene.sql).await?;
        Ok((rows.len() >= bots).then_some(rows))
    })
    .await
}

/// Nobody answered it, though the room's bots, so many, are awake.
async fn unanswered(
    scene: &Scene,
    alice: &Person,
    room: &str,
    event_id: &str,
    bots: usize,
) -> Result<()> {
    alice.forget_key(room).await?;
    let later = alice.say(room, "!ping").await?;
    let read = poll::until("each bot's answer to what was said later", PATIENCE, async || {
        let read = alice.read(room).await?;
        let answers = read.iter().filter(|read| read.answers.as_ref() == Some(&later)).count();
        Ok((answers == bots).then_some(read))
    })
    .await?;
    let answers = read.iter().filter(|read| read.answers.as_deref() == Some(event_id));
    ensure!(answers.count() == 0, "it was answered: {read:?}");
    unharmed(scene).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_can_speak_in_the_name_of_another() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let mallory = Person::new(&scene.fake, "mallory").await?;
    mallory.join(&bot.room).await?;
    mallory.ping(&bot.room).await?;
    // A key that the bot had before, and one that it first sees under the wrong name.
    let known = mallory.encrypt(&bot.room, "!ping", true).await?;
    mallory.forget_key(&bot.room).await?;
    let fresh = mallory.encrypt(&bot.room, "!ping", true).await?;
    scene.settled().await?;
    let say = |content: Value| {
        scene.fake.say(&bot.room, &alice.user_id, "m.room.encrypted", None, content)
    };
    for content in [known, fresh] {
        let forged = say(content);
        ensure!(logged(&scene, &forged, 1).await? == ["failed"], "a forged event was believed");
        unanswered(&scene, &alice, &bot.room, &forged, 1).await?;
    }
    let note = "logged as failed, and not answered; the true sender goes on";
    report::row("Attackers", "Messages under another's name", 2, 0, note);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_belongs_to_its_room() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let other = scene.bot(&alice).await?;
    alice.ping(&other.room).await?;
    let content = alice.encrypt(&other.room, "!ping", true).await?;
    let moved =
        scene.fake.say(&bot.room, &alice.user_id, "m.room.encrypted", None, content.clone());
    ensure!(scene.wait_parked(&moved).await? == "room_key_missing");
    unanswered(&scene, &alice, &bot.room, &moved, 1).await?;

    // The same where the bot is in both.
    let both = scene.fake.room(&alice.user_id, true, &[&bot.user_id, &other.user_id]);
    let moved = scene.fake.say(&both, &alice.user_id, "m.room.encrypted", None, content);
    let sql = "SELECT STRING_AGG(DISTINCT waiting_reason, ' ')
        FROM inbox JOIN events USING (event_seq) WHERE event_id = $1 HAVING COUNT(waiting_reason) = 2";
    let parked = scene.wait_text("both bots to have parked it", sql, &moved).await?;
    ensure!(parked == "room_key_missing", "{parked}");
    unanswered(&scene, &alice, &both, &moved, 2).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_came_in_the_clear_opens_nothing() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let mut session = GroupSession::new(SessionConfig::version_1());
    let key = json!({ "algorithm": "m.megolm.v1.aes-sha2", "room_id": bot.room,
        "session_id": session.session_id(), "session_key": session.session_key().to_base64(),
        "sender_key": alice.sender_key(), "forwarding_curve25519_key_chain": [],
        "sender_claimed_ed25519_key": alice.sender_key() });
    for kind in ["m.room_key", "m.forwarded_room_key"] {
        let event = json!({ "type": kind, "sender": alice.user_id, "content": key });
        scene.fake.send_to_device(&bot.user_id, &bot.device_id, &event);
    }
    let clear = json!({ "type": "m.room.message", "room_id": bot.room,
        "content": { "msgtype": "m.text", "body": "!ping" } });
    let content = json!({ "algorithm": "m.megolm.v1.aes-sha2", "session_id": session.session_id(),
        "ciphertext": session.encrypt(clear.to_string()).to_base64(),
        "sender_key": alice.sender_key(), "device_id": alice.device_id });
    let forged = scene.fake.say(&bot.room, &alice.user_id, "m.room.encrypted", None, content);
    ensure!(scene.wait_parked(&forged).await? == "room_key_missing");
    unanswered(&scene, &alice, &bot.room, &forged, 1).await
}

/// What comes before the true message with its very bytes uses that up, as if the homeserver had dropped it:
/// what was said waits, and says for what.
#[tokio::test(flavor = "multi_thread")]
async fn olm_messages_count_only_from_their_sender_to_their_device() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let other = scene.bot(&alice).await?;
    let mallory = Person::new(&scene.fake, "mallory").await?;
    mallory.join(&bot.room).await?;
    alice.ping(&bot.room).await?;
    alice.ping(&other.room).await?;
    let mut count = 0;
    for true_first in [true, false] {
        scene.settled().await?;
        // What Alice sends now is caught on its way.
        scene.fake.to_device(Delivery::InboxOnly);
        scene.fake.hold_events(true);
        alice.forget_key(&bot.room).await?;
        let asked = alice.say(&bot.room, "!ping").await?;
        let caught = scene.fake.inbox(&bot.user_id, &bot.device_id);
        ensure!(!caught.is_empty(), "a room key is on its way");
        let mut messages = Vec::new();
        for message in &caught {
            let to = |user: &str, device: &str, sender: &str| {
                let mut message = addressed(message, user, device);
                message["sender"] = sender.into();
                message
            };
            if true_first {
                messages.push(to(&bot.user_id, &bot.device_id, &alice.user_id));
            }
            messages.push(to(&other.user_id, &other.device_id, &alice.user_id));
            messages.push(to(&bot.user_id, "NOTOURS", &alice.user_id));
            messages.push(to(&bot.user_id, &bot.device_id, &mallory.user_id));
            messages.push(to(&mallory.user_id, &mallory.device_id, &alice.user_id));
            let mut wrapped = to(&bot.user_id, &bot.device_id, &mallory.user_id);
            wrapped["content"]["org.example"] = "another wrapping".into();
            messages.push(wrapped);
            count += 5;
        }
        let id = format!("forged-{true_first}");
        ensure!(scene.fake.transaction(&id, &json!({ TO_DEVICE: messages })).await?.0 == 200);
        scene.fake.to_device(Delivery::Pushed);
        scene.fake.hold_events(false);
        if true_first {
            alice.answer_to(&bot.room, &asked).await?;
        } else {
            ensure!(scene.wait_parked(&asked).await? == "room_key_missing");
        }
        // Whatever became of that key, the bots are whole, and the next one is read.
        for bot in [&bot, &other] {
            alice.forget_key(&bot.room).await?;
            alice.ping(&bot.room).await?;
        }
        let read = alice.read(&bot.room).await?;
        let answers = read.iter().filter(|read| read.answers.as_deref() == Some(asked.as_str()));
        ensure!(answers.count() == usize::from(true_first), "{true_first}: {read:?}");
    }
    unharmed(&scene).await?;
    let note = "to the wrong device, from the wrong sender, wrapped anew: no harm to either bot";
    report::row("Attackers", "Forged and misdirected to-device messages", count, 0, note);
    Ok(())
}

/// In the same batch, and when the first is read already; to each of two bots.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_comes_again_under_another_id_is_not_read_again() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let other = scene.bot(&alice).await?;
    let room = scene.fake.room(&alice.user_id, true, &[&bot.user_id, &other.user_id]);
    alice.ping(&room).await?;
    let content = alice.encrypt(&room, "!ping", true).await?;
    let say = || scene.fake.say(&room, &alice.user_id, "m.room.encrypted", None, content.clone());
    let mallory = Person::new(&scene.fake, "mallory").await?;
    mallory.join(&room).await?;
    scene.fake.hold_events(true);
    // Somebody else has its bytes first, in the clear and in their own name.
    for kind in ["m.room.message", "m.room.encrypted"] {
        scene.fake.say(&room, &mallory.user_id, kind, None, content.clone());
    }
    let (first, at_once) = (say(), say());
    scene.fake.hold_events(false);
    ensure!(logged(&scene, &first, 2).await? == ["ok", "ok"], "the message itself is read");
    scene.settled().await?;
    let replays = [at_once, say()];
    for replay in &replays {
        ensure!(logged(&scene, replay, 2).await? == ["failed", "failed"], "a replay was read");
    }
    alice.ping(&room).await?;
    scene.settled().await?;
    let read = alice.read(&room).await?;
    let answers = |id: &String| read.iter().filter(|r| r.answers.as_ref() == Some(id)).count();
    ensure!(answers(&first) == 2, "each bot answers it once: {read:?}");
    ensure!(replays.iter().all(|replay| answers(replay) == 0), "a replay was answered: {read:?}");
    unharmed(&scene).await?;
    let note = "under new event ids, in the same batch and later: not read, not answered";
    report::row("Attackers", "Replayed room messages", 2, 0, note);
    Ok(())
}

/// Also when the first could not be read before its replay was.
#[tokio::test(flavor = "multi_thread")]
async fn a_parked_message_is_not_read_after_its_replay() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    alice.ping(&bot.room).await?;
    scene.settled().await?;
    alice.forget_key(&bot.room).await?;
    scene.fake.to_device(Delivery::InboxOnly);
    let content = alice.encrypt(&bot.room, "!ping", true).await?;
    // None is left there: the bot looks for what it misses.
    let keys = scene.fake.take_inbox(&bot.user_id, &bot.device_id);
    ensure!(!keys.is_empty(), "a room key is on its way");
    let keys: Vec<Value> =
        keys.iter().map(|key| addressed(key, &bot.user_id, &bot.device_id)).collect();
    let encrypted = "m.room.encrypted";
    let first = scene.fake.say(&bot.room, &alice.user_id, encrypted, None, content.clone());
    ensure!(scene.wait_parked(&first).await? == "room_key_missing");
    let replay = json!({ "type": encrypted, "event_id": "$replay", "room_id": bot.room,
        "sender": alice.user_id, "origin_server_ts": 1, "content": content });
    let both = json!({ TO_DEVICE: keys, "events": [replay] });
    ensure!(scene.fake.transaction("both", &both).await?.0 == 200);
    ensure!(logged(&scene, "$replay", 1).await? == ["ok"], "it is read once");
    ensure!(logged(&scene, &first, 1).await? == ["failed"], "and not again");
    scene.fake.to_device(Delivery::Pushed);
    unanswered(&scene, &alice, &bot.room, &first, 1).await
}

/// The same message in another wrapping is the same message.
#[tokio::test(flavor = "multi_thread")]
async fn a_room_key_that_is_replayed_in_new_wrappings_changes_nothing() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    alice.ping(&bot.room).await?;
    alice.forget_key(&bot.room).await?;
    let asked = alice.say(&bot.room, "!ping").await?;
    let caught = scene.fake.inbox(&bot.user_id, &bot.device_id);
    alice.answer_to(&bot.room, &asked).await?;
    scene.settled().await?;
    let (user, device) = (bot.user_id.clone(), bot.device_id.clone());
    let replays: Vec<Value> = caught
        .iter()
        .flat_map(|message| {
            let (user, device) = (&user, &device);
            (0..20).map(move |n| {
                let mut message = addressed(message, user, device);
                message["content"]["org.example.n"] = n.into();
                message["unsigned"] = json!({ "age": n });
                message
            })
        })
        .collect();
    let count = replays.len() as u64;
    ensure!(count > 0, "a room key was on its way");
    ensure!(scene.fake.transaction("replays", &json!({ TO_DEVICE: replays })).await?.0 == 200);
    let again = alice.say(&bot.room, "!ping").await?;
    scene.answered_once(&alice, &bot, &again).await?;
    unharmed(&scene).await?;
    let note = "each in a wrapping of its own: known to Olm, and nothing changed";
    report::row("Attackers", "Replayed room keys", count, 0, note);
    Ok(())
}
