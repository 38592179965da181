//! How a bot comes to be: the steps of its signup, each recorded when it is done, each harmless when
//! done again.
//!
//! The order protects the bot's name. The device is made without keys, which nobody heeds; the identity
//! is kept in our database before it is published; the device's keys go out with the identity's
//! signature already in them; and only then is anybody invited. There is never an unsigned device to
//! be seen, and never a second identity.

use ruma::OwnedUserId;
use serde_json::json;
use tracing::info;

use super::{StepError, bot_worker::Step, guard, invites, outgoing, send};
use crate::{
    crypto::SyncChanges,
    homeserver::DirectRoom,
    store::{
        StoreError, bots,
        bots::PublicIdentity,
        inbox::KeyCounts,
        outbox,
        outbox::{Send, SendRow},
        provisioning,
        provisioning::{OpenSignup, Steps},
    },
};

/// The asker's id of the first message: see [`outbox`].
const INTRO: &str = "signup-intro";

/// Does what is left to do, and records a failure for whoever waits.
pub(super) async fn run(step: &mut Step<'_>) -> Result<(), StepError> {
    let mut conn = step.connection().await?;
    let sealer = step.context.store.sealer();
    let Some(mut signup) = provisioning::open(&mut conn, sealer, step.bot.id).await? else {
        return Ok(());
    };
    drop(conn);
    let result = steps(step, &mut signup).await;
    if let Err(error) = &result
        && !matches!(error, StepError::LeaseLost)
    {
        step.failed(error).await;
        let mut tx = step.begin().await?;
        let (errcode, text) = (error.errcode(), error.to_string());
        let name = next_step(&signup.steps);
        let retry = error.is_retry();
        provisioning::record_failure(&mut tx, signup.id, name, errcode, &text, retry, step.now())
            .await?;
        tx.commit().await.map_err(StoreError::from)?;
    }
    result
}

/// The name of the first step that is not done.
fn next_step(steps: &Steps) -> &'static str {
    match steps {
        Steps { user: false, .. } => "user",
        Steps { device: false, .. } => "device",
        Steps { identity: false, .. } => "identity",
        Steps { keys: false, .. } => "keys",
        Steps { profile: false, .. } => "profile",
        Steps { dm: false, .. } => "dm",
        _ => "intro",
    }
}

async fn steps(step: &mut Step<'_>, signup: &mut OpenSignup) -> Result<(), StepError> {
    if !signup.steps.user {
        step.homeserver().await?.register(&step.bot.user_id).await?;
        signup.steps.user = true;
        record(step, signup).await?;
    }
    if !signup.steps.device {
        // Making it again would announce a changed device to everybody.
        let homeserver = step.homeserver().await?;
        if !homeserver.device_exists(&step.actor).await? {
            let name = step.bot.display_name.as_deref().unwrap_or("greenshield");
            homeserver.create_device(&step.actor, name).await?;
        }
        signup.steps.device = true;
        record(step, signup).await?;
    }
    if !(signup.steps.identity && signup.steps.keys) {
        identity(step).await?;
        signup.steps.identity = true;
        signup.steps.keys = true;
        record(step, signup).await?;
    }
    if !signup.steps.profile {
        let homeserver = step.homeserver().await?;
        if let Some(name) = &step.bot.display_name {
            homeserver.set_display_name(&step.actor, name).await?;
        }
        signup.steps.profile = true;
        record(step, signup).await?;
    }
    join_rooms(step, signup).await?;
    if !signup.steps.dm {
        direct_room(step, signup).await?;
    }
    if !signup.steps.intro {
        intro(step, signup).await?;
    }
    finish(step, signup).await
}

/// Publishes the identity and the signed device, and looks whether the homeserver really has them.
async fn identity(step: &mut Step<'_>) -> Result<(), StepError> {
    let own = [step.bot.user_id.clone()];
    let published = outgoing::query_keys(step, &own).await?;
    let published = published.master_keys.get(&step.bot.user_id).map(|key| key.json().get());
    let mut conn = step.connection().await?;
    let stored =
        bots::identity_secrets(&mut conn, step.context.store.sealer(), step.bot.id).await?;
    drop(conn);
    if published.is_some() && stored.is_none() {
        return Err(StepError::fail(
            "M_USER_IN_USE",
            "this user has a cross-signing identity that greenshield does not hold, and replacing it \
             would alarm everybody who verified it: choose another username",
        ));
    }

    let upload = step.machine().await?.identity_upload(stored).await?;
    if let Some(published) = published
        && !published.contains(&upload.public.master_key)
    {
        return Err(StepError::fail(
            "M_USER_IN_USE",
            "the homeserver publishes another cross-signing identity for this bot than ours",
        ));
    }
    let mut tx = step.begin().await?;
    let (sealer, now) = (step.context.store.sealer(), step.now());
    bots::keep_identity(&mut tx, sealer, step.bot.id, &upload.public, &upload.secrets, now).await?;
    tx.commit().await.map_err(StoreError::from)?;

    let homeserver = step.homeserver().await?;
    homeserver.send((&step.actor).into(), upload.signing_keys).await?;
    if let Some((id, device_keys)) = upload.device_keys {
        let answer = homeserver.send((&step.actor).into(), device_keys).await?;
        step.machine().await?.mark_sent(&id, &answer).await?;
    }
    outgoing::signatures(step, upload.signatures).await?;
    // The machine makes a fallback key when it is told that the homeserver has none.
    let none = KeyCounts { one_time_keys: None, fallback_keys: Some(Vec::new()) };
    let changes = SyncChanges { key_counts: Some(none), ..SyncChanges::default() };
    step.machine().await?.receive(changes).await?;
    outgoing::run(step).await?;
    check(step, &upload.public).await
}

