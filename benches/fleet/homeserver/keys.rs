//! Keys and to-device messages.

use std::{collections::HashMap, fmt::Write as _};

use axum::body::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value, value::RawValue};

use super::{
    call::Call,
    push::ToDevice,
    state::{Answer, Device, State},
};

const USAGES: [&str; 3] = ["master", "self_signing", "user_signing"];

#[derive(Deserialize)]
struct Upload {
    #[serde(rename = "device_keys")]
    device: Option<Box<RawValue>>,
    #[serde(default, rename = "one_time_keys")]
    one_time: Map<String, Value>,
    #[serde(default, rename = "fallback_keys")]
    fallback: Map<String, Value>,
}

#[derive(Deserialize)]
struct Query {
    device_keys: HashMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Claim {
    one_time_keys: HashMap<String, HashMap<String, String>>,
}

#[derive(Deserialize)]
struct Messages {
    messages: HashMap<String, HashMap<String, Box<RawValue>>>,
}

const BAD: super::state::Refusal = (400, "M_BAD_JSON");

impl State {
    pub fn keys_call(&mut self, call: &Call, method: &str, rest: &[&str]) -> Option<Answer> {
        let (user, device) = (call.user(), call.device());
        Some(match (method, rest) {
            ("POST", ["keys", "upload"]) => self.upload(&user, &device, &call.body),
            ("POST", ["keys", "query"]) => {
                self.calls.queries += 1;
                self.query(&user, &call.body)
            }
            ("POST", ["keys", "claim"]) => {
                self.calls.claims += 1;
                self.claim(&call.body)
            }
            ("POST", ["keys", "signatures", "upload"]) => self.sign(&call.body),
            ("POST", ["keys", "device_signing", "upload"]) => self.identity(&user, &call.body),
            ("PUT", ["sendToDevice", kind, _]) => {
                self.calls.to_device += 1;
                let path = call.uri.path();
                if self.sent.insert(path.to_owned(), String::new()).is_some() {
                    return Some(Ok(Bytes::from_static(b"{}")));
                }
                self.send_to_device(&user, kind, &call.body)
            }
            _ => return None,
        })
    }

    pub fn upload(&mut self, user: &str, device: &str, body: &[u8]) -> Answer {
        let upload: Upload = serde_json::from_slice(body).map_err(|_| BAD)?;
        let row = self.users.get_mut(user).and_then(|user| user.devices.get_mut(device));
        let row = row.ok_or((400, "M_UNKNOWN"))?;
        for (id, key) in upload.one_time {
            row.one_time_keys.push_back((id, key.to_string()));
        }
        if let Some((id, key)) = upload.fallback.into_iter().next() {
            row.fallback = Some((id, key.to_string()));
            row.fallback_used = false;
        }
        let count = row.one_time_keys.len();
        if let Some(keys) = upload.device.filter(|keys| keys.get() != "null") {
            row.keys = Some(keys.get().to_owned());
            self.queue.changed.insert(user.to_owned());
        }
        Ok(format!("{{\"one_time_key_counts\":{{\"signed_curve25519\":{count}}}}}").into())
    }

    pub fn query(&mut self, me: &str, body: &[u8]) -> Answer {
        let query: Query = serde_json::from_slice(body).map_err(|_| BAD)?;
        self.calls.users_queried += query.device_keys.len() as u64;
        let mut devices = String::new();
        let mut identities = USAGES.map(|_| String::new());
        for name in query.device_keys.keys() {
            let Some(user) = self.users.get(name) else { continue };
            let published = user
                .devices
                .iter()
                .filter_map(|(id, device)| Some(format!("\"{id}\":{}", device.keys.as_ref()?)));
            let published: Vec<String> = published.collect();
            add(&mut devices, format_args!("\"{name}\":{{{}}}", published.join(",")));
            for (usage, keys) in USAGES.iter().zip(&mut identities) {
                let Some(key) = user.identity.get(usage) else { continue };
                if *usage != "user_signing" || name == me {
                    add(keys, format_args!("\"{name}\":{key}"));
                }
            }
        }
        let [master, own, other] = identities;
        Ok(format!(
            "{{\"device_keys\":{{{devices}}},\"master_keys\":{{{master}}},\"self_signing_keys\":\
             {{{own}}},\"user_signing_keys\":{{{other}}},\"failures\":{{}}}}"
        )
        .into())
    }

