//! A human who verifies a bot by emoji, straight to its device.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use matrix_sdk_crypto::types::requests::OutgoingVerificationRequest;
use ruma::OwnedUserId;

use crate::human::Human;

impl Human {
    /// From the request to the end on both sides.
    pub async fn verify(&self, bot: &str, device: &str) -> Result<()> {
        let user = OwnedUserId::try_from(bot)?;
        self.know(&user).await?;
        let device = self.machine.get_device(&user, device.into(), None).await?;
        let (request, message) = device.context("the bot's device")?.request_verification();
        self.verification(&message).await?;
        self.until(|| request.is_ready() || request.is_cancelled()).await?;
        let (sas, message) = request.start_sas().await?.context("the bot is not willing")?;
        self.verification(&message).await?;
        self.until(|| sas.can_be_presented() || sas.is_cancelled()).await?;
        ensure!(sas.emoji().is_some(), "no emoji: {:?}", sas.cancel_info());
        let (messages, _) = sas.confirm().await?;
        for message in &messages {
            self.verification(message).await?;
        }
        self.until(|| sas.is_done() || sas.is_cancelled()).await?;
        ensure!(sas.is_done(), "it ended with {:?}", sas.cancel_info());
        Ok(())
    }

    /// Takes in what comes until `there`. Whoever waits for ever is broken off by the caller.
    async fn until(&self, there: impl Fn() -> bool) -> Result<()> {
        while !there() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.sync().await?;
        }
        Ok(())
    }

    async fn verification(&self, message: &OutgoingVerificationRequest) -> Result<()> {
        match message {
            OutgoingVerificationRequest::ToDevice(message) => self.to_device(message).await,
            OutgoingVerificationRequest::InRoom(_) => Ok(()),
        }
    }
}
