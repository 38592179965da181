//! Bots in one database, with the same ids for everything, know nothing of each other.

use matrix_sdk_crypto::store::CryptoStore as _;
use ruma::device_id;

use super::{
    super::PgCryptoStore,
    world::{World, own_user},
};
use crate::store::testing::database;

#[tokio::test]
async fn a_bot_sees_its_own_rows_only() {
    let database = database().await;
    let ours = PgCryptoStore::unfenced(database.store.clone(), database.bot("@a:x", "BOT").await);
    let theirs = PgCryptoStore::unfenced(database.store.clone(), database.bot("@b:x", "BOT").await);
    let world = World::new().await;

    world.fill(&ours).await;
    let full = world.seen_by(&ours).await;
    for (getter, found) in &full {
        assert_eq!(*found, 1, "{getter} finds what is there");
    }
    for (getter, found) in world.seen_by(&theirs).await {
        assert_eq!(found, 0, "{getter} finds what belongs to another bot");
    }

    // The same lock is another lock.
    let lock = theirs.try_take_leased_lock(60_000, "lock", "another").await.expect("locks");
    assert_eq!(lock, Some(1));
}

#[tokio::test]
async fn a_bot_changes_its_own_rows_only() {
    let database = database().await;
    let ours = PgCryptoStore::unfenced(database.store.clone(), database.bot("@a:x", "BOT").await);
    let bot = database.bot("@b:x", "BOT").await;
    let theirs = PgCryptoStore::unfenced(database.store.clone(), bot);
    let world = World::new().await;
    world.fill(&ours).await;
    let full = world.seen_by(&ours).await;
    let before = ours.load_identity().await.expect("reads").expect("there");

    world.fill(&theirs).await;
    assert_eq!(world.seen_by(&theirs).await, full);
    world.delete_from(&theirs).await;
    let deleted = world.seen_by(&theirs).await;
    for getter in [
        "other device",
        "other devices",
        "dehydrated",
        "request",
        "secrets",
        "pending",
        "custom",
        "inbound backed up",
    ] {
        assert_eq!(deleted[getter], 0, "{getter} is deleted");
    }
    assert_eq!(world.seen_by(&ours).await, full, "the other bot's rows are untouched");

    // Not even the last that goes of a bot takes another's.
    sqlx::query!("DELETE FROM bots WHERE bot_id = $1", bot.0)
        .execute(database.pool())
        .await
        .expect("deletes");
    assert_eq!(world.seen_by(&ours).await, full);
    let after = ours.load_identity().await.expect("reads").expect("there");
    assert_eq!(before.master_public_key().await, after.master_public_key().await);
}

/// Somebody who can write to the database gives one row the value of another.
#[tokio::test]
async fn a_value_opens_in_its_own_row_only() {
    let database = database().await;
    let store = PgCryptoStore::unfenced(database.store.clone(), database.bot("@a:x", "BOT").await);
    World::new().await.fill(&store).await;
    sqlx::query!("UPDATE crypto_devices SET device_id = 'EVIL'")
        .execute(database.pool())
        .await
        .expect("updates");

    let loaded = store.get_device(own_user(), device_id!("EVIL")).await;
    assert!(loaded.is_err());
    assert!(store.get_user_devices(own_user()).await.is_err());
}
