//! What a machine keeps of others is counted, so that the bound of all machines is one.

use std::collections::BTreeMap;

use matrix_sdk_crypto::{EncryptionSettings, OlmMachine, types::requests::AnyOutgoingRequest};
use ruma::{
    OwnedUserId, UserId,
    api::client::{
        keys::{claim_keys, get_keys},
        to_device::send_event_to_device,
    },
    device_id,
};

use super::{
    super::PgCryptoStore,
    machine::{Uploaded, upload},
    world::room,
};
use crate::store::testing::database;

const HUMANS: usize = 20;

async fn humans() -> BTreeMap<OwnedUserId, Uploaded> {
    let mut humans = BTreeMap::new();
    for n in 0..HUMANS {
        let user = UserId::parse(format!("@human{n}:x")).expect("a user id");
        let machine = OlmMachine::new(&user, device_id!("HUMAN")).await;
        humans.insert(user, upload(&machine).await);
    }
    humans
}

/// The machine learns everybody's device.
async fn learn(machine: &OlmMachine, humans: &BTreeMap<OwnedUserId, Uploaded>) {
    machine.update_tracked_users(humans.keys().map(AsRef::as_ref)).await.expect("tracks");
    for request in machine.outgoing_requests().await.expect("has requests") {
        if let AnyOutgoingRequest::KeysQuery(_) = request.request() {
            let mut told = get_keys::v3::Response::new();
            for (user, uploaded) in humans {
                let device = (device_id!("HUMAN").to_owned(), uploaded.device_keys.clone());
                told.device_keys.insert(user.clone(), [device].into());
            }
            machine.mark_request_as_sent(request.request_id(), &told).await.expect("learns");
        }
    }
}

/// It claims a one-time key of each.
async fn claim(machine: &OlmMachine, humans: &mut BTreeMap<OwnedUserId, Uploaded>) {
    let users: Vec<OwnedUserId> = humans.keys().cloned().collect();
    let missing = machine.get_missing_sessions(users.iter().map(AsRef::as_ref)).await;
    let (id, _) = missing.expect("looks").expect("no sessions yet");
    let keys = humans.iter_mut().map(|(user, uploaded)| {
        let key = uploaded.one_time_keys.pop_first().expect("a one-time key");
        (user.clone(), BTreeMap::from([(device_id!("HUMAN").to_owned(), [key].into())]))
    });
    let told = claim_keys::v3::Response::new(keys.collect());
    machine.mark_request_as_sent(&id, &told).await.expect("takes the keys");
}

#[tokio::test]
async fn sessions_and_whom_a_room_key_was_given_to_are_counted() {
    let database = database().await;
    let id = database.bot("@bot:x", "BOT").await;
    let store = PgCryptoStore::new(database.store.clone(), id, database.lease(id).await);
    let bot = UserId::parse("@bot:x").expect("a user id");
    let machine =
        OlmMachine::with_store(&bot, device_id!("BOT"), store.clone(), None).await.expect("opens");
    upload(&machine).await;
    let mut humans = humans().await;
    learn(&machine, &humans).await;
    let users: Vec<OwnedUserId> = humans.keys().cloned().collect();
    let users = || users.iter().map(AsRef::as_ref);

    let before = store.bytes();
    claim(&machine, &mut humans).await;
    let with_sessions = store.bytes();
    assert!(with_sessions >= before + HUMANS * 4000, "{before} {with_sessions}");

    let shared = machine.share_room_key(room(), users(), EncryptionSettings::default()).await;
    let requests = shared.expect("shares");
    let with_requests = store.bytes();
    assert!(with_requests >= with_sessions + HUMANS * 1000, "{with_sessions} {with_requests}");
    let told = requests.iter().map(|request| &request.messages);
    assert_eq!(told.flat_map(BTreeMap::values).map(BTreeMap::len).sum::<usize>(), HUMANS);
    for request in &requests {
        let answer = send_event_to_device::v3::Response::new();
        machine.mark_request_as_sent(&request.txn_id, &answer).await.expect("marks");
    }
    let given = store.bytes();
    assert!(given < with_requests && given >= with_sessions + HUMANS * 100, "{given}");

    // In another process, as far as they are needed.
    let store = PgCryptoStore::new(database.reopen(), id, database.lease(id).await);
    let machine =
        OlmMachine::with_store(&bot, device_id!("BOT"), store.clone(), None).await.expect("opens");
    let opened = store.bytes();
    assert!(machine.get_missing_sessions(users()).await.expect("looks").is_none());
    assert!(store.bytes() >= opened + HUMANS * 4000, "{opened} {}", store.bytes());
}
