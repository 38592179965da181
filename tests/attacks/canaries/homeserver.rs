//! A homeserver, or what stands before it, that repeats what it was sent.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Story;
use crate::{
    attacks::tools::token,
    fast::scene::{Bot, PATIENCE, sign_up},
    support::{
        fake_homeserver::{Fault, Person},
        poll,
    },
};

impl Story {
    /// In refusals.
    pub(super) async fn be_refused(&mut self, alice: &Person, bot: &Bot) -> Result<()> {
        let as_token = token(&self.scene.greenshield, "as_token")?;
        let room = self.scene.fake.room(&alice.user_id, true, &[&bot.user_id]);
        let error = format!("Bearer {as_token} may not do this\nin {room}");
        let body = json!({ "errcode": "M_FORBIDDEN", "error": error }).to_string();
        let path = format!("{room}/send/");
        self.scene.fake.fault(&path, usize::MAX, Fault::Answer { status: 403, body });
        let asked = alice.say(&room, "!ping").await?;
        let sql = "SELECT error FROM outbox WHERE state = 'failed' AND txn_id = 'respond-' || $1";
        let error = self.scene.wait_text("a failed message", sql, &asked).await?;
        ensure!(error.contains("may not do this") && error.contains("our token"), "{error}");
        let page = format!("<html>{as_token}</html>");
        self.scene.fake.fault("/keys/query", 1, Fault::Answer { status: 502, body: page.clone() });
        self.scene.fake.fault("/sync", 1, Fault::Answer { status: 200, body: page });
        alice.another_device("REFUSED").await?;
        alice.forget_key(&bot.room).await?;
        alice.ping(&bot.room).await?;
        self.scene.ask_reconcile(bot).await?;
        self.scene.fake.all_met().await?;
        self.scene.fake.heal();
        Ok(())
    }

    /// In answers that are none: a parser that complains quotes them. What the rows hold meanwhile is what
    /// commands and whoever waits are told.
    pub(super) async fn be_misunderstood(
        &mut self,
        alice: &Person,
        bot: &Bot,
        name: &str,
    ) -> Result<()> {
        let as_token = token(&self.scene.greenshield, "as_token")?;
        let always = |path: &str, body: Value| {
            let answer = Fault::Answer { status: 200, body: body.to_string() };
            self.scene.fake.fault(path, usize::MAX, answer);
        };
        always("/joined_rooms", json!({ "joined_rooms": as_token }));
        let code = self.code(alice)?;
        let username = format!("{name}odd");
        let (url, caller) = (self.scene.greenshield.public_url(), (code.clone(), username.clone()));
        let mut signups = JoinSet::new();
        signups.spawn(async move { sign_up(&url, &caller.0, &caller.1, None).await });
        let sql = "SELECT failure ->> 'error' FROM signups WHERE username = $1";
        let error = self.scene.wait_text("a signup to fail", sql, &username).await?;
        ensure!(error.contains("its `joined_rooms`") && error.contains("our token"), "{error}");
        self.tell_of(bot)?;
        self.scene.fake.heal();
        // Whoever has waited in vain calls again, and that wakes the bot.
        poll::until("the signup to be done", PATIENCE, async || {
            let (status, _) = self.scene.sign_up(&code, &username, None).await?;
            Ok((status == 200).then_some(()))
        })
        .await?;

        // In the shape that ruma reads, and in one that it passes on to matrix-sdk-crypto.
        let devices = json!({ &alice.user_id: { &alice.device_id: as_token } });
        let again = "SELECT error FROM outbox WHERE state = 'queued' AND txn_id = 'respond-' || $1";
        for (path, body, is_read) in [
            ("/keys/query", json!({ "device_keys": as_token }), false),
            ("/keys/query", json!({ "device_keys": devices, "master_keys": {} }), true),
            ("/members", json!({ "chunk": as_token }), false),
            ("/keys/claim", json!({ "one_time_keys": as_token }), false),
        ] {
            let room = self.scene.fake.room(&alice.user_id, true, &[&bot.user_id]);
            let calls = self.scene.fake.calls(path).len();
            let body = Fault::Answer { status: 200, body: body.to_string() };
            self.scene.fake.fault(path, usize::MAX, body);
            alice.another_device(&format!("D{calls}{}", path.len())).await?;
            let asked = alice.say(&room, "!ping").await?;
            if is_read {
                self.called(path, calls).await?;
            } else {
                let error = self.scene.wait_text("a message put off", again, &asked).await?;
                ensure!(error.contains("could not be understood"), "{path}: {error}");
                ensure!(error.contains("our token"), "{path}: {error}");
            }
            self.tell_of(bot)?;
            self.scene.fake.heal();
            if !is_read {
                self.answered(alice, &room, &asked).await?;
            }
        }

        // Where lost messages are asked for.
        let body = json!({ "extensions": as_token }).to_string();
        self.scene.fake.fault("/sync", 1, Fault::Answer { status: 200, body });
        let calls = self.scene.fake.calls("/sync").len();
        let (lost, _) = alice.say_without_key(&bot.room, "lost").await?;
        self.scene.wait_parked(&lost).await?;
        self.called("/sync", calls).await?;
        self.scene.fake.heal();
        alice.another_device("LAST").await?;
        alice.forget_key(&bot.room).await?;
        alice.ping(&bot.room).await?;
        Ok(())
    }

    /// Until this is answered, however long it would be put off by now.
    async fn answered(&self, alice: &Person, room: &str, asked: &str) -> Result<()> {
        poll::until("an answer that was put off", PATIENCE, async || {
            self.scene.due_now().await?;
            let read = alice.read(room).await?;
            Ok(read.iter().any(|read| read.answers.as_deref() == Some(asked)).then_some(()))
        })
        .await
    }

    /// Until greenshield has called this more often.
    async fn called(&self, path: &str, before: usize) -> Result<()> {
        poll::until("a call of greenshield", PATIENCE, async || {
            Ok((self.scene.fake.calls(path).len() > before).then_some(()))
        })
        .await
    }

    /// What commands tell of a bot, and of everything, with a homeserver that repeats our token to them.
    fn tell_of(&mut self, bot: &Bot) -> Result<()> {
        let as_token = token(&self.scene.greenshield, "as_token")?;
        for (path, body) in [
            ("/account/whoami", json!({ "user_id": [as_token] })),
            ("/versions", json!({ "versions": as_token })),
        ] {
            let answer = Fault::Answer { status: 200, body: body.to_string() };
            self.scene.fake.fault(path, usize::MAX, answer);
            self.command(&["doctor"])?;
            self.command(&["doctor", "--json"])?;
        }
        self.command(&["bots", "list"])?;
        self.command(&["bots", "list", "--json"])?;
        self.command(&["bots", "show", &bot.user_id])?;
        self.command(&["bots", "show", &bot.user_id, "--json"])?;
        self.command(&["codes", "list"])?;
        self.command(&["codes", "list", "--json"])
    }
}
