//! Verification: one move at a time, each recorded.
//!
//! The human's client drives: it asks, starts the SAS, and shows the emoji; the bot says that it is
//! willing, accepts, and under the policy `auto` confirms once the human's own confirmation (the MAC)
//! has come, so that the human really decides. Afterwards the bot has signed the human's identity, and
//! its next message starts a new room key, because only a new one counts as verified.
//!
//! Facts of the engine that shape this: a request from a device whose keys are not known is dropped;
//! of two requests of one user both are cancelled, a finished one included, and so it is with two SAS;
//! the flow lives in memory only. So keys are queried first, old flows are ended first ([`make_way`]), and a row without a flow
//! is cancelled in words the other side understands ([`super::lost`]).
//!
//! How much of it one human, one room and one bot may keep us busy with is decided before anything is
//! done about a message ([`heeded`]); what came wrapped in Olm the machine has had by then, and what it
//! made of it is taken back ([`silence`]).

use std::collections::HashSet;

use ruma::{OwnedUserId, UserId, events::key::verification::cancel::CancelCode};
use serde_json::Value;
use tracing::info;

use super::{StepError, bot_worker::Step, lost, outgoing};
use crate::{
    crypto::{Flow, FlowState, SyncChanges, VerificationMessage},
    model::{VerificationPolicy, VerificationState},
    store::{
        Connection, StoreError, rooms, verifications,
        verifications::{Asked, OpenVerification, Progress},
    },
};

/// Which of these messages the bot heeds, by their place.
pub(super) async fn heeded(
    step: &Step<'_>,
    messages: &[VerificationMessage],
) -> Result<HashSet<usize>, StepError> {
    // In most steps there are none: no connection is taken for those.
    if messages.is_empty() {
        return Ok(HashSet::new());
    }
    let (bot, now) = (step.bot.id, step.now());
    let asked: Vec<_> = messages
        .iter()
        .map(|message| Asked {
            bot,
            sender: message.sender.as_str(),
            room: message.room.as_deref().map(ruma::RoomId::as_str),
            begins: message.begins(),
        })
        .collect();
    let which = async |conn: &mut Connection| verifications::which(conn, &asked, now).await;
    Ok(step.context.store.run(which).await?)
}

/// Messages that are not heeded, and that the machine has had all the same: what they began ends, and
/// nobody is told.
pub(super) async fn silence(
    step: &mut Step<'_>,
    messages: &[VerificationMessage],
) -> Result<(), StepError> {
    if messages.is_empty() {
        return Ok(());
    }
    let mut conn = step.connection().await?;
    let open = verifications::open(&mut conn, step.bot.id).await?;
    drop(conn);
    let flows: HashSet<_> = messages
        .iter()
        .map(|message| (message.sender.clone(), message.flow_id.clone()))
        .filter(|(user, id)| {
            !open.iter().any(|row| row.other_user_id == *user && row.flow_id == *id)
        })
        .collect();
    step.machine().await?.silence(&flows).await?;
    Ok(())
}

/// Before a message that begins a verification is fed: the sender's devices are asked for, and older
/// flows with that user are ended.
pub(super) async fn make_way(
    step: &mut Step<'_>,
    message: &VerificationMessage,
) -> Result<(), StepError> {
    if step.machine().await?.flow(&message.sender, &message.flow_id).is_some() {
        return Ok(());
    }
    let mut conn = step.connection().await?;
    let open = verifications::open(&mut conn, step.bot.id).await?;
    drop(conn);
    for row in &open {
        let Some(flow) = step.machine().await?.flow(&row.other_user_id, &row.flow_id) else {
            continue;
        };
        let is_over = matches!(flow.state(), FlowState::Done | FlowState::Cancelled { .. });
        let in_the_way = row.other_user_id == message.sender;
        if in_the_way && !is_over {
            info!(verification = %row.id, "the human asks anew: ending the verification before");
            cancel(step, &flow, CancelCode::User).await?;
        }
        if in_the_way || is_over {
            record(step, row, &flow, None).await?;
        }
    }
    if step.machine().await?.has_finished_flows(&message.sender) {
        sweep(step).await?;
    }
    step.machine().await?.track(std::slice::from_ref(&message.sender)).await?;
    outgoing::query_keys(step, std::slice::from_ref(&message.sender)).await?;
    Ok(())
}

