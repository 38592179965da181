//! A human's client, as far as cryptography goes: a real `OlmMachine` in memory, with an identity.

use std::{collections::HashSet, sync::Mutex};

use anyhow::{Context as _, Result};
use matrix_sdk_crypto::{
    CollectStrategy, DecryptionSettings, EncryptionSettings, EncryptionSyncChanges, OlmMachine,
    TrustRequirement,
    types::requests::{AnyOutgoingRequest, OutgoingRequest},
};
use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, TransactionId, UserId,
    api::client::{
        keys::{get_keys, upload_signing_keys},
        sync::sync_events::DeviceLists,
        to_device::send_event_to_device,
    },
    events::room::{encryption::RoomEncryptionEventContent, history_visibility::HistoryVisibility},
    serde::Raw,
};
use serde_json::{Value, json, value::to_raw_value};

use super::FakeHomeserver;
use crate::support::{poll, synapse::SERVER_NAME};
use greenshield::homeserver::{Actor, Homeserver};

pub(super) const DECRYPTION: DecryptionSettings =
    DecryptionSettings { sender_device_trust_requirement: TrustRequirement::Untrusted };
/// No test waits for its end: what fails a few times in a row is tried again after as many seconds.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// A message that was decrypted.
#[derive(Clone, Debug)]
pub struct Read {
    pub event_id: String,
    pub sender: String,
    pub body: String,
    /// The event that it answers.
    pub answers: Option<String>,
    pub session_id: String,
    /// The mark beside it, as Element shows it by default; `None` is good.
    pub shield: String,
}

pub struct Person {
    pub user_id: String,
    pub device_id: String,
    pub(super) machine: OlmMachine,
    pub(super) actor: Actor,
    pub(super) homeserver: Homeserver,
    pub(super) fake: FakeHomeserver,
    /// Events of verifications in rooms that were taken in.
    pub(super) heard: Mutex<HashSet<String>>,
}

impl Person {
    /// A person with one device, signed by an identity.
    pub async fn new(fake: &FakeHomeserver, name: &str) -> Result<Self> {
        let this = Self::device(fake, &format!("@{name}:{SERVER_NAME}"), "FIRST").await?;
        let identity = this.machine.bootstrap_cross_signing(false).await?;
        if let Some(keys) = identity.upload_keys_req {
            this.send(&keys).await?;
        }
        let keys = identity.upload_signing_keys_req;
        let mut request = upload_signing_keys::v3::Request::new();
        request.master_key = keys.master_key.map(|key| key.to_raw());
        request.self_signing_key = keys.self_signing_key.map(|key| key.to_raw());
        request.user_signing_key = keys.user_signing_key.map(|key| key.to_raw());
        this.homeserver.send((&this.actor).into(), request).await?;
        this.homeserver.send((&this.actor).into(), identity.upload_signatures_req).await?;
        this.flush().await?;
        Ok(this)
    }

    /// One more device of the same person, which nobody has signed.
    pub async fn another_device(&self, device_id: &str) -> Result<Self> {
        let this = Self::device(&self.fake, &self.user_id, device_id).await?;
        this.flush().await?;
        Ok(this)
    }

    async fn device(fake: &FakeHomeserver, user: &str, device: &str) -> Result<Self> {
        let user_id = UserId::parse(user)?;
        let actor = Actor { user_id: user_id.clone(), device_id: device.into() };
        let token = format!("token of {user}").into();
        let homeserver = Homeserver::new(&fake.url().parse()?, token, PATIENCE)?;
        let machine = OlmMachine::new(&user_id, &actor.device_id).await;
        homeserver.create_device(&actor, "a client").await?;
        let (user_id, device_id) = (user.to_owned(), device.to_owned());
        let heard = Mutex::default();
        Ok(Self { user_id, device_id, machine, actor, homeserver, fake: fake.clone(), heard })
    }

    /// A person with one device and no identity: quickly made, for crowds.
    pub async fn nameless(fake: &FakeHomeserver, name: &str) -> Result<Self> {
        let this = Self::device(fake, &format!("@{name}:{SERVER_NAME}"), "FIRST").await?;
        this.flush().await?;
        Ok(this)
    }

