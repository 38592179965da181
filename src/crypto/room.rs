//! Room messages: decrypting one, giving a room key to everybody who needs it, encrypting one.

use matrix_sdk_common::deserialized_responses::{VerificationLevel, VerificationState};
use matrix_sdk_crypto::{
    CollectStrategy, EncryptionSettings, MegolmError, types::requests::ToDeviceRequest,
};
use ruma::{
    OwnedTransactionId, OwnedUserId, RoomId,
    api::client::keys::claim_keys,
    events::room::{encryption::RoomEncryptionEventContent, history_visibility::HistoryVisibility},
    serde::Raw,
};
use serde_json::Value;
use std::{sync::Arc, time::SystemTime};

use super::{BotMachine, CryptoError, DECRYPTION};
use crate::model::foreign;

/// Why an event cannot be decrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Undecryptable {
    /// Its key has not come; it may.
    KeyMissing,
    /// The sender's client refused to give us the key; this is the specification's code.
    KeyWithheld(String),
    /// We have the session, but only from a later message on; an earlier copy may come.
    KeyTooNew,
    /// It will never be decrypted; this says why, in a word.
    Never(&'static str),
}

impl Undecryptable {
    /// The word that rows and APIs use.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            Self::KeyMissing => "room_key_missing".to_owned(),
            Self::KeyWithheld(code) => format!("room_key_withheld:{code}"),
            Self::KeyTooNew => "room_key_too_new".to_owned(),
            Self::Never(reason) => (*reason).to_owned(),
        }
    }

    /// Whether waiting can help.
    #[must_use]
    pub const fn may_come(&self) -> bool {
        !matches!(self, Self::Never(_))
    }
}

/// How a room wants its messages encrypted.
#[derive(Clone, Debug)]
pub struct RoomSettings {
    settings: EncryptionSettings,
}

impl RoomSettings {
    /// From the contents of `m.room.encryption` and `m.room.history_visibility`.
    ///
    /// # Errors
    ///
    /// [`CryptoError::UnknownAlgorithm`] for anything but Megolm.
    pub fn new(encryption: &Value, history_visibility: &str) -> Result<Self, CryptoError> {
        let algorithm = encryption.get("algorithm").and_then(Value::as_str).unwrap_or_default();
        if algorithm != "m.megolm.v1.aes-sha2" {
            return Err(CryptoError::UnknownAlgorithm(algorithm.to_owned()));
        }
        let mut content = RoomEncryptionEventContent::with_recommended_defaults();
        let number =
            |key: &str| encryption.get(key).and_then(|v| ruma::UInt::try_from(v.as_u64()?).ok());
        content.rotation_period_ms = number("rotation_period_ms").or(content.rotation_period_ms);
        content.rotation_period_msgs =
            number("rotation_period_msgs").or(content.rotation_period_msgs);
        let visibility = HistoryVisibility::from(history_visibility);
        // A human with an unverified device must never see "unable to decrypt": all devices get keys.
        let settings = EncryptionSettings::new(content, visibility, CollectStrategy::AllDevices);
        Ok(Self { settings })
    }
}

/// Requests that give a room key to devices.
pub type ShareRequests = Vec<Arc<ToDeviceRequest>>;

/// An encrypted message.
#[derive(Clone, Debug)]
pub struct Encrypted {
    /// Content of the `m.room.encrypted` event.
    pub content: Value,
    /// The Megolm session.
    pub session_id: String,
}

impl BotMachine {
    /// Decrypts an event of a room; the outer result is for failures of our own.
    ///
    /// # Errors
    ///
    /// If the store fails.
    pub async fn decrypt(
        &self,
        room: &RoomId,
        event: &Value,
    ) -> Result<Result<Value, Undecryptable>, CryptoError> {
        let raw = Raw::from_json(serde_json::value::to_raw_value(event)?);
        match self.machine.decrypt_room_event(&raw, room, &DECRYPTION).await {
            Ok(decrypted) if is_forged(&decrypted.encryption_info.verification_state) => {
                Ok(Err(Undecryptable::Never("sender_mismatch")))
            }
            Ok(decrypted) => {
                let json = foreign::without_nul(decrypted.event.json().get().as_bytes());
                // Deep nesting and huge numbers are JSON to the machine, which passes them on.
                Ok(serde_json::from_slice(&json).map_err(|_| Undecryptable::Never("malformed")))
            }
            Err(MegolmError::Store(error)) => Err(error.into()),
            Err(error) => Ok(Err(undecryptable(&error))),
        }
    }

