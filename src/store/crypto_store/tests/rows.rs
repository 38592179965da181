//! What upstream's suite leaves open.

use chrono::{DateTime, TimeDelta};
use matrix_sdk_crypto::{
    olm::{Account, InboundGroupSession, SenderData, SenderDataType},
    store::{
        CryptoStore as _,
        types::{Changes, PendingChanges},
    },
};
use ruma::{device_id, room_id};

use super::{
    super::{PgCryptoStore, PgCryptoStoreError, prune_olm_hashes},
    world::{World, own_user},
};
use crate::{
    clock::Clock,
    store::{StoreError, testing::database},
};

#[tokio::test]
async fn another_account_never_overwrites_the_first() {
    let database = database().await;
    let store = PgCryptoStore::unfenced(database.store.clone(), database.bot("@a:x", "BOT").await);
    let world = World::new().await;
    world.fill(&store).await;

    let account = Some(Account::with_device_id(own_user(), device_id!("BOT")));
    let saved = store.save_pending_changes(PendingChanges { account }).await;
    assert!(matches!(saved, Err(PgCryptoStoreError::Store(StoreError::OtherAccount))));
    let loaded = store.load_account().await.expect("reads").expect("there");
    assert_eq!(loaded.identity_keys(), world.account.identity_keys());
}

#[tokio::test]
async fn a_room_key_is_backed_up_to_a_version() {
    let database = database().await;
    let store = PgCryptoStore::unfenced(database.store.clone(), database.bot("@a:x", "BOT").await);
    let world = World::new().await;
    let key = world.room_key(room_id!("!r:x")).await;
    let missing = async |version: &str| {
        store.inbound_group_sessions_for_backup(version, 10).await.expect("reads").len()
    };

    key.mark_as_backed_up();
    store.save_inbound_group_sessions(vec![key.clone()], Some("1")).await.expect("saves");
    assert_eq!((missing("1").await, missing("2").await), (0, 1), "a new backup gets it");

    // Saved again, as with better news of its sender: still where it was.
    let changes = Changes { inbound_group_sessions: vec![key.clone()], ..Default::default() };
    store.save_changes(changes).await.expect("saves");
    assert_eq!((missing("1").await, missing("2").await), (0, 1));

    // A better key in its place is to be backed up.
    key.reset_backup_state();
    let changes = Changes { inbound_group_sessions: vec![key.clone()], ..Default::default() };
    store.save_changes(changes).await.expect("saves");
    assert_eq!(missing("1").await, 1);
    let loaded = store.get_inbound_group_session(key.room_id(), key.session_id()).await;
    assert!(!loaded.expect("reads").expect("there").backed_up());
}

#[tokio::test]
async fn of_copies_of_a_room_key_that_come_at_once_the_one_that_opens_more_is_kept() {
    let database = database().await;
    let store = PgCryptoStore::unfenced(database.store.clone(), database.bot("@a:x", "BOT").await);
    let key = World::new().await.room_key(room_id!("!r:x")).await;
    let later = InboundGroupSession::from_export(&key.export_at_index(3).await).expect("a key");
    for copies in [vec![key.clone(), later.clone()], vec![later, key.clone()]] {
        let changes = Changes { inbound_group_sessions: copies, ..Default::default() };
        store.save_changes(changes).await.expect("saves");
        let kept = store.get_inbound_group_session(key.room_id(), key.session_id()).await;
        assert_eq!(kept.expect("reads").expect("there").first_known_index(), 0);
    }
}

/// As the machine does when it learns of a device: batch after batch, each saved as better known.
#[tokio::test]
async fn keys_of_a_device_are_found_where_they_are_stored_and_where_they_are_gathered() {
    let database = database().await;
    let store = PgCryptoStore::unfenced(database.store.clone(), database.bot("@a:x", "BOT").await);
    let world = World::new().await;
    let device = world.inbound.sender_key();
    let save = async |store: &PgCryptoStore, keys: Vec<InboundGroupSession>| {
        let changes = Changes { inbound_group_sessions: keys, ..Default::default() };
        store.save_changes(changes).await.expect("saves");
    };
    let mut all = Vec::new();
    for number in 0..5 {
        let mut key = world.room_key(room_id!("!r:x")).await;
        key.sender_data = SenderData::unknown();
        all.push(key.session_id().to_owned());
        save(&if number < 3 { store.clone() } else { store.clone().gathering() }, vec![key]).await;
    }
    all.sort_unstable();

    let store = store.gathering();
    let (mut found, mut after) = (Vec::new(), None);
    let batch = async |known: SenderDataType, after: Option<String>, limit: usize| {
        store.get_inbound_group_sessions_for_device_batch(device, known, after, limit).await
    };
    loop {
        let keys = batch(SenderDataType::UnknownDevice, after, 2).await.expect("reads");
        let Some(last) = keys.last() else { break };
        after = Some(last.session_id().to_owned());
        found.extend(keys.iter().map(|key| key.session_id().to_owned()));
        let known = SenderData::device_info(world.account.device_keys());
        let keys = keys.into_iter().map(|mut key| {
            key.sender_data = known.clone();
            key
        });
        save(&store, keys.collect()).await;
    }
    assert_eq!(found, all, "each once, in their order");
    assert_eq!(batch(SenderDataType::UnknownDevice, None, 9).await.expect("reads").len(), 0);
    let known = batch(SenderDataType::DeviceInfo, None, 9).await.expect("reads");
    assert_eq!(known.iter().map(InboundGroupSession::session_id).collect::<Vec<_>>(), all);
    let rows = store.take_gathered().await.expect("takes");
    let mut conn = database.store.connection().await.expect("connects");
    rows.write(&mut conn).await.expect("writes");
    assert_eq!(batch(SenderDataType::DeviceInfo, None, 9).await.expect("reads").len(), 5);
}

#[tokio::test]
async fn old_hashes_are_pruned() {
    let database = database().await;
    let clock = Clock::fixed(DateTime::UNIX_EPOCH);
    let store = PgCryptoStore::unfenced(database.store.clone(), database.bot("@a:x", "BOT").await)
        .with_clock(clock.clone());
    let world = World::new().await;
    world.fill(&store).await;
    let mut conn = database.pool().acquire().await.expect("connects");

    let (past, future) = (clock.now(), clock.now() + TimeDelta::microseconds(1));
    assert_eq!(prune_olm_hashes(&mut conn, past, 10).await.expect("prunes"), 0);
    assert!(store.is_message_known(&world.hash).await.expect("reads"));
    assert_eq!(prune_olm_hashes(&mut conn, future, 10).await.expect("prunes"), 1);
    assert!(!store.is_message_known(&world.hash).await.expect("reads"));
}

#[tokio::test]
async fn every_column_is_described() {
    let database = database().await;
    let undescribed = sqlx::query_scalar!(
        r#"SELECT FORMAT('%s.%s', c.relname, a.attname) AS "column!"
        FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum >= 0
        WHERE c.relkind = 'r' AND c.relname LIKE 'crypto\_%' AND NOT a.attisdropped
            AND (COL_DESCRIPTION(c.oid, a.attnum) IS NULL OR OBJ_DESCRIPTION(c.oid) IS NULL)"#,
    )
    .fetch_all(database.pool())
    .await
    .expect("reads");
    assert!(undescribed.is_empty(), "{undescribed:?}");
}
