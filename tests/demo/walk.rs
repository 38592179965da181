//! The walk: raising the world, one `POST`, and the three tiers with the human's eyes.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    scene::{Scene, reads, text, unmarked},
    support::{
        greenshield::Greenshield,
        human::{Engine, LoginOptions, PATIENCE, Phase, Via},
        postgres::Database,
        random,
        synapse::{Credentials, Synapse},
        world::World,
    },
    telling::Telling,
};

/// A homeserver, a database, and greenshield between them.
pub async fn raise(telling: &Telling) -> Result<World> {
    telling.part("0", "A world of its own");
    let postgres = Database::create().await?;
    telling.done("a database");
    let mut synapse = Synapse::prepare()?;
    let mut greenshield = Greenshield::install(&synapse.url(), &postgres.url())?;
    telling.done("`greenshield registration` wrote the file for the homeserver");
    synapse.start(&[&greenshield.registration()]).await?;
    telling.done(&format!("Synapse runs at {}", synapse.url()));
    greenshield.start().await?;
    telling.done(&format!("greenshield runs at {}", greenshield.public_url()));
    Ok(World { greenshield, synapse, postgres })
}

/// Signs a bot up, and tells the tiers as they come true; fails at the first that does not.
pub async fn walk<'w>(
    world: &'w World,
    engine: Engine,
    telling: &Telling,
) -> Result<(Scene<'w>, Credentials)> {
    let account = world.synapse.register_human("alice").await?;
    let human = engine.log_in(&account, LoginOptions::default()).await?;
    telling.done(&format!("a human is logged in: {}", account.user_id));
    let code = world.greenshield.mint_code(&account.user_id, 1)?;
    telling.done("`greenshield codes mint` made a signup code");

    telling.part("1", "One POST makes a bot");
    let username = format!("helper{}", random::suffix());
    let body = json!({ "code": code, "username": username });
    telling.detail("POST", &format!("{}/signup/api", world.greenshield.public_url()));
    telling.detail("", &body.to_string());
    let signup = world.greenshield.post("/signup/api", &body).await.context("signing up")?;
    telling.done(&text(&signup, "user_id")?);
    telling.detail("device", &text(&signup, "device_id")?);
    telling.detail("steps", &steps(&signup["steps"]));

    let bot = text(&signup, "user_id")?;
    let invite = human.wait_invite(Some(&bot), PATIENCE).await?;
    ensure!(invite.is_direct && invite.encrypted, "the direct room is another: {invite:?}");
    human.join(&invite.room_id).await?;
    telling.done("the human accepts the invitation to the encrypted direct room");
    let scene = Scene { world, human, signup, room: invite.room_id, username, code };

    reads_and_answers(&scene, telling).await.context("tier A")?;
    verify(&scene, telling).await.context("tier C")?;
    Ok((scene, account))
}

fn steps(steps: &Value) -> String {
    let steps = steps.as_object().into_iter().flatten();
    let done = steps.filter(|(_, done)| **done != json!(false) && **done != json!([]));
    done.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ")
}

/// Tiers A and B: two messages decrypt, and nothing stands beside them.
async fn reads_and_answers(scene: &Scene<'_>, telling: &Telling) -> Result<()> {
    telling.part("A", "The bot reads and answers, encrypted, with no program of its owner");
    let intro = text(&scene.signup, "intro_text")?;
    let first = scene.human.wait_message(&scene.room, scene.bot(), Some(&intro), PATIENCE).await?;
    let proof = &scene.signup["proof"];
    ensure!(first.encrypted && first.decrypted, "not encrypted: {first:?}");
    ensure!(proof["event_id"] == first.event_id.as_str(), "{proof} {first:?}");
    telling.done("its first message decrypts");
    telling.detail("text", &intro);
    telling.detail("event", &first.event_id);
    telling.detail(
        "room key",
        &format!("{}, {} device(s)", text(proof, "session_id")?, proof["devices"]),
    );
    let answer = scene.ping().await?;
    telling.done("!ping is answered with pong");
    telling.detail("event", &answer.event_id);

    telling.part("B", "No warning \"encrypted by a device not verified by its owner\"");
    let read = reads(&*scene.human, &scene.room, &first.event_id).await;
    read.context("the first message is marked")?;
    unmarked(&answer).context("the answer is marked")?;
    telling.done("the human's client shows no mark beside either message");
    let identity = scene.world.greenshield.crosssign(&text(&scene.signup, "access_token")?).await?;
    ensure!(identity["msk_public"] == scene.signup["msk_public"], "another identity: {identity}");
    let devices = scene.human.devices(scene.bot()).await?;
    ensure!(devices.len() == 1 && devices[0].signed_by_owner, "not signed: {devices:?}");
    telling.done("its one device is signed by its identity");
    telling.detail("fingerprint", &text(&identity, "fingerprint")?);
    let trust = scene.human.user_trust(scene.bot()).await?;
    ensure!(!trust.verified, "verified before anybody has compared anything: {trust:?}");
    Ok(())
}

