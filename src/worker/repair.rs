//! The repair ladder: a bot whose device is lost gets a new one, under the same identity.
//!
//! Rungs, from the lowest: nothing is wrong; the machine does not open, or will stumble, for rows that
//! are damaged, and they are dropped; the device is to be signed again; the device is lost (it was
//! deleted at the homeserver, its Olm account is missing or damaged, or the homeserver holds other
//! one-time keys under its ids) and a new one takes its place. There is no rung with a new identity:
//! where the homeserver shows another one than ours, a repair is refused, and so it is where the private
//! identity is damaged and nothing can bring it back.
//!
//! The wish is a row (see [`repairs`]), and so every part may be broken off and done again. The old
//! device is given up in one commit; the new one is made without keys, which nobody heeds; its keys go
//! out with the identity's signature already in them. The old device is left alone at the homeserver:
//! without it, clients could not tell who sent the old messages.

use tracing::{info, warn};

use super::{StepError, bot_worker::Step, guard, identity, outgoing};
use crate::{
    crypto::{BotMachine, Published, PublishedDevice, PublishedIdentity, SyncChanges},
    homeserver::HomeserverError,
    model::{BotState, RepairOutcome, RepairReason},
    secret::{self, Alphabet},
    store::{
        PgCryptoStore, StoreError, bots,
        bots::PublicIdentity,
        crypto_store::AccountState,
        inbox::{self, Work},
        repairs,
        repairs::OpenRepair,
    },
    telemetry::chain,
};

/// How many to-device messages are still read with the old account before it is given up.
const SALVAGED: i64 = 1000;

/// Opens the bot's machine. The machine of an active bot is never made anew in passing, because that
/// would be other keys under a known device id: an account that is missing or damaged is a repair's
/// affair, which is begun here.
pub(super) async fn open_machine(step: &mut Step<'_>) -> Result<BotMachine, StepError> {
    let (store, bot) = (&step.context.store, step.bot.clone());
    let prefetched = step.prefetch.take(store, bot.id).await;
    if bot.state == BotState::Active && !prefetched.has_account() {
        let mut conn = store.connection().await?;
        let may_make = bots::has_account(&mut conn, bot.id).await?
            || repairs::open(&mut conn, bot.id).await?.is_some_and(|repair| repair.switched);
        drop(conn);
        if !may_make {
            return Err(account_lost(step, "missing").await);
        }
    }
    match BotMachine::open(store, step.fence, &bot, prefetched).await {
        Ok(machine) => {
            identity::bring_back(step, &machine).await?;
            Ok(machine)
        }
        Err(error) => match account(step).await {
            Ok(Account::Lost(how)) if bot.state == BotState::Active => {
                warn!(error = chain(&error), "the bot's machine does not open");
                Err(account_lost(step, how).await)
            }
            _ => Err(error.into()),
        },
    }
}

async fn account_lost(step: &mut Step<'_>, how: &str) -> StepError {
    match begin(step, RepairReason::Account).await {
        Ok(true) => StepError::retry(format!("the bot's Olm account is {how}: a repair has begun")),
        Ok(false) => StepError::fail(
            "M_UNKNOWN",
            format!(
                "the bot's Olm account is {how}, and a repair ended within the last hour: see \
                 `greenshield bots show`, then run `greenshield bots repair`"
            ),
        ),
        Err(error) => error,
    }
}

/// The homeserver did not take an upload of keys. If that is because it holds other one-time keys under
/// our ids (we were restored from an older backup), a repair is begun.
pub(super) async fn keys_refused(step: &mut Step<'_>, error: HomeserverError) -> StepError {
    if !is_key_conflict(&error) {
        return error.into();
    }
    match begin(step, RepairReason::OneTimeKeys).await {
        Ok(true) => StepError::retry(error),
        Ok(false) => error.into(),
        Err(error) => error,
    }
}

fn is_key_conflict(error: &HomeserverError) -> bool {
    matches!(
        error,
        HomeserverError::Refused { status: 400, error, .. } if error.contains("already exists")
    )
}

