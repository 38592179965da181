//! Every table, and what happens to what is old in it.

use crate::{
    clock::Clock,
    model::BotId,
    store::testing::{TestDatabase, database},
};

use super::*;

async fn left(database: &TestDatabase) -> String {
    database
        .text(
            "SELECT CONCAT_WS(' ',
                (SELECT COUNT(*) FROM transactions),
                (SELECT COUNT(*) FROM to_device_seen),
                (SELECT COUNT(*) FROM crypto_olm_hashes),
                (SELECT COUNT(*) FROM events),
                (SELECT COUNT(*) FROM event_log),
                (SELECT COUNT(*) FROM outbox),
                (SELECT COUNT(*) FROM outbox WHERE sealed_content <> ''),
                (SELECT COUNT(*) FROM verifications))",
        )
        .await
}

#[tokio::test]
async fn what_is_old_goes_and_what_is_young_or_open_stays() {
    let database = database().await;
    let bot = database.bot("@bot_a:x", "DEV").await;
    for (name, age) in [("old", 400), ("young", 1)] {
        database
            .execute(&format!(
                "INSERT INTO transactions VALUES ('{name}', '', NOW() - INTERVAL '{age} days');
                INSERT INTO to_device_seen VALUES ({bot}, '{name}', NOW() - INTERVAL '{age} days');
                INSERT INTO crypto_olm_hashes (bot_id, sender_key, message_hash, created_at)
                    VALUES ({bot}, '{name}', '{name}', NOW() - INTERVAL '{age} days');
                INSERT INTO events (event_id, room_id, sender, event_type, origin_server_ts,
                    received_at, sealed_event)
                    VALUES ('${name}', '!r', '@a:x', 't', 0, NOW() - INTERVAL '{age} days', '');
                INSERT INTO event_log SELECT {bot}, event_seq, event_seq, 'ok', NOW()
                    FROM events WHERE event_id = '${name}';
                INSERT INTO outbox (bot_id, room_id, txn_id, event_type, sealed_content, due_at,
                    created_at, finished_at, state)
                    VALUES ({bot}, '!r', '{name}', 't', 'x', NOW(), NOW(),
                        NOW() - INTERVAL '{age} days', 'sent');
                INSERT INTO verifications (bot_id, flow_id, other_user_id, we_started, state,
                    created_at, updated_at, finished_at)
                    VALUES ({bot}, '{name}', '@a:x', FALSE, 'done', NOW(), NOW(),
                        NOW() - INTERVAL '{age} days')",
            ))
            .await;
    }
    let now = Clock::system().now();
    let mut conn = database.store.connection().await.expect("connects");
    let swept = sweep(&mut conn, Rules::Messages, 100, now).await.expect("sweeps");
    assert_eq!(swept, Swept { taken: 6, is_full: false });
    assert_eq!(left(&database).await, "1 1 1 1 1 2 1 1");
    let again = sweep(&mut conn, Rules::Messages, 100, now).await.expect("sweeps");
    assert_eq!(again, Swept::default());
}

/// However many messages have lost their content, none of them is looked at to find one that has not; and
/// those that have it are not looked at to find one that is to go.
#[tokio::test]
async fn a_sweep_looks_at_no_message_that_it_does_not_take() {
    let database = database().await;
    let bot = database.bot("@bot_a:x", "DEV").await;
    for (content, days) in [("", 400), ("", 100), ("x", 100), ("x", 1)] {
        // Of those that stay very many, of those that go one.
        let many = if days == 1 || content.is_empty() && days == 100 { 2000 } else { 1 };
        database
            .execute(&format!(
                "INSERT INTO outbox (bot_id, room_id, txn_id, event_type, sealed_content, due_at,
                    created_at, finished_at, state)
                SELECT {bot}, '!r', '{content}-{days}-' || n, 't', '{content}', NOW(), NOW(),
                    NOW() - INTERVAL '{days} days', 'sent'
                FROM GENERATE_SERIES(1, {many}) AS n"
            ))
            .await;
    }
    database.execute("ANALYZE outbox").await;
    for rules in [Rules::Messages, Rules::Work] {
        let mut tx = database.pool().begin().await.expect("begins");
        let swept = sweep(&mut tx, rules, 100, Clock::system().now()).await.expect("sweeps");
        assert_eq!(swept.taken, 1, "{rules:?}");
        let looks = "SELECT seq_tup_read + COALESCE(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables
            WHERE relname = 'outbox'";
        let looked_at: i64 = sqlx::query_scalar(looks).fetch_one(&mut *tx).await.expect("looks");
        assert!((1..20).contains(&looked_at), "{rules:?} looked at {looked_at} messages");
        tx.commit().await.expect("commits");
    }
}

