//! What comes while greenshield is dead, and what the homeserver forgets of it.

use anyhow::{Result, ensure};

use crate::{
    fast::scene::{PATIENCE, Scene},
    support::{fake_homeserver::End, poll},
};

/// It was alive a moment ago, by its row; by its lock it is dead, so what was lost is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_verification_that_was_asked_for_while_it_was_dead_is_taken_up() -> Result<()> {
    let (mut scene, alice, bot) = Scene::with_bot().await?;
    alice.ping(&bot.room).await?;
    scene.settled().await?;
    scene.fake.forget_like_synapse();
    scene.greenshield.kill9().await?;
    let (end, back) = tokio::join!(alice.verify(&bot.user_id, &bot.device_id), async {
        poll::until("the request to be forgotten", PATIENCE, async || {
            Ok((scene.fake.refused() > 0).then_some(()))
        })
        .await?;
        scene.greenshield.start().await
    });
    back?;
    ensure!(end? == End::Done);
    Ok(())
}