    /// Sends whatever the machine wants sent, messages for rooms left out.
    pub(super) async fn flush(&self) -> Result<()> {
        loop {
            let mut requests = self.machine.outgoing_requests().await?;
            requests.retain(|it| !matches!(it.request(), AnyOutgoingRequest::RoomMessage(_)));
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
        let me = (&self.actor).into();
        match request.request() {
            AnyOutgoingRequest::KeysUpload(keys) => {
                let answer = self.homeserver.send(me, keys.clone()).await?;
                self.machine.mark_request_as_sent(id, &answer).await?;
            }
            AnyOutgoingRequest::KeysQuery(query) => {
                let mut request = get_keys::v3::Request::new();
                request.device_keys = query.device_keys.clone();
                let answer = self.homeserver.send(me, request).await?;
                self.machine.mark_request_as_sent(id, &answer).await?;
            }
            AnyOutgoingRequest::KeysClaim(claim) => {
                let answer = self.homeserver.send(me, claim.clone()).await?;
                self.machine.mark_request_as_sent(id, &answer).await?;
            }
            AnyOutgoingRequest::ToDeviceRequest(message) => {
                let request = send_event_to_device::v3::Request::new_raw(
                    message.event_type.clone(),
                    message.txn_id.clone(),
                    message.messages.clone(),
                );
                let answer = self.homeserver.send(me, request).await?;
                self.machine.mark_request_as_sent(id, &answer).await?;
            }
            AnyOutgoingRequest::SignatureUpload(signatures) => {
                let answer = self.homeserver.send(me, signatures.clone()).await?;
                self.machine.mark_request_as_sent(id, &answer).await?;
            }
            AnyOutgoingRequest::RoomMessage(_) => {}
        }
        Ok(())
    }

    /// Takes in what came: to-device messages, and that everybody may have changed.
    pub async fn sync(&self) -> Result<()> {
        let messages = self.fake.take_inbox(&self.user_id, &self.device_id);
        let mut changed_devices = DeviceLists::new();
        changed_devices.changed = self.machine.tracked_users().await?.into_iter().collect();
        // The senders of room keys are looked at when these arrive: know them first.
        let senders = messages.iter().filter_map(|event| event["sender"].as_str());
        let senders: Vec<OwnedUserId> =
            senders.filter_map(|sender| OwnedUserId::try_from(sender).ok()).collect();
        self.machine.update_tracked_users(senders.iter().map(AsRef::as_ref)).await?;
        self.flush().await?;
        // One by one: of two copies of a room key that come at once, matrix-sdk-crypto 0.18 keeps the
        // later one, even if it opens less.
        for message in &messages {
            self.receive(Some(message), &DeviceLists::new()).await?;
        }
        self.receive(None, &changed_devices).await?;
        self.flush().await
    }

    async fn receive(&self, message: Option<&Value>, changed_devices: &DeviceLists) -> Result<()> {
        let message = message.map(|event| anyhow::Ok(Raw::from_json(to_raw_value(event)?)));
        let changes = EncryptionSyncChanges {
            to_device_events: message.transpose()?.into_iter().collect(),
            changed_devices,
            one_time_keys_counts: &std::collections::BTreeMap::new(),
            unused_fallback_keys: None,
            next_batch_token: None,
        };
        self.machine.receive_sync_changes(changes, &DECRYPTION).await?;
        Ok(())
    }

    pub async fn join(&self, room: &str) -> Result<()> {
        let room = OwnedRoomId::try_from(room)?;
        self.homeserver.join(&self.actor, (&*room).into()).await?;
        Ok(())
    }

    /// Says something, encrypted for everybody in the room; the event.
    pub async fn say(&self, room: &str, text: &str) -> Result<String> {
        let content = self.encrypt(room, text, true).await?;
        Ok(self.fake.say(room, &self.user_id, "m.room.encrypted", None, content))
    }

    /// The same, with a key that nobody is ever given. Also its session.
    pub async fn say_without_key(&self, room: &str, text: &str) -> Result<(String, Value)> {
        self.machine.discard_room_key(<&RoomId>::try_from(room)?).await?;
        let content = self.encrypt(room, text, false).await?;
        let sent = content.clone();
        Ok((self.fake.say(room, &self.user_id, "m.room.encrypted", None, content), sent))
    }

    /// The content of an encrypted message, its key having been given to everybody if `share`.
    pub async fn encrypt(&self, room: &str, text: &str, share: bool) -> Result<Value> {
        let content = json!({ "msgtype": "m.text", "body": text });
        self.encrypt_raw(room, "m.room.message", content.to_string(), share).await
    }

    /// The same for any content.
    pub async fn encrypt_raw(
        &self,
        room: &str,
        kind: &str,
        content: String,
        share: bool,
    ) -> Result<Value> {
        let room_id = <&RoomId>::try_from(room)?;
        let readers: Vec<OwnedUserId> = self
            .fake
            .readers(room)
            .into_iter()
            .map(OwnedUserId::try_from)
            .collect::<Result<_, _>>()?;
        let readers = || readers.iter().map(AsRef::as_ref);
        self.machine.update_tracked_users(readers()).await?;
        self.flush().await?;
        let me = || (&self.actor).into();
        if let Some((id, claim)) = self.machine.get_missing_sessions(readers()).await? {
            let answer = self.homeserver.send(me(), claim).await?;
            self.machine.mark_request_as_sent(&id, &answer).await?;
        }
        let settings = EncryptionSettings::new(
            RoomEncryptionEventContent::with_recommended_defaults(),
            HistoryVisibility::Shared,
            CollectStrategy::AllDevices,
        );
        for message in self.machine.share_room_key(room_id, readers(), settings).await? {
            if share {
                let request = send_event_to_device::v3::Request::new_raw(
                    message.event_type.clone(),
                    message.txn_id.clone(),
                    message.messages.clone(),
                );
                self.homeserver.send(me(), request).await?;
            }
            let answer = send_event_to_device::v3::Response::new();
            self.machine.mark_request_as_sent(&message.txn_id, &answer).await?;
        }
        let raw = Raw::from_json_string(content)?;
        let encrypted = self.machine.encrypt_room_event_raw(room_id, kind, &raw).await?;
        Ok(serde_json::from_str(encrypted.content.json().get())?)
    }

    /// What others said in the room, as far as this device can decrypt it, oldest first.
    pub async fn read(&self, room: &str) -> Result<Vec<Read>> {
        Ok(self.read_all(room).await?.0)
    }

    /// The same, and of what it cannot decrypt the event and why.
    pub async fn read_all(&self, room: &str) -> Result<(Vec<Read>, Vec<String>)> {
        self.sync().await?;
        let room_id = <&RoomId>::try_from(room)?;
        let (mut read, mut unreadable) = (Vec::new(), Vec::new());
        for event in self.fake.timeline(room) {
            if event["type"] != "m.room.encrypted" || event["sender"] == self.user_id {
                continue;
            }
            let raw = Raw::from_json(to_raw_value(&event)?);
            let decrypted = match self.machine.decrypt_room_event(&raw, room_id, &DECRYPTION).await
            {
                Ok(decrypted) => decrypted,
                Err(error) => {
                    let (id, sender) = (&event["event_id"], &event["sender"]);
                    unreadable.push(format!("{id} of {sender}: {error}"));
                    continue;
                }
            };
            let clear: Value = serde_json::from_str(decrypted.event.json().get())?;
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let answers = &clear["content"]["m.relates_to"]["m.in_reply_to"]["event_id"];
            let shield = decrypted.encryption_info.verification_state.to_shield_state_lax();
            read.push(Read {
                event_id: text(&event["event_id"]),
                sender: text(&event["sender"]),
                body: text(&clear["content"]["body"]),
                answers: answers.as_str().map(ToOwned::to_owned),
                session_id: text(&event["content"]["session_id"]),
                shield: format!("{shield:?}"),
            });
        }
        Ok((read, unreadable))
    }

    /// The answer to this message, once it is there and can be read.
    pub async fn answer_to(&self, room: &str, asked: &str) -> Result<Read> {
        poll::until("a readable answer", PATIENCE, async || {
            let read = self.read(room).await?;
            Ok(read.into_iter().find(|read| read.answers.as_deref() == Some(asked)))
        })
        .await
    }

    /// Asks `!ping`, and returns the answer.
    pub async fn ping(&self, room: &str) -> Result<Read> {
        let asked = self.say(room, "!ping").await?;
        self.answer_to(room, &asked).await.with_context(|| format!("!ping in {room}"))
    }

    /// Begins another Megolm session with the next message.
    pub async fn forget_key(&self, room: &str) -> Result<()> {
        self.machine.discard_room_key(<&RoomId>::try_from(room)?).await?;
        Ok(())
    }

    /// The Curve25519 key of this device.
    pub fn sender_key(&self) -> String {
        self.machine.identity_keys().curve25519.to_base64()
    }

    /// A room key that is refused to a device.
    pub async fn withhold(&self, bot: &str, device: &str, sent: &Value, room: &str, code: &str) {
        let event = json!({
            "type": "m.room_key.withheld",
            "sender": self.user_id,
            "content": {
                "algorithm": "m.megolm.v1.aes-sha2",
                "room_id": room,
                "session_id": sent["session_id"],
                "sender_key": self.sender_key(),
                "code": code,
                "reason": "because",
                "org.matrix.msgid": TransactionId::new(),
            },
        });
        self.fake.send_to_device(bot, device, &event);
    }
}
