//! Verification by SAS, reduced to what a worker decides on.
//!
//! A flow is either a request (in a room or over to-device) that turns into a SAS, or a SAS that was
//! started without one, as older clients do. Both are looked up by the other user and the flow id, and
//! told as one [`FlowState`]. It lives in the machine's memory only: after a restart there is no flow,
//! and whoever has a row for one sends a cancel.

use std::collections::BTreeMap;

use matrix_sdk_crypto::{
    CancelInfo, SasState, Verification, VerificationRequest, VerificationRequestState,
    types::requests::OutgoingVerificationRequest,
};
use ruma::{
    OwnedRoomId, OwnedUserId, UserId,
    api::client::keys::upload_signatures,
    events::{
        AnyMessageLikeEvent, AnyMessageLikeEventContent,
        key::verification::{VerificationMethod, cancel::CancelCode},
    },
    serde::Raw,
};
use serde_json::{Value, json};

use super::{BotMachine, CryptoError};
use crate::model::foreign;

/// A verification message that came, with what tells which flow it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerificationMessage {
    /// Who sent it.
    pub sender: OwnedUserId,
    /// The request's event id in a room, the transaction id over to-device.
    pub flow_id: String,
    /// `m.key.verification....`; a request in a room is told as `m.key.verification.request`.
    pub kind: String,
    /// The room; `None` over to-device.
    pub room: Option<OwnedRoomId>,
    /// Whom a request in a room is addressed to.
    pub to: Option<String>,
    /// The sender's device, where the message names it.
    pub from_device: Option<String>,
}

pub(super) const PREFIX: &str = "m.key.verification.";
const REQUEST: &str = "m.key.verification.request";

impl VerificationMessage {
    /// Reads a to-device event; `None` if it is about something else.
    #[must_use]
    pub fn from_to_device(event: &Value) -> Option<Self> {
        let kind = event.get("type")?.as_str()?;
        if !kind.starts_with(PREFIX) {
            return None;
        }
        let content = event.get("content")?;
        Some(Self {
            sender: event.get("sender")?.as_str()?.try_into().ok()?,
            flow_id: text(content, "transaction_id").filter(|id| foreign::is_id(id))?,
            kind: kind.to_owned(),
            room: None,
            to: None,
            from_device: text(content, "from_device"),
        })
    }

    /// Reads a decrypted (or never encrypted) room event; `None` if it is about something else.
    #[must_use]
    pub fn from_room_event(event: &Value) -> Option<Self> {
        let event_type = event.get("type")?.as_str()?;
        let content = event.get("content")?;
        let sender = event.get("sender")?.as_str()?.try_into().ok()?;
        let room = event.get("room_id")?.as_str()?.try_into().ok();
        let from_device = text(content, "from_device");
        if event_type == "m.room.message" {
            return (content.get("msgtype")?.as_str()? == REQUEST).then_some(Self {
                sender,
                flow_id: event.get("event_id")?.as_str()?.to_owned(),
                kind: REQUEST.to_owned(),
                room,
                to: text(content, "to"),
                from_device,
            });
        }
        if !event_type.starts_with(PREFIX) {
            return None;
        }
        let flow_id = content.get("m.relates_to")?.get("event_id")?.as_str()?;
        let flow_id = foreign::is_id(flow_id).then(|| flow_id.to_owned())?;
        Some(Self { sender, flow_id, kind: event_type.to_owned(), room, to: None, from_device })
    }

    /// Whether it asks for a verification.
    #[must_use]
    pub fn is_request(&self) -> bool {
        self.kind == REQUEST
    }

    /// Whether it begins a flow: a request, or a SAS started without one.
    #[must_use]
    pub fn begins(&self) -> bool {
        self.is_request() || (self.room.is_none() && self.kind == "m.key.verification.start")
    }

    /// Whether it ends a flow: nobody answers these.
    #[must_use]
    pub fn ends(&self) -> bool {
        matches!(self.kind.as_str(), "m.key.verification.cancel" | "m.key.verification.done")
    }

    /// Whether the sender confirms the emoji with it.
    #[must_use]
    pub fn is_mac(&self) -> bool {
        self.kind == "m.key.verification.mac"
    }
}

fn text(content: &Value, key: &str) -> Option<String> {
    content.get(key).and_then(Value::as_str).map(ToOwned::to_owned)
}

/// How far a flow has got.
#[derive(Clone, Debug)]
pub enum FlowState {
    /// The human asks; `sas` tells whether the human's client can do emoji.
    Requested {
        /// Whether SAS is among the methods offered.
        sas: bool,
    },
    /// We asked, or both are willing: the human's client starts the SAS.
    Waiting {
        /// Whether both sides have said that they are willing.
        ready: bool,
    },
    /// The human's client started a SAS: to be accepted.
    Started,
    /// A SAS was accepted: keys are on their way.
    Accepted,
    /// The emoji are there.
    Emoji {
        /// Seven of `{symbol, description}`.
        emoji: Option<Value>,
        /// Three numbers.
        decimals: Value,
    },
    /// We have confirmed, the human has not yet.
    Confirmed,
    /// Both have.
    Done,
    /// It ended without.
    Cancelled {
        /// The specification's code.
        code: String,
        /// The same in a sentence.
        reason: String,
    },
}

