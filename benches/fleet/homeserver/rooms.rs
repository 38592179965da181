//! Users, devices and rooms, as far as bots ask for them.

use std::{borrow::Cow, sync::Arc, time::Instant};

use axum::body::Bytes;
use serde_json::{Value, json};

use super::{
    SERVER_NAME,
    call::Call,
    push::Event,
    state::{Answer, Room, State},
};

const EMPTY: Answer = Ok(Bytes::from_static(b"{}"));
const NOT_FOUND: Answer = Err((404, "M_NOT_FOUND"));

fn body(value: &Value) -> Bytes {
    value.to_string().into()
}

pub fn now_millis() -> u128 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis()
}

impl State {
    pub fn answer(&mut self, call: &Call) -> Answer {
        self.calls.all += 1;
        let segments = call.segments();
        let segments: Vec<&str> = segments.iter().map(Cow::as_ref).collect();
        match (call.method.as_str(), segments.as_slice()) {
            (method, ["_matrix", "client", "v3", rest @ ..]) => self
                .room_call(call, method, rest)
                .or_else(|| self.keys_call(call, method, rest))
                .or_else(|| self.user_call(call, method, rest))
                .unwrap_or(Err((404, "M_UNRECOGNIZED"))),
            ("GET", ["_matrix", "client", "versions"]) => {
                Ok(body(&json!({ "versions": ["v1.1", "v1.11"] })))
            }
            // Nothing was lost here: what is sent is pushed.
            ("POST", ["_matrix", "client", "unstable", _, "sync"]) => {
                Ok(body(&json!({ "pos": "0",
                "extensions": { "to_device": { "next_batch": "0", "events": [] } } })))
            }
            ("POST", ["_matrix", "client", "v1", "appservice", _, "ping"]) => {
                Ok(body(&json!({ "duration_ms": 1 })))
            }
            _ => Err((404, "M_UNRECOGNIZED")),
        }
    }

    fn user_call(&mut self, call: &Call, method: &str, rest: &[&str]) -> Option<Answer> {
        let me = call.user();
        Some(match (method, rest) {
            ("GET", ["account", "whoami"]) => Ok(body(&json!({ "user_id": me }))),
            ("POST", ["register"]) => {
                let request: Value = serde_json::from_slice(&call.body).unwrap_or_default();
                let localpart = request["username"].as_str().unwrap_or_default();
                let user = format!("@{localpart}:{SERVER_NAME}");
                self.users.entry(user.clone()).or_default();
                Ok(body(&json!({ "user_id": user })))
            }
            ("GET", ["devices", id]) => match self.users.get(&*me) {
                Some(user) if user.devices.contains_key(*id) => {
                    Ok(body(&json!({ "device_id": id })))
                }
                _ => NOT_FOUND,
            },
            ("PUT", ["devices", id]) => {
                let user = self.users.entry(me.into_owned()).or_default();
                user.devices.entry((*id).to_owned()).or_default();
                EMPTY
            }
            ("PUT", ["profile", ..]) => EMPTY,
            ("GET", ["user", name, "account_data", kind]) => {
                let data = self.users.get(*name).and_then(|user| user.account_data.get(*kind));
                data.map_or(NOT_FOUND, |data| Ok(data.clone().into()))
            }
            ("PUT", ["user", name, "account_data", kind]) => {
                let data = String::from_utf8_lossy(&call.body).into_owned();
                let user = self.users.entry((*name).to_owned()).or_default();
                user.account_data.insert((*kind).to_owned(), data);
                EMPTY
            }
            _ => return None,
        })
    }

    fn room_call(&mut self, call: &Call, method: &str, rest: &[&str]) -> Option<Answer> {
        let me = call.user();
        Some(match (method, rest) {
            ("PUT", ["rooms", room, "send", kind, _]) => self.send(call, &me, room, kind),
            ("POST", ["createRoom"]) => {
                let request: Value = serde_json::from_slice(&call.body).unwrap_or_default();
                Ok(body(&json!({ "room_id": self.create(&me, &request) })))
            }
            ("GET", ["joined_rooms"]) => {
                let joined = self.users.get(&*me).map(|user| &user.joined);
                Ok(body(&json!({ "joined_rooms": joined })))
            }
            ("POST", ["join", room]) => {
                self.member(room, &me, &me, "join");
                Ok(body(&json!({ "room_id": room })))
            }
            ("POST", ["rooms", room, "leave"]) => {
                self.member(room, &me, &me, "leave");
                EMPTY
            }
            ("GET", ["rooms", room, "state", kind, ""]) => {
                let room = self.rooms.get(*room);
                let content = match *kind {
                    "m.room.encryption" => room.and_then(|room| room.encryption.clone()),
                    "m.room.create" => room.map(|room| room.creation.clone()),
                    _ => None,
                };
                content.map_or(NOT_FOUND, |content| Ok(content.into()))
            }
            ("GET", ["rooms", room, "members"]) => {
                let members = self.rooms.get(*room).into_iter().flat_map(|room| &room.members);
                let chunk: Vec<Value> = members
                    .map(|(user, membership)| {
                        json!({ "type": "m.room.member", "state_key": user, "sender": user,
                            "room_id": room, "content": { "membership": membership } })
                    })
                    .collect();
                Ok(body(&json!({ "chunk": chunk })))
            }
            ("GET", ["rooms", _, "messages"]) => Ok(body(&json!({ "chunk": [], "start": "s" }))),
            _ => return None,
        })
    }

