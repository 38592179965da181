//! A bot that has lost its device gets a new one under the same identity, and nobody has to verify it
//! again; the identity itself is never replaced.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::scene::{Scene, unmarked};
use crate::support::{
    human::{Engine, Human, PATIENCE, Via},
    poll, random,
    world::World,
};

with_both_engines!(a_device_deleted_at_the_homeserver_is_replaced);

async fn a_device_deleted_at_the_homeserver_is_replaced(engine: Engine) -> Result<()> {
    let world = World::start().await?;
    let scene = Scene::open(&world, engine).await?;
    unmarked(&scene.ping().await?)?;
    scene.verify(Via::Room(&scene.room)).await?;
    ensure!(repair(&scene)?["outcome"] == "healthy", "a repair of what is whole");

    let path = format!("devices/{}", scene.device());
    let deleted = scene.as_bot(reqwest::Method::DELETE, &path, &json!({})).await?;
    ensure!(deleted.status().is_success(), "{deleted:?}");
    ensure!(repair(&scene)?["outcome"] == "new_device", "nothing was repaired");
    scene.works_on_a_new_device(true).await?;
    ensure!(repair(&scene)?["outcome"] == "healthy", "a second repair finds more to do");
    Ok(())
}

/// With the account gone the bot must not make other keys under the same device id.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_account_is_noticed_and_a_new_device_made() -> Result<()> {
    let mut world = World::start().await?;
    for damage in [
        "DELETE FROM crypto_accounts",
        "UPDATE crypto_accounts SET sealed_account = '\\x00'",
        CRASHED,
    ] {
        let scene = Scene::open(&world, Engine::Rust).await?;
        unmarked(&scene.ping().await?)?;
        scene.verify(Via::Room(&scene.room)).await?;
        let parts = Parts::of(scene);
        world.greenshield.stop().await?;
        sqlx::query(damage).execute(&world.sql().await?).await?;
        world.greenshield.start().await?;

        let scene = parts.scene(&world);
        scene.human.send_text(&scene.room, "Are you there?").await?;
        scene.wait_repair("account").await?;
        scene.works_on_a_new_device(true).await?;
        // Were it still there, the second round would damage it again.
        let retired = "UPDATE bots SET state = 'retired'";
        sqlx::query(retired).execute(&world.sql().await?).await?;
        sqlx::query("DELETE FROM crypto_accounts").execute(&world.sql().await?).await?;
        let Scene { human, .. } = scene;
        human.stop().await?;
    }
    Ok(())
}

/// A repair that a crash broke off right after the old device was given up.
const CRASHED: &str = "WITH wish AS (
        INSERT INTO repairs
            (bot_id, reason, new_device_id, old_device_id, asked_at, switched_at)
        SELECT bot_id, 'account', 'RESUMED', device_id, NOW(), NOW()
        FROM bots WHERE state = 'active'
    ), switched AS (
        UPDATE bots SET device_id = 'RESUMED' WHERE state = 'active'
    ),
    a AS (DELETE FROM crypto_values),
    b AS (DELETE FROM crypto_olm_sessions),
    c AS (DELETE FROM crypto_outbound_group_sessions),
    d AS (DELETE FROM crypto_devices WHERE user_id LIKE '@bot%'),
    e AS (DELETE FROM crypto_identities WHERE user_id LIKE '@bot%')
    DELETE FROM crypto_accounts";

/// With so many one-time keys at the homeserver a bot makes others: it has more than these afterwards, how
/// many depends on the count that it was told.
const LOW: u64 = 20;

