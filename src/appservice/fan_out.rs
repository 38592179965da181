//! From one transaction to the inboxes of the bots that it concerns, in one database transaction
//! whose number of statements does not grow with what the transaction holds.
//!
//! - a to-device message goes to the bot whose device it names, once ([`to_device`]);
//! - key counts go to their bot if they give it anything to do;
//! - a changed user is noted for whoever has use for that user's devices ([`device_lists`]);
//! - a room event goes to every bot that was joined when it was sent, state events only become room
//!   facts ([`room_facts`]), and a bot's invitation goes to that bot.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use chrono::{DateTime, Utc};

use super::{
    room_facts,
    wire::{RoomEvent, ToDevice, Transaction},
};
use crate::{
    model::{BotId, EventSeq},
    store::{
        Connection, Sealer, StoreError, bots, device_lists, events,
        events::NewEvent,
        inbox,
        inbox::{KeyCounts, NewEntry, Work},
        rooms,
        rooms::Fact,
        to_device, verifications,
    },
};

/// At or above this many one-time keys a bot makes no others. matrix-sdk-crypto, once told of fewer,
/// makes them fifty again; told of each one that is taken it would upload one for every first contact,
/// and read and write the whole account for that.
const ENOUGH_ONE_TIME_KEYS: u64 = 25;

/// Writes everything that `transaction` gives to do, and wakes whom it concerns; says whether that is
/// anybody.
///
/// # Errors
///
/// The database's own: then nothing was written, and the homeserver must send it again.
pub(super) async fn fan_out(
    conn: &mut Connection,
    sealer: &Sealer,
    transaction: Transaction,
    now: DateTime<Utc>,
) -> Result<bool, StoreError> {
    let Transaction { events, to_device, key_counts, changed_users, skipped } = transaction;
    if skipped > 0 {
        tracing::warn!(skipped, "skipped items of a transaction that make no sense");
        metrics::counter!("greenshield_transaction_items_skipped").increment(skipped as u64);
    }
    let mut entries = Vec::new();
    route_to_device(conn, to_device, key_counts, &mut entries, now).await?;
    device_lists::changed(conn, &changed_users).await?;
    route_events(conn, sealer, events, &mut entries, now).await?;

    inbox::add(conn, sealer, &entries, now).await?;
    Ok(!entries.is_empty())
}

/// To-device messages and key counts: both name a user and a device.
async fn route_to_device(
    conn: &mut Connection,
    messages: Vec<ToDevice>,
    key_counts: BTreeMap<(String, String), KeyCounts>,
    entries: &mut Vec<NewEntry>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    // Most give nothing to do: whose they are need not be known.
    let key_counts = key_counts.into_iter().filter(|(_, counts)| gives_work(counts));
    let key_counts: Vec<_> = key_counts.collect();
    let users: BTreeSet<String> = messages
        .iter()
        .map(|message| message.to_user_id.clone())
        .chain(key_counts.iter().map(|((user, _), _)| user.clone()))
        .collect();
    let users: Vec<String> = users.into_iter().collect();
    let known: HashMap<String, (BotId, String)> = bots::by_user_ids(conn, &users)
        .await?
        .into_iter()
        .map(|(user, bot, device)| (user, (bot, device)))
        .collect();

    let mut addressed = Vec::with_capacity(messages.len());
    for message in messages {
        match known.get(&message.to_user_id) {
            Some((bot, device))
                if message.to_device_id == *device || message.to_device_id == "*" =>
            {
                addressed.push((*bot, message.json));
            }
            // The homeserver names devices that we never made (cross-signing keys are devices to it).
            _ => tracing::debug!(
                user_id = message.to_user_id,
                "a to-device message for no device of ours"
            ),
        }
    }
    let addressed = verifications::heeded(conn, addressed, now).await?;
    let digests: Vec<_> =
        addressed.iter().map(|(bot, json)| (*bot, to_device::digest(json))).collect();
    let mut fresh = to_device::record(conn, &digests, now).await?.into_iter().peekable();
    for (index, (bot, json)) in addressed.into_iter().enumerate() {
        if fresh.next_if_eq(&index).is_some() {
            entries.push(NewEntry { bot, work: Work::ToDevice(json), due_at: now });
        }
    }
    for ((user, device), counts) in key_counts {
        if let Some((bot, ours)) = known.get(&user)
            && device == *ours
        {
            entries.push(NewEntry { bot: *bot, work: Work::KeyCounts(counts), due_at: now });
        }
    }
    Ok(())
}

