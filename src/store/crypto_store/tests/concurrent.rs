//! Many bots at once, and many tasks on one bot.

use std::sync::Arc;

use matrix_sdk_crypto::store::{CryptoStore as _, types::Changes};
use ruma::room_id;
use tokio::task::JoinSet;

use super::{super::PgCryptoStore, world::World};
use crate::store::testing::database;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_bots_write_at_once() {
    let database = database().await;
    let mut stores = Vec::new();
    for n in 0..24 {
        let bot = database.bot(&format!("@{n}:x"), "BOT").await;
        stores.push(PgCryptoStore::new(database.store.clone(), bot, database.lease(bot).await));
    }
    let world = Arc::new(World::new().await);

    let mut tasks = JoinSet::new();
    for store in stores {
        let world = Arc::clone(&world);
        tasks.spawn(async move {
            world.fill(&store).await;
            for _ in 0..5 {
                let key = world.room_key(room_id!("!more:x")).await;
                store.save_inbound_group_sessions(vec![key], None).await.expect("saves");
            }
            let counts = store.inbound_group_session_counts(None).await.expect("reads");
            assert_eq!(counts.total, 6);
        });
    }
    tasks.join_all().await;
}

/// The same rows in every order, from clones and over several connections: no deadlock, nothing lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_share_a_store() {
    let database = database().await;
    let bot = database.bot("@a:x", "BOT").await;
    let store = PgCryptoStore::new(database.store.clone(), bot, database.lease(bot).await);
    let world = World::new().await;
    world.fill(&store).await;
    let mut keys = Vec::new();
    for _ in 0..20 {
        keys.push(world.room_key(room_id!("!more:x")).await);
    }

    let mut tasks = JoinSet::new();
    for n in 0..16 {
        let (store, mut keys) = (store.clone(), keys.clone());
        let session = world.session.clone();
        keys.rotate_left(n);
        tasks.spawn(async move {
            let ids: Vec<_> = keys.iter().map(|key| (key.room_id(), key.session_id())).collect();
            let changes = Changes {
                inbound_group_sessions: keys.clone(),
                sessions: vec![session],
                ..Default::default()
            };
            store.save_changes(changes).await.expect("saves");
            store.mark_inbound_group_sessions_as_backed_up("v", &ids).await.expect("marks");
            store.set_custom_value(&format!("task-{n}"), vec![1]).await.expect("saves");
            store.get_inbound_group_sessions().await.expect("reads");
        });
    }
    tasks.join_all().await;

    let counts = store.inbound_group_session_counts(Some("v")).await.expect("reads");
    assert_eq!((counts.total, counts.backed_up), (21, 20));
    for n in 0..16 {
        let value = store.get_custom_value(&format!("task-{n}")).await.expect("reads");
        assert_eq!(value, Some(vec![1]));
    }
}
