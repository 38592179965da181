//! The devices of the users that bots track: asked for once per change, for all bots.
//!
//! A machine is told of changes when it has use for devices ([`look`]), not when they happen. What it
//! then asks about others is answered from [`device_lists`] as far as the answers there are good, and
//! the rest is asked of the homeserver once, however many bots want it ([`InFlight`]). An answer is good
//! if it was asked for after the last change that we were told of. About itself a bot asks directly: the
//! homeserver tells some of it to nobody else.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use matrix_sdk_crypto::types::requests::KeysQueryRequest;
use ruma::{OwnedUserId, TransactionId, api::client::keys::get_keys};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;
use tracing::debug;

use super::{StepError, bot_worker::Step};
use crate::{
    crypto::SyncChanges,
    store::{Connection, device_lists, device_lists::Known},
};

/// A bot that had nothing to look at still notes now and then how far it has looked.
const NOTE_EVERY: i64 = 64;
/// A question that another bot asks is waited for this long before it is looked at again.
const RECHECK: Duration = Duration::from_secs(5);
/// Of so many questions that have come to their end it is remembered about whom they were.
const ENDED: usize = 64;

/// Tells the machine of the changes since it last looked; without a query if there were none.
pub(super) async fn look(step: &mut Step<'_>) -> Result<(), StepError> {
    let (epoch, bot) = (step.device_epoch, step.bot.id);
    let looked = step.kept().await?.looked_epoch;
    if looked >= epoch {
        return Ok(());
    }
    // Whom the machine has begun to track in this very step is asked for in any case.
    let store = &step.context.store;
    let changed_users =
        store.run(async |conn| device_lists::changed_since(conn, bot, looked).await).await?;
    if !changed_users.is_empty() || epoch - step.bot.device_epoch >= NOTE_EVERY {
        step.rows.looked.insert(bot, epoch);
    }
    let kept = step.kept().await?;
    if !changed_users.is_empty() {
        let changes = SyncChanges { changed_users, ..SyncChanges::default() };
        kept.machine.receive(changes).await?;
        kept.has_requests = true;
    }
    kept.looked_epoch = epoch;
    Ok(())
}

/// Answers the machine's question about users' devices.
pub(super) async fn answer(
    step: &mut Step<'_>,
    id: &TransactionId,
    request: &KeysQueryRequest,
) -> Result<(), StepError> {
    let own = step.bot.user_id.clone();
    let others: BTreeSet<OwnedUserId> =
        request.device_keys.keys().filter(|user| **user != own).cloned().collect();
    let mut answer = get_keys::v3::Response::new();
    if request.device_keys.contains_key(&own) {
        // That it tracks itself is committed before it asks, so that no later change is missed.
        step.commit().await?;
        answer = ask(step, [own].into()).await?;
    }
    about_others(step, others, &mut answer).await?;
    step.machine().await?.mark_sent(id, &answer).await?;
    Ok(())
}

async fn about_others(
    step: &mut Step<'_>,
    users: BTreeSet<OwnedUserId>,
    answer: &mut get_keys::v3::Response,
) -> Result<(), StepError> {
    let mut wanted = users;
    while !wanted.is_empty() {
        // Before the rows are read: whoever is ready in between is neither waited for nor asked about.
        let ready = step.context.in_flight.ready.notified();
        let as_of = step.context.in_flight.ended();
        let known = known(step, &wanted).await?;
        let mut open: BTreeMap<OwnedUserId, i64> = BTreeMap::new();
        for user in &wanted {
            match known.iter().find(|known| known.user_id == user.as_str()) {
                Some(Known { answer: Some(part), .. }) => add(answer, user, part),
                Some(Known { changed, .. }) => _ = open.insert(user.clone(), *changed),
                None => _ = open.insert(user.clone(), 0),
            }
        }
        wanted = open.keys().cloned().collect();
        let Some(claimed) = step.context.in_flight.claim(open.keys(), as_of) else { continue };
        wanted.retain(|user| !claimed.users.contains(user));
        if !claimed.users.is_empty() {
            let users: BTreeSet<OwnedUserId> = claimed.users.iter().cloned().collect();
            debug!(users = users.len(), "asking for devices");
            metrics::counter!("greenshield_device_lists_asked_total").increment(users.len() as u64);
            let told = ask(step, users.clone()).await?;
            keep(step, &users, &open, &told).await?;
            drop(claimed);
            merge(answer, told);
        } else if !wanted.is_empty() {
            // It may have failed for whoever asked, or the process may be another one by now.
            let _ = tokio::time::timeout(RECHECK, ready).await;
        }
    }
    Ok(())
}

/// That their changes are noted is committed before anybody is asked; that this bot tracks them may come
/// later, because it looks for changes since this step began.
async fn known(step: &Step<'_>, users: &BTreeSet<OwnedUserId>) -> Result<Vec<Known>, StepError> {
    let users: Vec<String> = users.iter().map(ToString::to_string).collect();
    let (store, now) = (&step.context.store, step.now());
    let known =
        async |conn: &mut Connection| device_lists::known(conn, store.sealer(), &users, now).await;
    Ok(store.run(known).await?)
}

async fn ask(
    step: &Step<'_>,
    users: BTreeSet<OwnedUserId>,
) -> Result<get_keys::v3::Response, StepError> {
    let mut request = get_keys::v3::Request::new();
    request.device_keys = users.into_iter().map(|user| (user, Vec::new())).collect();
    Ok(step.ask().send((&step.actor).into(), request).await?)
}

