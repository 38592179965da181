//! Room events: decrypted once for everybody, logged for each bot, or parked until their key comes.
//!
//! An event that some other bot has decrypted is logged without a machine, and so is one that a bot of
//! ours sent: what it says lies in that bot's outbox, and no keys travel between our own bots. One whose
//! key is missing keeps its place in the inbox: it is tried again when its key comes, when another bot
//! decrypts it, and now and then; and a missing key makes the bot ask for to-device messages that got
//! lost. A message that comes again under another event id is a replay, and is not read again. A
//! command is answered in the commit that logs it. Messages of verifications come last, together: how many
//! they are decides which are heeded.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use chrono::Duration;
use ruma::RoomId;
use serde_json::{Value, json};
use tracing::{debug, info};

use super::{StepError, backoff, bot_worker::Step, verify};
use crate::{
    crypto::{Undecryptable, VerificationMessage},
    model::{Decryption, EventSeq, Heard},
    store::{
        Connection,
        events::{ClearRow, LogRow, StoredEvent},
        inbox::{Entry, ParkedRow, Work},
        outbox::{self, Send, SendRow},
    },
};

/// How long a key may take to come.
const GIVE_UP_AFTER: Duration = Duration::days(7);
/// How long the outbox of a bot of ours may take to say what was sent: it is written right after.
const GIVE_UP_OURS_AFTER: Duration = Duration::minutes(10);
/// How long after a missing key is noticed we ask for what was lost: the ordinary way is faster.
const RECONCILE_AFTER: Duration = Duration::seconds(2);

/// The events of a briefing.
pub(super) type Events = HashMap<EventSeq, Arc<StoredEvent>>;

/// Takes the entries up, one by one.
pub(super) async fn run(
    step: &mut Step<'_>,
    entries: Vec<Entry>,
    events: &Events,
) -> Result<(), StepError> {
    let mut heard = Messages::new();
    let mut verifying = Vec::new();
    for entry in entries {
        let Work::RoomEvent(seq) = entry.work else { continue };
        match events.get(&seq) {
            Some(event) if !entry.logged => {
                let message = read(step, &entry, event, &mut heard).await?;
                verifying.extend(message.map(|message| (entry, Arc::clone(event), message)));
            }
            // Logged before: nothing is left to do for it.
            Some(_) => step.rows.done.push(entry.id),
            // Its row is gone or damaged: nothing can be done for it.
            None => {
                step.note("a stored event does not open, and is left out: see the log");
                step.rows.done.push(entry.id);
            }
        }
    }
    verifications(step, verifying).await
}

/// A message of a verification, how it reads and whether it was decrypted just now.
struct Verifying {
    message: VerificationMessage,
    json: Value,
    how: Decryption,
    fresh: bool,
}

/// Feeds those that are heeded; each is logged after that, heeded or not.
async fn verifications(
    step: &mut Step<'_>,
    messages: Vec<(Entry, Arc<StoredEvent>, Verifying)>,
) -> Result<(), StepError> {
    let asking = messages.iter().map(|(_, _, verifying)| &verifying.message);
    let asking: Vec<_> = asking.filter(|message| verify::asks(step, message)).cloned().collect();
    let heeded = verify::heeded(step, &asking).await?;
    let mut number = 0;
    for (entry, event, Verifying { message, json, how, fresh }) in messages {
        let mut is_heeded = true;
        if verify::asks(step, &message) {
            is_heeded = heeded.contains(&number);
            number += 1;
        }
        if is_heeded {
            verify::heard_in_room(step, &message, &json).await?;
        }
        seen(step, &entry, &event, &json, how, fresh)?;
    }
    Ok(())
}

/// Messages of Megolm sessions: by sender, session and index.
type Messages = HashSet<(String, String, i64)>;

/// What no client makes twice.
fn message_of(event: &StoredEvent) -> Option<(String, String, i64)> {
    Some((event.sender.clone(), event.session_id.clone()?, event.message_index?))
}

/// How one event reads.
enum Reading {
    Clear { json: Value, how: Decryption, fresh: bool },
    Not(Undecryptable),
}

async fn read(
    step: &mut Step<'_>,
    entry: &Entry,
    event: &StoredEvent,
    heard: &mut Messages,
) -> Result<Option<Verifying>, StepError> {
    let patience = if step.is_ours(&event.sender) { GIVE_UP_OURS_AFTER } else { GIVE_UP_AFTER };
    match reading(step, entry, event, heard).await? {
        Reading::Clear { json, how, fresh } => {
            heard.extend(message_of(event));
            // A verification must have been fed before the event counts as seen.
            if let Some(message) = VerificationMessage::from_room_event(&json) {
                return Ok(Some(Verifying { message, json, how, fresh }));
            }
            seen(step, entry, event, &json, how, fresh)?;
            answer(step, event, &json)?;
        }
        Reading::Not(why) if why.may_come() && step.now() - entry.received_at < patience => {
            park(step, entry, event, &why);
        }
        Reading::Not(why) => {
            info!(event_id = event.event_id, reason = why.reason(), "giving an event up");
            metrics::counter!("greenshield_events_given_up_total").increment(1);
            log(step, entry, event, Decryption::Failed);
        }
    }
    Ok(None)
}

