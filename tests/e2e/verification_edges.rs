//! Verifications that the bot must not go along with, and says so.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::scene::Scene;
use crate::support::{
    human::{Engine, PATIENCE, Phase, Via},
    poll,
    world::World,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_emoji_is_refused() -> Result<()> {
    let scene = Scene::open(World::shared().await?, Engine::Rust).await?;
    let devices = scene.human.devices(scene.human.user_id()).await?;
    let request = json!({
        "msgtype": "m.key.verification.request", "body": "Scan me", "to": scene.bot(),
        "from_device": devices[0].device_id, "methods": ["m.qr_code.show.v1", "m.reciprocate.v1"],
    });
    scene.human.send_raw(&scene.room, "m.room.message", request).await?;
    let row = scene.wait_row("cancelled").await?;
    ensure!(row["cancel_code"] == "m.unknown_method", "{row}");
    scene.verify(Via::Room(&scene.room)).await
}

/// A device that goes on with something that the bot has never heard of, or has forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_transaction_is_cancelled() -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::open(world, Engine::Rust).await?;
    let account = world.synapse.register_human("carol").await?;
    let client = crate::support::http();
    let url = |path: &str| format!("{}/_matrix/client/v3/{path}", account.homeserver);
    let login = json!({
        "type": "m.login.password", "password": account.password,
        "identifier": { "type": "m.id.user", "user": account.user_id },
    });
    let login: Value = client.post(url("login")).json(&login).send().await?.json().await?;
    let token = login["access_token"].as_str().context("an access token")?;
    // Strangers are not answered: they meet in a room.
    let invite = json!({ "invite": [scene.bot()] });
    let room: Value = client
        .post(url("createRoom"))
        .bearer_auth(token)
        .json(&invite)
        .send()
        .await?
        .json()
        .await?;
    let room = room["room_id"].as_str().context("a room")?;
    poll::until("the bot to join", PATIENCE, async || {
        let members = client.get(url(&format!("rooms/{room}/joined_members"))).bearer_auth(token);
        let members: Value = members.send().await?.json().await?;
        Ok(members["joined"].get(scene.bot()).is_some().then_some(()))
    })
    .await?;
    let key = json!({ "transaction_id": "nobody-knows", "key": "AAAA" });
    let messages = json!({ "messages": { scene.bot(): { scene.device(): key } } });
    let sync: Value = client.get(url("sync")).bearer_auth(token).send().await?.json().await?;
    let since = sync["next_batch"].as_str().context("a token")?;
    let mut attempt = 0;
    // Sent again and again: Synapse may lose one on its way to an application service.
    let cancel = poll::until("a cancel", PATIENCE, async || {
        attempt += 1;
        let sent = client
            .put(url(&format!("sendToDevice/m.key.verification.key/{attempt}")))
            .bearer_auth(token)
            .json(&messages)
            .send()
            .await?;
        ensure!(sent.status().is_success(), "{sent:?}");
        let sync = client.get(url(&format!("sync?since={since}&timeout=2000")));
        let sync: Value = sync.bearer_auth(token).send().await?.json().await?;
        Ok(sync["to_device"]["events"].as_array().and_then(|events| {
            events.iter().find(|event| event["type"] == "m.key.verification.cancel").cloned()
        }))
    })
    .await?;
    ensure!(cancel["sender"] == scene.bot(), "{cancel}");
    ensure!(cancel["content"]["transaction_id"] == "nobody-knows", "{cancel}");
    ensure!(cancel["content"]["code"] == "m.unknown_transaction", "{cancel}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_whose_policy_is_off_refuses() -> Result<()> {
    let scene = Scene::open(World::shared().await?, Engine::Rust).await?;
    scene.policy("off").await?;
    for via in [Via::Room(&scene.room), Via::ToDevice(scene.device())] {
        let flow = scene.human.request_verification(scene.bot(), via).await?;
        let end = scene.human.wait_verification(&flow, Phase::Cancelled, PATIENCE).await?;
        ensure!(end.cancel_code.as_deref() == Some("m.user"), "{end:?}");
        scene.wait_row("cancelled").await?;
    }
    scene.policy("auto").await?;
    scene.verify(Via::Room(&scene.room)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_whose_policy_is_owner_waits_for_its_owner() -> Result<()> {
    let scene = Scene::open(World::shared().await?, Engine::Rust).await?;
    scene.policy("owner").await?;
    for (decision, end) in [("mismatch", Phase::Cancelled), ("confirm", Phase::Done)] {
        let flow = scene.compare(Via::Room(&scene.room)).await?;
        scene.human.confirm_sas(&flow).await?;
        let heard = async || {
            let row = scene.wait_row("emoji").await?;
            Ok((row["mac_received"] == true).then_some(()))
        };
        poll::until("the human's word", PATIENCE, heard).await?;
        // Whatever else comes for the bot moves nothing on.
        scene.ping().await?;
        scene.wait_row("emoji").await?;
        scene.unverified().await?;

        scene.decide(decision).await?;
        let ended = scene.human.wait_verification(&flow, end, PATIENCE).await?;
        let verified = end == Phase::Done;
        let code = (!verified).then_some("m.mismatched_sas");
        ensure!(ended.cancel_code.as_deref() == code, "{ended:?}");
        scene.human.wait_user_trust(scene.bot(), verified, PATIENCE).await?;
        scene.wait_row(if verified { "done" } else { "cancelled" }).await?;
    }
    Ok(())
}

impl Scene<'_> {
    async fn policy(&self, policy: &str) -> Result<()> {
        sqlx::query("UPDATE bots SET verification_policy = $2 WHERE user_id = $1")
            .bind(self.bot())
            .bind(policy)
            .execute(&self.world.sql().await?)
            .await?;
        Ok(())
    }

    /// What the owner's program does: writes the decision and wakes the bot.
    async fn decide(&self, decision: &str) -> Result<()> {
        let mut tx = self.world.sql().await?.begin().await?;
        for sql in [
            "UPDATE verifications SET decision = $2 WHERE finished_at IS NULL
            AND bot_id = (SELECT bot_id FROM bots WHERE user_id = $1)",
            "UPDATE bot_queue SET due_at = NOW(), generation = generation + 1
            WHERE bot_id = (SELECT bot_id FROM bots WHERE user_id = $1) AND $2 <> ''",
        ] {
            sqlx::query(sql).bind(self.bot()).bind(decision).execute(&mut *tx).await?;
        }
        sqlx::query("NOTIFY greenshield_work").execute(&mut *tx).await?;
        Ok(tx.commit().await?)
    }
}
