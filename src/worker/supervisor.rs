//! Who works when: leases shards, finds bots whose step is due, and runs their steps side by side.
//!
//! A wake-up carries no data. The supervisor looks at `bot_queue` when it is signalled, when the
//! earliest due time is reached, and on a slow timer; it holds nothing per bot that has no work.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use futures_util::FutureExt as _;
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinError, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, error, info, warn};

use super::{
    Context, StepError, backoff,
    bot_worker::{self, Outcome},
    machines::{Kept, Machines},
    prefetch::Prefetch,
    reconcile,
    retention::{self, Retention},
};
use crate::{
    model::BotId,
    store::{
        Connection, Fence, Rows, Signal, Signals, StoreError,
        bots::Note,
        briefing::{self, Briefing},
        leases::Process,
        queue,
        queue::{DueBot, FinishedRow},
    },
    telemetry::{chain, count},
};

/// The slow timer that makes certain what a signal makes soon.
const LOOK_ANYWAY: Duration = Duration::from_secs(10);

/// The same while steps are running.
const LOOK_WHILE_BUSY: Duration = Duration::from_secs(1);

/// Runs the workers of this process.
pub struct Supervisor {
    context: Context,
    signals: Signals,
    process: Process,
    refusals: Arc<Notify>,
    fences: HashMap<i16, Fence>,
    busy: HashSet<BotId>,
    steps: JoinSet<BotId>,
    machines: Arc<Mutex<Machines>>,
    tasks: HashMap<tokio::task::Id, Running>,
    retention: Retention,
}

/// A step that runs.
struct Running {
    bot: BotId,
    fence: Fence,
    handle: AbortHandle,
}

impl Supervisor {
    /// A supervisor for the process that `process` announced. Tells `refusals` when another one may have
    /// died with a transaction that it had not answered.
    #[must_use]
    pub fn new(
        context: Context,
        signals: Signals,
        process: Process,
        refusals: Arc<Notify>,
    ) -> Self {
        let machines = Arc::new(Mutex::new(Machines::new(context.settings.machine_cache)));
        Self {
            context,
            signals,
            process,
            refusals,
            fences: HashMap::new(),
            busy: HashSet::new(),
            steps: JoinSet::new(),
            machines,
            tasks: HashMap::new(),
            retention: Retention::default(),
        }
    }

