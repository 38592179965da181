//! What a person with a program of their own sends: encrypted as it should be, with anything inside.

use anyhow::{Context as _, Result};
use matrix_sdk_crypto::CollectStrategy;
use ruma::UserId;
use serde_json::{Value, json};
use vodozemac::megolm::{GroupSession, SessionConfig};

use super::person::Person;

const MEGOLM: &str = "m.megolm.v1.aes-sha2";

impl Person {
    /// Says anything in a room, encrypted for everybody there.
    pub async fn say_event(&self, room: &str, kind: &str, content: &Value) -> Result<String> {
        let content = self.encrypt_raw(room, kind, content.to_string(), true).await?;
        Ok(self.fake.say(room, &self.user_id, "m.room.encrypted", None, content))
    }

    /// What a device is sent over Olm, as a to-device event of this person.
    pub async fn wrap(
        &self,
        bot: &str,
        device: &str,
        kind: &str,
        content: &Value,
    ) -> Result<Value> {
        let user = <&UserId>::try_from(bot)?;
        self.machine.update_tracked_users([user]).await?;
        self.flush().await?;
        if let Some((id, claim)) = self.machine.get_missing_sessions([user].into_iter()).await? {
            let answer = self.homeserver.send((&self.actor).into(), claim).await?;
            self.machine.mark_request_as_sent(&id, &answer).await?;
        }
        let its =
            self.machine.get_device(user, device.into(), None).await?.context("its device")?;
        let wrapped = its.encrypt_event_raw(kind, content, CollectStrategy::AllDevices).await?;
        let content: Value = serde_json::from_str(wrapped.json().get())?;
        Ok(json!({ "type": "m.room.encrypted", "sender": self.user_id, "content": content }))
    }

    /// Sends a to-device message inside Olm.
    pub async fn send_in_olm(
        &self,
        bot: &str,
        device: &str,
        kind: &str,
        content: &Value,
    ) -> Result<()> {
        let event = self.wrap(bot, device, kind, content).await?;
        self.fake.send_to_device(bot, device, &event);
        Ok(())
    }

    /// Says what no client says: `clear`, which need not be JSON, is encrypted as it is, in a Megolm
    /// session whose key the bot is given.
    pub async fn say_bytes(
        &self,
        room: &str,
        bot: &str,
        device: &str,
        clear: &str,
    ) -> Result<String> {
        let mut session = GroupSession::new(SessionConfig::version_1());
        let key = json!({ "algorithm": MEGOLM, "room_id": room,
            "session_id": session.session_id(), "session_key": session.session_key().to_base64() });
        self.send_in_olm(bot, device, "m.room_key", &key).await?;
        let content = json!({ "algorithm": MEGOLM, "sender_key": self.sender_key(),
            "device_id": self.device_id, "session_id": session.session_id(),
            "ciphertext": session.encrypt(clear).to_base64() });
        Ok(self.fake.say(room, &self.user_id, "m.room.encrypted", None, content))
    }
}