/// A flow in the machine's memory.
pub struct Flow {
    request: Option<VerificationRequest>,
    sas: Option<Box<matrix_sdk_crypto::Sas>>,
}

/// What confirming gave to send.
pub struct Confirmed {
    /// Messages of the flow.
    pub messages: Vec<OutgoingVerificationRequest>,
    /// Our signature of the human's identity, if the human had confirmed before.
    pub signatures: Option<upload_signatures::v3::Request>,
}

impl BotMachine {
    /// Feeds a room event of a verification. A request is heeded only if the sender's devices are
    /// known: query them first.
    ///
    /// # Errors
    ///
    /// If the store fails. An event that does not parse is of no flow, and is no error.
    pub async fn receive_room_verification(&self, event: &Value) -> Result<(), CryptoError> {
        let Ok(event) = serde_json::from_value::<AnyMessageLikeEvent>(event.clone()) else {
            return Ok(());
        };
        Ok(self.machine.receive_verification_event(&event).await?)
    }

    /// The flow with a user, if it is in memory.
    #[must_use]
    pub fn flow(&self, user: &UserId, flow_id: &str) -> Option<Flow> {
        let request = self.machine.get_verification_request(user, flow_id);
        let sas = self.machine.get_verification(user, flow_id).and_then(Verification::sas_v1);
        (request.is_some() || sas.is_some()).then_some(Flow { request, sas })
    }

    /// Whether finished flows with a user still lie in memory, where a new request would collide
    /// with them; [`BotMachine::receive`] sweeps them out.
    #[must_use]
    pub fn has_finished_flows(&self, user: &UserId) -> bool {
        self.machine
            .get_verification_requests(user)
            .iter()
            .any(|request| request.is_done() || request.is_cancelled())
    }
}

impl Flow {
    /// How far it has got.
    #[must_use]
    pub fn state(&self) -> FlowState {
        if let Some(sas) = &self.sas {
            return match sas.state() {
                // Both sides may have started: ours goes on when theirs is the one that gives way.
                SasState::Created { .. } => FlowState::Waiting { ready: true },
                SasState::Started { .. } => FlowState::Started,
                SasState::Accepted { .. } => FlowState::Accepted,
                SasState::KeysExchanged { emojis, decimals } => FlowState::Emoji {
                    emoji: emojis.map(|e| {
                        e.emojis
                            .iter()
                            .map(|e| json!({ "symbol": e.symbol, "description": e.description }))
                            .collect()
                    }),
                    decimals: json!([decimals.0, decimals.1, decimals.2]),
                },
                SasState::Confirmed => FlowState::Confirmed,
                SasState::Done { .. } => FlowState::Done,
                SasState::Cancelled(info) => cancelled(&info),
            };
        }
        match self.request.as_ref().map(VerificationRequest::state) {
            Some(VerificationRequestState::Requested { their_methods, .. }) => {
                FlowState::Requested { sas: their_methods.contains(&VerificationMethod::SasV1) }
            }
            Some(VerificationRequestState::Ready { .. }) => FlowState::Waiting { ready: true },
            Some(VerificationRequestState::Done) => FlowState::Done,
            Some(VerificationRequestState::Cancelled(info)) => cancelled(&info),
            _ => FlowState::Waiting { ready: false },
        }
    }

    /// Whether this is a SAS that was started without a request, as far as the machine knows.
    #[must_use]
    pub fn has_no_request(&self) -> bool {
        self.request.is_none()
    }

    /// The human's device, once known.
    #[must_use]
    pub fn other_device(&self) -> Option<String> {
        match (&self.sas, &self.request) {
            (Some(sas), _) => Some(sas.other_device_id().to_string()),
            (None, Some(request)) => request.other_device_id().map(|id| id.to_string()),
            (None, None) => None,
        }
    }

    /// Whether it has taken too long.
    #[must_use]
    pub fn timed_out(&self) -> bool {
        self.request.as_ref().is_some_and(VerificationRequest::timed_out)
            || self.sas.as_ref().is_some_and(|sas| sas.timed_out())
    }

    /// Says that we are willing, with what we can do: SAS, and nothing else.
    #[must_use]
    pub fn accept_request(&self) -> Option<OutgoingVerificationRequest> {
        self.request.as_ref()?.accept_with_methods(vec![VerificationMethod::SasV1])
    }

    /// Accepts the SAS that the human's client started.
    #[must_use]
    pub fn accept_sas(&self) -> Option<OutgoingVerificationRequest> {
        self.sas.as_ref()?.accept()
    }

