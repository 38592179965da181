//! A Postgres that falls over, that refuses, and that cannot write, under people who go on talking.
//! What is not stored is not answered with 200; greenshield stays up, and goes on by itself. The homeserver
//! forgets what it could not push, all but the room events, as Synapse does.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{
    ledger::Tally,
    village::{Folk, PATIENCE, Village},
};
use crate::support::{
    cluster::{Cluster, WAL_SEGMENT},
    fake_homeserver::FakeHomeserver,
    greenshield::Greenshield,
    poll, report,
};

/// Too long for a room's short messages to stay within the tables' files as they are.
const LONG: usize = 30_000;
/// How PostgreSQL tells that the kernel refused a write.
const TOO_LARGE: &str = "File too large";
/// That this hit its log.
const PANIC: &str = "PANIC";

#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// It falls over and is up again at once.
    Fall,
    /// It is away for a while.
    Away(Duration),
    /// It is there, and lets nobody in.
    Refuses(Duration),
    /// Its tables cannot grow.
    DiskFull,
    /// Its write-ahead log cannot be written: it panics, and falls over.
    LogFull,
}

impl Trouble {
    fn name(self) -> String {
        match self {
            Self::Fall => "PostgreSQL falls over and recovers".to_owned(),
            Self::Away(time) => format!("PostgreSQL is away for {time:?}"),
            Self::Refuses(time) => format!("PostgreSQL refuses connections for {time:?}"),
            Self::DiskFull => "PostgreSQL's tables cannot grow (write refused)".to_owned(),
            Self::LogFull => "PostgreSQL's log cannot be written (it panics)".to_owned(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_fails_is_waited_for_and_nothing_is_lost() -> Result<()> {
    let seed = report::seed("outages");
    let mut cluster = Cluster::start().await?;
    let mut village = Village::found_on(&cluster.url()).await?;
    village.scene.fake.forget_like_synapse();
    let away = Duration::from_secs(if report::is_large() { 60 } else { 3 });
    let troubles = [
        Trouble::Fall,
        Trouble::DiskFull,
        Trouble::Refuses(away),
        Trouble::LogFull,
        Trouble::Away(away),
    ];
    let started = Instant::now();
    let until = started + report::budget(0.15, Duration::ZERO);
    let mut tally = Tally::new();
    while tally.is_empty() || Instant::now() < until {
        for trouble in troubles {
            meet(&mut village, &mut cluster, trouble, seed).await?;
            *tally.entry(trouble.name()).or_default() += 1;
        }
    }
    village.close("PostgreSQL", &tally).await
}

/// Both start with the machine, and nobody knows which comes up first.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_up_yet_is_waited_for_until_somebody_says_stop() -> Result<()> {
    let mut cluster = Cluster::start().await?;
    cluster.fall().await?;
    let fake = FakeHomeserver::start().await?;
    let mut greenshield = Greenshield::install(fake.url(), &cluster.url())?;
    fake.connect(&greenshield.registration())?;

    greenshield.launch()?;
    waits(&greenshield, 2).await?;
    greenshield.stop().await?;
    let log = std::fs::read_to_string(greenshield.log())?;
    ensure!(log.contains("told to stop"), "it was not listening:\n{log}");

    let waited = log.matches(WAITING).count();
    greenshield.launch()?;
    waits(&greenshield, waited + 1).await?;
    cluster.up().await?;
    greenshield.wait_ready().await?;

    greenshield.configure(|config| {
        let mut nobody = cluster.url();
        nobody.set_path("none_of_this_name");
        config["database"]["url"] = nobody.as_str().into();
    })?;
    greenshield.stop().await?;
    let waited = std::fs::read_to_string(greenshield.log())?.matches(WAITING).count();
    greenshield.launch()?;
    poll::until("a database that is not there to be refused", PATIENCE, async || {
        let running = greenshield.process().is_some_and(|process| process.is_running());
        Ok((!running).then_some(()))
    })
    .await?;
    let log = std::fs::read_to_string(greenshield.log())?;
    ensure!(log.matches(WAITING).count() == waited, "it waited:\n{log}");
    Ok(())
}

const WAITING: &str = "waiting for the database";

async fn waits(greenshield: &Greenshield, times: usize) -> Result<()> {
    poll::until("it to wait for the database", PATIENCE, async || {
        let log = std::fs::read_to_string(greenshield.log()).unwrap_or_default();
        Ok((log.matches(WAITING).count() >= times).then_some(()))
    })
    .await
}

/// One trouble, while people talk; then everything is caught up with, nobody doing anything.
async fn meet(
    village: &mut Village,
    cluster: &mut Cluster,
    trouble: Trouble,
    seed: u64,
) -> Result<()> {
    let Village { scene, folk } = &mut *village;
    let refused = scene.fake.refused();
    match trouble {
        Trouble::DiskFull | Trouble::LogFull => {
            let is_log = matches!(trouble, Trouble::LogFull);
            disk_full(folk, cluster, &scene.fake, is_log).await?;
        }
        Trouble::Fall | Trouble::Away(_) | Trouble::Refuses(_) => {
            let until = Instant::now() + Duration::from_secs(2) + trouble.lasts();
            tokio::try_join!(
                folk.talk(seed ^ refused as u64, until),
                away(cluster, &scene.fake, trouble)
            )?;
        }
    }
    let alive = scene.greenshield.process().is_some_and(|process| process.is_running());
    ensure!(alive, "greenshield ended in {trouble:?}");
    // By itself, and at work again: not only caught up with what there was.
    let room = folk.square();
    let asked = folk.say(room, 0, "!ping").await?;
    let answer = poll::until("an answer after the outage", PATIENCE, async || {
        let read = folk.people[0].read(&folk.rooms[room].id).await?;
        Ok(read.into_iter().find(|read| read.answers.as_deref() == Some(&asked)))
    })
    .await?;
    ensure!(answer.shield == "None", "{answer:?}");
    village.caught_up().await
}

impl Trouble {
    fn lasts(self) -> Duration {
        match self {
            Self::Away(time) | Self::Refuses(time) => time,
            _ => Duration::ZERO,
        }
    }
}

async fn away(cluster: &mut Cluster, fake: &FakeHomeserver, trouble: Trouble) -> Result<()> {
    if let Trouble::Refuses(time) = trouble {
        cluster.admin("ALTER DATABASE greenshield WITH ALLOW_CONNECTIONS FALSE").await?;
        let all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = 'greenshield'";
        cluster.admin(all).await?;
        nothing_is_taken(fake, time).await?;
        return cluster.admin("ALTER DATABASE greenshield WITH ALLOW_CONNECTIONS TRUE").await;
    }
    cluster.fall().await?;
    // One that is up again at once leaves no time to look: what it lost then the ledger tells.
    if !trouble.lasts().is_zero() {
        nothing_is_taken(fake, trouble.lasts()).await?;
    }
    cluster.up().await
}

/// A 5xx or no answer, time and again, for as long as nothing can be stored.
async fn nothing_is_taken(fake: &FakeHomeserver, time: Duration) -> Result<()> {
    // What was committed before has been answered when the next one is refused: they come one by one.
    refuses(fake).await?;
    let (taken, began) = (fake.accepted(), Instant::now());
    loop {
        refuses(fake).await?;
        ensure!(!fake.is_pushed(), "nobody has said anything");
        ensure!(fake.accepted() == taken, "a transaction was taken while nothing could be stored");
        if began.elapsed() >= time {
            return Ok(());
        }
    }
}

/// Until one more transaction is refused.
async fn refuses(fake: &FakeHomeserver) -> Result<()> {
    let refused = fake.refused();
    poll::until("a transaction to be refused", PATIENCE, async || {
        Ok((fake.refused() > refused).then_some(()))
    })
    .await
}

/// Nothing gets beyond so many bytes of a file until a transaction was refused for it: of the tables, or of
/// the log too.
async fn disk_full(
    folk: &mut Folk,
    cluster: &mut Cluster,
    fake: &FakeHomeserver,
    is_log: bool,
) -> Result<()> {
    let refused = fake.refused();
    cluster.forget_log()?;
    cluster.limit_files(Some(if is_log { WAL_SEGMENT / 16 } else { WAL_SEGMENT }))?;
    let long = "x".repeat(LONG);
    poll::until("a transaction to be refused", PATIENCE, async || {
        if fake.unpushed() < 5 {
            folk.say(0, 0, &long).await?;
        }
        // The first may have been refused on connections that the last outage broke, or for a table
        // where it is to be the log.
        let for_this = cluster.log().contains(if is_log { PANIC } else { TOO_LARGE });
        Ok((for_this && fake.refused() > refused + 3).then_some(()))
    })
    .await?;
    let said = cluster.log();
    ensure!(is_log || !said.contains(PANIC), "the log could not be written:\n{said}");
    cluster.recover().await
}
