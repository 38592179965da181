//! A wrong sealing key.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::tools::{configure, dump, log};
use crate::{
    fast::scene::Scene,
    support::{poll, random, report},
};

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

    let commands: [&[&str]; 8] = [
        &["migrate"],
        &["codes", "mint", "--inviter", &alice.user_id],
        &["codes", "list"],
        &["codes", "revoke", "1"],
        &["bots", "list"],
        &["bots", "show", &bot.user_id],
        &["bots", "repair", &bot.user_id, "--new-device", "--wait", "1"],
        &["keys", "rotate", "--new-key-file", &new_key],
    ];
    for command in commands {
        let refused = scene.greenshield.run(command);
        let refused =
            refused.err().with_context(|| format!("{command:?} went through"))?.to_string();
        ensure!(refused.contains("does not open this database"), "{command:?}: {refused}");
        ensure!(refused.contains("exit status: 4"), "{command:?}: {refused}");
    }
    scene.greenshield.launch()?;
    poll::until("serve to give up", Duration::from_secs(30), async || {
        let process = scene.greenshield.process().context("it was launched")?;
        Ok((!process.is_running()).then_some(()))
    })
    .await?;
    let said = log(&scene.greenshield)?;
    ensure!(said.contains("does not open this database"), "{said}");
    ensure!(dump(&scene.greenshield)? == before, "something was written");

    // With the right one all is as it was.
    std::fs::write(scene.greenshield.config(), right)?;
    scene.greenshield.start().await?;
    alice.ping(&bot.room).await?;
    let note =
        "refused with exit code 4 and a text that names the cure; a dump before and after is equal";
    report::row("Secrets", "Commands with a wrong sealing key", 9, 0, note);
    Ok(())
}