/// A verification message came over to-device, and the machine has had it. Tells whether nobody knows its
/// flow, and its sender is to be told so.
pub(super) async fn heard_to_device(
    step: &mut Step<'_>,
    message: &VerificationMessage,
) -> Result<bool, StepError> {
    let flow = step.machine().await?.flow(&message.sender, &message.flow_id);
    if let Some(flow) = flow.as_ref().filter(|flow| message.begins() && flow.has_no_request()) {
        let mut conn = step.connection().await?;
        let open = verifications::open(&mut conn, step.bot.id).await?;
        drop(conn);
        // A restart has cost us the request that this SAS belongs to. Without it the machine would never
        // say that it is done, and the human's client would wait for that.
        if open.iter().any(|row| row.flow_id == message.flow_id) {
            cancel(step, flow, CancelCode::User).await?;
        }
    }
    let known = flow.is_some();
    if known && message.begins() {
        let (user, flow) = (message.sender.as_str(), message.flow_id.as_str());
        let mut tx = step.begin().await?;
        verifications::begin(&mut tx, step.bot.id, user, flow, None, false, step.now()).await?;
        tx.commit().await.map_err(StoreError::from)?;
        step.verifying = true;
    }
    if message.is_mac() {
        note_mac(step, message).await?;
    }
    if known || message.ends() || message.is_request() {
        return Ok(false);
    }
    // A row without a flow is cancelled by `run`.
    let mut conn = step.connection().await?;
    let open = verifications::open(&mut conn, step.bot.id).await?;
    Ok(!open.iter().any(|row| row.flow_id == message.flow_id))
}

/// Tells whose flows nobody knows so: each human once, about the last.
pub(super) async fn answer_unknown(
    step: &mut Step<'_>,
    messages: &[VerificationMessage],
) -> Result<(), StepError> {
    let mut told: HashSet<&OwnedUserId> = HashSet::new();
    for message in messages.iter().rev().filter(|message| told.insert(&message.sender)) {
        let code = CancelCode::UnknownTransaction;
        let device = message.from_device.as_deref();
        let reason = "This verification is not known here: please verify again";
        lost::cancel(step, &message.sender, device, &message.flow_id, &code, reason).await?;
    }
    Ok(())
}

/// Whether a message in a room asks this bot for a verification: other bots' in the same room are none of
/// ours.
pub(super) fn asks(step: &Step<'_>, message: &VerificationMessage) -> bool {
    message.is_request()
        && message.sender != step.bot.user_id
        && message.to.as_deref() == Some(step.bot.user_id.as_str())
}

/// A verification message came in a room; `event` is the event in the clear. Other bots' flows in the
/// same room are none of ours. A request must have been [`heeded`].
pub(super) async fn heard_in_room(
    step: &mut Step<'_>,
    message: &VerificationMessage,
    event: &Value,
) -> Result<(), StepError> {
    if message.sender == step.bot.user_id {
        return Ok(());
    }
    if message.is_request() {
        if !asks(step, message) {
            return Ok(());
        }
        make_way(step, message).await?;
    } else if step.machine().await?.flow(&message.sender, &message.flow_id).is_none() {
        return Ok(());
    }
    let kept = step.kept().await?;
    kept.machine.receive_room_verification(event).await?;
    kept.has_requests = true;
    let begun = step.machine().await?.flow(&message.sender, &message.flow_id).is_some();
    if message.is_request() && begun {
        let room = message.room.as_deref().map(ruma::RoomId::as_str);
        let (user, flow) = (message.sender.as_str(), message.flow_id.as_str());
        let mut tx = step.begin().await?;
        verifications::begin(&mut tx, step.bot.id, user, flow, room, false, step.now()).await?;
        tx.commit().await.map_err(StoreError::from)?;
        step.verifying = true;
    } else if message.is_request() {
        // Too old, or from a device that its owner has not published.
        info!(sender = %message.sender, "a verification request was not heeded");
    } else if message.is_mac() {
        note_mac(step, message).await?;
    }
    Ok(())
}

async fn note_mac(step: &mut Step<'_>, message: &VerificationMessage) -> Result<(), StepError> {
    let (user, flow) = (message.sender.as_str(), message.flow_id.as_str());
    let mut tx = step.begin().await?;
    verifications::mac_received(&mut tx, step.bot.id, user, flow, step.now()).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(())
}

/// Moves every open verification on.
pub(super) async fn run(step: &mut Step<'_>) -> Result<(), StepError> {
    let mut conn = step.connection().await?;
    let open = verifications::open(&mut conn, step.bot.id).await?;
    drop(conn);
    let mut any_over = false;
    step.verifying = false;
    let mut newest_to_device = None;
    for row in open {
        if advance(step, &row).await? {
            any_over = true;
            continue;
        }
        step.verifying = true;
        if row.room_id.is_none() {
            newest_to_device = Some(row.created_at);
        }
    }
    if any_over {
        sweep(step).await?;
    }
    if let Some(begun) = newest_to_device {
        lost::ask_again(step, begun);
    }
    Ok(())
}

/// Sweeps finished flows out of the machine, where they would collide with the next: all of them, so
/// how each ended must have been recorded.
async fn sweep(step: &mut Step<'_>) -> Result<(), StepError> {
    outgoing::run(step).await?;
    step.machine().await?.receive(SyncChanges::default()).await?;
    Ok(())
}

/// Moves one on; tells whether it is over and to be swept out.
async fn advance(step: &mut Step<'_>, row: &OpenVerification) -> Result<bool, StepError> {
    let Some(flow) = step.machine().await?.flow(&row.other_user_id, &row.flow_id) else {
        lost::flow(step, row).await?;
        return Ok(true);
    };
    let ending = why_end(step.bot.verification_policy, row, &flow);
    match ending.clone() {
        Some(code) => cancel(step, &flow, code).await?,
        None => act(step, row, &flow).await?,
    }
    record(step, row, &flow, ending).await
}

