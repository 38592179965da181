//! One bot of the ceiling: a machine in memory, and what waits for it. One task at a time works it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::Result;
use matrix_sdk_crypto::{
    CollectStrategy, EncryptionSettings, EncryptionSyncChanges, OlmMachine,
    types::requests::{AnyIncomingResponse, AnyOutgoingRequest, OutgoingRequest, ToDeviceRequest},
};
use reqwest::Method;
use ruma::{
    OneTimeKeyAlgorithm, OwnedDeviceId, OwnedUserId, RoomId, TransactionId,
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
use serde_json::{
    Value, json,
    value::{RawValue, to_raw_value},
};

use super::{NewBot, client::Client};
use crate::human::DECRYPTION;

/// What a transaction brings for a bot.
#[derive(Default)]
pub struct News {
    pub to_device: Vec<Box<RawValue>>,
    pub changed: Vec<String>,
    pub one_time_keys: Option<u32>,
    pub events: Vec<(String, Box<RawValue>)>,
}

pub struct Bot {
    pub user_id: OwnedUserId,
    device_id: OwnedDeviceId,
    machine: OlmMachine,
    client: Client,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    news: News,
    is_worked: bool,
}

impl Bot {
    /// A new bot with an identity, its keys published.
    pub async fn make(client: Client, bot: NewBot) -> Result<Self> {
        let user_id = OwnedUserId::try_from(bot.user_id)?;
        let device_id = OwnedDeviceId::from(bot.device_id);
        let machine = OlmMachine::new(&user_id, &device_id).await;
        machine.set_room_key_requests_enabled(false);
        let this = Self { user_id, device_id, machine, client, waiting: Mutex::default() };
        let path = ["devices", this.device_id.as_str()];
        this.call(Method::PUT, &path, Some(&json!({}))).await?;
        let identity = this.machine.bootstrap_cross_signing(false).await?;
        if let Some(keys) = &identity.upload_keys_req {
            this.send(keys).await?;
        }
        let keys = identity.upload_signing_keys_req;
        let keys = json!({ "master_key": keys.master_key, "self_signing_key": keys.self_signing_key,
            "user_signing_key": keys.user_signing_key });
        this.call(Method::POST, &["keys", "device_signing", "upload"], Some(&keys)).await?;
        let signatures = json!(identity.upload_signatures_req.signed_keys);
        this.call(Method::POST, &["keys", "signatures", "upload"], Some(&signatures)).await?;
        this.flush().await?;
        Ok(this)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts news to what waits; works it unless somebody does.
    pub fn tell(self: &Arc<Self>, news: News) {
        let mut waiting = self.lock();
        waiting.news.to_device.extend(news.to_device);
        waiting.news.changed.extend(news.changed);
        waiting.news.events.extend(news.events);
        waiting.news.one_time_keys = news.one_time_keys.or(waiting.news.one_time_keys);
        if !std::mem::replace(&mut waiting.is_worked, true) {
            let this = Arc::clone(self);
            tokio::spawn(async move { this.work().await });
        }
    }

    async fn work(&self) {
        loop {
            let news = {
                let mut waiting = self.lock();
                let news = std::mem::take(&mut waiting.news);
                if news.is_empty() {
                    waiting.is_worked = false;
                    return;
                }
                news
            };
            if let Err(error) = self.take(news).await {
                eprintln!("ceiling: {}: {error:#}", self.user_id);
            }
        }
    }

    async fn take(&self, news: News) -> Result<()> {
        if news.is_about_keys() {
            let mut changed_devices = DeviceLists::new();
            let changed = news.changed.into_iter();
            changed_devices.changed = changed.filter_map(|user| user.try_into().ok()).collect();
            let counts: BTreeMap<_, _> = news
                .one_time_keys
                .map(|left| (OneTimeKeyAlgorithm::SignedCurve25519, left.into()))
                .into_iter()
                .collect();
            let changes = EncryptionSyncChanges {
                to_device_events: news.to_device.into_iter().map(Raw::from_json).collect(),
                changed_devices: &changed_devices,
                one_time_keys_counts: &counts,
                unused_fallback_keys: None,
                next_batch_token: None,
            };
            self.machine.receive_sync_changes(changes, &DECRYPTION).await?;
        }
        for (room, event) in news.events {
            self.read(&room, event).await?;
        }
        self.flush().await
    }

    async fn read(&self, room: &str, event: Box<RawValue>) -> Result<()> {
        let room_id = <&RoomId>::try_from(room)?;
        let raw = Raw::from_json(event);
        let decrypted = self.machine.decrypt_room_event(&raw, room_id, &DECRYPTION).await?;
        let clear: Value = serde_json::from_str(decrypted.event.json().get())?;
        if clear["content"]["msgtype"] != "m.text" || clear["content"]["body"] != "!ping" {
            return Ok(());
        }
        let answer = json!({
            "msgtype": "m.notice",
            "body": "pong",
            "m.relates_to": { "m.in_reply_to": { "event_id": clear["event_id"] } },
            "m.mentions": { "user_ids": [clear["sender"]] },
        });
        self.say(room, room_id, &answer).await
    }

    async fn say(&self, room: &str, room_id: &RoomId, content: &Value) -> Result<()> {
        let me = (self.user_id.as_str(), self.device_id.as_str());
        let readers = self.client.readers(room, me).await?;
        let each = || readers.iter().map(AsRef::as_ref);
        self.machine.update_tracked_users(each()).await?;
        self.client.track(me.0, &readers);
        self.flush().await?;
        if let Some((id, claim)) = self.machine.get_missing_sessions(each()).await? {
            self.claim(&id, &claim).await?;
        }
        let settings = EncryptionSettings::new(
            RoomEncryptionEventContent::with_recommended_defaults(),
            HistoryVisibility::Shared,
            CollectStrategy::AllDevices,
        );
        for request in self.machine.share_room_key(room_id, each(), settings).await? {
            self.to_device(&request).await?;
        }
        let content = Raw::from_json(to_raw_value(content)?);
        let encrypted =
            self.machine.encrypt_room_event_raw(room_id, "m.room.message", &content).await?;
        let body = encrypted.content.json().get().as_bytes().to_vec();
        let txn_id = TransactionId::new();
        let path = ["rooms", room, "send", "m.room.encrypted", txn_id.as_str()];
        self.client.call(Method::PUT, &path, me, Some(body)).await?;
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        for request in self.machine.outgoing_requests().await? {
            self.send(&request).await?;
        }
        Ok(())
    }

    async fn send(&self, request: &OutgoingRequest) -> Result<()> {
        let id = request.request_id();
        match request.request() {
            AnyOutgoingRequest::KeysUpload(keys) => {
                let body = json!({ "device_keys": keys.device_keys,
                    "one_time_keys": keys.one_time_keys, "fallback_keys": keys.fallback_keys });
                self.post::<upload_keys::v3::Response>(id, &["keys", "upload"], &body).await
            }
            AnyOutgoingRequest::KeysQuery(query) => {
                let body = json!({ "device_keys": query.device_keys });
                self.post::<get_keys::v3::Response>(id, &["keys", "query"], &body).await
            }
            AnyOutgoingRequest::KeysClaim(claim) => self.claim(id, claim).await,
            AnyOutgoingRequest::ToDeviceRequest(message) => self.to_device(message).await,
            AnyOutgoingRequest::SignatureUpload(signatures) => {
                let body = json!(signatures.signed_keys);
                let path = ["keys", "signatures", "upload"];
                self.post::<upload_signatures::v3::Response>(id, &path, &body).await
            }
            AnyOutgoingRequest::RoomMessage(_) => Ok(()),
        }
    }

    async fn claim(&self, id: &TransactionId, claim: &claim_keys::v3::Request) -> Result<()> {
        let body = json!({ "one_time_keys": claim.one_time_keys });
        self.post::<claim_keys::v3::Response>(id, &["keys", "claim"], &body).await
    }

    async fn to_device(&self, message: &ToDeviceRequest) -> Result<()> {
        let kind = message.event_type.to_string();
        let path = ["sendToDevice", &kind, message.txn_id.as_str()];
        let body = json!({ "messages": message.messages });
        self.call(Method::PUT, &path, Some(&body)).await?;
        let answer = send_event_to_device::v3::Response::new();
        self.machine.mark_request_as_sent(&message.txn_id, &answer).await?;
        Ok(())
    }

    async fn post<R>(&self, id: &TransactionId, path: &[&str], body: &Value) -> Result<()>
    where
        R: IncomingResponse,
        for<'a> &'a R: Into<AnyIncomingResponse<'a>>,
    {
        let answer = self.call(Method::POST, path, Some(body)).await?;
        let answer = R::try_from_http_response(axum::http::Response::new(answer))
            .map_err(|error| anyhow::anyhow!("an answer does not parse: {error}"))?;
        self.machine.mark_request_as_sent(id, &answer).await?;
        Ok(())
    }

    async fn call(
        &self,
        method: Method,
        path: &[&str],
        body: Option<&Value>,
    ) -> Result<axum::body::Bytes> {
        let me = (self.user_id.as_str(), self.device_id.as_str());
        let body = body.map(serde_json::to_vec).transpose()?;
        self.client.call(method, path, me, body).await
    }
}

impl News {
    fn is_about_keys(&self) -> bool {
        !self.to_device.is_empty() || !self.changed.is_empty() || self.one_time_keys.is_some()
    }

    fn is_empty(&self) -> bool {
        !self.is_about_keys() && self.events.is_empty()
    }
}