/// Whether these counts make a bot upload keys.
fn gives_work(counts: &KeyCounts) -> bool {
    counts.one_time_keys.is_some_and(|left| left < ENOUGH_ONE_TIME_KEYS)
        || counts.fallback_keys.as_ref().is_some_and(Vec::is_empty)
}

/// Room events: facts, invitations, and work for the bots in the room at that point of its history.
async fn route_events(
    conn: &mut Connection,
    sealer: &Sealer,
    events: Vec<RoomEvent>,
    entries: &mut Vec<NewEntry>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let rooms: BTreeSet<String> = events.iter().map(|event| event.room_id.clone()).collect();
    let rooms: Vec<String> = rooms.into_iter().collect();
    let mut joined: BTreeMap<String, BTreeMap<String, BotId>> = BTreeMap::new();
    for (room, bot, user) in rooms::joined_bots(conn, &rooms).await? {
        joined.entry(room).or_default().insert(user, bot);
    }
    let members: BTreeSet<String> = events
        .iter()
        .filter(|event| event.event_type == "m.room.member")
        .filter_map(|event| event.state_key.clone())
        .collect();
    let members: Vec<String> = members.into_iter().collect();
    let member_bots: HashMap<String, BotId> = bots::by_user_ids(conn, &members)
        .await?
        .into_iter()
        .map(|(user, bot, _)| (user, bot))
        .collect();

    let mut facts: Vec<(String, Fact)> = Vec::new();
    let mut recipients: Vec<(String, Vec<BotId>, bool)> = Vec::new();
    let mut stored: Vec<NewEvent> = Vec::new();
    for event in events {
        if let Some(fact) = room_facts::fact(&event) {
            let mut invited = Vec::new();
            let mut unwatched = false;
            if let Fact::Member { user_id, membership } = &fact
                && let Some(bot) = member_bots.get(user_id)
            {
                let room = joined.entry(event.room_id.clone()).or_default();
                if membership == "join" {
                    room.insert(user_id.clone(), *bot);
                } else {
                    unwatched = room.remove(user_id).is_some() && room.is_empty();
                }
                if membership == "invite" {
                    invited.push(*bot);
                }
            }
            facts.push((event.room_id.clone(), fact));
            if unwatched {
                facts.push((event.room_id.clone(), Fact::Unwatched));
            }
            if !invited.is_empty() {
                recipients.push((event.event_id, invited, true));
                stored.extend(NewEvent::read(event.room_id, event.json));
            }
        } else if event.state_key.is_none() {
            let readers: Vec<BotId> = joined
                .get(&event.room_id)
                .into_iter()
                .flatten()
                .filter(|(user, _)| **user != event.sender)
                .map(|(_, bot)| *bot)
                .collect();
            if !readers.is_empty() {
                recipients.push((event.event_id, readers, false));
                stored.extend(NewEvent::read(event.room_id, event.json));
            }
        }
    }
    rooms::apply(conn, &facts, now).await?;
    let known: HashMap<String, (EventSeq, bool)> = events::store(conn, sealer, &stored, now)
        .await?
        .into_iter()
        .map(|(event_id, seq, is_new)| (event_id, (seq, is_new)))
        .collect();
    for (event_id, readers, is_invite) in recipients {
        let Some((seq, is_new)) = known.get(&event_id) else { continue };
        let work = match (is_invite, is_new) {
            (true, true) => Work::Invite(*seq),
            (true, false) => continue,
            // A bot that came into the room a moment ago may have read it back, for itself alone. Who
            // has it in the inbox or the log is not given it twice.
            (false, _) => Work::RoomEvent(*seq),
        };
        entries.extend(readers.into_iter().map(|bot| NewEntry {
            bot,
            work: work.clone(),
            due_at: now,
        }));
    }
    Ok(())
}
