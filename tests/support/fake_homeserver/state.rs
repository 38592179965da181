//! What the homeserver knows, and the calls that are about neither keys nor rooms.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, json};

use super::{
    call::{Answer, Call, Seen, refuse},
    push::{Appservice, Queue},
    reach::Reach,
    rooms::Room,
    trap::Planned,
};
use crate::support::synapse::SERVER_NAME;

/// A device and what is kept for it.
#[derive(Default)]
pub struct Device {
    pub keys: Option<Value>,
    /// Unclaimed one-time keys by id.
    pub one_time_keys: BTreeMap<String, Value>,
    /// The fallback key, and whether it was used.
    pub fallback: Option<(String, Value, bool)>,
    /// Its to-device messages, by position.
    pub inbox: BTreeMap<u64, Value>,
}

/// Everything.
#[derive(Default)]
pub struct State {
    pub appservice: Option<Appservice>,
    pub faults: Vec<Planned>,
    pub seen: Vec<Seen>,
    pub users: BTreeSet<String>,
    pub devices: BTreeMap<(String, String), Device>,
    /// Cross-signing keys by user and usage.
    pub identities: BTreeMap<(String, String), Value>,
    /// Every master key that was ever uploaded.
    pub masters: Vec<(String, String)>,
    /// Bots whose device keys came without their identity's signature.
    pub unsigned: Vec<String>,
    pub rooms: BTreeMap<String, Room>,
    pub account_data: HashMap<(String, String), Value>,
    /// Answers by transaction id and its scope.
    pub transactions: HashMap<String, Value>,
    pub queue: Queue,
    pub reach: Reach,
    pub counter: u64,
}

impl State {
    /// A number that nobody had before.
    pub fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub fn is_bot(user: &str) -> bool {
        user.starts_with("@bot_")
    }

    pub fn answer(&mut self, call: &Call) -> Answer {
        let segments: Vec<&str> = call.segments.iter().map(String::as_str).collect();
        match (call.method.as_str(), segments.as_slice()) {
            ("GET", ["_matrix", "client", "versions"]) => {
                Ok(json!({ "versions": ["v1.1", "v1.11"] }))
            }
            (
                "POST",
                ["_matrix", "client", "unstable", "org.matrix.simplified_msc3575", "sync"],
            ) => self.sync_to_device(call),
            (method, ["_matrix", "client", "v3", rest @ ..]) => {
                if let Some(answer) = self.user_call(call, method, rest) {
                    return answer;
                }
                if let Some(answer) = self.keys_call(call, method, rest) {
                    return answer;
                }
                if let Some(answer) = self.room_call(call, method, rest) {
                    return answer;
                }
                refuse(404, "M_UNRECOGNIZED", call.path.clone())
            }
            _ => refuse(404, "M_UNRECOGNIZED", call.path.clone()),
        }
    }

    fn user_call(&mut self, call: &Call, method: &str, rest: &[&str]) -> Option<Answer> {
        Some(match (method, rest) {
            ("GET", ["account", "whoami"]) => Ok(json!({ "user_id": call.user() })),
            ("POST", ["register"]) => {
                let localpart = call.body["username"].as_str().unwrap_or_default();
                let user = format!("@{localpart}:{SERVER_NAME}");
                if !self.users.insert(user.clone()) {
                    return Some(refuse(400, "M_USER_IN_USE", "taken"));
                }
                Ok(json!({ "user_id": user }))
            }
            ("GET", ["devices", device]) => {
                match self.devices.get(&(call.user().to_owned(), (*device).to_owned())) {
                    Some(_) => Ok(json!({ "device_id": device })),
                    None => refuse(404, "M_NOT_FOUND", "no such device"),
                }
            }
            ("PUT", ["devices", device]) => {
                self.devices.entry((call.user().to_owned(), (*device).to_owned())).or_default();
                Ok(json!({}))
            }
            ("PUT", ["profile", ..]) => Ok(json!({})),
            ("GET", ["user", user, "account_data", kind]) => {
                match self.account_data.get(&((*user).to_owned(), (*kind).to_owned())) {
                    Some(data) => Ok(data.clone()),
                    None => refuse(404, "M_NOT_FOUND", "no such account data"),
                }
            }
            ("PUT", ["user", user, "account_data", kind]) => {
                let key = ((*user).to_owned(), (*kind).to_owned());
                self.account_data.insert(key, call.body.clone());
                Ok(json!({}))
            }
            _ => return None,
        })
    }
}
