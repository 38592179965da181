//! A human and a bot, and the homeserver between them done by hand.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use matrix_sdk_crypto::{
    CollectStrategy, DecryptionSettings, EncryptionSettings, EncryptionSyncChanges, OlmMachine,
    TrustRequirement,
    types::requests::{AnyIncomingResponse, AnyOutgoingRequest},
};
use ruma::{
    OwnedRoomId, OwnedUserId, RoomId, TransactionId, UserId,
    api::{
        IncomingResponse,
        client::{
            keys::{claim_keys, get_keys, upload_keys},
            sync::sync_events::DeviceLists,
            to_device::send_event_to_device,
        },
    },
    events::{
        AnyToDeviceEvent,
        room::{encryption::RoomEncryptionEventContent, history_visibility::HistoryVisibility},
    },
    serde::Raw,
};
use serde_json::{Value, json, value::to_raw_value};

pub const DECRYPTION: DecryptionSettings =
    DecryptionSettings { sender_device_trust_requirement: TrustRequirement::Untrusted };

/// One side.
pub struct Side {
    pub machine: OlmMachine,
    device_keys: Value,
    one_time_keys: Vec<(String, Value)>,
}

impl Side {
    /// With its keys uploaded.
    pub async fn new(machine: OlmMachine) -> Result<Self> {
        let mut this = Self { machine, device_keys: Value::Null, one_time_keys: Vec::new() };
        for request in this.machine.outgoing_requests().await? {
            let AnyOutgoingRequest::KeysUpload(upload) = request.request() else { continue };
            this.device_keys = json!(upload.device_keys);
            let keys = json!(upload.one_time_keys);
            this.one_time_keys =
                serde_json::from_value::<BTreeMap<String, Value>>(keys)?.into_iter().collect();
            let answer = json!({ "one_time_key_counts": { "signed_curve25519": 50 } });
            this.mark::<upload_keys::v3::Response>(request.request_id(), &answer).await?;
        }
        Ok(this)
    }

    async fn mark<R>(&self, id: &TransactionId, answer: &Value) -> Result<()>
    where
        R: IncomingResponse,
        for<'a> &'a R: Into<AnyIncomingResponse<'a>>,
    {
        let answer = R::try_from_http_response(axum::http::Response::new(answer.to_string()))
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        self.machine.mark_request_as_sent(id, &answer).await?;
        Ok(())
    }

    fn user(&self) -> OwnedUserId {
        self.machine.user_id().to_owned()
    }

    /// Learns the devices of `other`, and has an Olm session with it.
    pub async fn meet(&self, other: &mut Self) -> Result<()> {
        let user = other.user();
        let device = other.machine.device_id().to_owned();
        self.machine.update_tracked_users([user.as_ref()]).await?;
        let devices =
            json!({ "device_keys": { user.as_str(): { device.as_str(): other.device_keys } } });
        for request in self.machine.outgoing_requests().await? {
            if let AnyOutgoingRequest::KeysQuery(_) = request.request() {
                self.mark::<get_keys::v3::Response>(request.request_id(), &devices).await?;
            }
        }
        if let Some((id, _)) =
            self.machine.get_missing_sessions([user.as_ref()].into_iter()).await?
        {
            let (key, value) = other.one_time_keys.pop().context("a one-time key")?;
            let keys = json!({ user.as_str(): { device.as_str(): { key: value } } });
            let claimed = json!({ "one_time_keys": keys, "failures": {} });
            self.mark::<claim_keys::v3::Response>(&id, &claimed).await?;
        }
        Ok(())
    }

    /// The to-device message that gives `other` a room's key.
    pub async fn room_key(&self, room: &RoomId, other: &UserId) -> Result<Raw<AnyToDeviceEvent>> {
        let mut encryption = RoomEncryptionEventContent::with_recommended_defaults();
        encryption.rotation_period_msgs = Some(10_000_u32.into());
        let settings = EncryptionSettings::new(
            encryption,
            HistoryVisibility::Shared,
            CollectStrategy::AllDevices,
        );
        let mut shared = None;
        for request in self.machine.share_room_key(room, [other].into_iter(), settings).await? {
            let contents = request.messages.values().flat_map(BTreeMap::values);
            let content = contents.last().context("a message")?;
            let event = json!({ "type": "m.room.encrypted", "sender": self.user(),
                "content": content });
            shared = Some(Raw::from_json(to_raw_value(&event)?));
            let answer = send_event_to_device::v3::Response::new();
            self.machine.mark_request_as_sent(&request.txn_id, &answer).await?;
        }
        shared.context("a key to share")
    }

    /// Keys of that many new rooms.
    pub async fn room_keys(
        &self,
        count: usize,
        other: &UserId,
    ) -> Result<Vec<Raw<AnyToDeviceEvent>>> {
        let mut keys = Vec::with_capacity(count);
        for _ in 0..count {
            keys.push(self.room_key(&new_room()?, other).await?);
        }
        Ok(keys)
    }

    pub async fn receive(&self, to_device_events: Vec<Raw<AnyToDeviceEvent>>) -> Result<usize> {
        let changes = EncryptionSyncChanges {
            to_device_events,
            changed_devices: &DeviceLists::new(),
            one_time_keys_counts: &BTreeMap::new(),
            unused_fallback_keys: None,
            next_batch_token: None,
        };
        let (_, keys) = self.machine.receive_sync_changes(changes, &DECRYPTION).await?;
        Ok(keys.len())
    }
}

pub fn new_room() -> Result<OwnedRoomId> {
    Ok(RoomId::parse(format!("!{}:example.org", uuid::Uuid::new_v4().simple()))?)
}
