//! A real machine lives on the store, and comes back to life from it.

use std::collections::BTreeMap;

use matrix_sdk_crypto::{
    DecryptionSettings, EncryptionSettings, EncryptionSyncChanges, OlmMachine, TrustRequirement,
    types::requests::AnyOutgoingRequest,
};
use ruma::{
    DeviceId, OneTimeKeyAlgorithm, OwnedOneTimeKeyId, RoomId, UserId,
    api::client::{
        keys::{claim_keys, get_keys, upload_keys},
        sync::sync_events::DeviceLists,
        to_device::send_event_to_device,
    },
    device_id,
    encryption::{DeviceKeys, OneTimeKey},
    events::{AnyToDeviceEvent, room::message::RoomMessageEventContent},
    room_id,
    serde::Raw,
    uint, user_id,
};
use serde_json::{json, value::to_raw_value};

use super::super::PgCryptoStore;
use crate::store::testing::database;

const UNTRUSTED: DecryptionSettings =
    DecryptionSettings { sender_device_trust_requirement: TrustRequirement::Untrusted };

fn bot() -> &'static UserId {
    user_id!("@bot:example.org")
}

fn bot_device() -> &'static DeviceId {
    device_id!("BOT")
}

fn human() -> &'static UserId {
    user_id!("@human:example.org")
}

fn room() -> &'static RoomId {
    room_id!("!room:example.org")
}

fn raw<T>(value: &serde_json::Value) -> Raw<T> {
    Raw::from_json(to_raw_value(value).expect("JSON"))
}

/// What a new device uploaded.
pub(super) struct Uploaded {
    pub(super) device_keys: Raw<DeviceKeys>,
    pub(super) one_time_keys: BTreeMap<OwnedOneTimeKeyId, Raw<OneTimeKey>>,
}

/// Plays the homeserver for what it uploads.
pub(super) async fn upload(machine: &OlmMachine) -> Uploaded {
    for request in machine.outgoing_requests().await.expect("has requests") {
        if let AnyOutgoingRequest::KeysUpload(upload) = request.request() {
            let counts = BTreeMap::from([(OneTimeKeyAlgorithm::SignedCurve25519, uint!(50))]);
            let response = upload_keys::v3::Response::new(counts);
            machine.mark_request_as_sent(request.request_id(), &response).await.expect("marks");
            return Uploaded {
                device_keys: upload.device_keys.clone().expect("a new device"),
                one_time_keys: upload.one_time_keys.clone(),
            };
        }
    }
    panic!("nothing to upload")
}

/// Plays the homeserver for a human who fetches the bot's device and claims one of its keys.
async fn meet(human_machine: &OlmMachine, mut uploaded: Uploaded) {
    human_machine.update_tracked_users([bot()]).await.expect("tracks");
    for request in human_machine.outgoing_requests().await.expect("has requests") {
        if let AnyOutgoingRequest::KeysQuery(_) = request.request() {
            let mut response = get_keys::v3::Response::new();
            let devices = BTreeMap::from([(bot_device().to_owned(), uploaded.device_keys.clone())]);
            response.device_keys.insert(bot().to_owned(), devices);
            human_machine
                .mark_request_as_sent(request.request_id(), &response)
                .await
                .expect("takes the device");
        }
    }
    let (id, _) = human_machine
        .get_missing_sessions([bot()].into_iter())
        .await
        .expect("looks")
        .expect("no session yet");
    let key = uploaded.one_time_keys.pop_first().expect("a one-time key");
    let response = claim_keys::v3::Response::new(BTreeMap::from([(
        bot().to_owned(),
        BTreeMap::from([(bot_device().to_owned(), BTreeMap::from([key]))]),
    )]));
    human_machine.mark_request_as_sent(&id, &response).await.expect("takes the key");
}

/// The human sends the key of the room to the bot; how many keys arrived.
async fn share(human_machine: &OlmMachine, machine: &OlmMachine) -> usize {
    let requests = human_machine
        .share_room_key(room(), [bot()].into_iter(), EncryptionSettings::default())
        .await
        .expect("shares");
    let mut to_device_events: Vec<Raw<AnyToDeviceEvent>> = Vec::new();
    for request in requests {
        for content in request.messages.values().flat_map(BTreeMap::values) {
            let event = json!({
                "sender": human(),
                "type": request.event_type,
                "content": content,
            });
            to_device_events.push(raw(&event));
        }
        let response = send_event_to_device::v3::Response::new();
        human_machine.mark_request_as_sent(&request.txn_id, &response).await.expect("marks");
    }
    let (_, keys) = machine
        .receive_sync_changes(
            EncryptionSyncChanges {
                to_device_events,
                changed_devices: &DeviceLists::default(),
                one_time_keys_counts: &BTreeMap::default(),
                unused_fallback_keys: None,
                next_batch_token: None,
            },
            &UNTRUSTED,
        )
        .await
        .expect("receives");
    keys.len()
}

