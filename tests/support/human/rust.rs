//! A human on matrix-rust-sdk, the engine of Element X, in this process and in memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use async_trait::async_trait;
use matrix_sdk::{
    Client, Room, RoomState,
    encryption::{identities::UserIdentity, verification::VerificationRequest},
    ruma::{
        EventId, RoomId, UserId,
        api::client::room::create_room::v3::{Request as CreateRoom, RoomPreset},
        assign,
        events::{
            InitialStateEvent, room::encryption::RoomEncryptionEventContent,
            room::history_visibility::RoomHistoryVisibilityEventContent,
            room::message::RoomMessageEventContent,
        },
    },
};
use serde_json::Value;
use tokio::task::JoinHandle;

use super::{
    Colour, Device, Human, Invite, LoginOptions, NewRoom, PATIENCE, Phase, Seen, Shield, Trust,
    Undecryptable, Verification, Via, flow,
    room_log::{self, RoomLog},
    session,
};
use crate::support::{poll::Wait, synapse::Credentials};

/// How long a change of somebody's keys may take to be announced.
const ASK_ANEW: Duration = Duration::from_secs(10);

pub(super) struct RustHuman {
    client: Client,
    user_id: String,
    log: Arc<RoomLog>,
    flows: Mutex<HashMap<String, VerificationRequest>>,
    sync: JoinHandle<()>,
}

impl RustHuman {
    pub(super) async fn log_in(account: &Credentials, options: LoginOptions) -> Result<Self> {
        let (client, log, sync) = session::open(account, options).await?;
        Ok(Self { client, user_id: account.user_id.clone(), log, flows: Mutex::default(), sync })
    }

    fn room(&self, room_id: &str) -> Result<Room> {
        let room_id = <&RoomId>::try_from(room_id)?;
        self.client
            .get_room(room_id)
            .with_context(|| format!("{} is not in {room_id}", self.user_id))
    }

    fn remember(&self, request: VerificationRequest) -> String {
        let flow = request.flow_id().to_owned();
        let mut flows = self.flows.lock().expect("no holder of this lock panics");
        flows.insert(flow.clone(), request);
        flow
    }

    fn request(&self, flow: &str) -> Result<VerificationRequest> {
        let flows = self.flows.lock().expect("no holder of this lock panics");
        flows.get(flow).cloned().with_context(|| format!("{} knows no flow {flow}", self.user_id))
    }

    async fn create(&self, request: CreateRoom) -> Result<String> {
        let room = self.client.create_room(request).await?;
        self.joined(&room).await?;
        Ok(room.room_id().to_string())
    }

    /// Until the sync has brought the room: before, its encryption and members are not known.
    async fn joined(&self, room: &Room) -> Result<()> {
        let what = format!("{} to see {}", self.user_id, room.room_id());
        let mut wait = Wait::new(what, PATIENCE);
        while room.state() != RoomState::Joined || !room.is_synced() {
            wait.again().await?;
        }
        Ok(())
    }
}

#[async_trait]
impl Human for RustHuman {
    fn user_id(&self) -> &str {
        &self.user_id
    }

    async fn create_dm(&self, user_id: &str, encrypted: bool) -> Result<String> {
        let encryption = || {
            let content = RoomEncryptionEventContent::with_recommended_defaults();
            InitialStateEvent::with_empty_state_key(content).to_raw_any()
        };
        self.create(assign!(CreateRoom::new(), {
            invite: vec![user_id.try_into()?],
            is_direct: true,
            preset: Some(RoomPreset::TrustedPrivateChat),
            initial_state: encrypted.then(encryption).into_iter().collect(),
        }))
        .await
    }

    async fn create_room(&self, room: NewRoom<'_>) -> Result<String> {
        let mut request = CreateRoom::new();
        request.preset = Some(RoomPreset::PrivateChat);
        request.name = room.name.map(ToOwned::to_owned);
        request.invite =
            room.invite.iter().copied().map(TryInto::try_into).collect::<Result<_, _>>()?;
        if room.encrypted {
            let content = RoomEncryptionEventContent::with_recommended_defaults();
            let event = InitialStateEvent::with_empty_state_key(content);
            request.initial_state.push(event.to_raw_any());
        }
        if let Some(visibility) = room.history_visibility {
            let content = RoomHistoryVisibilityEventContent::new(visibility.into());
            let event = InitialStateEvent::with_empty_state_key(content);
            request.initial_state.push(event.to_raw_any());
        }
        self.create(request).await
    }

    async fn invite(&self, room_id: &str, user_id: &str) -> Result<()> {
        Ok(self.room(room_id)?.invite_user_by_id(user_id.try_into()?).await?)
    }

    async fn join(&self, room_id: &str) -> Result<()> {
        let room = self.client.join_room_by_id(room_id.try_into()?).await?;
        // The client calls the room unknown again if a sync that brought it was handled while it
        // joined; then only something new there makes it look again.
        room.typing_notice(true).await?;
        self.joined(&room).await
    }

