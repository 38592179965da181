//! Machines that stay in memory between steps, the least recently used leaving first.
//!
//! A step takes its machine out and puts it back only if all went well. A machine with a verification
//! running is never dropped for lack of room, because the flow lives nowhere else.

use std::collections::HashMap;

use crate::{crypto::BotMachine, model::BotId, store::Fence};

/// A machine and the right under which it was opened.
pub(super) struct Kept {
    pub machine: BotMachine,
    pub fence: Fence,
    /// Whether a verification is running in it.
    pub pinned: bool,
}

/// Machines by bot.
pub(super) struct Machines {
    kept: HashMap<BotId, (u64, Kept)>,
    capacity: usize,
    uses: u64,
}

impl Machines {
    /// Room for `capacity` machines, not counting pinned ones.
    pub(super) fn new(capacity: usize) -> Self {
        Self { kept: HashMap::new(), capacity, uses: 0 }
    }

    /// Takes a bot's machine out; one that was opened under another lease is thrown away, because
    /// another process may have written since.
    pub(super) fn take(&mut self, bot: BotId, fence: Fence) -> Option<Kept> {
        let (_, kept) = self.kept.remove(&bot)?;
        (kept.fence == fence).then_some(kept)
    }

    /// Puts a machine back.
    pub(super) fn put(&mut self, bot: BotId, kept: Kept) {
        self.uses += 1;
        self.kept.insert(bot, (self.uses, kept));
        while self.kept.len() > self.capacity {
            let oldest = self
                .kept
                .iter()
                .filter(|(_, (_, kept))| !kept.pinned)
                .min_by_key(|(_, (used, _))| *used)
                .map(|(bot, _)| *bot);
            match oldest {
                Some(bot) => self.kept.remove(&bot),
                None => break,
            };
        }
    }

    /// Throws away what was opened under leases that are not among `fences`.
    pub(super) fn keep_only(&mut self, fences: &HashMap<i16, Fence>) {
        self.kept.retain(|_, (_, kept)| fences.get(&kept.fence.shard) == Some(&kept.fence));
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }
}
