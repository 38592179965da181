//! What the machine wants sent: key uploads, key queries and claims, to-device messages, signatures,
//! and verification messages in rooms.

use std::time::Duration;

use matrix_sdk_crypto::types::requests::{
    AnyOutgoingRequest, KeysQueryRequest, OutgoingVerificationRequest, RoomMessageRequest,
    ToDeviceRequest,
};
use ruma::{
    OwnedUserId, TransactionId,
    api::client::{
        keys::{claim_keys, get_keys, upload_signatures},
        message::send_message_event,
        to_device::send_event_to_device,
    },
    events::MessageLikeEventContent as _,
};
use tracing::warn;

use super::{StepError, bot_worker::Step, device_keys, repair, send};
use crate::telemetry::chain;

/// The machine may want more after each answer; this bounds a step.
const ROUNDS: usize = 10;

/// How long a message of a verification waits before each further attempt: a human is looking on.
const VERIFICATION_WAITS: [Duration; 6] = [
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
];
/// The longest of these waits that a homeserver may ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(15);

/// Sends until the machine wants nothing more; tells whether it wanted anything. One refused request
/// does not keep the others back: the first refusal is the step's error, after all were tried. What
/// leaves the machine ahead of the database ends this at once: the next request might tell of it.
pub(super) async fn run(step: &mut Step<'_>) -> Result<bool, StepError> {
    run_where(step, |_| true).await
}

/// [`run`] without the messages for rooms: what must be done before a message can be encrypted.
pub(super) async fn run_keys(step: &mut Step<'_>) -> Result<bool, StepError> {
    run_where(step, |request| !matches!(request, AnyOutgoingRequest::RoomMessage(_))).await
}

/// [`run`] for questions about devices only: what decides who is given a room's key. What it wants sent
/// besides keeps no message waiting.
pub(super) async fn run_queries(step: &mut Step<'_>) -> Result<bool, StepError> {
    run_where(step, |request| matches!(request, AnyOutgoingRequest::KeysQuery(_))).await
}

async fn run_where(
    step: &mut Step<'_>,
    wanted: fn(&AnyOutgoingRequest) -> bool,
) -> Result<bool, StepError> {
    let mut any = false;
    let mut refused = None;
    for _ in 0..ROUNDS {
        let mut requests = step.machine().await?.outgoing().await?;
        step.kept().await?.has_requests = !requests.is_empty();
        requests.retain(|request| wanted(request.request()));
        if requests.is_empty() {
            break;
        }
        any = true;
        let mut progressed = false;
        for request in requests {
            match send_one(step, request.request_id(), request.request()).await {
                Ok(()) => progressed = true,
                Err(error) if !error.machine_is_whole() => return Err(error),
                Err(error) => {
                    let kind = kind(request.request());
                    warn!(
                        error = chain(&error),
                        kind, "the homeserver did not take a request of the machine"
                    );
                    refused.get_or_insert(error);
                }
            }
        }
        if !progressed {
            break;
        }
    }
    refused.map_or(Ok(any), Err)
}

const fn kind(request: &AnyOutgoingRequest) -> &'static str {
    match request {
        AnyOutgoingRequest::KeysUpload(_) => "keys/upload",
        AnyOutgoingRequest::KeysQuery(_) => "keys/query",
        AnyOutgoingRequest::KeysClaim(_) => "keys/claim",
        AnyOutgoingRequest::ToDeviceRequest(_) => "sendToDevice",
        AnyOutgoingRequest::SignatureUpload(_) => "keys/signatures/upload",
        AnyOutgoingRequest::RoomMessage(_) => "send",
    }
}

async fn send_one(
    step: &mut Step<'_>,
    id: &TransactionId,
    request: &AnyOutgoingRequest,
) -> Result<(), StepError> {
    match request {
        AnyOutgoingRequest::KeysUpload(request) => {
            let homeserver = step.homeserver().await?;
            // What another process has uploaded may be used up by now.
            step.prove_lease().await?;
            let answer = match homeserver.send((&step.actor).into(), request.clone()).await {
                Ok(answer) => answer,
                Err(error) => return Err(repair::keys_refused(step, error).await),
            };
            step.machine().await?.mark_sent(id, &answer).await?;
        }
        AnyOutgoingRequest::KeysQuery(request) => device_keys::answer(step, id, request).await?,
        AnyOutgoingRequest::KeysClaim(request) => claim(step, id, request.clone()).await?,
        AnyOutgoingRequest::ToDeviceRequest(request) => to_device(step, request).await?,
        AnyOutgoingRequest::SignatureUpload(request) => signatures(step, request.clone()).await?,
        AnyOutgoingRequest::RoomMessage(request) => room_message(step, request).await?,
    }
    Ok(())
}

