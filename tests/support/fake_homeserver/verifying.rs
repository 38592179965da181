//! A person who verifies a bot by emoji, straight to its device or in a room.

use anyhow::{Context as _, Result, bail, ensure};
use matrix_sdk_crypto::{
    Sas, UserIdentity, VerificationRequest,
    types::requests::{AnyOutgoingRequest, OutgoingVerificationRequest},
};
use ruma::{
    OwnedEventId, RoomId, UserId,
    api::client::{message::send_message_event, to_device::send_event_to_device},
    events::{AnyMessageLikeEvent, MessageLikeEventContent as _},
    serde::Raw,
};
use serde_json::{Value, value::to_raw_value};

use super::person::{DECRYPTION, PATIENCE, Person};
use crate::support::poll;

/// How a verification ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Done,
    /// With its code.
    Cancelled(String),
}

impl Person {
    /// A verification from its request to its end, whatever becomes of the other side meanwhile.
    pub async fn verify(&self, bot: &str, device: &str) -> Result<End> {
        let request = self.ask(bot, device).await?;
        self.follow(&request).await
    }

    /// The same in an encrypted room, as Element does it.
    pub async fn verify_in(&self, room: &str, bot: &str) -> Result<End> {
        let request = self.ask_in(room, bot).await?;
        self.follow(&request).await
    }

    async fn follow(&self, request: &VerificationRequest) -> Result<End> {
        let room = request.room_id().map(RoomId::as_str);
        let mut sas: Option<Sas> = None;
        let mut confirmed = false;
        let mut wait = poll::Wait::new("the verification's end", PATIENCE);
        loop {
            self.look(room).await?;
            if let Some(info) = request.cancel_info().or_else(|| sas.as_ref()?.cancel_info()) {
                return Ok(End::Cancelled(info.cancel_code().to_string()));
            }
            match &sas {
                None if request.is_ready() => {
                    let (begun, message) = request.start_sas().await?.context("a comparison")?;
                    self.verification(&message).await?;
                    sas = Some(begun);
                }
                Some(sas) if sas.can_be_presented() && !confirmed => {
                    for message in &sas.confirm().await?.0 {
                        self.verification(message).await?;
                    }
                    confirmed = true;
                }
                Some(sas) if sas.is_done() => return Ok(End::Done),
                _ => {}
            }
            wait.again().await?;
        }
    }

    /// Asks a bot's device to be verified.
    pub async fn ask(&self, bot: &str, device: &str) -> Result<VerificationRequest> {
        let user = <&UserId>::try_from(bot)?;
        let device = self.machine.get_device(user, device.into(), None).await?;
        let (request, message) = device.context("the bot's device")?.request_verification();
        self.verification(&message).await?;
        Ok(request)
    }

    /// Asks a bot in a room.
    pub async fn ask_in(&self, room: &str, bot: &str) -> Result<VerificationRequest> {
        // One that is done would be in the way of the next.
        self.sync().await?;
        let identity = self.machine.get_identity(<&UserId>::try_from(bot)?, None).await?;
        let Some(UserIdentity::Other(identity)) = identity else { bail!("no identity of {bot}") };
        let content = serde_json::to_value(identity.verification_request_content(None))?;
        let event_id =
            OwnedEventId::try_from(self.say_event(room, "m.room.message", &content).await?)?;
        Ok(identity.request_verification(<&RoomId>::try_from(room)?, &event_id, None))
    }

    /// Takes in what came, and what was said in the room of a verification.
    async fn look(&self, room: Option<&str>) -> Result<()> {
        self.sync().await?;
        match room {
            Some(room) => self.hear(room).await,
            None => Ok(()),
        }
    }

