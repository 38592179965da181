//! A transaction as homeservers truly send it.
//!
//! The E2EE parts of a transaction (MSC2409, MSC3202, MSC4203) travel under unstable names, two of
//! them at once for key counts on Synapse, and will travel under stable ones. Everything is read from
//! a plain JSON map: an alias that joined two names would turn Synapse's duplicates into a parse
//! error, and a parse error here means lost room keys. An item that makes no sense is skipped and
//! counted; it never rejects the rest.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::store::inbox::KeyCounts;

/// The algorithm whose counts matter.
const SIGNED_CURVE25519: &str = "signed_curve25519";

/// What a transaction brings.
#[derive(Debug, Default)]
pub struct Transaction {
    /// Room events, in the homeserver's order.
    pub events: Vec<RoomEvent>,
    /// To-device messages.
    pub to_device: Vec<ToDevice>,
    /// What is left of the one-time and fallback keys, by user and device.
    pub key_counts: BTreeMap<(String, String), KeyCounts>,
    /// Users whose devices changed.
    pub changed_users: Vec<String>,
    /// Items that made no sense.
    pub skipped: usize,
}

/// A room event, with what we route by.
#[derive(Debug)]
pub struct RoomEvent {
    /// Matrix event id.
    pub event_id: String,
    /// Where.
    pub room_id: String,
    /// Who.
    pub sender: String,
    /// Type on the wire.
    pub event_type: String,
    /// Set for state events.
    pub state_key: Option<String>,
    /// Milliseconds.
    pub origin_server_ts: i64,
    /// All of it.
    pub json: Value,
}

/// A to-device message and whom it is for.
#[derive(Debug)]
pub struct ToDevice {
    /// Recipient.
    pub to_user_id: String,
    /// Recipient device; `*` for all.
    pub to_device_id: String,
    /// The event, without the two recipient fields.
    pub json: Value,
}

impl Transaction {
    /// Reads a transaction's body.
    #[must_use]
    pub fn read(mut body: Map<String, Value>) -> Self {
        let mut transaction = Self::default();
        for event in take_list(&mut body, &["events"]) {
            match RoomEvent::read(event) {
                Some(event) => transaction.events.push(event),
                None => transaction.skipped += 1,
            }
        }
        for message in take_list(&mut body, &["to_device", "de.sorunome.msc2409.to_device"]) {
            match ToDevice::read(message) {
                Some(message) => transaction.to_device.push(message),
                None => transaction.skipped += 1,
            }
        }
        let counts = take_map(
            &mut body,
            &[
                "device_one_time_keys_count",
                "org.matrix.msc3202.device_one_time_keys_count",
                "org.matrix.msc3202.device_one_time_key_counts",
            ],
        );
        for (user, device, counts) in by_device(counts) {
            // A device that is named without the algorithm has none left: Synapse leaves it out then.
            let left = counts.get(SIGNED_CURVE25519).map_or(Some(0), Value::as_u64);
            transaction.counts_of(user, device).one_time_keys = left;
        }
        let fallback = take_map(
            &mut body,
            &[
                "device_unused_fallback_key_types",
                "org.matrix.msc3202.device_unused_fallback_key_types",
            ],
        );
        for (user, device, types) in by_device(fallback) {
            if let Value::Array(types) = types {
                let types = types.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect();
                transaction.counts_of(user, device).fallback_keys = Some(types);
            }
        }
        let mut lists = take_map(&mut body, &["device_lists", "org.matrix.msc3202.device_lists"]);
        // Whoever left shares no room any more; asking for their keys once too often does no harm.
        for user in take_list(&mut lists, &["changed"]) {
            match user {
                Value::String(user) => transaction.changed_users.push(user),
                _ => transaction.skipped += 1,
            }
        }
        transaction.changed_users.sort_unstable();
        transaction.changed_users.dedup();
        transaction
    }

    fn counts_of(&mut self, user: String, device: String) -> &mut KeyCounts {
        self.key_counts
            .entry((user, device))
            .or_insert_with(|| KeyCounts { one_time_keys: None, fallback_keys: None })
    }
}

impl RoomEvent {
    /// Reads an event; `None` if it lacks what every event has.
    #[must_use]
    pub fn read(json: Value) -> Option<Self> {
        let text = |key: &str| json.get(key).and_then(Value::as_str).map(ToOwned::to_owned);
        Some(Self {
            event_id: text("event_id")?,
            room_id: text("room_id")?,
            sender: text("sender")?,
            event_type: text("type")?,
            state_key: text("state_key"),
            origin_server_ts: json.get("origin_server_ts").and_then(Value::as_i64).unwrap_or(0),
            json,
        })
    }

    /// A string in the content.
    #[must_use]
    pub fn content_str(&self, key: &str) -> Option<&str> {
        self.json.get("content")?.get(key)?.as_str()
    }
}

