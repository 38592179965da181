//! Transactions as Synapse makes them: one in flight, at most 100 events and 100 to-device messages
//! in each, bots' own messages among the events, unstable names, and with each the key counts of all
//! bots that it concerns.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt::Write as _,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use axum::body::Bytes;

use super::{Inner, state::State};

const LIMIT: usize = 100;

/// A room event on its way.
pub struct Event {
    pub json: String,
    pub room: Arc<str>,
    /// Which message of the course it is.
    pub ping: Option<usize>,
}

/// A to-device message on its way to a bot.
pub struct ToDevice {
    pub json: String,
    pub user: String,
}

/// Where the application service listens, and what we show it.
#[derive(Clone)]
pub struct Appservice {
    pub url: String,
    pub hs_token: String,
}

/// What is to be pushed.
#[derive(Default)]
pub struct Queue {
    pub appservice: Option<Appservice>,
    pub events: VecDeque<Event>,
    pub to_device: VecDeque<ToDevice>,
    pub changed: BTreeSet<String>,
    /// Nothing is pushed while a scene is prepared.
    pub held: bool,
    pub in_flight: bool,
    pub transactions: u64,
    /// How long the application service took to answer, of each transaction.
    pub acknowledged: Vec<Duration>,
}

impl Queue {
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
            && self.to_device.is_empty()
            && self.changed.is_empty()
            && !self.in_flight
    }
}

struct Transaction {
    to: Appservice,
    id: u64,
    body: Bytes,
    pings: Vec<usize>,
}

impl State {
    fn transaction(&mut self) -> Option<Transaction> {
        let queue = &mut self.queue;
        queue.in_flight = false;
        let idle = queue.is_empty();
        let to = queue.appservice.clone().filter(|_| !queue.held && !idle)?;
        queue.in_flight = true;
        queue.transactions += 1;
        let events: Vec<Event> = queue.events.drain(..queue.events.len().min(LIMIT)).collect();
        let waiting = queue.to_device.len().min(LIMIT);
        let to_device: Vec<ToDevice> = queue.to_device.drain(..waiting).collect();
        let changed = std::mem::take(&mut queue.changed);

        let mut concerned: BTreeSet<&str> = to_device.iter().map(|m| m.user.as_str()).collect();
        for event in &events {
            let bots = self.rooms.get(&*event.room).map(|room| room.bots.as_slice());
            concerned.extend(bots.unwrap_or_default().iter().map(String::as_str));
        }
        let (counts, fallbacks) = self.key_counts(&concerned);

        let mut body = String::with_capacity(2048 * (events.len() + to_device.len() + 1));
        body.push_str("{\"events\":[");
        list(&mut body, events.iter().map(|event| event.json.as_str()));
        body.push_str("],\"de.sorunome.msc2409.to_device\":[");
        list(&mut body, to_device.iter().map(|message| message.json.as_str()));
        body.push(']');
        if !concerned.is_empty() {
            // Synapse sends the counts under both names.
            let _ = write!(
                body,
                ",\"org.matrix.msc3202.device_one_time_keys_count\":{{{counts}}}\
                 ,\"org.matrix.msc3202.device_one_time_key_counts\":{{{counts}}}\
                 ,\"org.matrix.msc3202.device_unused_fallback_key_types\":{{{fallbacks}}}"
            );
        }
        if !changed.is_empty() {
            let users: Vec<String> = changed.iter().map(|user| format!("{user:?}")).collect();
            let users = users.join(",");
            let _ = write!(
                body,
                ",\"org.matrix.msc3202.device_lists\":{{\"changed\":[{users}],\"left\":[]}}"
            );
        }
        body.push('}');
        let pings = events.iter().filter_map(|event| event.ping).collect();
        Some(Transaction { to, id: self.queue.transactions, body: body.into(), pings })
    }

    fn key_counts(&self, users: &BTreeSet<&str>) -> (String, String) {
        let (mut counts, mut fallbacks) = (String::new(), String::new());
        for user in users {
            let Some((id, device)) =
                self.users.get(*user).and_then(|user| user.devices.iter().next())
            else {
                continue;
            };
            let comma = if counts.is_empty() { "" } else { "," };
            let left = device.one_time_keys.len();
            let kind = if device.fallback_used { "" } else { "\"signed_curve25519\"" };
            let _ =
                write!(counts, "{comma}\"{user}\":{{\"{id}\":{{\"signed_curve25519\":{left}}}}}");
            let _ = write!(fallbacks, "{comma}\"{user}\":{{\"{id}\":[{kind}]}}");
        }
        (counts, fallbacks)
    }
}

fn list<'a>(body: &mut String, items: impl Iterator<Item = &'a str>) {
    for (index, item) in items.enumerate() {
        if index > 0 {
            body.push(',');
        }
        body.push_str(item);
    }
}

/// Pushes whatever there is, for ever, in order.
pub(super) async fn run(inner: Arc<Inner>) {
    loop {
        let next = inner.lock().transaction();
        let Some(transaction) = next else {
            inner.queued.notified().await;
            continue;
        };
        let begun = Instant::now();
        inner.lock().course.pushed(&transaction.pings, begun);
        while !put(&inner, &transaction).await.unwrap_or(false) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        inner.lock().queue.acknowledged.push(begun.elapsed());
    }
}

async fn put(inner: &Inner, transaction: &Transaction) -> Result<bool> {
    let Transaction { to, id, body, .. } = transaction;
    let url = format!("{}/_matrix/app/v1/transactions/b{id}", to.url);
    let request = inner.http.put(url).bearer_auth(&to.hs_token).body(body.clone());
    let answer = request.header("content-type", "application/json").send().await?;
    let taken = answer.status().is_success();
    answer.bytes().await?;
    Ok(taken)
}