/// The event counts as seen, and what it says inside is kept if it was decrypted just now.
fn seen(
    step: &mut Step<'_>,
    entry: &Entry,
    event: &StoredEvent,
    json: &Value,
    how: Decryption,
    fresh: bool,
) -> Result<(), StepError> {
    if fresh {
        let (sealer, now) = (step.context.store.sealer(), step.now());
        step.rows.clear.insert(event.seq, ClearRow::new(sealer, json, step.bot.id, now)?);
    }
    log(step, entry, event, how);
    Ok(())
}

async fn reading(
    step: &mut Step<'_>,
    entry: &Entry,
    event: &StoredEvent,
    heard: &Messages,
) -> Result<Reading, StepError> {
    let how = if entry.attempts > 0 { Decryption::Late } else { Decryption::Ok };
    if event.event_type != "m.room.encrypted" {
        let json = with_room(event.json.clone(), &event.room_id);
        return Ok(Reading::Clear { json, how: Decryption::Plain, fresh: false });
    }
    let heard = || message_of(event).is_some_and(|message| heard.contains(&message));
    if entry.replayed || event.replayed || heard() {
        // A client uses each number once: a homeserver brings its message again under another id.
        return Ok(Reading::Not(Undecryptable::Never("replayed")));
    }
    if let Some(clear) = &event.clear {
        return Ok(Reading::Clear { json: clear.clone(), how, fresh: false });
    }
    if step.is_ours(&event.sender) {
        return Ok(match said_by_us(step, event).await? {
            Some(json) => Reading::Clear { json, how, fresh: true },
            None => Reading::Not(Undecryptable::KeyMissing),
        });
    }
    let Ok(room) = <&RoomId>::try_from(event.room_id.as_str()) else {
        return Ok(Reading::Not(Undecryptable::Never("malformed")));
    };
    Ok(match step.machine().await?.decrypt(room, &event.json).await? {
        Ok(clear) => {
            let json = with_room(clear, &event.room_id);
            Reading::Clear { json, how, fresh: true }
        }
        Err(why) => Reading::Not(why),
    })
}

/// What a bot of ours sent as this event, once its outbox says so.
async fn said_by_us(step: &mut Step<'_>, event: &StoredEvent) -> Result<Option<Value>, StepError> {
    // Nothing that this step has gathered is about other bots' outboxes.
    let store = &step.context.store;
    let said =
        async |conn: &mut Connection| outbox::said(conn, store.sealer(), &event.event_id).await;
    let said = store.run(said).await?;
    Ok(said.map(|(event_type, content)| {
        json!({
            "type": event_type,
            "content": content,
            "event_id": event.event_id,
            "room_id": event.room_id,
            "sender": event.sender,
            "origin_server_ts": event.origin_server_ts,
        })
    }))
}

/// Transactions carry the room id, an answer of `/messages` may not.
fn with_room(mut json: Value, room_id: &str) -> Value {
    if let Some(object) = json.as_object_mut() {
        object.entry("room_id").or_insert_with(|| room_id.into());
    }
    json
}

fn log(step: &mut Step<'_>, entry: &Entry, event: &StoredEvent, decryption: Decryption) {
    step.rows.logged.push(LogRow { bot: step.bot.id, event: event.seq, decryption });
    step.rows.done.push(entry.id);
    metrics::counter!("greenshield_events_logged_total", "decryption" => decryption.as_str())
        .increment(1);
}

/// Asks the responder, and takes what it says into the outbox.
fn answer(step: &mut Step<'_>, event: &StoredEvent, json: &Value) -> Result<(), StepError> {
    let Some(respond) = step.context.settings.respond else { return Ok(()) };
    if step.is_ours(&event.sender) || !is_text(json) {
        return Ok(());
    }
    let content = respond(&Heard {
        user_id: &step.bot.user_id,
        device_id: &step.bot.device_id,
        display_name: step.bot.display_name.as_deref(),
        master_key: step.bot.master_key.as_deref(),
        event: json,
        event_id: &event.event_id,
        sender: &event.sender,
        age_ms: event.received_at.timestamp_millis().saturating_sub(event.origin_server_ts),
    });
    let Some(content) = content else { return Ok(()) };
    debug!(event_id = event.event_id, "answering");
    let send = Send {
        room_id: event.room_id.clone(),
        txn_id: format!("respond-{}", event.event_id),
        event_type: "m.room.message".to_owned(),
        content,
        attempts: 0,
        created_at: step.now(),
    };
    let row = SendRow::new(step.context.store.sealer(), step.bot.id, &send)?;
    step.rows.sends.push(row);
    if !step.backlog {
        step.sends.push(send);
    }
    Ok(())
}

fn is_text(json: &Value) -> bool {
    json.get("type").and_then(Value::as_str) == Some("m.room.message")
        && json.pointer("/content/msgtype").and_then(Value::as_str) == Some("m.text")
}

fn park(step: &mut Step<'_>, entry: &Entry, event: &StoredEvent, why: &Undecryptable) {
    let now = step.now();
    debug!(
        event_id = event.event_id,
        reason = why.reason(),
        "parking an event until its key comes"
    );
    let ours = step.is_ours(&event.sender);
    let wait = if ours && entry.attempts == 0 {
        std::time::Duration::from_secs(1)
    } else {
        backoff::next_look(entry.attempts)
    };
    step.rows.parked.push(ParkedRow {
        entry: entry.id,
        session: event.session_id.clone().unwrap_or_default(),
        reason: why.reason(),
        due_at: now + wait,
    });
    if !ours {
        step.ask_reconcile(now + RECONCILE_AFTER);
    }
}
