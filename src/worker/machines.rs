//! Machines that stay in memory between steps, the least recently used leaving first.
//!
//! A step takes its machine out and puts it back only if all went well. What they take together is
//! bounded in bytes, by estimate; a machine with a verification running is never dropped for lack of
//! room, because the flow lives nowhere else.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use hashlink::LinkedHashMap;
use ruma::{OwnedRoomId, RoomId};

use crate::{
    crypto::BotMachine,
    model::BotId,
    store::{Fence, bots::Bot},
};

/// A device that could not be given a key is looked at again after this long.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// A machine, the right under which it was opened, and what was found out for it.
pub(super) struct Kept {
    pub machine: BotMachine,
    pub fence: Fence,
    /// Whether a verification is running in it.
    pub pinned: bool,
    /// Whether it may want something sent.
    pub has_requests: bool,
    /// In how many steps in a row the homeserver did not take that.
    pub troubles: i32,
    /// Up to which change of devices it has looked.
    pub looked_epoch: i64,
    /// Rooms in which everybody has the current key, what that was found for, and when.
    rooms: HashMap<OwnedRoomId, (ReadyRoom, Instant)>,
    /// When the bot next asks for lost to-device messages, if that is arranged.
    pub reconcile_at: Option<chrono::DateTime<chrono::Utc>>,
}

/// What decides who needs a room's key: if none of it has changed, nobody new does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadyRoom {
    /// Of the room's facts.
    pub version: i64,
    /// Of everybody's devices.
    pub epoch: i64,
}

impl Kept {
    pub(super) fn new(machine: BotMachine, fence: Fence, bot: &Bot) -> Self {
        Self {
            machine,
            fence,
            pinned: false,
            has_requests: true,
            troubles: 0,
            looked_epoch: bot.device_epoch,
            rooms: HashMap::new(),
            reconcile_at: None,
        }
    }

    /// Whether the room's key is still good for one more message and everybody has it.
    pub(super) fn may_encrypt(&self, room: &RoomId, state: ReadyRoom) -> bool {
        let ready = self.rooms.get(room);
        ready.is_some_and(|(found_for, at)| *found_for == state && at.elapsed() < LOOK_AGAIN)
            && self.machine.may_encrypt(room, SystemTime::now())
    }

    /// Everybody in the room was given its key.
    pub(super) fn note_ready(&mut self, room: &RoomId, state: ReadyRoom) {
        self.rooms.insert(room.to_owned(), (state, Instant::now()));
    }

    /// To-device messages may have changed who can read what is sent to them.
    pub(super) fn look_at_rooms_again(&mut self) {
        self.rooms.clear();
    }
}

/// Machines by bot.
pub(super) struct Machines {
    /// In the order of their last use.
    kept: LinkedHashMap<BotId, (Kept, usize)>,
    capacity: usize,
    bytes: usize,
}

impl Machines {
    /// Room for machines of about `capacity` bytes together, not counting pinned ones.
    pub(super) fn new(capacity: usize) -> Self {
        Self { kept: LinkedHashMap::new(), capacity, bytes: 0 }
    }

    /// Takes a bot's machine out; one that was opened under another lease is thrown away, because
    /// another process may have written since.
    pub(super) fn take(&mut self, bot: BotId, fence: Fence) -> Option<Kept> {
        let kept = self.remove(bot)?;
        (kept.fence == fence).then_some(kept)
    }

    /// A bot's machine, if it is here.
    pub(super) fn get(&self, bot: BotId) -> Option<&BotMachine> {
        self.kept.get(&bot).map(|(kept, _)| &kept.machine)
    }

    /// Puts a machine back.
    pub(super) fn put(&mut self, bot: BotId, kept: Kept) {
        let bytes = kept.machine.bytes();
        self.bytes += bytes;
        if let Some((_, before)) = self.kept.insert(bot, (kept, bytes)) {
            self.bytes -= before;
        }
        while self.bytes > self.capacity {
            let oldest = self.kept.iter().find(|(_, (kept, _))| !kept.pinned);
            let Some(oldest) = oldest.map(|(bot, _)| *bot) else { break };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, bot: BotId) -> Option<Kept> {
        let (kept, bytes) = self.kept.remove(&bot)?;
        self.bytes -= bytes;
        Some(kept)
    }

    /// Throws away what was opened under leases that are not among `fences`.
    pub(super) fn keep_only(&mut self, fences: &HashMap<i16, Fence>) {
        let lost: Vec<BotId> = self
            .kept
            .iter()
            .filter(|(_, (kept, _))| fences.get(&kept.fence.shard) != Some(&kept.fence))
            .map(|(bot, _)| *bot)
            .collect();
        for bot in lost {
            self.remove(bot);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }

    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}
