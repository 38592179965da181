//! A human's client, as far as cryptography goes: a real `OlmMachine` in memory. It reaches into the
//! homeserver directly, so that the clock of a measurement does not count its HTTP.

use std::{collections::BTreeMap, sync::Arc};

use anyhow::{Context as _, Result};
use matrix_sdk_crypto::{
    CollectStrategy, DecryptionSettings, EncryptionSettings, EncryptionSyncChanges, OlmMachine,
    TrustRequirement,
    types::requests::{AnyIncomingResponse, AnyOutgoingRequest, OutgoingRequest, ToDeviceRequest},
};
use ruma::{
    OwnedUserId, RoomId, TransactionId, UserId,
    api::{
        IncomingResponse,
        client::{
            keys::{claim_keys, get_keys, upload_keys, upload_signatures},
            sync::sync_events::DeviceLists,
            to_device::send_event_to_device,
        },
    },
    events::room::{encryption::RoomEncryptionEventContent, history_visibility::HistoryVisibility},
    serde::Raw,
};
use serde_json::{Value, json, value::to_raw_value};

use crate::homeserver::{
    Homeserver, SERVER_NAME,
    course::{Course, Ping},
    rooms::event,
    state::{Answer, Device},
};

pub const DECRYPTION: DecryptionSettings =
    DecryptionSettings { sender_device_trust_requirement: TrustRequirement::Untrusted };
const DEVICE: &str = "CLIENT";

pub struct Human {
    pub user_id: OwnedUserId,
    pub machine: OlmMachine,
    homeserver: Homeserver,
}

impl Human {
    /// A human with one device, signed by an identity.
    pub async fn new(homeserver: &Homeserver, name: &str) -> Result<Self> {
        let user_id = UserId::parse(format!("@{name}:{SERVER_NAME}"))?;
        let machine = OlmMachine::new(&user_id, DEVICE.into()).await;
        homeserver.with(|state| {
            let user = state.users.entry(user_id.to_string()).or_default();
            user.devices.insert(DEVICE.to_owned(), Device::default());
        });
        let this = Self { user_id, machine, homeserver: homeserver.clone() };
        let identity = this.machine.bootstrap_cross_signing(false).await?;
        if let Some(keys) = identity.upload_keys_req {
            this.send(&keys).await?;
        }
        let keys = identity.upload_signing_keys_req;
        let keys = json!({ "master_key": keys.master_key, "self_signing_key": keys.self_signing_key,
            "user_signing_key": keys.user_signing_key });
        answered(homeserver.with(|s| s.identity(this.name(), &json_of(&keys))))?;
        let signatures = json_of(&json!(identity.upload_signatures_req.signed_keys));
        answered(homeserver.with(|s| s.sign(&signatures)))?;
        this.flush().await?;
        Ok(this)
    }

    pub fn name(&self) -> &str {
        self.user_id.as_str()
    }

    /// Sends whatever the machine wants sent.
    pub async fn flush(&self) -> Result<()> {
        loop {
            let requests = self.machine.outgoing_requests().await?;
            if requests.is_empty() {
                return Ok(());
            }
            for request in requests {
                self.send(&request).await?;
            }
        }
    }

    async fn send(&self, request: &OutgoingRequest) -> Result<()> {
        let id = request.request_id();
        match request.request() {
            AnyOutgoingRequest::KeysUpload(keys) => {
                let body = upload_body(keys);
                let answer = self.homeserver.with(|s| s.upload(self.name(), DEVICE, &body));
                self.mark::<upload_keys::v3::Response>(id, answer).await
            }
            AnyOutgoingRequest::KeysQuery(query) => {
                let body = json_of(&json!({ "device_keys": query.device_keys }));
                let answer = self.homeserver.with(|s| {
                    let counted = s.calls;
                    let answer = s.query(self.name(), &body);
                    s.calls = counted;
                    answer
                });
                self.mark::<get_keys::v3::Response>(id, answer).await
            }
            AnyOutgoingRequest::KeysClaim(claim) => self.claim(id, claim).await,
            AnyOutgoingRequest::ToDeviceRequest(message) => self.to_device(message).await,
            AnyOutgoingRequest::SignatureUpload(signatures) => {
                let body = json_of(&json!(signatures.signed_keys));
                let answer = self.homeserver.with(|s| s.sign(&body));
                self.mark::<upload_signatures::v3::Response>(id, answer).await
            }
            AnyOutgoingRequest::RoomMessage(_) => Ok(()),
        }
    }

    async fn claim(&self, id: &TransactionId, claim: &claim_keys::v3::Request) -> Result<()> {
        let body = json_of(&json!({ "one_time_keys": claim.one_time_keys }));
        let answer = self.homeserver.with(|s| s.claim(&body));
        self.mark::<claim_keys::v3::Response>(id, answer).await
    }

    pub async fn to_device(&self, message: &ToDeviceRequest) -> Result<()> {
        let kind = message.event_type.to_string();
        let body = json_of(&json!({ "messages": message.messages }));
        answered(self.homeserver.with(|s| s.send_to_device(self.name(), &kind, &body)))?;
        let answer = send_event_to_device::v3::Response::new();
        self.machine.mark_request_as_sent(&message.txn_id, &answer).await?;
        Ok(())
    }

    async fn mark<R>(&self, id: &TransactionId, answer: Answer) -> Result<()>
    where
        R: IncomingResponse,
        for<'a> &'a R: Into<AnyIncomingResponse<'a>>,
    {
        let answer = axum::http::Response::new(answered(answer)?);
        let answer = R::try_from_http_response(answer)
            .map_err(|error| anyhow::anyhow!("an answer does not parse: {error}"))?;
        self.machine.mark_request_as_sent(id, &answer).await?;
        Ok(())
    }