#[tokio::test]
async fn every_table_and_column_is_described() {
    let database = database().await;
    let undescribed = database
        .text(
            "SELECT COALESCE(STRING_AGG(c.relname || COALESCE('.' || a.attname, ''), ', '), '')
            FROM pg_class c
            LEFT JOIN LATERAL (
                SELECT attname, attnum FROM pg_attribute
                WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped
                UNION ALL SELECT NULL, 0
            ) a ON TRUE
            WHERE c.relnamespace = 'public'::REGNAMESPACE AND c.relkind = 'r'
                AND c.relname <> '_sqlx_migrations'
                AND NOT EXISTS (
                    SELECT FROM pg_description d
                    WHERE d.objoid = c.oid AND d.objsubid = a.attnum
                        AND d.classoid = 'pg_class'::REGCLASS
                )",
        )
        .await;
    assert_eq!(undescribed, "", "COMMENT ON these in the migration that makes them");
}

/// A row of each table that can grow with what others do, `{age}` days old.
const RULED: [(&str, &str); 15] = [
    ("transactions", "VALUES ('{name}', '', {then})"),
    ("to_device_seen", "VALUES ({bot}, '{name}', {then})"),
    (
        "crypto_olm_hashes",
        "(bot_id, sender_key, message_hash, created_at) VALUES ({bot}, '{name}', '', {then})",
    ),
    (
        "events",
        "(event_id, room_id, sender, event_type, origin_server_ts, received_at, sealed_event)
        VALUES ('${name}', '!r', '@a:x', 't', 0, {then}, '')",
    ),
    (
        "event_log",
        "SELECT {bot}, event_seq, event_seq, 'ok', NOW() FROM events
        WHERE event_id = '${name}'",
    ),
    ("inbox", "(bot_id, kind, received_at, due_at) VALUES ({bot}, 'reconcile', {then}, NOW())"),
    (
        "outbox",
        "(bot_id, room_id, txn_id, event_type, sealed_content, due_at, created_at, finished_at)
        VALUES ({bot}, '!r', '{name}', 't', 'x', NOW(), NOW(), {then})",
    ),
    (
        "verifications",
        "(bot_id, flow_id, other_user_id, we_started, state, created_at, updated_at, finished_at)
        VALUES ({bot}, '{name}', '@a:x', FALSE, 'cancelled', NOW(), NOW(), {then})",
    ),
    (
        "signup_codes",
        "(code_hash, code_hint, label, inviter, max_uses, created_at, expires_at)
        VALUES ('{name}', '', '', '@a:x', 1, NOW(), {then})",
    ),
    ("rooms", "(room_id, updated_at) VALUES ('!{name}', {then})"),
    ("room_members", "VALUES ('!{name}', '@human:x', 'join')"),
    ("crypto_outbound_group_sessions", "VALUES ({bot}, '!{name}', '')"),
    (
        "crypto_inbound_group_sessions",
        "(bot_id, room_id, session_id, sender_key, sender_data_type, backed_up, sealed_session,
            created_at)
        VALUES ({bot}, '!r', '{name}', 'k', 0, FALSE, '', {then})",
    ),
    (
        "crypto_withheld_sessions",
        "(bot_id, room_id, session_id, sealed_entry, created_at)
        VALUES ({bot}, '!r', '{name}', '', {then})",
    ),
    (
        "crypto_room_key_bundles",
        "(bot_id, room_id, sender_user_id, sealed_bundle, created_at)
        VALUES ({bot}, '!r', '{name}', '', {then})",
    ),
];

/// By its last use, and by how many there are.
const OLM: &str = "(bot_id, sender_key, session_id, sealed_session, used_at)
    VALUES ({bot}, 'k', '{name}', '', {then})";

