//! Whatever request comes, on every listener: the running program answers it, in Matrix's words, and its
//! bots go on.
//!
//! Shapes that are truly sent (`corpus/`) are bent: bodies, forms, queries, paths, methods, headers and
//! lengths. A failure prints its seed; `GREENSHIELD_FUZZ_REQUESTS` is how many requests there are.

use anyhow::{Context as _, Result, ensure};

use super::{
    mutate::{Dice, HEADERS, PATHS, SIGNUPS, TRANSACTIONS, bent, bent_form, bent_line},
    tools::{Answer, raw, request, token, unharmed},
};
use crate::{
    fast::scene::Scene,
    support::{random, report},
};

const FORM: &str = "Content-Type: application/x-www-form-urlencoded";
const CODE: &str = "gs-canarycodecanarycode";
const METHODS: [&str; 9] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"];

/// A request before it is sent.
struct Asked {
    listener: usize,
    method: String,
    path: String,
    headers: Vec<String>,
    body: String,
    /// What it says its body's length is, if not what it is.
    length: Option<String>,
}

impl Asked {
    fn new(
        listener: usize,
        method: &str,
        path: impl Into<String>,
        body: impl Into<String>,
    ) -> Self {
        Self {
            listener,
            method: method.to_owned(),
            path: path.into(),
            headers: Vec::new(),
            body: body.into(),
            length: None,
        }
    }

