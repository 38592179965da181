//! Secrets and messages go through every path there is, and then everything that greenshield keeps,
//! logs and answers is searched for them.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use greenshield::{
    model::BotId,
    store::{Fence, PgCryptoStore, Store, WrappingKey, bots, open},
};
use matrix_sdk_crypto::store::CryptoStore as _;
use serde_json::{Value, json};

use super::{
    secrets::{Secret, in_pickle},
    tools::{configure, dump, log, raw, request, token, yaml},
};
use crate::{
    fast::scene::{Bot, PATIENCE, Scene},
    support::{
        fake_homeserver::{Fault, Person},
        poll, random, report,
    },
};

/// A scene, the secrets that went through it, and the errors that it was answered with.
struct Story {
    scene: Scene,
    secrets: Vec<Secret>,
    answers: String,
}

impl Story {
    /// A text that stands nowhere else.
    fn canary(&mut self, what: &str) -> String {
        let text = format!("canary-{}-{}", random::suffix(), random::suffix());
        self.secrets.push(Secret::text(what, &text));
        text
    }

    async fn told_off(
        &mut self,
        url: &str,
        method: &str,
        path: &str,
        headers: &[&str],
        body: &str,
    ) -> Result<()> {
        let answer = raw(url, &request(method, path, headers, body.as_bytes())).await?;
        self.answers.push_str(&format!("{}\n{}\n", answer.head, answer.body));
        ensure!(answer.status >= 400, "{method} {path}: {answer:?}");
        Ok(())
    }

    /// A bot's whole life: signed up, talked to, verified, repaired.
    async fn life(&mut self, name: &str) -> Result<(Person, Bot)> {
        let alice = Person::new(&self.scene.fake, name).await?;
        let bot = self.sign_up(&alice, name).await?;
        self.talk(&alice, &bot).await?;
        self.say_to_device(&alice, &bot).await?;
        self.verify(&alice, &bot).await?;
        self.be_refused(&alice, &bot).await?;
        self.scene.greenshield.run(&["bots", "repair", &bot.user_id, "--new-device"])?;
        alice.sync().await?;
        alice.forget_key(&bot.room).await?;
        let text = self.canary("a message to a repaired bot");
        let said = alice.say(&bot.room, &text).await?;
        self.logged(&said, "ok").await?;
        alice.ping(&bot.room).await?;
        Ok((alice, bot))
    }

    async fn sign_up(&mut self, alice: &Person, name: &str) -> Result<Bot> {
        let code = self.scene.greenshield.mint_code(&alice.user_id, 1)?;
        self.secrets.push(Secret::text("a signup code", &code));
        let (intro, key) = (self.canary("an intro"), self.canary("an Idempotency-Key"));
        let body = json!({ "code": code, "username": name, "intro": intro });
        let url = format!("{}/signup/api", self.scene.greenshield.public_url());
        let sent = crate::support::http().post(url).json(&body).header("Idempotency-Key", &key);
        let answer = sent.send().await?;
        ensure!(answer.status().is_success(), "{answer:?}");
        let bot = Bot::of(answer.json().await?)?;
        alice.join(&bot.room).await?;
        let access = bot.signup["access_token"].as_str().context("a token")?;
        self.secrets.push(Secret::text("an access token", access));
        self.scene.greenshield.crosssign(access).await?;

        // Errors, for each of which somebody has put a secret where it does not belong.
        let public = self.scene.greenshield.public_url();
        let quoted = format!("\"{code}\"");
        let bearer = format!("Authorization: Bearer {access}");
        let form = format!("code={code}&username[]=x&username=y&username=z");
        let is_form = ["Content-Type: application/x-www-form-urlencoded"];
        for (method, path, body) in [
            (
                "POST",
                "/signup/api".to_owned(),
                json!({ "code": [code], "username": "x" }).to_string(),
            ),
            ("POST", "/signup/api".to_owned(), quoted.clone()),
            (
                "POST",
                "/signup/api".to_owned(),
                json!({ "code": code, "username": code.to_uppercase() }).to_string(),
            ),
            (
                "POST",
                "/signup/api".to_owned(),
                json!({ "code": code, "username": "other" }).to_string(),
            ),
            ("POST", format!("/signup/api/{code}"), String::new()),
            ("GET", format!("/{access}?code={code}"), String::new()),
            ("POST", format!("/signup/api/crosssign?access_token={access}"), "{}".to_owned()),
            (
                "POST",
                "/signup/api/crosssign".to_owned(),
                json!({ "access_token": [access] }).to_string(),
            ),
            ("POST", "/signup/api/crosssign".to_owned(), quoted.clone()),
        ] {
            self.told_off(&public, method, &path, &[], &body).await?;
        }
        self.told_off(&public, "POST", "/signup", &is_form, &form).await?;
        let appservice = self.scene.greenshield.appservice_url();
        let hs_token = token(&self.scene.greenshield, "hs_token")?;
        let path = format!("/_matrix/app/v1/transactions/1?access_token={hs_token}");
        self.told_off(&appservice, "PUT", &path, &[], "{}").await?;
        self.told_off(&appservice, "PUT", &path, &[&bearer], "{}").await?;
        let right = format!("Authorization: Bearer {hs_token}");
        self.told_off(&appservice, "PUT", &path, &[&right], &quoted).await?;
        Ok(bot)
    }