    /// Takes in what others said of verifications in a room, and says what follows from it.
    async fn hear(&self, room: &str) -> Result<()> {
        let room_id = <&RoomId>::try_from(room)?;
        for event in self.fake.timeline(room) {
            let id = event["event_id"].as_str().unwrap_or_default();
            let is_known = self.heard.lock().expect("a lock").contains(id);
            if is_known || event["type"] != "m.room.encrypted" || event["sender"] == self.user_id {
                continue;
            }
            let raw = Raw::from_json(to_raw_value(&event)?);
            let clear = self.machine.decrypt_room_event(&raw, room_id, &DECRYPTION).await;
            // Its key may still come.
            let Ok(clear) = clear else { continue };
            self.heard.lock().expect("a lock").insert(id.to_owned());
            let mut clear: Value = serde_json::from_str(clear.event.json().get())?;
            clear["room_id"] = room.into();
            if let Ok(clear) = serde_json::from_value::<AnyMessageLikeEvent>(clear) {
                self.machine.receive_verification_event(&clear).await?;
            }
        }
        for request in self.machine.outgoing_requests().await? {
            if let AnyOutgoingRequest::RoomMessage(message) = request.request() {
                self.verification(&message.as_ref().clone().into()).await?;
            }
        }
        Ok(())
    }

    /// Starts the comparison, once the bot is ready; returns once there are emoji to compare.
    pub async fn compare(&self, request: &VerificationRequest) -> Result<Sas> {
        let room = request.room_id().map(RoomId::as_str);
        self.until("the bot to be ready", room, || request.is_ready()).await?;
        let (sas, message) = request.start_sas().await?.context("a comparison")?;
        self.verification(&message).await?;
        self.until("emoji", room, || sas.can_be_presented() || sas.is_cancelled()).await?;
        ensure!(sas.emoji().is_some(), "{:?}", sas.cancel_info());
        Ok(sas)
    }

    /// Says that the emoji match, and waits until both sides are done.
    pub async fn confirm(&self, sas: &Sas) -> Result<()> {
        let (messages, signatures) = sas.confirm().await?;
        for message in &messages {
            self.verification(message).await?;
        }
        ensure!(signatures.is_none(), "the bot has not confirmed yet");
        let room = sas.room_id().map(RoomId::as_str);
        let over = || sas.is_done() || sas.is_cancelled();
        self.until("the verification's end", room, over).await?;
        ensure!(sas.is_done(), "{:?}", sas.cancel_info());
        Ok(())
    }

    /// Until this person's client counts the bot as verified.
    pub async fn wait_verified(&self, bot: &str) -> Result<()> {
        poll::until("the bot to count as verified", PATIENCE, async || {
            self.sync().await?;
            let identity = self.machine.get_identity(<&UserId>::try_from(bot)?, None).await?;
            let verified =
                matches!(identity, Some(UserIdentity::Other(other)) if other.is_verified());
            Ok(verified.then_some(()))
        })
        .await
    }

    async fn until(&self, what: &str, room: Option<&str>, there: impl Fn() -> bool) -> Result<()> {
        poll::until(what, PATIENCE, async || {
            self.look(room).await?;
            Ok(there().then_some(()))
        })
        .await
    }

    async fn verification(&self, message: &OutgoingVerificationRequest) -> Result<()> {
        let message = match message {
            OutgoingVerificationRequest::ToDevice(message) => message,
            OutgoingVerificationRequest::InRoom(message) => {
                let content = serde_json::to_value(&message.content)?;
                let kind = message.content.event_type().to_string();
                let sent = self.say_event(message.room_id.as_str(), &kind, &content).await?;
                let answer = send_message_event::v3::Response::new(sent.try_into()?);
                self.machine.mark_request_as_sent(&message.txn_id, &answer).await?;
                return Ok(());
            }
        };
        let request = send_event_to_device::v3::Request::new_raw(
            message.event_type.clone(),
            message.txn_id.clone(),
            message.messages.clone(),
        );
        let answer = self.homeserver.send((&self.actor).into(), request).await?;
        self.machine.mark_request_as_sent(&message.txn_id, &answer).await?;
        Ok(())
    }
}