/// Keeps what was told for everybody. About users of a homeserver that could not be asked nothing is.
async fn keep(
    step: &mut Step<'_>,
    users: &BTreeSet<OwnedUserId>,
    changed: &BTreeMap<OwnedUserId, i64>,
    told: &get_keys::v3::Response,
) -> Result<(), StepError> {
    let answers: Vec<(String, i64, Value)> = users
        .iter()
        .filter(|user| !told.failures.contains_key(user.server_name().as_str()))
        .map(|user| {
            let part = json!({
                "device_keys": told.device_keys.get(user),
                "master_key": told.master_keys.get(user),
                "self_signing_key": told.self_signing_keys.get(user),
            });
            (user.to_string(), changed.get(user).copied().unwrap_or_default(), part)
        })
        .collect();
    let (store, now) = (&step.context.store, step.now());
    let keep =
        async |conn: &mut Connection| device_lists::keep(conn, store.sealer(), &answers, now).await;
    Ok(store.run(keep).await?)
}

/// Adds a user's stored part. A part that does not parse is as good as a user without devices.
fn add(answer: &mut get_keys::v3::Response, user: &OwnedUserId, part: &Value) {
    let parsed = |key: &str| part.get(key).filter(|value| !value.is_null()).cloned();
    let devices = parsed("device_keys").unwrap_or_else(|| Value::Object(Map::new()));
    if let Ok(devices) = serde_json::from_value(devices) {
        answer.device_keys.insert(user.clone(), devices);
    }
    if let Some(Ok(key)) = parsed("master_key").map(serde_json::from_value) {
        answer.master_keys.insert(user.clone(), key);
    }
    if let Some(Ok(key)) = parsed("self_signing_key").map(serde_json::from_value) {
        answer.self_signing_keys.insert(user.clone(), key);
    }
}

fn merge(answer: &mut get_keys::v3::Response, told: get_keys::v3::Response) {
    answer.failures.extend(told.failures);
    answer.device_keys.extend(told.device_keys);
    answer.master_keys.extend(told.master_keys);
    answer.self_signing_keys.extend(told.self_signing_keys);
}

/// Whom somebody in this process is just asking about.
#[derive(Default)]
pub struct InFlight {
    questions: Mutex<Questions>,
    ready: Notify,
}

#[derive(Default)]
struct Questions {
    users: HashSet<OwnedUserId>,
    /// How many have come to their end.
    ended: u64,
    /// About whom the last of these were.
    lately: VecDeque<Vec<OwnedUserId>>,
}

impl Questions {
    /// Whether a question about any of `users` may have come to its end after `as_of`.
    fn ended_since(&self, as_of: u64, users: &HashSet<&OwnedUserId>) -> bool {
        let since = usize::try_from(self.ended - as_of).unwrap_or(usize::MAX);
        since > self.lately.len()
            || self.lately.iter().rev().take(since).flatten().any(|user| users.contains(user))
    }
}

/// Users that the holder asks about; dropped, they are ready, or to be asked about by somebody else.
struct Claim<'a> {
    users: Vec<OwnedUserId>,
    of: &'a InFlight,
}

impl InFlight {
    fn questions(&self) -> MutexGuard<'_, Questions> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many questions have come to their end.
    fn ended(&self) -> u64 {
        self.questions().ended
    }

    /// Those of `users` about whom nobody asks; nothing if a question about any of them has come to its
    /// end after `as_of`, when the rows were read that made the caller want to ask.
    fn claim<'a>(
        &'a self,
        users: impl Iterator<Item = &'a OwnedUserId>,
        as_of: u64,
    ) -> Option<Claim<'a>> {
        let users: HashSet<&OwnedUserId> = users.collect();
        let mut questions = self.questions();
        if questions.ended_since(as_of, &users) {
            return None;
        }
        let users = users.into_iter().filter(|user| questions.users.insert((*user).clone()));
        let users = users.cloned().collect();
        Some(Claim { users, of: self })
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if self.users.is_empty() {
            return;
        }
        let mut questions = self.of.questions();
        for user in &self.users {
            questions.users.remove(user);
        }
        questions.ended += 1;
        questions.lately.push_back(std::mem::take(&mut self.users));
        if questions.lately.len() > ENDED {
            questions.lately.pop_front();
        }
        drop(questions);
        self.of.ready.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_end_that_concerns_the_asker_sends_it_back_to_the_rows() {
        let user = |name: &str| OwnedUserId::try_from(format!("@{name}:x")).expect("a user id");
        let (alice, bob) = (user("alice"), user("bob"));
        let in_flight = InFlight::default();
        let as_of = in_flight.ended();
        drop(in_flight.claim([&alice].into_iter(), as_of));
        assert!(in_flight.claim([&alice, &bob].into_iter(), as_of).is_none());
        let bobs = in_flight.claim([&bob].into_iter(), as_of).expect("nobody asked about Bob");
        assert_eq!(bobs.users.as_slice(), std::slice::from_ref(&bob));
        let again = in_flight.claim([&bob].into_iter(), as_of).expect("no question has ended");
        assert!(again.users.is_empty(), "somebody asks already");
        drop((again, bobs));

        // What is not remembered any more may have been about anybody.
        let as_of = in_flight.ended();
        for _ in 0..=ENDED {
            drop(in_flight.claim([&alice].into_iter(), in_flight.ended()));
        }
        assert!(in_flight.claim([&bob].into_iter(), as_of).is_none());
    }
}
