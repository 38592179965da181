//! The suite that every store of the SDK has to pass, run whole and unchanged.
//!
//! It names its stores, and expects the same name to open the same data. Each name is a bot here and
//! all of them share one database, which makes the suite a test of isolation too.
#![allow(
    clippy::allow_attributes,
    clippy::all,
    clippy::pedantic,
    unexpected_cfgs,
    reason = "the suite is a macro of upstream's"
)]

use std::{collections::HashMap, sync::LazyLock};

use matrix_sdk_crypto::{cryptostore_integration_tests, cryptostore_integration_tests_time};
use tokio::sync::Mutex;

use super::super::PgCryptoStore;
use crate::{
    model::BotId,
    store::testing::{TestDatabase, database},
};

struct Suite {
    database: Option<TestDatabase>,
    bots: HashMap<String, BotId>,
}

/// Lives as long as the process; a later run drops the database.
static SUITE: LazyLock<Mutex<Suite>> =
    LazyLock::new(|| Mutex::new(Suite { database: None, bots: HashMap::new() }));

async fn get_store(name: &str, _passphrase: Option<&str>, clear_data: bool) -> PgCryptoStore {
    let mut suite = SUITE.lock().await;
    if suite.database.is_none() {
        suite.database = Some(database().await);
    }
    let Suite { database: Some(database), bots } = &mut *suite else { unreachable!() };

    // Every test has a runtime of its own, and a pool does not outlive its runtime.
    let store = database.reopen();
    if clear_data && let Some(bot) = bots.remove(name) {
        sqlx::query!("-- upstream.get_store\nDELETE FROM bots WHERE bot_id = $1", bot.0)
            .execute(store.pool())
            .await
            .expect("deletes the bot");
    }
    let bot = match bots.get(name) {
        Some(bot) => *bot,
        None => {
            let bot = sqlx::query_scalar!(
                "-- upstream.get_store
                INSERT INTO bots (user_id, device_id, created_at) VALUES ($1, 'D', NOW())
                RETURNING bot_id",
                name,
            )
            .fetch_one(store.pool())
            .await
            .expect("makes a bot");
            bots.insert(name.to_owned(), BotId(bot));
            BotId(bot)
        }
    };
    PgCryptoStore::unfenced(store, bot)
}

cryptostore_integration_tests!();
cryptostore_integration_tests_time!();
