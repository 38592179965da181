//! greenshield beside a fake homeserver, and a person with a bot.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sqlx::PgPool;
use url::Url;

pub use crate::support::fake_homeserver::PATIENCE;
use crate::support::{
    fake_homeserver::{FakeHomeserver, Person, Read},
    greenshield::Greenshield,
    poll,
    postgres::{self, Database},
    random,
};

/// Steps that panicked: `panics.rs` sees it count.
pub const STEP_PANICS: &str = "greenshield_step_panics_total";

/// Dropped in this order.
pub struct Scene {
    pub greenshield: Greenshield,
    pub sql: PgPool,
    pub database: Url,
    _database: Option<Database>,
    pub fake: FakeHomeserver,
}

/// A bot, and its direct room with the person who signed it up.
pub struct Bot {
    pub user_id: String,
    pub device_id: String,
    pub room: String,
    pub signup: Value,
}

impl Scene {
    pub async fn start() -> Result<Self> {
        let database = Database::create().await?;
        let url = database.url();
        Ok(Self { _database: Some(database), ..Self::on(&url).await? })
    }

    /// A scene on a database that somebody else looks after.
    pub async fn on(database: &Url) -> Result<Self> {
        let fake = FakeHomeserver::start().await?;
        let mut greenshield = Greenshield::install(fake.url(), database)?;
        fake.connect(&greenshield.registration())?;
        greenshield.start().await?;
        let sql = postgres::pool(database).await?;
        Ok(Self { greenshield, sql, database: database.clone(), _database: None, fake })
    }

    /// A scene with a person and a bot that know each other already and have nothing left to do.
    pub async fn with_bot() -> Result<(Self, Person, Bot)> {
        let scene = Self::start().await?;
        let alice = Person::new(&scene.fake, "alice").await?;
        let bot = scene.bot(&alice).await?;
        scene.settled().await?;
        Ok((scene, alice, bot))
    }

    /// Signs a bot up; the person joins its room.
    pub async fn bot(&self, person: &Person) -> Result<Bot> {
        let code = self.greenshield.mint_code(&person.user_id, 1)?;
        let signup = self.greenshield.signup(&code, &format!("b{}", random::suffix())).await?;
        let bot = Bot::of(signup)?;
        person.join(&bot.room).await?;
        Ok(bot)
    }

    /// `POST /signup/api`, whatever it answers.
    pub async fn sign_up(
        &self,
        code: &str,
        username: &str,
        key: Option<&str>,
    ) -> Result<(u16, Value)> {
        sign_up(&self.greenshield.public_url(), code, username, key).await
    }

    /// Until nothing is under way: everything pushed, taken up, answered and sent.
    pub async fn settled(&self) -> Result<()> {
        let left = "SELECT (SELECT COUNT(*) FROM inbox)
                + (SELECT COUNT(*) FROM bot_queue)
                + (SELECT COUNT(*) FROM outbox WHERE state = 'queued')
                + (SELECT COUNT(*) FROM bots WHERE reconciled_at IS NULL)";
        self.until_none("nothing to be left to do", PATIENCE, left, FakeHomeserver::all_pushed)
            .await
    }

    /// Until everything that was pushed is taken up, while verifications go on.
    pub async fn settled_but_verifying(&self) -> Result<()> {
        let left = "SELECT COUNT(*) FROM inbox WHERE kind <> 'reconcile'";
        self.until_none("everything to be taken up", PATIENCE, left, FakeHomeserver::all_pushed)
            .await
    }

    /// Until to-device messages are taken in, while events are held back.
    pub async fn settled_but_events(&self) -> Result<()> {
        self.until_none(
            "the to-device messages to be taken in",
            PATIENCE,
            "SELECT COUNT(*) FROM inbox",
            FakeHomeserver::to_device_pushed,
        )
        .await
    }

    /// Until this counts none, and nothing came in while it was counted.
    pub async fn until_none(
        &self,
        what: &str,
        patience: Duration,
        count: &'static str,
        pushed: fn(&FakeHomeserver) -> Option<usize>,
    ) -> Result<()> {
        poll::until(what, patience, async || {
            let before = pushed(&self.fake);
            let left: i64 = sqlx::query_scalar(count).fetch_one(&self.sql).await?;
            let still = before.is_some() && before == pushed(&self.fake);
            Ok((left == 0 && still).then_some(()))
        })
        .await
    }

    /// Asks the bot to forget the humans with whom it has nothing to do any more, as retention does.
    pub async fn forget_strangers(&self, bot: &Bot) -> Result<()> {
        self.ask(bot, "forget_strangers").await?;
        self.settled().await
    }

    /// Has the bot ask now for what was lost, and look at what is shown of it if that is due.
    pub async fn ask_reconcile(&self, bot: &Bot) -> Result<()> {
        self.ask(bot, "reconcile").await
    }

