//! Rooms.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    FakeHomeserver,
    call::{Answer, Call, refuse},
    state::State,
};
use crate::support::synapse::SERVER_NAME;

/// A room: its state by type and key, and all its events.
#[derive(Default)]
pub struct Room {
    pub state: BTreeMap<(String, String), Value>,
    pub timeline: Vec<Value>,
}

impl Room {
    fn membership(&self, user: &str) -> Option<&str> {
        let member = self.state.get(&("m.room.member".to_owned(), user.to_owned()))?;
        member["content"]["membership"].as_str()
    }

    fn members(&self) -> impl Iterator<Item = &Value> {
        self.state.iter().filter(|((kind, _), _)| kind == "m.room.member").map(|(_, event)| event)
    }
}

impl State {
    pub fn room_call(&mut self, call: &Call, method: &str, rest: &[&str]) -> Option<Answer> {
        let me = call.user();
        Some(match (method, rest) {
            ("POST", ["createRoom"]) => Ok(json!({ "room_id": self.create(me, &call.body) })),
            ("GET", ["joined_rooms"]) => {
                let rooms = self.rooms.iter();
                let joined = rooms.filter(|(_, room)| room.membership(me) == Some("join"));
                Ok(json!({ "joined_rooms": joined.map(|(id, _)| id).collect::<Vec<_>>() }))
            }
            ("POST", ["join", room]) => {
                self.member(room, me, me, "join", false);
                Ok(json!({ "room_id": room }))
            }
            ("POST", ["rooms", room, "leave"]) => {
                self.member(room, me, me, "leave", false);
                Ok(json!({}))
            }
            (_, ["rooms", room, ..])
                if self.rooms.get(*room).and_then(|r| r.membership(me)) != Some("join") =>
            {
                refuse(403, "M_FORBIDDEN", format!("{me} is not in {room}"))
            }
            ("GET", ["rooms", room, "state", kind, key]) => {
                let state = &self.rooms[*room].state;
                match state.get(&((*kind).to_owned(), (*key).to_owned())) {
                    Some(event) => Ok(event["content"].clone()),
                    None => refuse(404, "M_NOT_FOUND", "Event not found."),
                }
            }
            ("GET", ["rooms", room, "members"]) => {
                Ok(json!({ "chunk": self.rooms[*room].members().collect::<Vec<_>>() }))
            }
            ("GET", ["rooms", room, "messages"]) => {
                let events = self.rooms[*room].timeline.iter().rev();
                Ok(json!({ "chunk": events.collect::<Vec<_>>(), "start": "s" }))
            }
            ("PUT", ["rooms", room, "send", kind, _]) => {
                if let Some(known) = self.transactions.get(&call.scope()) {
                    return Some(Ok(known.clone()));
                }
                let id = self.event(room, me, kind, None, call.body.clone());
                let answer = json!({ "event_id": id });
                self.transactions.insert(call.scope(), answer.clone());
                Ok(answer)
            }
            _ => return None,
        })
    }

    fn create(&mut self, me: &str, body: &Value) -> String {
        let room = format!("!r{}:{SERVER_NAME}", self.next());
        self.rooms.insert(room.clone(), Room::default());
        let creation = body.get("creation_content").cloned().unwrap_or_else(|| json!({}));
        self.event(&room, me, "m.room.create", Some(""), creation);
        self.member(&room, me, me, "join", false);
        for event in body["initial_state"].as_array().into_iter().flatten() {
            let kind = event["type"].as_str().unwrap_or_default();
            self.event(&room, me, kind, Some(""), event["content"].clone());
        }
        let direct = body["is_direct"] == true;
        for invitee in body["invite"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            self.member(&room, me, invitee, "invite", direct);
        }
        room
    }

    pub fn member(&mut self, room: &str, by: &str, user: &str, membership: &str, direct: bool) {
        let mut content = json!({ "membership": membership });
        if direct {
            content["is_direct"] = true.into();
        }
        self.event(room, by, "m.room.member", Some(user), content);
    }

    /// Puts an event into a room, and into a transaction if a bot is concerned.
    pub fn event(
        &mut self,
        room_id: &str,
        sender: &str,
        kind: &str,
        key: Option<&str>,
        content: Value,
    ) -> String {
        let id = format!("$e{}", self.next());
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
        let mut event = json!({ "event_id": id, "room_id": room_id, "sender": sender,
            "type": kind, "content": content, "origin_server_ts": now as u64 });
        let room = self.rooms.entry(room_id.to_owned()).or_default();
        if let Some(key) = key {
            event["state_key"] = key.into();
            room.state.insert((kind.to_owned(), key.to_owned()), event.clone());
        }
        room.timeline.push(event.clone());
        let concerns_a_bot =
            room.members().any(|member| member["state_key"].as_str().is_some_and(Self::is_bot));
        if concerns_a_bot {
            self.queue.events.push(event);
        }
        id
    }
}

impl FakeHomeserver {
    /// All events of a room, oldest first.
    pub fn timeline(&self, room: &str) -> Vec<Value> {
        self.lock().rooms.get(room).map(|room| room.timeline.clone()).unwrap_or_default()
    }

    /// What a user sent into a room, state events left out.
    pub fn said_by(&self, user: &str, room: &str) -> Vec<Value> {
        let mut events = self.timeline(room);
        events.retain(|event| event["sender"] == user && event.get("state_key").is_none());
        events
    }

    /// How many messages bots have sent, in all rooms.
    pub fn said_by_bots(&self) -> usize {
        let state = self.lock();
        let events = state.rooms.values().flat_map(|room| &room.timeline);
        let by_a_bot = |event: &&Value| {
            event.get("state_key").is_none() && event["sender"].as_str().is_some_and(State::is_bot)
        };
        events.filter(by_a_bot).count()
    }

    /// A room made by `creator` with these members joined.
    pub fn room(&self, creator: &str, encrypted: bool, members: &[&str]) -> String {
        let mut state = self.lock();
        let room = state.create(creator, &json!({}));
        if encrypted {
            let content = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
            state.event(&room, creator, "m.room.encryption", Some(""), content);
        }
        for member in members {
            state.member(&room, member, member, "join", false);
        }
        drop(state);
        self.inner.news.notify_one();
        room
    }

    /// An encrypted room made by `creator`, who invites these.
    pub fn room_by_invitation(&self, creator: &str, invited: &[&str]) -> String {
        let room = self.room(creator, true, &[]);
        let mut state = self.lock();
        for user in invited {
            state.member(&room, creator, user, "invite", false);
        }
        drop(state);
        self.inner.news.notify_one();
        room
    }

    /// A person leaves a room.
    pub fn leave(&self, room: &str, user: &str) {
        self.lock().member(room, user, user, "leave", false);
        self.inner.news.notify_one();
    }

    /// An event of a person, as it is.
    pub fn say(
        &self,
        room: &str,
        sender: &str,
        kind: &str,
        key: Option<&str>,
        content: Value,
    ) -> String {
        let id = self.lock().event(room, sender, kind, key, content);
        self.inner.news.notify_one();
        id
    }

    /// Joined and invited users.
    pub(super) fn readers(&self, room: &str) -> Vec<String> {
        let state = self.lock();
        let members = state.rooms.get(room).into_iter().flat_map(Room::members);
        members
            .filter(|member| {
                matches!(member["content"]["membership"].as_str(), Some("join" | "invite"))
            })
            .filter_map(|member| member["state_key"].as_str().map(ToOwned::to_owned))
            .collect()
    }
}