/// Writes the wish down; tells whether a repair is under way now.
async fn begin(step: &mut Step<'_>, reason: RepairReason) -> Result<bool, StepError> {
    if step.bot.state != BotState::Active {
        return Ok(false);
    }
    let device_id = secret::random_string(Alphabet::Upper, 10).map_err(StepError::retry)?;
    let mut tx = step.begin().await?;
    let begun = repairs::ask(&mut tx, step.bot.id, reason, &device_id, step.now()).await?;
    tx.commit().await.map_err(StoreError::from)?;
    if begun {
        warn!(user_id = %step.bot.user_id, %reason, "a repair of the bot's device begins");
        metrics::counter!("greenshield_repairs_total", "reason" => reason.as_str()).increment(1);
    }
    Ok(begun)
}

/// Does the repair that is asked for, if one is.
pub(super) async fn run(step: &mut Step<'_>) -> Result<(), StepError> {
    let mut conn = step.connection().await?;
    let repair = repairs::open(&mut conn, step.bot.id).await?;
    drop(conn);
    let Some(repair) = repair else { return Ok(()) };
    match climb(step, &repair).await {
        Ok(outcome) => finish(step, outcome).await,
        Err(StepError::LeaseLost) => Err(StepError::LeaseLost),
        Err(error) => {
            // Nothing was changed yet, and nothing will change by itself: the wish ends here.
            let over = !error.is_retry() && step.bot.device_id != repair.new_device_id;
            let (text, now) = (chain(&error), step.now());
            step.failed(&error).await;
            let mut tx = step.begin().await?;
            if over {
                let outcome = RepairOutcome::Refused;
                repairs::finish(&mut tx, step.bot.id, outcome, Some(&text), now).await?;
            } else {
                repairs::note_failure(&mut tx, step.bot.id, &text).await?;
            }
            tx.commit().await.map_err(StoreError::from)?;
            Err(error)
        }
    }
}

async fn finish(step: &mut Step<'_>, outcome: RepairOutcome) -> Result<(), StepError> {
    let (bot, now) = (step.bot.id, step.now());
    step.ask_reconcile(now);
    let mut tx = step.begin().await?;
    repairs::finish(&mut tx, bot, outcome, None, now).await?;
    tx.commit().await.map_err(StoreError::from)?;
    info!(user_id = %step.bot.user_id, device_id = %step.bot.device_id, %outcome, "repaired");
    Ok(())
}

