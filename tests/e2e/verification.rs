//! Verification by emoji, as it goes well and as people break it off: what is over is over for both
//! sides, and the first new attempt works.

use anyhow::{Result, ensure};

use super::scene::{Scene, unmarked};
use crate::support::{
    human::{Engine, PATIENCE, Phase, Via},
    random,
    world::World,
};

with_both_engines!(
    a_request_to_the_device_ends_verified,
    emoji_that_do_not_match_cancel_on_both_sides,
    a_human_may_cancel_at_any_time,
    asking_again_ends_the_first_attempt,
    several_humans_verify_one_bot_at_once,
    one_human_verifies_two_bots_at_once,
);

async fn a_request_to_the_device_ends_verified(engine: Engine) -> Result<()> {
    let scene = Scene::open(World::shared().await?, engine).await?;
    scene.verify(Via::ToDevice(scene.device())).await?;
    unmarked(&scene.ping().await?)
}

async fn emoji_that_do_not_match_cancel_on_both_sides(engine: Engine) -> Result<()> {
    let scene = Scene::open(World::shared().await?, engine).await?;
    for via in [Via::Room(&scene.room), Via::ToDevice(scene.device())] {
        let flow = scene.compare(via).await?;
        scene.human.mismatch_sas(&flow).await?;
        let end = scene.human.wait_verification(&flow, Phase::Cancelled, PATIENCE).await?;
        ensure!(end.cancel_code.as_deref() == Some("m.mismatched_sas"), "{end:?}");
        let row = scene.wait_row("cancelled").await?;
        ensure!(row["cancel_code"] == "m.mismatched_sas", "{row}");
        scene.unverified().await?;
    }
    scene.verify(Via::Room(&scene.room)).await
}

async fn a_human_may_cancel_at_any_time(engine: Engine) -> Result<()> {
    let scene = Scene::open(World::shared().await?, engine).await?;
    for via in [Via::Room(&scene.room), Via::ToDevice(scene.device())] {
        let ready = scene.ready(via).await?;
        cancel(&scene, &ready).await?;
        let emoji = scene.compare(via).await?;
        cancel(&scene, &emoji).await?;
    }
    scene.unverified().await?;
    scene.verify(Via::Room(&scene.room)).await
}

async fn cancel(scene: &Scene<'_>, flow: &str) -> Result<()> {
    scene.human.cancel_verification(flow).await?;
    let row = scene.wait_row("cancelled").await?;
    ensure!(row["cancel_code"] == "m.user", "{row}");
    Ok(())
}

/// Somebody whose client was closed with the emoji on the screen: nothing tells the bot. Logging in
/// again is a new device, and the first flow must not stand in the way of the second.
async fn asking_again_ends_the_first_attempt(engine: Engine) -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::open(world, engine).await?;
    let other = scene.another_human(engine, true).await?;
    other.human.wait_member(&other.room, scene.bot(), "join", PATIENCE).await?;
    other.compare(Via::Room(&other.room)).await?;
    // Of two flows that one client has with a user it cancels both, so only a raw event can do it.
    let device = other.human.devices(other.human.user_id()).await?;
    let request = serde_json::json!({
        "msgtype": "m.key.verification.request", "body": "Please verify",
        "from_device": device[0].device_id, "methods": ["m.sas.v1"], "to": scene.bot(),
    });
    let first = other.wait_row("emoji").await?["flow_id"].clone();
    other.human.send_raw(&other.room, "m.room.message", request).await?;
    let second = other.wait_row("ready").await?;
    ensure!(second["flow_id"] != first, "{second}");
    let ended = other.row_of(first.as_str().unwrap_or_default()).await?;
    ensure!(ended["state"] == "cancelled", "{ended}");
    ensure!(
        ended["cancel_reason"].as_str().is_some_and(|why| !why.contains("restarted")),
        "{ended}"
    );
    // The verification of another human was in nobody's way.
    scene.verify(Via::Room(&scene.room)).await?;
    other.unverified().await
}

async fn several_humans_verify_one_bot_at_once(engine: Engine) -> Result<()> {
    let scene = Scene::open(World::shared().await?, engine).await?;
    let (second, third) = tokio::try_join!(
        scene.another_human(Engine::Rust, true),
        scene.another_human(Engine::Js, true),
    )?;
    tokio::try_join!(
        scene.verify(Via::Room(&scene.room)),
        second.verify(Via::Room(&second.room)),
        third.verify(Via::ToDevice(third.device())),
    )?;
    Ok(())
}

async fn one_human_verifies_two_bots_at_once(engine: Engine) -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::open(world, engine).await?;
    let code = world.greenshield.mint_code(scene.human.user_id(), 1)?;
    let username = format!("helper{}", random::suffix());
    let signup = world.greenshield.signup(&code, &username).await?;
    let bot = super::scene::text(&signup, "user_id")?;
    let invite = scene.human.wait_invite(Some(&bot), PATIENCE).await?;
    scene.human.join(&invite.room_id).await?;
    let Scene { human, signup: first, room, .. } = scene;
    let first_bot = super::scene::text(&first, "user_id")?;
    let flows = tokio::try_join!(
        human.request_verification(&first_bot, Via::Room(&room)),
        human.request_verification(&bot, Via::Room(&invite.room_id)),
    )?;
    let verify = async |bot: &str, flow: &str| -> Result<()> {
        human.wait_verification(flow, Phase::Ready, PATIENCE).await?;
        human.start_sas(flow).await?;
        human.wait_verification(flow, Phase::Sas, PATIENCE).await?;
        human.confirm_sas(flow).await?;
        human.wait_verification(flow, Phase::Done, PATIENCE).await?;
        human.wait_user_trust(bot, true, PATIENCE).await.map(drop)
    };
    tokio::try_join!(verify(&first_bot, &flows.0), verify(&bot, &flows.1))?;
    Ok(())
}
