//! Secrets and messages go through every path there is, and then everything that greenshield keeps,
//! logs, prints and answers is searched for them.
//!
//! - [`owners`]: signing up, by the API and by the page, and errors of those who call.
//! - [`humans`]: what people say, to devices and in rooms, encrypted and not, and how they verify.
//! - [`misfits`]: the same in forms that nothing expects.
//! - [`homeserver`]: a homeserver that repeats what it was sent, and what it is not asked for.
//! - [`kept`]: the keys that bots hold, and the places that are searched.

mod homeserver;
mod humans;
mod kept;
mod misfits;
mod owners;

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{
    secrets::{Secret, found},
    tools::{configure, raw, request, token, yaml},
};
use crate::{
    fast::scene::{Bot, PATIENCE, Scene},
    support::{
        cluster::Cluster,
        fake_homeserver::{FakeHomeserver, Person},
        random, report,
    },
};

/// A scene, the secrets that went through it, and what it said.
struct Story {
    scene: Scene,
    /// Its own, which logs every statement.
    cluster: Cluster,
    secrets: Vec<Secret>,
    /// What people compare to verify: the database holds it for the owner, nothing else does.
    compared: Vec<Secret>,
    /// Where any of it was seen.
    seen: Vec<String>,
    /// Errors that callers were answered with.
    answers: String,
    /// What commands printed.
    printed: String,
}

impl Story {
    async fn begin() -> Result<Self> {
        let cluster = Cluster::start().await?;
        cluster.admin("ALTER DATABASE greenshield SET log_statement = 'all'").await?;
        let scene = Scene::on(&cluster.url()).await?;
        let mut this = Self {
            scene,
            cluster,
            secrets: Vec::new(),
            compared: Vec::new(),
            seen: Vec::new(),
            answers: String::new(),
            printed: String::new(),
        };
        for name in ["as_token", "hs_token"] {
            let text = token(&this.scene.greenshield, name)?;
            this.secrets.push(Secret::text(name, &text));
        }
        Ok(this)
    }

    /// A text that stands nowhere else.
    fn canary(&mut self, what: &str) -> String {
        let text = format!("canary-{}-{}", random::suffix(), random::suffix());
        self.secrets.push(Secret::text(what, &text));
        text
    }

