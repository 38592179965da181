//! What the homeserver shows of a bot, held against what the bot really is.
//!
//! Whoever runs the homeserver can add a device to a bot or put another identity in place of ours.
//! Humans' clients would show it; so do we. Signatures are verified, not only looked for.

use ruma::{DeviceId, UserId, api::client::keys::get_keys, canonical_json::to_canonical_value};
use serde_json::Value;
use vodozemac::{Ed25519PublicKey, Ed25519Signature};

use crate::store::bots::PublicIdentity;

/// Which identity the homeserver shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishedIdentity {
    /// Ours.
    Ours,
    /// None.
    Missing,
    /// Another one.
    Other,
}

/// What the homeserver shows of the bot's own device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishedDevice {
    /// No keys.
    Missing,
    /// Keys that our identity has not signed.
    Unsigned {
        /// Their Curve25519 key.
        curve25519: Option<String>,
    },
    /// Keys that our identity has signed.
    Signed {
        /// Their Curve25519 key.
        curve25519: Option<String>,
    },
}

/// What the homeserver shows of a bot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The identity.
    pub identity: PublishedIdentity,
    /// The bot's own device.
    pub device: PublishedDevice,
    /// Other devices, whose keys our identity has not signed.
    pub foreign_devices: Vec<String>,
}

impl Published {
    /// Reads the answer of a `/keys/query` for `user`, whose device is `device` and whose identity is
    /// `ours`.
    #[must_use]
    pub fn read(
        answer: &get_keys::v3::Response,
        user: &UserId,
        device: &DeviceId,
        ours: &PublicIdentity,
    ) -> Self {
        let identity = match answer.master_keys.get(user).map(|key| key.json().get()) {
            None => PublishedIdentity::Missing,
            Some(key) if is_key(key, &ours.master_key) => PublishedIdentity::Ours,
            Some(_) => PublishedIdentity::Other,
        };
        let mut published =
            Self { identity, device: PublishedDevice::Missing, foreign_devices: Vec::new() };
        for (id, keys) in answer.device_keys.get(user).into_iter().flatten() {
            let keys: Value = serde_json::from_str(keys.json().get()).unwrap_or_default();
            // The keys must be signed as those of this device, not only be somewhere under its name.
            let signed = keys["user_id"] == user.as_str()
                && keys["device_id"] == id.as_str()
                && is_signed(&keys, user, &ours.self_signing_key);
            if id == device {
                let curve25519 = keys["keys"][format!("curve25519:{id}")].as_str();
                let curve25519 = curve25519.map(ToOwned::to_owned);
                published.device = if signed {
                    PublishedDevice::Signed { curve25519 }
                } else {
                    PublishedDevice::Unsigned { curve25519 }
                };
            } else if !signed {
                published.foreign_devices.push(id.to_string());
            }
        }
        published
    }

    /// Whether the bot can be known and verified by what the homeserver shows.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        matches!(self.identity, PublishedIdentity::Ours)
            && matches!(self.device, PublishedDevice::Signed { .. })
    }
}

/// Whether this cross-signing key is `key` and no other.
fn is_key(json: &str, key: &str) -> bool {
    let json: Value = serde_json::from_str(json).unwrap_or_default();
    let keys = json["keys"].as_object();
    keys.is_some_and(|keys| keys.len() == 1 && keys.values().all(|value| value == key))
}

fn is_signed(keys: &Value, user: &UserId, by: &str) -> bool {
    let signature = keys["signatures"][user.as_str()][format!("ed25519:{by}")].as_str();
    let mut signed = keys.clone();
    if let Some(object) = signed.as_object_mut() {
        object.remove("signatures");
        object.remove("unsigned");
    }
    let (Some(signature), Ok(signed)) = (signature, to_canonical_value(signed)) else {
        return false;
    };
    let (Ok(key), Ok(signature)) =
        (Ed25519PublicKey::from_base64(by), Ed25519Signature::from_base64(signature))
    else {
        return false;
    };
    key.verify(signed.to_string().as_bytes(), &signature).is_ok()
}

