//! How long the common calls take: `cargo test --lib timing -- --ignored --nocapture`.

use std::time::Instant;

use matrix_sdk_crypto::{
    OlmMachine,
    store::{CryptoStore as _, types::Changes},
};
use ruma::room_id;

use super::{
    super::PgCryptoStore,
    world::{World, own_user},
};
use crate::store::testing::database;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "prints instead of asserting"]
async fn timing() {
    let database = database().await;
    let bot = database.bot("@a:x", "BOT").await;
    let store = PgCryptoStore::new(database.store.clone(), bot, database.lease(bot).await);
    let world = World::new().await;
    world.fill(&store).await;

    for (count, rounds) in [(1, 50), (100, 10), (1000, 2)] {
        let mut batches = Vec::new();
        for _ in 0..rounds {
            let mut keys = Vec::new();
            for _ in 0..count {
                keys.push(world.room_key(room_id!("!timing:x")).await);
            }
            batches.push(Changes { inbound_group_sessions: keys, ..Default::default() });
        }
        let start = Instant::now();
        for changes in batches {
            store.save_changes(changes).await.expect("saves");
        }
        println!("save_changes of {count} room keys: {:?}", start.elapsed() / rounds);
    }

    let start = Instant::now();
    for _ in 0..100 {
        let changes = Changes { sessions: vec![world.session.clone()], ..Default::default() };
        store.save_changes(changes).await.expect("saves");
    }
    println!("save_changes of an Olm session: {:?}", start.elapsed() / 100);

    let (room_id, id) = (world.inbound.room_id(), world.inbound.session_id());
    let start = Instant::now();
    for _ in 0..100 {
        store.get_inbound_group_session(room_id, id).await.expect("reads");
    }
    println!("get_inbound_group_session: {:?}", start.elapsed() / 100);

    let start = Instant::now();
    for _ in 0..100 {
        let store = PgCryptoStore::new(database.store.clone(), bot, database.lease(bot).await);
        OlmMachine::with_store(own_user(), world.account.device_id(), store, None)
            .await
            .expect("opens");
    }
    println!("OlmMachine::with_store (and a lease): {:?}", start.elapsed() / 100);
}
