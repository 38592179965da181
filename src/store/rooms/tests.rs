use std::collections::BTreeMap;

use super::{Answer, answer, load};
use crate::{
    clock::Clock,
    store::{StoreError, testing::database},
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
        history_visibility: "shared".to_owned(),
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