#[cfg(test)]
mod tests {
    use ruma::{device_id, serde::Raw, user_id};
    use serde_json::json;
    use vodozemac::Ed25519Keypair;

    use super::*;

    fn identity(ssk: &Ed25519Keypair) -> PublicIdentity {
        PublicIdentity {
            master_key: "MASTER".to_owned(),
            self_signing_key: ssk.public_key().to_base64(),
            user_signing_key: "USER".to_owned(),
        }
    }

    fn device(id: &str, ssk: Option<&Ed25519Keypair>) -> Value {
        let mut keys = json!({
            "user_id": "@bot_a:x", "device_id": id, "algorithms": [],
            "keys": { format!("curve25519:{id}"): "CURVE" },
        });
        if let Some(ssk) = ssk {
            let text = to_canonical_value(&keys).expect("canonical").to_string();
            let signature = ssk.sign(text.as_bytes()).to_base64();
            let by = format!("ed25519:{}", ssk.public_key().to_base64());
            keys["signatures"] = json!({ "@bot_a:x": { by: signature } });
            keys["unsigned"] = json!({ "device_display_name": "bot" });
        }
        keys
    }

    fn answer(master: Option<&str>, devices: &[(&str, Value)]) -> get_keys::v3::Response {
        let raw = |value: &Value| serde_json::value::to_raw_value(value).expect("JSON");
        let user = user_id!("@bot_a:x").to_owned();
        let mut answer = get_keys::v3::Response::new();
        if let Some(master) = master {
            let key = json!({ "keys": { format!("ed25519:{master}"): master } });
            answer.master_keys.insert(user.clone(), Raw::from_json(raw(&key)));
        }
        let devices = devices.iter();
        let devices = devices.map(|(id, keys)| ((*id).into(), Raw::from_json(raw(keys)))).collect();
        answer.device_keys.insert(user, devices);
        answer
    }

    fn read(answer: &get_keys::v3::Response, ours: &PublicIdentity) -> Published {
        Published::read(answer, user_id!("@bot_a:x"), device_id!("DEV"), ours)
    }

    #[test]
    fn a_signed_device_and_our_identity_are_complete() {
        let ssk = Ed25519Keypair::new();
        let devices = [("DEV", device("DEV", Some(&ssk))), ("OLD", device("OLD", Some(&ssk)))];
        let published = read(&answer(Some("MASTER"), &devices), &identity(&ssk));
        assert!(published.is_complete() && published.foreign_devices.is_empty(), "{published:?}");
    }

    #[test]
    fn what_is_not_signed_by_us_is_told() {
        let (ssk, other) = (Ed25519Keypair::new(), Ed25519Keypair::new());
        // Signed by somebody else; signed under another device's name; a signature that is none.
        let mut forged = device("FORGED", Some(&other));
        let theirs = forged["signatures"]["@bot_a:x"]
            [format!("ed25519:{}", other.public_key().to_base64())]
        .take();
        let ours = format!("ed25519:{}", ssk.public_key().to_base64());
        forged["signatures"] = json!({ "@bot_a:x": { ours: theirs } });
        let devices = [
            ("ALIEN", device("ALIEN", Some(&other))),
            ("DEV", device("DEV", None)),
            ("FORGED", forged),
            ("MOVED", device("OLD", Some(&ssk))),
        ];
        let published = read(&answer(Some("MASTER"), &devices), &identity(&ssk));
        assert_eq!(published.foreign_devices, ["ALIEN", "FORGED", "MOVED"]);
        let curve25519 = Some("CURVE".to_owned());
        assert_eq!(published.device, PublishedDevice::Unsigned { curve25519 });
    }

    #[test]
    fn another_identity_is_told_from_none() {
        let ours = identity(&Ed25519Keypair::new());
        assert_eq!(read(&answer(Some("ALIEN"), &[]), &ours).identity, PublishedIdentity::Other);
        let none = read(&answer(None, &[]), &ours);
        assert_eq!(none.identity, PublishedIdentity::Missing);
        assert_eq!(none.device, PublishedDevice::Missing);
    }
}
