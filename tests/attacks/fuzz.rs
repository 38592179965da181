//! Whatever comes: nothing panics, and what is let through follows the rules.
//!
//! In the suite these run some thousand times each, with another seed every time, which a failure
//! prints. `BOLERO_RANDOM_TEST_TIME_MS=600000 BOLERO_RANDOM_ITERATIONS=1000000000` makes them go on for
//! ten minutes, `RUSTC_BOOTSTRAP=1 cargo bolero test --test it attacks::fuzz::...` looks for new paths
//! through the code with libFuzzer. `surfaces` does the same to the running program.

use std::collections::BTreeMap;

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

use super::mutate::{Dice, SIGNUPS, TRANSACTIONS, bent};

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

/// The lists of a transaction, under each of their names.
const EVENTS: &[&str] = &["events"];
const TO_DEVICE: &[&str] = &["to_device", "de.sorunome.msc2409.to_device"];
const DEVICE_LISTS: [&str; 2] = ["device_lists", "org.matrix.msc3202.device_lists"];
const COUNTS: [&str; 3] = [
    "device_one_time_keys_count",
    "org.matrix.msc3202.device_one_time_keys_count",
    "org.matrix.msc3202.device_one_time_key_counts",
];

/// Every item that the shapes have under these names.
fn items(names: &[&str]) -> Vec<Value> {
    let lists = TRANSACTIONS.iter().flat_map(|shape| names.iter().map(|name| &shape[*name]));
    lists.filter_map(Value::as_array).flatten().cloned().collect()
}

/// A JSON list of these, with `bent` somewhere among them.
fn list(items: &[Value], bent: Option<&str>, dice: &mut Dice<'_>) -> String {
    let mut items: Vec<String> = items.iter().map(Value::to_string).collect();
    if let Some(bent) = bent {
        items.insert(dice.below(items.len() + 1), bent.to_owned());
    }
    format!("[{}]", items.join(","))
}

/// Whether all of these are there, in their order, whatever else is.
fn holds<'a>(read: impl Iterator<Item = &'a Value>, wanted: &[Value]) -> bool {
    let mut left = wanted.iter().peekable();
    for item in read {
        left.next_if_eq(&item);
    }
    left.peek().is_none()
}

/// Whatever one item is, all the others come through: those of its list, and of the other lists.
#[test]
fn a_bent_item_takes_no_sound_one_with_it() {
    let (events, to_device) = (items(EVENTS), items(TO_DEVICE));
    let users = [Value::from("@alice:example.org"), Value::from("@bob:elsewhere.example")];
    let everything = [&events[..], &to_device, &users].concat();
    let delivered: Vec<Value> = to_device
        .iter()
        .map(|message| {
            let mut message = message.clone();
            let object = message.as_object_mut().expect("an object");
            object.retain(|key, _| !key.starts_with("to_"));
            message
        })
        .collect();
    bolero::check!().with_iterations(ITERATIONS).for_each(|bytes: &[u8]| {
        let mut dice = Dice::new(bytes);
        let where_to = dice.below(5);
        let (names, lists) = (TO_DEVICE[dice.below(2)], DEVICE_LISTS[dice.below(2)]);
        let counts = COUNTS[dice.below(3)];
        let bent = bent(&everything, &mut dice);
        // Between commas it must be one item, whatever it says.
        let bent = serde_json::from_slice::<Box<RawValue>>(&bent).ok();
        let bent = bent.as_ref().map_or("[1e999]", |bent| bent.get());
        let at = |place| (where_to == place).then_some(bent);
        let body = format!(
            r#"{{"events": {}, "{names}": {}, "{lists}": {{"changed": {}, "left": {}}},
                "{counts}": {{{}"@bot:example.org": {{"DEVICE": {{"signed_curve25519": 7}}}}}}}}"#,
            list(&events, at(0), &mut dice),
            list(&to_device, at(1), &mut dice),
            list(&users, at(2), &mut dice),
            at(3).unwrap_or("[]"),
            at(4).map_or_else(String::new, |bent| format!(r#""@bent:example.org": {bent},"#)),
        );
        let read = Transaction::read(body.as_bytes()).expect("an object");
        assert!(holds(read.events.iter().map(|event| &event.json), &events), "{body}");
        assert!(holds(read.to_device.iter().map(|message| &message.json), &delivered), "{body}");
        let changed = |user: &Value| read.changed_users.iter().any(|changed| user == changed);
        assert!(users.iter().all(changed), "{body}");
        let device = ("@bot:example.org".to_owned(), "DEVICE".to_owned());
        assert_eq!(read.key_counts[&device].one_time_keys, Some(7), "{body}");
        // What is skipped is no more than the one.
        assert!(read.skipped <= 1, "{body}");
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
