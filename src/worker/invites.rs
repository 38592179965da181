//! Invitations: accepted or declined by policy.
//!
//! A human who clicks *Verify* in a fresh direct room sends the request while the bot is only invited,
//! and the homeserver pushes room events only for joined bots. So after joining, what was said since
//! the invitation is read back.

use chrono::{DateTime, Duration, Utc};
use ruma::{OwnedUserId, RoomId};
use serde_json::Value;
use tracing::{info, warn};

use super::{StepError, backoff, bot_worker::Step, outgoing, send};
use crate::{
    config::InvitePolicy,
    model::EventSeq,
    store::{
        StoreError, events,
        events::{NewEvent, StoredEvent},
        inbox,
        inbox::{Entry, NewEntry, Work},
        rooms,
        rooms::Fact,
    },
    telemetry::chain,
};

/// How far back a bot reads after joining.
const LOOK_BACK: u32 = 100;
/// An invitation as old as this, which the homeserver could let us accept and does not, is left alone.
const PATIENCE: Duration = Duration::days(7);

/// Takes the entries up, each by itself.
pub(super) async fn run(step: &mut Step<'_>, entries: Vec<Entry>) -> Result<(), StepError> {
    for entry in entries {
        let Work::Invite(seq) = entry.work else { continue };
        match accept_or_decline(step, seq).await {
            Ok(()) => {}
            Err(StepError::LeaseLost) => return Err(StepError::LeaseLost),
            Err(error) if may_try_again(&entry, &error, step.now()) => {
                let due_at =
                    backoff::next_attempt(&error, entry.attempts + 1, entry.id.0, step.now());
                warn!(error = chain(&error), "could not answer an invitation; trying again");
                step.failed(&error).await;
                let mut tx = step.begin().await?;
                inbox::put_off(&mut tx, entry.id, due_at).await?;
                tx.commit().await.map_err(StoreError::from)?;
                continue;
            }
            Err(error) => {
                let said = chain(&error);
                warn!(error = said, "leaving an invitation alone");
                step.failed(&error).await;
                step.note(&format!("an invitation was left alone: {said}"));
            }
        }
        let mut tx = step.begin().await?;
        inbox::finish(&mut tx, &[entry.id], &[], step.now()).await?;
        tx.commit().await.map_err(StoreError::from)?;
    }
    Ok(())
}

/// Whether an invitation may still be answered. An outage, however long, gives none up.
fn may_try_again(entry: &Entry, error: &StepError, now: DateTime<Utc>) -> bool {
    error.is_retry() && (error.is_outage() || now - entry.received_at < PATIENCE)
}

async fn accept_or_decline(step: &mut Step<'_>, seq: EventSeq) -> Result<(), StepError> {
    let mut conn = step.connection().await?;
    let loaded = events::load(&mut conn, step.context.store.sealer(), &[seq]).await?;
    drop(conn);
    let Some(invite) = loaded.into_iter().next() else { return Ok(()) };
    let (Ok(room), Ok(inviter)) = (
        <&RoomId>::try_from(invite.room_id.as_str()),
        OwnedUserId::try_from(invite.sender.as_str()),
    ) else {
        return Ok(());
    };
    if !is_welcome(step, &inviter) {
        info!(%room, %inviter, "declining an invitation: the policy does not allow this inviter");
        return Ok(step.homeserver().await?.leave(&step.actor, room).await?);
    }
    step.homeserver().await?.join(&step.actor, room.into()).await?;
    info!(%room, %inviter, "joined by invitation");
    joined(step, room).await?;
    // What was said before the bot joined is more than the list of its direct rooms.
    let marked = if is_direct(&invite) {
        step.homeserver().await?.mark_direct(&step.actor, room, &inviter).await
    } else {
        Ok(())
    };
    // Whoever invites a bot may ask it to verify next: their devices had better be known. What is
    // refused of that the machine wants again, at the end of this step.
    step.machine().await?.track(std::slice::from_ref(&inviter)).await?;
    if let Err(error) = outgoing::run(step).await
        && !error.machine_is_whole()
    {
        return Err(error);
    }
    read_back(step, room, &invite).await?;
    marked.map_err(|error| match StepError::from(error) {
        StepError::Fail { errcode, error } => {
            StepError::fail(errcode, format!("joined, but not marked as a direct room: {error}"))
        }
        other => other,
    })
}

fn is_welcome(step: &mut Step<'_>, inviter: &OwnedUserId) -> bool {
    let settings = &step.context.settings;
    match settings.invite_policy {
        InvitePolicy::Anyone => true,
        InvitePolicy::Homeserver => inviter.server_name() == settings.server_name,
        InvitePolicy::List => settings.invite_allow.contains(inviter),
    }
}

fn is_direct(invite: &StoredEvent) -> bool {
    invite.json.pointer("/content/is_direct").and_then(Value::as_bool) == Some(true)
}

/// Notes the bot's own join without waiting for the transaction that tells it.
pub(super) async fn joined(step: &mut Step<'_>, room: &RoomId) -> Result<(), StepError> {
    let fact =
        Fact::Member { user_id: step.bot.user_id.to_string(), membership: "join".to_owned() };
    let mut tx = step.begin().await?;
    rooms::apply(&mut tx, &[(room.to_string(), fact)], step.now()).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(())
}

/// Puts what was said since the invitation into the bot's inbox, oldest first. What it has logged
/// already is recognised there.
async fn read_back(
    step: &mut Step<'_>,
    room: &RoomId,
    invite: &StoredEvent,
) -> Result<(), StepError> {
    // Learned before the first answer: whether this room is encrypted, and who is in it.
    send::known_room(step, room).await?;
    let recent = step.homeserver().await?.recent_events(&step.actor, room, LOOK_BACK).await?;
    let mut missed: Vec<NewEvent> = recent
        .into_iter()
        .take_while(|event| {
            event.get("event_id").and_then(Value::as_str) != Some(invite.event_id.as_str())
        })
        .filter(|event| event.get("state_key").is_none())
        .filter_map(|event| NewEvent::read(room.to_string(), event))
        .filter(|event| event.sender != step.bot.user_id.as_str())
        .collect();
    missed.reverse();
    let now = step.now();
    let sealer = step.context.store.sealer();
    let mut tx = step.begin().await?;
    let mut stored = events::store(&mut tx, sealer, &missed, now).await?;
    let seqs: Vec<EventSeq> = stored.iter().map(|(_, seq, _)| *seq).collect();
    let logged = events::logged(&mut tx, step.bot.id, &seqs).await?;
    stored.retain(|(_, seq, _)| !logged.contains(seq));
    stored.sort_unstable_by_key(|(_, seq, _)| *seq);
    let entries: Vec<NewEntry> = stored
        .into_iter()
        .map(|(_, seq, _)| NewEntry { bot: step.bot.id, work: Work::RoomEvent(seq), due_at: now })
        .collect();
    inbox::add(&mut tx, sealer, &entries, now).await?;
    tx.commit().await.map_err(StoreError::from)?;
    Ok(())
}
