//! Commits what many steps have gathered in one transaction.
//!
//! Steps hand their [`Rows`] in and wait. While one commit is under way, what comes in meanwhile
//! gathers, and is the next one: alone a step waits for nobody, and a hundred at once share one commit
//! and one statement per table. Each is held to its own lease, and one whose rows the database does not
//! take spoils no other, because then each is committed by itself.

use std::{collections::HashSet, sync::Arc};

use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use super::{Fence, Signals, Store, StoreError, rows::Rows};
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
        let outcome = match self.write([fence].into(), |_| rows).await {
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
        let mut tx = self.store.begin().await?;
        let held = Fence::hold_all(&fences, &mut tx).await?;
        let signals = rows(&held).write(&mut tx, self.clock.now()).await?;
        self.signals.announce(&signals, &mut tx).await?;
        tx.commit().await?;
        for signal in signals {
            self.signals.give(signal);
        }
        Ok(held)
    }
}
