//! The calls that greenshield makes about users, devices, rooms and messages, one function each.
//! Key and to-device requests are made by matrix-sdk-crypto and go through [`Homeserver::send`].

use reqwest::Method;
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, RoomOrAliasId, TransactionId, UserId};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json, value::RawValue};

use super::{Actor, As, Homeserver, HomeserverError};

const NO_BODY: Option<&Value> = None;

/// Client-server paths begin with these segments.
macro_rules! v3 {
    ($($segment:expr),* $(,)?) => { &["_matrix", "client", "v3", $($segment),*] };
}

/// A member of a room, as `/members` tells it.
#[derive(Clone, Debug)]
pub struct Member {
    /// Who.
    pub user_id: OwnedUserId,
    /// `join`, `invite`, ...
    pub membership: String,
}

/// A direct room to be made.
#[derive(Clone, Copy, Debug)]
pub struct DirectRoom<'a> {
    /// Who is invited.
    pub invitee: &'a UserId,
    /// Written into the room's creation event, to find the room again after a crash.
    pub marker: &'a str,
}

/// Events, not parsed yet: what is in them is for anybody to write.
#[derive(Deserialize)]
struct Chunk {
    chunk: Vec<Box<RawValue>>,
}

/// The key in a creation event's content under which [`DirectRoom::marker`] is written.
const MARKER_KEY: &str = "eu.greenshield.signup";

impl Homeserver {
    /// Specification versions that the homeserver speaks.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`].
    pub async fn versions(&self) -> Result<Vec<String>, HomeserverError> {
        let answer = self
            .json(Method::GET, &["_matrix", "client", "versions"], &[], As::Service, NO_BODY)
            .await?;
        self.field(answer, "versions")
    }

    /// Whom the homeserver takes us for.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`]; `M_UNKNOWN_TOKEN` when the registration is not installed.
    pub async fn whoami(&self, as_: As<'_>) -> Result<OwnedUserId, HomeserverError> {
        let answer = self.json(Method::GET, v3!["account", "whoami"], &[], as_, NO_BODY).await?;
        self.field(answer, "user_id")
    }

    /// Asks the homeserver to ping our appservice listener. On Synapse a successful ping also makes
    /// it retry at once whatever it holds back for us.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`]; its text says why the homeserver could not reach us.
    pub async fn ping(
        &self,
        appservice_id: &str,
        transaction_id: &str,
    ) -> Result<(), HomeserverError> {
        let path = ["_matrix", "client", "v1", "appservice", appservice_id, "ping"];
        let body = json!({ "transaction_id": transaction_id });
        self.json(Method::POST, &path, &[], As::Service, Some(&body)).await?;
        Ok(())
    }

