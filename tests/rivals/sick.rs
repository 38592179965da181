//! One bot of three is sick: it is healed, or says what is wrong, and the others notice nothing.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

use super::quiet;
use crate::{
    e2e::scene::{Scene as RealScene, unmarked},
    fast::scene::{Bot, PATIENCE, Scene},
    support::{
        fake_homeserver::{Fault, Person},
        human::Engine,
        poll, report,
        world::World,
    },
};

/// What the others answer within, whatever happens to the sick one.
const UNSLOWED: Duration = Duration::from_secs(4);

/// Pings until an answer comes unslowed, a few times at most: a busy machine is slow now and then, what
/// waits for the sick one is slow as long as that is sick. The slowest.
async fn unslowed<T>(mut ping: impl AsyncFnMut() -> Result<T>) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for _ in 0..5 {
        let began = Instant::now();
        ping().await?;
        let took = began.elapsed();
        slowest = slowest.max(took);
        if took < UNSLOWED {
            return Ok(slowest);
        }
    }
    anyhow::bail!("another bot was always slow, and took up to {slowest:?}")
}

/// Asserts that nothing of this bot has failed: it says nothing, and no message took two attempts.
async fn unharmed(sql: &PgPool, bot: &str) -> Result<()> {
    let (error, again): (Option<String>, i64) = sqlx::query_as(
        "SELECT last_error, (SELECT COUNT(*) FROM outbox o WHERE o.bot_id = b.bot_id AND attempts > 0)
        FROM bots b WHERE user_id = $1",
    )
    .bind(bot)
    .fetch_one(sql)
    .await?;
    ensure!(error.is_none() && again == 0, "another bot: {error:?}, {again} messages tried again");
    Ok(())
}

/// What becomes of the sick bot.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// It answers the next message.
    Heals,
    /// It answers the next message, and has a new device.
    HealsOnANewDevice,
    /// It says this, and answers when the cause is gone.
    Says(&'static str),
}

/// A sealed column of what is stored already, and what becomes of a bot whose rows are damaged there.
const DAMAGED: [(&str, &str, Outcome); 10] = [
    ("crypto_values", "sealed_value", Outcome::Heals),
    ("crypto_custom_values", "sealed_value", Outcome::Heals),
    ("crypto_withheld_sessions", "sealed_entry", Outcome::Heals),
    ("device_lists", "sealed_answer", Outcome::Heals),
    ("crypto_inbound_group_sessions", "sealed_session", Outcome::Heals),
    ("crypto_olm_sessions", "sealed_session", Outcome::Heals),
    ("crypto_devices", "sealed_device", Outcome::Heals),
    ("crypto_identities", "sealed_identity", Outcome::Heals),
    ("crypto_outbound_group_sessions", "sealed_session", Outcome::Heals),
    ("crypto_accounts", "sealed_account", Outcome::HealsOnANewDevice),
];

/// What must be so for the damaged rows of a table to be read; `bot` is the sick one's.
const READ: [(&str, &str); 2] = [
    // The next message comes under a key that is withheld.
    (
        "crypto_withheld_sessions",
        "WITH lost AS (
            DELETE FROM crypto_inbound_group_sessions WHERE bot_id = {bot}
            RETURNING bot_id, room_id, session_id
        )
        INSERT INTO crypto_withheld_sessions (bot_id, room_id, session_id, sealed_entry, created_at)
        SELECT bot_id, room_id, session_id, '', NOW() FROM lost",
    ),
    // It has to ask whose devices there are.
    ("device_lists", "UPDATE crypto_devices SET sealed_device = '\\x00' WHERE bot_id = {bot}"),
];

/// A sealed column of what is on its way, so that it is damaged while it is written.
const DAMAGED_ON_THE_WAY: [(&str, &str, &str); 3] = [
    ("inbox", "sealed_payload", "an entry of its inbox did not open"),
    ("events", "sealed_event", "a stored event does not open"),
    ("outbox", "sealed_content", "its sealed content does not open"),
];

struct Ward {
    scene: Scene,
    alice: Person,
    sick: Bot,
    others: [Bot; 2],
    slowest: Duration,
}

impl Ward {
    async fn open() -> Result<Self> {
        let (scene, alice, sick) = Scene::with_bot().await?;
        let others = [scene.bot(&alice).await?, scene.bot(&alice).await?];
        let mut ward = Self { scene, alice, sick, others, slowest: Duration::ZERO };
        ward.alice.ping(&ward.sick.room).await?;
        ward.others_answer().await?;
        ward.quiet().await?;
        Ok(ward)
    }

    async fn others_answer(&mut self) -> Result<()> {
        for other in &self.others {
            let took = unslowed(async || self.alice.ping(&other.room).await).await?;
            self.slowest = self.slowest.max(took);
            unharmed(&self.scene.sql, &other.user_id).await?;
        }
        Ok(())
    }

    /// Until nothing is under way but what waits for a key that is gone.
    async fn quiet(&self) -> Result<()> {
        quiet(&self.scene).await
    }

