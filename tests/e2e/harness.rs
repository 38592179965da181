//! The two engines agree with each other: the harness itself can see green.
//!
//! No greenshield here. When a scene with a bot fails and these pass, it is not the homeserver, the
//! database or the humans.

use anyhow::{Context as _, Result, ensure};
use tokio::sync::OnceCell;

use super::scene::reads;
use crate::support::{
    human::{Engine, Human, LoginOptions, PATIENCE, Phase, Via},
    poll,
    postgres::Database,
    synapse::Synapse,
};

#[tokio::test(flavor = "multi_thread")]
async fn rust_asks_rust() -> Result<()> {
    talk_and_verify(Engine::Rust, Engine::Rust).await
}

#[tokio::test(flavor = "multi_thread")]
async fn rust_asks_js() -> Result<()> {
    talk_and_verify(Engine::Rust, Engine::Js).await
}

#[tokio::test(flavor = "multi_thread")]
async fn js_asks_rust() -> Result<()> {
    talk_and_verify(Engine::Js, Engine::Rust).await
}

#[tokio::test(flavor = "multi_thread")]
async fn emoji_that_differ_cancel_on_both_sides() -> Result<()> {
    let Meeting { alice, bob, room } = Meeting::of(Engine::Rust, Engine::Rust).await?;
    let (ours, theirs) = compare(&*alice, &*bob, Via::Room(&room)).await?;
    bob.mismatch_sas(&theirs).await?;
    for (who, flow) in [(&alice, &ours), (&bob, &theirs)] {
        let end = who.wait_verification(flow, Phase::Cancelled, PATIENCE).await?;
        ensure!(end.cancel_code.as_deref() == Some("m.mismatched_sas"), "{end:?}");
    }
    ensure!(!alice.user_trust(bob.user_id()).await?.verified, "verified in spite of it");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_can_go_straight_to_a_device() -> Result<()> {
    let Meeting { alice, bob, .. } = Meeting::of(Engine::Rust, Engine::Rust).await?;
    let devices = alice.devices(bob.user_id()).await?;
    let device = devices.first().context("bob has a device")?;
    let (ours, theirs) = compare(&*alice, &*bob, Via::ToDevice(&device.device_id)).await?;
    agree(&*alice, &ours, &*bob, &theirs).await
}

/// The harness must see red, too: a key that never comes, and a shield that is not there.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_device_cannot_read_what_was_said_before() -> Result<()> {
    let synapse = shared_synapse().await?;
    let credentials = synapse.register_human("bob").await?;
    let bob = Engine::Rust.log_in(&credentials, LoginOptions::default()).await?;
    let alice = synapse.register_human("alice").await?;
    let alice = Engine::Rust.log_in(&alice, LoginOptions::default()).await?;
    let room = meet(&*alice, &*bob).await?;
    let secret = alice.send_text(&room, "before").await?;
    bob.wait_message(&room, alice.user_id(), Some("before"), PATIENCE).await?;
    bob.stop().await?;

    let bob = Engine::Rust.log_in(&credentials, LoginOptions::default()).await?;
    let stuck = poll::until("an undecryptable event", PATIENCE, async || {
        let events = bob.utd_events(&room).await?;
        Ok(events.into_iter().find(|event| event.event_id == secret))
    })
    .await?;
    ensure!(stuck.sender == alice.user_id() && stuck.reason.is_some(), "{stuck:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn humans_outlive_a_homeserver_that_is_killed() -> Result<()> {
    let mut synapse = Synapse::prepare()?;
    synapse.start(&[]).await?;
    let Meeting { alice, bob, room } = Meeting::at(&synapse, Engine::Rust, Engine::Rust).await?;
    synapse.kill().await?;
    synapse.start_again().await?;
    alice.send_text(&room, "Still there?").await?;
    bob.wait_message(&room, alice.user_id(), Some("Still there?"), PATIENCE).await?;
    synapse.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_database_is_fresh_and_goes_away() -> Result<()> {
    let first = Database::create().await?;
    let url = first.url();
    let pool = first.pool().await?;
    sqlx::query("CREATE TABLE mine (id bigint)").execute(&pool).await?;
    let second = Database::create().await?;
    ensure!(second.url() != url, "two worlds in one database");
    drop(first);
    ensure!(sqlx::query("SELECT 1 FROM mine").execute(&pool).await.is_err(), "still there");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_administrator_can_be_had() -> Result<()> {
    let synapse = shared_synapse().await?;
    let url = format!("{}/_synapse/admin/v1/server_version", synapse.url());
    let http = crate::support::http();
    let answer = http.get(url).bearer_auth(synapse.admin_token().await?).send().await?;
    ensure!(answer.status().is_success(), "{answer:?}");
    Ok(())
}

/// The homeserver of the scenes that leave it alone.
async fn shared_synapse() -> Result<&'static Synapse> {
    static SHARED: OnceCell<Synapse> = OnceCell::const_new();
    SHARED
        .get_or_try_init(async || {
            let mut synapse = Synapse::prepare()?;
            synapse.start(&[]).await?;
            Ok(synapse)
        })
        .await
}

/// Two people in an encrypted direct chat.
struct Meeting {
    alice: Box<dyn Human>,
    bob: Box<dyn Human>,
    room: String,
}

impl Meeting {
    async fn of(hers: Engine, his: Engine) -> Result<Self> {
        Self::at(shared_synapse().await?, hers, his).await
    }

    async fn at(synapse: &Synapse, hers: Engine, his: Engine) -> Result<Self> {
        let options = LoginOptions::default();
        let alice = hers.log_in(&synapse.register_human("alice").await?, options).await?;
        let bob = his.log_in(&synapse.register_human("bob").await?, options).await?;
        let room = meet(&*alice, &*bob).await?;
        Ok(Self { alice, bob, room })
    }
}

async fn meet(alice: &dyn Human, bob: &dyn Human) -> Result<String> {
    let room = alice.create_dm(bob.user_id(), true).await?;
    let invite = bob.wait_invite(Some(alice.user_id()), PATIENCE).await?;
    ensure!(invite.room_id == room && invite.encrypted && invite.is_direct, "{invite:?}");
    bob.join(&room).await?;
    alice.wait_member(&room, bob.user_id(), "join", PATIENCE).await?;
    Ok(room)
}

async fn talk_and_verify(hers: Engine, his: Engine) -> Result<()> {
    let Meeting { alice, bob, room } = Meeting::of(hers, his).await?;
    let sent = alice.send_text(&room, "Hello Bob").await?;
    let seen = bob.wait_message(&room, alice.user_id(), Some("Hello Bob"), PATIENCE).await?;
    ensure!(seen.event_id == sent && seen.encrypted && seen.decrypted, "{seen:?}");
    reads(&*bob, &room, &sent).await?;
    bob.send_text(&room, "Hello Alice").await?;
    let seen = alice.wait_message(&room, bob.user_id(), Some("Hello Alice"), PATIENCE).await?;
    ensure!(seen.encrypted, "{seen:?}");
    reads(&*alice, &room, &seen.event_id).await?;
    ensure!(!alice.user_trust(bob.user_id()).await?.verified, "verified before verification");

    let (ours, theirs) = compare(&*alice, &*bob, Via::Room(&room)).await?;
    agree(&*alice, &ours, &*bob, &theirs).await?;
    ensure!(bob.utd_events(&room).await?.is_empty(), "something could not be decrypted");
    alice.stop().await?;
    bob.stop().await
}

/// Up to the point where both look at the same seven emoji; the two flows.
async fn compare(alice: &dyn Human, bob: &dyn Human, via: Via<'_>) -> Result<(String, String)> {
    let ours = alice.request_verification(bob.user_id(), via).await?;
    let theirs = bob.wait_incoming_verification(alice.user_id(), PATIENCE).await?;
    bob.accept_verification(&theirs).await?;
    alice.wait_verification(&ours, Phase::Ready, PATIENCE).await?;
    alice.start_sas(&ours).await?;
    let (shown, compared) = tokio::try_join!(
        alice.wait_verification(&ours, Phase::Sas, PATIENCE),
        bob.wait_verification(&theirs, Phase::Sas, PATIENCE),
    )?;
    ensure!(shown.emoji.as_ref().is_some_and(|emoji| emoji.len() == 7), "{shown:?}");
    ensure!(shown.emoji == compared.emoji, "{shown:?} is not {compared:?}");
    ensure!(shown.decimals == compared.decimals, "{shown:?} is not {compared:?}");
    Ok((ours, theirs))
}

/// Both say that the emoji match, and then each holds the other for verified.
async fn agree(alice: &dyn Human, ours: &str, bob: &dyn Human, theirs: &str) -> Result<()> {
    alice.confirm_sas(ours).await?;
    bob.confirm_sas(theirs).await?;
    alice.wait_verification(ours, Phase::Done, PATIENCE).await?;
    bob.wait_verification(theirs, Phase::Done, PATIENCE).await?;
    trusts(alice, bob).await?;
    trusts(bob, alice).await
}

async fn trusts(one: &dyn Human, other: &dyn Human) -> Result<()> {
    let trust = one.wait_user_trust(other.user_id(), true, PATIENCE).await?;
    ensure!(trust.has_identity && trust.verified && trust.msk.is_some(), "{trust:?}");
    let devices = one.devices(other.user_id()).await?;
    ensure!(devices.len() == 1 && devices[0].signed_by_owner, "{devices:?}");
    Ok(())
}