    /// Learns a user's devices.
    pub async fn know(&self, user: &OwnedUserId) -> Result<()> {
        self.machine.update_tracked_users([user.as_ref()]).await?;
        self.flush().await
    }

    /// The same human logs in once more; nobody has signed that device.
    pub async fn another_device(&self) -> Result<()> {
        let device = "SECOND";
        let machine = OlmMachine::new(&self.user_id, device.into()).await;
        self.homeserver.with(|state| {
            let user = state.users.entry(self.user_id.to_string()).or_default();
            user.devices.insert(device.to_owned(), Device::default());
        });
        for request in machine.outgoing_requests().await? {
            if let AnyOutgoingRequest::KeysUpload(keys) = request.request() {
                let body = upload_body(keys);
                answered(self.homeserver.with(|s| s.upload(self.name(), device, &body)))?;
            }
        }
        Ok(())
    }

    /// Gives this room's key to `bots`: their devices are asked for and their one-time keys claimed.
    pub async fn share(&self, room: &str, bots: &[OwnedUserId]) -> Result<()> {
        let readers = || bots.iter().map(AsRef::as_ref);
        self.machine.update_tracked_users(readers()).await?;
        self.flush().await?;
        if let Some((id, claim)) = self.machine.get_missing_sessions(readers()).await? {
            self.claim(&id, &claim).await?;
        }
        let mut encryption = RoomEncryptionEventContent::with_recommended_defaults();
        // Humans' keys last a whole measurement: they are prepared before it.
        encryption.rotation_period_msgs = Some(10_000_u32.into());
        let settings = EncryptionSettings::new(
            encryption,
            HistoryVisibility::Shared,
            CollectStrategy::AllDevices,
        );
        let room = <&RoomId>::try_from(room)?;
        for message in self.machine.share_room_key(room, readers(), settings).await? {
            self.to_device(&message).await?;
        }
        Ok(())
    }

    /// A new key for the room with its next message.
    pub async fn discard_key(&self, room: &str) -> Result<()> {
        self.machine.discard_room_key(<&RoomId>::try_from(room)?).await?;
        Ok(())
    }

    /// An encrypted message, as the one at `index` of a course.
    pub async fn ping(
        &self,
        room: &Arc<str>,
        body: &str,
        course: u64,
        index: usize,
    ) -> Result<Ping> {
        let content = Raw::from_json(to_raw_value(&json!({ "msgtype": "m.text", "body": body }))?);
        let room_id = <&RoomId>::try_from(&**room)?;
        let encrypted =
            self.machine.encrypt_room_event_raw(room_id, "m.room.message", &content).await?;
        let id = Course::event_id(course, index);
        let content = encrypted.content.json().get();
        let event = event(room, self.name(), "m.room.encrypted", &id, None, content);
        let room = Arc::clone(room);
        Ok(Ping::new(room, event))
    }

    /// Takes in what came: to-device messages, and whose devices changed.
    pub async fn sync(&self) -> Result<()> {
        let messages = self.homeserver.with(|state| {
            let user = state.users.get_mut(self.name());
            let device = user.and_then(|user| user.devices.get_mut(DEVICE));
            device.map(|device| std::mem::take(&mut device.inbox)).unwrap_or_default()
        });
        let mut senders = Vec::new();
        let mut to_device_events = Vec::with_capacity(messages.len());
        for message in messages {
            let raw = serde_json::value::RawValue::from_string(message)?;
            let sender: Value = serde_json::from_str(raw.get())?;
            senders.extend(sender["sender"].as_str().and_then(|s| OwnedUserId::try_from(s).ok()));
            to_device_events.push(Raw::from_json(raw));
        }
        // The senders of room keys are looked at when these arrive: know them first.
        self.machine.update_tracked_users(senders.iter().map(AsRef::as_ref)).await?;
        self.flush().await?;
        let changes = EncryptionSyncChanges {
            to_device_events,
            changed_devices: &DeviceLists::new(),
            one_time_keys_counts: &BTreeMap::new(),
            unused_fallback_keys: None,
            next_batch_token: None,
        };
        self.machine.receive_sync_changes(changes, &DECRYPTION).await?;
        self.flush().await
    }

    /// What an answer says, decrypted.
    pub async fn read(&self, room: &str, sender: &str, content: &[u8]) -> Result<String> {
        let content = std::str::from_utf8(content)?;
        let raw = event(room, sender, "m.room.encrypted", "$answer", None, content);
        let raw = Raw::from_json(serde_json::value::RawValue::from_string(raw)?);
        let room = <&RoomId>::try_from(room)?;
        let decrypted = self.machine.decrypt_room_event(&raw, room, &DECRYPTION).await?;
        let clear: Value = serde_json::from_str(decrypted.event.json().get())?;
        let body = clear["content"]["body"].as_str();
        Ok(body.context("an answer without a body")?.to_owned())
    }
}

fn upload_body(keys: &upload_keys::v3::Request) -> Vec<u8> {
    json_of(&json!({ "device_keys": keys.device_keys, "one_time_keys": keys.one_time_keys,
        "fallback_keys": keys.fallback_keys }))
}

fn json_of(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn answered(answer: Answer) -> Result<axum::body::Bytes> {
    answer.map_err(|(status, code)| anyhow::anyhow!("the homeserver refused: {status} {code}"))
}