/// As after restoring an older backup: the account counts on from where it was, and the homeserver
/// holds other keys under those ids.
#[tokio::test(flavor = "multi_thread")]
async fn one_time_keys_that_are_taken_lead_to_a_new_device() -> Result<()> {
    let mut world = World::start().await?;
    let scene = Scene::open(&world, Engine::Rust).await?;
    unmarked(&scene.ping().await?)?;
    scene.verify(Via::Room(&scene.room)).await?;
    let sql = world.sql().await?;
    sqlx::query("CREATE TABLE older AS SELECT * FROM crypto_accounts").execute(&sql).await?;
    scene.take_one_time_keys().await?;
    unmarked(&scene.ping().await?)?;
    poll::until("new one-time keys", PATIENCE, async || {
        Ok((scene.one_time_keys().await? > LOW).then_some(()))
    })
    .await?;
    let parts = Parts::of(scene);
    world.greenshield.stop().await?;
    parts.human.send_text(&parts.room, "Are you there?").await?;
    let restore = "UPDATE crypto_accounts a SET sealed_account = o.sealed_account
        FROM older o WHERE o.bot_id = a.bot_id";
    sqlx::query(restore).execute(&world.sql().await?).await?;
    world.greenshield.start().await?;

    let scene = parts.scene(&world);
    // Told here: Synapse gives the oldest keys out first, and so would have none left of those that come
    // again if a count was told twice, and the bot made keys twice.
    scene.tell_count(LOW).await?;
    scene.wait_repair("one_time_keys").await?;
    scene.works_on_a_new_device(true).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identity_that_is_not_ours_is_told_and_nothing_is_changed() -> Result<()> {
    let world = World::start().await?;
    let scene = Scene::open(&world, Engine::Rust).await?;
    unmarked(&scene.ping().await?)?;
    let unknown = world.greenshield.run(&["bots", "repair", "@nobody:localhost.test"]);
    let unknown = unknown.expect_err("there is no such bot").to_string();
    ensure!(unknown.contains("there is no bot") && unknown.contains("exit status: 2"), "{unknown}");

    let alien = random_key();
    let body = json!({ "master_key": {
        "user_id": scene.bot(), "usage": ["master"], "keys": { format!("ed25519:{alien}"): alien },
    } });
    let path = "keys/device_signing/upload";
    let answer = scene.as_bot(reqwest::Method::POST, path, &body).await?;
    ensure!(answer.status().is_success(), "{}", answer.text().await?);

    let refused = world.greenshield.run(&["bots", "repair", scene.bot()]);
    let refused = refused.expect_err("a repair over another identity").to_string();
    ensure!(refused.contains("another cross-signing identity"), "{refused}");
    let sql = world.sql().await?;
    sqlx::query("UPDATE bots SET identity_checked_at = NULL, reconciled_at = NULL")
        .execute(&sql)
        .await?;
    let shown = poll::until("an alarm", PATIENCE, async || {
        let shown = shown(&scene)?;
        let alarm = shown["alarm"].as_str().unwrap_or_default();
        Ok(alarm.contains("another cross-signing identity").then_some(shown))
    })
    .await?;
    ensure!(shown["device_id"] == scene.device(), "{shown}");
    ensure!(shown["identity"]["msk_public"] == scene.signup["msk_public"], "{shown}");
    let metrics = format!("{}/metrics", world.greenshield.operator_url());
    let metrics = crate::support::http().get(metrics).send().await?.text().await?;
    ensure!(metrics.contains("greenshield_identity_mismatch 1"), "{metrics}");
    Ok(())
}

/// Runs `greenshield bots repair`.
fn repair(scene: &Scene<'_>) -> Result<Value> {
    let printed = scene.world.greenshield.run(&["bots", "repair", scene.bot(), "--json"])?;
    serde_json::from_str(&printed).with_context(|| printed)
}

fn shown(scene: &Scene<'_>) -> Result<Value> {
    let printed = scene.world.greenshield.run(&["bots", "show", scene.bot(), "--json"])?;
    serde_json::from_str(&printed).with_context(|| printed)
}

fn random_key() -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
    STANDARD_NO_PAD.encode(random::bytes::<32>())
}

