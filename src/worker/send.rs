//! The one way into a room: [`prepare`] decides, at the last moment and in one place, whether a
//! message goes out encrypted, and refuses when that cannot be known.
//!
//! Before the first message of a room the homeserver is asked for its encryption, its history
//! visibility and all its members; from then on events keep the rows up to date. Whoever may read (the
//! joined, and the invited unless history is for joined members only) gets the room key first; bots of
//! ours get none, they read in the sender's outbox. As long as neither the room nor anybody's devices
//! have changed since, all of that is skipped.
//!
//! What goes out in the clear asks once more whether the room is still known to be unencrypted, right
//! before it is sent ([`put`]): a step can last, and what [`prepare`] went by is of its beginning.
//!
//! Messages of one step are all encrypted first and then committed, the ratchets with them, and only
//! then sent: those of a room in order, rooms side by side.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use chrono::{DateTime, Duration, Utc};
use futures_util::future::join_all;
use ruma::{OwnedTransactionId, OwnedUserId, RoomId, TransactionId};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tracing::{debug, warn};

use super::{
    Context, StepError, backoff, bot_worker::Step, device_keys, machines::ReadyRoom, outgoing,
};
use crate::{
    crypto::{RoomSettings, ShareRequests},
    homeserver::Actor,
    model::foreign,
    store::{
        Connection,
        outbox::{Outcome, OutcomeRow, Send, Sent},
        rooms,
        rooms::Room,
    },
    telemetry::chain,
};

/// A message that the homeserver could take and does not is given up when it is older than this, as
/// long as Synapse knows its transaction id again, and was tried so often since the last outage.
const PATIENCE: Duration = Duration::days(1);
const MIN_ATTEMPTS: i32 = 30;
/// How often news may overtake our question about a room.
const MAX_QUESTIONS: usize = 5;

/// A message as it goes to the homeserver.
#[derive(Debug)]
pub(super) struct Prepared {
    event_type: String,
    content: Value,
    session_id: Option<String>,
    devices: Option<i32>,
}

/// Sends what the step has to send. A message that fails is put off or given up by itself; those behind
/// it in the same room wait, other rooms go on.
pub(super) async fn run(step: &mut Step<'_>) -> Result<(), StepError> {
    let sends = std::mem::take(&mut step.sends);
    let mut held_back: HashSet<String> = HashSet::new();
    let mut prepared: BTreeMap<String, Vec<(Send, Prepared)>> = BTreeMap::new();
    for send in sends {
        if held_back.contains(&send.room_id) {
            continue;
        }
        match prepare_send(step, &send).await {
            Ok(ready) => prepared.entry(send.room_id.clone()).or_default().push((send, ready)),
            Err(error) if !error.machine_is_whole() => return Err(error),
            Err(error) => {
                if failed(step, &send, &error) {
                    held_back.insert(send.room_id);
                }
            }
        }
    }
    if prepared.is_empty() {
        return Ok(());
    }
    step.homeserver_for_message().await?;
    let (context, actor, bot) = (step.context, step.actor.clone(), step.bot.id);
    let rooms = prepared.into_values().map(|messages| {
        let actor = &actor;
        async move {
            let mut results = Vec::with_capacity(messages.len());
            for (send, ready) in messages {
                let txn_id = homeserver_txn_id(bot, &send);
                let result = put(context, actor, &send.room_id, &txn_id, ready).await;
                let stop = result.as_ref().is_err_and(StepError::is_retry);
                results.push((send, result));
                if stop {
                    break;
                }
            }
            results
        }
    });
    for (send, result) in join_all(rooms).await.into_iter().flatten() {
        match result {
            Ok(sent) => {
                metrics::counter!("greenshield_messages_sent_total").increment(1);
                record(step, send.txn_id, Outcome::Sent(sent));
            }
            Err(error) => _ = failed(step, &send, &error),
        }
    }
    Ok(())
}

async fn prepare_send(step: &mut Step<'_>, send: &Send) -> Result<Prepared, StepError> {
    let Ok(room) = <&RoomId>::try_from(send.room_id.as_str()) else {
        return Err(StepError::fail("M_INVALID_PARAM", "this is not a room id"));
    };
    prepare(step, room, &send.event_type, &send.content).await
}

/// The homeserver's id for a message, the same at every attempt. The creation time makes it unique
/// across databases that a homeserver may have seen, the bot across bots.
fn homeserver_txn_id(bot: crate::model::BotId, send: &Send) -> OwnedTransactionId {
    let digest = Sha256::digest(send.txn_id.as_bytes());
    let short = u64::from_be_bytes(std::array::from_fn(|i| digest[i]));
    format!("gs-{bot}-{}-{short:x}", send.created_at.timestamp_micros()).into()
}

