//! Commits what many steps have gathered in one transaction.
//!
//! Steps hand their [`Rows`] in and wait. While one commit is under way, what comes in meanwhile
//! gathers, and is the next one: alone a step waits for nobody, and a hundred at once share one commit
//! and one statement per table. Each is held to its own lease, and one whose rows the database does not
//! take spoils no other, because then each is committed by itself.

use std::{collections::HashSet, sync::Arc};

use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::{Connection, Fence, Signals, Store, StoreError, rows::Rows};
use crate::{
    clock::Clock,
    telemetry::{chain, count},
};

/// How many steps one commit takes.
const MOST: usize = 256;

/// Rows, the right under which they are written, and who waits.
struct Submission {
    fence: Fence,
    rows: Rows,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// Takes rows in; cheap to clone. Its work ends with its last clone.
#[derive(Clone)]
pub struct Committer {
    submissions: mpsc::Sender<Submission>,
}

impl Committer {
    /// A committer on this store, and its work, to be spawned.
    pub fn new(store: Store, signals: Signals, clock: Clock) -> (Self, impl Future<Output = ()>) {
        let (submissions, mut queue) = mpsc::channel(MOST);
        let work = async move {
            let desk = Desk { store, signals, clock };
            let mut waiting = Vec::new();
            while queue.recv_many(&mut waiting, MOST).await > 0 {
                metrics::histogram!("greenshield_commit_steps").record(count(waiting.len()));
                desk.commit_all(std::mem::take(&mut waiting)).await;
            }
        };
        (Self { submissions }, work)
    }

    /// Commits `rows` under `fence`; returns when that is done.
    ///
    /// # Errors
    ///
    /// [`StoreError::LeaseLost`] if another process has the shard, or the database's own: then nothing
    /// was written, or, if the connection broke at the very end, nobody knows.
    pub async fn commit(&self, fence: Fence, rows: Rows) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let (done, outcome) = oneshot::channel();
        let submission = Submission { fence, rows, done };
        self.submissions.send(submission).await.map_err(|_| StoreError::Stopped)?;
        outcome.await.map_err(|_| StoreError::Stopped)?
    }
}

struct Desk {
    store: Store,
    signals: Signals,
    clock: Clock,
}

impl Desk {
    /// One commit for all; if the database does not take it, one for each.
    async fn commit_all(&self, mut submissions: Vec<Submission>) {
        if let [_] = submissions.as_slice()
            && let Some(only) = submissions.pop()
        {
            self.commit_one(only).await;
            return;
        }
        match self.together(&submissions).await {
            Ok(held) => {
                for Submission { fence, done, .. } in submissions {
                    let outcome = held.contains(&fence).then_some(()).ok_or(StoreError::LeaseLost);
                    // Whoever waited may be gone: the rows are written all the same.
                    let _ = done.send(outcome);
                }
            }
            Err(error) if error.is_of_the_rows() => {
                warn!(
                    error = chain(&error),
                    steps = submissions.len(),
                    "what these steps gathered cannot be committed together: one by one"
                );
                for submission in submissions {
                    self.commit_one(submission).await;
                }
            }
            Err(error) => {
                let error = Arc::new(error);
                for Submission { done, .. } in submissions {
                    let _ = done.send(Err(StoreError::Commit(Arc::clone(&error))));
                }
            }
        }
    }

    async fn commit_one(&self, Submission { fence, rows, done }: Submission) {
        let if_held = |held: &HashSet<Fence>| {
            if held.contains(&fence) { rows } else { Rows::default() }
        };
        let outcome = match self.write([fence].into(), if_held).await {
            Ok(held) => held.contains(&fence).then_some(()).ok_or(StoreError::LeaseLost),
            Err(error) => Err(error),
        };
        let _ = done.send(outcome);
    }

    /// Which leases held: what was gathered under them is written.
    async fn together(&self, submissions: &[Submission]) -> Result<HashSet<Fence>, StoreError> {
        let fences = submissions.iter().map(|submission| submission.fence).collect();
        let merged = |held: &HashSet<Fence>| {
            let mut all = Rows::default();
            for submission in submissions.iter().filter(|one| held.contains(&one.fence)) {
                all.merge(submission.rows.clone());
            }
            all
        };
        self.write(fences, merged).await
    }

    async fn write(
        &self,
        fences: HashSet<Fence>,
        rows: impl FnOnce(&HashSet<Fence>) -> Rows,
    ) -> Result<HashSet<Fence>, StoreError> {
        let write = async |tx: &mut Connection| {
            let held = Fence::hold_all(&fences, tx).await?;
            let signals = rows(&held).write(tx, self.clock.now()).await?;
            self.signals.announce(&signals, tx).await?;
            Ok((held, signals))
        };
        let (held, signals) = self.store.transaction(write).await?;
        for signal in signals {
            self.signals.give(signal);
        }
        Ok(held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::BotId,
        store::{bots::Note, testing::database},
    };

    fn note(bot: BotId, clock: &Clock) -> Rows {
        let note = Note { bot, error: Some("said".to_owned()), at: clock.now() };
        Rows { notes: [(bot, note)].into(), ..Rows::default() }
    }

    /// Alone and together with others, whose rows are written.
    #[tokio::test]
    async fn nothing_is_written_under_a_lost_lease() {
        let database = database().await;
        let clock = Clock::system();
        let (lost, kept) = (database.bot("@a:x", "A").await, database.bot("@b:x", "B").await);
        let old = database.lease(lost).await;
        database.lease(lost).await;
        let good = database.lease(kept).await;
        let desk = Desk {
            store: database.store.clone(),
            signals: Signals::default(),
            clock: clock.clone(),
        };
        for together in [false, true] {
            let (done, outcome) = oneshot::channel();
            let mut all = vec![Submission { fence: old, rows: note(lost, &clock), done }];
            let (done, other) = oneshot::channel();
            if together {
                all.push(Submission { fence: good, rows: note(kept, &clock), done });
            } else {
                drop(done);
            }
            desk.commit_all(all).await;
            assert!(matches!(outcome.await, Ok(Err(StoreError::LeaseLost))));
            assert_eq!(matches!(other.await, Ok(Ok(()))), together);
            let said = "SELECT COALESCE(STRING_AGG(user_id, ' '), '') FROM bots
                WHERE last_error = 'said'";
            let expected = if together { "@b:x" } else { "" };
            assert_eq!(database.text(said).await, expected);
        }
    }

    /// A process that lost a lease and has it again may hold both numbers.
    #[tokio::test]
    async fn a_lost_lease_does_not_hold_because_a_newer_one_of_its_shard_does() {
        let database = database().await;
        let clock = Clock::system();
        let bot = database.bot("@a:x", "A").await;
        let old = database.lease(bot).await;
        let new = database.lease(bot).await;
        let old = Fence { owner: new.owner, ..old };
        let desk = Desk {
            store: database.store.clone(),
            signals: Signals::default(),
            clock: clock.clone(),
        };
        let (done, lost) = oneshot::channel();
        let stale = Submission { fence: old, rows: note(bot, &clock), done };
        let (done, held) = oneshot::channel();
        desk.commit_all(vec![stale, Submission { fence: new, rows: Rows::default(), done }]).await;
        assert!(matches!(lost.await, Ok(Err(StoreError::LeaseLost))));
        assert!(matches!(held.await, Ok(Ok(()))));
        let said = "SELECT COALESCE(STRING_AGG(user_id, ' '), '') FROM bots
            WHERE last_error = 'said'";
        assert_eq!(database.text(said).await, "");
    }
}