/// What the homeserver shows of the bot must be what we published.
async fn check(step: &mut Step<'_>, ours: &PublicIdentity) -> Result<(), StepError> {
    let published = guard::published(step, ours).await?;
    if published.is_complete() {
        guard::raise(step, &published).await?;
        info!(user = %step.bot.user_id, "the bot's device is published, signed by its identity");
        return Ok(());
    }
    Err(StepError::retry("the homeserver does not show the bot's signed device yet"))
}

async fn join_rooms(step: &mut Step<'_>, signup: &mut OpenSignup) -> Result<(), StepError> {
    let settings = step.context.settings.clone();
    for room in settings.space.iter().chain(&settings.rooms) {
        if signup.steps.rooms.iter().any(|joined| joined == room.as_str()) {
            continue;
        }
        step.homeserver().await?.join(&step.actor, (&**room).into()).await.map_err(|error| {
            match StepError::from(error) {
                StepError::Fail { errcode, error } => StepError::fail(
                    errcode,
                    format!("cannot join {room}: {error}: make it public or invite the bot"),
                ),
                other => other,
            }
        })?;
        invites::joined(step, room).await?;
        signup.steps.rooms.push(room.to_string());
        record(step, signup).await?;
    }
    Ok(())
}

/// Makes the encrypted direct room with the inviter, or finds the one that an attempt before made.
async fn direct_room(step: &mut Step<'_>, signup: &mut OpenSignup) -> Result<(), StepError> {
    let human = OwnedUserId::try_from(signup.inviter.as_str())
        .map_err(|_| StepError::fail("M_INVALID_PARAM", "the code's inviter is not a user id"))?;
    let marker = format!("{}/{}", step.bot.device_id, signup.id);
    let homeserver = step.homeserver().await?;
    let room = if let Some(room) = homeserver.find_direct_room(&step.actor, &marker).await? {
        room
    } else {
        step.prove_lease().await?;
        let room = DirectRoom { invitee: &human, marker: &marker };
        homeserver.create_direct_room(&step.actor, room).await?
    };
    homeserver.mark_direct(&step.actor, &room, &human).await?;
    invites::joined(step, &room).await?;
    signup.dm_room = Some(room.to_string());
    signup.steps.dm = true;
    record(step, signup).await
}

/// Posts the first message, through the outbox like any other.
async fn intro(step: &mut Step<'_>, signup: &mut OpenSignup) -> Result<(), StepError> {
    let mut conn = step.connection().await?;
    let said = outbox::outcome(&mut conn, step.bot.id, INTRO).await?.is_some();
    drop(conn);
    if !said && !step.sends.iter().any(|send| send.txn_id == INTRO) {
        if step.backlog {
            return Err(StepError::retry("the first message waits for its next attempt"));
        }
        let send = Send {
            room_id: signup.dm_room.clone().unwrap_or_default(),
            txn_id: INTRO.to_owned(),
            event_type: "m.room.message".to_owned(),
            content: json!({ "msgtype": "m.text", "body": signup.intro }),
            attempts: 0,
            created_at: step.now(),
        };
        let row = SendRow::new(step.context.store.sealer(), step.bot.id, &send)?;
        step.rows.sends.push(row);
        step.sends.push(send);
    }
    send::run(step).await?;
    let mut conn = step.connection().await?;
    match outbox::outcome(&mut conn, step.bot.id, INTRO).await? {
        Some(Ok(sent)) if sent.session_id.is_some() => {
            signup.steps.intro = true;
            Ok(())
        }
        Some(Ok(_)) => Err(StepError::fail(
            "M_UNKNOWN",
            "the direct room is not encrypted: does the homeserver forbid encryption?",
        )),
        Some(Err(error)) => Err(StepError::fail("M_UNKNOWN", error)),
        None => Err(StepError::retry("the first message was not sent yet")),
    }
}

async fn finish(step: &mut Step<'_>, signup: &OpenSignup) -> Result<(), StepError> {
    let now = step.now();
    let mut tx = step.begin().await?;
    provisioning::finish(&mut tx, signup.id, step.bot.id, &signup.steps, now).await?;
    tx.commit().await.map_err(StoreError::from)?;
    // What came before the homeserver had heard of us lies in the device's inbox only.
    step.ask_reconcile(now);
    info!(user_id = %step.bot.user_id, "a bot is ready");
    Ok(())
}

async fn record(step: &mut Step<'_>, signup: &OpenSignup) -> Result<(), StepError> {
    let space = step.context.settings.space.as_ref().map(ToString::to_string);
    let space = space.filter(|space| signup.steps.rooms.contains(space));
    let mut tx = step.begin().await?;
    let dm_room = signup.dm_room.as_deref();
    provisioning::record(&mut tx, signup.id, &signup.steps, space.as_deref(), dm_room).await?;
    tx.commit().await.map_err(StoreError::from)?;
    step.progressed = true;
    Ok(())
}