/// Puts a failed message off (true) or gives it up (false).
fn failed(step: &mut Step<'_>, send: &Send, error: &StepError) -> bool {
    warn!(
        txn_id = send.txn_id,
        error = chain(error),
        attempts = send.attempts,
        "a message was not sent"
    );
    let now = step.now();
    let again = may_try_again(send, error, now);
    let text = error.to_string();
    let outcome = if again {
        let salt = step.bot.id.0;
        Outcome::PutOff(backoff::next_attempt(error, send.attempts + 1, salt, now), text)
    } else {
        Outcome::Failed(text)
    };
    record(step, send.txn_id.clone(), outcome);
    again
}

/// Whether a message that failed may still succeed. An outage, however long, gives none up.
fn may_try_again(send: &Send, error: &StepError, now: DateTime<Utc>) -> bool {
    let is_over = send.attempts >= MIN_ATTEMPTS && now - send.created_at > PATIENCE;
    error.is_retry() && (error.is_outage() || !is_over)
}

fn record(step: &mut Step<'_>, txn_id: String, outcome: Outcome) {
    let (bot, at) = (step.bot.id, step.now());
    step.rows.outcomes.push(OutcomeRow { bot, txn_id, outcome, at });
}

/// Sends a message into a room at once, encrypted if the room is.
pub(super) async fn message(
    step: &mut Step<'_>,
    room_id: &RoomId,
    event_type: &str,
    content: &Value,
    txn_id: &TransactionId,
) -> Result<Sent, StepError> {
    let prepared = prepare(step, room_id, event_type, content).await?;
    step.homeserver_for_message().await?;
    let sent = put(step.context, &step.actor, room_id.as_str(), txn_id, prepared).await;
    if sent.is_err() {
        // It is tried again, maybe in this very step: what the room is like is then read anew.
        step.rooms.remove(room_id.as_str());
    }
    sent
}

/// Sends a message that was prepared, and committed. One that was prepared for an unencrypted room is
/// put off if the room has become another one meanwhile: whatever we have told the homeserver that we
/// know of holds from then on. Nothing is sent in the clear if that cannot be read.
async fn put(
    context: &Context,
    actor: &Actor,
    room_id: &str,
    txn_id: &TransactionId,
    message: Prepared,
) -> Result<Sent, StepError> {
    let room_id = <&RoomId>::try_from(room_id)
        .map_err(|_| StepError::fail("M_INVALID_PARAM", "this is not a room id"))?;
    let Prepared { event_type, content, session_id, devices } = message;
    if session_id.is_none() && !stays_clear(&event_type) {
        let unencrypted =
            async |conn: &mut Connection| rooms::is_unencrypted(conn, room_id.as_str()).await;
        if !context.store.run(unencrypted).await? {
            return Err(StepError::retry("the room may be encrypted by now: preparing it again"));
        }
    }
    let event_id =
        context.homeserver.send_event(actor, room_id, &event_type, txn_id, &content).await?;
    debug!(%event_id, ?devices, encrypted = session_id.is_some(), "sent");
    Ok(Sent { event_id: event_id.to_string(), session_id, devices })
}

/// A message as it goes to the homeserver: encrypted if the room is, whoever may read it having been
/// given the key. What follows from it is committed before it is sent.
async fn prepare(
    step: &mut Step<'_>,
    room_id: &RoomId,
    event_type: &str,
    content: &Value,
) -> Result<Prepared, StepError> {
    step.only_answers = false;
    let room = known_room(step, room_id).await?;
    let Some(encryption) = room.encryption.as_ref().filter(|_| !stays_clear(event_type)) else {
        return Ok(Prepared {
            event_type: event_type.to_owned(),
            content: content.clone(),
            session_id: None,
            devices: None,
        });
    };
    let state = ReadyRoom { version: room.version, epoch: step.device_epoch };
    let mut keys = None;
    if !step.kept().await?.may_encrypt(room_id, state) {
        let settings = RoomSettings::new(encryption, &room.history_visibility)?;
        let readers = readers(step, room_id, &room).await?;
        keys = Some(room_key(step, room_id, &readers, &settings).await?);
    }
    // Before the keys are sent, so that one commit does for both: nobody can read it without them.
    let encrypted = step.machine().await?.encrypt(room_id, event_type, content).await?;
    let mut devices = 0;
    if let Some(keys) = keys {
        let given = !keys.is_empty();
        devices = give(step, keys).await?;
        step.kept().await?.note_ready(room_id, state);
        step.only_answers = given;
    }
    Ok(Prepared {
        event_type: "m.room.encrypted".to_owned(),
        content: encrypted.content,
        session_id: Some(encrypted.session_id),
        devices: i32::try_from(devices).ok(),
    })
}

/// Servers and clients add reactions up, and apply redactions, by what stands in the clear.
fn stays_clear(event_type: &str) -> bool {
    matches!(event_type, "m.reaction" | "m.room.redaction")
}

