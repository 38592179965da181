//! A human with a Matrix client that encrypts, cross-signs and verifies as Element does.
//!
//! Two engines stand behind one trait, because Element has two: matrix-rust-sdk drives Element X,
//! matrix-js-sdk drives Element Web. What only one of them accepts is not good enough for a bot.

mod flow;
mod js;
mod node;
mod room_log;
mod rust;
mod session;

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::synapse::Credentials;

/// How long a human waits for something that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Which client a human uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// matrix-rust-sdk, in this process.
    Rust,
    /// matrix-js-sdk, in a Node.js of its own.
    Js,
}

impl Engine {
    /// Logs in on a new device, creates the cross-signing identity and signs the device with it.
    pub async fn log_in(
        self,
        credentials: &Credentials,
        options: LoginOptions,
    ) -> Result<Box<dyn Human>> {
        Ok(match self {
            Self::Rust => Box::new(rust::RustHuman::log_in(credentials, options).await?),
            Self::Js => Box::new(js::JsHuman::log_in(credentials, options).await?),
        })
    }
}

#[derive(Clone, Copy, Debug, Default)]
pub struct LoginOptions {
    /// Element's "exclude insecure devices" (MSC4153): neither send keys to, nor read messages
    /// from, a device that its owner has not cross-signed.
    pub exclude_insecure: bool,
}

/// What a person can do and see. Every `wait_` returns when the state is there, and fails at its
/// deadline.
#[async_trait]
pub trait Human: Send + Sync {
    fn user_id(&self) -> &str;

    /// Opens a direct chat, and returns its room.
    async fn create_dm(&self, user_id: &str, encrypted: bool) -> Result<String>;
    async fn create_room(&self, room: NewRoom<'_>) -> Result<String>;
    async fn invite(&self, room_id: &str, user_id: &str) -> Result<()>;
    async fn join(&self, room_id: &str) -> Result<()>;
    async fn leave(&self, room_id: &str) -> Result<()>;
    /// An invitation, from this user or from anybody.
    async fn wait_invite(&self, from: Option<&str>, patience: Duration) -> Result<Invite>;
    /// Until a user's membership in a room is this one: `join`, `invite`, `leave`, ...
    async fn wait_member(
        &self,
        room_id: &str,
        user_id: &str,
        membership: &str,
        patience: Duration,
    ) -> Result<()>;

    /// Sends text, encrypted if the room is, and returns the event id.
    async fn send_text(&self, room_id: &str, body: &str) -> Result<String>;
    /// Sends any message-like event, encrypted if the room is, and returns the event id.
    async fn send_raw(&self, room_id: &str, event_type: &str, content: Value) -> Result<String>;
    /// A message of this sender, with exactly this body or with any. An event that cannot be
    /// decrypted is not a message.
    async fn wait_message(
        &self,
        room_id: &str,
        sender: &str,
        body: Option<&str>,
        patience: Duration,
    ) -> Result<Seen>;
    /// Events of a room that show as "unable to decrypt" now.
    async fn utd_events(&self, room_id: &str) -> Result<Vec<Undecryptable>>;
    /// The shield that an event shows now, which may differ from when it arrived.
    async fn shield(&self, room_id: &str, event_id: &str) -> Result<Shield>;

    /// What this human's client thinks of a user's identity.
    async fn user_trust(&self, user_id: &str) -> Result<Trust>;
    /// Until a user counts as verified, or no longer does. A verification is "done" a moment
    /// before: our signature has to travel to the homeserver and back.
    async fn wait_user_trust(
        &self,
        user_id: &str,
        verified: bool,
        patience: Duration,
    ) -> Result<Trust>;
    async fn devices(&self, user_id: &str) -> Result<Vec<Device>>;

    /// Asks for a verification, and returns the handle of the flow.
    async fn request_verification(&self, user_id: &str, via: Via<'_>) -> Result<String>;
    /// A request that came in from this user; each is returned once.
    async fn wait_incoming_verification(&self, from: &str, patience: Duration) -> Result<String>;
    async fn accept_verification(&self, flow: &str) -> Result<()>;
    /// Until a flow is in this phase or past it. A flow that is cancelled instead is an error.
    async fn wait_verification(
        &self,
        flow: &str,
        phase: Phase,
        patience: Duration,
    ) -> Result<Verification>;
    async fn start_sas(&self, flow: &str) -> Result<()>;
    /// "They match".
    async fn confirm_sas(&self, flow: &str) -> Result<()>;
    /// "They don't match".
    async fn mismatch_sas(&self, flow: &str) -> Result<()>;
    async fn cancel_verification(&self, flow: &str) -> Result<()>;

    /// Closes the client. Its device stays.
    async fn stop(&self) -> Result<()>;
}

#[derive(Clone, Copy, Debug, Default)]
pub struct NewRoom<'a> {
    pub name: Option<&'a str>,
    pub encrypted: bool,
    pub invite: &'a [&'a str],
    /// `shared` and its like; the homeserver's default if absent.
    pub history_visibility: Option<&'a str>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Invite {
    pub room_id: String,
    pub is_direct: bool,
    pub inviter: String,
    pub encrypted: bool,
}

/// A message as it stands in the timeline.
#[derive(Clone, Debug, Deserialize)]
pub struct Seen {
    pub event_id: String,
    pub body: String,
    pub msgtype: String,
    /// Whether it came encrypted.
    pub encrypted: bool,
    pub decrypted: bool,
    pub shield: Shield,
}

/// The mark beside a message.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Shield {
    pub colour: Colour,
    /// `UNSIGNED_DEVICE`, `UNKNOWN_DEVICE`, `SENT_IN_CLEAR`, ...: matrix-js-sdk's names.
    #[serde(default)]
    pub reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Colour {
    None,
    Grey,
    Red,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Undecryptable {
    pub event_id: String,
    pub sender: String,
    #[serde(default)]
    pub reason: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Trust {
    pub verified: bool,
    pub has_identity: bool,
    /// The public master key.
    #[serde(default)]
    pub msk: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Device {
    pub device_id: String,
    #[serde(default)]
    pub ed25519: Option<String>,
    pub signed_by_owner: bool,
}

/// How a verification request travels.
#[derive(Clone, Copy, Debug)]
pub enum Via<'a> {
    /// As a message in this room, which is a direct chat with the user: Element's way.
    Room(&'a str),
    /// To this device of the user.
    ToDevice(&'a str),
}

/// How far a verification is, seen from one side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    Requested,
    Ready,
    Started,
    /// The emoji can be shown.
    Sas,
    /// We said that they match, and the other side has not.
    Confirmed,
    Done,
    Cancelled,
    /// To wait for: done or cancelled, whichever comes.
    Finished,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Verification {
    pub phase: Phase,
    #[serde(default)]
    pub emoji: Option<Vec<Emoji>>,
    #[serde(default)]
    pub decimals: Option<Vec<u16>>,
    #[serde(default)]
    pub cancel_code: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Emoji {
    pub symbol: String,
    pub name: String,
}
