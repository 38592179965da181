//! The one way into a room: [`message`] decides, at the last moment and in one place, whether a
//! message goes out encrypted, and refuses when that cannot be known.
//!
//! Before the first message of a room the homeserver is asked for its encryption, its history
//! visibility and all its members; from then on events keep the rows up to date. Whoever may read (the
//! joined, and the invited unless history is for joined members only) gets the room key first.

use ruma::{OwnedUserId, RoomId, TransactionId};
use serde_json::Value;
use tracing::{debug, warn};

use super::{StepError, backoff, bot_worker::Step, outgoing};
use crate::{
    crypto::RoomSettings,
    store::{
        StoreError, outbox,
        outbox::{Send, Sent},
        rooms,
        rooms::Room,
    },
    telemetry::chain,
};

/// How many messages one round sends: others want their turn.
const BATCH: i64 = 20;
/// After this many temporary failures a message is given up.
const MAX_ATTEMPTS: i32 = 30;
/// How often news may overtake our question about a room.
const MAX_QUESTIONS: usize = 5;

/// Sends what is due; tells whether anything was. A message that fails is put off or given up by
/// itself; those behind it in the same room wait, other rooms go on.
pub(super) async fn run(step: &mut Step<'_>) -> Result<bool, StepError> {
    let mut conn = step.context.store.connection().await?;
    let due =
        outbox::due(&mut conn, step.context.store.sealer(), step.bot.id, step.now(), BATCH).await?;
    drop(conn);
    let any = !due.is_empty();
    let mut held_back: Vec<String> = Vec::new();
    for send in due {
        if held_back.contains(&send.room_id) {
            continue;
        }
        if let Err(error) = deliver(step, &send).await? {
            warn!(send = %send.id, error = chain(&error), attempts = send.attempts, "a message was not sent");
            step.failed(&error).await;
            if put_off(step, &send, &error).await? {
                held_back.push(send.room_id);
            }
        }
    }
    Ok(any)
}

/// Sends one message of the outbox. The inner result is the message's own failure, the outer one the
/// step's.
async fn deliver(step: &mut Step<'_>, send: &Send) -> Result<Result<(), StepError>, StepError> {
    let Ok(room) = <&RoomId>::try_from(send.room_id.as_str()) else {
        return Ok(Err(StepError::fail("M_INVALID_PARAM", "this is not a room id")));
    };
    // The creation time makes the id unique across databases that a homeserver may have seen.
    let txn_id = format!("gs-{}-{}-{}", step.bot.id, send.id, send.created_at.timestamp_micros());
    let result = message(step, room, &send.event_type, &send.content, txn_id.as_str().into()).await;
    let sent = match result {
        Ok(sent) => sent,
        Err(StepError::LeaseLost) => return Err(StepError::LeaseLost),
        Err(error) => return Ok(Err(error)),
    };
    let mut tx = step.context.store.begin_fenced(step.fence).await?;
    outbox::sent(&mut tx, send.id, &sent, step.now()).await?;
    tx.commit().await.map_err(StoreError::from)?;
    metrics::counter!("greenshield_messages_sent_total").increment(1);
    Ok(Ok(()))
}

/// Puts a failed message off (true) or gives it up (false).
async fn put_off(step: &Step<'_>, send: &Send, error: &StepError) -> Result<bool, StepError> {
    let now = step.now();
    let again = error.is_retry() && send.attempts < MAX_ATTEMPTS;
    let mut tx = step.context.store.begin_fenced(step.fence).await?;
    if again {
        let due_at = backoff::next_attempt(error, send.attempts + 1, send.id.0, now);
        outbox::put_off(&mut tx, send.id, &error.to_string(), due_at).await?;
    } else {
        outbox::fail(&mut tx, send.id, &error.to_string(), now).await?;
    }
    tx.commit().await.map_err(StoreError::from)?;
    Ok(again)
}

