//! Direct rooms that humans open: the bot is only invited when they begin to talk.

use anyhow::{Result, ensure};

use super::scene::{Scene, unmarked};
use crate::support::{
    human::{Engine, PATIENCE, Via},
    world::World,
};

with_both_engines!(
    verify_is_clicked_before_the_bot_has_joined,
    a_message_from_before_the_bot_joined_is_answered,
    an_unencrypted_room_stays_in_the_clear,
);

async fn verify_is_clicked_before_the_bot_has_joined(engine: Engine) -> Result<()> {
    // The bot is somebody else's: matrix-rust-sdk would ask in the room that the bot opened.
    let owner = Scene::open(World::shared().await?, Engine::Rust).await?;
    let scene = owner.another_human(engine, true).await?;
    scene.verify(Via::Room(&scene.room)).await?;
    unmarked(&scene.ping().await?)
}

async fn a_message_from_before_the_bot_joined_is_answered(engine: Engine) -> Result<()> {
    let owner = Scene::open(World::shared().await?, Engine::Rust).await?;
    let scene = owner.another_human(engine, true).await?;
    unmarked(&scene.ping().await?)
}

async fn an_unencrypted_room_stays_in_the_clear(engine: Engine) -> Result<()> {
    let owner = Scene::open(World::shared().await?, Engine::Rust).await?;
    let scene = owner.another_human(engine, false).await?;
    scene.human.wait_member(&scene.room, scene.bot(), "join", PATIENCE).await?;
    scene.human.send_text(&scene.room, "!ping").await?;
    let answer = scene.human.wait_message(&scene.room, scene.bot(), Some("pong"), PATIENCE).await?;
    ensure!(!answer.encrypted, "{answer:?}");
    scene.verify(Via::Room(&scene.room)).await
}
