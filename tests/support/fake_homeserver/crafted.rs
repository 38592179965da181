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

    /// A to-device message inside Olm. There must be an Olm session, as there is once a room key went.
    pub async fn send_in_olm(
        &self,
        bot: &str,
        device: &str,
        kind: &str,
        content: &Value,
    ) -> Result<()> {
        let user = <&UserId>::try_from(bot)?;
        let found = self.machine.get_device(user, device.into(), None).await?;
        let found = found.context("the bot's device")?;
        let sealed = found.encrypt_event_raw(kind, content, CollectStrategy::AllDevices).await?;
        let sealed: Value = serde_json::from_str(sealed.json().get())?;
        let event = json!({ "type": "m.room.encrypted", "sender": self.user_id,
            "content": sealed });
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
