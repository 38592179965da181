//! Everything that the steps of many bots need to begin with, in a handful of queries for all of them.
//!
//! A briefing is read without locks. What is in it of the bot stays true for as long as the step runs,
//! because only the holder of a shard's lease writes that; what edges add meanwhile raises the bot's
//! generation in `bot_queue`, and so the bot has another step.
//!
//! What is in it of rooms and of devices does not: edges and other bots write that, and wake nobody. It
//! is as of the beginning, and says so with [`Room::version`] and [`Briefing::device_epoch`]: who goes by
//! it finds out in the next step that it was overtaken. Only what must never go by an old one asks again:
//! what is sent in the clear ([`rooms::is_unencrypted`]).

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{
    Sealer, StoreError,
    bots::Bot,
    events::{self, StoredEvent},
    inbox::{self, Entry, Work},
    outbox::{self, OutcomeRow, Send},
    queue::DueBot,
    rooms::{self, Room},
};
use crate::model::{BotId, EntryId, EventSeq};

/// How much of a bot's inbox and outbox one step takes up: others want their turn.
const ENTRIES: i64 = 200;
const SENDS: i64 = 50;

/// What one step begins with.
#[derive(Debug)]
pub struct Briefing {
    /// Whose turn it is.
    pub due: DueBot,
    /// The bot.
    pub bot: Bot,
    /// Whether a verification is open.
    pub verifying: bool,
    /// Whether a repair is asked for.
    pub repairing: bool,
    /// Its due inbox entries, oldest first.
    pub entries: Vec<Entry>,
    /// The events that these name, opened once for all bots.
    pub events: HashMap<EventSeq, Arc<StoredEvent>>,
    /// Its due messages, oldest first.
    pub sends: Vec<Send>,
    /// Whether it has other messages waiting: then a new one must not overtake them.
    pub backlog: bool,
    /// What is known of the rooms of both.
    pub rooms: HashMap<String, Arc<Room>>,
    /// The number of the last change of devices.
    pub device_epoch: i64,
    /// Inbox entries that do not open: to be removed.
    pub broken_entries: Vec<EntryId>,
    /// Messages that do not open, as given up.
    pub broken_sends: Vec<OutcomeRow>,
}

/// What [`claim`] found.
#[derive(Debug, Default)]
pub struct Claimed {
    /// Bots whose step can begin.
    pub ready: Vec<Briefing>,
    /// Bots whose own row cannot be read.
    pub unreadable: Vec<DueBot>,
}

impl Claimed {
    /// Whether nobody was due.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.unreadable.is_empty()
    }
}

