//! What people say, and how they verify.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::Story;
use crate::{
    attacks::secrets::Secret,
    fast::scene::Bot,
    support::fake_homeserver::{Delivery, Person},
};

impl Story {
    pub(super) async fn talk(&mut self, alice: &Person, bot: &Bot) -> Result<()> {
        let text = self.canary("an encrypted message");
        let said = alice.say(&bot.room, &text).await?;
        self.logged(&said, "ok").await?;
        alice.ping(&bot.room).await?;

        // Of one that waits for its key there is no clear text here, but there is what stands beside it.
        alice.forget_key(&bot.room).await?;
        let text = self.canary("a message that stays undecryptable");
        let mut content = alice.encrypt(&bot.room, &text, false).await?;
        content["org.example.beside"] = self.canary("a text beside a ciphertext").into();
        let kind = "m.room.encrypted";
        let lost = self.scene.fake.say(&bot.room, &alice.user_id, kind, None, content);
        self.scene.wait_parked(&lost).await?;

        self.scene.fake.to_device(Delivery::Late);
        alice.forget_key(&bot.room).await?;
        let text = self.canary("a message whose key comes late");
        let late = alice.say(&bot.room, &text).await?;
        self.scene.wait_parked(&late).await?;
        self.scene.fake.to_device(Delivery::Pushed);
        self.logged(&late, "late").await?;
        alice.forget_key(&bot.room).await?;

        let plain = self.scene.fake.room(&alice.user_id, false, &[&bot.user_id]);
        let text = self.canary("a message in a room without encryption");
        let content = json!({ "msgtype": "m.text", "body": text });
        let said = self.scene.fake.say(&plain, &alice.user_id, "m.room.message", None, content);
        self.logged(&said, "plain").await?;
        for kind in ["m.room.topic", "m.room.name", "org.example.state"] {
            let content = json!({ "topic": self.canary(kind), "name": self.canary(kind) });
            self.scene.fake.say(&plain, &alice.user_id, kind, Some(""), content);
        }
        Ok(())
    }

    /// Rooms with all sorts of texts in their settings, told of before and after the bot asks.
    pub(super) async fn set_rooms_up(&mut self, alice: &Person, bot: &Bot) -> Result<()> {
        let set = |room: &str, kind: &str, content: Value| {
            self.scene.fake.say(room, &alice.user_id, kind, Some(""), content);
        };
        let mut canaries = Vec::new();
        let mut canary = |what: &str| {
            let text = format!("A secret of {what}-{}", crate::support::random::secret());
            canaries.push(Secret::text(what, &text));
            text
        };
        for asked_before in [false, true] {
            let room = self.scene.fake.room(&alice.user_id, true, &[&bot.user_id]);
            if asked_before {
                alice.ping(&room).await?;
            }
            let mut content = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
            content["rotation_period_ms"] = canary("a rotation period").into();
            content["org.example.note"] = canary("a note in m.room.encryption").into();
            set(&room, "m.room.encryption", content);
            let content = json!({ "history_visibility": canary("a history visibility"),
                "org.example.note": canary("a note in m.room.history_visibility") });
            set(&room, "m.room.history_visibility", content);
            alice.ping(&room).await?;
        }
        let room = self.scene.fake.room(&alice.user_id, true, &[&bot.user_id]);
        set(&room, "m.room.encryption", json!({ "algorithm": canary("an algorithm") }));
        let asked = alice.say(&room, "!ping").await?;
        let sql = "SELECT error FROM outbox WHERE state = 'failed' AND txn_id = 'respond-' || $1";
        let error = self.scene.wait_text("a failed message", sql, &asked).await?;
        ensure!(error.contains("algorithm is not known"), "{error}");
        self.secrets.append(&mut canaries);
        Ok(())
    }

    pub(super) async fn verify(&mut self, alice: &Person, bot: &Bot) -> Result<()> {
        // One is broken off with words of Alice's own, and one is done.
        let request = alice.ask(&bot.user_id, &bot.device_id).await?;
        let flow = request.flow_id().as_str().to_owned();
        self.is_ready(&flow).await?;
        let mut content = self.cancel();
        content["transaction_id"] = flow.as_str().into();
        let event = json!({ "type": "m.key.verification.cancel", "sender": alice.user_id,
            "content": content });
        self.scene.fake.send_to_device(&bot.user_id, &bot.device_id, &event);
        self.is_cancelled(&flow).await?;
        request.cancel();

        let request = alice.ask(&bot.user_id, &bot.device_id).await?;
        let sas = alice.compare(&request).await?;
        let emoji = sas.emoji().context("emoji")?;
        let symbols = emoji.each_ref().map(|emoji| emoji.symbol);
        let names = emoji.each_ref().map(|emoji| emoji.description);
        let numbers = sas.emoji_index().context("emoji have numbers")?;
        let (a, b, c) = sas.decimals().context("decimals")?;
        for (what, text) in [
            ("emoji, as code has them", format!("{emoji:?}")),
            ("emoji", symbols.concat()),
            ("emoji with spaces", symbols.join(" ")),
            ("emoji with commas", symbols.join(", ")),
            ("the names of emoji", names.join(", ")),
            ("the names of emoji with spaces", names.join(" ")),
            ("the numbers of emoji", format!("{numbers:?}")),
            ("decimals", format!("{a} {b} {c}")),
            ("decimals, as code has them", format!("{a}, {b}, {c}")),
            ("decimals, as clients show them", format!("{a}-{b}-{c}")),
        ] {
            self.compared.push(Secret::text(what, &text));
        }
        alice.confirm(&sas).await?;
        alice.wait_verified(&bot.user_id).await
    }

    /// One in the room, encrypted as it is, and broken off with words of Alice's own.
    pub(super) async fn verify_in_the_room(&mut self, alice: &Person, bot: &Bot) -> Result<()> {
        let content = json!({ "msgtype": "m.key.verification.request", "methods": ["m.sas.v1"],
            "from_device": alice.device_id, "to": bot.user_id,
            "body": self.canary("the text of a verification request") });
        let flow = alice.say_event(&bot.room, "m.room.message", &content).await?;
        self.is_ready(&flow).await?;
        let mut content = self.cancel();
        content["m.relates_to"] = json!({ "rel_type": "m.reference", "event_id": flow });
        alice.say_event(&bot.room, "m.key.verification.cancel", &content).await?;
        self.is_cancelled(&flow).await
    }

    fn cancel(&mut self) -> Value {
        json!({ "code": self.canary("a cancel code"), "reason": self.canary("a cancel reason") })
    }

    async fn is_ready(&self, flow: &str) -> Result<()> {
        let sql = "SELECT state FROM verifications WHERE flow_id = $1 AND state = 'ready'";
        self.scene.wait_text("a verification that is ready", sql, flow).await?;
        Ok(())
    }

    async fn is_cancelled(&self, flow: &str) -> Result<()> {
        let sql =
            "SELECT cancel_code FROM verifications WHERE flow_id = $1 AND state = 'cancelled'";
        let code = self.scene.wait_text("a verification that is cancelled", sql, flow).await?;
        ensure!(code == "other", "{code}");
        Ok(())
    }
}