/// What is to be done.
#[derive(Debug)]
enum Rung {
    Nothing,
    Sign,
    NewDevice(&'static str),
}

async fn climb(step: &mut Step<'_>, repair: &OpenRepair) -> Result<RepairOutcome, StepError> {
    let mut conn = step.connection().await?;
    let identity = bots::identity(&mut conn, step.bot.id).await?;
    drop(conn);
    let identity = identity.ok_or_else(|| {
        StepError::fail("M_UNKNOWN", "the bot has no identity yet: let its signup finish first")
    })?;
    if !repair.switched {
        let published = guard::published(step, &identity).await?;
        refuse_other(&published)?;
        let (account, healed) = opened(step, repair).await?;
        let opens = matches!(account, Account::Whole { .. });
        identity::secure(step, &identity, opens).await?;
        match rung(step, repair, &published, account).await? {
            Rung::Nothing if healed => return Ok(RepairOutcome::Healed),
            Rung::Nothing => return Ok(RepairOutcome::Healthy),
            Rung::Sign => {
                publish(step, &identity).await?;
                return Ok(RepairOutcome::Signed);
            }
            Rung::NewDevice(why) => {
                warn!(user_id = %step.bot.user_id, why, "the bot gets a new device");
                switch(step).await?;
            }
        }
    }
    // Making it again would announce a changed device to everybody.
    let homeserver = step.homeserver().await?;
    if !homeserver.device_exists(&step.actor).await? {
        let name = step.bot.display_name.as_deref().unwrap_or("greenshield");
        homeserver.create_device(&step.actor, name).await?;
    }
    publish(step, &identity).await?;
    Ok(RepairOutcome::NewDevice)
}

fn refuse_other(published: &Published) -> Result<(), StepError> {
    match published.identity {
        PublishedIdentity::Ours => Ok(()),
        PublishedIdentity::Other => Err(StepError::fail(
            "M_FORBIDDEN",
            "the homeserver publishes another cross-signing identity for this bot than ours: nothing \
             was changed; find out at the homeserver who replaced it",
        )),
        PublishedIdentity::Missing => Err(StepError::fail(
            "M_NOT_FOUND",
            "the homeserver publishes no cross-signing identity for this bot: nothing was changed; \
             was the homeserver restored from a backup from before the bot?",
        )),
    }
}

async fn rung(
    step: &mut Step<'_>,
    repair: &OpenRepair,
    published: &Published,
    account: Account,
) -> Result<Rung, StepError> {
    match repair.reason {
        RepairReason::NewDevice => return Ok(Rung::NewDevice("an operator wants it")),
        RepairReason::OneTimeKeys => return Ok(Rung::NewDevice("its one-time keys are taken")),
        RepairReason::Asked | RepairReason::Account => {}
    }
    let curve25519 = match account {
        Account::Whole { curve25519 } => curve25519,
        Account::Lost(how) => return Ok(Rung::NewDevice(how)),
    };
    if !step.homeserver().await?.device_exists(&step.actor).await? {
        return Ok(Rung::NewDevice("its device was deleted at the homeserver"));
    }
    Ok(match &published.device {
        PublishedDevice::Missing => Rung::NewDevice("the homeserver has lost its device's keys"),
        PublishedDevice::Unsigned { curve25519: shown }
        | PublishedDevice::Signed { curve25519: shown }
            if shown.as_deref() != Some(&curve25519) =>
        {
            Rung::NewDevice("the homeserver shows other keys for its device")
        }
        PublishedDevice::Unsigned { .. } => Rung::Sign,
        PublishedDevice::Signed { .. } => Rung::Nothing,
    })
}

enum Account {
    Whole { curve25519: String },
    Lost(&'static str),
}

async fn account(step: &mut Step<'_>) -> Result<Account, StepError> {
    step.commit().await?;
    let state = crypto_store(step).account_state().await.map_err(StepError::retry)?;
    Ok(match state {
        AccountState::Whole { device_id, curve25519 } if step.bot.device_id == *device_id => {
            Account::Whole { curve25519 }
        }
        AccountState::Whole { .. } => Account::Lost("of another device"),
        AccountState::Missing => Account::Lost("missing"),
        AccountState::Damaged => Account::Lost("damaged"),
    })
}

/// The account, if the machine opens with it: without the rows that do not open, if there are any. Tells
/// also whether there were.
async fn opened(step: &mut Step<'_>, repair: &OpenRepair) -> Result<(Account, bool), StepError> {
    let account = account(step).await?;
    if matches!(account, Account::Lost(_)) {
        return Ok((account, false));
    }
    let dropped = crypto_store(step).drop_damaged().await.map_err(StepError::retry)?;
    // One that was opened without the private identity gets it when it is opened again.
    let bare = step.has_machine() && !step.machine().await?.has_identity().await;
    if dropped > 0 || bare {
        warn!(dropped, bare, "dropped what does not open any more");
        step.forget_machine();
    }
    match step.machine().await {
        Ok(_) => Ok((account, dropped > 0 || bare)),
        // Who wants a new device in any case need not wait for the old one's machine.
        Err(error)
            if error.is_damage()
                || (error.is_retry() && repair.reason == RepairReason::NewDevice) =>
        {
            warn!(error = chain(&error), "the bot's machine does not open");
            Ok((Account::Lost("whole, but its machine does not open"), true))
        }
        Err(error) => Err(error),
    }
}

fn crypto_store(step: &Step<'_>) -> PgCryptoStore {
    PgCryptoStore::new(step.context.store.clone(), step.bot.id, step.fence)
}

/// If the step failed with a row that does not open, the next one goes on without it.
pub(super) async fn drop_damaged(step: &Step<'_>, error: &StepError) {
    if !error.is_damage() {
        return;
    }
    match crypto_store(step).drop_damaged().await {
        Ok(dropped) => warn!(error = chain(error), dropped, "dropped what does not open any more"),
        Err(error) => warn!(error = chain(&error), "could not drop what does not open any more"),
    }
}

/// Gives the old device up, after what could be saved of it was saved.
async fn switch(step: &mut Step<'_>) -> Result<(), StepError> {
    if let Err(error) = salvage(step).await {
        if matches!(error, StepError::LeaseLost) {
            return Err(error);
        }
        warn!(error = chain(&error), "the last to-device messages of the old device are lost");
        step.failed(&error).await;
    }
    step.forget_machine();
    let dropped = crypto_store(step).drop_damaged().await.map_err(StepError::retry)?;
    if dropped > 0 {
        warn!(dropped, "dropped what does not open any more");
    }
    let mut tx = step.begin().await?;
    let new = repairs::switch(&mut tx, step.bot.id, &step.bot.user_id, step.now()).await?;
    tx.commit().await.map_err(StoreError::from)?;
    step.bot.device_id.clone_from(&new);
    step.actor.device_id = new;
    Ok(())
}

/// Reads the to-device messages that came for the old device while its account can still be used: there
/// may be room keys among them. Verifications among them are left to end in time.
async fn salvage(step: &mut Step<'_>) -> Result<(), StepError> {
    if !matches!(account(step).await?, Account::Whole { .. }) {
        return Ok(());
    }
    let (store, bot) = (&step.context.store, step.bot.id);
    let mut conn = store.connection().await?;
    let (entries, _) = inbox::due(&mut conn, store.sealer(), &[bot], step.now(), SALVAGED).await?;
    drop(conn);
    let to_device: Vec<_> = entries
        .into_iter()
        .filter_map(|(_, entry)| match entry.work {
            Work::ToDevice(message) => Some(message),
            _ => None,
        })
        .collect();
    if to_device.is_empty() {
        return Ok(());
    }
    let changes = SyncChanges { to_device, ..SyncChanges::default() };
    let received = step.machine().await?.receive(changes).await?;
    step.rows.sessions.extend(received.sessions.into_iter().map(|session| (bot, session)));
    step.commit().await
}

/// Publishes the device's keys, signed by the identity that the bot has had from its signup, and looks
/// whether the homeserver shows them so.
async fn publish(step: &mut Step<'_>, identity: &PublicIdentity) -> Result<(), StepError> {
    // The machine takes the private identity only if it has seen the public one.
    let own = [step.bot.user_id.clone()];
    outgoing::query_keys(step, &own).await?;
    let mut conn = step.connection().await?;
    let secrets = bots::identity_secrets(&mut conn, step.context.store.sealer(), step.bot.id).await;
    drop(conn);
    let secrets = secrets?.ok_or_else(|| StepError::fail("M_UNKNOWN", "the identity is gone"))?;
    let upload = step.machine().await?.identity_upload(Some(secrets)).await?;
    if upload.public != *identity {
        // The identity itself is never sent from here: this only keeps a wrong signature back.
        return Err(StepError::fail("M_UNKNOWN", "the machine holds another identity than ours"));
    }
    if let Some((id, device_keys)) = upload.device_keys {
        let homeserver = step.homeserver().await?;
        let answer = homeserver.send((&step.actor).into(), device_keys).await?;
        step.machine().await?.mark_sent(&id, &answer).await?;
    }
    outgoing::signatures(step, upload.signatures).await?;
    // One-time and fallback keys that did not fit into the first upload.
    outgoing::run_keys(step).await?;
    let published = guard::published(step, identity).await?;
    if published.is_complete() {
        return Ok(());
    }
    Err(StepError::retry("the homeserver does not show the bot's signed device yet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_conflict_is_told_from_other_refusals() {
        let refused = |status, error: &str| HomeserverError::Refused {
            status,
            errcode: "M_UNKNOWN".to_owned(),
            error: error.to_owned(),
            retry_after: None,
            is_matrix: true,
        };
        let conflict =
            "One time key signed_curve25519:AAAAAQ already exists. Old key: {}; new key: {}";
        assert!(is_key_conflict(&refused(400, conflict)));
        assert!(!is_key_conflict(&refused(500, conflict)));
        assert!(!is_key_conflict(&refused(400, "no such device")));
    }
}
