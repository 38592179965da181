//! A process that lost its lease writes nothing.

use std::fmt::Write as _;

use matrix_sdk_crypto::{
    OlmMachine,
    olm::PrivateCrossSigningIdentity,
    store::{
        CryptoStore, CryptoStoreError,
        types::{Changes, PendingChanges},
    },
};
use ruma::{device_id, events::secret::request::SecretName};
use sqlx::AssertSqlSafe;

use super::{
    super::{PgCryptoStore, lease_lost},
    world::{CUSTOM, VERSION, World, other_user, own_user},
};
use crate::store::{
    Fence,
    testing::{TestDatabase, database},
};

/// Everything in the crypto tables.
pub(super) async fn dump(database: &TestDatabase) -> String {
    let tables = sqlx::query_scalar!(
        r#"SELECT table_name::TEXT AS "name!" FROM information_schema.tables
        WHERE table_schema = 'public' AND table_name LIKE 'crypto\_%' ORDER BY table_name"#,
    )
    .fetch_all(database.pool())
    .await
    .expect("lists tables");
    assert_eq!(tables.len(), 18);
    let mut dump = String::new();
    for table in tables {
        let statement = format!("SELECT t::TEXT FROM {table} AS t ORDER BY 1");
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(statement))
            .fetch_all(database.pool())
            .await
            .expect("dumps");
        assert!(!rows.is_empty(), "{table} has rows to look at");
        writeln!(dump, "{table}\n{}", rows.join("\n")).expect("writes");
    }
    dump
}

fn assert_lost<T>(result: Result<T, impl Into<CryptoStoreError>>, what: &str) {
    let error = result.err().unwrap_or_else(|| panic!("{what} is fenced")).into();
    assert!(lease_lost(&error), "{what}: {error:?}");
}

/// Every method that writes, each with something to write.
async fn assert_every_write_is_lost(store: &PgCryptoStore, world: &World) {
    let account = Some(world.account.deep_clone());
    assert_lost(store.save_pending_changes(PendingChanges { account }).await, "account");
    assert_lost(store.save_changes(world.changes()).await, "changes");
    let key = world.room_key(super::world::room()).await;
    assert_lost(store.save_inbound_group_sessions(vec![key], None).await, "inbound");
    assert_lost(store.save_tracked_users(&[(other_user(), false)]).await, "tracked");
    assert_lost(store.set_custom_value(CUSTOM, b"changed".to_vec()).await, "custom");
    assert_lost(store.remove_custom_value(CUSTOM).await, "remove custom");
    assert_lost(store.delete_outgoing_secret_requests(&world.request_id).await, "request");
    assert_lost(store.delete_secrets_from_inbox(&SecretName::RecoveryKey).await, "secrets");
    assert_lost(store.delete_dehydrated_device_pickle_key().await, "dehydrated");
    assert_lost(store.try_take_leased_lock(1, "lock", "holder").await, "lock");
    let session = (world.inbound.room_id(), world.inbound.session_id());
    let marked = store.mark_inbound_group_sessions_as_backed_up(VERSION, &[session]).await;
    assert_lost(marked, "mark");
    assert_lost(store.reset_backup_state().await, "reset");
}

#[tokio::test]
async fn nothing_is_written_after_the_lease_is_lost() {
    let database = database().await;
    let bot = database.bot("@a:x", "BOT").await;
    let store = PgCryptoStore::new(database.store.clone(), bot, database.lease(bot).await);
    let world = World::new().await;
    world.fill(&store).await;
    let before = dump(&database).await;

    database.lease(bot).await;
    assert_every_write_is_lost(&store, &world).await;
    assert_eq!(dump(&database).await, before);
    assert!(store.load_account().await.expect("reads").is_some(), "reading needs no lease");
}

#[tokio::test]
async fn a_lease_on_another_shard_gives_no_right() {
    let database = database().await;
    let (bot, other) = (database.bot("@a:x", "BOT").await, database.bot("@b:x", "BOT").await);
    let world = World::new().await;
    world.fill(&PgCryptoStore::unfenced(database.store.clone(), bot)).await;
    let before = dump(&database).await;

    let fence: Fence = database.lease(other).await;
    let store = PgCryptoStore::new(database.store.clone(), bot, fence);
    assert_every_write_is_lost(&store, &world).await;
    assert_eq!(dump(&database).await, before);
}

/// The generated column and our constant are the same sharding.
#[tokio::test]
async fn every_bot_can_be_written_by_the_holder_of_its_shard() {
    let database = database().await;
    for n in 0..70 {
        let bot = database.bot(&format!("@{n}:x"), "BOT").await;
        let store = PgCryptoStore::new(database.store.clone(), bot, database.lease(bot).await);
        let identity = PrivateCrossSigningIdentity::new(own_user().to_owned());
        let changes = Changes { private_identity: Some(identity), ..Default::default() };
        store.save_changes(changes).await.expect("writes");
    }
}

#[tokio::test]
async fn a_machine_says_that_the_lease_is_lost() {
    let database = database().await;
    let bot = database.bot("@a:x", "BOT").await;
    let store = PgCryptoStore::new(database.store.clone(), bot, database.lease(bot).await);
    let machine =
        OlmMachine::with_store(own_user(), device_id!("BOT"), store, None).await.expect("opens");

    database.lease(bot).await;
    assert_lost(machine.bootstrap_cross_signing(true).await, "bootstrap");
}
