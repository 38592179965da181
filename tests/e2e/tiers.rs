//! The three tiers, as a human sees them, with both engines.

use anyhow::{Result, ensure};

use super::scene::{Scene, reads, text, unmarked};
use crate::support::{
    human::{Engine, PATIENCE, Via},
    world::World,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_reads_answers_and_turns_green_for_rust() -> Result<()> {
    tiers(Engine::Rust).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_reads_answers_and_turns_green_for_js() -> Result<()> {
    tiers(Engine::Js).await
}

async fn tiers(engine: Engine) -> Result<()> {
    let world = World::shared().await?;
    let scene = Scene::open(world, engine).await?;

    // A: the intro and the answer decrypt.
    let intro = text(&scene.signup, "intro_text")?;
    let first = scene.human.wait_message(&scene.room, scene.bot(), Some(&intro), PATIENCE).await?;
    ensure!(first.encrypted && first.event_id == scene.signup["proof"]["event_id"], "{first:?}");
    let answer = scene.ping().await?;

    // B: no warning beside them.
    reads(&*scene.human, &scene.room, &first.event_id).await?;
    unmarked(&answer)?;
    let token = text(&scene.signup, "access_token")?;
    let identity = world.greenshield.crosssign(&token).await?;
    ensure!(identity["device_signed"] == true, "{identity}");
    ensure!(identity["msk_public"] == scene.signup["msk_public"], "{identity}");
    let devices = scene.human.devices(scene.bot()).await?;
    ensure!(devices.len() == 1 && devices[0].signed_by_owner, "{devices:?}");
    ensure!(!scene.human.user_trust(scene.bot()).await?.verified, "verified too early");

    // C: the emoji agree, and the shield is green.
    scene.verify(Via::Room(&scene.room)).await?;
    unmarked(&scene.ping().await?)?;
    ensure!(scene.human.utd_events(&scene.room).await?.is_empty());
    Ok(())
}
