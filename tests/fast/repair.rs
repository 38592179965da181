//! Damaged rows that `bots repair` drops, and an identity that no repair may cost.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sqlx::AssertSqlSafe;

use super::scene::{Bot, Scene};

fn repair(scene: &Scene, bot: &Bot, more: &[&str]) -> Result<Value> {
    let printed =
        scene.greenshield.run(&[&["bots", "repair", &bot.user_id, "--json"], more].concat())?;
    serde_json::from_str(&printed).with_context(|| printed)
}

async fn execute(scene: &Scene, sql: &str) -> Result<u64> {
    let done = sqlx::query(AssertSqlSafe(sql.to_owned())).execute(&scene.sql).await?;
    Ok(done.rows_affected())
}

/// How much of the bot is there: its device, its account, its private identity in the machine's store,
/// how many of its rows are sealed in earnest.
async fn there(scene: &Scene) -> Result<String> {
    let sql = "SELECT CONCAT_WS(' ', (SELECT device_id FROM bots),
        (SELECT COUNT(*) FROM crypto_accounts),
        (SELECT COUNT(*) FROM crypto_values
            WHERE name = 'private_identity' AND OCTET_LENGTH(sealed_value) > 1),
        (SELECT COUNT(*) FROM bot_identities WHERE OCTET_LENGTH(sealed_secrets) > 1))";
    Ok(sqlx::query_scalar(sql).fetch_one(&scene.sql).await?)
}

const DAMAGE_KEPT: &str = "UPDATE bot_identities SET sealed_secrets = '\\x00'";
const DAMAGE_VALUES: &str = "UPDATE crypto_values SET sealed_value = '\\x00'";

#[tokio::test(flavor = "multi_thread")]
async fn bots_repair_drops_damaged_rows_and_brings_the_private_identity_back() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let whole = there(&scene).await?;
    // The second is one that nothing but a rare message asks for.
    ensure!(execute(&scene, DAMAGE_VALUES).await? > 0);
    execute(
        &scene,
        "INSERT INTO crypto_withheld_sessions (bot_id, room_id, session_id, sealed_entry, created_at)
        SELECT bot_id, '!r', 's', '\\x00', NOW() FROM bots",
    )
    .await?;
    let repaired = repair(&scene, &bot, &[])?;
    ensure!(repaired["outcome"] == "healed", "{repaired}");
    let left: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM crypto_withheld_sessions")
        .fetch_one(&scene.sql)
        .await?;
    ensure!(left == 0, "the damaged row is still there");
    ensure!(there(&scene).await? == whole, "{}", there(&scene).await?);
    ensure!(repair(&scene, &bot, &[])?["outcome"] == "healthy", "a second repair finds more to do");
    alice.ping(&bot.room).await?;
    ensure!(scene.fake.masters(&bot.user_id).len() == 1, "another identity");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_identity_is_mended_from_the_machine_before_the_device_is_given_up() -> Result<()>
{
    let (scene, alice, bot) = Scene::with_bot().await?;
    for _ in 0..2 {
        // The second time it is the mended copy that the new device was signed with.
        ensure!(execute(&scene, DAMAGE_KEPT).await? == 1);
        let repaired = repair(&scene, &bot, &["--new-device"])?;
        ensure!(repaired["outcome"] == "new_device", "{repaired}");
        let device = repaired["device_id"].as_str().unwrap_or_default();
        ensure!(there(&scene).await? == format!("{device} 1 1 1"), "{}", there(&scene).await?);
        alice.ping(&bot.room).await?;
    }
    ensure!(scene.fake.masters(&bot.user_id).len() == 1, "another identity");
    ensure!(scene.fake.unsigned().is_empty(), "an unsigned device");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_repair_gives_the_last_copy_of_an_identity_up() -> Result<()> {
    let (mut scene, alice, bot) = Scene::with_bot().await?;
    let refused = |scene: &Scene, more: &[&str]| -> Result<()> {
        let refused = repair(scene, &bot, more).expect_err("there is nothing to sign with");
        let refused = refused.to_string();
        ensure!(refused.contains("`bot_identities` is damaged"), "{refused}");
        ensure!(refused.contains("nothing was changed"), "{refused}");
        Ok(())
    };
    let kept: Vec<u8> = sqlx::query_scalar("SELECT sealed_secrets FROM bot_identities")
        .fetch_one(&scene.sql)
        .await?;

    // Both copies: the bot goes on with the device that it has.
    scene.greenshield.stop().await?;
    execute(&scene, DAMAGE_KEPT).await?;
    execute(&scene, DAMAGE_VALUES).await?;
    scene.greenshield.start().await?;
    refused(&scene, &["--new-device"])?;
    ensure!(there(&scene).await? == format!("{} 1 0 0", bot.device_id), "{}", there(&scene).await?);
    alice.ping(&bot.room).await?;
    ensure!(scene.fake.masters(&bot.user_id).len() == 1, "another identity");
    sqlx::query("UPDATE bot_identities SET sealed_secrets = $1")
        .bind(&kept)
        .execute(&scene.sql)
        .await?;
    ensure!(repair(&scene, &bot, &[])?["outcome"] == "healed");

    // The account and the kept copy: what is left in the crypto store stays there.
    scene.settled().await?;
    scene.greenshield.stop().await?;
    let whole = there(&scene).await?;
    ensure!(whole == format!("{} 1 1 1", bot.device_id), "{whole}");
    execute(&scene, DAMAGE_KEPT).await?;
    execute(&scene, "UPDATE crypto_accounts SET sealed_account = '\\x00'").await?;
    scene.greenshield.start().await?;
    refused(&scene, &[])?;
    ensure!(there(&scene).await? == format!("{} 1 1 0", bot.device_id), "{}", there(&scene).await?);
    sqlx::query("UPDATE bot_identities SET sealed_secrets = $1")
        .bind(&kept)
        .execute(&scene.sql)
        .await?;
    ensure!(repair(&scene, &bot, &[])?["outcome"] == "new_device");
    alice.ping(&bot.room).await?;
    ensure!(scene.fake.masters(&bot.user_id).len() == 1, "another identity");
    ensure!(scene.fake.unsigned().is_empty(), "an unsigned device");
    Ok(())
}