    async fn last_error(&self) -> Result<Option<String>> {
        let error = sqlx::query_scalar("SELECT last_error FROM bots WHERE user_id = $1");
        Ok(error.bind(&self.sick.user_id).fetch_one(&self.scene.sql).await?)
    }

    async fn device(&self) -> Result<String> {
        let device = sqlx::query_scalar("SELECT device_id FROM bots WHERE user_id = $1");
        Ok(device.bind(&self.sick.user_id).fetch_one(&self.scene.sql).await?)
    }

    /// The sick one is asked, the others answer meanwhile, and it comes out as it should.
    async fn comes_out(
        &mut self,
        outcome: Outcome,
        heal: impl AsyncFnOnce(&Self) -> Result<()>,
    ) -> Result<()> {
        let device = self.device().await?;
        let asked = self.alice.say(&self.sick.room, "!ping").await?;
        self.others_answer().await?;
        if let Outcome::Says(what) = outcome {
            let said = poll::until(what, PATIENCE, async || {
                Ok(self.last_error().await?.filter(|error| error.contains(what)))
            });
            if let Err(error) = said.await {
                return Err(error.context(format!("it says {:?}", self.last_error().await?)));
            }
            self.others_answer().await?;
            heal(self).await?;
            self.alice.forget_key(&self.sick.room).await?;
            self.alice.ping(&self.sick.room).await?;
            return Ok(());
        }
        // A room key that is gone is gone: the next one comes with the next rotation.
        let answered = poll::until("an answer", PATIENCE, async || {
            let read = self.alice.read(&self.sick.room).await?;
            let answered = read.iter().any(|read| read.answers.as_ref() == Some(&asked));
            let parked: i64 = sqlx::query_scalar(
                "SELECT COUNT(*) FROM inbox JOIN events USING (event_seq)
                WHERE event_id = $1 AND waiting_for IS NOT NULL",
            )
            .bind(&asked)
            .fetch_one(&self.scene.sql)
            .await?;
            Ok((answered || parked > 0).then_some(answered))
        })
        .await
        .with_context(|| format!("{outcome:?}"))?;
        if !answered {
            self.alice.forget_key(&self.sick.room).await?;
            self.alice.ping(&self.sick.room).await?;
        }
        let now = self.device().await?;
        let is_new = now != device;
        ensure!(is_new == matches!(outcome, Outcome::HealsOnANewDevice), "{device} became {now}");
        self.others_answer().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bot_with_damaged_rows_is_healed_or_says_so_and_others_go_on() -> Result<()> {
    let mut ward = Ward::open().await?;
    for (table, column, outcome) in DAMAGED {
        ward.quiet().await?;
        ward.scene.greenshield.stop().await?;
        let bot: i64 = sqlx::query_scalar("SELECT bot_id FROM bots WHERE user_id = $1")
            .bind(&ward.sick.user_id)
            .fetch_one(&ward.scene.sql)
            .await?;
        for (_, sql) in READ.into_iter().filter(|(name, _)| *name == table) {
            let sql = sql.replace("{bot}", &bot.to_string());
            let done = sqlx::query(AssertSqlSafe(sql)).execute(&ward.scene.sql).await?;
            ensure!(done.rows_affected() > 0, "nothing would read {table}");
        }
        let whose = match table {
            // The fleet's.
            "device_lists" => "sealed_answer IS NOT NULL".to_owned(),
            _ => format!("bot_id = {bot}"),
        };
        let damage = format!("UPDATE {table} SET {column} = '\\x00' WHERE {whose}");
        let damage = sqlx::query(AssertSqlSafe(damage));
        let rows = damage.execute(&ward.scene.sql).await?.rows_affected();
        ensure!(rows > 0, "there is nothing in {table}");
        ward.scene.greenshield.start().await?;
        let out = ward.comes_out(outcome, async |_| Ok(())).await;
        if let Err(error) = out {
            return Err(error.context(format!("{table}: it says {:?}", ward.last_error().await?)));
        }
    }
    for (table, column, says) in DAMAGED_ON_THE_WAY {
        ward.quiet().await?;
        ward.alice.forget_key(&ward.sick.room).await?;
        let whose = if table == "events" {
            format!("NEW.room_id = '{}'", ward.sick.room)
        } else {
            format!(
                "NEW.bot_id = (SELECT bot_id FROM bots WHERE user_id = '{}')",
                ward.sick.user_id
            )
        };
        let damage = format!(
            "CREATE OR REPLACE FUNCTION damage() RETURNS TRIGGER LANGUAGE plpgsql AS $$
            BEGIN
                IF NEW.{column} IS NOT NULL AND {whose} THEN
                    NEW.{column} := '\\x00';
                END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER damage BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION damage()"
        );
        sqlx::raw_sql(AssertSqlSafe(damage)).execute(&ward.scene.sql).await?;
        if table == "outbox" {
            // An answer is read there only if it was not taken at once.
            let send = format!("{}/send/", ward.sick.room);
            ward.scene.fake.fault(&send, 1, Fault::refusal(500, "M_UNKNOWN"));
        }
        let out = ward
            .comes_out(Outcome::Says(says), async |ward| {
                let heal = format!("DROP TRIGGER damage ON {table}");
                sqlx::raw_sql(AssertSqlSafe(heal)).execute(&ward.scene.sql).await?;
                Ok(())
            })
            .await;
        out.with_context(|| table)?;
    }
    ensure!(ward.scene.fake.masters(&ward.sick.user_id).len() == 1, "another identity");
    ensure!(ward.scene.fake.unsigned().is_empty(), "an unsigned device");
    let times = DAMAGED.len() + DAMAGED_ON_THE_WAY.len();
    let note = format!(
        "Of three bots one had damaged rows in {times} sealed tables in turn: it was healed, or said so in `last_error`; the others answered within {:.1} s all the time, each message at the first attempt.",
        ward.slowest.as_secs_f64()
    );
    report::row("One sick bot", "damaged rows", times as u64, 0, &note);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_time_keys_that_are_taken_cost_the_others_nothing() -> Result<()> {
    let mut ward = Ward::open().await?;
    let conflict = Fault::Answer {
        status: 400,
        body: json!({ "errcode": "M_UNKNOWN",
            "error": "One time key signed_curve25519:AAAAAQ already exists. Old key: {}; new key: {}" })
        .to_string(),
    };
    let device = ward.device().await?;
    ward.scene.fake.fault("/keys/upload", 1, conflict);
    ward.scene.fake.drain_one_time_keys(&ward.sick.user_id, &ward.sick.device_id);
    let drained = json!({
        "org.matrix.msc3202.device_one_time_keys_count": ward.sick.map(json!({})) });
    ensure!(ward.scene.fake.transaction("drained", &drained).await?.0 == 200);
    ward.others_answer().await?;
    poll::until("a new device", PATIENCE, async || {
        Ok((ward.device().await? != device).then_some(()))
    })
    .await?;
    ward.comes_out(Outcome::Heals, async |_| Ok(())).await?;
    ensure!(ward.scene.fake.masters(&ward.sick.user_id).len() == 1, "another identity");
    ensure!(ward.scene.fake.unsigned().is_empty(), "an unsigned device");
    Ok(())
}

/// What a real homeserver says when somebody has deleted a bot's device, or its account.
#[tokio::test(flavor = "multi_thread")]
async fn a_bot_without_device_or_account_says_so_and_others_go_on() -> Result<()> {
    let world = World::start().await?;
    let other = RealScene::open(&world, Engine::Rust).await?;
    for what in ["device", "account"] {
        let sick = RealScene::open(&world, Engine::Rust).await?;
        unmarked(&sick.ping().await?)?;
        let deleted = match what {
            "device" => {
                let path = format!("client/v3/devices/{}?user_id={}", sick.device(), sick.bot());
                call(&world, reqwest::Method::DELETE, &path, &as_token(&world)?).await?
            }
            _ => {
                let path = format!("../_synapse/admin/v1/deactivate/{}", sick.bot());
                call(&world, reqwest::Method::POST, &path, world.synapse.admin_token().await?)
                    .await?
            }
        };
        ensure!(deleted.is_success(), "{what}: {deleted}");
        sick.human.send_text(&sick.room, "!ping").await.context("the sick bot's room")?;
        unslowed(async || unmarked(&other.ping().await?)).await?;
        let sql = world.sql().await?;
        unharmed(&sql, other.bot()).await?;
        // Whoever has no account is in no room, and hears of nothing before the next slow sweep.
        sqlx::query("UPDATE bots SET reconciled_at = NULL WHERE user_id = $1")
            .bind(sick.bot())
            .execute(&sql)
            .await?;
        let said = poll::until("an error", PATIENCE, async || {
            let error: Option<String> =
                sqlx::query_scalar("SELECT last_error FROM bots WHERE user_id = $1")
                    .bind(sick.bot())
                    .fetch_one(&sql)
                    .await?;
            Ok(error.filter(|error| error.contains("run `greenshield bots repair`")))
        });
        said.await.with_context(|| format!("deleted {what}"))?;
        unslowed(async || unmarked(&other.ping().await?)).await?;
        unharmed(&sql, other.bot()).await?;
    }
    report::row(
        "One sick bot",
        "its device or its account deleted on a real Synapse",
        2,
        0,
        "Its `last_error` names the cause, or the command that mends it; another bot answered as before.",
    );
    Ok(())
}

fn as_token(world: &World) -> Result<String> {
    let registration = std::fs::read_to_string(world.greenshield.registration())?;
    let registration: Value = serde_yaml::from_str(&registration)?;
    Ok(registration["as_token"].as_str().context("an as_token")?.to_owned())
}

async fn call(
    world: &World,
    method: reqwest::Method,
    path: &str,
    token: &str,
) -> Result<reqwest::StatusCode> {
    let url = url::Url::parse(&world.synapse.url())?.join(&format!("_matrix/{path}"))?;
    let request = crate::support::http().request(method, url).bearer_auth(token).json(&json!({}));
    Ok(request.send().await?.status())
}
