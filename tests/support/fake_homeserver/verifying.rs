//! A person who verifies a bot by emoji, straight to its device.

use anyhow::{Context as _, Result, ensure};
use matrix_sdk_crypto::{
    Sas, UserIdentity, VerificationRequest, types::requests::OutgoingVerificationRequest,
};
use ruma::{UserId, api::client::to_device::send_event_to_device};

use super::person::{PATIENCE, Person};
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
        let mut sas: Option<Sas> = None;
        let mut confirmed = false;
        let mut wait = poll::Wait::new("the verification's end", PATIENCE);
        loop {
            self.sync().await?;
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

    /// Starts the comparison, once the bot is ready; returns once there are emoji to compare.
    pub async fn compare(&self, request: &VerificationRequest) -> Result<Sas> {
        self.until("the bot to be ready", || request.is_ready()).await?;
        let (sas, message) = request.start_sas().await?.context("a comparison")?;
        self.verification(&message).await?;
        self.until("emoji", || sas.can_be_presented() || sas.is_cancelled()).await?;
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
        self.until("the verification's end", || sas.is_done() || sas.is_cancelled()).await?;
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

    async fn until(&self, what: &str, there: impl Fn() -> bool) -> Result<()> {
        poll::until(what, PATIENCE, async || {
            self.sync().await?;
            Ok(there().then_some(()))
        })
        .await
    }

    async fn verification(&self, message: &OutgoingVerificationRequest) -> Result<()> {
        let OutgoingVerificationRequest::ToDevice(message) = message else { return Ok(()) };
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