    /// A bot's message: perhaps an answer, and in any case pushed back as all events of the room are.
    fn send(&mut self, call: &Call, me: &str, room: &str, kind: &str) -> Answer {
        let path = call.uri.path();
        if let Some(known) = self.sent.get(path) {
            return Ok(format!("{{\"event_id\":\"{known}\"}}").into());
        }
        let is_answer = self.course.take(room, &call.body, Instant::now());
        let event_id = format!("$b{}", self.number());
        let content = std::str::from_utf8(&call.body).map_err(|_| (400, "M_NOT_JSON"))?;
        let json = event(room, me, kind, &event_id, None, content);
        self.sent.insert(path.to_owned(), event_id.clone());
        self.queue.events.push_back(Event { json, room: room.into(), ping: None });
        if is_answer && self.course.closed_loop {
            self.course.push_next(&mut self.queue);
        }
        Ok(format!("{{\"event_id\":\"{event_id}\"}}").into())
    }

    pub fn create(&mut self, me: &str, request: &Value) -> String {
        let id = format!("!r{}:{SERVER_NAME}", self.number());
        let mut room = Room { creation: "{}".to_owned(), ..Room::default() };
        if let Some(creation) = request.get("creation_content") {
            room.creation = creation.to_string();
        }
        let mut encryption = request["initial_state"].as_array().into_iter().flatten();
        let encryption = encryption.rfind(|event| event["type"] == "m.room.encryption");
        room.encryption = encryption.map(|event| event["content"].to_string());
        self.rooms.insert(id.clone(), room);
        self.member(&id, me, me, "join");
        if let Some(content) = self.rooms.get(&id).and_then(|room| room.encryption.clone()) {
            self.state_event(&id, me, "m.room.encryption", "", &content);
        }
        let invited = request["invite"].as_array().into_iter().flatten();
        for invitee in invited.filter_map(Value::as_str) {
            self.member(&id, me, invitee, "invite");
        }
        id
    }

    pub fn member(&mut self, room_id: &str, by: &str, user: &str, membership: &'static str) {
        let room = self.rooms.entry(room_id.to_owned()).or_default();
        room.members.insert(user.to_owned(), membership);
        room.bots.retain(|bot| bot != user);
        if membership == "join" {
            self.users.entry(user.to_owned()).or_default().joined.insert(room_id.to_owned());
            if Self::is_bot(user) {
                room.bots.push(user.to_owned());
            }
        } else if let Some(user) = self.users.get_mut(user) {
            user.joined.remove(room_id);
        }
        let content = format!("{{\"membership\":\"{membership}\"}}");
        self.state_event(room_id, by, "m.room.member", user, &content);
    }

    /// Pushes a state event if it concerns a bot.
    fn state_event(&mut self, room: &str, sender: &str, kind: &str, key: &str, content: &str) {
        let has_bots = self.rooms.get(room).is_some_and(|room| !room.bots.is_empty());
        if has_bots || Self::is_bot(key) {
            let id = format!("$s{}", self.number());
            let json = event(room, sender, kind, &id, Some(key), content);
            self.queue.events.push_back(Event { json, room: Arc::from(room), ping: None });
        }
    }
}

/// An event as JSON.
pub fn event(
    room: &str,
    sender: &str,
    kind: &str,
    event_id: &str,
    key: Option<&str>,
    content: &str,
) -> String {
    let key = key.map(|key| format!("\"state_key\":\"{key}\",")).unwrap_or_default();
    let now = now_millis();
    format!(
        "{{\"type\":\"{kind}\",\"room_id\":\"{room}\",\"sender\":\"{sender}\",{key}\
         \"event_id\":\"{event_id}\",\"origin_server_ts\":{now},\"unsigned\":{{\"age\":1}},\
         \"content\":{content}}}"
    )
}
