//! A wrong sealing key.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::tools::{configure, dump, log};
use crate::{
    fast::scene::Scene,
    support::{poll, random, report},
};

/// A migration that does no harm when it is done again: 20261126000200_room_settings.
const AGAIN: i64 = 20_261_126_000_200;

#[tokio::test(flavor = "multi_thread")]
async fn with_a_wrong_sealing_key_nothing_is_started_and_nothing_written() -> Result<()> {
    let (mut scene, alice, bot) = Scene::with_bot().await?;
    alice.ping(&bot.room).await?;
    scene.settled().await?;
    scene.greenshield.stop().await?;
    let right = std::fs::read(scene.greenshield.config())?;
    let new_key = scene.greenshield.config().with_file_name("new.key");
    std::fs::write(&new_key, random::secret())?;
    let new_key = new_key.display().to_string();
    configure(&scene.greenshield, |config| config["sealing"]["key"] = random::secret().into())?;
    let before = dump(&scene.greenshield)?;
    ensure!(before.contains(&bot.user_id), "the dump holds rows");

    let migrating: [&[&str]; 3] = [&["migrate"], &["restored"], &["restored", "--nothing-lost"]];
    let others: [&[&str]; 9] = [
        &["doctor"],
        &["doctor", "--json"],
        &["codes", "mint", "--inviter", &alice.user_id],
        &["codes", "list"],
        &["codes", "revoke", "1"],
        &["bots", "list"],
        &["bots", "show", &bot.user_id],
        &["bots", "repair", &bot.user_id, "--new-device", "--wait", "1"],
        &["keys", "rotate", "--new-key-file", &new_key],
    ];
    for command in migrating.iter().chain(&others) {
        refused(&scene, command)?;
    }
    serve_gives_up(&mut scene).await?;
    ensure!(dump(&scene.greenshield)? == before, "something was written");

    // What migrates first does not do so, either: the key is tried before.
    let sql = "DELETE FROM _sqlx_migrations WHERE version = $1";
    let pending = sqlx::query(sql).bind(AGAIN).execute(&scene.sql).await?;
    ensure!(pending.rows_affected() == 1, "there is a migration to be done again");
    let before = dump(&scene.greenshield)?;
    for command in migrating {
        refused(&scene, command)?;
    }
    serve_gives_up(&mut scene).await?;
    ensure!(dump(&scene.greenshield)? == before, "something was written");

    // With the right one all is as it was.
    std::fs::write(scene.greenshield.config(), right)?;
    scene.greenshield.start().await?;
    let sql = "SELECT success FROM _sqlx_migrations WHERE version = $1";
    let done: bool = sqlx::query_scalar(sql).bind(AGAIN).fetch_one(&scene.sql).await?;
    ensure!(done, "the migration was pending");
    alice.ping(&bot.room).await?;
    let note = "refused with exit code 4 and a text that names the cure, a migration pending or not; a \
                dump before and after is equal";
    let tried = 2 * (migrating.len() + 1) + others.len();
    report::row("Secrets", "Commands with a wrong sealing key", tried as u64, 0, note);
    Ok(())
}

fn refused(scene: &Scene, command: &[&str]) -> Result<()> {
    let refused = scene.greenshield.run(command);
    let refused = refused.err().with_context(|| format!("{command:?} went through"))?.to_string();
    ensure!(refused.contains("does not open this database"), "{command:?}: {refused}");
    ensure!(refused.contains("exit status: 4"), "{command:?}: {refused}");
    Ok(())
}

async fn serve_gives_up(scene: &mut Scene) -> Result<()> {
    let before = log(&scene.greenshield)?.len();
    scene.greenshield.launch()?;
    poll::until("serve to give up", Duration::from_secs(30), async || {
        let process = scene.greenshield.process().context("it was launched")?;
        Ok((!process.is_running()).then_some(()))
    })
    .await?;
    let said = log(&scene.greenshield)?;
    let said = said.get(before..).context("the log only grows")?;
    ensure!(said.contains("does not open this database"), "{said}");
    Ok(())
}
