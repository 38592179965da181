//! Fetching the to-device messages that the homeserver kept and no transaction brought.
//!
//! Asked for after an outage, when an event stays undecryptable, at the end of a signup, by a slow
//! sweep over all bots, and once after each burst of activity: even a healthy Synapse can skip a message
//! (its position moves past messages that it has not looked at yet), and one that nothing else tells of,
//! like a request to verify a device, would be lost for good. It also empties the device's inbox at the
//! homeserver, which otherwise grows for ever.

use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Duration, Utc};
use ruma::OwnedUserId;
use tracing::{debug, info, warn};

use super::{Context, StepError, backoff, bot_worker::Step, guard};
use crate::{
    homeserver::HomeserverError,
    store::{
        Signal, StoreError, bots,
        inbox::{self, Entry, NewEntry, Work},
        to_device, verifications,
    },
    telemetry::chain,
};

/// Every bot is reconciled at least this often.
const EVERY: Duration = Duration::hours(12);
/// How many bots one sweep takes: it comes with every renewal of the leases, a few seconds apart.
const SWEEP: i64 = 20;
/// More pages than this are left for the next time.
const MAX_PAGES: usize = 50;

/// How far apart bots look after activity.
const APART: Duration = Duration::milliseconds(100);

/// How long after activity we look whether anything was skipped, and how often at most.
const AFTER_ACTIVITY: Duration = Duration::seconds(5);
const AT_MOST_EVERY: Duration = Duration::seconds(20);

/// Something came for the bot: looks, a little later, whether something else was skipped.
pub(super) async fn after_activity(step: &mut Step<'_>) -> Result<(), StepError> {
    if !step.has_machine() {
        return Ok(());
    }
    let now = step.now();
    let soon = now + AFTER_ACTIVITY;
    let due_at = step.bot.reconciled_at.map_or(soon, |last| soon.max(last + AT_MOST_EVERY));
    let paced = &step.context.pace;
    let kept = step.kept().await?;
    // Arranged once, and not with every message.
    if kept.reconcile_at.is_none_or(|arranged| arranged < now) {
        let due_at = paced.slot(due_at);
        kept.reconcile_at = Some(due_at);
        step.ask_reconcile(due_at);
    }
    Ok(())
}

/// Spreads reconciles after activity, however many bots are active: a homeserver has other work.
#[derive(Debug, Default)]
pub struct Pace {
    last: Mutex<Option<DateTime<Utc>>>,
}

impl Pace {
    /// The first free slot at `due_at` or later.
    fn slot(&self, due_at: DateTime<Utc>) -> DateTime<Utc> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = last.map_or(due_at, |last| due_at.max(last + APART));
        *last = Some(slot);
        slot
    }
}

/// Asks for reconciles of bots whose turn it is.
pub(super) async fn sweep(context: &Context, shards: &[i16]) -> Result<(), StoreError> {
    let now = context.clock.now();
    let mut tx = context.store.begin().await?;
    let due = bots::claim_for_reconcile(&mut tx, shards, now - EVERY, SWEEP, now).await?;
    let entries: Vec<_> =
        due.iter().map(|bot| NewEntry { bot: *bot, work: Work::Reconcile, due_at: now }).collect();
    inbox::add(&mut tx, context.store.sealer(), &entries, now).await?;
    Signal::Work.notify(&mut tx).await?;
    tx.commit().await?;
    Ok(())
}

/// Takes the entries up, all at once. A homeserver that cannot be asked now is asked again later, and
/// keeps nothing else back.
pub(super) async fn run(step: &mut Step<'_>, entries: Vec<Entry>) -> Result<(), StepError> {
    let Some(first) = entries.first() else { return Ok(()) };
    let mut done: Vec<_> = entries.iter().map(|entry| entry.id).collect();
    let fetched = whole(fetch(step).await)?;
    // Whoever cannot be given messages may still be spoken for: neither waits for the other.
    let looked = whole(guard::run(step).await)?;
    let result = fetched.and(looked);
    let mut tx = step.begin().await?;
    if let Err(error) = result {
        let due_at = backoff::next_attempt(&error, first.attempts + 1, first.id.0, step.now());
        warn!(error = chain(&error), "could not look what was lost and is shown; trying again");
        inbox::put_off(&mut tx, first.id, due_at).await?;
        if !error.is_retry() {
            step.note(&chain(&error));
        }
        done.remove(0);
    } else {
        let now = step.now();
        bots::reconciled(&mut tx, step.bot.id, now).await?;
        step.bot.reconciled_at = Some(now);
    }
    inbox::finish(&mut tx, &done, &[], step.now()).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(())
}

/// Only what leaves the machine whole may be put off.
fn whole(result: Result<(), StepError>) -> Result<Result<(), StepError>, StepError> {
    match result {
        Err(error) if !error.machine_is_whole() => Err(error),
        result => Ok(result),
    }
}

/// Fetches page after page into the inbox; each page is committed before it is deleted at the
/// homeserver.
async fn fetch(step: &mut Step<'_>) -> Result<(), StepError> {
    let mut since: Option<String> = None;
    let mut found = 0;
    for _ in 0..MAX_PAGES {
        let page =
            match step.homeserver().await?.to_device_inbox(&step.actor, since.as_deref()).await {
                Ok(page) => page,
                Err(error) if is_unsupported(&error) => {
                    warn!(
                        error = chain(&error),
                        "this homeserver cannot be asked for lost to-device messages"
                    );
                    break;
                }
                Err(error) => return Err(error.into()),
            };
        let count = page.count;
        found += take_in(step, page.events).await?;
        // Going on with `next_batch` deletes this page, so an empty one is the end.
        match page.next_batch {
            Some(next) if count > 0 => since = Some(next),
            _ => break,
        }
    }
    if found > 0 {
        info!(found, "fetched to-device messages that no transaction had brought");
        metrics::counter!("greenshield_reconciled_to_device_total").increment(found as u64);
    } else {
        debug!("nothing was lost");
    }
    Ok(())
}

/// Writes those that are new into the inbox, and tells how many they were.
async fn take_in(step: &mut Step<'_>, events: Vec<serde_json::Value>) -> Result<usize, StepError> {
    let now = step.now();
    let bot = step.bot.id;
    let from_somebody = |event: &serde_json::Value| {
        let sender = event.get("sender").and_then(serde_json::Value::as_str);
        sender.is_some_and(|sender| OwnedUserId::try_from(sender).is_ok())
            && to_device::is_sound(event)
    };
    let events = events.into_iter().filter(from_somebody).map(|event| (bot, event)).collect();
    let mut tx = step.begin().await?;
    let events = verifications::heeded(&mut tx, events, now).await?;
    let digests: Vec<_> =
        events.iter().map(|(bot, event)| (*bot, to_device::digest(event))).collect();
    let fresh = to_device::record(&mut tx, &digests, now).await?;
    let entries: Vec<_> = fresh
        .iter()
        .map(|index| NewEntry { bot, work: Work::ToDevice(events[*index].1.clone()), due_at: now })
        .collect();
    inbox::add(&mut tx, step.context.store.sealer(), &entries, now).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(entries.len())
}

fn is_unsupported(error: &HomeserverError) -> bool {
    // Not what stands before a homeserver and answers for it.
    matches!(error, HomeserverError::Refused { status: 404 | 405, is_matrix: true, .. })
        || error.errcode() == Some("M_UNRECOGNIZED")
}
