//! What a state event tells of its room, as far as sending needs to know it.

use super::wire::RoomEvent;
use crate::{model::foreign, store::rooms::Fact};

/// The fact that this event tells, if it is a state event that tells one.
pub(super) fn fact(event: &RoomEvent) -> Option<Fact> {
    let state_key = event.state_key.as_deref()?;
    let content = event.json.get("content");
    match (event.event_type.as_str(), state_key) {
        ("m.room.member", user_id) => Some(Fact::Member {
            user_id: user_id.to_owned(),
            // A member event without a membership of the specification takes nobody in.
            membership: match event.content_str("membership") {
                Some(known @ ("join" | "invite" | "ban" | "knock")) => known.to_owned(),
                _ => "leave".to_owned(),
            },
        }),
        ("m.room.encryption", "") => Some(Fact::Encryption(foreign::encryption(content))),
        ("m.room.history_visibility", "") => {
            Some(Fact::HistoryVisibility(foreign::history_visibility(content)))
        }
        _ => None,
    }
}
