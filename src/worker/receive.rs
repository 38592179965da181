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
    let in_the_clear = leave_out(step, &mut changes).await?;
    step.take_prefetched().await;
    for message in in_the_clear.iter().filter(|message| message.begins()) {
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
    let heard = only_heeded(step, received.verification, &in_the_clear).await?;
    let mut unknown = Vec::new();
    for message in heard {
        if verify::heard_to_device(step, &message).await? {
            unknown.push(message);
        }
    }
    verify::answer_unknown(step, &unknown).await?;

    let bot = step.bot.id;
    step.rows.sessions.extend(received.sessions.into_iter().map(|session| (bot, session)));
    step.rows.done.extend(ids);
    Ok(())
}

/// Leaves out the messages of verifications, in the clear, that are not heeded, and tells the others. They
/// were looked at when they came; more may have come together since.
async fn leave_out(
    step: &Step<'_>,
    changes: &mut SyncChanges,
) -> Result<Vec<VerificationMessage>, StepError> {
    let messages = changes.to_device.iter().map(VerificationMessage::from_to_device);
    let (places, messages): (Vec<_>, Vec<_>) =
        messages.enumerate().filter_map(|(place, message)| Some((place, message?))).unzip();
    let heeded = verify::heeded(step, &messages).await?;
    let of_no_heed = |place: &usize| {
        let index = places.binary_search(place).ok();
        index.is_some_and(|index| !heeded.contains(&index))
    };
    let all = std::mem::take(&mut changes.to_device).into_iter().enumerate();
    changes.to_device =
        all.filter(|(place, _)| !of_no_heed(place)).map(|(_, message)| message).collect();
    let messages = messages.into_iter().enumerate().filter(|(index, _)| heeded.contains(index));
    Ok(messages.map(|(_, message)| message).collect())
}

/// The messages of verifications that are heeded, of all that the machine has had: what came wrapped in
/// Olm shows only now.
async fn only_heeded(
    step: &mut Step<'_>,
    messages: Vec<VerificationMessage>,
    in_the_clear: &[VerificationMessage],
) -> Result<Vec<VerificationMessage>, StepError> {
    let (mut heard, wrapped): (Vec<_>, Vec<_>) =
        messages.into_iter().partition(|message| in_the_clear.contains(message));
    let heeded = verify::heeded(step, &wrapped).await?;
    let mut others = Vec::new();
    for (index, message) in wrapped.into_iter().enumerate() {
        if heeded.contains(&index) { heard.push(message) } else { others.push(message) }
    }
    verify::silence(step, &others).await?;
    Ok(heard)
}