/// Briefings for due bots of `shards`, the longest waiting first, without those in `busy`.
///
/// # Errors
///
/// The database's own.
pub async fn claim(
    conn: &mut PgConnection,
    sealer: &Sealer,
    shards: &[i16],
    busy: &[BotId],
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Claimed, StoreError> {
    let mut claimed = due_bots(conn, shards, busy, now, limit).await?;
    let bots: Vec<BotId> = claimed.ready.iter().map(|briefing| briefing.bot.id).collect();
    if bots.is_empty() {
        return Ok(claimed);
    }
    let mut by_bot: HashMap<BotId, &mut Briefing> =
        claimed.ready.iter_mut().map(|briefing| (briefing.bot.id, briefing)).collect();
    let (entries, broken) = inbox::due(conn, sealer, &bots, now, ENTRIES).await?;
    for (bot, entry) in entries {
        if let Some(briefing) = by_bot.get_mut(&bot) {
            briefing.entries.push(entry);
        }
    }
    for (bot, entry) in broken {
        if let Some(briefing) = by_bot.get_mut(&bot) {
            briefing.broken_entries.push(entry);
        }
    }
    add_sends(conn, sealer, &mut by_bot, now).await?;
    add_events(conn, sealer, &mut by_bot).await?;
    add_rooms(conn, &mut by_bot).await?;
    Ok(claimed)
}

async fn due_bots(
    conn: &mut PgConnection,
    shards: &[i16],
    busy: &[BotId],
    now: DateTime<Utc>,
    limit: i64,
) -> Result<Claimed, StoreError> {
    let busy: Vec<i64> = busy.iter().map(|bot| bot.0).collect();
    let rows = sqlx::query!(
        r#"-- briefing.due_bots
        SELECT q.bot_id, q.shard, q.generation, q.failures, b.user_id, b.device_id, b.state,
            b.display_name, b.verification_policy, b.reconciled_at,
            b.device_epoch AS looked_epoch,
            i.master_key AS "master_key?",
            (SELECT device_epoch FROM homeserver_state) AS "device_epoch!",
            EXISTS (
                SELECT FROM verifications v WHERE v.bot_id = q.bot_id AND v.finished_at IS NULL
            ) AS "verifying!",
            EXISTS (
                SELECT FROM repairs r WHERE r.bot_id = q.bot_id AND r.finished_at IS NULL
            ) AS "repairing!",
            (
                SELECT COUNT(*) FROM outbox o WHERE o.bot_id = q.bot_id AND o.state = 'queued'
            ) AS "queued!"
        FROM bot_queue q
        JOIN bots b USING (bot_id)
        LEFT JOIN bot_identities i USING (bot_id)
        WHERE q.shard = ANY($1) AND q.due_at <= $2 AND q.bot_id <> ALL($3)
        ORDER BY q.due_at
        LIMIT $4"#,
        shards,
        now,
        &busy,
        limit,
    )
    .fetch_all(conn)
    .await?;
    let mut claimed = Claimed::default();
    for row in rows {
        let due = DueBot {
            bot: BotId(row.bot_id),
            shard: row.shard,
            generation: row.generation,
            failures: row.failures,
        };
        let bot = Bot::read(
            due.bot,
            row.user_id,
            row.device_id,
            &row.state,
            row.display_name,
            &row.verification_policy,
        );
        match bot {
            Ok(bot) => claimed.ready.push(Briefing {
                due,
                bot: Bot {
                    reconciled_at: row.reconciled_at,
                    master_key: row.master_key,
                    device_epoch: row.looked_epoch,
                    ..bot
                },
                verifying: row.verifying,
                repairing: row.repairing,
                entries: Vec::new(),
                events: HashMap::new(),
                sends: Vec::new(),
                backlog: row.queued > 0,
                rooms: HashMap::new(),
                device_epoch: row.device_epoch,
                broken_entries: Vec::new(),
                broken_sends: Vec::new(),
            }),
            Err(error) => {
                tracing::error!(bot = %due.bot, %error, "a bot's row cannot be read");
                claimed.unreadable.push(due);
            }
        }
    }
    Ok(claimed)
}

async fn add_sends(
    conn: &mut PgConnection,
    sealer: &Sealer,
    by_bot: &mut HashMap<BotId, &mut Briefing>,
    now: DateTime<Utc>,
) -> Result<(), StoreError> {
    let bots: Vec<BotId> =
        by_bot.values().filter(|briefing| briefing.backlog).map(|b| b.bot.id).collect();
    if bots.is_empty() {
        return Ok(());
    }
    let (sends, broken) = outbox::due(conn, sealer, &bots, now, SENDS).await?;
    for (bot, send) in sends {
        if let Some(briefing) = by_bot.get_mut(&bot) {
            briefing.sends.push(send);
        }
    }
    for row in broken {
        if let Some(briefing) = by_bot.get_mut(&row.bot) {
            briefing.broken_sends.push(row);
        }
    }
    Ok(())
}

async fn add_events(
    conn: &mut PgConnection,
    sealer: &Sealer,
    by_bot: &mut HashMap<BotId, &mut Briefing>,
) -> Result<(), StoreError> {
    let seqs: BTreeSet<EventSeq> = by_bot
        .values()
        .flat_map(|briefing| &briefing.entries)
        .filter_map(|entry| match entry.work {
            Work::RoomEvent(seq) => Some(seq),
            _ => None,
        })
        .collect();
    let seqs: Vec<EventSeq> = seqs.into_iter().collect();
    let events: HashMap<EventSeq, Arc<StoredEvent>> = events::load(conn, sealer, &seqs)
        .await?
        .into_iter()
        .map(|event| (event.seq, Arc::new(event)))
        .collect();
    for briefing in by_bot.values_mut() {
        for entry in &briefing.entries {
            if let Work::RoomEvent(seq) = entry.work
                && let Some(event) = events.get(&seq)
            {
                briefing.events.insert(seq, Arc::clone(event));
            }
        }
    }
    Ok(())
}

async fn add_rooms(
    conn: &mut PgConnection,
    by_bot: &mut HashMap<BotId, &mut Briefing>,
) -> Result<(), StoreError> {
    // Events bring what is known of their rooms.
    let mut rooms: HashMap<String, Arc<Room>> = HashMap::new();
    for event in by_bot.values().flat_map(|briefing| briefing.events.values()) {
        if let Some(room) = &event.room
            && !rooms.contains_key(&event.room_id)
        {
            rooms.insert(event.room_id.clone(), Arc::new(room.clone()));
        }
    }
    let others: BTreeSet<&String> = by_bot
        .values()
        .flat_map(|briefing| briefing.sends.iter().map(|send| &send.room_id))
        .filter(|id| !rooms.contains_key(*id))
        .collect();
    let others: Vec<String> = others.into_iter().cloned().collect();
    for (id, room) in rooms::load_many(conn, &others).await? {
        rooms.insert(id, Arc::new(room));
    }
    for briefing in by_bot.values_mut() {
        let of_sends = briefing.sends.iter().map(|send| &send.room_id);
        let of_events = briefing.events.values().map(|event| &event.room_id);
        let ids: BTreeSet<&String> = of_sends.chain(of_events).collect();
        briefing.rooms = ids
            .into_iter()
            .filter_map(|id| Some((id.clone(), Arc::clone(rooms.get(id)?))))
            .collect();
    }
    Ok(())
}
