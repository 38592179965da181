//! What an inbox entry is about, and how that is written down.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::TABLE;
use crate::{
    model::{BotId, EventSeq},
    store::{Sealer, StoreError},
};

/// What an entry is about.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// A to-device message, as JSON event.
    ToDevice(Value),
    /// How many one-time keys and which fallback keys the homeserver still holds.
    KeyCounts(KeyCounts),
    /// A room event to read.
    RoomEvent(EventSeq),
    /// An invitation of the bot into a room.
    Invite(EventSeq),
    /// Ask the homeserver for to-device messages that transactions lost.
    Reconcile,
    /// Forget the humans with whom the bot has nothing to do any more.
    ForgetStrangers,
}

/// Counts as a transaction tells them: an absent word is "no news", an empty pool is an explicit zero.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyCounts {
    /// One-time keys left on the homeserver; `None` when the transaction did not say.
    pub one_time_keys: Option<u64>,
    /// Unused fallback key algorithms; `None` when the transaction did not say.
    pub fallback_keys: Option<Vec<String>>,
}

impl KeyCounts {
    /// Takes what came later in: the last word counts, of each kind.
    pub fn update(&mut self, newer: Self) {
        self.one_time_keys = newer.one_time_keys.or(self.one_time_keys);
        if newer.fallback_keys.is_some() {
            self.fallback_keys = newer.fallback_keys;
        }
    }
}

impl Work {
    pub(super) const fn kind(&self) -> &'static str {
        match self {
            Self::ToDevice(_) => "to_device",
            Self::KeyCounts(_) => "key_counts",
            Self::RoomEvent(_) => "room_event",
            Self::Invite(_) => "invite",
            Self::Reconcile => "reconcile",
            Self::ForgetStrangers => "forget_strangers",
        }
    }

    pub(super) const fn event(&self) -> Option<EventSeq> {
        match self {
            Self::RoomEvent(event) | Self::Invite(event) => Some(*event),
            _ => None,
        }
    }

    pub(super) fn payload(
        &self,
        sealer: &Sealer,
        bot: BotId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(match self {
            Self::ToDevice(event) => Some(sealer.seal_json(TABLE, Some(bot), event)?),
            Self::KeyCounts(counts) => Some(sealer.seal_json(TABLE, Some(bot), counts)?),
            Self::RoomEvent(_) | Self::Invite(_) | Self::Reconcile | Self::ForgetStrangers => None,
        })
    }

    pub(super) fn parse(
        kind: &str,
        event: Option<i64>,
        payload: Option<&[u8]>,
        sealer: &Sealer,
        bot: BotId,
    ) -> Result<Option<Self>, StoreError> {
        Ok(match (kind, event, payload) {
            ("to_device", _, Some(p)) => {
                Some(Self::ToDevice(sealer.open_json(TABLE, Some(bot), p)?))
            }
            ("key_counts", _, Some(p)) => {
                Some(Self::KeyCounts(sealer.open_json(TABLE, Some(bot), p)?))
            }
            ("room_event", Some(event), _) => Some(Self::RoomEvent(EventSeq(event))),
            ("invite", Some(event), _) => Some(Self::Invite(EventSeq(event))),
            ("reconcile", ..) => Some(Self::Reconcile),
            ("forget_strangers", ..) => Some(Self::ForgetStrangers),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_counts_of_each_kind() {
        let none_left = KeyCounts { one_time_keys: None, fallback_keys: Some(Vec::new()) };
        let few = KeyCounts { one_time_keys: Some(20), fallback_keys: None };
        let mut told = KeyCounts { one_time_keys: Some(3), fallback_keys: None };
        told.update(none_left);
        told.update(few);
        let both = KeyCounts { one_time_keys: Some(20), fallback_keys: Some(Vec::new()) };
        assert_eq!(told, both);
    }
}
