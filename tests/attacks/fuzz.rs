//! Whatever comes: nothing panics, and what is let through follows the rules.
//!
//! In the suite these run some thousand times each, with another seed every time, which a failure
//! prints. `BOLERO_RANDOM_TEST_TIME_MS=600000 BOLERO_RANDOM_ITERATIONS=1000000000` makes them go on for
//! ten minutes, `RUSTC_BOOTSTRAP=1 cargo bolero test --test it attacks::fuzz::...` looks for new paths
//! through the code with libFuzzer, and `GREENSHIELD_FUZZ_REQUESTS` is how many requests the running
//! program gets.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use greenshield::{
    appservice::wire::Transaction,
    crypto::VerificationMessage,
    model::foreign,
    signup::{rules::Wish, wire::SignupRequest},
    store::to_device,
    web::MatrixJson,
};
use ruma::server_name;
use serde_json::{Value, value::RawValue};

use super::{
    mutate::{Dice, SIGNUPS, TRANSACTIONS, bent},
    tools::{raw, request, token, unharmed},
};
use crate::{
    fast::scene::Scene,
    support::{random, report},
};

const ITERATIONS: usize = 3000;

#[test]
fn any_transaction_is_read_item_by_item() {
    bolero::check!().with_iterations(ITERATIONS).for_each(|bytes: &[u8]| {
        let body = bent(&TRANSACTIONS, &mut Dice::new(bytes));
        let Ok(read) = Transaction::read(&body) else {
            let is_object =
                serde_json::from_slice::<BTreeMap<String, Box<RawValue>>>(&body).is_ok();
            assert!(!is_object, "refused: {}", String::from_utf8_lossy(&body));
            return;
        };
        for event in &read.events {
            let ids = [&event.event_id, &event.room_id, &event.sender, &event.event_type];
            assert!(
                ids.into_iter().chain(&event.state_key).all(|id| foreign::is_id(id)),
                "{event:?}"
            );
            assert!(!holds_nul(&event.json));
            let _ = VerificationMessage::from_room_event(&event.json);
        }
        for message in &read.to_device {
            assert!(foreign::is_id(&message.to_user_id) && foreign::is_id(&message.to_device_id));
            assert!(to_device::is_sound(&message.json) && !holds_nul(&message.json));
            assert!(message.json.get("to_user_id").is_none(), "{message:?}");
            let _ = to_device::digest(&message.json);
            if let Some(heard) = VerificationMessage::from_to_device(&message.json) {
                assert!(foreign::is_id(&heard.flow_id));
            }
        }
        assert!(
            read.changed_users.is_sorted() && read.changed_users.iter().all(|u| foreign::is_id(u))
        );
        assert!(read.events.len() + read.to_device.len() + read.skipped <= body.len());
    });
}

/// The shapes as they are lose nothing.
#[test]
fn what_homeservers_truly_send_is_read_whole() {
    for shape in TRANSACTIONS.iter() {
        let read = Transaction::read(shape.to_string().as_bytes()).expect("an object");
        assert_eq!(read.skipped, 0, "{shape}");
        let listed = |key: &str| shape[key].as_array().map_or(0, Vec::len);
        assert_eq!(read.events.len(), listed("events"));
        let to_device = listed("to_device") + listed("de.sorunome.msc2409.to_device");
        assert_eq!(read.to_device.len(), to_device);
    }
}

#[test]
fn any_signup_follows_the_rules_or_is_told_which_it_breaks() {
    bolero::check!().with_iterations(ITERATIONS).for_each(|bytes: &[u8]| {
        let body = bent(&SIGNUPS, &mut Dice::new(bytes));
        let wish =
            MatrixJson::<SignupRequest>::parse_bytes(&body).and_then(|MatrixJson(request)| {
                Wish::new(&request, "bot_", server_name!("example.org"))
            });
        match wish {
            Ok(wish) => {
                let legal =
                    |c: char| matches!(c, 'a'..='z' | '0'..='9' | '.' | '_' | '=' | '/' | '-');
                let localpart = wish.user_id.localpart().strip_prefix("bot_").expect("the prefix");
                assert!(!localpart.is_empty() && localpart.chars().all(legal), "{wish:?}");
                assert!(
                    wish.user_id.as_str().len() <= 255
                        && wish.user_id.server_name() == "example.org"
                );
                assert!(wish.display_name.chars().count() <= 100);
                assert!(!wish.display_name.chars().any(char::is_control));
                assert!(wish.intro.chars().count() <= 4000 && !wish.intro.contains('\0'));
            }
            Err(error) => {
                assert_eq!(error.status().as_u16(), 400, "{error}");
                assert!(!error.text().is_empty() && !error.text().contains("canary"), "{error}");
            }
        }
    });
}

