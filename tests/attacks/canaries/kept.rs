//! What the bots hold, and where it must not be seen.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use greenshield::{
    model::BotId,
    store::{Fence, PgCryptoStore, Store, WrappingKey, bots, open},
};
use matrix_sdk_crypto::store::CryptoStore as _;
use ruma::RoomId;

use super::Story;
use crate::{
    attacks::{
        secrets::{Secret, in_pickle},
        tools::{dump, log, yaml},
    },
    fast::scene::{Bot, Scene},
    support::fake_homeserver::Person,
};

impl Story {
    /// What the bot holds now, read by the library with the key that seals it: later it may hold others.
    pub(super) async fn note_keys(&mut self, alice: &Person, bot: &Bot) -> Result<()> {
        let config = yaml(self.scene.greenshield.config())?;
        let key = match config["sealing"]["key_file"].as_str() {
            Some(file) => fs::read_to_string(file)?,
            None => config["sealing"]["key"].as_str().context("a key")?.to_owned(),
        };
        let key: WrappingKey = greenshield::config::wrapping_key(&key).context("a key")?;
        let store =
            open::open(config["database"]["url"].as_str().context("a URL")?, 2, &key).await?;
        let sql = "SELECT bot_id FROM bots WHERE user_id = $1";
        let id = sqlx::query_scalar(sql).bind(&bot.user_id).fetch_one(&self.scene.sql).await?;
        self.secrets.extend(keys_of(&store, BotId(id), &alice.sender_key(), &bot.room).await?);
        Ok(())
    }

    /// The running program's arguments and environment, which others on its machine may see.
    pub(super) fn look_at_the_process(&mut self) -> Result<()> {
        let pid = self.scene.greenshield.process().context("it runs")?.pid();
        for (name, known) in [("cmdline", "serve"), ("environ", "PATH=")] {
            let text = fs::read(format!("/proc/{pid}/{name}"))?;
            ensure!(
                String::from_utf8_lossy(&text).contains(known),
                "{name} is that of greenshield"
            );
            self.search_outside(name, &text);
        }
        Ok(())
    }

    /// All that is kept, logged, printed and answered; the database knows of the user `known`.
    pub(super) async fn search_everything(&mut self, known: &str) -> Result<()> {
        let dump = dump(&self.scene.greenshield)?;
        ensure!(dump.contains(known), "the dump holds rows");
        self.search("the dump", dump.as_bytes());
        let columns = columns(&self.scene).await?;
        self.search("the columns", &columns);
        let log = log(&self.scene.greenshield)?;
        ensure!(
            log.contains("DEBUG") && log.contains("\"level\":\"DEBUG\""),
            "both forms, in detail"
        );
        self.search_outside("the log", log.as_bytes());
        let answers = std::mem::take(&mut self.answers);
        self.search_outside("the answers", answers.as_bytes());
        let printed = std::mem::take(&mut self.printed);
        ensure!(printed.contains(known), "commands have told of it");
        self.search_outside("what commands printed", printed.as_bytes());
        let statements = self.cluster.log();
        ensure!(statements.contains("-- events.store"), "statements are logged");
        ensure!(statements.contains("arameters: $1 = "), "with what was bound to them");
        self.search("PostgreSQL's log", statements.as_bytes());
        Ok(())
    }
}

async fn keys_of(store: &Store, bot: BotId, sender_key: &str, room: &str) -> Result<Vec<Secret>> {
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
    let mut add = |what: &str, pickle: &serde_json::Value, at_least: usize| {
        let keys = in_pickle(what, pickle);
        ensure!(keys.len() >= at_least, "only {} keys in {what}", keys.len());
        found.extend(keys);
        Ok(())
    };
    add("account", &account, 50)?;
    let sessions = crypto_store.get_sessions(sender_key).await?.context("Olm sessions")?;
    ensure!(!sessions.is_empty(), "no Olm session with {sender_key}");
    for session in sessions {
        // A root key, and that of a chain at least.
        add("session", &serde_json::to_value(session.pickle().await)?, 2)?;
    }
    for session in crypto_store.get_inbound_group_sessions().await? {
        add("inbound_group_session", &serde_json::to_value(session.pickle().await)?, 4)?;
    }
    let room = <&RoomId>::try_from(room)?;
    let session = crypto_store.get_outbound_group_session(room).await?.context("a room key")?;
    // The ratchet, and what signs.
    add("outbound_group_session", &serde_json::to_value(session.pickle().await)?, 5)?;
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