/// Tier C: the same seven emoji on both sides, and a green shield.
async fn verify(scene: &Scene<'_>, telling: &Telling) -> Result<()> {
    telling.part("C", "The human verifies the bot, and its shield turns green");
    let human = &scene.human;
    let flow = human.request_verification(scene.bot(), Via::Room(&scene.room)).await?;
    human.wait_verification(&flow, Phase::Ready, PATIENCE).await?;
    telling.done("the human clicks \"Verify\", the bot is willing");
    human.start_sas(&flow).await?;
    let shown = human.wait_verification(&flow, Phase::Sas, PATIENCE).await?;
    let shown: Vec<_> = shown.emoji.context("the human's client shows no emoji")?;
    let shown: Vec<_> = shown.into_iter().map(|emoji| (emoji.symbol, emoji.name)).collect();
    let row = scene.wait_row("emoji").await?;
    let held: Vec<_> = row["emoji"].as_array().into_iter().flatten().map(held).collect();
    telling.done("both sides have seven emoji");
    telling.detail("the human's", &emoji(&shown));
    telling.detail("the bot's", &emoji(&held));
    let agree = shown.len() == 7 && symbols(&shown).eq(symbols(&held));
    if !agree {
        human.mismatch_sas(&flow).await?;
    }
    ensure!(agree, "the emoji of the two sides differ");
    human.confirm_sas(&flow).await?;
    human.wait_verification(&flow, Phase::Done, PATIENCE).await?;
    telling.done("they match: the human says so, and the bot confirms");

    let trust = human.wait_user_trust(scene.bot(), true, PATIENCE).await?;
    ensure!(trust.msk.as_deref() == scene.signup["msk_public"].as_str(), "{trust:?}");
    scene.wait_row("done").await?;
    telling.done("the human's client counts the bot as VERIFIED");
    let answer = scene.ping().await?;
    unmarked(&answer).context("the answer after the verification is marked")?;
    let unreadable = human.utd_events(&scene.room).await?;
    ensure!(unreadable.is_empty(), "not decrypted: {unreadable:?}");
    telling.done("the next answer decrypts under a new room key, unmarked");
    telling.detail("event", &answer.event_id);
    Ok(())
}

/// One of the seven, as greenshield recorded it.
fn held(emoji: &Value) -> (String, String) {
    let word = |key: &str| emoji[key].as_str().unwrap_or_default().to_owned();
    (word("symbol"), word("description"))
}

fn symbols(emoji: &[(String, String)]) -> impl Iterator<Item = &str> {
    emoji.iter().map(|(symbol, _)| symbol.as_str())
}

fn emoji(emoji: &[(String, String)]) -> String {
    let each: Vec<_> = emoji.iter().map(|(symbol, name)| format!("{symbol} {name}")).collect();
    each.join("  ")
}

const ELEMENT: [&str; 4] = [
    "First sign in with Element (Desktop, or app.element.io in a browser on this machine): edit",
    "the homeserver, give the address above, your user and your password. Then sign a bot up: it",
    "invites you. (In the other order its first message is encrypted for no device of yours.)",
    "Or start a chat with the bot of the walk:",
];

/// Tells whoever has started the demo how to take part.
pub async fn invite_the_reader(
    scene: &Scene<'_>,
    alice: &Credentials,
    telling: &Telling,
) -> Result<()> {
    let (world, greenshield) = (scene.world, &scene.world.greenshield);
    let you = world.synapse.register_human("you").await?;
    let code = greenshield.mint_code(&you.user_id, 10)?;

    telling.part("→", "It stays up: try it yourself");
    telling.detail("homeserver", &you.homeserver);
    telling.detail("your user", &you.user_id);
    telling.detail("password", &you.password);
    telling.detail("sign up a bot", &format!("{}/signup?code={code}", greenshield.public_url()));
    telling.line("");
    for line in ELEMENT {
        telling.line(&format!("      {line}"));
    }
    telling.line("");
    telling.detail("bot", scene.bot());
    telling.detail("its token", &text(&scene.signup, "access_token")?);
    telling.detail("its human", &format!("{} {}", alice.user_id, alice.password));

    telling.part("→", "Behind the scenes");
    telling.detail("metrics", &format!("{}/metrics", greenshield.operator_url()));
    telling.detail("health", &format!("{}/health/ready", greenshield.operator_url()));
    telling.detail("database", world.postgres.url().as_str());
    telling.detail("greenshield", &greenshield.log().display().to_string());
    let synapse = world.synapse.process().context("Synapse runs")?;
    telling.detail("Synapse", &synapse.log().display().to_string());
    telling.detail("config", &greenshield.config().display().to_string());
    telling.line("");
    telling.line("Ctrl-C stops it, and removes all of it.");
    Ok(())
}
