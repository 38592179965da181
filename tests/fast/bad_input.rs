//! What the appservice listener is not meant to get.

use anyhow::{Result, ensure};
use serde_json::json;

use super::scene::Scene;
use crate::support::synapse::SERVER_NAME;

#[tokio::test(flavor = "multi_thread")]
async fn malformed_items_do_not_hurt_their_neighbours() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let content = alice.encrypt(&bot.room, "!ping", true).await?;
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_millis() as u64;
    let good = json!({ "event_id": "$good", "room_id": bot.room, "sender": alice.user_id,
        "type": "m.room.encrypted", "content": content, "origin_server_ts": now });
    let mut hopeless = good.clone();
    hopeless["event_id"] = "$hopeless".into();
    hopeless["content"] = json!({ "algorithm": "m.megolm.v1.aes-sha2", "session_id": 7 });
    let message = |to: &str, device: &str| {
        json!({ "type": "m.room.encrypted", "sender": alice.user_id, "content": {},
            "to_user_id": to, "to_device_id": device })
    };
    let body = json!({
        "events": [null, {"event_id": "$x"}, hopeless, good, {"type": 3},
            {"event_id": "$odd", "room_id": "no room", "sender": "nobody", "type": "m.room.message",
             "content": {"msgtype": "m.text", "body": "!ping"}},
            {"event_id": "$member", "room_id": bot.room, "sender": alice.user_id, "content": null,
             "type": "m.room.member", "state_key": "not a user"}],
        "de.sorunome.msc2409.to_device": [
            "x",
            { "type": "m.room_key", "to_user_id": bot.user_id, "to_device_id": bot.device_id },
            message(&bot.user_id, &bot.device_id),
            message(&bot.user_id, "NOTOURS"),
            message(&format!("@bot_nobody:{SERVER_NAME}"), "DEVICE"),
            { "type": "m.key.verification.request", "sender": "nobody", "content": {"a": 1},
              "to_user_id": bot.user_id, "to_device_id": bot.device_id },
        ],
        "org.matrix.msc3202.device_lists": { "changed": [null, "nobody", alice.user_id] },
        "org.matrix.msc3202.device_one_time_keys_count": { bot.user_id.as_str(): 5, "@x": {"D": []} },
        "org.matrix.msc3202.device_unused_fallback_key_types": 7,
    });
    ensure!(scene.fake.transaction("bad", &body).await? == (200, json!({})));
    alice.answer_to(&bot.room, "$good").await?;
    alice.ping(&bot.room).await?;
    scene.settled().await?;
    ensure!(scene.decryption("$hopeless").await?.0 == "failed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_transaction_is_refused_in_matrix_words() -> Result<()> {
    let (scene, _alice, bot) = Scene::with_bot().await?;
    let refused = async |id: &str, body: String, token: Option<&str>| {
        let (status, answer) = scene.fake.raw_transaction(id, body, token).await?;
        anyhow::Ok(format!("{status} {}", answer["errcode"].as_str().unwrap_or_default()))
    };
    let empty = || "{\"events\": []}".to_owned();
    ensure!(refused("1", empty(), Some("wrong")).await? == "403 M_FORBIDDEN");
    ensure!(refused("2", "not json".to_owned(), None).await? == "400 M_NOT_JSON");
    ensure!(refused("3", "[]".to_owned(), None).await? == "400 M_NOT_JSON");
    let answer = scene.fake.announce_transaction("4", 52_428_801).await?;
    ensure!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("M_TOO_LARGE"), "{answer}");
    ensure!(refused("5", empty(), None).await? == "200 ");

    for (path, expected) in [
        (format!("users/{}", bot.user_id), 200),
        (format!("users/@bot_nobody:{SERVER_NAME}"), 404),
        (format!("rooms/%23nothing:{SERVER_NAME}"), 404),
        ("thirdparty/location".to_owned(), 404),
    ] {
        let (status, answer) = scene.fake.ask(&path).await?;
        ensure!(status == expected, "{path}: {status} {answer}");
        ensure!(status == 200 || answer["errcode"].is_string(), "{path}: {answer}");
    }
    Ok(())
}