    /// Registers a user of our namespace; it is success if the user exists already.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`]; `M_EXCLUSIVE` when the name is outside the namespace.
    pub async fn register(&self, user_id: &UserId) -> Result<(), HomeserverError> {
        let body = json!({
            "type": "m.login.application_service",
            "username": user_id.localpart(),
            "inhibit_login": true,
        });
        match self.json(Method::POST, v3!["register"], &[], As::Service, Some(&body)).await {
            Err(error) if error.errcode() == Some("M_USER_IN_USE") => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// Whether the bot's device exists on the homeserver.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`].
    pub async fn device_exists(&self, bot: &Actor) -> Result<bool, HomeserverError> {
        let path = v3!["devices", bot.device_id.as_str()];
        match self.json(Method::GET, path, &[], As::User(&bot.user_id), NO_BODY).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes the bot's device (MSC4190): a device without keys, which nobody heeds.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`].
    pub async fn create_device(&self, bot: &Actor, name: &str) -> Result<(), HomeserverError> {
        let path = v3!["devices", bot.device_id.as_str()];
        let body = json!({ "display_name": name });
        self.json(Method::PUT, path, &[], As::User(&bot.user_id), Some(&body)).await?;
        Ok(())
    }

    /// Sets the bot's display name.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`].
    pub async fn set_display_name(&self, bot: &Actor, name: &str) -> Result<(), HomeserverError> {
        let path = v3!["profile", bot.user_id.as_str(), "displayname"];
        let body = json!({ "displayname": name });
        self.json(Method::PUT, path, &[], bot.into(), Some(&body)).await?;
        Ok(())
    }

    /// Joins a room; it is success if the bot is in it already.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`].
    pub async fn join(
        &self,
        bot: &Actor,
        room: &RoomOrAliasId,
    ) -> Result<OwnedRoomId, HomeserverError> {
        let path = v3!["join", room.as_str()];
        let answer = self.json(Method::POST, path, &[], bot.into(), Some(&json!({}))).await?;
        self.field(answer, "room_id")
    }

    /// Leaves a room or declines an invite.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`].
    pub async fn leave(&self, bot: &Actor, room: &RoomId) -> Result<(), HomeserverError> {
        let path = v3!["rooms", room.as_str(), "leave"];
        self.json(Method::POST, path, &[], bot.into(), Some(&json!({}))).await?;
        Ok(())
    }

    /// Makes an encrypted direct room with a human.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`].
    pub async fn create_direct_room(
        &self,
        bot: &Actor,
        room: DirectRoom<'_>,
    ) -> Result<OwnedRoomId, HomeserverError> {
        let body = json!({
            "preset": "trusted_private_chat",
            "is_direct": true,
            "invite": [room.invitee],
            "creation_content": { MARKER_KEY: room.marker },
            "initial_state": [{
                "type": "m.room.encryption",
                "state_key": "",
                "content": { "algorithm": "m.megolm.v1.aes-sha2" },
            }],
        });
        let answer =
            self.json(Method::POST, v3!["createRoom"], &[], bot.into(), Some(&body)).await?;
        self.field(answer, "room_id")
    }

    /// The room that [`Homeserver::create_direct_room`] made with this marker, if it exists.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`].
    pub async fn find_direct_room(
        &self,
        bot: &Actor,
        marker: &str,
    ) -> Result<Option<OwnedRoomId>, HomeserverError> {
        let answer = self.json(Method::GET, v3!["joined_rooms"], &[], bot.into(), NO_BODY).await?;
        let rooms: Vec<OwnedRoomId> = self.field(answer, "joined_rooms")?;
        for room in rooms {
            let creation = self.state(bot, &room, "m.room.create").await?;
            if creation.is_some_and(|c| c.get(MARKER_KEY).and_then(Value::as_str) == Some(marker)) {
                return Ok(Some(room));
            }
        }
        Ok(None)
    }

    /// The content of a state event with an empty state key; `None` if the room has none.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`].
    pub async fn state(
        &self,
        bot: &Actor,
        room: &RoomId,
        event_type: &str,
    ) -> Result<Option<Value>, HomeserverError> {
        let path = v3!["rooms", room.as_str(), "state", event_type, ""];
        match self.json(Method::GET, path, &[], bot.into(), NO_BODY).await {
            Ok(content) => Ok(Some(content)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Everybody who is joined to or invited into the room.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`].
    pub async fn members(
        &self,
        bot: &Actor,
        room: &RoomId,
    ) -> Result<Vec<Member>, HomeserverError> {
        #[derive(Deserialize)]
        struct Event {
            state_key: OwnedUserId,
            content: Content,
        }
        #[derive(Deserialize)]
        struct Content {
            membership: String,
        }
        let path = v3!["rooms", room.as_str(), "members"];
        let query = [("not_membership", "leave")];
        let answer: Chunk = self.typed(Method::GET, path, &query, bot.into(), NO_BODY).await?;
        // A member event that does not parse is of no user that could hold a device.
        Ok(answer
            .chunk
            .iter()
            .filter_map(|event| serde_json::from_str::<Event>(event.get()).ok())
            .filter(|event| matches!(event.content.membership.as_str(), "join" | "invite"))
            .map(|event| Member { user_id: event.state_key, membership: event.content.membership })
            .collect())
    }

    /// The newest events of a room, newest first.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`].
    pub async fn recent_events(
        &self,
        bot: &Actor,
        room: &RoomId,
        limit: u32,
    ) -> Result<Vec<Value>, HomeserverError> {
        let path = v3!["rooms", room.as_str(), "messages"];
        let limit = limit.to_string();
        let query = [("dir", "b"), ("limit", limit.as_str())];
        let answer: Chunk = self.typed(Method::GET, path, &query, bot.into(), NO_BODY).await?;
        // One that no parser takes is nobody's loss.
        Ok(answer.chunk.iter().filter_map(|event| serde_json::from_str(event.get()).ok()).collect())
    }

    /// Sends an event into a room. The transaction id must carry the bot's id: Synapse scopes it to
    /// the application service, not to the user.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`].
    pub async fn send_event(
        &self,
        bot: &Actor,
        room: &RoomId,
        event_type: &str,
        txn_id: &TransactionId,
        content: &Value,
    ) -> Result<OwnedEventId, HomeserverError> {
        let path = v3!["rooms", room.as_str(), "send", event_type, txn_id.as_str()];
        let answer = self.json(Method::PUT, path, &[], bot.into(), Some(content)).await?;
        self.field(answer, "event_id")
    }

    /// Marks `room` as a direct room with `human` in the bot's account data, keeping what is there.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`].
    pub async fn mark_direct(
        &self,
        bot: &Actor,
        room: &RoomId,
        human: &UserId,
    ) -> Result<(), HomeserverError> {
        let path = v3!["user", bot.user_id.as_str(), "account_data", "m.direct"];
        let mut direct = match self.json(Method::GET, path, &[], bot.into(), NO_BODY).await {
            Ok(Value::Object(direct)) => direct,
            Ok(_) => serde_json::Map::new(),
            Err(error) if error.is_not_found() => serde_json::Map::new(),
            Err(error) => return Err(error),
        };
        let rooms = direct.entry(human.as_str()).or_insert_with(|| json!([]));
        match rooms.as_array_mut() {
            Some(rooms) if rooms.iter().any(|r| r.as_str() == Some(room.as_str())) => {
                return Ok(());
            }
            Some(rooms) => rooms.push(room.as_str().into()),
            None => *rooms = json!([room]),
        }
        self.json(Method::PUT, path, &[], bot.into(), Some(&direct)).await?;
        Ok(())
    }

    /// A field of an answer, as the type that the caller expects.
    fn field<T: DeserializeOwned>(
        &self,
        mut answer: Value,
        name: &str,
    ) -> Result<T, HomeserverError> {
        let value = answer.get_mut(name).map(Value::take).unwrap_or_default();
        serde_json::from_value(value)
            .map_err(|e| self.not_understood(&format!("its `{name}`: {e}")))
    }
}
