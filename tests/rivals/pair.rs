//! Two greenshields on one database, and a homeserver that reaches now the one and now the other.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use sqlx::{Connection as _, PgConnection};
use url::Url;

use super::{quiet, watch};
use crate::{
    fast::scene::{Bot, PATIENCE, Scene},
    support::{
        fake_homeserver::Person, greenshield::Greenshield, hold::Holds, poll, postgres::Database,
        process::Signal,
    },
};

/// A look for free shards comes every third of a lease, and first the way to the database may have to be
/// found again.
const SHARING: Duration = Duration::from_secs(120);

pub const NAMES: [&str; 2] = ["one", "other"];

/// Dropped in this order.
pub struct Pair {
    pub scene: Scene,
    pub other: Greenshield,
    database: Database,
}

impl Pair {
    /// Two that run, and what they write is watched.
    pub async fn start(lease_seconds: u64) -> Result<Self> {
        let database = Database::create().await?;
        let others = database.url();
        Self::on(database, &others, lease_seconds).await
    }

    /// Two of which the other reaches the database by a URL of its own.
    pub async fn on(database: Database, others: &Url, lease_seconds: u64) -> Result<Self> {
        let mut scene = Scene::on(&watch::url(&database.url(), NAMES[0])).await?;
        watch::install(&scene.sql, NAMES[0]).await?;
        scene.greenshield.configure(|c| {
            c["workers"] = [("lease_seconds", lease_seconds)].into_iter().collect()
        })?;
        let mut other = scene.greenshield.beside(&watch::url(others, NAMES[1]))?;
        scene.fake.also_reach(&other.appservice_url());
        scene.greenshield.restart().await?;
        other.start().await?;
        let pair = Self { scene, other, database };
        pair.shared().await?;
        Ok(pair)
    }

    /// The one or the other.
    pub fn greenshield(&mut self, which: usize) -> &mut Greenshield {
        if which == 0 { &mut self.scene.greenshield } else { &mut self.other }
    }

    pub fn signal(&mut self, which: usize, signal: Signal) -> Result<()> {
        let process = self.greenshield(which).process().context("it runs")?;
        ensure!(process.signal(signal), "{} is gone", NAMES[which]);
        Ok(())
    }