impl Scene<'_> {
    /// How many one-time keys of the bot the homeserver has.
    async fn one_time_keys(&self) -> Result<u64> {
        let path = format!("keys/upload?device_id={0}", self.device());
        let answer = self.as_bot(reqwest::Method::POST, &path, &json!({})).await?;
        let answer: Value = answer.error_for_status()?.json().await?;
        answer["one_time_key_counts"]["signed_curve25519"].as_u64().context("a count")
    }

    /// Takes so many of the bot's one-time keys that it has to make others.
    async fn take_one_time_keys(&self) -> Result<()> {
        let wanted = json!({ "one_time_keys": {
            self.bot(): { self.device(): "signed_curve25519" }
        } });
        while self.one_time_keys().await? > LOW {
            let taken = self.as_bot(reqwest::Method::POST, "keys/claim", &wanted).await?;
            taken.error_for_status()?;
        }
        Ok(())
    }

    /// Tells greenshield, as the homeserver does, how many one-time keys of the bot are left.
    async fn tell_count(&self, left: u64) -> Result<()> {
        let registration = std::fs::read_to_string(self.world.greenshield.registration())?;
        let registration: Value = serde_yaml::from_str(&registration)?;
        let url = registration["url"].as_str().context("a url")?;
        let token = registration["hs_token"].as_str().context("an hs_token")?;
        let counts = json!({ self.bot(): { self.device(): { "signed_curve25519": left } } });
        let counts = json!({ "org.matrix.msc3202.device_one_time_keys_count": counts });
        let url = format!("{url}/_matrix/app/v1/transactions/{}", random::suffix());
        let told = crate::support::http().put(url).bearer_auth(token).json(&counts);
        told.send().await?.error_for_status()?;
        Ok(())
    }

    /// A call of the client-server API as the bot, without a device unless `path` names one.
    async fn as_bot(
        &self,
        method: reqwest::Method,
        path: &str,
        body: &Value,
    ) -> Result<reqwest::Response> {
        let registration = std::fs::read_to_string(self.world.greenshield.registration())?;
        let registration: Value = serde_yaml::from_str(&registration)?;
        let token = registration["as_token"].as_str().context("an as_token")?;
        let url = format!("{}/_matrix/client/v3/{path}", self.world.synapse.url());
        let url = url::Url::parse_with_params(&url, [("user_id", self.bot())])?;
        let request = crate::support::http().request(method, url).bearer_auth(token);
        Ok(request.json(body).send().await?)
    }

    /// Until a repair for this reason has ended with a new device.
    async fn wait_repair(&self, reason: &str) -> Result<()> {
        let sql = self.world.sql().await?;
        let ended = poll::until("a repair", PATIENCE, async || {
            let row: Option<(Value,)> = sqlx::query_as(
                "SELECT to_jsonb(r) FROM repairs r JOIN bots b USING (bot_id)
                WHERE b.user_id = $1 AND r.finished_at IS NOT NULL",
            )
            .bind(self.bot())
            .fetch_optional(&sql)
            .await?;
            Ok(row.map(|(row,)| row))
        })
        .await?;
        ensure!(ended["reason"] == reason && ended["outcome"] == "new_device", "{ended}");
        Ok(())
    }

    /// The bot has another device, signed by the identity of its signup, which the human still holds
    /// for verified; it answers, and what it says carries no mark.
    async fn works_on_a_new_device(&self, verified: bool) -> Result<()> {
        let shown = shown(self)?;
        let device = shown["device_id"].as_str().context("a device id")?;
        ensure!(device != self.device(), "the same device: {shown}");
        ensure!(shown["repair"]["old_device_id"] == self.device(), "{shown}");
        let new = poll::until("the new device", PATIENCE, async || {
            let devices = self.human.devices(self.bot()).await?;
            Ok(devices.into_iter().find(|known| known.device_id == device))
        })
        .await?;
        ensure!(new.signed_by_owner, "{new:?}");
        unmarked(&self.ping().await?)?;
        let trust = self.human.user_trust(self.bot()).await?;
        ensure!(trust.msk.as_deref() == self.signup["msk_public"].as_str(), "{trust:?}");
        ensure!(trust.verified == verified, "{trust:?}");
        Ok(())
    }
}

/// A scene without its world, while parts of that are stopped.
struct Parts {
    human: Box<dyn Human>,
    signup: Value,
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