/// A `/keys/claim`.
pub(super) async fn claim(
    step: &mut Step<'_>,
    id: &TransactionId,
    request: claim_keys::v3::Request,
) -> Result<(), StepError> {
    // A key that is claimed is gone.
    step.prove_lease().await?;
    let answer = step.ask().send((&step.actor).into(), request).await?;
    let kept = step.kept().await?;
    kept.machine.mark_sent(id, &answer).await?;
    // With a new Olm session it may have something to say to a device that waited for one.
    kept.has_requests = true;
    Ok(())
}

/// A `/keys/query`, its answer given to the machine and returned.
async fn query(
    step: &mut Step<'_>,
    id: &TransactionId,
    query: &KeysQueryRequest,
) -> Result<get_keys::v3::Response, StepError> {
    let mut request = get_keys::v3::Request::new();
    request.timeout = query.timeout;
    request.device_keys = query.device_keys.clone();
    let answer = step.homeserver().await?.send((&step.actor).into(), request).await?;
    step.machine().await?.mark_sent(id, &answer).await?;
    Ok(answer)
}

/// Asks for these users' devices now, whatever is known of them.
pub(super) async fn query_keys(
    step: &mut Step<'_>,
    users: &[OwnedUserId],
) -> Result<get_keys::v3::Response, StepError> {
    let (id, request) = step.machine().await?.query_keys(users);
    query(step, &id, &request).await
}

/// Sends a to-device message, and tells the machine.
pub(super) async fn to_device(
    step: &mut Step<'_>,
    message: &ToDeviceRequest,
) -> Result<(), StepError> {
    let request = send_event_to_device::v3::Request::new_raw(
        message.event_type.clone(),
        message.txn_id.clone(),
        message.messages.clone(),
    );
    let answer = step.homeserver().await?.send((&step.actor).into(), request).await?;
    step.machine().await?.mark_sent(&message.txn_id, &answer).await?;
    Ok(())
}

/// Publishes signatures. The homeserver answers 200 and names in `failures` what it did not take.
pub(super) async fn signatures(
    step: &mut Step<'_>,
    request: upload_signatures::v3::Request,
) -> Result<(), StepError> {
    let id = TransactionId::new();
    let answer = step.homeserver().await?.send((&step.actor).into(), request).await?;
    step.machine().await?.mark_sent(&id, &answer).await?;
    if answer.failures.is_empty() {
        return Ok(());
    }
    let users: Vec<_> = answer.failures.keys().map(ToString::to_string).collect();
    Err(StepError::fail(
        "M_INVALID_SIGNATURE",
        format!("the homeserver did not take signatures for {}", users.join(", ")),
    ))
}

/// Sends a message of a verification. The flow has gone on already and makes this message only once,
/// so a homeserver that is away for a moment is waited for here.
pub(super) async fn verification(
    step: &mut Step<'_>,
    message: &OutgoingVerificationRequest,
) -> Result<(), StepError> {
    let mut waits = VERIFICATION_WAITS.into_iter();
    loop {
        let sent = match message {
            OutgoingVerificationRequest::ToDevice(message) => to_device(step, message).await,
            OutgoingVerificationRequest::InRoom(message) => room_message(step, message).await,
        };
        match (sent, waits.next()) {
            (Err(error), Some(wait)) if error.is_retry() && error.machine_is_whole() => {
                warn!(error = chain(&error), "a verification message was not taken; trying again");
                let wait = wait.max(error.retry_after().unwrap_or_default()).min(LONGEST_WAIT);
                tokio::time::sleep(wait).await;
            }
            (sent, _) => return sent,
        }
    }
}

async fn room_message(step: &mut Step<'_>, message: &RoomMessageRequest) -> Result<(), StepError> {
    let content = serde_json::to_value(&message.content)
        .map_err(|e| StepError::fail("M_UNKNOWN", e.to_string()))?;
    let event_type = message.content.event_type().to_string();
    let txn_id = format!("gs-{}-{}", step.bot.id, message.txn_id);
    // Boxed: to encrypt this message, keys may have to be sent first, which comes back here.
    let txn_id = txn_id.as_str().into();
    let sent =
        Box::pin(send::message(step, &message.room_id, &event_type, &content, txn_id)).await?;
    let event_id = ruma::OwnedEventId::try_from(sent.event_id)
        .map_err(|e| StepError::fail("M_UNKNOWN", e.to_string()))?;
    let answer = send_message_event::v3::Response::new(event_id);
    step.machine().await?.mark_sent(&message.txn_id, &answer).await?;
    Ok(())
}
