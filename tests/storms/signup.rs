//! SIGKILL at any write of a signup. Its calls are broken off in `fast::signup`.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::{
    fast::{
        scene::{Bot, Scene, sign_up},
        signup::whole,
    },
    support::{
        fake_homeserver::Person,
        hold::{Fate, Holds, Moment},
        report,
    },
};

/// A signup has more than so many writes and commits of rows, in all tables.
const WRITES: u32 = 60;

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_write_of_a_signup_changes_nothing() -> Result<()> {
    let mut dice = StdRng::seed_from_u64(report::seed("signup"));
    let mut scene = Scene::start().await?;
    let mut holds = Holds::install(&scene.database).await?;
    let alice = Person::new(&scene.fake, "alice").await?;
    let until = Instant::now() + report::budget(0.06, Duration::ZERO);
    let mut kills = 0;
    while kills < 6 || Instant::now() < until {
        let skip = dice.random_range(0..WRITES);
        let (moment, fate) = if dice.random() {
            (Moment::Statement, Fate::Dies)
        } else {
            (Moment::Commit, Fate::Goes)
        };
        let name = format!("crash{kills}");
        let bot = killed(&mut scene, &mut holds, &alice, &name, (skip, moment, fate)).await;
        let bot = bot.with_context(|| format!("{moment:?} {skip}, which {fate:?}"))?;
        ensure!(scene.fake.devices(&bot.user_id) == std::slice::from_ref(&bot.device_id));
        kills += 1;
    }
    let ratchets = scene.fake.ratchets()?;
    ensure!(ratchets.used_twice.is_empty(), "{ratchets:?}");
    let note = "one device, one identity, one room, one introduction, the same token";
    report::row("Crashes", "SIGKILL at a random write of a signup", kills, 0, note);
    Ok(())
}

async fn killed(
    scene: &mut Scene,
    holds: &mut Holds,
    alice: &Person,
    name: &str,
    (skip, moment, fate): (u32, Moment, Fate),
) -> Result<Bot> {
    let code = scene.greenshield.mint_code(&alice.user_id, 1)?;
    holds.arm(None, skip, moment).await?;
    let url = scene.greenshield.public_url();
    let (_, crash) = tokio::join!(sign_up(&url, &code, name, Some("key")), async {
        let reached = holds.reached(Duration::from_secs(20)).await?;
        scene.greenshield.kill9().await?;
        holds.let_go(fate).await?;
        anyhow::Ok(reached)
    });
    ensure!(crash?, "there was no such write");
    scene.greenshield.start().await?;
    let (status, answer) = scene.sign_up(&code, name, Some("key")).await?;
    ensure!(status == 200, "{status} {answer}");
    let again = scene.sign_up(&code, name, Some("key")).await?;
    ensure!(again == (status, answer.clone()), "{again:?} is not {answer}");
    let bot = Bot::of(answer)?;
    whole(scene, &bot)?;
    alice.join(&bot.room).await?;
    let intro = bot.signup["intro_text"].as_str().unwrap_or_default();
    let read = alice.read(&bot.room).await?;
    ensure!(read.iter().filter(|read| read.body == intro).count() == 1, "{read:?}");
    ensure!(alice.ping(&bot.room).await?.shield == "None");
    Ok(bot)
}
