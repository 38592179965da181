//! To-device messages and key counts: into the machine, in one call.

use tracing::{debug, warn};

use super::{StepError, bot_worker::Step, verify};
use crate::{
    crypto::{SyncChanges, VerificationMessage},
    store::{inbox::Entry, inbox::Work},
};

/// Takes the entries up. What the machine got and that they are done is committed together; broken off
/// before, they come again, and the machine knows a message that it has had.
pub(super) async fn run(step: &mut Step<'_>, entries: Vec<Entry>) -> Result<(), StepError> {
    if entries.is_empty() {
        return Ok(());
    }
    let ids: Vec<_> = entries.iter().map(|entry| entry.id).collect();
    let mut changes = SyncChanges::default();
    for entry in entries {
        match entry.work {
            Work::ToDevice(message) => changes.to_device.push(message),
            Work::KeyCounts(counts) => {
                changes.key_counts.get_or_insert_default().update(counts);
            }
            Work::RoomEvent(_) | Work::Invite(_) | Work::Reconcile | Work::ForgetStrangers => {}
        }
    }
    let beginning: Vec<_> = changes
        .to_device
        .iter()
        .filter_map(VerificationMessage::from_to_device)
        .filter(VerificationMessage::begins)
        .collect();
    step.take_prefetched().await;
    for message in &beginning {
        verify::make_way(step, message).await?;
    }

    let kept = step.kept().await?;
    let received = kept.machine.receive(changes).await?;
    kept.has_requests = true;
    kept.look_at_rooms_again();
    debug!(
        sessions = received.sessions.len(),
        undecryptable = received.undecryptable,
        "took to-device messages in"
    );
    if received.undecryptable > 0 {
        // The machine mends a broken Olm session by itself: it starts a new one with a dummy message.
        warn!(count = received.undecryptable, "to-device messages could not be decrypted");
        metrics::counter!("greenshield_olm_failures_total")
            .increment(received.undecryptable as u64);
    }
    if received.skipped > 0 {
        warn!(count = received.skipped, "skipped to-device messages that make no sense");
        metrics::counter!("greenshield_to_device_skipped_total").increment(received.skipped as u64);
    }
    for message in &received.verification {
        verify::heard_to_device(step, message).await?;
    }

    let bot = step.bot.id;
    step.rows.sessions.extend(received.sessions.into_iter().map(|session| (bot, session)));
    step.rows.done.extend(ids);
    Ok(())
}
