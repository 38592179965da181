//! What a bot does with matrix-sdk-crypto, on our store (`postgres`) and on the one in memory
//! (`memory`): all of it in one task, as for one bot. What a machine saves is gathered and committed
//! after so many messages, as a busy worker does; that is inside the measurement.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use criterion::Criterion;
use greenshield::store::{Connection, Fence, PgCryptoStore, Store};
use matrix_sdk_crypto::OlmMachine;
use ruma::{
    OwnedDeviceId, OwnedUserId, RoomId, UserId,
    events::{AnyMessageLikeEventContent, room::message::OriginalSyncRoomMessageEvent},
    serde::Raw,
};
use serde_json::{json, value::to_raw_value};
use tokio::runtime::Runtime;

use crate::{
    database::Database,
    pair::{DECRYPTION, Side, new_room},
};

/// Room keys that come together.
const BATCH: usize = 50;
/// Messages between two commits.
const ROUND: usize = 20;
/// Messages under one room key: a machine panics at one that is used up.
const FRESH: u64 = 4096;

#[derive(Clone, Copy)]
enum Reading {
    /// Messages are decrypted, and [`ROUND`] committed together.
    Messages,
    /// A worker's steps without the homeserver: a message is decrypted and answered, and what follows
    /// from it committed, before the next one.
    Steps,
}

#[derive(Clone, Copy)]
enum On {
    Postgres,
    Memory,
}

pub fn run(criterion: &mut Criterion, runtime: &Runtime, database: &Database) {
    for on in [On::Postgres, On::Memory] {
        let name = match on {
            On::Postgres => "postgres",
            On::Memory => "memory",
        };
        let mut group = |what: &str, measure: &dyn Fn(u64) -> Result<Duration>| {
            let mut group = criterion.benchmark_group(what);
            group.bench_function(name, |b| b.iter_custom(|times| measure(times).expect("works")));
            group.finish();
        };
        group("megolm_decrypt", &|times| {
            runtime.block_on(read(database, on, times, Reading::Messages))
        });
        group("megolm_encrypt", &|times| runtime.block_on(encrypt(database, on, times)));
        group("step", &|times| runtime.block_on(read(database, on, times, Reading::Steps)));
        group("room_key_alone", &|times| runtime.block_on(room_keys(database, on, times, 1)));
        group("room_key_batch", &|times| runtime.block_on(room_keys(database, on, times, BATCH)));
    }
}

/// A human and a bot who have met, and a room.
struct Scene {
    human: Side,
    bot: Side,
    /// Where the bot's rows go, and by what right.
    gathered: Option<(Store, PgCryptoStore, Fence)>,
}

impl Scene {
    async fn new(database: &Database, on: On) -> Result<Self> {
        let name = uuid::Uuid::new_v4().simple().to_string();
        let human = OwnedUserId::try_from(format!("@human_{name}:example.org"))?;
        let bot = OwnedUserId::try_from(format!("@bot_{name}:example.org"))?;
        let device = OwnedDeviceId::from("DEVICE");
        let human = Side::new(OlmMachine::new(&human, &device).await).await?;
        let mut gathered = None;
        let machine = match on {
            On::Postgres => {
                let (store, fence) = database.bot(bot.as_str(), device.as_str()).await?;
                let store = store.gathering();
                gathered = Some((database.store.clone(), store.clone(), fence));
                OlmMachine::with_store(&bot, &device, store, None).await?
            }
            On::Memory => OlmMachine::new(&bot, &device).await,
        };
        machine.set_room_key_requests_enabled(false);
        let mut this = Self { human, bot: Side::new(machine).await?, gathered };
        this.human.meet(&mut this.bot).await?;
        this.bot.meet(&mut this.human).await?;
        this.commit().await?;
        Ok(this)
    }

    /// Writes what the bot's machine has saved, on the connection of last time, as the committer does.
    async fn commit(&self) -> Result<()> {
        let Some((database, store, fence)) = &self.gathered else { return Ok(()) };
        let rows = store.take_gathered().await?;
        if !rows.is_empty() {
            let write = async |tx: &mut Connection| {
                fence.hold(tx).await?;
                rows.write(tx).await
            };
            database.transaction(write).await?;
        }
        Ok(())
    }

    fn bot(&self) -> &UserId {
        self.bot.machine.user_id()
    }
}

async fn say(side: &Side, room: &RoomId) -> Result<Raw<OriginalSyncRoomMessageEvent>> {
    let content = json!({ "msgtype": "m.text", "body": "!ping" });
    let content: Raw<AnyMessageLikeEventContent> = Raw::from_json(to_raw_value(&content)?);
    let encrypted = side.machine.encrypt_room_event_raw(room, "m.room.message", &content).await?;
    let event = json!({ "type": "m.room.encrypted", "sender": side.machine.user_id(),
        "event_id": format!("${}", uuid::Uuid::new_v4().simple()), "room_id": room,
        "origin_server_ts": 1, "content": encrypted.content });
    Ok(Raw::from_json(to_raw_value(&event)?))
}

async fn read(database: &Database, on: On, times: u64, reading: Reading) -> Result<Duration> {
    let scene = Scene::new(database, on).await?;
    let (mut spent, mut left) = (Duration::ZERO, times);
    while left > 0 {
        let room = new_room()?;
        let key = scene.human.room_key(&room, scene.bot()).await?;
        ensure!(scene.bot.receive(vec![key]).await? == 1, "the room key was not taken");
        scene.bot.room_key(&room, scene.human.machine.user_id()).await?;
        let (round, answers) = match reading {
            Reading::Messages => (ROUND, false),
            Reading::Steps => (1, true),
        };
        let mut messages = Vec::new();
        for _ in 0..left.min(FRESH) {
            messages.push(say(&scene.human, &room).await?);
        }
        let begun = Instant::now();
        for round in messages.chunks(round) {
            for message in round {
                let message = message.cast_ref_unchecked();
                scene.bot.machine.decrypt_room_event(message, &room, &DECRYPTION).await?;
                if answers {
                    say(&scene.bot, &room).await?;
                }
            }
            scene.commit().await?;
        }
        spent += begun.elapsed();
        left -= left.min(FRESH);
    }
    Ok(spent)
}

async fn encrypt(database: &Database, on: On, times: u64) -> Result<Duration> {
    let scene = Scene::new(database, on).await?;
    let mut room = new_room()?;
    scene.bot.room_key(&room, scene.human.machine.user_id()).await?;
    let begun = Instant::now();
    for said in 1..=times {
        if said % FRESH == 0 {
            room = new_room()?;
            scene.bot.room_key(&room, scene.human.machine.user_id()).await?;
        }
        say(&scene.bot, &room).await?;
        if said % ROUND as u64 == 0 || said == times {
            scene.commit().await?;
        }
    }
    Ok(begun.elapsed())
}

async fn room_keys(database: &Database, on: On, times: u64, batch: usize) -> Result<Duration> {
    let scene = Scene::new(database, on).await?;
    let mut spent = Duration::ZERO;
    for _ in 0..times {
        let keys = scene.human.room_keys(batch, scene.bot()).await?;
        let begun = Instant::now();
        let taken = scene.bot.receive(keys).await?;
        scene.commit().await?;
        spent += begun.elapsed();
        ensure!(taken == batch, "{taken} of {batch} keys were taken");
    }
    Ok(spent)
}