/// Notes how far a flow has got, and tells whether it is over; `ending` is why we have just ended it,
/// if we have.
async fn record(
    step: &mut Step<'_>,
    row: &OpenVerification,
    flow: &Flow,
    ending: Option<CancelCode>,
) -> Result<bool, StepError> {
    let other_device_id = flow.other_device();
    // The machine replaces the flow's parts as it goes on: look again.
    let newer = step.machine().await?.flow(&row.other_user_id, &row.flow_id);
    let flow = newer.as_ref().unwrap_or(flow);
    let mut progress = Progress { other_device_id, ..Progress::default() };
    let state = match flow.state() {
        FlowState::Requested { .. } | FlowState::Waiting { ready: false } => {
            VerificationState::Requested
        }
        FlowState::Waiting { ready: true } => VerificationState::Ready,
        FlowState::Started | FlowState::Accepted => VerificationState::Started,
        FlowState::Emoji { emoji, decimals } => {
            progress.emoji = emoji;
            progress.decimals = Some(decimals);
            VerificationState::Emoji
        }
        FlowState::Confirmed => VerificationState::Confirmed,
        FlowState::Done => VerificationState::Done,
        FlowState::Cancelled { code, reason } => {
            // Of a request that we ended the machine knows only that it was cancelled.
            let (code, reason) = match ending {
                Some(ours) if ours.as_str() != code => {
                    (ours.as_str().to_owned(), crate::crypto::reason(&ours))
                }
                _ => (code, reason),
            };
            progress.cancel_code = Some(code);
            progress.cancel_reason = Some(reason);
            VerificationState::Cancelled
        }
    };
    if state == VerificationState::Done {
        start_new_keys(step, &row.other_user_id).await?;
    }
    let is_news = state != row.state
        || progress.other_device_id.is_some() && progress.other_device_id != row.other_device_id;
    // Most that are looked at have not moved.
    if !is_news {
        return Ok(false);
    }
    if state != row.state {
        info!(verification = %row.id, %state, other = %row.other_user_id, "verification");
        metrics::counter!("greenshield_verifications_total", "state" => state.as_str())
            .increment(1);
    }
    let mut tx = step.begin().await?;
    verifications::advance(&mut tx, row.id, state, &progress, step.now()).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(matches!(state, VerificationState::Done | VerificationState::Cancelled))
}

/// Why a flow that has not ended is to end now.
fn why_end(policy: VerificationPolicy, row: &OpenVerification, flow: &Flow) -> Option<CancelCode> {
    let decision = row.decision.as_deref();
    match flow.state() {
        FlowState::Done | FlowState::Cancelled { .. } => None,
        _ if flow.timed_out() => Some(CancelCode::Timeout),
        _ if policy == VerificationPolicy::Off || decision == Some("cancel") => {
            Some(CancelCode::User)
        }
        FlowState::Requested { sas: false } => Some(CancelCode::UnknownMethod),
        FlowState::Emoji { .. } if decision == Some("mismatch") => Some(CancelCode::MismatchedSas),
        _ => None,
    }
}

async fn cancel(step: &mut Step<'_>, flow: &Flow, code: CancelCode) -> Result<(), StepError> {
    match flow.cancel(code)? {
        Some(message) => outgoing::verification(step, &message).await,
        None => Ok(()),
    }
}

/// What is for us to do in the flow's present state.
async fn act(step: &mut Step<'_>, row: &OpenVerification, flow: &Flow) -> Result<(), StepError> {
    let message = match flow.state() {
        FlowState::Requested { .. } => flow.accept_request(),
        FlowState::Started => flow.accept_sas(),
        FlowState::Emoji { .. } => {
            let agreed = match step.bot.verification_policy {
                VerificationPolicy::Auto => row.mac_received,
                VerificationPolicy::Owner => row.decision.as_deref() == Some("confirm"),
                VerificationPolicy::Off => false,
            };
            return if agreed { confirm(step, flow).await } else { Ok(()) };
        }
        _ => None,
    };
    match message {
        Some(message) => outgoing::verification(step, &message).await,
        None => Ok(()),
    }
}

async fn confirm(step: &mut Step<'_>, flow: &Flow) -> Result<(), StepError> {
    let Some(confirmed) = flow.confirm().await? else { return Ok(()) };
    for message in &confirmed.messages {
        outgoing::verification(step, message).await?;
    }
    if let Some(signatures) = confirmed.signatures {
        outgoing::signatures(step, signatures).await?;
    }
    Ok(())
}

/// How far a session is trusted is fixed when its key arrives at the human's client: only a key that
/// arrives now counts as verified.
pub(super) async fn start_new_keys(step: &mut Step<'_>, human: &UserId) -> Result<(), StepError> {
    let mut conn = step.connection().await?;
    let shared = rooms::shared_rooms(&mut conn, step.bot.user_id.as_str(), human.as_str()).await?;
    drop(conn);
    for room in shared {
        step.machine().await?.discard_room_key(&room).await?;
    }
    Ok(())
}
