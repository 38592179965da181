//! What machines read first in a step, brought by the first of those whose steps began together.
//!
//! Of a machine that is open already it is what to-device messages will make it look for. Nothing is
//! read before a step needs its machine, and nothing for bots whose rows a signup or a repair is about
//! to change.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
};

use serde_json::Value;
use tokio::sync::OnceCell;
use tracing::warn;

use crate::{
    crypto::BotMachine,
    model::{BotId, BotState, foreign},
    store::{
        Store, StoreError,
        briefing::Briefing,
        crypto_store::{self, Prefetched, Wanted},
        inbox::Work,
    },
    telemetry::chain,
};

/// See the module.
pub(super) struct Prefetch {
    wanted: Vec<Wanted>,
    /// Nothing if they could not be read: then each machine reads its own.
    rows: OnceCell<Option<Mutex<HashMap<BotId, Prefetched>>>>,
}

impl Prefetch {
    /// For the bots of these briefings, some of whose machines are `open`.
    pub(super) fn new<'a>(
        briefings: &[Briefing],
        open: impl Fn(BotId) -> Option<&'a BotMachine>,
    ) -> Self {
        let wanted = briefings
            .iter()
            .filter(|briefing| briefing.bot.state == BotState::Active && !briefing.repairing)
            .filter_map(|briefing| match open(briefing.bot.id) {
                None => Some(wanted(briefing)),
                Some(machine) if has_to_device(briefing) => {
                    Some(machine.lacking(Wanted { opens: false, ..wanted(briefing) }))
                }
                Some(_) => None,
            })
            .filter(|wanted| !wanted.is_empty())
            .collect();
        Self { wanted, rows: OnceCell::new() }
    }

    /// Whether there is anything for this bot.
    pub(super) fn has(&self, bot: BotId) -> bool {
        self.wanted.iter().any(|wanted| wanted.bot == bot)
    }

    /// A bot's rows, once.
    pub(super) async fn take(&self, store: &Store, bot: BotId) -> Prefetched {
        if !self.has(bot) {
            return Prefetched::default();
        }
        let rows = self.rows.get_or_init(|| async {
            match self.read(store).await {
                Ok(rows) => Some(Mutex::new(rows)),
                Err(error) => {
                    warn!(error = chain(&error), "cannot read for several machines at once");
                    None
                }
            }
        });
        let Some(rows) = rows.await else { return Prefetched::default() };
        rows.lock().unwrap_or_else(PoisonError::into_inner).remove(&bot).unwrap_or_default()
    }

    async fn read(&self, store: &Store) -> Result<HashMap<BotId, Prefetched>, StoreError> {
        store.run(async |conn| crypto_store::prefetch(conn, &self.wanted).await).await
    }
}

fn has_to_device(briefing: &Briefing) -> bool {
    briefing.entries.iter().any(|entry| matches!(entry.work, Work::ToDevice(_)))
}

/// About whom the bot's machine will ask: itself, and whoever has written to it.
fn wanted(briefing: &Briefing) -> Wanted {
    let mut users = BTreeSet::from([briefing.bot.user_id.to_string()]);
    let mut sender_keys = BTreeSet::new();
    for entry in &briefing.entries {
        if let Work::ToDevice(message) = &entry.work {
            let text = |pointer| message.pointer(pointer).and_then(Value::as_str);
            users.extend(text("/sender").map(ToOwned::to_owned));
            let key = text("/content/sender_key").filter(|key| foreign::is_device_key(key));
            sender_keys.extend(key.map(ToOwned::to_owned));
        }
    }
    users.extend(briefing.events.values().map(|event| event.sender.clone()));
    let rooms = briefing.rooms.keys().cloned().collect();
    let room_keys = briefing
        .events
        .values()
        .filter_map(|event| Some((event.room_id.clone(), event.session_id.clone()?)))
        .collect();
    Wanted { bot: briefing.bot.id, opens: true, users, sender_keys, rooms, room_keys }
}
