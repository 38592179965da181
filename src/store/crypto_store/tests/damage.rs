//! A row that does not open is dropped, whatever it is, and nothing else is.

use std::collections::BTreeMap;

use matrix_sdk_crypto::store::CryptoStore as _;
use sqlx::AssertSqlSafe;

use super::{super::PgCryptoStore, world::World};
use crate::store::testing::database;

/// Each table with its sealed column, how many columns of its key are in the seal, and whether what is
/// inside has a shape.
const TABLES: [(&str, &str, usize, bool); 13] = [
    ("crypto_values", "sealed_value", 1, true),
    ("crypto_custom_values", "sealed_value", 1, false),
    ("crypto_olm_sessions", "sealed_session", 2, true),
    ("crypto_inbound_group_sessions", "sealed_session", 2, true),
    ("crypto_outbound_group_sessions", "sealed_session", 1, true),
    ("crypto_devices", "sealed_device", 2, true),
    ("crypto_identities", "sealed_identity", 1, true),
    ("crypto_requests", "sealed_request", 1, true),
    ("crypto_secrets", "sealed_secret", 1, true),
    ("crypto_withheld_sessions", "sealed_entry", 2, true),
    ("crypto_room_settings", "sealed_settings", 1, true),
    ("crypto_room_key_bundles", "sealed_bundle", 2, true),
    ("crypto_pending_key_bundles", "sealed_details", 1, true),
];

/// How many sealed rows the store has in each table.
async fn counts(store: &PgCryptoStore) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for row in store.sealed_rows().await.expect("reads") {
        *counts.entry(row.kept_in).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn what_does_not_open_is_dropped_from_every_table_and_the_rest_stays() {
    let database = database().await;
    let world = World::new().await;
    let store = async |user: &str| {
        let bot = database.bot(user, "BOT").await;
        let store = PgCryptoStore::unfenced(database.store.clone(), bot);
        world.fill(&store).await;
        (bot, store)
    };
    let (_, other) = store("@other:x").await;
    let whole = counts(&other).await;
    let tables: Vec<_> = TABLES.iter().map(|(table, ..)| *table).collect();
    let mut named: Vec<_> = whole.keys().map(String::as_str).collect();
    named.sort_by_key(|name| tables.iter().position(|table| table == name));
    assert_eq!(named, tables, "one of everything");
    assert_eq!(other.drop_damaged().await.expect("looks"), 0, "all of it opens");

    let rounds = TABLES.into_iter().flat_map(|table| [(table, false), (table, true)]);
    for ((table, column, keys, has_shape), opens) in rounds {
        let (bot, store) = store(&format!("@{table}_{opens}:x")).await;
        let rows = store.sealed_rows().await.expect("reads");
        let rows: Vec<_> = rows.into_iter().filter(|row| row.kept_in == table).collect();
        for row in &rows {
            let key = &[&*row.first, &*row.second][..keys];
            let sealed = store.seal_bytes(table, key, b"something else").expect("seals");
            let damaged = if opens { sealed } else { vec![0] };
            let sql =
                format!("UPDATE {table} SET {column} = $1 WHERE {column} = $2 AND bot_id = {bot}");
            let damage = sqlx::query(AssertSqlSafe(sql)).bind(damaged).bind(&row.sealed);
            damage.execute(database.pool()).await.expect("damages");
        }
        let gone = if opens && !has_shape { 0 } else { rows.len() };
        let dropped = store.drop_damaged().await.expect("drops");
        assert_eq!(dropped, gone, "{table}, opens: {opens}");
        let mut left = whole.clone();
        if gone > 0 {
            left.remove(table);
        }
        assert_eq!(counts(&store).await, left, "{table}, opens: {opens}");
        assert_eq!(store.drop_damaged().await.expect("looks"), 0, "{table}, opens: {opens}");
        assert!(store.load_account().await.expect("reads").is_some());
    }
    assert_eq!(counts(&other).await, whole, "another bot's rows");
}
