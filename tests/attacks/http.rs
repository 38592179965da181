//! Requests that nobody well-meaning sends, on every listener: each is answered in Matrix's words, with
//! what is wrong, and none as if it were our fault.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::{Value, json};

use super::tools::{self, Answer, configure, raw, request, token, unharmed};
use crate::{
    fast::scene::Scene,
    support::{fake_homeserver::Person, report},
};

const TRANSACTIONS: &str = "/_matrix/app/v1/transactions";

#[tokio::test(flavor = "multi_thread")]
async fn the_homeservers_listener_believes_only_one_whole_token() -> Result<()> {
    let scene = Scene::start().await?;
    let url = scene.greenshield.appservice_url();
    let hs_token = token(&scene.greenshield, "hs_token")?;
    let as_token = token(&scene.greenshield, "as_token")?;
    let right = format!("Authorization: Bearer {hs_token}");
    let wrong = format!("Authorization: Bearer {as_token}");
    let cut = format!("Authorization: Bearer {}", &hs_token[..hs_token.len() - 1]);
    let basic = format!("Authorization: Basic {hs_token}");
    let query = format!("{TRANSACTIONS}/1?access_token={hs_token}");
    let put = TRANSACTIONS.to_owned() + "/1";
    for (path, headers, expected) in [
        (&put, vec![right.as_str()], "200"),
        (&put, vec![], "401 M_MISSING_TOKEN"),
        (&query, vec![], "401 M_MISSING_TOKEN"),
        (&query, vec![wrong.as_str()], "403 M_FORBIDDEN"),
        (&put, vec![wrong.as_str()], "403 M_FORBIDDEN"),
        (&put, vec![cut.as_str()], "403 M_FORBIDDEN"),
        (&put, vec![basic.as_str()], "401 M_MISSING_TOKEN"),
        (&put, vec!["Authorization: Bearer"], "401 M_MISSING_TOKEN"),
        (&put, vec!["Authorization: Bearer \u{1f4a3}"], "401 M_MISSING_TOKEN"),
        (&put, vec![right.as_str(), wrong.as_str()], "401 M_MISSING_TOKEN"),
        (&put, vec![wrong.as_str(), right.as_str()], "401 M_MISSING_TOKEN"),
        (&put, vec![right.as_str(), right.as_str()], "401 M_MISSING_TOKEN"),
    ] {
        let answer = raw(&url, &request("PUT", path, &headers, b"{}")).await?;
        ensure!(answer.told() == expected, "{path} {headers:?}: {answer:?}");
    }
    // Without a token nothing is read, let alone parsed.
    let nested = "[".repeat(1_000_000);
    let answer = raw(&url, &request("PUT", &put, &[&cut], nested.as_bytes())).await?;
    ensure!(answer.told() == "403 M_FORBIDDEN", "{answer:?}");
    unharmed(&scene).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_homeservers_listener_takes_odd_paths_and_bodies_for_what_they_are() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    let url = scene.greenshield.appservice_url();
    let right = format!("Authorization: Bearer {}", token(&scene.greenshield, "hs_token")?);
    let ask = async |method: &str, path: &str, headers: &[&str], body: &[u8]| {
        let headers: Vec<&str> = headers.iter().copied().chain([right.as_str()]).collect();
        raw(&url, &request(method, path, &headers, body)).await
    };
    let long = "x".repeat(3000);
    let (user, encoded) = (&bot.user_id, bot.user_id.replace('@', "%40").replace(':', "%3A"));
    for (method, path, expected) in [
        ("PUT", format!("{TRANSACTIONS}/a%2Fb"), "200"),
        ("PUT", format!("{TRANSACTIONS}/%F0%9F%92%A3?x=%00"), "200"),
        ("PUT", format!("{TRANSACTIONS}/..%2F..%2Fping"), "200"),
        ("PUT", format!("{TRANSACTIONS}/%00"), "400 M_INVALID_PARAM"),
        ("PUT", format!("{TRANSACTIONS}/{long}"), "400 M_INVALID_PARAM"),
        ("PUT", format!("{TRANSACTIONS}/%FF"), "400 M_INVALID_PARAM"),
        ("PUT", format!("{TRANSACTIONS}/a/b"), "404 M_UNRECOGNIZED"),
        ("PUT", format!("{TRANSACTIONS}/"), "404 M_UNRECOGNIZED"),
        ("PUT", format!("{TRANSACTIONS}/../users/{user}"), "404 M_UNRECOGNIZED"),
        ("PUT", format!("/{TRANSACTIONS}/1"), "404 M_UNRECOGNIZED"),
        ("GET", format!("{TRANSACTIONS}/1"), "405 M_UNRECOGNIZED"),
        ("BREW", format!("{TRANSACTIONS}/1"), "405 M_UNRECOGNIZED"),
        ("GET", format!("/_matrix/app/v1/users/{user}"), "200"),
        ("GET", format!("/_matrix/app/v1/users/{encoded}"), "200"),
        ("GET", format!("/_matrix/app/v1/users/{user}%00"), "404 M_NOT_FOUND"),
        ("GET", format!("/_matrix/app/v1/users/{long}"), "404 M_NOT_FOUND"),
        ("GET", "/_matrix/app/v1/users/%FF".to_owned(), "400 M_INVALID_PARAM"),
        ("GET", format!("/_matrix/app/v1/users/{}", alice.user_id), "404 M_NOT_FOUND"),
        (
            "GET",
            format!("/_matrix/app/v1/users/%27;DROP%20TABLE%20bots;--{user}"),
            "404 M_NOT_FOUND",
        ),
        ("GET", "/_matrix/app/v1/rooms/%00".to_owned(), "404 M_NOT_FOUND"),
        ("GET", "/signup".to_owned(), "404 M_UNRECOGNIZED"),
        ("GET", "/metrics".to_owned(), "404 M_UNRECOGNIZED"),
    ] {
        let answer = ask(method, &path, &[], b"{}").await?;
        ensure!(answer.told() == expected, "{method} {path}: {answer:?}");
    }
    let put = format!("{TRANSACTIONS}/body");
    let chunked = ["Transfer-Encoding: chunked"];
    let both = ["Transfer-Encoding: chunked", "Content-Length: 2"];
    let not_json: [&[u8]; 9] = [
        b"",
        b"  ",
        b"[]",
        b"null",
        b"\"{}\"",
        b"{\"events\": [",
        b"{}{}",
        b"\xff\xfe{}",
        b"{'a': 1}",
    ];
    for body in not_json {
        let answer = ask("PUT", &put, &[], body).await?;
        ensure!(answer.told() == "400 M_NOT_JSON", "{body:?}: {answer:?}");
    }
    for (headers, body, expected) in [
        (&["Content-Type: text/html"][..], &b"{}"[..], 200),
        (&["Content-Type: application/json; charset=utf-16"], b"{}", 200),
        (&["Content-Encoding: gzip"], b"{}", 200),
        (&chunked, b"2\r\n{}\r\n0\r\n\r\n", 200),
        (&chunked, b"zz\r\n{}\r\n", 400),
        (&both, b"2\r\n{}\r\n0\r\n\r\n", 400),
        (&["Content-Length: 2", "Content-Length: 3"], b"{}", 400),
        (&["Content-Length: -1"], b"{}", 400),
        (&["Content-Length: 99999999999999999999999"], b"{}", 400),
        (&["Content-Length: 52428801"], b"{}", 413),
    ] {
        let mut request = request("PUT", &put, &[headers, &[right.as_str()]].concat(), body);
        if headers.iter().any(|header| header.starts_with("Content-Length")) {
            // Only the ones that the case names.
            let text = String::from_utf8_lossy(&request).into_owned();
            request = text.replacen("Content-Length: 2\r\n\r\n", "\r\n", 1).into_bytes();
        }
        let answer = raw(&url, &request).await?;
        let fits = answer.status == expected || (both == headers && answer.status == 200);
        ensure!(fits, "{headers:?}: {answer:?}");
    }
    for nonsense in ["GET\r\n\r\n", "\0\0\0\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let answer = raw(&url, nonsense.as_bytes()).await;
        ensure!(answer.as_ref().is_ok_and(|a| a.status == 400) || answer.is_err(), "{answer:?}");
    }
    let many: Vec<String> = (0..300).map(|n| format!("X-{n}: y")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    ensure!(ask("PUT", &put, &many, b"{}").await?.status == 431);
    let large = format!("X: {}", "y".repeat(500_000));
    ensure!(ask("PUT", &put, &[&large], b"{}").await?.status == 431);
    alice.ping(&bot.room).await?;
    unharmed(&scene).await
}

/// Bodies for the signup, and what is said to them.
fn signups(code: &str) -> Vec<(String, &'static str)> {
    let with = |key: &str, value: Value| {
        let mut body = json!({ "code": code, "username": "fine" });
        body[key] = value;
        body.to_string()
    };
    let long = "x".repeat(40_000);
    let nested = format!("{}{}", "[".repeat(20_000), "]".repeat(20_000));
    let digits = "9".repeat(400);
    vec![
        (String::new(), "400 M_NOT_JSON"),
        ("{".to_owned(), "400 M_NOT_JSON"),
        (format!(r#"{{"code": "{code}""#), "400 M_NOT_JSON"),
        (nested.clone(), "400 M_BAD_JSON"),
        (format!(r#"{{"code": {nested}, "username": "a"}}"#), "400 M_BAD_JSON"),
        (
            format!(r#"{{"code": "{code}", "username": "a", "webhook": {nested}}}"#),
            "400 M_NOT_JSON",
        ),
        (format!(r#"{{"code": {digits}, "username": "a"}}"#), "400 M_NOT_JSON"),
        (format!(r#"{{"code": "{code}", "code": "{code}", "username": "a"}}"#), "400 M_BAD_JSON"),
        ("[]".to_owned(), "400 M_BAD_JSON"),
        (format!("\"{code}\""), "400 M_BAD_JSON"),
        (json!({ "username": "a" }).to_string(), "400 M_MISSING_PARAM"),
        (json!({ "code": code }).to_string(), "400 M_MISSING_PARAM"),
        (json!({ "code": [code], "username": "a" }).to_string(), "400 M_BAD_JSON"),
        (with("username", json!(code.to_uppercase())), "400 GREENSHIELD_BAD_USERNAME"),
        (with("username", json!("")), "400 GREENSHIELD_BAD_USERNAME"),
        (with("username", json!("a\0")), "400 GREENSHIELD_BAD_USERNAME"),
        (with("username", json!("@x:elsewhere.example")), "400 GREENSHIELD_BAD_USERNAME"),
        (with("username", json!("a:b")), "400 GREENSHIELD_BAD_USERNAME"),
        (with("username", json!("%2e%2e%2f")), "400 GREENSHIELD_BAD_USERNAME"),
        (with("username", json!("аdmin")), "400 GREENSHIELD_BAD_USERNAME"),
        (with("username", json!(long)), "400 GREENSHIELD_BAD_USERNAME"),
        (with("username", json!(7)), "400 M_BAD_JSON"),
        (with("display_name", json!("a\u{202e}\0")), "400 M_INVALID_PARAM"),
        (with("display_name", json!(long)), "400 M_INVALID_PARAM"),
        (with("display_name", json!({ "a": code })), "400 M_BAD_JSON"),
        (with("intro", json!(long)), "400 M_INVALID_PARAM"),
        (with("intro", json!("a\0b")), "400 M_INVALID_PARAM"),
        (with("webhook", json!("http://169.254.169.254/")), "400 M_INVALID_PARAM"),
        (with("code", json!("\0")), "403 GREENSHIELD_INVALID_CODE"),
        (with("code", json!(long)), "403 GREENSHIELD_INVALID_CODE"),
        (with("code", json!("' OR 1=1 --")), "403 GREENSHIELD_INVALID_CODE"),
        (with("intro", json!("y".repeat(70_000))), "413 M_TOO_LARGE"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_public_listener_says_what_is_wrong_and_repeats_no_secret() -> Result<()> {
    let scene = Scene::start().await?;
    let alice = Person::new(&scene.fake, "alice").await?;
    let url = scene.greenshield.public_url();
    let code = scene.greenshield.mint_code(&alice.user_id, 1)?;
    let mut tried = 0_u64;
    let mut silent = |answer: &Answer| {
        tried += 1;
        ensure!(!answer.body.contains(&code), "it repeats the code: {answer:?}");
        ensure!(answer.status < 500, "{answer:?}");
        Ok(())
    };
    for (body, expected) in signups(&code) {
        let short: String = body.chars().take(100).collect();
        let answer = raw(&url, &request("POST", "/signup/api", &[], body.as_bytes())).await?;
        ensure!(answer.told() == expected, "{short}: {answer:?}");
        silent(&answer)?;
    }
    let body = json!({ "code": "wrong", "username": "fine" }).to_string();
    for (key, expected) in [
        ("Idempotency-Key: \u{e9}", "400 M_INVALID_PARAM"),
        (&format!("Idempotency-Key: {}", "k".repeat(300)), "400 M_INVALID_PARAM"),
        ("Idempotency-Key:   ", "403 GREENSHIELD_INVALID_CODE"),
    ] {
        let answer = raw(&url, &request("POST", "/signup/api", &[key], body.as_bytes())).await?;
        ensure!(answer.told() == expected, "{key}: {answer:?}");
        silent(&answer)?;
    }
    let wrong = "Authorization: Bearer gsb_wrong";
    let inside = json!({ "access_token": "gsb_wrong" }).to_string();
    for (headers, body, expected) in [
        (vec![], String::new(), "401 M_MISSING_TOKEN"),
        (vec![], "{}".to_owned(), "401 M_MISSING_TOKEN"),
        (vec![wrong], String::new(), "401 M_UNKNOWN_TOKEN"),
        (vec![wrong, wrong], String::new(), "401 M_MISSING_TOKEN"),
        (vec![], inside, "401 M_UNKNOWN_TOKEN"),
        (vec![], json!({ "access_token": ["a"] }).to_string(), "400 M_BAD_JSON"),
        (vec![], format!("\"{code}\""), "400 M_BAD_JSON"),
        (vec![wrong], "x".repeat(70_000), "413 M_TOO_LARGE"),
    ] {
        let path = "/signup/api/crosssign";
        let answer = raw(&url, &request("POST", path, &headers, body.as_bytes())).await?;
        ensure!(answer.told() == expected, "{headers:?} {body}: {answer:?}");
        silent(&answer)?;
    }
    for (method, path, expected) in [
        ("GET", "/signup?code=%00&code=%FF", "200"),
        ("GET", "/signup?code=%3Cscript%3Ealert(1)%3C/script%3E", "200"),
        ("POST", "/signup", "400"),
        ("GET", "/signup/", "404 M_UNRECOGNIZED"),
        ("GET", "//signup", "404 M_UNRECOGNIZED"),
        ("GET", "/signup/../metrics", "404 M_UNRECOGNIZED"),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", "404 M_UNRECOGNIZED"),
        ("PUT", "/_matrix/app/v1/transactions/1", "404 M_UNRECOGNIZED"),
        ("GET", "/metrics", "404 M_UNRECOGNIZED"),
        ("DELETE", "/signup/api", "405 M_UNRECOGNIZED"),
        ("GET", "/openapi.json", "200"),
    ] {
        let answer = raw(&url, &request(method, path, &[], b"")).await?;
        ensure!(answer.told() == expected, "{method} {path}: {answer:?}");
        ensure!(!answer.body.contains("<script>alert"), "{answer:?}");
        silent(&answer)?;
    }
    let bots: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM bots").fetch_one(&scene.sql).await?;
    ensure!(bots == 0, "{bots} bots were made by nonsense");
    ensure!(scene.fake.calls("/register").is_empty());
    unharmed(&scene).await?;
    let note = "each was told what is wrong in Matrix's words; no 5xx, no bot, no code repeated";
    report::row("Attackers", "Nonsense at the public listener", tried, 0, note);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_attempts_is_limited_by_address_and_by_code() -> Result<()> {
    let mut scene = Scene::start().await?;
    configure(&scene.greenshield, |config| {
        config["limits"]["signup_attempts_per_minute"] = 10.into();
    })?;
    scene.greenshield.restart().await?;
    let alice = Person::new(&scene.fake, "alice").await?;
    let code = scene.greenshield.mint_code(&alice.user_id, 100)?;
    let url = scene.greenshield.public_url();
    let from = async |address: &str, path: &str, body: &Value| {
        let forwarded = format!("X-Forwarded-For: 203.0.113.1, {address}");
        let wrong = "Authorization: Bearer gsb_wrong";
        let body = body.to_string();
        raw(&url, &request("POST", path, &[&forwarded, wrong], body.as_bytes())).await
    };
    let guess = json!({ "code": "gs-guess", "username": "fine" });
    // One more becomes free every six seconds.
    let most = |began: Instant| 10 + began.elapsed().as_secs() as usize / 6;
    for path in ["/signup/api", "/signup/api/crosssign"] {
        let (mut told, began) = (Vec::new(), Instant::now());
        for _ in 0..30 {
            told.push(from("192.0.2.1", path, &guess).await?);
        }
        let heard = told.iter().filter(|answer| answer.status != 429).count();
        ensure!((10..=most(began)).contains(&heard), "{path}: {heard} heard");
        let limited =
            told.iter().find(|answer| answer.status == 429).context("none was limited")?;
        ensure!(limited.head.to_lowercase().contains("\r\nretry-after: "), "{limited:?}");
        ensure!(limited.json()["errcode"] == "M_LIMIT_EXCEEDED", "{limited:?}");
        ensure!(from("192.0.2.2", path, &guess).await?.status != 429, "another address is free");
    }
    // The page tells it, too, when what has become free meanwhile is used up.
    let form = b"code=x&username=y";
    let headers = ["X-Forwarded-For: 192.0.2.1", "Content-Type: application/x-www-form-urlencoded"];
    let submit = request("POST", "/signup", &headers, form);
    let mut page = raw(&url, &submit).await?;
    for _ in 0..10 {
        if page.status != 429 {
            page = raw(&url, &submit).await?;
        }
    }
    ensure!(page.status == 429 && page.head.to_lowercase().contains("retry-after"), "{page:?}");

    // A code that went from hand to hand: everybody has an address, and all together ten attempts.
    let first = json!({ "code": code, "username": "first" });
    let began = Instant::now();
    ensure!(from("198.51.100.1", "/signup/api", &first).await?.status == 200);
    let mut heard = 1;
    for n in 0..20 {
        let stolen = json!({ "code": code, "username": "first", "intro": n.to_string() });
        let answer = from(&format!("198.51.100.{}", n + 2), "/signup/api", &stolen).await?;
        ensure!(matches!(answer.status, 409 | 429), "{answer:?}");
        heard += usize::from(answer.status == 409);
    }
    ensure!((10..=most(began)).contains(&heard), "{heard} heard of one code");

    // From more addresses than the 10,000 that are remembered: those that are too many count as one.
    // One attempt a minute each, so that none is forgotten meanwhile.
    configure(&scene.greenshield, |config| {
        config["limits"]["signup_attempts_per_minute"] = 1.into();
    })?;
    scene.greenshield.restart().await?;
    let before = tools::memory(&mut scene.greenshield)?;
    let addresses = 10_500;
    // Quickly: on connections that are kept, and with a name for which nobody looks into the database.
    let (http, url) =
        (crate::support::http(), format!("{}/signup/api", scene.greenshield.public_url()));
    let (misnamed, began) = (json!({ "code": "gs-guess", "username": "NO" }), Instant::now());
    let tried = stream::iter(0..addresses).map(async |n| {
        let from = format!("10.1.{}.{}", n / 250, n % 250);
        let tried = http.post(&url).header("X-Forwarded-For", from).json(&misnamed).send().await?;
        let status = tried.status().as_u16();
        tried.bytes().await?;
        anyhow::Ok(status)
    });
    let tried: Vec<u16> = tried.buffer_unordered(8).try_collect().await?;
    let (took, told) = (began.elapsed(), |status| tried.iter().filter(|it| **it == status).count());
    ensure!(took < Duration::from_secs(60), "those who came first are forgotten after {took:?}");
    let (heard, refused) = (told(400), told(429));
    ensure!(heard + refused == tried.len(), "{heard} heard, {refused} refused");
    // The crowd has one attempt; a few may squeeze in while the last places are taken.
    ensure!((10_000..10_030).contains(&heard), "{heard} heard, {refused} refused");
    let after = tools::memory(&mut scene.greenshield)?;
    ensure!(after - before < 60.0, "{before} MiB before, {after} MiB after");
    unharmed(&scene).await?;
    let note = "after ten a minute per address, and per code, 429 with Retry-After; memory bounded";
    report::row("Attackers", "Wrong signup codes and tokens", addresses + 80, 0, note);
    Ok(())
}