    fn sealing_key(&mut self, key: &str) -> Result<()> {
        self.secrets.push(Secret::text("a sealing key, as text", key));
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, key)?;
        self.secrets.push(Secret::bytes("a sealing key", &bytes));
        Ok(())
    }

    /// A bot's whole life: signed up, talked to, verified, repaired.
    async fn life(&mut self, name: &str) -> Result<(Person, Bot)> {
        let alice = Person::new(&self.scene.fake, name).await?;
        let bot = self.sign_up(&alice, name).await?;
        self.use_the_page(&alice, name).await?;
        self.talk(&alice, &bot).await?;
        self.say_to_device(&alice, &bot).await?;
        self.say_misfits(&alice, &bot).await?;
        self.verify(&alice, &bot).await?;
        self.verify_in_the_room(&alice, &bot).await?;
        self.set_rooms_up(&alice, &bot).await?;
        self.be_refused(&alice, &bot).await?;
        self.be_misunderstood(&alice, &bot, name).await?;
        self.note_keys(&alice, &bot).await?;
        self.command(&["bots", "repair", &bot.user_id, "--new-device"])?;
        alice.sync().await?;
        alice.forget_key(&bot.room).await?;
        let text = self.canary("a message to a repaired bot");
        let said = alice.say(&bot.room, &text).await?;
        self.logged(&said, "ok").await?;
        alice.ping(&bot.room).await?;
        self.note_keys(&alice, &bot).await?;
        self.look_at_the_process()?;
        Ok((alice, bot))
    }

    /// Runs a command, and keeps what it printed.
    fn command(&mut self, arguments: &[&str]) -> Result<()> {
        let output = self.scene.greenshield.output(arguments)?;
        let (said, complained) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        self.printed.push_str(&format!("{said}\n{complained}\n"));
        ensure!(!said.is_empty(), "{arguments:?} said nothing: {complained}");
        Ok(())
    }

    /// Until a bot has this event behind it, and it was decrypted in this way.
    async fn logged(&self, event_id: &str, how: &str) -> Result<()> {
        let found = self.read(event_id).await?;
        ensure!(found == how, "{event_id} was read as {found}, not {how}");
        Ok(())
    }

    /// How an event was decrypted, once a bot has it behind it.
    async fn read(&self, event_id: &str) -> Result<String> {
        let sql =
            "SELECT decryption FROM event_log JOIN events USING (event_seq) WHERE event_id = $1";
        self.scene.wait_text("an event to be logged", sql, event_id).await
    }

    /// Until no to-device message is left.
    async fn taken_in(&self) -> Result<()> {
        let what = "the to-device messages to be taken in";
        let left = "SELECT COUNT(*) FROM inbox WHERE kind = 'to_device'";
        self.scene.until_none(what, PATIENCE, left, FakeHomeserver::to_device_pushed).await
    }

    /// Looks for every secret in `haystack`.
    fn search(&mut self, place: &str, haystack: &[u8]) {
        let found = found(&self.secrets, haystack);
        self.seen.extend(found.into_iter().map(|what| format!("in {place}: {what}")));
    }

    /// The same, and for what people compare, outside the database.
    fn search_outside(&mut self, place: &str, haystack: &[u8]) {
        self.search(place, haystack);
        let found = found(&self.compared, haystack);
        self.seen.extend(found.into_iter().map(|what| format!("in {place}: {what}")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_and_no_message_is_kept_logged_or_answered() -> Result<()> {
    let mut story = Story::begin().await?;
    let key =
        yaml(story.scene.greenshield.config())?["sealing"]["key"].as_str().map(ToOwned::to_owned);
    let new_key = random::secret();
    for key in [key.context("a key")?.as_str(), &new_key] {
        story.sealing_key(key)?;
    }
    // The most that can be logged, in both forms.
    let mut lives = Vec::new();
    for format in ["text", "json"] {
        configure(&story.scene.greenshield, |config| {
            config["log"] = json!({ "format": format, "filter": "trace" });
        })?;
        story.scene.greenshield.restart().await?;
        lives.push(story.life(&format!("al{format}")).await?);
    }
    let file = story.scene.greenshield.config().with_file_name("new.key");
    fs::write(&file, &new_key)?;
    let path = file.display().to_string();
    story.command(&["keys", "rotate", "--new-key-file", &path])?;
    configure(&story.scene.greenshield, |config| {
        config["sealing"] = json!({ "key_file": path });
    })?;
    story.scene.greenshield.restart().await?;
    lives.push(story.life("rotated").await?);
    for (alice, bot) in &lives {
        story.note_keys(alice, bot).await?;
    }

    let known = &lives[0].1.user_id;
    story.search_everything(known).await?;
    for (url, path) in [
        (story.scene.greenshield.operator_url(), "/metrics"),
        (story.scene.greenshield.operator_url(), "/health/ready"),
        (story.scene.greenshield.public_url(), "/openapi.json"),
    ] {
        let answer = raw(&url, &request("GET", path, &[], b"")).await?;
        ensure!(answer.status == 200, "{answer:?}");
        story.search_outside(path, answer.body.as_bytes());
    }
    ensure!(story.seen.is_empty(), "{:#?}", story.seen);
    let count = story.secrets.len() as u64;
    let note = "not in a dump, any column, PostgreSQL's log, the logs at level trace, errors, metrics, \
                what commands print, arguments and environment; in no encoding";
    report::row(
        "Secrets",
        "Messages, tokens, codes and keys that were searched for",
        count,
        0,
        note,
    );
    Ok(())
}
