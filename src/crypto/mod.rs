//! One bot's cryptography, without a socket: data goes in, requests come out.
//!
//! A [`BotMachine`] wraps matrix-sdk-crypto's `OlmMachine` on our Postgres store. It never talks to
//! the homeserver: the worker sends what [`BotMachine::outgoing`] returns and brings the answers back.
//! At any time one step of one worker owns it, and if anything in it fails it is thrown away and opened
//! again from the database, because its memory may then be ahead of what was stored.
//!
//! - [`receive`]: to-device messages, key counts and changed users, in one call.
//! - [`room`]: decrypting an event, sharing a room key, encrypting a message.
//! - [`identity`]: the cross-signing identity, made once.
//! - [`published`]: what the homeserver shows of a bot, held against what it is.
//! - [`verification`]: SAS flows, as plain states.

mod identity;
mod published;
mod receive;
mod room;
mod verification;

use matrix_sdk_crypto::{
    CryptoStoreError, DecryptionSettings, MegolmError, OlmError, OlmMachine, TrustRequirement,
    types::requests::{AnyIncomingResponse, OutgoingRequest},
};
use ruma::{OwnedUserId, TransactionId};

pub use self::{
    identity::{IdentityUpload, is_identity_of},
    published::{Published, PublishedDevice, PublishedIdentity},
    receive::{Received, SyncChanges},
    room::{Encrypted, RoomSettings, ShareRequests, Undecryptable},
    verification::{Confirmed, Flow, FlowState, VerificationMessage, reason},
};
use crate::store::{
    Fence, Store,
    bots::Bot,
    crypto_store::{self, CryptoRows, PgCryptoStore, Prefetched, Wanted},
};

/// Bots read what anybody writes; whom to trust is for their owners to say, with what we tell them.
pub(crate) const DECRYPTION: DecryptionSettings =
    DecryptionSettings { sender_device_trust_requirement: TrustRequirement::Untrusted };

/// About how much memory an `OlmMachine` takes, as measured, without what it keeps of others.
const MACHINE_BYTES: usize = 64 * 1024;

/// Why cryptography failed. None of these carries key material or message text.
#[derive(Debug, thiserror::Error)]
pub enum CryptoError {
    /// The store under the machine failed: the machine must be opened again.
    #[error("the crypto store failed: {0}")]
    Store(#[from] CryptoStoreError),
    /// Olm failed.
    #[error("olm failed: {0}")]
    Olm(#[from] OlmError),
    /// Megolm failed.
    #[error("megolm failed: {0}")]
    Megolm(#[from] MegolmError),
    /// JSON that should have fitted did not.
    #[error("JSON does not fit: {0}")]
    Json(#[from] serde_json::Error),
    /// The private identity is not in the crypto store, and could not be brought back.
    #[error("the private cross-signing keys could not be restored: {0}")]
    Identity(String),
    /// The room asks for an encryption that we do not know: its name, or nothing if it has none.
    #[error("the room's encryption algorithm is not known: {0}")]
    UnknownAlgorithm(String),
}

impl CryptoError {
    /// Whether another process has taken the bot over: nothing was written then.
    #[must_use]
    pub fn is_lease_lost(&self) -> bool {
        self.store_error().is_some_and(crypto_store::lease_lost)
    }

    /// Whether something that is stored of the bot does not open any more.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        self.store_error().is_some_and(crypto_store::is_damage)
    }

    const fn store_error(&self) -> Option<&CryptoStoreError> {
        match self {
            Self::Store(error)
            | Self::Olm(OlmError::Store(error))
            | Self::Megolm(MegolmError::Store(error)) => Some(error),
            _ => None,
        }
    }
}

/// One bot's machine.
pub struct BotMachine {
    machine: OlmMachine,
    store: PgCryptoStore,
}

impl BotMachine {
    /// Opens a bot's machine from the database, making its Olm account if it has none. What it saves is
    /// gathered, and belongs to `fence`. What of its rows is `prefetched` is not read again.
    ///
    /// # Errors
    ///
    /// If the store fails, or what it holds is of another device.
    pub async fn open(
        store: &Store,
        fence: Fence,
        bot: &Bot,
        prefetched: Prefetched,
    ) -> Result<Self, CryptoError> {
        let store = PgCryptoStore::new(store.clone(), bot.id, fence)
            .gathering()
            .with_prefetched(prefetched);
        let machine =
            OlmMachine::with_store(&bot.user_id, &bot.device_id, store.clone(), None).await?;
        // A bot has one device: there is nobody of its own to ask for a key.
        machine.set_room_key_requests_enabled(false);
        Ok(Self { machine, store })
    }

    /// What of this the machine would have to read from the database.
    #[must_use]
    pub fn lacking(&self, wanted: Wanted) -> Wanted {
        self.store.lacking(wanted)
    }

    /// Takes in what was read of what it [lacks](Self::lacking).
    pub fn take_prefetched(&self, prefetched: Prefetched) {
        self.store.take_prefetched(prefetched);
    }

    /// What the machine saved since this was last asked: to be committed before anything that follows
    /// from it leaves the process.
    ///
    /// # Errors
    ///
    /// If the store failed at anything, whether the machine told or not.
    pub async fn take_gathered(&self) -> Result<CryptoRows, CryptoError> {
        self.store.take_gathered().await.map_err(|error| CryptoError::Store(error.into()))
    }

    /// About how much memory the machine takes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        MACHINE_BYTES + self.store.bytes()
    }

    /// What is to be sent, in order. Each is to be answered with [`BotMachine::mark_sent`].
    ///
    /// # Errors
    ///
    /// If the store fails.
    pub async fn outgoing(&self) -> Result<Vec<OutgoingRequest>, CryptoError> {
        Ok(self.machine.outgoing_requests().await?)
    }

    /// Brings the homeserver's answer to a request.
    ///
    /// # Errors
    ///
    /// If the answer does not fit the request, or the store fails.
    pub async fn mark_sent<'a>(
        &self,
        request_id: &TransactionId,
        answer: impl Into<AnyIncomingResponse<'a>>,
    ) -> Result<(), CryptoError> {
        Ok(self.machine.mark_request_as_sent(request_id, answer).await?)
    }

    /// A `/keys/query` for these users, whatever is known of them.
    #[must_use]
    pub fn query_keys(
        &self,
        users: &[OwnedUserId],
    ) -> (ruma::OwnedTransactionId, matrix_sdk_crypto::types::requests::KeysQueryRequest) {
        self.machine.query_keys_for_users(users.iter().map(AsRef::as_ref))
    }
}
