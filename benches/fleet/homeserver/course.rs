//! A course: messages prepared beforehand, which of them are under way, and which were answered.
//!
//! An answer counts once, and only if it stands in the room of the message that it relates to: the
//! relation travels in the clear beside the ciphertext.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::body::Bytes;
use serde::Deserialize;

use super::push::{Event, Queue, ToDevice};

/// One message, and what came of it.
pub struct Ping {
    pub room: Arc<str>,
    /// To-device messages that go before it.
    pub keys: Vec<ToDevice>,
    /// The whole event, as JSON.
    pub event: String,
    /// When the transaction with it began.
    pub pushed: Option<Instant>,
    pub answered: Option<Instant>,
    /// The answer's content.
    pub answer: Option<Bytes>,
}

impl Ping {
    pub fn new(room: Arc<str>, event: String) -> Self {
        Self { room, keys: Vec::new(), event, pushed: None, answered: None, answer: None }
    }
}

/// All messages of one measurement.
#[derive(Default)]
pub struct Course {
    pub id: u64,
    pub pings: Vec<Ping>,
    /// How many were handed to the queue.
    pub next: usize,
    /// Whether an answer brings the next message on its way.
    pub closed_loop: bool,
    pub answered: usize,
    /// Answers to what was answered already.
    pub doubled: usize,
    /// Messages of bots that relate to nothing here.
    pub foreign: usize,
}

/// What is read of an answer.
#[derive(Deserialize)]
struct Content<'a> {
    #[serde(borrow, rename = "m.relates_to")]
    relates_to: Option<Relation<'a>>,
}

#[derive(Deserialize)]
struct Relation<'a> {
    #[serde(borrow, rename = "m.in_reply_to")]
    in_reply_to: Option<Reply<'a>>,
}

#[derive(Deserialize)]
struct Reply<'a> {
    event_id: &'a str,
}

impl Course {
    /// The id of the message at `index`.
    pub fn event_id(course: u64, index: usize) -> String {
        format!("$p{course}x{index}")
    }

    fn index(&self, event_id: &str) -> Option<usize> {
        let (course, index) = event_id.strip_prefix("$p")?.split_once('x')?;
        (course.parse() == Ok(self.id)).then(|| index.parse().ok())?
    }

    /// Hands the next message to the queue.
    pub fn push_next(&mut self, queue: &mut Queue) -> bool {
        let Some(ping) = self.pings.get_mut(self.next) else { return false };
        queue.to_device.extend(ping.keys.drain(..));
        let event = Event {
            json: std::mem::take(&mut ping.event),
            room: Arc::clone(&ping.room),
            ping: Some(self.next),
        };
        queue.events.push_back(event);
        self.next += 1;
        true
    }

    /// Notes that these messages are on the wire now.
    pub fn pushed(&mut self, indices: &[usize], now: Instant) {
        for index in indices {
            if let Some(ping) = self.pings.get_mut(*index) {
                ping.pushed.get_or_insert(now);
            }
        }
    }

    /// Takes what a bot sent into `room`; tells whether it was an answer.
    pub fn take(&mut self, room: &str, content: &Bytes, now: Instant) -> bool {
        let event_id = serde_json::from_slice::<Content<'_>>(content)
            .ok()
            .and_then(|content| content.relates_to?.in_reply_to)
            .map(|reply| reply.event_id);
        let ping = event_id
            .and_then(|id| self.index(id))
            .and_then(|index| self.pings.get_mut(index))
            .filter(|ping| &*ping.room == room && ping.pushed.is_some());
        match ping {
            None => self.foreign += 1,
            Some(ping) if ping.answered.is_some() => self.doubled += 1,
            Some(ping) => {
                ping.answered = Some(now);
                ping.answer = Some(content.clone());
                self.answered += 1;
                return true;
            }
        }
        false
    }

    /// How many were answered until `end`.
    pub fn answered_until(&self, end: Instant) -> usize {
        self.pings.iter().filter(|ping| ping.answered.is_some_and(|at| at <= end)).count()
    }

    /// From the transaction's beginning to the answer, shortest first.
    pub fn latencies(&self) -> Vec<Duration> {
        let both = |ping: &Ping| Some(ping.answered?.duration_since(ping.pushed?));
        let mut all: Vec<Duration> = self.pings.iter().filter_map(both).collect();
        all.sort_unstable();
        all
    }
}
