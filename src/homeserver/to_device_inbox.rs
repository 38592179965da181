//! Asking the homeserver, as a bot's device, for the to-device messages that it keeps for it.
//!
//! Delivering a to-device message by transaction deletes nothing on the homeserver, and a transaction
//! can lose messages (a retry on Synapse carries room events only). What was lost still lies in the
//! device's inbox. The cheapest way to read it is a simplified sliding sync (MSC4186) of nothing but
//! the `to_device` extension; a further call with `since` set to the answer's `next_batch` deletes
//! what that answer held.

use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::{Actor, Homeserver, HomeserverError};

/// The most messages that one call brings.
const LIMIT: u32 = 100;

/// One page of a device's inbox.
#[derive(Debug, Default)]
pub struct ToDevicePage {
    /// The messages, oldest first, as JSON events.
    pub events: Vec<Value>,
    /// How many there were, with those that make no sense.
    pub count: usize,
    /// To be given as `since`: deletes these messages and asks for the following ones.
    pub next_batch: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Answer {
    extensions: Extensions,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Extensions {
    to_device: Page,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Page {
    events: Vec<Box<RawValue>>,
    next_batch: Option<String>,
}

impl Homeserver {
    /// The oldest messages that the homeserver keeps for the bot's device; with `since`, those after
    /// that point, and what lies before it is deleted.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`].
    pub async fn to_device_inbox(
        &self,
        bot: &Actor,
        since: Option<&str>,
    ) -> Result<ToDevicePage, HomeserverError> {
        let mut extension = json!({ "enabled": true, "limit": LIMIT });
        if let Some(since) = since {
            extension["since"] = since.into();
        }
        let body = json!({ "conn_id": "greenshield", "extensions": { "to_device": extension } });
        let answer: Answer = self
            .typed(
                Method::POST,
                &["_matrix", "client", "unstable", "org.matrix.simplified_msc3575", "sync"],
                &[("timeout", "0")],
                bot.into(),
                Some(&body),
            )
            .await?;
        let page = answer.extensions.to_device;
        // A message of a stranger that no parser takes must not keep the others back.
        let events = page.events.iter().filter_map(|raw| serde_json::from_str(raw.get()).ok());
        let events: Vec<Value> = events.collect();
        Ok(ToDevicePage { count: page.events.len(), events, next_batch: page.next_batch })
    }
}
