//! The calls of the crypto store that every message leads to.

use criterion::Criterion;
use greenshield::store::PgCryptoStore;
use matrix_sdk_crypto::{
    DeviceData,
    olm::{Account, InboundGroupSession, OutboundGroupSession, Session},
    store::{
        CryptoStore as _,
        types::{Changes, DeviceChanges},
    },
};
use ruma::{OwnedRoomId, device_id, user_id};
use tokio::runtime::Runtime;
use vodozemac::olm::SessionConfig;

use crate::{database::Database, pair::new_room};

/// What lies in the store.
struct Scene {
    store: PgCryptoStore,
    room: OwnedRoomId,
    session: Session,
    inbound: InboundGroupSession,
    outbound: OutboundGroupSession,
}

impl Scene {
    async fn new(database: &Database) -> Self {
        let (user, device) = (user_id!("@bot_store:example.org"), device_id!("BOT"));
        let (store, _) = database.bot(user.as_str(), device.as_str()).await.expect("a bot");
        let account = Account::with_device_id(user, device);
        let mut other =
            Account::with_device_id(user_id!("@other:example.org"), device_id!("OTHER"));
        other.generate_one_time_keys(1);
        let one_time_key = *other.one_time_keys().values().next().expect("a one-time key");
        let session = account
            .create_outbound_session_helper(
                SessionConfig::default(),
                other.identity_keys().curve25519,
                one_time_key,
                false,
                account.device_keys(),
            )
            .expect("a session");
        let room = new_room().expect("a room");
        // Sessions load with the keys of our own device.
        let own = DeviceData::from_account(&account);
        let (outbound, inbound) = account.create_group_session_pair_with_defaults(&room).await;
        store
            .save_pending_changes(matrix_sdk_crypto::store::types::PendingChanges {
                account: Some(account),
            })
            .await
            .expect("saves the account");
        let this = Self { store, room, session, inbound, outbound };
        let mut changes = this.changes();
        changes.devices = DeviceChanges {
            new: vec![own, DeviceData::from_account(&other)],
            ..DeviceChanges::default()
        };
        this.store.save_changes(changes).await.expect("saves");
        this
    }

    fn changes(&self) -> Changes {
        Changes {
            sessions: vec![self.session.clone()],
            inbound_group_sessions: vec![self.inbound.clone()],
            outbound_group_sessions: vec![self.outbound.clone()],
            ..Changes::default()
        }
    }
}

pub fn run(criterion: &mut Criterion, runtime: &Runtime, database: &Database) {
    let scene = runtime.block_on(Scene::new(database));
    let Scene { store, room, session, inbound, outbound } = &scene;
    let mut group = criterion.benchmark_group("store");
    group.bench_function("save_inbound_group_session", |b| {
        b.to_async(runtime).iter(|| async {
            let inbound_group_sessions = vec![inbound.clone()];
            let changes = Changes { inbound_group_sessions, ..Changes::default() };
            store.save_changes(changes).await.expect("saves");
        });
    });
    group.bench_function("save_outbound_group_session", |b| {
        b.to_async(runtime).iter(|| async {
            let outbound_group_sessions = vec![outbound.clone()];
            let changes = Changes { outbound_group_sessions, ..Changes::default() };
            store.save_changes(changes).await.expect("saves");
        });
    });
    group.bench_function("save_session", |b| {
        b.to_async(runtime).iter(|| async {
            let changes = Changes { sessions: vec![session.clone()], ..Changes::default() };
            store.save_changes(changes).await.expect("saves");
        });
    });
    group.bench_function("get_inbound_group_session", |b| {
        b.to_async(runtime).iter(|| async {
            let found = store.get_inbound_group_session(room, inbound.session_id()).await;
            assert!(found.expect("loads").is_some());
        });
    });
    group.bench_function("get_outbound_group_session", |b| {
        b.to_async(runtime).iter(|| async {
            let found = store.get_outbound_group_session(room).await;
            assert!(found.expect("loads").is_some());
        });
    });
    group.bench_function("get_sessions", |b| {
        let sender = session.sender_key().to_base64();
        b.to_async(runtime).iter(|| async {
            let found = store.get_sessions(&sender).await;
            assert!(found.expect("loads").is_some());
        });
    });
    group.bench_function("get_user_devices", |b| {
        b.to_async(runtime).iter(|| async {
            let found = store.get_user_devices(user_id!("@other:example.org")).await;
            assert_eq!(found.expect("loads").len(), 1);
        });
    });
    group.finish();
}
