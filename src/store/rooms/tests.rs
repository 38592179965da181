use std::{collections::BTreeMap, time::Duration};

use super::{Answer, answer, load};
use crate::{
    clock::Clock,
    store::{
        StoreError,
        retention::{self, Rules},
        testing::database,
    },
};

#[tokio::test]
async fn an_answer_is_written_unless_there_is_something_newer_or_somebody_else_has_the_bot() {
    let database = database().await;
    let (bot, now) = (database.bot("@bot:x", "BOT").await, Clock::system().now());
    let lost = database.lease(bot).await;
    let fence = database.lease(bot).await;
    let mut conn = database.store.connection().await.expect("connects");
    let told = Answer {
        encryption: None,
        history_visibility: "shared",
        members: BTreeMap::from([("@bot:x".to_owned(), "join".to_owned())]),
    };
    let refused = answer(&mut conn, lost, "!room:x", 0, &told, now).await;
    assert!(matches!(refused, Err(StoreError::LeaseLost)), "{refused:?}");
    assert!(!load(&mut conn, "!room:x").await.expect("looks").members_complete);

    let room = answer(&mut conn, fence, "!room:x", 0, &told, now).await.expect("writes");
    let room = room.expect("nothing is newer");
    assert!(room.members_complete && room.encryption_checked && room.encryption.is_none());
    let overtaken = answer(&mut conn, fence, "!room:x", 0, &told, now).await.expect("looks");
    assert!(overtaken.is_none(), "of an older version: {overtaken:?}");
}

/// Events lock the room before its members: whoever takes these first may wait for them in a circle.
#[tokio::test]
async fn no_members_are_swept_out_of_a_room_that_is_being_written() {
    let database = database().await;
    let (store, now) = (&database.store, Clock::system().now());
    database
        .execute(
            "INSERT INTO rooms (room_id, members_complete, updated_at)
                VALUES ('!left', TRUE, NOW() - INTERVAL '40 days');
            INSERT INTO room_members VALUES ('!left', '@human:x', 'join')",
        )
        .await;
    let members = "SELECT COUNT(*)::TEXT FROM room_members";
    let sweep = async || {
        let mut conn = store.connection().await.expect("connects");
        let swept = retention::sweep(&mut conn, Rules::Rooms, 9, now);
        let swept = tokio::time::timeout(Duration::from_secs(20), swept);
        swept.await.expect("it waits for nobody").expect("sweeps");
    };
    let mut tx = store.begin().await.expect("begins");
    sqlx::raw_sql("UPDATE rooms SET version = version + 1").execute(&mut *tx).await.expect("locks");
    sweep().await;
    assert_eq!(database.text(members).await, "1");
    tx.rollback().await.expect("lets go");
    sweep().await;
    assert_eq!(database.text(members).await, "0");
}
