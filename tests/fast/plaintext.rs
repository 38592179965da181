//! Never in the clear by mistake.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::scene::{PATIENCE, Scene};
use crate::support::{fake_homeserver::Fault, poll};

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_while_the_encryption_is_not_known() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    for fault in [Fault::refusal(500, "M_UNKNOWN"), Fault::html(404), Fault::html(200)] {
        let room = scene.fake.room(&alice.user_id, true, &[&bot.user_id]);
        scene.settled().await?;
        // The event of the encryption did come: forget it, as if it had not.
        sqlx::query(
            "UPDATE rooms SET encryption = NULL, encryption_checked = FALSE WHERE room_id = $1",
        )
        .bind(&room)
        .execute(&scene.sql)
        .await?;
        let question = format!("{room}/state/m.room.encryption");
        scene.fake.fault(&question, 4, fault.clone());
        let asked = alice.say(&room, "!ping").await?;
        let answer = alice.answer_to(&room, &asked).await;
        ensure!(answer.is_ok(), "{fault:?}: {answer:?}");
        ensure!(scene.fake.calls(&question).len() >= 5, "{fault:?}");
        let said = scene.fake.said_by(&bot.user_id, &room);
        ensure!(said.iter().all(|event| event["type"] == "m.room.encrypted"), "{said:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn encryption_that_is_turned_on_later_holds_at_once_and_for_good() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let room = scene.fake.room(&alice.user_id, false, &[&bot.user_id]);
    let clear = json!({ "msgtype": "m.text", "body": "!ping" });
    let say = || scene.fake.say(&room, &alice.user_id, "m.room.message", None, clear.clone());
    say();
    let said = async |count: usize| {
        poll::until("an answer", PATIENCE, async || {
            let said = scene.fake.said_by(&bot.user_id, &room);
            Ok((said.len() == count).then_some(said))
        })
        .await
    };
    ensure!(said(1).await?[0]["type"] == "m.room.message", "this room is not encrypted");

    let on = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    scene.fake.say(&room, &alice.user_id, "m.room.encryption", Some(""), on);
    let asked = say();
    ensure!(said(2).await?[1]["type"] == "m.room.encrypted");
    ensure!(alice.answer_to(&room, &asked).await?.body == "pong");

    // Nobody can turn it off, or weaken it into something that we do not speak.
    for content in [json!({}), json!({ "algorithm": "none" })] {
        scene.fake.say(&room, &alice.user_id, "m.room.encryption", Some(""), content);
        let asked = say();
        let sql = "SELECT state || COALESCE(' ' || error, '') FROM outbox
            WHERE txn_id = 'respond-' || $1 AND state <> 'queued'";
        let outcome = scene.wait_text("an outcome", sql, &asked).await?;
        ensure!(outcome.starts_with("failed the room's encryption algorithm"), "{outcome}");
    }
    let said = scene.fake.said_by(&bot.user_id, &room);
    ensure!(said[1..].iter().all(|event| event["type"] == "m.room.encrypted"), "{said:?}");
    Ok(())
}

/// We have said that we know: what was prepared before that does not go out as it is.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_prepared_in_the_clear_stays_here_once_the_room_is_encrypted() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let room = scene.fake.room(&alice.user_id, false, &[&bot.user_id]);
    let clear = json!({ "msgtype": "m.text", "body": "!ping" });
    let say = || scene.fake.say(&room, &alice.user_id, "m.room.message", None, clear.clone());
    let attempts = "SELECT attempts::TEXT FROM outbox
        WHERE txn_id = 'respond-' || $1 AND state = 'sent'";
    ensure!(scene.wait_text("the first answer", attempts, &say()).await? == "0");
    let said = scene.fake.said_by(&bot.user_id, &room);
    ensure!(said.len() == 1 && said[0]["type"] == "m.room.message", "all is known of it: {said:?}");

    // The step has prepared its answer, and waits for the commit that is to come before it.
    let mut held = scene.sql.begin().await?;
    sqlx::query("LOCK TABLE event_log IN EXCLUSIVE MODE").execute(&mut *held).await?;
    let asked = say();
    poll::until("the step to wait", PATIENCE, async || {
        let waits: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_locks
                WHERE relation = 'event_log'::regclass AND NOT granted)",
        )
        .fetch_one(&scene.sql)
        .await?;
        Ok(waits.then_some(()))
    })
    .await?;
    let on = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
    scene.fake.say(&room, &alice.user_id, "m.room.encryption", Some(""), on);
    poll::until("the news to be taken in", PATIENCE, async || {
        Ok(scene.fake.is_pushed().then_some(()))
    })
    .await?;
    held.rollback().await?;

    ensure!(alice.answer_to(&room, &asked).await?.body == "pong");
    let attempts = scene.wait_text("the answer", attempts, &asked).await?;
    ensure!(attempts == "1", "it was prepared before the news, and again: {attempts}");
    let said = scene.fake.said_by(&bot.user_id, &room);
    ensure!(said.len() == 2 && said[1]["type"] == "m.room.encrypted", "{said:?}");
    Ok(())
}

/// Other clients read no more of the event than its algorithm.
#[tokio::test(flavor = "multi_thread")]
async fn encryption_holds_whatever_else_its_event_says() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let deep = (0..300).fold(Value::Null, |inner, _| json!([inner]));
    for content in [
        json!({ "algorithm": "m.megolm.v1.aes-sha2", "deep": deep }),
        json!({ "algorithm": "m.megolm.v1.aes-sha2", "rotation_period_ms": "A text" }),
        json!({ "algorithm": ["m.megolm.v1.aes-sha2"] }),
        json!("m.megolm.v1.aes-sha2"),
    ] {
        let room = scene.fake.room(&alice.user_id, false, &[&bot.user_id]);
        let clear = json!({ "msgtype": "m.text", "body": "!ping" });
        let outcome = async || {
            let say = |kind, content| scene.fake.say(&room, &alice.user_id, kind, None, content);
            let asked = say("m.room.message", clear.clone());
            let sql = "SELECT state || COALESCE(' ' || session_id, '') FROM outbox
                WHERE txn_id = 'respond-' || $1 AND state <> 'queued'";
            scene.wait_text("an outcome", sql, &asked).await
        };
        ensure!(outcome().await? == "sent", "this room is not encrypted");
        scene.fake.say(&room, &alice.user_id, "m.room.encryption", Some(""), content.clone());
        let outcome = outcome().await?;
        let understood = content["algorithm"].is_string();
        ensure!(
            if understood { outcome.starts_with("sent ") } else { outcome == "failed" },
            "{outcome}, for {content}"
        );
        let said = scene.fake.said_by(&bot.user_id, &room);
        ensure!(said[1..].iter().all(|event| event["type"] == "m.room.encrypted"), "{said:?}");
    }
    Ok(())
}
