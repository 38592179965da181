//! Keys and to-device messages.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::{
    FakeHomeserver,
    call::{Answer, Call, refuse},
    state::{Device, State},
};

const ALGORITHM: &str = "signed_curve25519";
/// A server whose users' devices nobody can ask for.
pub const DEAD_SERVER: &str = "dead.example";
static NONE: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

fn map(value: &Value) -> &Map<String, Value> {
    value.as_object().unwrap_or(&NONE)
}

impl State {
    pub fn keys_call(&mut self, call: &Call, method: &str, rest: &[&str]) -> Option<Answer> {
        Some(match (method, rest) {
            ("POST", ["keys", "upload"]) => self.upload(call),
            ("POST", ["keys", "query"]) => Ok(self.query(call)),
            ("POST", ["keys", "claim"]) => Ok(self.claim(call)),
            ("POST", ["keys", "signatures", "upload"]) => Ok(self.sign(call)),
            ("POST", ["keys", "device_signing", "upload"]) => Ok(self.identity(call)),
            ("PUT", ["sendToDevice", kind, _]) => Ok(self.send_to_device(call, kind)),
            _ => return None,
        })
    }

    fn upload(&mut self, call: &Call) -> Answer {
        let (user, device) = (call.user().to_owned(), call.device().to_owned());
        let ssk = self.identities.get(&(user.clone(), "self_signing".to_owned())).cloned();
        let Some(row) = self.devices.get_mut(&(user.clone(), device)) else {
            return refuse(400, "M_UNKNOWN", "no such device");
        };
        for (id, key) in map(&call.body["one_time_keys"]) {
            if row.one_time_keys.get(id).is_some_and(|known| known != key) {
                return refuse(400, "M_UNKNOWN", format!("One time key {id} already exists"));
            }
            row.one_time_keys.insert(id.clone(), key.clone());
        }
        if let Some((id, key)) = map(&call.body["fallback_keys"]).iter().next() {
            row.fallback = Some((id.clone(), key.clone(), false));
        }
        let count = row.one_time_keys.len();
        if let Some(keys) = call.body.get("device_keys").filter(|keys| keys.is_object()) {
            let changed = row.keys.as_ref() != Some(keys);
            row.keys = Some(keys.clone());
            let signer = ssk.as_ref().and_then(|ssk| map(&ssk["keys"]).keys().next());
            let is_signed = signer.is_some_and(|key| keys["signatures"][&user][key].is_string());
            if call.by_greenshield && !is_signed {
                self.unsigned.push(user.clone());
            }
            if changed {
                self.queue.changed.insert(user);
            }
        }
        Ok(json!({ "one_time_key_counts": { ALGORITHM: count } }))
    }

    fn query(&self, call: &Call) -> Value {
        let mut answer = json!({ "device_keys": {}, "master_keys": {}, "self_signing_keys": {},
            "user_signing_keys": {}, "failures": {} });
        for user in map(&call.body["device_keys"]).keys() {
            if user.ends_with(DEAD_SERVER) {
                answer["failures"][DEAD_SERVER] = json!({});
                continue;
            }
            let devices: Map<String, Value> = self
                .devices
                .iter()
                .filter(|((owner, _), _)| owner == user)
                .filter_map(|((_, id), device)| Some((id.clone(), device.keys.clone()?)))
                .collect();
            answer["device_keys"][user] = devices.into();
            for usage in ["master", "self_signing", "user_signing"] {
                let key = self.identities.get(&(user.clone(), usage.to_owned()));
                if let Some(key) = key.filter(|_| usage != "user_signing" || user == call.user()) {
                    answer[format!("{usage}_keys")][user] = key.clone();
                }
            }
        }
        answer
    }

