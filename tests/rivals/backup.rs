//! A dump of the database is restored, when the fleet has gone on since.

use anyhow::{Context as _, Result, ensure};
use sqlx::PgPool;

use super::quiet;
use crate::{
    e2e::scene::{Scene as RealScene, text, unmarked},
    fast::scene::{Bot, PATIENCE, Scene},
    support::{
        fake_homeserver::Person,
        greenshield::Greenshield,
        human::{Engine, Via},
        poll,
        postgres::{self, Database},
        report,
        scratch::Scratch,
        world::World,
    },
};

const COUNTS: &str = "org.matrix.msc3202.device_one_time_keys_count";

/// A database that is restored although its bots have gone on.
struct Restored {
    scene: Scene,
    alice: Person,
    bot: Bot,
    database: Database,
    sql: PgPool,
}

impl Restored {
    async fn open() -> Result<Self> {
        let (mut scene, alice, bot) = Scene::with_bot().await?;
        alice.ping(&bot.room).await?;
        quiet(&scene).await?;
        let dir = Scratch::new("dump")?;
        let dump = dir.path().join("dump");
        postgres::dump(&scene.database, &dump)?;

        // All this is forgotten: messages with the same room key, Olm sessions, one-time keys.
        for _ in 0..3 {
            alice.ping(&bot.room).await?;
        }
        let pool = scene.fake.one_time_keys(&bot.user_id, &bot.device_id);
        let carol = Person::new(&scene.fake, "carol").await?;
        carol.join(&bot.room).await?;
        carol.ping(&bot.room).await?;
        let uploads = scene.fake.calls("/keys/upload").len();
        let left = scene.fake.one_time_keys(&bot.user_id, &bot.device_id);
        ensure!(left < pool, "carol has taken no one-time key");
        // So few are left that it makes others.
        tell_count(&scene, &bot, "before", 20).await?;
        poll::until("new one-time keys", PATIENCE, async || {
            Ok((scene.fake.calls("/keys/upload").len() > uploads).then_some(()))
        })
        .await?;
        quiet(&scene).await?;
        scene.greenshield.stop().await?;

        let database = Database::create().await?;
        postgres::restore(&dump, &database.url())?;
        let url = database.url();
        scene.greenshield.configure(|config| config["database"]["url"] = url.as_str().into())?;
        let sql = database.pool().await?;
        Ok(Self { scene, alice, bot, database, sql })
    }

    /// How many ratchet positions were used for two messages, of this kind.
    fn used_twice(&self, kind: &str) -> Result<Vec<String>> {
        let mut used = self.scene.fake.ratchets()?.used_twice;
        used.retain(|position| position.starts_with(kind));
        Ok(used)
    }

    async fn device(&self) -> Result<String> {
        let device = sqlx::query_scalar("SELECT device_id FROM bots WHERE user_id = $1");
        Ok(device.bind(&self.bot.user_id).fetch_one(&self.sql).await?)
    }

    /// The bot has a new device under its old identity, and both people can talk with it.
    async fn is_whole_on_a_new_device(&self) -> Result<()> {
        poll::until("a new device", PATIENCE, async || {
            let new = self.device().await? != self.bot.device_id;
            let open: i64 =
                sqlx::query_scalar("SELECT COUNT(*) FROM repairs WHERE finished_at IS NULL")
                    .fetch_one(&self.sql)
                    .await?;
            Ok((new && open == 0).then_some(()))
        })
        .await?;
        let answer = self.alice.ping(&self.bot.room).await?;
        ensure!(answer.shield == "None", "{answer:?}");
        let masters = self.scene.fake.masters(&self.bot.user_id);
        ensure!(masters.len() == 1, "{masters:?}");
        let unsigned = self.scene.fake.unsigned();
        ensure!(unsigned.is_empty(), "{unsigned:?}");
        Ok(())
    }
}

async fn tell_count(scene: &Scene, bot: &Bot, id: &str, left: u64) -> Result<()> {
    let counts = bot.map(serde_json::json!({ "signed_curve25519": left }));
    let told = scene.fake.transaction(id, &serde_json::json!({ COUNTS: counts })).await?;
    ensure!(told.0 == 200, "{told:?}");
    Ok(())
}

