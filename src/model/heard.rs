//! A message as the built-in responder hears it, and what it says to it.

use ruma::{DeviceId, UserId};
use serde_json::Value;

/// A text message that a bot has just read.
#[derive(Clone, Copy, Debug)]
pub struct Heard<'a> {
    /// The bot's user.
    pub user_id: &'a UserId,
    /// The bot's device.
    pub device_id: &'a DeviceId,
    /// The bot's public name.
    pub display_name: Option<&'a str>,
    /// The bot's public master key, once it has one.
    pub master_key: Option<&'a str>,
    /// The message in the clear.
    pub event: &'a Value,
    /// Its id.
    pub event_id: &'a str,
    /// Who sent it: never a bot of ours.
    pub sender: &'a str,
    /// How old it was when it reached us, in milliseconds, as the sender's homeserver says.
    pub age_ms: i64,
}

/// The content of the answer to a message, if it is for the responder.
pub type Respond = fn(&Heard<'_>) -> Option<Value>;