    fn claim(&mut self, call: &Call) -> Value {
        let mut claimed = json!({});
        for (user, devices) in map(&call.body["one_time_keys"]) {
            for device in map(devices).keys() {
                let Some(row) = self.devices.get_mut(&(user.clone(), device.clone())) else {
                    continue;
                };
                let key = row.one_time_keys.pop_first().or_else(|| {
                    let (id, key, used) = row.fallback.as_mut()?;
                    *used = true;
                    Some((id.clone(), key.clone()))
                });
                if let Some((id, key)) = key {
                    claimed[user][device] = json!({ id: key });
                }
            }
        }
        json!({ "one_time_keys": claimed, "failures": {} })
    }

    fn sign(&mut self, call: &Call) -> Value {
        for (user, objects) in map(&call.body) {
            for (id, object) in map(objects) {
                let device = self.devices.get_mut(&(user.clone(), id.clone()));
                let target = match device.and_then(|device| device.keys.as_mut()) {
                    Some(keys) => Some(keys),
                    None => self.identities.get_mut(&(user.clone(), "master".to_owned())),
                };
                let Some(target) = target else { continue };
                for (signer, signatures) in map(&object["signatures"]) {
                    for (key, signature) in map(signatures) {
                        target["signatures"][signer][key] = signature.clone();
                    }
                }
            }
            self.queue.changed.insert(user.clone());
        }
        json!({ "failures": {} })
    }

    fn identity(&mut self, call: &Call) -> Value {
        for usage in ["master", "self_signing", "user_signing"] {
            let key = &call.body[format!("{usage}_key")];
            if !key.is_object() {
                continue;
            }
            if usage == "master" {
                let id = map(&key["keys"]).keys().next().cloned().unwrap_or_default();
                self.masters.push((call.user().to_owned(), id));
            }
            let place = (call.user().to_owned(), usage.to_owned());
            self.identities.entry(place).or_insert_with(|| key.clone());
        }
        self.queue.changed.insert(call.user().to_owned());
        json!({})
    }

    fn send_to_device(&mut self, call: &Call, kind: &str) -> Value {
        if self.transactions.insert(call.scope(), json!({})).is_some() {
            return json!({});
        }
        for (user, devices) in map(&call.body["messages"]) {
            for (device, content) in map(devices) {
                let event = json!({ "type": kind, "sender": call.user(), "content": content });
                if self.queue.held.to_device {
                    self.queue.late_to_device.push((user.clone(), device.clone(), event));
                } else {
                    self.deliver(user, device, &event);
                }
            }
        }
        json!({})
    }

    /// Puts a to-device message into the device's inbox, and into a transaction if it is a bot's.
    pub fn deliver(&mut self, user: &str, device: &str, event: &Value) {
        let devices: Vec<String> = self
            .devices
            .keys()
            .filter(|(owner, id)| owner == user && (device == "*" || id == device))
            .map(|(_, id)| id.clone())
            .collect();
        for id in devices {
            let position = self.next();
            let row: &mut Device = self.devices.entry((user.to_owned(), id.clone())).or_default();
            row.inbox.insert(position, event.clone());
            if Self::is_bot(user) && !self.queue.drop_to_device {
                let mut pushed = event.clone();
                pushed["to_user_id"] = user.into();
                pushed["to_device_id"] = id.into();
                self.queue.to_device.push(pushed);
            }
        }
    }

    /// A sliding sync of nothing but to-device messages. `since` deletes what lies before it.
    pub fn sync_to_device(&mut self, call: &Call) -> Answer {
        let wanted = &call.body["extensions"]["to_device"];
        let since = wanted["since"].as_str().and_then(|since| since.parse().ok()).unwrap_or(0_u64);
        let limit = wanted["limit"].as_u64().unwrap_or(100);
        let place = (call.user().to_owned(), call.device().to_owned());
        let Some(row) = self.devices.get_mut(&place) else {
            return refuse(401, "M_UNKNOWN_TOKEN", "no such device");
        };
        row.inbox.retain(|position, _| *position > since);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let page: Vec<(&u64, &Value)> = row.inbox.iter().take(limit).collect();
        let next = page.last().map_or(since, |(position, _)| **position);
        let events: Vec<&Value> = page.into_iter().map(|(_, event)| event).collect();
        Ok(json!({ "pos": "0", "extensions": { "to_device": {
            "next_batch": next.to_string(), "events": events,
        } } }))
    }
}

