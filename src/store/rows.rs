//! What a bot's step has changed and not written yet.
//!
//! A step gathers its changes here as values: what its machine saved, what it logged, what it took out
//! of the inbox, what it wants sent and what was sent. Nothing that follows from them leaves the process
//! before they are committed; and because they are values, those of many bots are committed together,
//! a statement per table ([`committer`](super::committer)).

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{
    Signal, StoreError, bots,
    bots::Note,
    crypto_store::CryptoRows,
    device_lists, events,
    events::{ClearRow, LogRow},
    inbox,
    inbox::ParkedRow,
    outbox,
    outbox::{OutcomeRow, SendRow},
    queue,
    queue::FinishedRow,
};
use crate::model::{BotId, EntryId, EventSeq};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// What machines saved.
    pub crypto: CryptoRows,
    /// What encrypted events say inside.
    pub clear: BTreeMap<EventSeq, ClearRow>,
    /// Events for bots to read.
    pub logged: Vec<LogRow>,
    /// Inbox entries whose work is done.
    pub done: Vec<EntryId>,
    /// Events that wait for their key.
    pub parked: Vec<ParkedRow>,
    /// Room keys that came: events that wait for them become due.
    pub sessions: Vec<(BotId, String)>,
    /// Bots that are to ask for lost to-device messages, and when.
    pub reconciles: BTreeMap<BotId, DateTime<Utc>>,
    /// Messages to be sent.
    pub sends: Vec<SendRow>,
    /// What became of messages.
    pub outcomes: Vec<OutcomeRow>,
    /// Up to which change of device lists bots have looked.
    pub looked: BTreeMap<BotId, i64>,
    /// What bots' last steps failed with, or that they failed no more.
    pub notes: BTreeMap<BotId, Note>,
    /// Steps that ended.
    pub finished: Vec<FinishedRow>,
}

impl Rows {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.crypto.is_empty()
            && self.clear.is_empty()
            && self.logged.is_empty()
            && self.done.is_empty()
            && self.parked.is_empty()
            && self.sessions.is_empty()
            && self.reconciles.is_empty()
            && self.sends.is_empty()
            && self.outcomes.is_empty()
            && self.looked.is_empty()
            && self.notes.is_empty()
            && self.finished.is_empty()
    }

    /// Takes the rows of `newer` in.
    pub fn merge(&mut self, newer: Self) {
        self.crypto.merge(newer.crypto);
        // The first bot to decrypt an event is the one that counts.
        for (seq, row) in newer.clear {
            self.clear.entry(seq).or_insert(row);
        }
        self.logged.extend(newer.logged);
        self.done.extend(newer.done);
        self.parked.extend(newer.parked);
        self.sessions.extend(newer.sessions);
        self.reconciles.extend(newer.reconciles);
        self.sends.extend(newer.sends);
        self.outcomes.extend(newer.outcomes);
        self.looked.extend(newer.looked);
        for (bot, note) in newer.notes {
            // That a step went well does not take back what it had to say.
            match note.error {
                Some(_) => _ = self.notes.insert(bot, note),
                None => _ = self.notes.entry(bot).or_insert(note),
            }
        }
        self.finished.extend(newer.finished);
    }

    /// Writes all of it, always in the same order, and says which signals follow from it. The caller
    /// holds the leases of the bots whose rows these are.
    ///
    /// # Errors
    ///
    /// The database's own.
    pub async fn write(
        self,
        conn: &mut PgConnection,
        now: DateTime<Utc>,
    ) -> Result<Vec<Signal>, StoreError> {
        let mut signals = Vec::new();
        if !self.outcomes.is_empty() {
            signals.push(Signal::Progress);
        }
        self.crypto.write(conn).await?;
        device_lists::looked(conn, self.looked).await?;
        let fresh: Vec<EventSeq> = self.clear.keys().copied().collect();
        bots::note(conn, self.notes).await?;
        events::record(conn, self.clear, self.logged, now).await?;
        inbox::park(conn, self.parked).await?;
        inbox::unpark_sessions(conn, &self.sessions, now).await?;
        let others = inbox::finish(conn, &self.done, &fresh, now).await?;
        inbox::ask_reconciles(conn, self.reconciles, now).await?;
        outbox::insert_all(conn, self.sends).await?;
        outbox::record(conn, self.outcomes).await?;
        queue::lock(conn, &others, &self.finished).await?;
        if !others.is_empty() {
            queue::wake(conn, &others, now).await?;
            signals.push(Signal::Work);
        }
        queue::finish(conn, self.finished, now).await?;
        Ok(signals)
    }
}
