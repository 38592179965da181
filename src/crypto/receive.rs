//! Taking in what the homeserver pushed.
//!
//! `receive_sync_changes` costs most of a millisecond with nothing in it, because it saves the account
//! again: a step calls it at most once, with everything.
//!
//! How key counts are passed is pinned here and nowhere else. In matrix-sdk-crypto 0.18 a missing count
//! means "no news", so "the transaction did not say" is an empty map, and a drained pool is an explicit
//! zero. From 0.19 on a missing count means zero: then this must call `receive_sync_changes_msc4186`.

use std::collections::{BTreeMap, HashSet};

use matrix_sdk_common::deserialized_responses::ProcessedToDeviceEvent;
use matrix_sdk_crypto::{
    EncryptionSyncChanges,
    types::requests::{AnyOutgoingRequest, ToDeviceRequest},
};
use ruma::{
    OneTimeKeyAlgorithm, OwnedUserId, UInt,
    api::client::{sync::sync_events::DeviceLists, to_device::send_event_to_device},
    events::key::verification::cancel::CancelCode,
    serde::Raw,
};
use serde_json::Value;

use super::{BotMachine, CryptoError, DECRYPTION, VerificationMessage, verification::PREFIX};
use crate::{model::foreign, store::inbox::KeyCounts};

/// Everything that came for a bot, in one piece.
#[derive(Debug, Default)]
pub struct SyncChanges {
    /// To-device messages, in their order.
    pub to_device: Vec<Value>,
    /// The newest key counts, if any came.
    pub key_counts: Option<KeyCounts>,
    /// Users whose devices changed.
    pub changed_users: Vec<OwnedUserId>,
}

/// What taking it in gave.
#[derive(Debug, Default)]
pub struct Received {
    /// Megolm sessions whose keys came.
    pub sessions: Vec<String>,
    /// Verification messages among the to-device messages.
    pub verification: Vec<VerificationMessage>,
    /// To-device messages that could not be decrypted.
    pub undecryptable: usize,
    /// To-device messages that make no sense: not of the form that their type asks for, or JSON that we do
    /// not read.
    pub skipped: usize,
}

impl BotMachine {
    /// Takes everything in; saved when this returns. With nothing in it, it still sweeps finished
    /// verifications out.
    ///
    /// # Errors
    ///
    /// If the store fails: then nothing counts as received.
    pub async fn receive(&self, changes: SyncChanges) -> Result<Received, CryptoError> {
        let (counts, fallback) = key_counts(changes.key_counts.as_ref());
        let mut changed_devices = DeviceLists::new();
        changed_devices.changed = changes.changed_users;
        let to_device_events = changes
            .to_device
            .iter()
            .map(|event| Ok(Raw::from_json(serde_json::value::to_raw_value(event)?)))
            .collect::<Result<_, serde_json::Error>>()?;
        let (events, keys) = self
            .machine
            .receive_sync_changes(
                EncryptionSyncChanges {
                    to_device_events,
                    changed_devices: &changed_devices,
                    one_time_keys_counts: &counts,
                    unused_fallback_keys: fallback.as_deref(),
                    next_batch_token: None,
                },
                &DECRYPTION,
            )
            .await?;
        let mut received = Received {
            sessions: keys.into_iter().map(|key| key.session_id).collect(),
            ..Received::default()
        };
        for event in events {
            match event {
                ProcessedToDeviceEvent::UnableToDecrypt { .. } => received.undecryptable += 1,
                ProcessedToDeviceEvent::Invalid(_) => received.skipped += 1,
                ProcessedToDeviceEvent::PlainText(raw)
                | ProcessedToDeviceEvent::Decrypted { raw, .. } => {
                    let json = foreign::without_nul(raw.json().get().as_bytes());
                    // Deep nesting and huge numbers are JSON to the machine, which passes them on.
                    match serde_json::from_slice(&json) {
                        Ok(event) => received
                            .verification
                            .extend(VerificationMessage::from_to_device(&event)),
                        Err(_) => received.skipped += 1,
                    }
                }
            }
        }
        Ok(received)
    }

    /// Ends these flows without a word: what the machine wants to say in them is not said.
    ///
    /// # Errors
    ///
    /// If the store fails.
    pub async fn silence(&self, flows: &HashSet<(OwnedUserId, String)>) -> Result<(), CryptoError> {
        for (user, flow_id) in flows {
            if let Some(flow) = self.flow(user, flow_id) {
                // The message that it makes is left unsent.
                flow.cancel(CancelCode::User)?;
            }
        }
        let belongs = |messages: &ToDeviceRequest| {
            messages.messages.iter().any(|(user, devices)| {
                devices.values().any(|content| {
                    let content: Value =
                        serde_json::from_str(content.json().get()).unwrap_or_default();
                    let flow_id = content.get("transaction_id").and_then(Value::as_str);
                    flow_id.is_some_and(|id| flows.contains(&(user.clone(), id.to_owned())))
                })
            })
        };
        for request in self.outgoing().await? {
            if let AnyOutgoingRequest::ToDeviceRequest(messages) = request.request()
                && messages.event_type.to_string().starts_with(PREFIX)
                && belongs(messages)
            {
                let answer = send_event_to_device::v3::Response::new();
                self.mark_sent(request.request_id(), &answer).await?;
            }
        }
        Ok(())
    }
}

type Counts = BTreeMap<OneTimeKeyAlgorithm, UInt>;

/// Our counts in the machine's terms.
fn key_counts(counts: Option<&KeyCounts>) -> (Counts, Option<Vec<OneTimeKeyAlgorithm>>) {
    let left = counts.and_then(|c| c.one_time_keys).map(|left| {
        (OneTimeKeyAlgorithm::SignedCurve25519, UInt::try_from(left).unwrap_or(UInt::MAX))
    });
    let fallback = counts
        .and_then(|c| c.fallback_keys.as_ref())
        .map(|types| types.iter().map(|t| OneTimeKeyAlgorithm::from(t.as_str())).collect());
    (left.into_iter().collect(), fallback)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_news_is_an_empty_map_and_a_drained_pool_is_zero() {
        assert!(key_counts(None).0.is_empty());

        let no_news = KeyCounts { one_time_keys: None, fallback_keys: None };
        assert!(key_counts(Some(&no_news)).0.is_empty());
        assert_eq!(key_counts(Some(&no_news)).1, None);

        let drained = KeyCounts { one_time_keys: Some(0), fallback_keys: Some(Vec::new()) };
        let (counts, fallback) = key_counts(Some(&drained));
        assert_eq!(counts[&OneTimeKeyAlgorithm::SignedCurve25519], UInt::from(0_u8));
        assert_eq!(fallback, Some(Vec::new()));
    }
}