    /// Works until `stop`; then lets running steps end, and lets go of the leases.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut signal = self.signals.subscribe(Signal::Work);
        let mut renew = tokio::time::interval(self.context.settings.lease / 3);
        renew.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut wait = Duration::ZERO;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = renew.tick() => self.renew().await,
                Some(ended) = self.steps.join_next_with_id() => {
                    self.ended(&ended);
                    // Steps end together, because they commit together: the next ones begin together.
                    while let Some(ended) = self.steps.try_join_next_with_id() {
                        self.ended(&ended);
                    }
                }
                _ = signal.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
            wait = match self.start_due().await {
                Ok(wait) => wait,
                Err(error) => {
                    warn!(error = chain(&error), "cannot look for work");
                    Duration::from_secs(1)
                }
            };
        }
        self.retention.stop().await;
        info!(running = self.steps.len(), "stopping: waiting for running steps");
        if let Err(error) = self.process.stopping().await {
            warn!(error = chain(&error), "could not tell the other processes that this one stops");
        }
        while self.steps.join_next().await.is_some() {}
        if let Err(error) = self.process.leave().await {
            warn!(
                error = chain(&error),
                "could not let go of the leases; others take over when the connection ends"
            );
        }
    }

    async fn renew(&mut self) {
        let fences = match self.renew_leases().await {
            Ok(fences) => fences,
            Err(error) => {
                warn!(
                    error = chain(&error),
                    "cannot renew the leases; announcing this process anew"
                );
                self.announce_anew().await
            }
        };
        self.fences = fences.into_iter().map(|fence| (fence.shard, fence)).collect();
        self.lock_machines().keep_only(&self.fences);
        // What such a step does cannot be committed, and it may be waiting for a database that is gone.
        let is_lost = |step: &&Running| self.fences.get(&step.fence.shard) != Some(&step.fence);
        self.tasks.values().filter(is_lost).for_each(|step| step.handle.abort());
        self.signals.set_alone(self.process.owns_all(self.fences.len()));
        let shards: Vec<i16> = self.fences.keys().copied().collect();
        metrics::gauge!("greenshield_leased_shards").set(count(shards.len()));
        if let Err(error) = reconcile::sweep(&self.context, &shards).await {
            warn!(error = chain(&error), "cannot ask for reconciles");
        }
        if self.fences.contains_key(&retention::SHARD) {
            self.retention.sweep(&self.context);
        } else {
            // Another process sweeps now.
            self.retention.stop().await;
        }
    }

    async fn renew_leases(&mut self) -> Result<Vec<Fence>, StoreError> {
        let lease = self.context.settings.lease;
        let renewal = self.process.renew(lease, self.context.clock.now()).await?;
        if renewal.is_after_outage {
            warn!(
                "a process died or stood still: what the homeserver dropped meanwhile is asked for"
            );
            self.refusals.notify_one();
        }
        Ok(renewal.fences)
    }

    /// The connection that stood for this process is gone, as after a restart of the database: another
    /// takes its place. Until that succeeds nothing is ours.
    async fn announce_anew(&mut self) -> Vec<Fence> {
        let Context { store, settings, clock, .. } = &self.context;
        match Process::announce(store, settings.lease, clock.now()).await {
            Ok(process) => self.process = process,
            Err(error) => {
                warn!(error = chain(&error), "the database cannot be reached");
                return Vec::new();
            }
        }
        self.renew_leases().await.unwrap_or_else(|error| {
            warn!(error = chain(&error), "no leases yet");
            Vec::new()
        })
    }

    /// Starts due steps as far as there is room, and tells how long to wait before looking again.
    async fn start_due(&mut self) -> Result<Duration, StoreError> {
        let room = self.context.settings.concurrency.saturating_sub(self.steps.len());
        if room == 0 || self.fences.is_empty() {
            return Ok(LOOK_ANYWAY);
        }
        let shards: Vec<i16> = self.fences.keys().copied().collect();
        let busy: Vec<BotId> = self.busy.iter().copied().collect();
        let now = self.context.clock.now();
        let limit = i64::try_from(room).unwrap_or(i64::MAX);
        let store = &self.context.store;
        let look = async |conn: &mut Connection| {
            let claimed = briefing::claim(conn, store.sealer(), &shards, &busy, now, limit).await?;
            // While steps run, the end of one is the next occasion; unless it waits for something.
            let wait = if claimed.ready.len() == room {
                LOOK_ANYWAY
            } else if !self.steps.is_empty() || !claimed.is_empty() {
                LOOK_WHILE_BUSY
            } else {
                let next = queue::next_due(conn, &shards).await?;
                next.and_then(|next| (next - now).to_std().ok()).unwrap_or(LOOK_ANYWAY)
            };
            Ok::<_, StoreError>((claimed, wait))
        };
        let (claimed, wait) = store.run(look).await?;
        let prefetch = Arc::new(self.prefetch(&claimed.ready));
        for briefing in claimed.ready {
            self.start(briefing, Arc::clone(&prefetch));
        }
        for due in claimed.unreadable {
            self.put_off_unreadable(due).await;
        }
        Ok(wait.clamp(Duration::from_millis(1), LOOK_ANYWAY))
    }

    fn prefetch(&self, briefings: &[Briefing]) -> Prefetch {
        let machines = self.lock_machines();
        Prefetch::new(briefings, |bot| machines.get(bot))
    }

    fn start(&mut self, briefing: Briefing, prefetch: Arc<Prefetch>) {
        let Some(fence) = self.fences.get(&briefing.due.shard).copied() else { return };
        let context = self.context.clone();
        let machines = Arc::clone(&self.machines);
        let bot = briefing.bot.id;
        self.busy.insert(bot);
        let span = tracing::info_span!("worker.step", %bot);
        let task = async move {
            run_step(&context, &machines, briefing, &prefetch, fence).await;
            bot
        };
        let handle = self.steps.spawn(task.instrument(span));
        self.tasks.insert(handle.id(), Running { bot, fence, handle });
    }

    /// A bot whose row cannot be read is looked at again rarely, and keeps no other from its turn.
    async fn put_off_unreadable(&self, due: DueBot) {
        let Some(fence) = self.fences.get(&due.shard).copied() else { return };
        let error = StepError::fail("M_UNKNOWN", "the bot's row cannot be read: see the log");
        let rows = ended_with(&self.context, due, &error, false, None);
        if let Err(error) = self.context.committer.commit(fence, rows).await {
            error!(error = chain(&error), "could not put off a bot that cannot be read");
        }
    }

    fn ended(&mut self, ended: &Result<(tokio::task::Id, BotId), JoinError>) {
        let id = match ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        if let Some(step) = self.tasks.remove(&id) {
            self.busy.remove(&step.bot);
        }
    }

    fn lock_machines(&self) -> std::sync::MutexGuard<'_, Machines> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One step of one bot, and what follows from how it ended. A panic is caught, counted, and hurts only