/// Sends a message into a room, encrypted if the room is.
pub(super) async fn message(
    step: &mut Step<'_>,
    room_id: &RoomId,
    event_type: &str,
    content: &Value,
    txn_id: &TransactionId,
) -> Result<Sent, StepError> {
    let room = known_room(step, room_id).await?;
    let Some(encryption) = room.encryption.as_ref().filter(|_| !stays_clear(event_type)) else {
        let event_id = step
            .context
            .homeserver
            .send_event(&step.actor, room_id, event_type, txn_id, content)
            .await?;
        return Ok(Sent { event_id: event_id.to_string(), session_id: None, devices: None });
    };
    let settings = RoomSettings::new(encryption, &room.history_visibility)?;
    let readers = readers(step, room_id, &room).await?;
    let devices = share_key(step, room_id, &readers, &settings).await?;
    let encrypted = step.machine().await?.encrypt(room_id, event_type, content).await?;
    let event_id = step
        .context
        .homeserver
        .send_event(&step.actor, room_id, "m.room.encrypted", txn_id, &encrypted.content)
        .await?;
    debug!(%event_id, devices, "sent, encrypted");
    Ok(Sent {
        event_id: event_id.to_string(),
        session_id: Some(encrypted.session_id),
        devices: i32::try_from(devices).ok(),
    })
}

/// Servers and clients add reactions up, and apply redactions, by what stands in the clear.
fn stays_clear(event_type: &str) -> bool {
    matches!(event_type, "m.reaction" | "m.room.redaction")
}

/// What is known of the room, the homeserver having been asked if that is not enough.
pub(super) async fn known_room(step: &Step<'_>, room_id: &RoomId) -> Result<Room, StepError> {
    let homeserver = &step.context.homeserver;
    for _ in 0..MAX_QUESTIONS {
        let mut conn = step.context.store.connection().await?;
        let room = rooms::load(&mut conn, room_id.as_str()).await?;
        drop(conn);
        if room.members_complete && room.encryption_checked {
            return Ok(room);
        }
        let encryption = homeserver.state(&step.actor, room_id, "m.room.encryption").await?;
        let visibility =
            homeserver.state(&step.actor, room_id, "m.room.history_visibility").await?;
        let members: Vec<_> = homeserver
            .members(&step.actor, room_id)
            .await?
            .into_iter()
            .map(|member| (member.user_id.to_string(), member.membership))
            .collect();
        let visibility = visibility
            .as_ref()
            .and_then(|content| content.get("history_visibility")?.as_str())
            .unwrap_or("shared");
        let mut tx = step.context.store.begin_fenced(step.fence).await?;
        // If an event told something newer meanwhile, this is not written, and we ask again.
        rooms::answer(
            &mut tx,
            room_id.as_str(),
            room.version,
            encryption.as_ref(),
            visibility,
            &members,
            step.now(),
        )
        .await?;
        tx.commit().await.map_err(StoreError::from)?;
    }
    Err(StepError::retry("the room changes faster than we can ask about it"))
}

/// Whoever may read the next message.
async fn readers(
    step: &Step<'_>,
    room_id: &RoomId,
    room: &Room,
) -> Result<Vec<OwnedUserId>, StepError> {
    let mut memberships = vec!["join".to_owned()];
    if room.history_visibility != "joined" {
        memberships.push("invite".to_owned());
    }
    let mut conn = step.context.store.connection().await?;
    Ok(rooms::members(&mut conn, room_id.as_str(), &memberships).await?)
}

/// Gives the room key to every device of `readers` that lacks it, and tells to how many it went.
async fn share_key(
    step: &mut Step<'_>,
    room_id: &RoomId,
    readers: &[OwnedUserId],
    settings: &RoomSettings,
) -> Result<usize, StepError> {
    step.machine().await?.track(readers).await?;
    // Devices that changed, and those of users who are new to us, are asked for first.
    outgoing::run_keys(step).await?;
    if let Some((id, claim)) = step.machine().await?.missing_sessions(readers).await? {
        let answer = step.context.homeserver.send((&step.actor).into(), claim).await?;
        step.machine().await?.mark_sent(&id, &answer).await?;
    }
    let requests = step.machine().await?.share_room_key(room_id, readers, settings).await?;
    let mut devices = 0;
    for request in requests {
        let withheld = request.event_type.to_string() != "m.room.encrypted";
        if !withheld {
            devices +=
                request.messages.values().map(std::collections::BTreeMap::len).sum::<usize>();
        }
        outgoing::to_device(step, &request).await?;
    }
    Ok(devices)
}
