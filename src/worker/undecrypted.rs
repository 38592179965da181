//! Room events: decrypted once for everybody, logged for each bot, or parked until their key comes.
//!
//! An event that some other bot has decrypted is logged without a machine. One whose key is missing
//! keeps its place in the inbox: it is tried again when its key comes, when another bot decrypts it,
//! and now and then; and a missing key makes the bot ask for to-device messages that got lost.

use std::collections::{HashMap, HashSet};

use chrono::Duration;
use ruma::RoomId;
use serde_json::Value;
use tracing::{debug, info};

use super::{StepError, backoff, bot_worker::Step, verify};
use crate::{
    crypto::{Undecryptable, VerificationMessage},
    model::{BotId, Decryption, EventSeq},
    store::{
        StoreError, bots, events,
        events::StoredEvent,
        inbox,
        inbox::{Entry, Work},
        queue,
    },
};

/// How long a key may take to come.
const GIVE_UP_AFTER: Duration = Duration::days(7);
/// How long after a missing key is noticed we ask for what was lost: the ordinary way is faster.
const RECONCILE_AFTER: Duration = Duration::seconds(2);

/// Takes the entries up, one by one.
pub(super) async fn run(step: &mut Step<'_>, entries: Vec<Entry>) -> Result<(), StepError> {
    if entries.is_empty() {
        return Ok(());
    }
    let seqs: Vec<EventSeq> = entries.iter().filter_map(seq_of).collect();
    let mut conn = step.context.store.connection().await?;
    let loaded = events::load(&mut conn, step.context.store.sealer(), &seqs).await?;
    let logged: HashSet<_> =
        events::logged(&mut conn, step.bot.id, &seqs).await?.into_iter().collect();
    drop(conn);
    let mut loaded: HashMap<EventSeq, StoredEvent> =
        loaded.into_iter().map(|event| (event.seq, event)).collect();
    for entry in entries {
        let event = seq_of(&entry).and_then(|seq| loaded.remove(&seq));
        match event {
            Some(event) if !logged.contains(&event.seq) => read(step, &entry, event).await?,
            // Logged before: nothing is left to do for it.
            Some(_) => done(step, &entry).await?,
            None => unreadable(step, &entry).await?,
        }
    }
    Ok(())
}

fn seq_of(entry: &Entry) -> Option<EventSeq> {
    match entry.work {
        Work::RoomEvent(seq) => Some(seq),
        _ => None,
    }
}

/// How one event reads.
enum Reading {
    Clear { json: Value, how: Decryption, fresh: bool },
    Not(Undecryptable),
}

async fn read(step: &mut Step<'_>, entry: &Entry, event: StoredEvent) -> Result<(), StepError> {
    match reading(step, entry, &event).await? {
        Reading::Clear { json, how, fresh } => {
            // A verification must have been fed before the event counts as seen.
            if let Some(message) = VerificationMessage::from_room_event(&json) {
                verify::heard_in_room(step, &message, &json).await?;
            }
            log(step, entry, &event, &json, how, fresh).await
        }
        Reading::Not(why) if why.may_come() && step.now() - entry.received_at < GIVE_UP_AFTER => {
            park(step, entry, &event, &why).await
        }
        Reading::Not(why) => {
            info!(event_id = event.event_id, reason = why.reason(), "giving an event up");
            metrics::counter!("greenshield_events_given_up_total").increment(1);
            log(step, entry, &event, &event.json, Decryption::Failed, false).await
        }
    }
}

async fn reading(
    step: &mut Step<'_>,
    entry: &Entry,
    event: &StoredEvent,
) -> Result<Reading, StepError> {
    let late = if entry.attempts > 0 { Decryption::Late } else { Decryption::Ok };
    if event.event_type != "m.room.encrypted" {
        let json = with_room(event.json.clone(), &event.room_id);
        return Ok(Reading::Clear { json, how: Decryption::Plain, fresh: false });
    }
    if let Some(clear) = &event.clear {
        return Ok(Reading::Clear { json: clear.clone(), how: late, fresh: false });
    }
    let Ok(room) = <&RoomId>::try_from(event.room_id.as_str()) else {
        return Ok(Reading::Not(Undecryptable::Never("malformed")));
    };
    Ok(match step.machine().await?.decrypt(room, &event.json).await? {
        Ok(clear) => {
            let json = with_room(clear, &event.room_id);
            Reading::Clear { json, how: late, fresh: true }
        }
        Err(why) => Reading::Not(why),
    })
}

/// Transactions carry the room id, an answer of `/messages` may not.
fn with_room(mut json: Value, room_id: &str) -> Value {
    if let Some(object) = json.as_object_mut() {
        object.entry("room_id").or_insert_with(|| room_id.into());
    }
    json
}

async fn log(
    step: &Step<'_>,
    entry: &Entry,
    event: &StoredEvent,
    json: &Value,
    how: Decryption,
    fresh: bool,
) -> Result<(), StepError> {
    let now = step.now();
    let sealer = step.context.store.sealer();
    let respond = step.context.settings.responder && how != Decryption::Failed && is_text(json);
    let mut tx = step.context.store.begin_fenced(step.fence).await?;
    let mut others: Vec<BotId> = Vec::new();
    if fresh {
        events::set_clear(&mut tx, sealer, event.seq, json, step.bot.id, now).await?;
        others = inbox::unpark_event(&mut tx, event.seq, now).await?;
        others.retain(|bot| *bot != step.bot.id);
    }
    events::log(&mut tx, step.bot.id, event.seq, how, respond, now).await?;
    inbox::remove(&mut tx, &[entry.id]).await?;
    queue::wake(&mut tx, &others, now).await?;
    crate::store::Signal::Logged.notify(&mut tx).await?;
    tx.commit().await.map_err(StoreError::from)?;
    metrics::counter!("greenshield_events_logged_total", "decryption" => how.as_str()).increment(1);
    Ok(())
}

fn is_text(json: &Value) -> bool {
    json.get("type").and_then(Value::as_str) == Some("m.room.message")
        && json.pointer("/content/msgtype").and_then(Value::as_str) == Some("m.text")
}

async fn park(
    step: &Step<'_>,
    entry: &Entry,
    event: &StoredEvent,
    why: &Undecryptable,
) -> Result<(), StepError> {
    let now = step.now();
    let session = event.session_id.clone().unwrap_or_default();
    debug!(
        event_id = event.event_id,
        reason = why.reason(),
        "parking an event until its key comes"
    );
    let mut tx = step.context.store.begin_fenced(step.fence).await?;
    let due_at = now + backoff::next_look(entry.attempts);
    inbox::park(&mut tx, entry.id, &session, &why.reason(), due_at).await?;
    inbox::ask_reconcile(&mut tx, step.bot.id, now + RECONCILE_AFTER, now).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(())
}

/// Its row is gone or damaged: nothing can be done for it.
async fn unreadable(step: &Step<'_>, entry: &Entry) -> Result<(), StepError> {
    let said = "a stored event does not open, and is left out: see the log";
    let mut tx = step.context.store.begin_fenced(step.fence).await?;
    bots::note_error(&mut tx, step.bot.id, Some(said), step.now()).await?;
    inbox::remove(&mut tx, &[entry.id]).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(())
}

async fn done(step: &Step<'_>, entry: &Entry) -> Result<(), StepError> {
    let mut tx = step.context.store.begin_fenced(step.fence).await?;
    inbox::remove(&mut tx, &[entry.id]).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(())
}