    /// How many shards each of them has.
    pub async fn shares(&self) -> Result<[i64; 2]> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT n.name, COUNT(*) FROM shards s JOIN watch.names n ON n.process_id = s.owner
            WHERE s.expires_at > NOW() GROUP BY 1",
        )
        .fetch_all(&self.scene.sql)
        .await?;
        let rows: HashMap<_, _> = rows.into_iter().collect();
        Ok(NAMES.map(|name| rows.get(name).copied().unwrap_or_default()))
    }

    /// Until both have half of the shards.
    pub async fn shared(&self) -> Result<()> {
        poll::until("both to have half of the shards", SHARING, async || {
            Ok((self.shares().await? == [32, 32]).then_some(()))
        })
        .await
    }

    /// Until one of them has all.
    pub async fn has_all(&self, which: usize) -> Result<()> {
        poll::until("one to have all of the shards", SHARING, async || {
            Ok((self.shares().await?[which] == 64).then_some(()))
        })
        .await
    }

    /// The leases of this one, which is dead, would last for an hour: nothing but its free lock tells.
    pub async fn lasts_long(&self, dead: usize) -> Result<()> {
        sqlx::query(
            "UPDATE shards SET expires_at = NOW() + INTERVAL '1 hour'
            WHERE owner IN (SELECT process_id FROM watch.names WHERE name = $1)",
        )
        .bind(NAMES[dead])
        .execute(&self.scene.sql)
        .await?;
        Ok(())
    }

    /// Who works this bot now.
    pub async fn works(&self, bot: &Bot) -> Result<usize> {
        self.worker_of(&bot.user_id).await
    }

    pub async fn worker_of(&self, user_id: &str) -> Result<usize> {
        let name: String = sqlx::query_scalar(
            "SELECT n.name FROM bots b JOIN shards s USING (shard)
            JOIN watch.names n ON n.process_id = s.owner WHERE b.user_id = $1",
        )
        .bind(user_id)
        .fetch_one(&self.scene.sql)
        .await?;
        named(name)
    }

    /// Until one is held where it was to be; which one.
    pub async fn held(&self, holds: &mut Holds) -> Result<usize> {
        ensure!(holds.reached(PATIENCE).await?, "nothing was held");
        named(holds.held_name().await?)
    }

    /// A bot of a shard that this one works: bots are dealt to the shards in turn, and the first half
    /// of the shards is the one's.
    pub async fn bot_of(&self, which: usize, person: &Person) -> Result<Bot> {
        for _ in 0..4 {
            let bot = self.scene.bot(person).await?;
            if self.works(&bot).await? == which {
                return Ok(bot);
            }
            // The next bot's id, and so its shard, lies in the other half.
            sqlx::query("SELECT setval(pg_get_serial_sequence('bots', 'bot_id'), (SELECT MAX(bot_id) FROM bots) + 31)")
                .execute(&self.scene.sql)
                .await?;
        }
        anyhow::bail!("no bot is worked by {}", NAMES[which])
    }

    /// The answer to this message, and how long it took from now.
    pub async fn answer(&self, person: &Person, bot: &Bot, asked: &str) -> Result<Duration> {
        let began = std::time::Instant::now();
        let answer = person.answer_to(&bot.room, asked).await?;
        ensure!(answer.body == "pong" && answer.shield == "None", "{answer:?}");
        Ok(began.elapsed())
    }

    /// What must be true whatever happened: nobody wrote what was not theirs, and no ratchet was used
    /// twice at one position. Tells in a few words what was looked at.
    pub async fn is_whole(&self) -> Result<String> {
        let writes = watch::nobody_trespassed(&self.scene.sql).await?;
        let ratchets = self.scene.fake.ratchets()?;
        ensure!(ratchets.used_twice.is_empty(), "{:?}", ratchets.used_twice);
        ensure!(ratchets.megolm > 0 && ratchets.olm > 0, "{ratchets:?}");
        ensure!(self.scene.fake.unsigned().is_empty(), "{:?}", self.scene.fake.unsigned());
        Ok(format!(
            "{writes} writes of workers, {} Megolm and {} Olm positions",
            ratchets.megolm, ratchets.olm
        ))
    }

    /// Writes, in the name of who does not work this bot, what only its worker may write.
    pub async fn trespass(&self, bot: &Bot) -> Result<()> {
        let stranger = NAMES[1 - self.works(bot).await?];
        let url = watch::url(&self.database.url(), stranger);
        let mut connection = PgConnection::connect(url.as_str()).await?;
        let write = "UPDATE outbox SET attempts = attempts
            WHERE bot_id = (SELECT bot_id FROM bots WHERE user_id = $1)";
        sqlx::query(write).bind(&bot.user_id).execute(&mut connection).await?;
        Ok(())
    }

    pub fn database_url(&self) -> Url {
        self.database.url()
    }
}

fn named(name: String) -> Result<usize> {
    NAMES.iter().position(|known| *known == name).context(name)
}

/// Asserts that each of these messages was answered exactly once, and that the bot said nothing else
/// but its intro.
pub async fn each_answered_once(
    scene: &Scene,
    person: &Person,
    bot: &Bot,
    asked: &[String],
) -> Result<()> {
    quiet(scene).await?;
    let read = person.read(&bot.room).await?;
    for asked in asked {
        let answers = read.iter().filter(|read| read.answers.as_ref() == Some(asked)).count();
        ensure!(answers == 1, "{asked} in {} has {answers} answers", bot.room);
        ensure!(scene.decryption(asked).await?.1 == 1, "{asked} is not once in the log");
    }
    let said = scene.fake.said_by(&bot.user_id, &bot.room);
    ensure!(said.len() == asked.len() + 1, "{} messages for {} questions", said.len(), asked.len());
    Ok(())
}