#[test]
fn taking_nul_out_changes_nothing_else() {
    bolero::check!().with_iterations(ITERATIONS).for_each(|bytes: &[u8]| {
        let body = bent(&TRANSACTIONS, &mut Dice::new(bytes));
        let clean = foreign::without_nul(&body);
        assert_eq!(clean.len(), body.len());
        let (before, after) = (parsed(&body), parsed(&clean));
        assert_eq!(before.is_some(), after.is_some());
        if let (Some(before), Some(after)) = (before, after) {
            assert!(!holds_nul(&after));
            assert!(holds_nul(&before) || before == after);
        }
    });
}

fn parsed(json: &[u8]) -> Option<Value> {
    serde_json::from_slice(json).ok()
}

fn holds_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(holds_nul),
        Value::Object(map) => map.iter().any(|(key, value)| key.contains('\0') || holds_nul(value)),
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_request_is_answered_by_the_running_program() -> Result<()> {
    let (scene, alice, bot) = Scene::with_bot().await?;
    // What is bent may well be that the bot has left, or that the room speaks another algorithm.
    let room = scene.fake.room(&alice.user_id, true, &[&bot.user_id]);
    let requests = std::env::var("GREENSHIELD_FUZZ_REQUESTS");
    let requests: usize = requests.ok().and_then(|n| n.parse().ok()).unwrap_or(600);
    let bearer = format!("Authorization: Bearer {}", token(&scene.greenshield, "hs_token")?);
    let listeners = [
        scene.greenshield.appservice_url(),
        scene.greenshield.public_url(),
        scene.greenshield.operator_url(),
    ];
    let real = |body: Vec<u8>| {
        let text = String::from_utf8_lossy(&body);
        let text = text.replace("@bot:example.org", &bot.user_id).replace("DEVICE", &bot.device_id);
        text.replace("!room:example.org", &room).replace("@alice:example.org", &alice.user_id)
    };
    for number in 0..requests {
        let bytes: [u8; 256] = random::bytes();
        let mut dice = Dice::new(&bytes);
        let (listener, method, path, body) = match dice.below(8) {
            0..=2 => {
                let path = format!("/_matrix/app/v1/transactions/f{number}");
                (0, "PUT", path, real(bent(&TRANSACTIONS, &mut dice)))
            }
            3 => {
                (0, "GET", format!("/_matrix/app/v1/users/{}", odd_path(&mut dice)), String::new())
            }
            4 => {
                let path = "/signup/api".to_owned();
                (1, "POST", path, real(bent(&SIGNUPS, &mut dice)))
            }
            5 => {
                let path = "/signup/api/crosssign".to_owned();
                (1, "POST", path, real(bent(&SIGNUPS, &mut dice)))
            }
            6 => (1, "POST", "/signup".to_owned(), odd_path(&mut dice)),
            _ => (dice.below(3), "GET", format!("/{}", odd_path(&mut dice)), String::new()),
        };
        let form = "Content-Type: application/x-www-form-urlencoded";
        let headers: &[&str] = if listener == 0 { &[&bearer] } else { &[form] };
        let answer =
            raw(&listeners[listener], &request(method, &path, headers, body.as_bytes())).await?;
        let story = || format!("{method} {path}\n{body}\n{answer:?}\nseed {bytes:?}");
        ensure!(answer.status < 500, "{}", story());
        let told = answer.told();
        if (400..500).contains(&answer.status) && !answer.body.is_empty() && path != "/signup" {
            ensure!(told != answer.status.to_string(), "not in Matrix's words: {}", story());
        }
        if path.contains("transactions/f") {
            ensure!(matches!(told.as_str(), "200" | "400 M_NOT_JSON"), "{}", story());
        }
    }
    alice.forget_key(&bot.room).await?;
    alice.ping(&bot.room).await?;
    unharmed(&scene).await?;
    let note =
        "bent shapes of transactions and signups, odd paths: no 5xx, no panic, the bot answers";
    report::row("Attackers", "Random requests to the running program", requests as u64, 0, note);
    Ok(())
}

/// Bytes that may stand in a path; some of them say others.
fn odd_path(dice: &mut Dice<'_>) -> String {
    let odd =
        ["%00", "%2F", "..", "%ff", "%", "a", "@", ":", "?", "=", "&", "+", ";", "/", "~", "%25"];
    (0..dice.below(40)).map(|_| odd[dice.below(odd.len())]).collect()
}
