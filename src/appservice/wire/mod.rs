//! A transaction as homeservers truly send it.
//!
//! The E2EE parts of a transaction (MSC2409, MSC3202, MSC4203) travel under unstable names, two of
//! them at once for key counts on Synapse, and will travel under stable ones. Everything is read from
//! a plain JSON map: an alias that joined two names would turn Synapse's duplicates into a parse
//! error, and a parse error here means lost room keys.
//!
//! Anybody on Matrix can have a homeserver send us an item of a thousand nested lists, a number of a
//! thousand digits, half a character, or an id that no index takes. A transaction that we refuse comes
//! again for ever, before all others: so each item is parsed by itself, and one that makes no sense is
//! skipped and counted; it never rejects the rest.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserializer as _,
    de::{DeserializeOwned, SeqAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};

use crate::{
    model::foreign,
    store::{inbox::KeyCounts, to_device},
};

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

type Body = BTreeMap<String, Box<RawValue>>;

impl Transaction {
    /// Reads a transaction's body.
    ///
    /// # Errors
    ///
    /// If it is not a JSON object.
    pub fn read(body: &[u8]) -> Result<Self, serde_json::Error> {
        let mut body: Body = serde_json::from_slice(&foreign::without_nul(body))?;
        let mut transaction = Self::default();
        transaction.events = transaction.take_list(&mut body, &["events"], |event| {
            RoomEvent::read(parsed(event).or_else(|| what_is_sound(event))?)
        });
        let names = ["to_device", "de.sorunome.msc2409.to_device"];
        transaction.to_device =
            transaction.take_list(&mut body, &names, |message| ToDevice::read(parsed(message)?));
        let counts = transaction.take_map(
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
        let fallback = transaction.take_map(
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
        // Whoever left shares no room any more; asking for their keys once too often does no harm.
        for name in ["device_lists", "org.matrix.msc3202.device_lists"] {
            let mut lists: Body = transaction.take(&mut body, name).unwrap_or_default();
            let changed = transaction.take_list(&mut lists, &["changed"], |user| {
                parsed(user).filter(|user: &String| foreign::is_id(user))
            });
            transaction.changed_users.extend(changed);
        }
        transaction.changed_users.sort_unstable();
        transaction.changed_users.dedup();
        Ok(transaction)
    }

    /// The items of the lists under all of these names that `read` takes, one list after the other. Each is
    /// read as it is met: millions that make no sense take no room.
    fn take_list<T>(
        &mut self,
        body: &mut Body,
        names: &[&str],
        read: fn(&RawValue) -> Option<T>,
    ) -> Vec<T> {
        let mut items = Vec::new();
        for list in names.iter().filter_map(|name| given(body, name)) {
            let each = Each(|item: &RawValue| match read(item) {
                Some(item) => items.push(item),
                None => self.skipped += 1,
            });
            let is_list = serde_json::Deserializer::from_str(list.get()).deserialize_seq(each);
            self.skipped += usize::from(is_list.is_err());
        }
        items
    }

    /// The maps under all of these names, the last word on a key winning.
    fn take_map(&mut self, body: &mut Body, names: &[&str]) -> Map<String, Value> {
        let mut items = Map::new();
        for name in names {
            let map: Body = self.take(body, name).unwrap_or_default();
            let map = map.into_iter().filter(|(key, _)| foreign::is_id(key));
            items.extend(map.filter_map(|(key, raw)| Some((key, parsed::<Value>(&raw)?))));
        }
        items
    }

    /// What stands under a name, if it has the shape that is wanted; else it is skipped as one item,
    /// unless it is nothing.
    fn take<T: DeserializeOwned>(&mut self, body: &mut Body, name: &str) -> Option<T> {
        let taken = parsed(&given(body, name)?);
        self.skipped += usize::from(taken.is_none());
        taken
    }

    fn counts_of(&mut self, user: String, device: String) -> &mut KeyCounts {
        self.key_counts
            .entry((user, device))
            .or_insert_with(|| KeyCounts { one_time_keys: None, fallback_keys: None })
    }
}

impl RoomEvent {
    /// Reads an event; `None` if it lacks what every event has, or has it as no event may.
    #[must_use]
    pub fn read(json: Value) -> Option<Self> {
        let text = |key: &str| json.get(key).and_then(Value::as_str);
        let id = |key: &str| text(key).filter(|id| foreign::is_id(id)).map(ToOwned::to_owned);
        Some(Self {
            event_id: id("event_id")?,
            room_id: id("room_id")?,
            sender: id("sender")?,
            event_type: id("type")?,
            state_key: match text("state_key") {
                Some(_) => Some(id("state_key")?),
                None => None,
            },
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
        let addressed = [&to_user_id, &to_device_id].into_iter().all(|id| foreign::is_id(id));
        (addressed && to_device::is_sound(&json)).then_some(Self { to_user_id, to_device_id, json })
    }
}

/// Gives each item of a list to a function.
struct Each<F>(F);

impl<'de, F: FnMut(&'de RawValue)> Visitor<'de> for Each<F> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
        while let Some(item) = list.next_element()? {
            self.0(item);
        }
        Ok(())
    }
}

fn parsed<T: DeserializeOwned>(item: &RawValue) -> Option<T> {
    serde_json::from_str(item.get()).ok()
}

/// Of a state event that no parser takes, the fields that one does: whoever turns encryption on, or leaves,
/// with depths or numbers in the content that we cannot read has done it all the same.
fn what_is_sound(event: &RawValue) -> Option<Value> {
    let sound = |fields: &RawValue| -> Option<Map<String, Value>> {
        let fields: Body = serde_json::from_str(fields.get()).ok()?;
        let parsed = fields
            .into_iter()
            .filter_map(|(name, value)| Some((name, serde_json::from_str(value.get()).ok()?)));
        Some(parsed.collect())
    };
    let fields: Body = serde_json::from_str(event.get()).ok()?;
    let content = fields.get("content").and_then(|content| sound(content)).unwrap_or_default();
    let mut event = sound(event)?;
    event.insert("content".to_owned(), content.into());
    event.get("state_key").is_some_and(Value::is_string).then_some(event.into())
}

/// What stands under a name, unless it is nothing.
fn given(body: &mut Body, name: &str) -> Option<Box<RawValue>> {
    body.remove(name).filter(|raw| raw.get() != "null")
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
mod tests;