    /// Keeps track of these users' devices from now on.
    ///
    /// # Errors
    ///
    /// If the store fails.
    pub async fn track(&self, users: &[OwnedUserId]) -> Result<(), CryptoError> {
        Ok(self.machine.update_tracked_users(users.iter().map(AsRef::as_ref)).await?)
    }

    /// The claim of one-time keys that is needed before these users can be given a room key.
    ///
    /// # Errors
    ///
    /// If the store fails.
    pub async fn missing_sessions(
        &self,
        users: &[OwnedUserId],
    ) -> Result<Option<(OwnedTransactionId, claim_keys::v3::Request)>, CryptoError> {
        Ok(self.machine.get_missing_sessions(users.iter().map(AsRef::as_ref)).await?)
    }

    /// Requests that give the room's current key to whoever of `users` lacks it; the key is a new one
    /// if the settings, a leave or a device's end ask for that.
    ///
    /// # Errors
    ///
    /// If Olm or the store fails.
    pub async fn share_room_key(
        &self,
        room: &RoomId,
        users: &[OwnedUserId],
        settings: &RoomSettings,
    ) -> Result<ShareRequests, CryptoError> {
        let users = users.iter().map(AsRef::as_ref);
        Ok(self.machine.share_room_key(room, users, settings.settings.clone()).await?)
    }

    /// Encrypts a message with the room's current key, which must have been shared.
    ///
    /// # Errors
    ///
    /// If Megolm or the store fails.
    pub async fn encrypt(
        &self,
        room: &RoomId,
        event_type: &str,
        content: &Value,
    ) -> Result<Encrypted, CryptoError> {
        let raw = Raw::from_json(serde_json::value::to_raw_value(content)?);
        let encrypted = self.machine.encrypt_room_event_raw(room, event_type, &raw).await?;
        let content: Value = serde_json::from_str(encrypted.content.json().get())?;
        let session_id =
            content.get("session_id").and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Encrypted { content, session_id })
    }

    /// Whether the room's current key is shared, not given up, and good for one more message.
    #[must_use]
    pub fn may_encrypt(&self, room: &RoomId, now: SystemTime) -> bool {
        self.store.may_encrypt(room, now)
    }

    /// Makes the next message of the room start a new key.
    ///
    /// # Errors
    ///
    /// If the store fails.
    pub async fn discard_room_key(&self, room: &RoomId) -> Result<(), CryptoError> {
        self.machine.discard_room_key(room).await?;
        Ok(())
    }
}

/// Whether the key is known to be of somebody else than the event says: whoever controls the event,
/// as a homeserver does, could put anybody's name to the words of anybody.
const fn is_forged(state: &VerificationState) -> bool {
    matches!(state, VerificationState::Unverified(VerificationLevel::MismatchedSender))
}

fn undecryptable(error: &MegolmError) -> Undecryptable {
    use matrix_sdk_crypto::vodozemac::megolm::DecryptionError;
    match error {
        MegolmError::MissingRoomKey(None) => Undecryptable::KeyMissing,
        MegolmError::MissingRoomKey(Some(code)) => {
            Undecryptable::KeyWithheld(code.as_str().to_owned())
        }
        MegolmError::Decryption(DecryptionError::UnknownMessageIndex(..)) => {
            Undecryptable::KeyTooNew
        }
        MegolmError::Decryption(_) => Undecryptable::Never("ciphertext_invalid"),
        MegolmError::MismatchedIdentityKeys(_) => Undecryptable::Never("sender_keys_mismatch"),
        MegolmError::SenderIdentityNotTrusted(_) => Undecryptable::Never("sender_not_trusted"),
        _ => Undecryptable::Never("malformed"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_room_sets_its_own_rotation() {
        let encryption = json!({"algorithm": "m.megolm.v1.aes-sha2", "rotation_period_msgs": 3,
            "rotation_period_ms": 3_600_000});
        let settings = RoomSettings::new(&encryption, "joined").expect("known").settings;
        assert_eq!(settings.rotation_period_msgs, 3);
        assert_eq!(settings.rotation_period, Duration::from_secs(3600));
        assert_eq!(settings.history_visibility, HistoryVisibility::Joined);
    }

    #[test]
    fn an_unknown_algorithm_is_refused() {
        for encryption in [json!({"algorithm": "org.example.rot13"}), json!({}), json!(null)] {
            assert!(RoomSettings::new(&encryption, "shared").is_err());
        }
    }
}