    async fn leave(&self, room_id: &str) -> Result<()> {
        Ok(self.room(room_id)?.leave().await?)
    }

    async fn wait_invite(&self, from: Option<&str>, patience: Duration) -> Result<Invite> {
        let what = format!("{} to be invited by {}", self.user_id, from.unwrap_or("anybody"));
        let mut wait = Wait::new(what, patience);
        loop {
            for room in self.client.invited_rooms() {
                // Without the member event of the invitation it has not arrived completely.
                let Ok(details) = room.invite_details().await else {
                    continue;
                };
                if from.is_none_or(|from| details.inviter_id == from) {
                    // `encryption_state` is "unknown" before one joins; the preview has the event.
                    let encryption =
                        room.get_state_event_static::<RoomEncryptionEventContent>().await?;
                    return Ok(Invite {
                        room_id: room.room_id().to_string(),
                        is_direct: room.is_direct().await?,
                        inviter: details.inviter_id.to_string(),
                        encrypted: encryption.is_some(),
                    });
                }
            }
            wait.again().await?;
        }
    }

    async fn wait_member(
        &self,
        room_id: &str,
        user_id: &str,
        membership: &str,
        patience: Duration,
    ) -> Result<()> {
        let room = self.room(room_id)?;
        let user_id = <&UserId>::try_from(user_id)?;
        let what = format!("{} to see {membership} of {user_id} in {room_id}", self.user_id);
        let mut wait = Wait::new(what, patience);
        loop {
            let member = room.get_member(user_id).await?;
            if member.is_some_and(|seen| seen.membership().as_str() == membership) {
                return Ok(());
            }
            wait.again().await?;
        }
    }

    async fn send_text(&self, room_id: &str, body: &str) -> Result<String> {
        let content = RoomMessageEventContent::text_plain(body);
        let sent = self.room(room_id)?.send(content).await?;
        Ok(sent.response.event_id.to_string())
    }

    async fn send_raw(&self, room_id: &str, event_type: &str, content: Value) -> Result<String> {
        let sent = self.room(room_id)?.send_raw(event_type, content).await?;
        Ok(sent.response.event_id.to_string())
    }

    async fn wait_message(
        &self,
        room_id: &str,
        sender: &str,
        body: Option<&str>,
        patience: Duration,
    ) -> Result<Seen> {
        let id = <&RoomId>::try_from(room_id)?;
        let wanted = body.map_or_else(|| "a message".to_owned(), |body| format!("{body:?}"));
        let what = format!("{} to read {wanted} of {sender} in {room_id}", self.user_id);
        let mut wait = Wait::new(what, patience);
        loop {
            let events = self.log.events(id);
            if let Some(mut seen) = events.iter().find_map(|event| message(event, sender, body)) {
                seen.shield = self.shield(room_id, &seen.event_id).await?;
                return Ok(seen);
            }
            if let Err(error) = wait.again().await {
                let undecryptable = self.utd_events(room_id).await?;
                return Err(error.context(format!("could not decrypt: {undecryptable:?}")));
            }
        }
    }

    async fn utd_events(&self, room_id: &str) -> Result<Vec<Undecryptable>> {
        let events = self.log.events(room_id.try_into()?);
        let stuck = events.iter().filter(|event| event.kind.is_utd()).map(|event| Undecryptable {
            event_id: event.event_id().map(Into::into).unwrap_or_default(),
            sender: event.sender().map(Into::into).unwrap_or_default(),
            reason: room_log::utd_reason(event),
        });
        Ok(stuck.collect())
    }

    async fn shield(&self, room_id: &str, event_id: &str) -> Result<Shield> {
        let room = self.room(room_id)?;
        let event_id = <&EventId>::try_from(event_id)?;
        let events = self.log.events(room.room_id());
        let event = events
            .into_iter()
            .find(|event| event.event_id().as_deref() == Some(event_id))
            .with_context(|| format!("{} has not seen {event_id}", self.user_id))?;
        if event.encryption_info().is_none() && room.encryption_state().is_encrypted() {
            // The SDK has no opinion on plain events; this mark is Element's own.
            return Ok(Shield { colour: Colour::Red, reason: Some("SENT_IN_CLEAR".to_owned()) });
        }
        // Asked anew: trust may have changed since the event was decrypted.
        let now = match (event.kind.session_id(), event.sender()) {
            (Some(session), Some(sender)) => room.get_encryption_info(session, &sender).await,
            _ => None,
        };
        Ok(room_log::shield(now.as_ref().or(event.encryption_info()).map(AsRef::as_ref)))
    }