    /// One of these, by dice.
    fn roll(number: usize, dice: &mut Dice<'_>) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let mut asked = match dice.below(16) {
            0..=3 => {
                let path = format!("/_matrix/app/v1/transactions/f{number}");
                return Self::new(0, "PUT", path, text(bent(&TRANSACTIONS, dice)));
            }
            4 | 5 => Self::new(1, "POST", "/signup/api", text(bent(&SIGNUPS, dice))),
            6 => Self::new(1, "POST", "/signup/api/crosssign", text(bent(&SIGNUPS, dice))),
            7 | 8 => {
                let mut asked = Self::new(1, "POST", "/signup", bent_form(dice));
                asked.headers.push(FORM.to_owned());
                asked
            }
            9 => Self::new(1, "GET", format!("/signup?{}", bent_form(dice)), ""),
            10 => Self::new(dice.below(3), "GET", format!("/{}", odd_path(dice)), ""),
            _ => Self::known_path(dice),
        };
        for _ in 0..dice.below(3) {
            let header = bent_line(&HEADERS[dice.below(HEADERS.len())], dice);
            // These say where the request ends, and then it is another test's.
            let framing = ["content-length", "transfer-encoding", "connection"];
            if !framing.iter().any(|name| header.to_lowercase().starts_with(name)) {
                asked.headers.push(header);
            }
        }
        // Never more than is there: for that it would wait.
        if asked.body.len() < 4000 && dice.below(6) == 0 {
            let half = (asked.body.len() / 2).to_string();
            let odd = ["0", &half, "-1", "+2", "1e3", "0x10", "", "99999999999999999999999"];
            asked.length = Some(odd[dice.below(odd.len())].to_owned());
        }
        asked
    }

    /// A path that there is, or almost is, and whatever method and body.
    fn known_path(dice: &mut Dice<'_>) -> Self {
        let line = &PATHS[dice.below(PATHS.len())];
        let mut parts = line.splitn(3, ' ');
        let mut part = || parts.next().unwrap_or_default();
        let (listener, method, path) = (part(), part(), part());
        let listener = match listener.parse() {
            Ok(listener) if dice.below(10) > 0 => listener,
            _ => dice.below(3),
        };
        let method = match dice.below(4) {
            0 => METHODS[dice.below(METHODS.len())],
            _ => method,
        };
        let path = match dice.below(3) {
            0 => path.to_owned(),
            // A blank would end it.
            _ => bent_line(path, dice).replace([' ', '\t'], "%20"),
        };
        let body = match dice.below(4) {
            0 => String::from_utf8_lossy(&bent(&SIGNUPS, dice)).into_owned(),
            1 => bent_form(dice),
            2 => r#"{"transaction_id": "t"}"#.to_owned(),
            _ => String::new(),
        };
        Self::new(listener, method, format!("/{}", path.trim_start_matches('/')), body)
    }

    fn bytes(&self) -> Vec<u8> {
        let headers: Vec<&str> = self.headers.iter().map(String::as_str).collect();
        let request = request(&self.method, &self.path, &headers, self.body.as_bytes());
        let Some(length) = &self.length else { return request };
        let text = String::from_utf8_lossy(&request);
        let true_length = format!("Content-Length: {}\r\n", self.body.len());
        text.replacen(&true_length, &format!("Content-Length: {length}\r\n"), 1).into_bytes()
    }

    /// What must be true of the answer, whatever it was.
    fn judge(&self, answer: &Answer) -> Result<()> {
        let is_ready = self.path.starts_with("/health/ready") && answer.status == 503;
        ensure!(answer.status < 500 || is_ready, "it is as if it were our fault");
        let page = answer.head.to_lowercase().contains("content-type: text/html");
        // hyper answers to what is no HTTP, without a body.
        if (400..500).contains(&answer.status) && !answer.body.is_empty() && !page {
            ensure!(answer.told() != answer.status.to_string(), "not in Matrix's words");
        }
        if self.path.contains("transactions/f") {
            ensure!(matches!(answer.told().as_str(), "200" | "400 M_NOT_JSON"), "refused");
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_request_is_answered_by_the_running_program() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    // What is bent may well be that the bot has left, or that the room speaks another algorithm.
    let room = scene.fake.room(&alice.user_id, true, &[&bot.user_id]);
    let requests = std::env::var("GREENSHIELD_FUZZ_REQUESTS");
    let requests: usize = requests.ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    let hs_token = token(&scene.greenshield, "hs_token")?;
    let code = scene.greenshield.mint_code(&alice.user_id, 100_000)?;
    let listeners = [
        scene.greenshield.appservice_url(),
        scene.greenshield.public_url(),
        scene.greenshield.operator_url(),
    ];
    let real = |text: &str, number: usize, with_code: bool| {
        let text = text.replace("@bot:example.org", &bot.user_id).replace("DEVICE", &bot.device_id);
        let text = text.replace("!room:example.org", &room).replace("HS_TOKEN", &hs_token);
        let text = text.replace("@alice:example.org", &alice.user_id);
        let name = format!("f{number}");
        let text = text
            .replace("\"deploy\"", &format!("\"{name}\""))
            .replace("=deploy&", &format!("={name}&"));
        if with_code { text.replace(CODE, &code) } else { text }
    };
    for number in 0..requests {
        let bytes: [u8; 256] = random::bytes();
        let mut dice = Dice::new(&bytes);
        let with_code = dice.below(3) == 0;
        let mut asked = Asked::roll(number, &mut dice);
        if asked.listener == 0 && (asked.headers.is_empty() || dice.below(2) == 0) {
            asked.headers.push("Authorization: Bearer HS_TOKEN".to_owned());
        }
        asked.path = real(&asked.path, number, with_code);
        asked.body = real(&asked.body, number, with_code);
        for header in &mut asked.headers {
            *header = real(header, number, with_code);
        }
        let answer = raw(&listeners[asked.listener], &asked.bytes()).await;
        let story = || {
            let Asked { listener, method, path, headers, body, length } = &asked;
            format!(
                "{listener} {method} {path}\n{headers:?} {length:?}\n{body}\n{answer:?}\nseed {bytes:?}"
            )
        };
        let judged = answer.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"));
        judged
            .and_then(|answer| {
                ensure!(!answer.body.contains(&hs_token), "it tells the token");
                asked.judge(answer)
            })
            .with_context(story)?;
    }
    let bots: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM bots").fetch_one(&scene.sql).await?;
    println!("{bots} bots");
    alice.forget_key(&bot.room).await?;
    alice.ping(&bot.room).await?;
    unharmed(&scene).await?;
    let note = "bent bodies, forms, queries, paths, methods, headers and lengths: no 5xx, no panic, the bot answers";
    report::row("Attackers", "Random requests to the running program", requests as u64, 0, note);
    Ok(())
}

/// Bytes that may stand in a path; some of them say others.
fn odd_path(dice: &mut Dice<'_>) -> String {
    let odd =
        ["%00", "%2F", "..", "%ff", "%", "a", "@", ":", "?", "=", "&", "+", ";", "/", "~", "%25"];
    (0..dice.below(40)).map(|_| odd[dice.below(odd.len())]).collect()
}