/// this step.
async fn run_step(
    context: &Context,
    machines: &Mutex<Machines>,
    briefing: Briefing,
    prefetch: &Prefetch,
    fence: Fence,
) {
    let started = std::time::Instant::now();
    let due = briefing.due;
    let kept = machines.lock().unwrap_or_else(PoisonError::into_inner).take(due.bot, fence);
    let step = Box::pin(bot_worker::step(context, briefing, prefetch, fence, kept));
    let Outcome { kept, progressed, troubles, mut rows, result } = caught(step).await;
    metrics::histogram!("greenshield_step_seconds").record(started.elapsed().as_secs_f64());
    rows.merge(match &result {
        Ok(next) => ended_well(context, due, *next),
        Err(StepError::LeaseLost) => {
            info!("another process has taken this bot over");
            return;
        }
        Err(error) => ended_with(context, due, error, progressed, troubles),
    });
    match context.committer.commit(fence, rows).await {
        // Only now is the machine as far as the database.
        Ok(()) => keep(machines, due.bot, kept),
        Err(StoreError::LeaseLost) => info!("another process has taken this bot over"),
        Err(error) => {
            error!(error = chain(&error), "could not record the end of a step");
            // What the step gathered may be what cannot be written: without it.
            let rows = ended_with(context, due, &StepError::retry(error), false, None);
            if let Err(error) = context.committer.commit(fence, rows).await {
                // The bot stays due: it is simply done again.
                error!(error = chain(&error), "could not put the bot off either");
            }
        }
    }
}

fn keep(machines: &Mutex<Machines>, bot: BotId, kept: Option<Kept>) {
    let Some(kept) = kept else { return };
    let mut machines = machines.lock().unwrap_or_else(PoisonError::into_inner);
    machines.put(bot, kept);
    metrics::gauge!("greenshield_machines").set(count(machines.len()));
    metrics::gauge!("greenshield_machine_bytes").set(count(machines.bytes()));
}

/// How a step ended, if need be by a panic: then its machine is gone with what it gathered, and nothing
/// else.
async fn caught(step: impl Future<Output = Outcome>) -> Outcome {
    std::panic::AssertUnwindSafe(step).catch_unwind().await.unwrap_or_else(|_| {
        metrics::counter!("greenshield_step_panics_total").increment(1);
        Outcome {
            kept: None,
            progressed: false,
            troubles: None,
            rows: Rows::default(),
            result: Err(StepError::fail("M_UNKNOWN", "a step panicked: see the log")),
        }
    })
}

fn ended_well(context: &Context, due: DueBot, next: Option<DateTime<Utc>>) -> Rows {
    let mut rows = Rows::default();
    if due.failures > 0 {
        let note = Note { bot: due.bot, error: None, at: context.clock.now() };
        rows.notes.insert(due.bot, note);
    }
    rows.finished.push(FinishedRow { due, next, failures: 0, rest_done: true });
    rows
}

/// What keeps failing beside the rest of the step (`troubles`) is tried ever more seldom like a step, but
/// whatever else the bot has to do waits no longer for it each time.
fn ended_with(
    context: &Context,
    due: DueBot,
    error: &StepError,
    progressed: bool,
    troubles: Option<i32>,
) -> Rows {
    let kind = if error.is_retry() { "retry" } else { "fail" };
    metrics::counter!("greenshield_step_errors_total", "kind" => kind).increment(1);
    let now = context.clock.now();
    let rest_done = troubles.is_some();
    let failures = if progressed || rest_done { 1 } else { due.failures.saturating_add(1) };
    let next = backoff::next_attempt(error, troubles.unwrap_or(failures), due.bot.0, now);
    let said = chain(error);
    warn!(error = said, kind, failures, next_attempt_at = %next, "a step failed");
    let mut rows = Rows::default();
    rows.notes.insert(due.bot, Note { bot: due.bot, error: Some(said), at: now });
    rows.finished.push(FinishedRow { due, next: Some(next), failures, rest_done });
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_own_step_as_an_error() {
        let ended = caught(async { panic!("on purpose") }).await;
        assert!(ended.kept.is_none() && ended.rows.is_empty());
        assert!(matches!(ended.result, Err(StepError::Fail { .. })));
    }
}
