//! What a homeserver can see of ratchets: a position of one that was used for two different messages
//! gives both away. The same message sent again is no such thing.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use serde_json::Value;
use vodozemac::{megolm::MegolmMessage, olm::OlmMessage};

use super::FakeHomeserver;

/// The positions that greenshield's bots have used so far.
#[derive(Debug, Default)]
pub struct Ratchets {
    /// Messages in rooms, by session and index.
    pub megolm: usize,
    /// To-device messages, by ratchet key and index.
    pub olm: usize,
    /// Positions with more than one message.
    pub used_twice: Vec<String>,
}

impl FakeHomeserver {
    /// Everything encrypted that greenshield has ever sent here, whether it was taken or not.
    pub fn ratchets(&self) -> Result<Ratchets> {
        let mut seen = Seen::default();
        for call in self.calls("/send/m.room.encrypted/") {
            let text = call.body["ciphertext"].as_str().context("a ciphertext")?;
            let index = MegolmMessage::from_base64(text)?.message_index();
            seen.note(format!("megolm {} {index}", call.body["session_id"]), text);
        }
        let megolm = seen.positions.len();
        for call in self.calls("/sendToDevice/m.room.encrypted/") {
            for (device, text, kind) in olm_messages(&call.body["messages"]) {
                let message = OlmMessage::from_parts(kind, &STANDARD_NO_PAD.decode(&text)?)?;
                let message = match &message {
                    OlmMessage::Normal(message) => message,
                    OlmMessage::PreKey(message) => message.message(),
                };
                let key = message.ratchet_key().to_base64();
                seen.note(format!("olm {device} {key} {}", message.chain_index()), &text);
            }
        }
        let olm = seen.positions.len() - megolm;
        Ok(Ratchets { megolm, olm, used_twice: seen.used_twice })
    }
}

#[derive(Default)]
struct Seen {
    positions: HashMap<String, String>,
    used_twice: Vec<String>,
}

impl Seen {
    fn note(&mut self, position: String, text: &str) {
        match self.positions.get(&position) {
            Some(known) if known != text => self.used_twice.push(position),
            Some(_) => {}
            None => {
                self.positions.insert(position, text.to_owned());
            }
        }
    }
}

/// The recipient's device, the ciphertext and its kind, of all Olm messages of one request.
fn olm_messages(messages: &Value) -> Vec<(String, String, usize)> {
    let by_user: BTreeMap<String, BTreeMap<String, Value>> =
        serde_json::from_value(messages.clone()).unwrap_or_default();
    let devices = by_user.into_values().flatten();
    let parts = devices.flat_map(|(device, content)| {
        let parts: BTreeMap<String, Value> =
            serde_json::from_value(content["ciphertext"].clone()).unwrap_or_default();
        parts.into_values().map(move |part| (device.clone(), part))
    });
    parts
        .filter_map(|(device, part)| {
            let kind = usize::try_from(part["type"].as_u64()?).ok()?;
            Some((device, part["body"].as_str()?.to_owned(), kind))
        })
        .collect()
}