    pub fn claim(&mut self, body: &[u8]) -> Answer {
        let claim: Claim = serde_json::from_slice(body).map_err(|_| BAD)?;
        let mut users = Vec::new();
        for (name, wanted) in claim.one_time_keys {
            let Some(user) = self.users.get_mut(&name) else { continue };
            let mut devices = Vec::new();
            for id in wanted.keys() {
                let key = user.devices.get_mut(id).and_then(Device::claim);
                devices.extend(key.map(|(key, value)| format!("\"{id}\":{{\"{key}\":{value}}}")));
            }
            users.push(format!("\"{name}\":{{{}}}", devices.join(",")));
        }
        let users = users.join(",");
        Ok(format!("{{\"one_time_keys\":{{{users}}},\"failures\":{{}}}}").into())
    }

    pub fn sign(&mut self, body: &[u8]) -> Answer {
        let body: Value = serde_json::from_slice(body).map_err(|_| BAD)?;
        for (name, objects) in body.as_object().into_iter().flatten() {
            let Some(user) = self.users.get_mut(name) else { continue };
            for (id, object) in objects.as_object().into_iter().flatten() {
                let device = user.devices.get_mut(id).and_then(|device| device.keys.as_mut());
                let target = match device {
                    Some(keys) => Some(keys),
                    None => user.identity.get_mut("master"),
                };
                if let Some(target) = target {
                    *target = merge_signatures(target, object).unwrap_or_else(|| target.clone());
                }
            }
            self.queue.changed.insert(name.clone());
        }
        Ok(Bytes::from_static(b"{\"failures\":{}}"))
    }

    pub fn identity(&mut self, name: &str, body: &[u8]) -> Answer {
        let body: HashMap<String, Box<RawValue>> = serde_json::from_slice(body).map_err(|_| BAD)?;
        let user = self.users.entry(name.to_owned()).or_default();
        for usage in USAGES {
            if let Some(key) = body.get(&format!("{usage}_key")) {
                user.identity.insert(usage, key.get().to_owned());
            }
        }
        self.queue.changed.insert(name.to_owned());
        Ok(Bytes::from_static(b"{}"))
    }

    pub fn send_to_device(&mut self, sender: &str, kind: &str, body: &[u8]) -> Answer {
        let body: Messages = serde_json::from_slice(body).map_err(|_| BAD)?;
        for (name, devices) in body.messages {
            let Some(user) = self.users.get_mut(&name) else { continue };
            for (wanted, content) in devices {
                let content = content.get();
                let event =
                    format!("\"type\":\"{kind}\",\"sender\":\"{sender}\",\"content\":{content}");
                let found = user.devices.iter_mut();
                let found = found.filter(|(id, _)| wanted == "*" || wanted == **id);
                if Self::is_bot(&name) {
                    self.queue.to_device.extend(found.map(|(id, _)| ToDevice {
                        json: format!(
                            "{{{event},\"to_user_id\":\"{name}\",\"to_device_id\":\"{id}\"}}"
                        ),
                        user: name.clone(),
                    }));
                } else {
                    found.for_each(|(_, device)| device.inbox.push(format!("{{{event}}}")));
                }
            }
        }
        Ok(Bytes::from_static(b"{}"))
    }
}

impl Device {
    fn claim(&mut self) -> Option<(String, String)> {
        self.one_time_keys.pop_front().or_else(|| {
            self.fallback_used = self.fallback.is_some();
            self.fallback.clone()
        })
    }
}

/// Adds a member to the inside of a JSON object.
fn add(object: &mut String, member: std::fmt::Arguments<'_>) {
    let comma = if object.is_empty() { "" } else { "," };
    let _ = write!(object, "{comma}{member}");
}

fn merge_signatures(target: &str, object: &Value) -> Option<String> {
    let mut target: Value = serde_json::from_str(target).ok()?;
    for (signer, signatures) in object["signatures"].as_object()? {
        for (key, signature) in signatures.as_object()? {
            target["signatures"][signer][key] = signature.clone();
        }
    }
    Some(target.to_string())
}