impl FakeHomeserver {
    /// How many to-device messages lie in a device's inbox.
    pub fn inbox_len(&self, user: &str, device: &str) -> usize {
        let state = self.lock();
        let row = state.devices.get(&(user.to_owned(), device.to_owned()));
        row.map_or(0, |row| row.inbox.len())
    }

    /// What lies in a device's inbox.
    pub fn inbox(&self, user: &str, device: &str) -> Vec<Value> {
        let state = self.lock();
        let row = state.devices.get(&(user.to_owned(), device.to_owned()));
        row.map(|row| row.inbox.values().cloned().collect()).unwrap_or_default()
    }

    /// Takes it out.
    pub fn take_inbox(&self, user: &str, device: &str) -> Vec<Value> {
        let mut state = self.lock();
        let row = state.devices.get_mut(&(user.to_owned(), device.to_owned()));
        row.map(|row| std::mem::take(&mut row.inbox).into_values().collect()).unwrap_or_default()
    }

    pub fn one_time_keys(&self, user: &str, device: &str) -> usize {
        let state = self.lock();
        let row = state.devices.get(&(user.to_owned(), device.to_owned()));
        row.map_or(0, |row| row.one_time_keys.len())
    }

    /// Throws a device's one-time keys away, as if others had claimed them.
    pub fn drain_one_time_keys(&self, user: &str, device: &str) {
        let mut state = self.lock();
        if let Some(row) = state.devices.get_mut(&(user.to_owned(), device.to_owned())) {
            row.one_time_keys.clear();
        }
    }

    pub fn fallback_key(&self, user: &str, device: &str) -> Option<String> {
        let state = self.lock();
        let row = state.devices.get(&(user.to_owned(), device.to_owned()))?;
        row.fallback.as_ref().map(|(id, ..)| id.clone())
    }

    /// The master keys that were ever uploaded for a user, each once.
    pub fn masters(&self, user: &str) -> Vec<String> {
        let state = self.lock();
        let masters = state.masters.iter().filter(|(owner, _)| owner == user);
        let mut masters: Vec<String> = masters.map(|(_, key)| key.clone()).collect();
        masters.sort();
        masters.dedup();
        masters
    }

    /// Bots whose device keys were ever to be seen without their identity's signature.
    pub fn unsigned(&self) -> Vec<String> {
        self.lock().unsigned.clone()
    }

    /// The devices of a user, as anybody sees them.
    pub fn devices(&self, user: &str) -> Vec<String> {
        let state = self.lock();
        let devices = state.devices.keys().filter(|(owner, _)| owner == user);
        devices.map(|(_, device)| device.clone()).collect()
    }

    /// Changes the keys that are shown of a device, which may be a new one; nobody is told.
    pub fn change_keys(&self, user: &str, device: &str, change: impl FnOnce(&mut Option<Value>)) {
        let mut state = self.lock();
        let place = (user.to_owned(), device.to_owned());
        change(&mut state.devices.entry(place).or_default().keys);
    }

    /// Changes the master key that is shown of a user; nobody is told.
    pub fn change_master(&self, user: &str, change: impl FnOnce(&mut Value)) {
        let mut state = self.lock();
        change(state.identities.entry((user.to_owned(), "master".to_owned())).or_default());
    }

    /// Ends a device, and tells everybody.
    pub fn remove_device(&self, user: &str, device: &str) {
        let mut state = self.lock();
        state.devices.remove(&(user.to_owned(), device.to_owned()));
        state.queue.changed.insert(user.to_owned());
        drop(state);
        self.inner.news.notify_one();
    }
}
