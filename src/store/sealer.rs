//! Sealing at rest: what turns a key or a message into bytes that a dump of the database gives
//! nobody.
//!
//! One random data key seals everything (XChaCha20-Poly1305, by matrix-sdk-store-encryption, the
//! library that the SDK's own SQLite store uses). The data key itself lies in `sealing_key`, wrapped
//! by the key in the configuration, so changing the configured key rewrites one row.
//!
//! Every sealed value carries its context, the table and the bot that it belongs to, inside the
//! seal: a value moved to another row or bot by somebody who can write to the database does not open.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};
use matrix_sdk_store_encryption::{EncryptedValue, StoreCipher};
use secrecy::{ExposeSecret as _, SecretBox};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use crate::model::BotId;

/// The configured key: 32 bytes that wrap the data key.
pub type WrappingKey = SecretBox<[u8; 32]>;

/// Why something could not be sealed or opened. Never carries what was inside.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The configured key does not unwrap the data key.
    #[error(
        "the configured sealing key does not open this database: set `sealing.key` to the key that \
         it was made with, or point `database.url` at another database"
    )]
    WrongKey,
    /// A sealed value is damaged, or was moved from another row.
    #[error("a sealed value of {0} does not open: it is damaged or belongs to another row")]
    Damaged(&'static str),
    /// The library failed.
    #[error("sealing failed")]
    Library(#[from] matrix_sdk_store_encryption::Error),
    /// What was inside is not what we expected.
    #[error("a sealed value of {0} holds something else than expected")]
    Content(&'static str, #[source] serde_json::Error),
}

/// Seals and opens; cheap to clone.
#[derive(Clone)]
pub struct Sealer {
    cipher: Arc<StoreCipher>,
}

/// The wire form of [`EncryptedValue`], whose fields are private: base64 in, raw bytes out.
#[derive(Serialize, Deserialize)]
struct Parts {
    version: u8,
    ciphertext: String,
    nonce: String,
}

const NONCE_LEN: usize = 24;

impl Sealer {
    /// A new random data key.
    ///
    /// # Errors
    ///
    /// Only if the system has no randomness.
    pub fn generate() -> Result<Self, SealError> {
        Ok(Self { cipher: Arc::new(StoreCipher::new()?) })
    }

    /// Opens the data key that [`Sealer::wrap`] made.
    ///
    /// # Errors
    ///
    /// [`SealError::WrongKey`] if `key` is not the one it was wrapped with.
    pub fn unwrap(key: &WrappingKey, wrapped: &[u8]) -> Result<Self, SealError> {
        let cipher = StoreCipher::import_with_key(key.expose_secret(), wrapped)
            .map_err(|_| SealError::WrongKey)?;
        Ok(Self { cipher: Arc::new(cipher) })
    }

    /// The data key, wrapped for `sealing_key`.
    ///
    /// # Errors
    ///
    /// Only if the library fails.
    pub fn wrap(&self, key: &WrappingKey) -> Result<Vec<u8>, SealError> {
        Ok(self.cipher.export_with_key(key.expose_secret())?)
    }

    /// Seals `data` for `table` and, where the row belongs to one, for `bot`.
    ///
    /// # Errors
    ///
    /// Only if the library fails.
    pub fn seal(
        &self,
        table: &'static str,
        bot: Option<BotId>,
        data: &[u8],
    ) -> Result<Vec<u8>, SealError> {
        let context = context(table, bot);
        let mut plain = Vec::with_capacity(context.len() + data.len());
        plain.extend_from_slice(&context);
        plain.extend_from_slice(data);
        // `encrypt_value_data` wipes what it is given.
        let value = self.cipher.encrypt_value_data(plain)?;
        compact(value).ok_or(SealError::Damaged(table))
    }

    /// Opens what [`Sealer::seal`] made for the same table and bot. The bytes are wiped when dropped.
    ///
    /// # Errors
    ///
    /// [`SealError::Damaged`] if it was changed, or sealed for another row.
    pub fn open(
        &self,
        table: &'static str,
        bot: Option<BotId>,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let value = expand(sealed).ok_or(SealError::Damaged(table))?;
        let mut plain = Zeroizing::new(
            self.cipher.decrypt_value_data(value).map_err(|_| SealError::Damaged(table))?,
        );
        let context = context(table, bot);
        if !plain.starts_with(&context) {
            return Err(SealError::Damaged(table));
        }
        plain.drain(..context.len());
        Ok(plain)
    }

    /// [`Sealer::seal`] of a value as JSON.
    ///
    /// # Errors
    ///
    /// As [`Sealer::seal`].
    pub fn seal_json(
        &self,
        table: &'static str,
        bot: Option<BotId>,
        value: &impl Serialize,
    ) -> Result<Vec<u8>, SealError> {
        let data =
            Zeroizing::new(serde_json::to_vec(value).map_err(|e| SealError::Content(table, e))?);
        self.seal(table, bot, &data)
    }

    /// [`Sealer::open`] of a value as JSON.
    ///
    /// # Errors
    ///
    /// As [`Sealer::open`], and [`SealError::Content`] if it is not a `T`.
    pub fn open_json<T: DeserializeOwned>(
        &self,
        table: &'static str,
        bot: Option<BotId>,
        sealed: &[u8],
    ) -> Result<T, SealError> {
        let data = self.open(table, bot, sealed)?;
        serde_json::from_slice(&data).map_err(|e| SealError::Content(table, e))
    }

    /// A keyed hash of `key`, for looking a sealed row up by something that must not lie open.
    #[must_use]
    pub fn hash(&self, table: &'static str, key: &[u8]) -> [u8; 32] {
        self.cipher.hash_key(table, key)
    }
}

/// Length-prefixed, so that no context is the beginning of another.
fn context(table: &'static str, bot: Option<BotId>) -> Vec<u8> {
    let mut context = Vec::with_capacity(table.len() + 9);
    context.push(u8::try_from(table.len()).unwrap_or(u8::MAX));
    context.extend_from_slice(table.as_bytes());
    context.extend_from_slice(&bot.map_or(0, |b| b.0).to_be_bytes());
    context
}

/// Version, nonce, ciphertext: half the size of the library's own serialisation.
fn compact(value: EncryptedValue) -> Option<Vec<u8>> {
    let value = matrix_sdk_store_encryption::EncryptedValueBase64::from(value);
    let parts: Parts = serde_json::from_value(serde_json::to_value(value).ok()?).ok()?;
    let mut bytes = vec![parts.version];
    STANDARD_NO_PAD.decode_vec(&parts.nonce, &mut bytes).ok()?;
    STANDARD_NO_PAD.decode_vec(&parts.ciphertext, &mut bytes).ok()?;
    Some(bytes)
}

fn expand(bytes: &[u8]) -> Option<EncryptedValue> {
    let (version, rest) = bytes.split_first()?;
    let (nonce, ciphertext) = rest.split_at_checked(NONCE_LEN)?;
    let encoded = matrix_sdk_store_encryption::EncryptedValueBase64::new(
        *version,
        &STANDARD_NO_PAD.encode(ciphertext),
        &STANDARD_NO_PAD.encode(nonce),
    );
    encoded.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> WrappingKey {
        SecretBox::new(Box::new([byte; 32]))
    }

    #[test]
    fn what_was_sealed_opens_only_in_its_own_place() {
        let sealer = Sealer::generate().expect("randomness");
        let sealed = sealer.seal("events", Some(BotId(7)), b"canary").expect("seals");

        assert!(!sealed.windows(6).any(|w| w == b"canary"));
        assert_eq!(**sealer.open("events", Some(BotId(7)), &sealed).expect("opens"), *b"canary");
        assert!(sealer.open("events", Some(BotId(8)), &sealed).is_err());
        assert!(sealer.open("outbox", Some(BotId(7)), &sealed).is_err());
        assert!(sealer.open("events", None, &sealed).is_err());
    }

    #[test]
    fn a_wrapped_data_key_opens_with_its_own_key_only() {
        let sealer = Sealer::generate().expect("randomness");
        let sealed = sealer.seal("events", None, b"canary").expect("seals");
        let wrapped = sealer.wrap(&key(1)).expect("wraps");

        let again = Sealer::unwrap(&key(1), &wrapped).expect("the right key");
        assert_eq!(**again.open("events", None, &sealed).expect("opens"), *b"canary");
        assert!(matches!(Sealer::unwrap(&key(2), &wrapped), Err(SealError::WrongKey)));
    }

    #[test]
    fn damage_is_noticed() {
        let sealer = Sealer::generate().expect("randomness");
        let mut sealed = sealer.seal("events", None, b"canary").expect("seals");
        for cut in [0, 1, 10, 25, sealed.len() - 1] {
            assert!(sealer.open("events", None, &sealed[..cut]).is_err());
        }
        let last = sealed.len() - 1;
        sealed[last] ^= 1;
        assert!(sealer.open("events", None, &sealed).is_err());
    }
}
