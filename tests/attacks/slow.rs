//! Clients that take their time.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
};

use super::tools::{configure, memory, raw, request, unharmed};
use crate::{
    fast::scene::Scene,
    support::{fake_homeserver::Person, report},
};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// More than the public listener takes at a time.
const STRANGERS: usize = 600;

/// A stranger who never gets to the point, or wants one answer after the other, until let go.
async fn stranger(host: String, n: usize) -> Result<()> {
    // Few, because each makes work until its connection is full.
    if n % 120 == 4 {
        return deaf(&host, "/openapi.json").await;
    }
    if n % 10 == 5 {
        return busy(&host).await;
    }
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
            Err(_) if !n.is_multiple_of(4) => writing.write_all(b"x").await?,
            Err(_) => {}
        }
    }
}

/// Asks and asks, and reads nothing, until let go.
async fn deaf(host: &str, path: &str) -> Result<()> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(2048)?;
    let mut stream = socket.connect(host.parse()?).await?;
    let asked = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").repeat(100);
    // There is no end of it, but when the other side is gone.
    while stream.write_all(asked.as_bytes()).await.is_ok() {}
    Ok(())
}

/// Asks and reads, again and again, on one connection, until let go.
async fn busy(host: &str) -> Result<()> {
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
    let before = memory(&mut scene.greenshield)?;
    let host = scene.greenshield.public_url().trim_start_matches("http://").to_owned();
    let mut strangers = JoinSet::new();
    for n in 0..STRANGERS {
        strangers.spawn(stranger(host.clone(), n));
    }
    let mut slowest = Duration::ZERO;
    for n in 0..10 {
        let started = Instant::now();
        let (status, _) =
            scene.fake.raw_transaction(&format!("busy{n}"), "{}".to_owned(), None).await?;
        slowest = slowest.max(started.elapsed());
        ensure!(status == 200);
    }
    // Far less than the strangers are given, on however busy a machine.
    ensure!(slowest < Duration::from_secs(5), "a transaction took {slowest:?}");
    alice.ping(&bot.room).await?;
    let full = memory(&mut scene.greenshield)?;
    ensure!(full - before < 60.0, "{before} MiB before, {full} MiB with {STRANGERS} strangers");

    // Somebody who means it waits for a place, and gets it.
    let carol = Person::new(&scene.fake, "carol").await?;
    let started = Instant::now();
    scene.bot(&carol).await?;
    let waited = started.elapsed();
    ensure!(waited < Duration::from_secs(40), "a signup took {waited:?}");
    let mut left = STRANGERS;
    while let Ok(Some(_)) = tokio::time::timeout(PATIENCE, strangers.join_next()).await {
        left -= 1;
    }
    ensure!(left == 0, "{left} were never let go");
    println!(
        "memory {before:.0} -> {full:.0} MiB; slowest transaction {slowest:?}; signup {waited:?}"
    );
    unharmed(&scene).await?;
    let note =
        "all were let go; transactions took less than 5 s meanwhile, and a signup got its turn";
    report::row(
        "Attackers",
        "Connections that idle, trickle, or never read",
        STRANGERS as u64,
        0,
        note,
    );
    Ok(())
}

/// Who reads no answer keeps no place for long: the operator's listener is soon free again.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_reads_nothing_is_let_go_and_makes_room() -> Result<()> {
    let scene = Scene::start().await?;
    let host = scene.greenshield.operator_url().trim_start_matches("http://").to_owned();
    let mut strangers = JoinSet::new();
    // As many as there are places: while they have them, nobody else is answered.
    for _ in 0..64 {
        let host = host.clone();
        strangers.spawn(async move { deaf(&host, "/metrics").await });
    }
    let began = Instant::now();
    let mut left = strangers.len();
    while let Ok(Some(_)) = tokio::time::timeout(PATIENCE, strangers.join_next()).await {
        left -= 1;
    }
    ensure!(left == 0, "{left} were never let go");
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
