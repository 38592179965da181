//! Clients that take their time.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use super::tools::{configure, forget_peak, peak_memory, raw, request, unharmed};
use crate::{
    fast::scene::{PATIENCE, Scene},
    support::{fake_homeserver::Person, greenshield::Greenshield, poll, report},
};

/// More than the public listener takes at a time.
const STRANGERS: usize = 600;
/// Few of them, because each makes work until its connection is full.
const DEAF: usize = 5;
/// What it takes, but for a few: so many files may greenshield have closed meanwhile.
const PLACES: usize = 500;
/// For the last stranger, who has had to wait for a place.
const LAST: Duration = Duration::from_secs(180);

type Strangers = JoinSet<Result<()>>;

/// How many files the running program has open, connections among them.
fn open_files(greenshield: &mut Greenshield) -> Result<usize> {
    let pid = greenshield.process().context("greenshield runs")?.pid();
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Until all are let go, each by the other side.
async fn let_go(mut strangers: Strangers) -> Result<()> {
    let all = async {
        while let Some(ended) = strangers.join_next().await {
            ended??;
        }
        anyhow::Ok(())
    };
    let ended = tokio::time::timeout(LAST, all).await;
    ended.unwrap_or_else(|_| bail!("{} were never let go", strangers.len()))
}

/// A stranger who never gets to the point, until let go.
async fn stranger(host: String, n: usize) -> Result<()> {
    let mut stream = TcpStream::connect(&host).await?;
    let beginning: &[u8] = match n % 4 {
        0 => b"GET",
        1 => b"GET /signup HTTP/1.1\r\nHost: x\r\nX-Slow: ",
        2 => b"POST /signup/api HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{\"code\": \"",
        _ => b"POST /signup HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n\
               Content-Length: 60000\r\n\r\ncode=",
    };
    stream.write_all(beginning).await?;
    let mut answer = [0; 1024];
    loop {
        let (mut reading, mut writing) = stream.split();
        let read = tokio::time::timeout(Duration::from_secs(1), reading.read(&mut answer)).await;
        match read {
            Ok(Ok(0) | Err(_)) => return Ok(()),
            Ok(Ok(_)) => {}
            // A byte a second, from those who have begun to say something.
            Err(_) if !n.is_multiple_of(4) && writing.write_all(b"x").await.is_err() => {
                return Ok(());
            }
            Err(_) => {}
        }
    }
}

/// Asks and asks, and reads nothing, until let go.
async fn deaf(host: String, path: &str) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(2048)?;
    let mut stream = socket.connect(host.parse()?).await?;
    let asked = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(100);
    // There is no end of it, but when the other side is gone.
    while stream.write_all(asked.as_bytes()).await.is_ok() {}
    Ok(())
}

