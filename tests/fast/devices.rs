//! Devices that come and go.

use anyhow::{Result, ensure};

use super::scene::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_can_read_the_next_answer() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let before = alice.ping(&bot.room).await?;
    let phone = alice.another_device("PHONE").await?;
    scene.settled().await?;
    let asked = alice.say(&bot.room, "!ping").await?;
    let answer = phone.answer_to(&bot.room, &asked).await?;
    ensure!(answer.session_id == before.session_id, "the session went on, {answer:?}");
    let read = phone.read(&bot.room).await?;
    ensure!(read.len() == 1, "what was said before it was there is not for it: {read:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_gone_means_a_new_key() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let phone = alice.another_device("PHONE").await?;
    let before = alice.ping(&bot.room).await?;
    scene.settled().await?;
    scene.fake.remove_device(&alice.user_id, &phone.device_id);
    scene.settled().await?;
    let after = alice.ping(&bot.room).await?;
    ensure!(after.session_id != before.session_id, "{after:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_forgotten_and_comes_back_is_known_anew() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    alice.ping(&bot.room).await?;
    scene.fake.leave(&bot.room, &alice.user_id);
    scene.settled().await?;
    // A room of which not all is known could be anybody's: it is asked about first.
    sqlx::query("UPDATE rooms SET members_complete = FALSE, version = version + 1")
        .execute(&scene.sql)
        .await?;
    scene.forget_strangers(&bot).await?;
    let known = "SELECT CONCAT_WS(' ',
        (SELECT COUNT(*) FROM crypto_tracked_users WHERE user_id = $1),
        (SELECT COUNT(*) FROM crypto_devices WHERE user_id = $1),
        (SELECT COUNT(*) FROM crypto_identities WHERE user_id = $1))";
    let alices = alice.user_id.as_str();
    ensure!(scene.wait_text("the count", known, alices).await? == "0 0 0");

    alice.another_device("PHONE").await?;
    alice.join(&bot.room).await?;
    alice.ping(&bot.room).await?;
    ensure!(scene.wait_text("the count", known, alices).await? == "1 2 1");
    Ok(())
}