impl ToDevice {
    fn read(mut json: Value) -> Option<Self> {
        let object = json.as_object_mut()?;
        let mut take = |key: &str| match object.remove(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        };
        let (to_user_id, to_device_id) = (take("to_user_id")?, take("to_device_id")?);
        let complete = ["sender", "type"].iter().all(|k| json.get(k).is_some_and(Value::is_string))
            && json.get("content").is_some_and(Value::is_object);
        complete.then_some(Self { to_user_id, to_device_id, json })
    }
}

/// The lists under all of these names, one after the other.
fn take_list(body: &mut Map<String, Value>, names: &[&str]) -> Vec<Value> {
    let mut items = Vec::new();
    for name in names {
        if let Some(Value::Array(list)) = body.remove(*name) {
            items.extend(list);
        }
    }
    items
}

/// The maps under all of these names, the last word on a key winning.
fn take_map(body: &mut Map<String, Value>, names: &[&str]) -> Map<String, Value> {
    let mut items = Map::new();
    for name in names {
        if let Some(Value::Object(map)) = body.remove(*name) {
            items.extend(map);
        }
    }
    items
}

/// `{user: {device: value}}`, flattened.
fn by_device(users: Map<String, Value>) -> impl Iterator<Item = (String, String, Value)> {
    users.into_iter().flat_map(|(user, devices)| {
        let devices = match devices {
            Value::Object(devices) => devices,
            _ => Map::new(),
        };
        devices.into_iter().map(move |(device, value)| (user.clone(), device, value))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: Value) -> Transaction {
        let Value::Object(body) = body else { panic!("a transaction is an object") };
        Transaction::read(body)
    }

    fn key(user: &str, device: &str) -> (String, String) {
        (user.to_owned(), device.to_owned())
    }

    #[test]
    fn synapse_sends_key_counts_under_two_names_at_once() {
        let counts = json!({"@bot:x": {"DEV": {"signed_curve25519": 42}}});
        let transaction = read(json!({
            "events": [],
            "org.matrix.msc3202.device_one_time_keys_count": counts,
            "org.matrix.msc3202.device_one_time_key_counts": counts,
            "org.matrix.msc3202.device_unused_fallback_key_types": {"@bot:x": {"DEV": ["signed_curve25519"]}},
        }));
        let counts = &transaction.key_counts[&key("@bot:x", "DEV")];
        assert_eq!(counts.one_time_keys, Some(42));
        assert_eq!(counts.fallback_keys, Some(vec!["signed_curve25519".to_owned()]));
    }

    #[test]
    fn a_drained_pool_is_zero_and_an_absent_device_is_no_news() {
        let transaction = read(json!({
            "org.matrix.msc3202.device_one_time_keys_count": {"@bot:x": {"DEV": {}}},
        }));
        assert_eq!(transaction.key_counts[&key("@bot:x", "DEV")].one_time_keys, Some(0));
        assert_eq!(transaction.key_counts[&key("@bot:x", "DEV")].fallback_keys, None);
        assert!(read(json!({"events": []})).key_counts.is_empty());
    }

    #[test]
    fn stable_and_unstable_names_are_both_read() {
        let message = |to: &str| {
            json!({"type": "m.room.encrypted", "sender": "@a:x", "content": {}, "to_user_id": to,
                "to_device_id": "DEV"})
        };
        let transaction = read(json!({
            "to_device": [message("@one:x")],
            "de.sorunome.msc2409.to_device": [message("@two:x")],
            "device_lists": {"changed": ["@a:x"]},
            "org.matrix.msc3202.device_lists": {"changed": ["@a:x", "@b:x"], "left": ["@c:x"]},
        }));
        let to: Vec<_> = transaction.to_device.iter().map(|m| m.to_user_id.as_str()).collect();
        assert_eq!(to, ["@one:x", "@two:x"]);
        assert_eq!(transaction.changed_users, ["@a:x", "@b:x"]);
        assert!(transaction.to_device[0].json.get("to_user_id").is_none());
    }

    #[test]
    fn one_bad_item_does_not_reject_the_rest() {
        let good = json!({"event_id": "$1", "room_id": "!r:x", "sender": "@a:x", "type": "m.room.message",
            "origin_server_ts": 1, "content": {}});
        let transaction = read(json!({
            "events": [7, {"event_id": "$0"}, good],
            "to_device": ["x", {"type": "t", "sender": "@a:x", "content": 3, "to_user_id": "@b:x", "to_device_id": "D"}],
            "org.matrix.msc3202.device_lists": {"changed": [null, "@a:x"]},
            "org.matrix.msc3202.device_one_time_keys_count": {"@bot:x": 7, "@c:x": {"D": "many"}},
        }));
        assert_eq!(transaction.events.len(), 1);
        assert_eq!(transaction.changed_users, ["@a:x"]);
        assert_eq!(transaction.skipped, 5);
    }
}