/// All other tables, and why they cannot grow for ever.
const BOUNDED: [(&str, &str); 24] = [
    ("sealing_key", "one row"),
    ("homeserver_state", "one row"),
    ("shards", "64 rows"),
    ("processes", "every process removes those that are dead, with every renewal of its leases"),
    ("place", "one row"),
    ("device_lists", "users that some bot tracks: the others go"),
    ("bots", "one a signup, and signups need a code of the operator"),
    ("bot_identities", "one a bot"),
    ("bot_tokens", "one a signup"),
    ("bot_queue", "one a bot at most"),
    ("signups", "one a bot"),
    ("repairs", "the last one of each bot"),
    ("crypto_accounts", "one a bot"),
    ("crypto_values", "names from a list of five"),
    ("crypto_custom_values", "the engine's own names, a handful a bot"),
    ("crypto_lease_locks", "the engine's own names; we take none"),
    ("crypto_tracked_users", "the bot is asked to forget strangers: see the last test"),
    ("crypto_devices", "devices of tracked users, forgotten with them"),
    ("crypto_identities", "one a tracked user, forgotten with them"),
    ("crypto_requests", "bots ask nobody for keys"),
    ("crypto_secrets", "bots ask nobody for secrets"),
    ("crypto_room_settings", "we set none"),
    ("crypto_pending_key_bundles", "bots wait for no offered history"),
    ("crypto_downloaded_rooms", "there is no key backup"),
];

async fn insert(database: &TestDatabase, table: &str, row: &str, name: &str, age: i64, bot: BotId) {
    let row = row
        .replace("{name}", name)
        .replace("{bot}", &bot.to_string())
        .replace("{then}", &format!("NOW() - INTERVAL '{age} days'"));
    database.execute(&format!("INSERT INTO {table} {row}")).await;
}

async fn count(database: &TestDatabase, table: &str) -> String {
    database.text(&format!("SELECT COUNT(*)::TEXT FROM {table}")).await
}

async fn sweep_all(database: &TestDatabase) {
    let now = Clock::system().now();
    let mut conn = database.store.connection().await.expect("connects");
    // Members go with one sweep, their room with the next.
    for _ in 0..3 {
        for rules in Rules::ALL {
            sweep(&mut conn, rules, 100, now).await.expect("sweeps");
        }
    }
}

#[tokio::test]
async fn every_table_has_a_rule_or_a_reason() {
    let database = database().await;
    let named = RULED.iter().chain(&BOUNDED).map(|(table, _)| *table);
    let mut named: Vec<&str> = named.chain(["crypto_olm_sessions", "_sqlx_migrations"]).collect();
    named.sort_unstable();
    let tables = "SELECT STRING_AGG(tablename::TEXT, ' ' ORDER BY tablename::TEXT COLLATE \"C\")
        FROM pg_tables WHERE schemaname = 'public'";
    let there = database.text(tables).await;
    assert_eq!(there, named.join(" "), "say in this file how long rows of a new table are kept");
}

#[tokio::test]
async fn what_is_old_goes_from_every_table_that_grows() {
    let database = database().await;
    let bot = database.bot("@bot_a:x", "DEV").await;
    for (name, age) in [("old", 400), ("young", 1)] {
        for (table, row) in RULED {
            insert(&database, table, row, name, age, bot).await;
        }
        insert(&database, "crypto_olm_sessions", OLM, name, age, bot).await;
    }
    sweep_all(&database).await;
    for (table, _) in RULED {
        assert_eq!(count(&database, table).await, "1", "{table}");
    }
    assert_eq!(count(&database, "crypto_olm_sessions").await, "1");
    let left = database.text("SELECT room_id FROM crypto_outbound_group_sessions").await;
    assert_eq!(left, "!young");
}

#[tokio::test]
async fn what_is_old_and_in_use_stays() {
    let database = database().await;
    let bot = database.bot("@bot_a:x", "DEV").await;
    for (table, row) in RULED {
        insert(&database, table, row, "used", 400, bot).await;
    }
    database
        .execute(&format!(
            "INSERT INTO room_members VALUES ('!used', '@bot_a:x', 'join'), ('!used', '@b:x', 'leave');
            UPDATE events SET received_at = NOW(), session_id = 'used';
            INSERT INTO signups (code_id, bot_id, username, inviter, steps, sealed_intro, created_at)
                SELECT code_id, {bot}, '', '', '{{}}', '', NOW() FROM signup_codes;
            UPDATE verifications SET state = 'done', finished_at = NOW() - INTERVAL '100 days'"
        ))
        .await;
    for n in 0..25 {
        insert(&database, "crypto_olm_sessions", OLM, &n.to_string(), n + 8, bot).await;
    }
    sweep_all(&database).await;
    for table in ["rooms", "signup_codes", "crypto_inbound_group_sessions", "verifications"] {
        assert_eq!(count(&database, table).await, "1", "{table}");
    }
    let members = "SELECT STRING_AGG(user_id, ' ' ORDER BY user_id) FROM room_members";
    assert_eq!(database.text(members).await, "@bot_a:x @human:x");
    assert_eq!(count(&database, "crypto_outbound_group_sessions").await, "1");
    assert_eq!(count(&database, "crypto_olm_sessions").await, OLM_SESSIONS.to_string());
}