/// `serve` is started, and ends by itself; what it said.
async fn refuses(greenshield: &mut Greenshield) -> Result<String> {
    greenshield.launch()?;
    poll::until("serve to refuse", PATIENCE, async || {
        let process = greenshield.process().context("it was started")?;
        Ok((!process.is_running()).then(|| process.log_tail()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_dump_is_served_on_new_devices_and_no_ratchet_goes_back() -> Result<()> {
    let mut restored = Restored::open().await?;
    let said = refuses(&mut restored.scene.greenshield).await?;
    ensure!(said.contains("run `greenshield restored`"), "{said}");
    let doctor = restored.scene.greenshield.run(&["doctor"]);
    let doctor = doctor.expect_err("a restored copy is no healthy database").to_string();
    ensure!(doctor.contains("FAIL   place"), "{doctor}");
    let calls = restored.scene.fake.calls("").len();

    let printed = restored.scene.greenshield.run(&["restored"])?;
    ensure!(printed.contains("once `greenshield serve` runs: 1."), "{printed}");
    ensure!(restored.scene.fake.calls("").len() == calls, "something was sent before serve runs");
    restored.scene.greenshield.start().await?;
    restored.is_whole_on_a_new_device().await?;
    let used = restored.used_twice("")?;
    ensure!(used.is_empty(), "{used:?}");

    // Somebody who knows only the new device.
    let dave = Person::new(&restored.scene.fake, "dave").await?;
    dave.join(&restored.bot.room).await?;
    dave.ping(&restored.bot.room).await?;
    restored.scene.greenshield.restart().await?;
    restored.alice.ping(&restored.bot.room).await?;
    let used = restored.used_twice("")?;
    ensure!(used.is_empty(), "{used:?}");
    let ratchets = restored.scene.fake.ratchets()?;
    let note = format!(
        "A pg_dump was restored after its bots had gone on: `serve` refused it until `greenshield restored` was run, every bot got a new device under its identity, and of {} Megolm and {} Olm positions none was used twice.",
        ratchets.megolm, ratchets.olm
    );
    report::row("Backup", "pg_dump and pg_restore of an older state", 1, 0, &note);
    drop(restored.database);
    Ok(())
}

/// Said in error: what was lost shows, and is healed without anybody; room keys do not go back even so.
#[tokio::test(flavor = "multi_thread")]
async fn even_if_somebody_says_that_nothing_was_lost_no_room_key_goes_back() -> Result<()> {
    let mut restored = Restored::open().await?;
    restored.scene.greenshield.run(&["restored", "--nothing-lost"])?;
    restored.scene.greenshield.start().await?;
    ensure!(restored.device().await? == restored.bot.device_id, "it keeps its device");
    // The homeserver tells that there are few, and holds others under the next ids.
    tell_count(&restored.scene, &restored.bot, "after", 20).await?;
    restored.is_whole_on_a_new_device().await?;
    let used = restored.used_twice("megolm")?;
    ensure!(used.is_empty(), "{used:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_greenshield_that_still_runs_is_noticed() -> Result<()> {
    let (scene, _alice, _bot) = Scene::with_bot().await?;
    let dir = Scratch::new("dump")?;
    let dump = dir.path().join("dump");
    postgres::dump(&scene.database, &dump)?;
    let database = Database::create().await?;
    postgres::restore(&dump, &database.url())?;
    let copy = scene.greenshield.beside(&database.url())?;
    let refused = copy.run(&["restored"]).expect_err("the original still runs").to_string();
    ensure!(refused.contains("still runs"), "{refused}");
    Ok(())
}

/// With a human who has verified the bot.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_nobody_has_to_verify_again() -> Result<()> {
    let mut world = World::start().await?;
    let scene = RealScene::open(&world, Engine::Rust).await?;
    unmarked(&scene.ping().await?)?;
    scene.verify(Via::Room(&scene.room)).await?;
    let dir = Scratch::new("dump")?;
    let dump = dir.path().join("dump");
    postgres::dump(&world.postgres.url(), &dump)?;
    for _ in 0..3 {
        unmarked(&scene.ping().await?)?;
    }
    let RealScene { human, signup, room, username, code, .. } = scene;
    world.greenshield.stop().await?;
    let database = Database::create().await?;
    postgres::restore(&dump, &database.url())?;
    let url = database.url();
    world.greenshield.configure(|config| config["database"]["url"] = url.as_str().into())?;
    world.postgres = database;
    world.greenshield.run(&["restored"])?;
    world.greenshield.start().await?;

    let scene = RealScene { world: &world, human, signup, room, username, code };
    let device = poll::until("a new device", PATIENCE, async || {
        let devices = scene.human.devices(scene.bot()).await?;
        Ok(devices.into_iter().find(|device| device.device_id != scene.device()))
    })
    .await?;
    ensure!(device.signed_by_owner, "{device:?}");
    unmarked(&scene.ping().await?)?;
    let trust = scene.human.user_trust(scene.bot()).await?;
    ensure!(trust.verified, "{trust:?}");
    ensure!(trust.msk.as_deref() == Some(&text(&scene.signup, "msk_public")?), "{trust:?}");
    ensure!(scene.human.utd_events(&scene.room).await?.is_empty());
    report::row(
        "Backup",
        "the same with a real Synapse and a human who had verified the bot",
        1,
        0,
        "The human's client still counts the bot as verified, and shows no mark beside what it says.",
    );
    Ok(())
}
