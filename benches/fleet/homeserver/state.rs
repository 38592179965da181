//! What the homeserver keeps: everything in maps, everything that is only passed on as text.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use axum::body::Bytes;

use super::{course::Course, push::Queue};

/// A user: the published keys, and the rooms.
#[derive(Default)]
pub struct User {
    pub devices: BTreeMap<String, Device>,
    /// Cross-signing keys by usage, as JSON.
    pub identity: BTreeMap<&'static str, String>,
    pub joined: BTreeSet<String>,
    pub account_data: HashMap<String, String>,
}

/// A device: its keys, and what was sent to it.
#[derive(Default)]
pub struct Device {
    pub keys: Option<String>,
    pub one_time_keys: VecDeque<(String, String)>,
    pub fallback: Option<(String, String)>,
    pub fallback_used: bool,
    /// To-device messages of humans; those of bots are pushed.
    pub inbox: Vec<String>,
}

/// A room.
#[derive(Default)]
pub struct Room {
    pub creation: String,
    pub encryption: Option<String>,
    /// Membership by user.
    pub members: BTreeMap<String, &'static str>,
    /// What an encrypted room's bots are, for key counts.
    pub bots: Vec<String>,
}

/// Calls of the application service, counted.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calls {
    pub all: u64,
    /// `/keys/query`, and the users that were looked up with it.
    pub queries: u64,
    pub users_queried: u64,
    pub claims: u64,
    pub to_device: u64,
}

/// Everything.
#[derive(Default)]
pub struct State {
    pub users: HashMap<String, User>,
    pub rooms: HashMap<String, Room>,
    pub queue: Queue,
    pub course: Course,
    pub calls: Calls,
    /// Event ids by the path of the request that sent them: a repeated request sends nothing.
    pub sent: HashMap<String, String>,
    counter: u64,
}

/// A refusal: status, and code.
pub type Refusal = (u16, &'static str);
/// A body in JSON.
pub type Answer = Result<Bytes, Refusal>;

impl State {
    pub fn number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    pub fn is_bot(user: &str) -> bool {
        user.starts_with("@bot_")
    }
}