/// The human says something in the room; what the homeserver makes of it.
async fn say(human_machine: &OlmMachine, text: &str) -> serde_json::Value {
    let content = RoomMessageEventContent::text_plain(text);
    let encrypted = human_machine.encrypt_room_event(room(), content).await.expect("encrypts");
    json!({
        "type": "m.room.encrypted",
        "event_id": format!("${text}"),
        "sender": human(),
        "room_id": room(),
        "origin_server_ts": 1,
        "content": encrypted.content,
    })
}

fn session_id<T>(content: &Raw<T>) -> String {
    content.get_field("session_id").expect("JSON").expect("a session id")
}

async fn hear(machine: &OlmMachine, event: &serde_json::Value) -> String {
    let event =
        machine.decrypt_room_event(&raw(event), room(), &UNTRUSTED).await.expect("decrypts");
    let event: serde_json::Value = event.event.deserialize_as_unchecked().expect("JSON");
    event["content"]["body"].as_str().expect("a body").to_owned()
}

#[tokio::test]
async fn a_machine_comes_back_as_it_was() {
    let database = database().await;
    let id = database.bot(bot().as_str(), bot_device().as_str()).await;
    let fence = database.lease(id).await;
    let human_machine = OlmMachine::new(human(), device_id!("HUMAN")).await;

    let (identity_keys, master_key, first, second, own_words) = {
        let store = PgCryptoStore::new(database.store.clone(), id, fence);
        let machine =
            OlmMachine::with_store(bot(), bot_device(), store, None).await.expect("opens");
        machine.bootstrap_cross_signing(false).await.expect("bootstraps");
        meet(&human_machine, upload(&machine).await).await;
        assert_eq!(share(&human_machine, &machine).await, 1);
        let first = say(&human_machine, "first").await;
        let second = say(&human_machine, "second").await;
        assert_eq!(hear(&machine, &first).await, "first");

        // It speaks as well, to nobody but itself.
        let shared = machine
            .share_room_key(room(), [bot()].into_iter(), EncryptionSettings::default())
            .await
            .expect("shares");
        assert!(shared.is_empty());
        let content = RoomMessageEventContent::text_plain("own");
        let own = machine.encrypt_room_event(room(), content).await.expect("encrypts");
        let status = machine.cross_signing_status().await;
        assert!(status.is_complete());
        let keys = machine.export_cross_signing_keys().await.expect("exports").expect("has keys");
        (machine.identity_keys(), keys.master_key.clone(), first, second, own.content)
    };

    // Another process: another lease, another pool, nothing in memory.
    let store = PgCryptoStore::new(database.reopen(), id, database.lease(id).await);
    let machine = OlmMachine::with_store(bot(), bot_device(), store, None).await.expect("reopens");
    assert_eq!(machine.identity_keys(), identity_keys);
    assert!(machine.cross_signing_status().await.is_complete());
    let keys = machine.export_cross_signing_keys().await.expect("exports").expect("has keys");
    assert_eq!(keys.master_key, master_key);
    assert_eq!(hear(&machine, &first).await, "first");
    assert_eq!(hear(&machine, &second).await, "second");

    // Its own room key goes on where it was.
    let content = RoomMessageEventContent::text_plain("own again");
    let again = machine.encrypt_room_event(room(), content).await.expect("encrypts");
    assert_eq!(session_id(&again.content), session_id(&own_words));

    // So does the Olm session that the human's next room key comes through.
    human_machine.discard_room_key(room()).await.expect("discards");
    assert_eq!(share(&human_machine, &machine).await, 1);
    let third = say(&human_machine, "third").await;
    assert_eq!(hear(&machine, &third).await, "third");
}

/// No write of the old process slips in between: the new one starts from what it finds.
#[tokio::test]
async fn the_old_machine_cannot_receive_after_the_takeover() {
    let database = database().await;
    let id = database.bot(bot().as_str(), bot_device().as_str()).await;
    let store = PgCryptoStore::new(database.store.clone(), id, database.lease(id).await);
    let old = OlmMachine::with_store(bot(), bot_device(), store, None).await.expect("opens");
    let human_machine = OlmMachine::new(human(), device_id!("HUMAN")).await;
    meet(&human_machine, upload(&old).await).await;

    let store = PgCryptoStore::new(database.reopen(), id, database.lease(id).await);
    let new = OlmMachine::with_store(bot(), bot_device(), store, None).await.expect("opens");
    let content = json!({"algorithm": "m.olm.v1.curve25519-aes-sha2"});
    let event = json!({"sender": human(), "type": "m.dummy", "content": content});
    let received = old
        .receive_sync_changes(
            EncryptionSyncChanges {
                to_device_events: vec![raw(&event)],
                changed_devices: &DeviceLists::default(),
                one_time_keys_counts: &BTreeMap::from([(
                    OneTimeKeyAlgorithm::SignedCurve25519,
                    uint!(3),
                )]),
                unused_fallback_keys: None,
                next_batch_token: Some("token".to_owned()),
            },
            &UNTRUSTED,
        )
        .await;
    assert!(received.is_err());
    assert_eq!(share(&human_machine, &new).await, 1);
    let event = say(&human_machine, "hello").await;
    assert_eq!(hear(&new, &event).await, "hello");
}