/// Asks and reads, again and again, on one connection, until let go.
async fn busy(host: String) -> Result<()> {
    let mut stream = TcpStream::connect(host).await?;
    let mut answer = [0; 16 * 1024];
    loop {
        if stream.write_all(b"HEAD /signup HTTP/1.1\r\nHost: x\r\n\r\n").await.is_err() {
            return Ok(());
        }
        // Long before it would be idle.
        let next = Instant::now() + Duration::from_secs(5);
        while let Some(left) = next.checked_duration_since(Instant::now()) {
            let read = tokio::time::timeout(left, stream.read(&mut answer)).await;
            if let Ok(Ok(0) | Err(_)) = read {
                return Ok(());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_strangers_are_let_go_and_the_homeserver_does_not_notice_them() -> Result<()> {
    let (mut scene, alice, bot) = Scene::with_bot().await?;
    forget_peak(&mut scene.greenshield)?;
    let before = peak_memory(&mut scene.greenshield)?;
    let files = open_files(&mut scene.greenshield)?;
    let host = scene.greenshield.public_url().trim_start_matches("http://").to_owned();
    let (mut strangers, mut busy_ones) = (Strangers::new(), Strangers::new());
    for n in 0..STRANGERS - DEAF {
        if n % 10 == 5 {
            busy_ones.spawn(busy(host.clone()));
        } else {
            strangers.spawn(stranger(host.clone(), n));
        }
    }
    let greenshield = &mut scene.greenshield;
    poll::until("strangers to have all places", PATIENCE, async || {
        Ok((open_files(greenshield)? >= files + PLACES).then_some(()))
    })
    .await?;
    let started = Instant::now();
    for n in 0..10 {
        ensure!(scene.fake.transaction(&format!("busy{n}"), &json!({})).await?.0 == 200);
    }
    let took = started.elapsed();
    // Nobody had to go first.
    let gone = strangers.try_join_next();
    ensure!(gone.is_none(), "{gone:?} before ten transactions were taken in {took:?}");
    for _ in 0..DEAF {
        strangers.spawn(deaf(host.clone(), "/openapi.json"));
    }
    alice.ping(&bot.room).await?;

    // Somebody who means it waits for a place, and gets it while those who keep theirs longer have it.
    let carol = Person::new(&scene.fake, "carol").await?;
    let started = Instant::now();
    scene.bot(&carol).await?;
    let waited = started.elapsed();
    let gone = busy_ones.try_join_next();
    ensure!(gone.is_none(), "{gone:?} before a signup had its turn after {waited:?}");
    tokio::try_join!(let_go(strangers), let_go(busy_ones))?;
    let most = peak_memory(&mut scene.greenshield)?;
    ensure!(most - before < 60.0, "{before} MiB before, {most} MiB with {STRANGERS} strangers");
    println!("memory {before:.0} -> {most:.0} MiB; ten transactions {took:?}; signup {waited:?}");
    unharmed(&scene).await?;
    let note = "all were let go; transactions were taken meanwhile, and a signup got its turn";
    report::row(
        "Attackers",
        "Connections that idle, trickle, or never read",
        STRANGERS as u64,
        0,
        note,
    );
    Ok(())
}

/// Sends a body byte by byte, slowly enough that each is read by itself; the answer.
async fn crumbs(host: String, path: &str) -> Result<String> {
    const BODY: usize = 5000;
    let mut stream = TcpStream::connect(host).await?;
    stream.set_nodelay(true)?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Connection: close\r\nContent-Length: {BODY}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut pace = tokio::time::interval(Duration::from_millis(1));
    for _ in 0..BODY {
        pace.tick().await;
        stream.write_all(b"x").await?;
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// And not the buffer that each byte of it was read into.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_comes_byte_by_byte_takes_no_more_than_its_own_room() -> Result<()> {
    let mut scene = Scene::start().await?;
    let host = scene.greenshield.public_url().trim_start_matches("http://").to_owned();
    forget_peak(&mut scene.greenshield)?;
    let before = peak_memory(&mut scene.greenshield)?;
    let mut all = JoinSet::new();
    for path in ["/signup", "/signup/api", "/signup/api/crosssign"].repeat(3) {
        all.spawn(crumbs(host.clone(), path));
    }
    while let Some(answer) = all.join_next().await {
        let answer = answer??;
        ensure!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }
    let most = peak_memory(&mut scene.greenshield)?;
    ensure!(most - before < 30.0, "{before} MiB before, {most} MiB for bodies of 5 KB");
    println!("memory {before:.0} -> {most:.0} MiB");
    unharmed(&scene).await
}

/// Who reads no answer keeps no place for long: the operator's listener is soon free again.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_nothing_is_let_go_and_makes_room() -> Result<()> {
    let scene = Scene::start().await?;
    let host = scene.greenshield.operator_url().trim_start_matches("http://").to_owned();
    let mut strangers = Strangers::new();
    // As many as there are places: while they have them, nobody else is answered.
    for _ in 0..64 {
        strangers.spawn(deaf(host.clone(), "/metrics"));
    }
    let began = Instant::now();
    let_go(strangers).await?;
    println!("all were let go after {:?}", began.elapsed());
    unharmed(&scene).await
}

/// One stranger, with no proxy in between, does not get all the places.
#[tokio::test(flavor = "multi_thread")]
async fn one_stranger_does_not_keep_the_others_out() -> Result<()> {
    let mut scene = Scene::start().await?;
    configure(&scene.greenshield, |config| config["public"]["trusted_proxies"] = json!([]))?;
    scene.greenshield.restart().await?;
    let host = scene.greenshield.public_url().trim_start_matches("http://").to_owned();
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..STRANGERS {
        let mut stream = TcpStream::connect(&host).await?;
        // Whoever has a place is answered and may go on, whoever has none is turned away at once.
        let _ = stream.write_all(b"HEAD /signup HTTP/1.1\r\nHost: x\r\n\r\n").await;
        match stream.read(&mut [0; 1024]).await {
            Ok(0) | Err(_) => refused += 1,
            Ok(_) => held.push(stream),
        }
    }
    ensure!(held.len() == 32 && refused == STRANGERS - 32, "{} held, {refused}", held.len());
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.0.0.2:0".parse()?)?;
    let mut other = socket.connect(host.parse()?).await?;
    other.write_all(&request("GET", "/openapi.json", &[], b"")).await?;
    let mut answer = String::new();
    other.read_to_string(&mut answer).await?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    unharmed(&scene).await
}

/// What is asked for on a connection after another is answered, too: and a stranger's silence on one
/// listener is none of the others' business.
#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_one_after_the_other() -> Result<()> {
    let scene = Scene::start().await?;
    let url = scene.greenshield.public_url();
    let one = "GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n";
    let many = [one.repeat(20).into_bytes(), request("GET", "/nowhere", &[], b"")].concat();
    let answer = raw(&url, &many).await?;
    let all = format!("{}{}", answer.head, answer.body);
    ensure!(all.matches("HTTP/1.1 200 OK").count() == 20, "{all}");
    ensure!(all.contains("HTTP/1.1 404 Not Found"), "{all}");
    unharmed(&scene).await
}
