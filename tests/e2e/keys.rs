//! The sealing key is changed while greenshield runs.

use std::fs;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::scene::{Scene, unmarked};
use crate::support::{human::Engine, random, world::World};

#[tokio::test(flavor = "multi_thread")]
async fn the_sealing_key_can_be_changed_while_bots_talk() -> Result<()> {
    let mut world = World::start().await?;
    let scene = Scene::open(&world, Engine::Rust).await?;
    unmarked(&scene.ping().await?)?;
    let config = world.greenshield.config().to_owned();
    let key = config.with_file_name("new.key");
    fs::write(&key, format!("{}\n", random::secret()))?;
    let path = key.display().to_string();
    let printed = world.greenshield.run(&["keys", "rotate", "--new-key-file", &path])?;
    ensure!(printed.contains("sealing.key_file") && printed.contains(&path), "{printed}");
    unmarked(&scene.ping().await?)?;

    let refused = world.greenshield.run(&["bots", "list"]).expect_err("the old key opens it");
    let refused = refused.to_string();
    ensure!(refused.contains("does not open this database"), "{refused}");
    ensure!(refused.contains("exit status: 4"), "{refused}");
    let mut changed: Value = serde_yaml::from_str(&fs::read_to_string(&config)?)?;
    changed["sealing"] = json!({ "key_file": path });
    fs::write(&config, serde_yaml::to_string(&changed)?)?;
    let listed = world.greenshield.run(&["bots", "list", "--json"])?;
    let listed: Value = serde_json::from_str(&listed)?;
    ensure!(listed[0]["user_id"] == scene.bot() && listed[0]["state"] == "active", "{listed}");
    let shown = world.greenshield.run(&["bots", "show", scene.bot()])?;
    ensure!(shown.contains("fingerprint") && shown.contains(scene.device()), "{shown}");

    let Scene { human, signup, room, username, code, .. } = scene;
    world.greenshield.restart().await?;
    let scene = Scene { world: &world, human, signup, room, username, code };
    unmarked(&scene.ping().await?)
}
