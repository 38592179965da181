//! A process that stands still for longer than its lease, in the middle of work, and wakes up when
//! another has done it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tokio::sync::Notify;

use super::{
    pair::{Pair, each_answered_once},
    quiet,
};
use crate::{
    fast::scene::{Bot, PATIENCE, sign_up},
    support::{
        fake_homeserver::{FakeHomeserver, Fault, Person, Trap},
        hold::{Fate, Holds, Moment},
        poll,
        process::{Guarded, Signal},
        report,
    },
};

const LEASE: u64 = 5;

/// Where it stands still.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// In a call whose path contains this: the homeserver carries it out late.
    Call(&'static str),
    /// In the commit of a change of this table, of which it does not hear any more.
    Commit(&'static str, u32),
    /// Between two statements of a transaction, whose locks last until the database ends it.
    Statement(&'static str),
}

/// How many of these the suite tries.
const FEW: usize = 4;

const STOPS: [Stop; 8] = [
    Stop::Call("/send/"),
    Stop::Statement("crypto_outbound_group_sessions"),
    // In the middle of taking the question in.
    Stop::Statement("transactions"),
    Stop::Commit("crypto_tracked_users", 0),
    Stop::Call("/keys/query"),
    Stop::Commit("crypto_outbound_group_sessions", 0),
    Stop::Call("/sendToDevice/"),
    Stop::Call("/keys/claim"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_frozen_at_work_writes_nothing_when_it_wakes() -> Result<()> {
    let mut frozen = Frozen::start().await?;
    let budget = report::budget(0.07, Duration::ZERO);
    let began = Instant::now();
    let mut times = 0;
    let least = if report::is_large() { STOPS.len() } else { FEW };
    while times < least || began.elapsed() < budget {
        frozen.at(STOPS[times % STOPS.len()], times).await?;
        times += 1;
    }
    each_answered_once(&frozen.pair.scene, &frozen.alice, &frozen.bot, &frozen.asked).await?;
    let looked = frozen.pair.is_whole().await?;
    frozen.pair.trespass(&frozen.bot).await?;
    ensure!(frozen.pair.is_whole().await.is_err(), "the watch is blind");
    let note = format!(
        "A process that was frozen for longer than its lease, in a call, a commit, the middle of a database transaction or while it took a transaction in, wrote nothing after it woke, and no ratchet was used twice: each message was answered once, at most {:.1} s after the freeze with a lease of {LEASE} s ({looked}).",
        frozen.longest.as_secs_f64()
    );
    report::row("Several processes", "SIGSTOP past the lease, and SIGCONT", times as u64, 0, &note);
    Ok(())
}

/// It has just been told that there is no room yet, and nothing that it does next has to be committed.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_was_frozen_at_a_signup_makes_no_second_room() -> Result<()> {
    let mut pair = Pair::start(LEASE).await?;
    let fake = pair.scene.fake.clone();
    let alice = Person::new(&fake, "alice").await?;
    let code = pair.scene.greenshield.mint_code(&alice.user_id, 1)?;
    let (look, tell) = late(&fake, "/joined_rooms");
    let public = pair.other.public_url();
    let (signup, frozen) = tokio::join!(sign_up(&public, &code, "helper", None), async {
        poll::until("the look for a room", PATIENCE, async || {
            Ok((fake.slowed("/joined_rooms") > 0).then_some(()))
        })
        .await?;
        let sql = "SELECT user_id FROM bots ORDER BY bot_id DESC LIMIT 1";
        let bot: String = sqlx::query_scalar(sql).fetch_one(&pair.scene.sql).await?;
        let worker = pair.worker_of(&bot).await?;
        ensure!(worker == 0, "the one whose listener was asked works it itself");
        pair.signal(worker, Signal::Stop)?;
        tell.notify_one();
        look.sprung().await?;
        anyhow::Ok(worker)
    });
    let (frozen, (status, signup)) = (frozen?, signup?);
    ensure!(status == 200, "{signup}");
    let made = || fake.calls("/createRoom").len();
    ensure!(made() == 1, "{} rooms", made());
    pair.signal(frozen, Signal::Cont)?;
    pair.shared().await?;
    quiet(&pair.scene).await?;
    ensure!(made() == 1, "{} rooms", made());
    Ok(())
}

/// Who stands still since when, with what question in hand.
struct Stopped {
    asked: String,
    /// The call that it was in, to be carried out when the test says so.
    call: Option<(Trap, Arc<Notify>)>,
    who: usize,
    since: Instant,
}

/// The next call with this in its path waits for the test; then the trap springs.
fn late(fake: &FakeHomeserver, path: &str) -> (Trap, Arc<Notify>) {
    let carry_out = Arc::new(Notify::new());
    (fake.trap(path, 0, Fault::Until(Arc::clone(&carry_out))), carry_out)
}

struct Frozen {
    pair: Pair,
    holds: Holds,
    alice: Person,
    bot: Bot,
    asked: Vec<String>,
    longest: Duration,
}

impl Frozen {
    async fn start() -> Result<Self> {
        let pair = Pair::start(LEASE).await?;
        let holds = Holds::install(&pair.database_url()).await?;
        let alice = Person::new(&pair.scene.fake, "alice").await?;
        let bot = pair.bot_of(0, &alice).await?;
        quiet(&pair.scene).await?;
        Ok(Self { pair, holds, alice, bot, asked: Vec::new(), longest: Duration::ZERO })
    }

    async fn at(&mut self, stop: Stop, n: usize) -> Result<()> {
        // A newcomer's devices are to be asked for, and given the key.
        let newcomer = Person::new(&self.pair.scene.fake, &format!("newcomer{n}")).await?;
        newcomer.join(&self.bot.room).await?;
        quiet(&self.pair.scene).await?;
        let worker = self.pair.works(&self.bot).await?;

        let Stopped { asked, call, who, since } = self.stop(stop, worker).await?;
        self.pair.answer(&self.alice, &self.bot, &asked).await?;
        self.longest = self.longest.max(since.elapsed());
        ensure!(self.pair.works(&self.bot).await? == 1 - who, "{stop:?}: who answered?");
        newcomer.answer_to(&self.bot.room, &asked).await?;
        if let Some((trap, carry_out)) = call {
            // What the frozen one had asked for is carried out only now.
            carry_out.notify_one();
            trap.sprung().await?;
        }

        self.pair.signal(who, Signal::Cont)?;
        // Awake, it gets its share again.
        self.pair.shared().await?;
        let awake = self.pair.greenshield(who).process().is_some_and(Guarded::is_running);
        ensure!(awake, "{stop:?}: it has died of it");
        self.asked.push(asked);
        Ok(())
    }

    /// Asks the bot, and freezes its worker right there; or whoever takes the question in.
    async fn stop(&mut self, stop: Stop, worker: usize) -> Result<Stopped> {
        let (alice, room) = (&self.alice, &self.bot.room);
        let (table, skip, moment, fate) = match stop {
            Stop::Call(path) => {
                let slowed = self.pair.scene.fake.slowed(path);
                let call = late(&self.pair.scene.fake, path);
                let asked = alice.say(room, "!ping").await?;
                poll::until(path, PATIENCE, async || {
                    Ok((self.pair.scene.fake.slowed(path) > slowed).then_some(()))
                })
                .await?;
                self.pair.signal(worker, Signal::Stop)?;
                let since = Instant::now();
                return Ok(Stopped { asked, call: Some(call), who: worker, since });
            }
            Stop::Commit(table, skip) => (table, skip, Moment::Commit, Fate::Goes),
            Stop::Statement(table) => (table, 0, Moment::Statement, Fate::Goes),
        };
        self.holds.arm(Some(table), skip, moment).await?;
        let asked = alice.say(room, "!ping").await?;
        let who = self.pair.held(&mut self.holds).await.with_context(|| format!("{stop:?}"))?;
        ensure!(table == "transactions" || who == worker, "{stop:?}: who is held?");
        self.pair.signal(who, Signal::Stop)?;
        let since = Instant::now();
        self.holds.let_go(fate).await?;
        Ok(Stopped { asked, call: None, who, since })
    }
}
