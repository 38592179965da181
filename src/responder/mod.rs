//! The built-in responder: what a bot answers with no program of its owner running.
//!
//! The worker marks logged messages that may be commands; the responder takes them from the event log,
//! and in one transaction puts the answer into the outbox, wakes the bot and unmarks the message. It
//! knows neither the homeserver nor encryption: the outbox sees to both. An answer's transaction id is
//! made of the event's, so that looking twice never answers twice.
//!
//! Bots never answer bots, nor notices: two fleets cannot keep each other talking.

pub mod commands;

use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

use self::commands::{Answerer, Command};
use crate::{
    clock::Clock,
    model::BotId,
    store::{
        Signal, Signals, Store, StoreError,
        outbox::{self, NewSend},
        queue,
        responses::{self, Pending},
    },
    telemetry::chain,
};

/// How often to look when no signal comes.
const SLOWLY: Duration = Duration::from_secs(10);
/// How many messages are looked at in one transaction.
const BATCH: i64 = 100;
/// How old a message may be when it reaches us: what a room said before the bot was there, or while
/// the homeserver was away, is not answered. Waiting for its key afterwards does not count.
const STALE: chrono::Duration = chrono::Duration::minutes(10);

/// Answers commands.
#[derive(Clone)]
pub struct Responder {
    store: Store,
    signals: Signals,
    clock: Clock,
}

impl Responder {
    /// A responder on this database.
    #[must_use]
    pub const fn new(store: Store, signals: Signals, clock: Clock) -> Self {
        Self { store, signals, clock }
    }

    /// Answers until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut logged = self.signals.subscribe(Signal::Logged);
        while !stop.is_cancelled() {
            logged.mark_unchanged();
            match self.respond().await {
                Ok(0) => {}
                Ok(_) => continue,
                Err(error) => error!(error = chain(&error), "the responder will try again"),
            }
            tokio::select! {
                () = stop.cancelled() => {}
                _ = logged.changed() => {}
                () = tokio::time::sleep(SLOWLY) => {}
            }
        }
    }

    /// Looks at the messages that are waiting, up to a batch, and answers the commands among them.
    /// Returns how many it looked at.
    ///
    /// # Errors
    ///
    /// The database's own; nothing has changed then. A message that cannot be read is logged and left
    /// unanswered.
    pub async fn respond(&self) -> Result<usize, StoreError> {
        let now = self.clock.now();
        let mut tx = self.store.pool().begin().await?;
        let pending = responses::claim(&mut tx, BATCH).await?;
        if pending.is_empty() {
            return Ok(0);
        }
        let mut bots: Vec<BotId> = Vec::new();
        for message in &pending {
            let Some(content) = self.answer(message) else {
                continue;
            };
            let send = NewSend {
                bot: message.bot,
                room_id: &message.room_id,
                txn_id: &format!("respond-{}", message.event_id),
                event_type: "m.room.message",
                content: &content,
            };
            outbox::insert(&mut tx, self.store.sealer(), send, now).await?;
            bots.push(message.bot);
        }
        responses::handled(&mut tx, &pending).await?;
        bots.sort_unstable();
        bots.dedup();
        queue::wake(&mut tx, &bots, now).await?;
        tx.commit().await?;
        Ok(pending.len())
    }

    /// The content of the answer to a message, if it asks for one.
    fn answer(&self, message: &Pending) -> Option<Value> {
        if message.sender_is_bot || is_stale(message) {
            return None;
        }
        let event = match message.open(self.store.sealer()) {
            Ok(event) => event,
            Err(error) => {
                let error = chain(&error);
                error!(bot = %message.bot, event_id = message.event_id, error, "left unanswered");
                return None;
            }
        };
        let answerer = Answerer {
            user_id: &message.user_id,
            device_id: &message.device_id,
            display_name: message.display_name.as_deref(),
            master_key: message.master_key.as_deref(),
        };
        let command = Command::of(&event, answerer)?;
        debug!(bot = %message.bot, event_id = message.event_id, ?command, "answering");
        Some(commands::reply(&event, &message.event_id, &message.sender, &command.text(answerer)))
    }
}

