//! What comes while greenshield is dead, and what the homeserver forgets of it.

use anyhow::{Result, ensure};

use crate::{
    fast::scene::{PATIENCE, Scene},
    support::{fake_homeserver::End, poll, report},
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

/// A transaction that comes again brings no changes of devices, so after an absence none is believed.
#[tokio::test(flavor = "multi_thread")]
async fn a_phone_that_was_added_while_it_was_dead_reads_the_next_answer() -> Result<()> {
    let (mut scene, alice, bot) = Scene::with_bot().await?;
    alice.ping(&bot.room).await?;
    scene.settled().await?;
    scene.fake.forget_like_synapse();
    scene.greenshield.kill9().await?;
    let phone = alice.another_device("PHONE").await?;
    poll::until("the change to be forgotten", PATIENCE, async || {
        Ok((scene.fake.refused() > 0).then_some(()))
    })
    .await?;
    scene.greenshield.start().await?;
    let asked = alice.say(&bot.room, "!ping").await?;
    phone.answer_to(&bot.room, &asked).await?;
    report::row(
        "Outages of the homeserver",
        "A device added while greenshield was dead",
        1,
        0,
        "its change was forgotten with the refused transaction; it read the next answer",
    );
    Ok(())
}