    /// Puts work of this kind into the bot's inbox, and wakes it.
    async fn ask(&self, bot: &Bot, kind: &str) -> Result<()> {
        sqlx::query(
            "WITH asked AS (
                INSERT INTO inbox (bot_id, kind, received_at, due_at)
                SELECT bot_id, $2, NOW(), NOW() FROM bots WHERE user_id = $1
                RETURNING bot_id
            ), woken AS (
                INSERT INTO bot_queue (bot_id, shard, due_at)
                SELECT bot_id, shard, NOW() FROM asked JOIN bots USING (bot_id)
                ON CONFLICT (bot_id) DO UPDATE
                SET due_at = NOW(), generation = bot_queue.generation + 1
                RETURNING bot_id
            )
            SELECT pg_notify('greenshield_work', '') FROM woken",
        )
        .bind(&bot.user_id)
        .bind(kind)
        .execute(&self.sql)
        .await?;
        Ok(())
    }

    /// Has everything that was put off tried again now.
    pub async fn due_now(&self) -> Result<()> {
        sqlx::query(
            "WITH sends AS (
                UPDATE outbox SET due_at = NOW() WHERE state = 'queued' RETURNING bot_id
            ), woken AS (
                UPDATE bot_queue SET due_at = NOW(), generation = generation + 1
                FROM (SELECT COUNT(*) FROM sends) AS first
                RETURNING bot_id
            )
            SELECT pg_notify('greenshield_work', '') FROM woken",
        )
        .execute(&self.sql)
        .await?;
        Ok(())
    }

    /// A number of greenshield's metrics; 0 until it is first counted, and under a name that is none:
    /// whoever asserts 0 takes a name from here that another test sees count.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        let url = format!("{}/metrics", self.greenshield.operator_url());
        let answer = crate::support::http().get(url).send().await?.error_for_status()?;
        let metrics = answer.text().await?;
        let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Ok(value.unwrap_or_default())
    }

    /// One text from the database, once it is there.
    pub async fn wait_text(&self, what: &str, sql: &'static str, argument: &str) -> Result<String> {
        poll::until(what, PATIENCE, async || {
            let text: Option<Option<String>> =
                sqlx::query_scalar(sql).bind(argument).fetch_optional(&self.sql).await?;
            Ok(text.flatten())
        })
        .await
    }

    /// Why an event is parked.
    pub async fn wait_parked(&self, event_id: &str) -> Result<String> {
        let sql = "SELECT waiting_reason FROM inbox JOIN events USING (event_seq)
            WHERE event_id = $1";
        self.wait_text("a parked event", sql, event_id).await
    }

    /// How an event was decrypted, and how many of its rows there are.
    pub async fn decryption(&self, event_id: &str) -> Result<(String, i64)> {
        sqlx::query_as(
            "SELECT MIN(decryption), COUNT(*) FROM event_log JOIN events USING (event_seq)
            WHERE event_id = $1",
        )
        .bind(event_id)
        .fetch_one(&self.sql)
        .await
        .context("the event log")
    }

    /// Asserts that this message was answered exactly once, now that nothing is under way.
    pub async fn answered_once(&self, person: &Person, bot: &Bot, asked: &str) -> Result<Read> {
        let answer = person.answer_to(&bot.room, asked).await?;
        self.settled().await?;
        let mut read = person.read(&bot.room).await?;
        read.retain(|read| read.answers.as_deref() == Some(asked));
        ensure!(read.len() == 1, "{read:?}");
        ensure!(self.decryption(asked).await?.1 == 1, "more than one row in the event log");
        Ok(answer)
    }
}

/// [`Scene::sign_up`] where greenshield is about to be killed.
pub async fn sign_up(
    public_url: &str,
    code: &str,
    username: &str,
    key: Option<&str>,
) -> Result<(u16, Value)> {
    let body = json!({ "code": code, "username": username });
    let mut request = crate::support::http().post(format!("{public_url}/signup/api")).json(&body);
    if let Some(key) = key {
        request = request.header("Idempotency-Key", key);
    }
    let answer = request.send().await?;
    Ok((answer.status().as_u16(), answer.json().await?))
}

impl Bot {
    pub fn of(signup: Value) -> Result<Self> {
        let text = |key: &str| {
            let text = signup[key].as_str().map(ToOwned::to_owned);
            text.with_context(|| format!("no `{key}` in {signup}"))
        };
        let (user_id, device_id, room) = (text("user_id")?, text("device_id")?, text("dm_room")?);
        Ok(Self { user_id, device_id, room, signup })
    }

    /// This bot's value in a transaction's maps by user and device.
    pub fn map(&self, value: Value) -> Value {
        json!({ self.user_id.as_str(): { self.device_id.as_str(): value } })
    }
}
