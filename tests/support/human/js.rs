//! A human on matrix-js-sdk, the engine of Element Web, in a Node.js process of its own.

use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Device, Human, Invite, LoginOptions, NewRoom, PATIENCE, Phase, Seen, Shield, Trust,
    Undecryptable, Verification, Via, node::Node,
};
use crate::support::synapse::Credentials;

pub(super) struct JsHuman {
    user_id: String,
    node: Node,
}

impl JsHuman {
    pub(super) async fn log_in(account: &Credentials, options: LoginOptions) -> Result<Self> {
        let human = Self { user_id: account.user_id.clone(), node: Node::start(&account.user_id)? };
        let params = json!({
            "homeserver": account.homeserver,
            "user_id": account.user_id,
            "password": account.password,
            "exclude_insecure": options.exclude_insecure,
        });
        human.node.call::<Value>("login", params, PATIENCE).await?;
        Ok(human)
    }

    async fn flow(&self, method: &str, flow: &str) -> Result<()> {
        self.node.call::<Value>(method, json!({ "flow_id": flow }), PATIENCE).await.map(drop)
    }
}

fn millis(patience: Duration) -> u128 {
    patience.as_millis()
}

#[derive(Deserialize)]
struct RoomId {
    room_id: String,
}

#[derive(Deserialize)]
struct EventId {
    event_id: String,
}

#[derive(Deserialize)]
struct FlowId {
    flow_id: String,
}

#[derive(Deserialize)]
struct Events {
    events: Vec<Undecryptable>,
}

#[derive(Deserialize)]
struct Devices {
    devices: Vec<Device>,
}

#[async_trait]
impl Human for JsHuman {
    fn user_id(&self) -> &str {
        &self.user_id
    }

    async fn create_dm(&self, user_id: &str, encrypted: bool) -> Result<String> {
        let params = json!({ "user_id": user_id, "encrypted": encrypted });
        Ok(self.node.call::<RoomId>("create_dm", params, PATIENCE).await?.room_id)
    }

    async fn create_room(&self, room: NewRoom<'_>) -> Result<String> {
        let params = json!({
            "name": room.name, "encrypted": room.encrypted, "invite": room.invite,
            "history_visibility": room.history_visibility,
        });
        Ok(self.node.call::<RoomId>("create_room", params, PATIENCE).await?.room_id)
    }

    async fn invite(&self, room_id: &str, user_id: &str) -> Result<()> {
        let params = json!({ "room_id": room_id, "user_id": user_id });
        self.node.call::<Value>("invite", params, PATIENCE).await.map(drop)
    }

    async fn join(&self, room_id: &str) -> Result<()> {
        self.node.call::<Value>("join", json!({ "room_id": room_id }), PATIENCE).await.map(drop)
    }

    async fn leave(&self, room_id: &str) -> Result<()> {
        self.node.call::<Value>("leave", json!({ "room_id": room_id }), PATIENCE).await.map(drop)
    }

    async fn wait_invite(&self, from: Option<&str>, patience: Duration) -> Result<Invite> {
        let params = json!({ "from": from, "timeout_ms": millis(patience) });
        self.node.call("wait_invite", params, patience).await
    }

    async fn wait_member(
        &self,
        room_id: &str,
        user_id: &str,
        membership: &str,
        patience: Duration,
    ) -> Result<()> {
        let params = json!({
            "room_id": room_id, "user_id": user_id, "membership": membership,
            "timeout_ms": millis(patience),
        });
        self.node.call::<Value>("wait_member", params, patience).await.map(drop)
    }

    async fn send_text(&self, room_id: &str, body: &str) -> Result<String> {
        let params = json!({ "room_id": room_id, "body": body });
        Ok(self.node.call::<EventId>("send_text", params, PATIENCE).await?.event_id)
    }

    async fn send_raw(&self, room_id: &str, event_type: &str, content: Value) -> Result<String> {
        let params = json!({ "room_id": room_id, "type": event_type, "content": content });
        Ok(self.node.call::<EventId>("send_raw", params, PATIENCE).await?.event_id)
    }

    async fn wait_message(
        &self,
        room_id: &str,
        sender: &str,
        body: Option<&str>,
        patience: Duration,
    ) -> Result<Seen> {
        let params = json!({
            "room_id": room_id, "sender": sender, "body": body, "timeout_ms": millis(patience),
        });
        self.node.call("wait_message", params, patience).await
    }

    async fn utd_events(&self, room_id: &str) -> Result<Vec<Undecryptable>> {
        let params = json!({ "room_id": room_id });
        Ok(self.node.call::<Events>("utd_events", params, PATIENCE).await?.events)
    }

    async fn shield(&self, room_id: &str, event_id: &str) -> Result<Shield> {
        self.node
            .call("shield", json!({ "room_id": room_id, "event_id": event_id }), PATIENCE)
            .await
    }

    async fn user_trust(&self, user_id: &str) -> Result<Trust> {
        self.node.call("user_trust", json!({ "user_id": user_id }), PATIENCE).await
    }

    async fn wait_user_trust(
        &self,
        user_id: &str,
        verified: bool,
        patience: Duration,
    ) -> Result<Trust> {
        let params = json!({
            "user_id": user_id, "verified": verified, "timeout_ms": millis(patience),
        });
        self.node.call("wait_user_trust", params, patience).await
    }

    async fn devices(&self, user_id: &str) -> Result<Vec<Device>> {
        let params = json!({ "user_id": user_id });
        Ok(self.node.call::<Devices>("devices", params, PATIENCE).await?.devices)
    }

    async fn request_verification(&self, user_id: &str, via: Via<'_>) -> Result<String> {
        let params = match via {
            Via::Room(room) => json!({ "user_id": user_id, "via": "room", "room_id": room }),
            Via::ToDevice(device) => {
                json!({ "user_id": user_id, "via": "to_device", "device_ids": [device] })
            }
        };
        Ok(self.node.call::<FlowId>("request_verification", params, PATIENCE).await?.flow_id)
    }

    async fn wait_incoming_verification(&self, from: &str, patience: Duration) -> Result<String> {
        let params = json!({ "from": from, "timeout_ms": millis(patience) });
        Ok(self.node.call::<FlowId>("wait_incoming_verification", params, patience).await?.flow_id)
    }

    async fn accept_verification(&self, flow: &str) -> Result<()> {
        self.flow("accept_verification", flow).await
    }

    async fn wait_verification(
        &self,
        flow: &str,
        phase: Phase,
        patience: Duration,
    ) -> Result<Verification> {
        let params = json!({ "flow_id": flow, "phase": phase, "timeout_ms": millis(patience) });
        self.node.call("wait_verification", params, patience).await
    }

    async fn start_sas(&self, flow: &str) -> Result<()> {
        self.flow("start_sas", flow).await
    }

    async fn confirm_sas(&self, flow: &str) -> Result<()> {
        self.flow("confirm_sas", flow).await
    }

    async fn mismatch_sas(&self, flow: &str) -> Result<()> {
        self.flow("mismatch_sas", flow).await
    }

    async fn cancel_verification(&self, flow: &str) -> Result<()> {
        self.flow("cancel_verification", flow).await
    }

    async fn stop(&self) -> Result<()> {
        self.node.call::<Value>("stop", json!({}), PATIENCE).await.map(drop)
    }
}
