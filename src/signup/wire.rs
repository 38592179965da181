//! What callers send and are answered.

use ruma::{OwnedDeviceId, OwnedRoomId, OwnedServerName, OwnedUserId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// A bot that is asked for.
#[derive(Deserialize, ToSchema)]
pub struct SignupRequest {
    /// A code from the operator.
    pub code: String,
    /// The bot's name: 1 to 64 of `a-z 0-9 . _ = / -`. The configured prefix is put before it unless it
    /// is there already.
    #[schema(example = "deploy", max_length = 64)]
    pub username: String,
    /// The bot's public name; the username, if left out.
    #[serde(default)]
    #[schema(example = "Deploy Bot", max_length = 100)]
    pub display_name: Option<String>,
    /// The bot's first message to the human who invited it.
    #[serde(default)]
    #[schema(max_length = 4000)]
    pub intro: Option<String>,
    /// Not available in this version: leave it out.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub webhook: Option<Value>,
}

/// A bot that has come to be.
#[derive(Serialize, ToSchema)]
pub struct SignupAnswer {
    /// Its Matrix user.
    #[schema(value_type = String, example = "@bot_deploy:example.org")]
    pub user_id: OwnedUserId,
    /// Its one device.
    #[schema(value_type = String, example = "GSABCDEFGHIJ")]
    pub device_id: OwnedDeviceId,
    /// What its owner shows greenshield. Keep it: it is not stored, only its digest.
    pub access_token: String,
    /// The server name of its homeserver.
    #[schema(value_type = String, example = "example.org")]
    pub homeserver: OwnedServerName,
    /// The space that it joined.
    #[schema(value_type = Option<String>)]
    pub space_id: Option<OwnedRoomId>,
    /// Its encrypted direct room with the human who invited it.
    #[schema(value_type = Option<String>)]
    pub dm_room: Option<OwnedRoomId>,
    /// Its first message there.
    pub intro_text: String,
    /// Its public master key.
    pub msk_public: String,
    /// Each step by name with true, false or a list of what was done.
    #[schema(value_type = Object)]
    pub steps: Value,
    /// That the first message went out encrypted.
    pub proof: Proof,
}

/// That a message went out encrypted.
#[derive(Serialize, ToSchema)]
pub struct Proof {
    /// The message.
    pub event_id: Option<String>,
    /// The Megolm session that it was encrypted with.
    pub session_id: Option<String>,
    /// How many devices were given that session.
    pub devices: Option<i32>,
}

/// Which bot is asked about.
#[derive(Default, Deserialize, ToSchema)]
pub struct CrosssignRequest {
    /// The bot's token, unless it comes as `Authorization: Bearer`.
    #[serde(default)]
    pub access_token: Option<String>,
}

/// A bot's identity.
#[derive(Serialize, ToSchema)]
pub struct CrosssignAnswer {
    /// Its Matrix user.
    #[schema(value_type = String)]
    pub user_id: OwnedUserId,
    /// Its one device.
    #[schema(value_type = String)]
    pub device_id: OwnedDeviceId,
    /// Its public master key.
    pub msk_public: String,
    /// Its public self-signing key.
    pub ssk_public: String,
    /// Its public user-signing key.
    pub usk_public: String,
    /// That the device is signed by that identity: always true.
    pub device_signed: bool,
    /// The master key, in groups of four for reading aloud.
    pub fingerprint: String,
}

/// An error in Matrix's shape.
#[derive(Serialize, ToSchema)]
pub struct ErrorBody {
    /// The code, for programs.
    #[schema(example = "GREENSHIELD_INVALID_CODE")]
    pub errcode: String,
    /// The text, for people: it says what to do.
    pub error: String,
    /// How far the signup got, where it began.
    #[schema(value_type = Option<Object>)]
    pub steps: Option<Value>,
}