    /// Confirms that the emoji agree.
    ///
    /// # Errors
    ///
    /// If the store fails.
    pub async fn confirm(&self) -> Result<Option<Confirmed>, CryptoError> {
        let Some(sas) = &self.sas else { return Ok(None) };
        let (messages, signatures) = sas.confirm().await?;
        Ok(Some(Confirmed { messages, signatures }))
    }

    /// Ends it, with one of the specification's codes. A request that has not led to a SAS yet counts
    /// as ended by the user (`m.user`) in the machine, but the message carries the code.
    ///
    /// # Errors
    ///
    /// If the message is not what we take it for.
    pub fn cancel(
        &self,
        code: CancelCode,
    ) -> Result<Option<OutgoingVerificationRequest>, CryptoError> {
        match (&self.sas, &self.request) {
            (Some(sas), _) => Ok(sas.cancel_with_code(code)),
            (None, Some(request)) => request.cancel().map(|m| with_code(m, code)).transpose(),
            (None, None) => Ok(None),
        }
    }
}

/// A sentence for a code, where the machine has none.
#[must_use]
pub fn reason(code: &CancelCode) -> String {
    match code {
        CancelCode::Timeout => "This verification took too long: please verify again".to_owned(),
        CancelCode::UnknownMethod => "This bot can be verified by emoji only".to_owned(),
        code => format!("The verification was cancelled: {}", code.as_str()),
    }
}

/// The machine lets a request be cancelled with `m.user` only: the message with another code.
fn with_code(
    mut message: OutgoingVerificationRequest,
    code: CancelCode,
) -> Result<OutgoingVerificationRequest, CryptoError> {
    if code == CancelCode::User {
        return Ok(message);
    }
    let reason = reason(&code);
    match &mut message {
        OutgoingVerificationRequest::InRoom(message) => {
            if let AnyMessageLikeEventContent::KeyVerificationCancel(cancel) =
                message.content.as_mut()
            {
                cancel.code = code;
                cancel.reason = reason;
            }
        }
        OutgoingVerificationRequest::ToDevice(message) => {
            for content in message.messages.values_mut().flat_map(BTreeMap::values_mut) {
                let mut cancel: Value = serde_json::from_str(content.json().get())?;
                cancel["code"] = code.as_str().into();
                cancel["reason"] = reason.as_str().into();
                *content = Raw::from_json(serde_json::value::to_raw_value(&cancel)?);
            }
        }
    }
    Ok(message)
}

/// Codes of the specification.
const CODES: [&str; 11] = [
    "m.user",
    "m.timeout",
    "m.unknown_transaction",
    "m.unknown_method",
    "m.unexpected_message",
    "m.key_mismatch",
    "m.user_mismatch",
    "m.invalid_message",
    "m.accepted",
    "m.mismatched_commitment",
    "m.mismatched_sas",
];

/// The words of somebody else may be a message, and a cancelled verification is told in the clear:
/// theirs becomes a code of the specification, and our sentence for it.
fn cancelled(info: &CancelInfo) -> FlowState {
    let code = foreign::known_word(info.cancel_code().as_str(), &CODES);
    let reason = if info.cancelled_by_us() {
        info.reason().to_owned()
    } else {
        reason(&CancelCode::from(code))
    };
    FlowState::Cancelled { code: code.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_told_by_its_flow() {
        let request = json!({"type": "m.room.message", "event_id": "$1", "room_id": "!r:x",
            "sender": "@a:x", "content": {"msgtype": REQUEST, "to": "@bot:x", "from_device": "D"}});
        let request = VerificationMessage::from_room_event(&request).expect("a request");
        assert!(request.is_request() && request.begins() && !request.ends());
        assert_eq!((request.flow_id.as_str(), request.to.as_deref()), ("$1", Some("@bot:x")));

        let mac = json!({"type": "m.key.verification.mac", "event_id": "$2", "room_id": "!r:x",
            "sender": "@a:x", "content": {"m.relates_to": {"event_id": "$1"}}});
        let mac = VerificationMessage::from_room_event(&mac).expect("a mac");
        assert!(mac.is_mac() && mac.flow_id == "$1");

        let start = json!({"type": "m.key.verification.start", "sender": "@a:x",
            "content": {"transaction_id": "t", "from_device": "D"}});
        assert!(VerificationMessage::from_to_device(&start).expect("a start").begins());
    }

    #[test]
    fn other_messages_are_none() {
        let text = json!({"type": "m.room.message", "event_id": "$1", "room_id": "!r:x",
            "sender": "@a:x", "content": {"msgtype": "m.text", "body": "hi"}});
        assert_eq!(VerificationMessage::from_room_event(&text), None);
        let key = json!({"type": "m.room_key", "sender": "@a:x", "content": {}});
        assert_eq!(VerificationMessage::from_to_device(&key), None);
    }
}