/// Somebody a bot tracks: with a device, an identity, and a room with the bot.
async fn companion(database: &TestDatabase, bot: BotId, name: &str) {
    database
        .execute(&format!(
            "INSERT INTO crypto_tracked_users VALUES ({bot}, '@{name}:x', FALSE);
            INSERT INTO device_lists (user_id) VALUES ('@{name}:x');
            INSERT INTO crypto_devices VALUES ({bot}, '@{name}:x', 'DEV', '');
            INSERT INTO crypto_identities VALUES ({bot}, '@{name}:x', '');
            INSERT INTO rooms (room_id, members_complete, updated_at) VALUES ('!{name}', TRUE, NOW());
            INSERT INTO room_members VALUES
                ('!{name}', '@{name}:x', 'join'), ('!{name}', '@bot_a:x', 'join')"
        ))
        .await;
}

#[tokio::test]
async fn strangers_are_forgotten_by_their_bot_and_companions_are_not() {
    let database = database().await;
    let bot = database.bot("@bot_a:x", "DEV").await;
    let names = ["bot_a", "joined", "invited", "unknown", "verified", "gone", "left", "thrown_out"];
    database.execute("UPDATE bots SET state = 'active'").await;
    for name in &names[1..] {
        companion(&database, bot, name).await;
    }
    database
        .execute(&format!(
            "INSERT INTO crypto_tracked_users VALUES ({bot}, '@bot_a:x', FALSE);
            INSERT INTO crypto_devices VALUES ({bot}, '@bot_a:x', 'DEV', '');
            UPDATE room_members SET membership = 'invite' WHERE user_id = '@invited:x';
            UPDATE room_members SET membership = 'leave' WHERE user_id = '@gone:x';
            UPDATE room_members SET membership = 'ban' WHERE room_id = '!thrown_out'
                AND user_id = '@bot_a:x';
            DELETE FROM room_members WHERE user_id IN ('@unknown:x', '@verified:x', '@left:x');
            INSERT INTO verifications (bot_id, flow_id, other_user_id, we_started, state,
                created_at, updated_at, finished_at)
                VALUES ({bot}, 'flow', '@verified:x', FALSE, 'done', NOW(), NOW(), NOW())"
        ))
        .await;
    sweep_all(&database).await;
    let asked =
        "SELECT CONCAT_WS(' ', (SELECT COUNT(*) FROM inbox WHERE kind = 'forget_strangers'),
        (SELECT COUNT(*) FROM bot_queue))";
    assert_eq!(database.text(asked).await, "1 1", "once, however often it is looked");

    let mut conn = database.store.connection().await.expect("connects");
    let mut strangers = crypto_store::strangers(&mut conn, bot).await.expect("looks");
    strangers.sort_unstable();
    assert_eq!(strangers, ["@gone:x", "@left:x", "@thrown_out:x", "@unknown:x"]);
    crypto_store::forget(&mut conn, bot, &strangers).await.expect("forgets");
    for table in ["crypto_tracked_users", "crypto_devices"] {
        let known = format!("SELECT STRING_AGG(user_id, ' ' ORDER BY user_id) FROM {table}");
        assert_eq!(database.text(&known).await, "@bot_a:x @invited:x @joined:x @verified:x");
    }
    assert_eq!(count(&database, "crypto_identities").await, "3");
    // A bot is about to track them.
    device_lists::known(
        &mut conn,
        database.store.sealer(),
        &["@asked:x".to_owned(), "@joined:x".to_owned()],
        Clock::system().now(),
    )
    .await
    .expect("looks");
    sweep_all(&database).await;
    let heard_of = "SELECT STRING_AGG(user_id, ' ' ORDER BY user_id) FROM device_lists";
    // The bot itself, whom it tracks, had no row.
    assert_eq!(database.text(heard_of).await, "@asked:x @bot_a:x @invited:x @joined:x @verified:x");
}
