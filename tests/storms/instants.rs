//! SIGKILL at chosen instants: one message, its room key and its answer, broken off at each write and
//! at each call that they lead to.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{ledger::Tally, village::Village};
use crate::support::{
    fake_homeserver::{
        Fault::{self, Hang, Swallowed},
        Person,
    },
    hold::{
        Fate::{self, Dies, Goes},
        Holds,
        Moment::{self, Commit, Statement},
    },
    poll, report,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// What it means, the table, and what becomes of the database transaction.
const WRITES: [(&str, &str, Moment, Fate); 13] = [
    ("before a transaction is committed", "transactions", Statement, Dies),
    ("after a transaction's commit, before its 200", "transactions", Commit, Goes),
    ("before a room key is kept", "crypto_inbound_group_sessions", Commit, Dies),
    ("after a room key is kept", "crypto_inbound_group_sessions", Commit, Goes),
    ("before an Olm session is kept", "crypto_olm_sessions", Commit, Dies),
    ("after an Olm session is kept", "crypto_olm_sessions", Commit, Goes),
    ("between decrypting and recording", "event_log", Statement, Dies),
    ("after recording", "event_log", Commit, Goes),
    ("before an answer is in the outbox", "outbox", Statement, Dies),
    ("after an answer is in the outbox", "outbox", Commit, Goes),
    ("before the ratchet's step is kept", "crypto_outbound_group_sessions", Statement, Dies),
    ("between ratchet and send", "crypto_outbound_group_sessions", Commit, Goes),
    ("before new one-time keys are kept", "crypto_accounts", Commit, Dies),
];

const CALLS: [(&str, &str, Fault); 10] = [
    ("asking for devices", "/keys/query", Swallowed),
    ("having asked for devices", "/keys/query", Hang),
    ("claiming one-time keys", "/keys/claim", Swallowed),
    ("having claimed one-time keys", "/keys/claim", Hang),
    ("giving a room key", "/sendToDevice/", Swallowed),
    ("having given a room key", "/sendToDevice/", Hang),
    ("sending", "/send/", Swallowed),
    ("between sending and recording", "/send/", Hang),
    ("publishing one-time keys", "/keys/upload", Swallowed),
    ("having published one-time keys", "/keys/upload", Hang),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_write_of_a_message_and_its_answer_changes_nothing() -> Result<()> {
    let mut street = Street::new().await?;
    let mut holds = Holds::install(&street.village.scene.database).await?;
    while street.goes_on() {
        for (what, table, moment, fate) in WRITES {
            street.write(&mut holds, table, moment, fate).await.context(what)?;
            street.noted(what);
        }
    }
    street.close().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_call_of_a_message_and_its_answer_changes_nothing() -> Result<()> {
    let mut street = Street::new().await?;
    while street.goes_on() {
        for (what, path, fault) in CALLS {
            street.call(path, fault).await.context(what)?;
            street.noted(what);
        }
    }
    let uploads = street.village.scene.fake.calls("/keys/upload");
    ensure!(uploads.iter().all(|call| call.status != 400), "one-time keys were refused");
    street.close().await
}

/// A village, and a newcomer before every message.
struct Street {
    village: Village,
    until: Instant,
    newcomers: usize,
    tally: Tally,
}

impl Street {
    async fn new() -> Result<Self> {
        let village = Village::found().await?;
        let until = Instant::now() + report::budget(0.08, Duration::ZERO);
        Ok(Self { village, until, newcomers: 0, tally: Tally::new() })
    }

    /// All instants once, and again while there is time.
    fn goes_on(&self) -> bool {
        self.newcomers == 0 || Instant::now() < self.until
    }

    fn noted(&mut self, what: &str) {
        *self.tally.entry(format!("SIGKILL {what}")).or_default() += 1;
    }

    async fn write(
        &mut self,
        holds: &mut Holds,
        table: &str,
        moment: Moment,
        fate: Fate,
    ) -> Result<()> {
        let newcomer = self.newcomer().await?;
        poll::until("everything to be pushed", PATIENCE, async || {
            Ok(self.village.scene.fake.is_pushed().then_some(()))
        })
        .await?;
        let drains = table == "crypto_accounts";
        if drains {
            // It is also written for messages that are still to be taken in.
            self.village.caught_up().await?;
        }
        holds.arm(Some(table), 0, moment).await?;
        if drains {
            self.drain().await?;
            ensure!(holds.reached(PATIENCE).await?, "no new one-time keys");
        }
        let asked = self.ask().await?;
        ensure!(holds.reached(PATIENCE).await?, "nothing was written to {table}");
        self.village.scene.greenshield.kill9().await?;
        holds.let_go(fate).await?;
        self.go_on(&newcomer, &asked).await
    }

    async fn call(&mut self, path: &str, fault: Fault) -> Result<()> {
        let trap = self.village.scene.fake.trap(path, 0, fault);
        if path == "/keys/upload" {
            self.drain().await?;
        }
        let newcomer = self.newcomer().await?;
        let asked = self.ask().await?;
        trap.sprung().await?;
        self.village.scene.greenshield.kill9().await?;
        self.go_on(&newcomer, &asked).await
    }

    /// Somebody whose devices are to be asked for, and whose keys to be claimed.
    async fn newcomer(&mut self) -> Result<Person> {
        self.newcomers += 1;
        let name = format!("newcomer{}", self.newcomers);
        let newcomer = Person::new(&self.village.scene.fake, &name).await?;
        newcomer.join(&self.room()).await?;
        Ok(newcomer)
    }

    /// The room where everybody is.
    fn room(&self) -> String {
        self.village.folk.rooms.last().expect("a room").id.clone()
    }

    /// Asks all bots there, with a new room key.
    async fn ask(&mut self) -> Result<String> {
        let room = self.village.folk.rooms.len() - 1;
        self.village.folk.people[0].forget_key(&self.room()).await?;
        self.village.folk.say(room, 0, "!ping").await
    }

    async fn go_on(&mut self, newcomer: &Person, asked: &str) -> Result<()> {
        self.village.scene.greenshield.start().await?;
        let answer = newcomer.answer_to(&self.room(), asked).await?;
        ensure!(answer.shield == "None", "{answer:?}");
        // It leaves again: those who have gone are given no keys.
        self.village.scene.fake.leave(&self.room(), &newcomer.user_id);
        Ok(())
    }

    /// The first bot's one-time keys are used up, and it is told.
    async fn drain(&self) -> Result<()> {
        let fake = &self.village.scene.fake;
        let bot = &self.village.folk.bots[0];
        fake.drain_one_time_keys(&bot.user_id, &bot.device_id);
        let counts = json!({ "org.matrix.msc3202.device_one_time_keys_count": bot.map(json!({})) });
        let id = format!("drained{}", self.newcomers);
        ensure!(fake.transaction(&id, &counts).await?.0 == 200);
        Ok(())
    }

    async fn close(self) -> Result<()> {
        self.village.close("Crashes", &self.tally).await
    }
}
