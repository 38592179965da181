//! Parts of the world go down and come up again, and nobody has to do anything about it.

use anyhow::{Context as _, Result, ensure};

use super::scene::{Scene, unmarked};
use crate::support::{
    human::{Engine, NewRoom, PATIENCE, Phase, Via},
    world::World,
};

with_both_engines!(a_restart_ends_a_verification_and_the_next_one_works);

async fn a_restart_ends_a_verification_and_the_next_one_works(engine: Engine) -> Result<()> {
    let mut world = World::start().await?;
    let mut parts = Parts::of(Scene::open(&world, engine).await?);
    for to_device in [false, true] {
        let scene = parts.scene(&world);
        let via = scene.via(to_device);
        let before = scene.human.devices(scene.bot()).await?;
        let flow = scene.compare(via).await?;
        parts = Parts::of(scene);

        world.greenshield.kill9().await?;
        world.greenshield.start().await?;

        let scene = parts.scene(&world);
        let end = scene.human.wait_verification(&flow, Phase::Cancelled, PATIENCE).await?;
        ensure!(end.cancel_code.as_deref() == Some("m.user"), "{end:?}");
        scene.wait_row("cancelled").await?;
        scene.same_bot(&before).await?;
        scene.unverified().await?;
        unmarked(&scene.ping().await?)?;
        parts = Parts::of(scene);
    }
    let scene = parts.scene(&world);
    scene.verify(Via::Room(&scene.room)).await
}

/// Devices are not made again, and not even published again: every human's client would notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_changes_no_device() -> Result<()> {
    let mut world = World::start().await?;
    let scene = Scene::open(&world, Engine::Rust).await?;
    unmarked(&scene.ping().await?)?;
    let before = scene.human.devices(scene.bot()).await?;
    let parts = Parts::of(scene);
    world.greenshield.stop().await?;
    let published = publications(&world)?;
    ensure!(!published.is_empty(), "the homeserver's log tells nothing of the signup");

    world.greenshield.start().await?;

    let scene = parts.scene(&world);
    unmarked(&scene.ping().await?)?;
    scene.same_bot(&before).await?;
    let now = publications(&world)?;
    ensure!(now == published, "published again: {:#?}", &now[published.len()..]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_said_while_greenshield_is_down_is_answered() -> Result<()> {
    let mut world = World::start().await?;
    let scene = Scene::open(&world, Engine::Rust).await?;
    // Nobody has talked in this room yet: the key of its first message goes to nobody's ear.
    let new = NewRoom { encrypted: true, invite: &[scene.bot()], ..NewRoom::default() };
    let room = scene.human.create_room(new).await?;
    scene.human.wait_member(&room, scene.bot(), "join", PATIENCE).await?;
    let parts = Parts::of(scene);
    world.greenshield.stop().await?;
    let mut asked = Vec::new();
    for _ in 0..3 {
        asked.push(parts.human.send_text(&room, "!ping").await?);
    }

    world.greenshield.start().await?;

    let scene = parts.scene(&world);
    for asked in asked {
        unmarked(&scene.answer_to(&room, &asked).await?)?;
    }
    unmarked(&scene.ping().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_homeserver_may_go_down_and_come_back() -> Result<()> {
    let mut world = World::start().await?;
    let scene = Scene::open(&world, Engine::Rust).await?;
    unmarked(&scene.ping().await?)?;
    let parts = Parts::of(scene);
    world.synapse.stop().await?;
    world.synapse.start_again().await?;
    let scene = parts.scene(&world);
    unmarked(&scene.ping().await?)?;
    scene.verify(Via::Room(&scene.room)).await
}

/// A scene without its world, while parts of that are stopped.
struct Parts {
    human: Box<dyn crate::support::human::Human>,
    signup: serde_json::Value,
    room: String,
    username: String,
    code: String,
}

impl Parts {
    fn of(scene: Scene<'_>) -> Self {
        let Scene { human, signup, room, username, code, .. } = scene;
        Self { human, signup, room, username, code }
    }

    fn scene(self, world: &World) -> Scene<'_> {
        let Self { human, signup, room, username, code } = self;
        Scene { world, human, signup, room, username, code }
    }
}

impl Scene<'_> {
    fn via(&self, to_device: bool) -> Via<'_> {
        if to_device { Via::ToDevice(self.device()) } else { Via::Room(&self.room) }
    }

    /// The bot has the identity of its signup, and the one device that it had before.
    async fn same_bot(&self, before: &[crate::support::human::Device]) -> Result<()> {
        let trust = self.human.user_trust(self.bot()).await?;
        ensure!(trust.msk.as_deref() == self.signup["msk_public"].as_str(), "{trust:?}");
        let now = self.human.devices(self.bot()).await?;
        let keys = |devices: &[crate::support::human::Device]| -> Vec<_> {
            devices.iter().map(|d| (d.device_id.clone(), d.ed25519.clone())).collect()
        };
        ensure!(now.len() == 1 && keys(&now) == keys(before), "{before:?} {now:?}");
        Ok(())
    }
}

/// What the homeserver's log tells of devices made and keys published by application services.
fn publications(world: &World) -> Result<Vec<String>> {
    let log = std::fs::read_to_string(world.synapse.log()).context("Synapse's log")?;
    let published = log.lines().filter(|line| {
        line.contains("user_id=%40bot_")
            && ["PUT /_matrix/client/v3/devices", "/keys/upload", "/keys/device_signing/upload"]
                .iter()
                .any(|request| line.contains(request))
    });
    Ok(published.map(ToOwned::to_owned).collect())
}