    async fn talk(&mut self, alice: &Person, bot: &Bot) -> Result<()> {
        let text = self.canary("an encrypted message");
        let said = alice.say(&bot.room, &text).await?;
        self.logged(&said, "ok").await?;
        alice.ping(&bot.room).await?;

        let text = self.canary("a message that stays undecryptable");
        let (lost, _) = alice.say_without_key(&bot.room, &text).await?;
        self.scene.wait_parked(&lost).await?;
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

    async fn say_to_device(&mut self, alice: &Person, bot: &Bot) -> Result<()> {
        for (kind, more) in [
            ("org.example.custom", json!({})),
            (
                "m.room_key.withheld",
                json!({ "algorithm": "m.megolm.v1.aes-sha2", "room_id": bot.room,
                "session_id": "x", "sender_key": alice.sender_key(), "code": "m.blacklisted" }),
            ),
            (
                "m.room_key.withheld",
                json!({ "algorithm": "m.megolm.v1.aes-sha2", "room_id": bot.room,
                "session_id": "y", "sender_key": alice.sender_key(), "code": "CODE" }),
            ),
            ("m.secret.send", json!({ "request_id": "x" })),
            (
                "m.room_key",
                json!({ "algorithm": "m.megolm.v1.aes-sha2", "room_id": bot.room,
                "session_id": "x", "session_key": "CODE" }),
            ),
            ("m.room.encrypted", json!({ "algorithm": "CODE" })),
            (
                "m.room.encrypted",
                json!({ "algorithm": "m.olm.v1.curve25519-aes-sha2",
                "sender_key": "CODE", "ciphertext": {} }),
            ),
            ("m.key.verification.cancel", json!({ "transaction_id": "x", "code": "CODE" })),
        ] {
            let canary = self.canary(&format!("a to-device message, {kind}"));
            let mut content: Value =
                serde_json::from_str(&more.to_string().replace("CODE", &canary))?;
            content["secret"] = canary.as_str().into();
            content["reason"] = canary.as_str().into();
            let event = json!({ "type": kind, "sender": alice.user_id, "content": content });
            self.scene.fake.send_to_device(&bot.user_id, &bot.device_id, &event);
        }
        alice.ping(&bot.room).await?;
        Ok(())
    }

    async fn verify(&mut self, alice: &Person, bot: &Bot) -> Result<()> {
        // One is broken off with words of Alice's own, and one is done.
        let request = alice.ask(&bot.user_id, &bot.device_id).await?;
        let flow = request.flow_id().as_str().to_owned();
        let sql = "SELECT state FROM verifications WHERE flow_id = $1 AND state = 'ready'";
        self.scene.wait_text("a verification that is ready", sql, &flow).await?;
        let (code, reason) = (self.canary("a cancel code"), self.canary("a cancel reason"));
        let content = json!({ "transaction_id": flow, "code": code, "reason": reason });
        let event = json!({ "type": "m.key.verification.cancel", "sender": alice.user_id,
            "content": content });
        self.scene.fake.send_to_device(&bot.user_id, &bot.device_id, &event);
        let sql =
            "SELECT cancel_code FROM verifications WHERE flow_id = $1 AND state = 'cancelled'";
        let code = self.scene.wait_text("a verification that is cancelled", sql, &flow).await?;
        ensure!(code == "other", "{code}");
        request.cancel();

        let request = alice.ask(&bot.user_id, &bot.device_id).await?;
        let sas = alice.compare(&request).await?;
        alice.confirm(&sas).await?;
        alice.wait_verified(&bot.user_id).await
    }

    /// A homeserver, or what stands before it, that repeats what it was sent.
    async fn be_refused(&mut self, alice: &Person, bot: &Bot) -> Result<()> {
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
        alice.forget_key(&bot.room).await?;
        alice.ping(&bot.room).await?;
        self.scene.fake.heal();
        Ok(())
    }

    async fn logged(&self, event_id: &str, how: &str) -> Result<()> {
        poll::until("an event to be logged", PATIENCE, async || {
            let row: Option<String> = sqlx::query_scalar(
                "SELECT decryption FROM event_log JOIN events USING (event_seq) WHERE event_id = $1",
            )
            .bind(event_id)
            .fetch_optional(&self.scene.sql)
            .await?;
            Ok(row.is_some_and(|row| row == how).then_some(()))
        })
        .await
    }

    /// What the bots hold, by the library, with the key that seals it.
    async fn keys_of_bots(&mut self) -> Result<()> {
        let config = yaml(self.scene.greenshield.config())?;
        let key = match config["sealing"]["key_file"].as_str() {
            Some(file) => fs::read_to_string(file)?,
            None => config["sealing"]["key"].as_str().context("a key")?.to_owned(),
        };
        let key: WrappingKey = greenshield::config::wrapping_key(&key).context("a key")?;
        let store =
            open::open(config["database"]["url"].as_str().context("a URL")?, 2, &key).await?;
        let ids: Vec<i64> =
            sqlx::query_scalar("SELECT bot_id FROM bots").fetch_all(&self.scene.sql).await?;
        for id in ids {
            let found = keys_of(&store, BotId(id)).await?;
            ensure!(found.len() > 60, "only {} keys of bot {id}", found.len());
            self.secrets.extend(found);
        }
        Ok(())
    }

    /// Looks for every secret in `haystack`.
    fn search(&self, place: &str, haystack: &[u8]) -> Result<()> {
        let found: Vec<&str> = self
            .secrets
            .iter()
            .filter(|secret| secret.is_in(haystack))
            .map(|secret| secret.what.as_str())
            .collect();
        ensure!(found.is_empty(), "in {place}: {found:?}");
        Ok(())
    }
}

async fn keys_of(store: &Store, bot: BotId) -> Result<Vec<Secret>> {
    let mut conn = store.connection().await?;
    let identity = bots::identity_secrets(&mut conn, store.sealer(), bot).await?;
    let identity = identity.context("a bot has an identity")?;
    let mut found = vec![
        Secret::text("a private master key", &identity.master),
        Secret::text("a private self-signing key", &identity.self_signing),
        Secret::text("a private user-signing key", &identity.user_signing),
    ];
    // It only reads: no lease is needed.
    let fence = Fence { shard: 0, owner: uuid::Uuid::nil(), number: 0 };
    let crypto_store = PgCryptoStore::new(store.clone(), bot, fence);
    let account = crypto_store.load_account().await?.context("a bot has an account")?;
    let account = serde_json::to_value(account.pickle())?;
    found.extend(in_pickle("account", &account));
    ensure!(found.len() > 50, "only {} keys in {account}", found.len());
    for session in crypto_store.get_inbound_group_sessions().await? {
        let pickle = serde_json::to_value(session.pickle().await)?;
        found.extend(in_pickle("inbound_group_session", &pickle));
    }
    Ok(found)
}

/// What a dump writes in its own way, as it is.
async fn columns(scene: &Scene) -> Result<Vec<u8>> {
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT tablename::TEXT FROM pg_tables WHERE schemaname = 'public'")
            .fetch_all(&scene.sql)
            .await?;
    ensure!(tables.len() > 20, "{tables:?}");
    let mut everything = Vec::new();
    for table in tables {
        let columns: Vec<(String, String)> = sqlx::query_as(
            "SELECT attname::TEXT, atttypid::REGTYPE::TEXT FROM pg_attribute
            WHERE attrelid = $1::REGCLASS AND attnum > 0 AND NOT attisdropped",
        )
        .bind(&table)
        .fetch_all(&scene.sql)
        .await?;
        for (column, kind) in columns {
            let text = if kind == "bytea" {
                column
            } else {
                format!("CONVERT_TO({column}::TEXT, 'UTF8')")
            };
            let sql = sqlx::AssertSqlSafe(format!("SELECT COALESCE({text}, '') FROM {table}"));
            let values: Vec<Vec<u8>> = sqlx::query_scalar(sql).fetch_all(&scene.sql).await?;
            everything.extend(values.into_iter().flat_map(|mut value| {
                value.push(b'\n');
                value
            }));
        }
    }
    Ok(everything)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_and_no_message_is_kept_logged_or_answered() -> Result<()> {
    let scene = Scene::start().await?;
    let mut story = Story { scene, secrets: Vec::new(), answers: String::new() };
    for name in ["as_token", "hs_token"] {
        let text = token(&story.scene.greenshield, name)?;
        story.secrets.push(Secret::text(name, &text));
    }
    let key =
        yaml(story.scene.greenshield.config())?["sealing"]["key"].as_str().map(ToOwned::to_owned);
    let new_key = random::secret();
    for key in [key.context("a key")?.as_str(), &new_key] {
        story.secrets.push(Secret::text("a sealing key, as text", key));
        let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, key)?;
        story.secrets.push(Secret::bytes("a sealing key", &bytes));
    }
    // The most that can be logged, in both forms.
    let mut known = String::new();
    for format in ["text", "json"] {
        configure(&story.scene.greenshield, |config| {
            config["log"] = json!({ "format": format, "filter": "trace" });
        })?;
        story.scene.greenshield.restart().await?;
        let (_, bot) = story.life(&format!("al{format}")).await?;
        known = bot.user_id;
    }
    let file = story.scene.greenshield.config().with_file_name("new.key");
    fs::write(&file, &new_key)?;
    story.scene.greenshield.run(&[
        "keys",
        "rotate",
        "--new-key-file",
        &file.display().to_string(),
    ])?;
    configure(&story.scene.greenshield, |config| {
        config["sealing"] = json!({ "key_file": file.display().to_string() });
    })?;
    story.scene.greenshield.restart().await?;
    story.life("rotated").await?;
    story.keys_of_bots().await?;

    let dump = dump(&story.scene.greenshield)?;
    ensure!(dump.contains(&known), "the dump holds rows");
    story.search("the dump", dump.as_bytes())?;
    story.search("the columns", &columns(&story.scene).await?)?;
    let log = log(&story.scene.greenshield)?;
    ensure!(log.contains("DEBUG") && log.contains("\"level\":\"DEBUG\""), "both forms, in detail");
    story.search("the log", log.as_bytes())?;
    story.search("the answers", story.answers.as_bytes())?;
    for (url, path) in [
        (story.scene.greenshield.operator_url(), "/metrics"),
        (story.scene.greenshield.operator_url(), "/health/ready"),
        (story.scene.greenshield.public_url(), "/openapi.json"),
    ] {
        let answer = raw(&url, &request("GET", path, &[], b"")).await?;
        ensure!(answer.status == 200, "{answer:?}");
        story.search(path, answer.body.as_bytes())?;
    }
    let count = story.secrets.len() as u64;
    let note =
        "not in a dump, any column, the logs at level trace, errors, metrics; in no encoding";
    report::row(
        "Secrets",
        "Messages, tokens, codes and keys that were searched for",
        count,
        0,
        note,
    );
    Ok(())
}