    async fn user_trust(&self, user_id: &str) -> Result<Trust> {
        let identity = flow::identity(&self.client, user_id.try_into()?).await?;
        Ok(Trust {
            verified: identity.as_ref().is_some_and(UserIdentity::is_verified),
            has_identity: identity.is_some(),
            msk: identity
                .and_then(|identity| identity.master_key().get_first_key())
                .map(|key| key.to_base64()),
        })
    }

    async fn wait_user_trust(
        &self,
        user_id: &str,
        verified: bool,
        patience: Duration,
    ) -> Result<Trust> {
        let what = format!("verified={verified} of {user_id} for {}", self.user_id);
        let mut wait = Wait::new(what, patience);
        let mut asked = Instant::now();
        loop {
            let trust = self.user_trust(user_id).await?;
            if trust.verified == verified {
                return Ok(trust);
            }
            // A homeserver can lose the announcement of a signature, and a query that was under way
            // meanwhile brings the state before: a human would open the client anew.
            if asked.elapsed() > ASK_ANEW {
                self.client.encryption().request_user_identity(user_id.try_into()?).await?;
                asked = Instant::now();
            }
            wait.again().await.with_context(|| format!("{trust:?}"))?;
        }
    }

    async fn devices(&self, user_id: &str) -> Result<Vec<Device>> {
        let user_id = <&UserId>::try_from(user_id)?;
        // Fetches the list of a user who is not tracked yet.
        flow::identity(&self.client, user_id).await?;
        let devices = self.client.encryption().get_user_devices(user_id).await?;
        let devices = devices.devices().map(|device| Device {
            device_id: device.device_id().to_string(),
            ed25519: device.ed25519_key().map(|key| key.to_base64()),
            signed_by_owner: device.is_cross_signed_by_owner(),
        });
        Ok(devices.collect())
    }

    async fn request_verification(&self, user_id: &str, via: Via<'_>) -> Result<String> {
        let user_id = <&UserId>::try_from(user_id)?;
        Ok(self.remember(flow::request(&self.client, user_id, via).await?))
    }

    async fn wait_incoming_verification(&self, from: &str, patience: Duration) -> Result<String> {
        let sender = <&UserId>::try_from(from)?;
        let what = format!("{} to be asked for verification by {from}", self.user_id);
        let mut wait = Wait::new(what, patience);
        loop {
            while let Some(flow) = self.log.take_request(from) {
                // None for a request that is too old, or not for us.
                let encryption = self.client.encryption();
                if let Some(request) = encryption.get_verification_request(sender, flow).await {
                    return Ok(self.remember(request));
                }
            }
            wait.again().await?;
        }
    }

    async fn accept_verification(&self, flow: &str) -> Result<()> {
        Ok(self.request(flow)?.accept_with_methods(flow::methods()).await?)
    }

    async fn wait_verification(
        &self,
        flow: &str,
        phase: Phase,
        patience: Duration,
    ) -> Result<Verification> {
        let request = self.request(flow)?;
        let what = format!("{} to reach {phase:?} in {flow}", self.user_id);
        let mut wait = Wait::new(what, patience);
        loop {
            if let Some(reached) = flow::reached(&request, phase).await? {
                return Ok(reached);
            }
            wait.again().await?;
        }
    }

    async fn start_sas(&self, flow: &str) -> Result<()> {
        self.request(flow)?.start_sas().await?.context("the other side cannot do SAS")?;
        Ok(())
    }

    async fn confirm_sas(&self, flow: &str) -> Result<()> {
        Ok(flow::sas(&self.request(flow)?)?.confirm().await?)
    }

    async fn mismatch_sas(&self, flow: &str) -> Result<()> {
        Ok(flow::sas(&self.request(flow)?)?.mismatch().await?)
    }

    async fn cancel_verification(&self, flow: &str) -> Result<()> {
        Ok(self.request(flow)?.cancel().await?)
    }

    async fn stop(&self) -> Result<()> {
        self.sync.abort();
        Ok(())
    }
}

impl Drop for RustHuman {
    fn drop(&mut self) {
        self.sync.abort();
    }
}

/// The message that this event is, if its sender and body are the wanted ones.
fn message(
    event: &matrix_sdk::deserialized_responses::TimelineEvent,
    sender: &str,
    body: Option<&str>,
) -> Option<Seen> {
    let json = room_log::json(event);
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    let seen = Seen {
        event_id: text(&json["event_id"])?,
        body: text(&json["content"]["body"])?,
        msgtype: text(&json["content"]["msgtype"])?,
        encrypted: event.encryption_info().is_some(),
        decrypted: event.encryption_info().is_some(),
        shield: room_log::shield(event.encryption_info().map(AsRef::as_ref)),
    };
    let wanted = json["type"] == "m.room.message"
        && json["sender"] == sender
        && seen.msgtype != "m.key.verification.request"
        && body.is_none_or(|body| seen.body == body);
    wanted.then_some(seen)
}
