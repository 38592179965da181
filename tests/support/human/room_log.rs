//! What the Rust human has seen of each room, in the order of arrival.
//!
//! The sync loop writes it; everybody who waits reads it. A room key may come after the message:
//! what could not be decrypted is tried again after every sync, because only a sync brings keys.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Mutex, MutexGuard},
};

use matrix_sdk::{
    Client,
    deserialized_responses::{
        EncryptionInfo, TimelineEvent, TimelineEventKind, UnableToDecryptReason, WithheldCode,
    },
    ruma::{OwnedRoomId, RoomId},
    sync::SyncResponse,
};
use matrix_sdk_common::deserialized_responses::ShieldState;
use serde_json::Value;

use super::{Colour, Shield};

#[derive(Default)]
pub(super) struct RoomLog {
    events: Mutex<BTreeMap<OwnedRoomId, Vec<TimelineEvent>>>,
    /// Verification requests that nobody has waited for yet: sender and flow id.
    requests: Mutex<VecDeque<(String, String)>>,
}

impl RoomLog {
    fn events_by_room(&self) -> MutexGuard<'_, BTreeMap<OwnedRoomId, Vec<TimelineEvent>>> {
        self.events.lock().expect("no holder of this lock panics")
    }

    fn requests(&self) -> MutexGuard<'_, VecDeque<(String, String)>> {
        self.requests.lock().expect("no holder of this lock panics")
    }

    /// The events of a room so far.
    pub(super) fn events(&self, room_id: &RoomId) -> Vec<TimelineEvent> {
        self.events_by_room().get(room_id).cloned().unwrap_or_default()
    }

    /// Takes the oldest verification request of a sender.
    pub(super) fn take_request(&self, from: &str) -> Option<String> {
        let mut requests = self.requests();
        let position = requests.iter().position(|(sender, _)| sender == from)?;
        requests.remove(position).map(|(_, flow)| flow)
    }

    pub(super) async fn receive(&self, client: &Client, sync: SyncResponse) {
        for event in &sync.to_device {
            let event: Value = event.as_raw().deserialize_as_unchecked().unwrap_or_default();
            if event["type"] == "m.key.verification.request" {
                self.note_request(&event["sender"], &event["content"]["transaction_id"]);
            }
        }
        for (room_id, update) in sync.rooms.joined {
            self.append(room_id, update.timeline.events);
        }
        self.decrypt_again(client).await;
    }

    fn append(&self, room_id: OwnedRoomId, events: Vec<TimelineEvent>) {
        for event in &events {
            self.note_if_request(event);
        }
        self.events_by_room().entry(room_id).or_default().extend(events);
    }

    fn note_if_request(&self, event: &TimelineEvent) {
        let event = json(event);
        if event["content"]["msgtype"] == "m.key.verification.request" {
            self.note_request(&event["sender"], &event["event_id"]);
        }
    }

    fn note_request(&self, sender: &Value, flow: &Value) {
        if let (Some(sender), Some(flow)) = (sender.as_str(), flow.as_str()) {
            self.requests().push_back((sender.to_owned(), flow.to_owned()));
        }
    }

    async fn decrypt_again(&self, client: &Client) {
        let stuck: Vec<_> = self
            .events_by_room()
            .iter()
            .flat_map(|(room_id, events)| {
                let stuck = events.iter().enumerate().filter(|(_, event)| event.kind.is_utd());
                stuck.map(|(index, event)| (room_id.clone(), index, event.clone()))
            })
            .collect();
        for (room_id, index, event) in stuck {
            let Some(room) = client.get_room(&room_id) else {
                continue;
            };
            let again = room.decrypt_event(event.raw().cast_ref_unchecked(), None).await;
            if let Ok(event) = again {
                if !event.kind.is_utd() {
                    self.note_if_request(&event);
                }
                if let Some(events) = self.events_by_room().get_mut(&room_id) {
                    events[index] = event;
                }
            }
        }
    }
}

/// An event, decrypted if it could be, as plain JSON.
pub(super) fn json(event: &TimelineEvent) -> Value {
    event.raw().deserialize_as_unchecked().unwrap_or_default()
}

/// Why an event could not be decrypted, in the words of the specification where it has any.
pub(super) fn utd_reason(event: &TimelineEvent) -> Option<String> {
    let TimelineEventKind::UnableToDecrypt { utd_info, .. } = &event.kind else {
        return None;
    };
    Some(match &utd_info.reason {
        UnableToDecryptReason::MissingMegolmSession { withheld_code: Some(code) } => {
            format!("withheld: {}", WithheldCode::as_str(code))
        }
        reason => format!("{reason:?}"),
    })
}

/// `UnsignedDevice` as matrix-js-sdk writes it: `UNSIGNED_DEVICE`.
fn screaming(name: &str) -> String {
    let mut screaming = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !screaming.is_empty() {
            screaming.push('_');
        }
        screaming.push(letter.to_ascii_uppercase());
    }
    screaming
}

/// The mark that Element shows for this.
pub(super) fn shield(info: Option<&EncryptionInfo>) -> Shield {
    let state =
        info.map_or(ShieldState::None, |info| info.verification_state.to_shield_state_lax());
    let (colour, code) = match state {
        ShieldState::None => {
            return Shield { colour: Colour::None, reason: None };
        }
        ShieldState::Grey { code, .. } => (Colour::Grey, code),
        ShieldState::Red { code, .. } => (Colour::Red, code),
    };
    Shield { colour, reason: Some(screaming(&format!("{code:?}"))) }
}