fn is_stale(message: &Pending) -> bool {
    let age = message.received_at.timestamp_millis().saturating_sub(message.origin_server_ts);
    age > STALE.num_milliseconds()
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use chrono::DateTime;
    use serde_json::json;

    use super::*;
    use crate::store::testing::{TestDatabase, database};

    const NOW: i64 = 1_000_000;

    struct Scene {
        database: TestDatabase,
        responder: Responder,
        events: std::cell::Cell<i64>,
    }

    impl Scene {
        async fn new() -> Self {
            let database = database().await;
            database
                .execute(
                    "INSERT INTO bots (user_id, device_id, state, display_name, created_at) VALUES
                        ('@bot_a:example.org', 'GSA', 'active', 'Alpha', NOW()),
                        ('@bot_b:example.org', 'GSB', 'active', 'Beta', NOW())",
                )
                .await;
            let now = DateTime::from_timestamp(NOW, 0).expect("a time");
            let clock = Clock::fixed(now);
            let responder = Responder::new(database.store.clone(), Signals::default(), clock);
            Self { database, responder, events: std::cell::Cell::new(0) }
        }

        /// Both bots are shown a message; it took `age` seconds to reach us.
        async fn says(&self, sender: &str, body: &str, age: i64) {
            let event = json!({
                "type": "m.room.message", "sender": sender,
                "content": {"msgtype": "m.text", "body": body},
            });
            let sealed = self.database.store.sealer().seal_json("events", None, &event);
            self.logged(sender, &sealed.expect("seals"), age).await;
        }

        async fn logged(&self, sender: &str, sealed: &[u8], age: i64) {
            let n = self.events.get() + 1;
            self.events.set(n);
            let base64 = STANDARD.encode(sealed);
            let sent = (NOW - age) * 1000;
            self.database
                .execute(&format!(
                    "WITH e AS (
                        INSERT INTO events (
                            event_id, room_id, sender, event_type, origin_server_ts, received_at,
                            sealed_event, sealed_clear
                        )
                        VALUES (
                            '$e{n}', '!r:example.org', '{sender}', 'm.room.encrypted', {sent},
                            TO_TIMESTAMP({NOW}), '', DECODE('{base64}', 'base64')
                        )
                        RETURNING event_seq
                    )
                    INSERT INTO event_log (bot_id, update_id, event_seq, decryption, respond, logged_at)
                    SELECT bot_id, {n}, event_seq, 'ok', TRUE, NOW() FROM e, bots"
                ))
                .await;
        }

        async fn answers(&self) -> String {
            self.responder.respond().await.expect("responds");
            self.database
                .text(
                    "SELECT COALESCE(STRING_AGG(txn_id || ' by ' || user_id, ', ' ORDER BY send_id), '')
                    FROM outbox JOIN bots USING (bot_id)",
                )
                .await
        }
    }

    #[tokio::test]
    async fn every_bot_of_a_room_answers_once_and_is_woken() {
        let scene = Scene::new().await;
        scene.says("@alice:example.org", "!ping", 1).await;

        let expected = "respond-$e1 by @bot_a:example.org, respond-$e1 by @bot_b:example.org";
        assert_eq!(scene.answers().await, expected);
        assert_eq!(scene.responder.respond().await.expect("responds"), 0);
        let woken = scene.database.text("SELECT COUNT(*)::TEXT FROM bot_queue").await;
        assert_eq!(woken, "2");
        let mut conn = scene.database.store.pool().acquire().await.expect("connects");
        let due = outbox::due(
            &mut conn,
            scene.database.store.sealer(),
            BotId(1),
            scene.responder.clock.now(),
            10,
        );
        let content = due.await.expect("reads").remove(0).content;
        assert_eq!((&content["msgtype"], &content["body"]), (&"m.notice".into(), &"pong".into()));
    }

    #[tokio::test]
    async fn a_command_that_names_a_bot_is_for_that_bot() {
        let scene = Scene::new().await;
        scene.says("@alice:example.org", "!whoami @bot_b:example.org", 1).await;
        assert_eq!(scene.answers().await, "respond-$e1 by @bot_b:example.org");
    }

    #[tokio::test]
    async fn bots_and_old_messages_are_not_answered() {
        let scene = Scene::new().await;
        scene.says("@bot_b:example.org", "!ping", 1).await;
        scene.says("@alice:example.org", "!ping", 601).await;
        scene.says("@alice:example.org", "hello", 1).await;
        assert_eq!(scene.answers().await, "");
    }

    #[tokio::test]
    async fn a_poisonous_message_stops_no_other() {
        let scene = Scene::new().await;
        scene.logged("@alice:example.org", b"damaged", 1).await;
        scene.says("@alice:example.org", "!ping @bot_a:example.org", 1).await;
        assert_eq!(scene.answers().await, "respond-$e2 by @bot_a:example.org");
        assert_eq!(scene.responder.respond().await.expect("responds"), 0);
    }
}
