//! Whoever is tracked has a row in `device_lists`, where changes are noted, whatever else is going on;
//! and nobody who writes these rows waits for another in a circle.

use chrono::{DateTime, TimeDelta, Utc};
use ruma::OwnedUserId;
use serde_json::json;
use sqlx::PgConnection;
use tokio::task::JoinSet;

use super::super::users;
use crate::{
    clock::Clock,
    model::BotId,
    store::{
        Store, device_lists,
        retention::{self, Rules},
        testing::{TestDatabase, database},
    },
};

const HUMAN: &str = "@human:x";

async fn track(conn: &mut PgConnection, bot: BotId) {
    users::save(conn, [((bot, HUMAN.to_owned()), false)].into()).await.expect("tracks");
}

async fn ask(store: &Store, now: DateTime<Utc>) {
    let mut conn = store.connection().await.expect("connects");
    let users = [HUMAN.to_owned()];
    device_lists::known(&mut conn, store.sealer(), &users, now).await.expect("looks");
}

async fn sweep(store: &Store, now: DateTime<Utc>) {
    let mut conn = store.connection().await.expect("connects");
    retention::sweep(&mut conn, Rules::Strangers, 100, now).await.expect("sweeps");
}

async fn change(store: &Store) {
    let mut conn = store.connection().await.expect("connects");
    device_lists::changed(&mut conn, &[HUMAN.to_owned()]).await.expect("notes");
}

/// Of whom a bot that has looked at nothing so far is told that their devices changed.
async fn changed(store: &Store, bot: BotId) -> Vec<OwnedUserId> {
    let mut conn = store.connection().await.expect("connects");
    device_lists::changed_since(&mut conn, bot, 0).await.expect("looks")
}

/// How many are tracked of whose changes nothing would be noted.
async fn unnoted(database: &TestDatabase) -> String {
    let unnoted = "SELECT COUNT(*)::TEXT FROM crypto_tracked_users t
        WHERE NOT EXISTS (SELECT FROM device_lists d WHERE d.user_id = t.user_id)";
    database.text(unnoted).await
}

/// Somebody whom some bot tracked once, and about whom the homeserver was asked three hours ago.
async fn somebody_of_old(database: &TestDatabase) {
    database
        .execute(&format!(
            "INSERT INTO device_lists (user_id, fetched, fetched_at)
                VALUES ('{HUMAN}', 0, NOW() - INTERVAL '3 hours')"
        ))
        .await;
}

#[tokio::test]
async fn a_change_is_noted_from_the_look_at_the_answer_on() {
    let database = database().await;
    let (store, now) = (&database.store, Clock::system().now());
    let bot = database.bot("@bot:x", "BOT").await;
    somebody_of_old(&database).await;
    ask(store, now).await;
    sweep(store, now).await;
    change(store).await;
    let mut conn = store.connection().await.expect("connects");
    track(&mut conn, bot).await;
    assert_eq!(changed(store, bot).await, [HUMAN]);
}

#[tokio::test]
async fn whoever_is_about_to_be_tracked_is_not_forgotten() {
    let database = database().await;
    let (store, now) = (&database.store, Clock::system().now());
    let bot = database.bot("@bot:x", "BOT").await;
    somebody_of_old(&database).await;
    ask(store, now).await;
    let mut tx = store.begin().await.expect("begins");
    track(&mut tx, bot).await;
    sweep(store, now).await;
    tx.commit().await.expect("commits");
    assert_eq!(unnoted(&database).await, "0");

    database.execute("DELETE FROM crypto_tracked_users").await;
    sweep(store, now).await;
    let known = "SELECT COUNT(*)::TEXT FROM device_lists";
    assert_eq!(database.text(known).await, "1", "a bot may be about to track them");
    sweep(store, now + TimeDelta::hours(2)).await;
    assert_eq!(database.text(known).await, "0", "it was not");
}

/// Nobody had asked, as about a bot itself, or a row got lost in another way.
#[tokio::test]
async fn whoever_is_tracked_without_a_row_gets_one_and_is_asked_about() {
    let database = database().await;
    let (store, now) = (&database.store, Clock::system().now());
    let bot = database.bot("@bot:x", "BOT").await;
    somebody_of_old(&database).await;
    let mut tx = store.begin().await.expect("begins");
    track(&mut tx, bot).await;
    sweep(store, now).await;
    tx.commit().await.expect("commits");
    change(store).await;
    sweep(store, now).await;
    assert_eq!(unnoted(&database).await, "0");
    assert_eq!(changed(store, bot).await, [HUMAN], "what was missed meanwhile is asked for");
}

/// Where letters sort in another order than bytes: all of them lock by bytes. And what they waited for
/// they write as it is by then.
#[tokio::test]
async fn rows_are_locked_in_one_order() {
    const CHANGED: &str = "changed = (SELECT device_epoch FROM homeserver_state)";
    let database = database().await;
    let store = &database.store;
    database
        .execute(
            "ALTER TABLE device_lists ALTER COLUMN user_id TYPE TEXT COLLATE \"en-x-icu\";
            INSERT INTO device_lists (user_id, fetched, fetched_at) VALUES
                ('@a:x', 0, NOW() - INTERVAL '3 days'), ('@B:x', 0, NOW() - INTERVAL '2 days')",
        )
        .await;
    for (writer, written) in [
        ("changed", CHANGED),
        ("all_changed", CHANGED),
        ("known", "asked_at IS NOT NULL"),
        ("keep", "fetched = 9"),
        ("expire", CHANGED),
    ] {
        let mut held = store.begin().await.expect("begins");
        sqlx::raw_sql("UPDATE device_lists SET asked_at = NULL WHERE user_id = '@B:x'")
            .execute(&mut *held)
            .await
            .expect("locks");
        let mut writes = JoinSet::new();
        writes.spawn(write(store.clone(), writer));
        tokio::select! {
            () = database.wait_for_a_lock() => {}
            _ = writes.join_next() => panic!("{writer} waits for the row that is held"),
        }
        let free = "SELECT COALESCE(STRING_AGG(user_id, ' '), '') FROM (
            SELECT user_id FROM device_lists FOR UPDATE SKIP LOCKED
        ) AS free";
        assert_eq!(database.text(free).await, "@a:x", "{writer} has not locked the later row yet");
        held.commit().await.expect("lets go");
        writes.join_all().await;
        let count = format!("SELECT COUNT(*)::TEXT FROM device_lists WHERE {written}");
        assert_eq!(database.text(&count).await, "2", "{writer}");
    }
}

async fn write(store: Store, writer: &'static str) {
    let mut conn = store.connection().await.expect("connects");
    let users = ["@B:x", "@a:x"].map(ToOwned::to_owned);
    let (sealer, now) = (store.sealer(), Clock::system().now());
    match writer {
        "changed" => device_lists::changed(&mut conn, &users).await.expect("notes"),
        "all_changed" => device_lists::all_changed(&mut conn).await.expect("notes"),
        "known" => {
            device_lists::known(&mut conn, sealer, &users, now).await.expect("looks");
        }
        "keep" => {
            let answers = users.map(|user| (user, 9, json!({})));
            device_lists::keep(&mut conn, sealer, &answers, now).await.expect("keeps");
        }
        _ => {
            let later = now + TimeDelta::days(2);
            assert_eq!(device_lists::expire(&mut conn, 9, later).await.expect("expires"), 2);
        }
    }
}