/// What is known of the room, the homeserver having been asked if that is not enough. What is written of
/// it does not follow from anything that the step has gathered, and commits nothing of that.
pub(super) async fn known_room(
    step: &mut Step<'_>,
    room_id: &RoomId,
) -> Result<Arc<Room>, StepError> {
    let mut known = step.rooms.get(room_id.as_str()).cloned();
    for _ in 0..MAX_QUESTIONS {
        let room = if let Some(room) = known.take() {
            room
        } else {
            let load = async |conn: &mut Connection| rooms::load(conn, room_id.as_str()).await;
            Arc::new(step.context.store.run(load).await?)
        };
        if room.members_complete && room.encryption_checked {
            step.rooms.insert(room_id.to_string(), Arc::clone(&room));
            return Ok(room);
        }
        // If an event told something newer meanwhile, this is not written, and we ask again.
        known = ask_about_room(step, room_id, &room).await?.map(Arc::new);
    }
    Err(StepError::retry("the room changes faster than we can ask about it"))
}

async fn ask_about_room(
    step: &Step<'_>,
    room_id: &RoomId,
    room: &Room,
) -> Result<Option<Room>, StepError> {
    let homeserver = step.ask();
    let (encryption, visibility, members) = tokio::try_join!(
        homeserver.state(&step.actor, room_id, "m.room.encryption"),
        homeserver.state(&step.actor, room_id, "m.room.history_visibility"),
        homeserver.members(&step.actor, room_id),
    )?;
    let members = members.into_iter().map(|member| (member.user_id.to_string(), member.membership));
    let told = rooms::Answer {
        encryption: encryption.map(|content| foreign::encryption(Some(&content))),
        history_visibility: foreign::history_visibility(visibility.as_ref()),
        members: members.collect(),
    };
    let (fence, now) = (step.fence, step.now());
    let answer = async |conn: &mut Connection| {
        rooms::answer(conn, fence, room_id.as_str(), room.version, &told, now).await
    };
    Ok(step.context.store.run(answer).await?)
}

/// Whoever may read the next message and does not read it in our own database.
async fn readers(
    step: &Step<'_>,
    room_id: &RoomId,
    room: &Room,
) -> Result<Vec<OwnedUserId>, StepError> {
    let mut memberships = vec!["join".to_owned()];
    if room.history_visibility != "joined" {
        memberships.push("invite".to_owned());
    }
    let members =
        async |conn: &mut Connection| rooms::members(conn, room_id.as_str(), &memberships).await;
    let mut readers = step.context.store.run(members).await?;
    readers.retain(|user| *user == step.bot.user_id || !step.is_ours(user.as_str()));
    Ok(readers)
}

/// The messages that give the room's key to every device of `readers` that lacks it.
async fn room_key(
    step: &mut Step<'_>,
    room_id: &RoomId,
    readers: &[OwnedUserId],
    settings: &RoomSettings,
) -> Result<ShareRequests, StepError> {
    step.machine().await?.track(readers).await?;
    // Devices that changed, and those of users who are new to us, are asked for first.
    device_keys::look(step).await?;
    outgoing::run_queries(step).await?;
    if let Some((id, claim)) = step.machine().await?.missing_sessions(readers).await? {
        outgoing::claim(step, &id, claim).await?;
    }
    Ok(step.machine().await?.share_room_key(room_id, readers, settings).await?)
}

/// Sends what [`room_key`] made, and tells to how many devices the key went.
async fn give(step: &mut Step<'_>, keys: ShareRequests) -> Result<usize, StepError> {
    let mut devices = 0;
    for request in keys {
        let withheld = request.event_type.to_string() != "m.room.encrypted";
        if !withheld {
            devices +=
                request.messages.values().map(std::collections::BTreeMap::len).sum::<usize>();
        }
        outgoing::to_device(step, &request).await?;
    }
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::homeserver::HomeserverError;

    #[test]
    fn a_message_is_given_up_by_age_and_never_for_an_outage() {
        let now = DateTime::UNIX_EPOCH;
        let send = |attempts, age| Send {
            room_id: "!r:x".to_owned(),
            txn_id: "t".to_owned(),
            event_type: "m.room.message".to_owned(),
            content: Value::Null,
            attempts,
            created_at: now - age,
        };
        let refused = |status, is_matrix, errcode: &str| {
            StepError::from(HomeserverError::Refused {
                status,
                errcode: errcode.to_owned(),
                is_matrix,
                error: "no".to_owned(),
                retry_after: Some(std::time::Duration::ZERO),
            })
        };
        let busy = refused(429, true, "M_LIMIT_EXCEEDED");
        let (hour, week) = (Duration::hours(1), Duration::days(7));
        assert!(may_try_again(&send(1000, hour), &busy, now));
        assert!(may_try_again(&send(0, week), &busy, now), "an outage has just ended");
        assert!(!may_try_again(&send(30, week), &busy, now));
        for away in [refused(502, false, "M_UNKNOWN"), refused(401, true, "M_UNKNOWN_TOKEN")] {
            assert!(may_try_again(&send(1000, week), &away, now), "{away}");
        }
        let no = refused(403, true, "M_FORBIDDEN");
        assert!(!may_try_again(&send(0, hour), &no, now));
    }
}
