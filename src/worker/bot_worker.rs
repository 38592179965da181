//! One step of one bot: everything that is due for it, in the order that [`super`] tells.
//!
//! What a step changes it gathers in [`Step::rows`] and in its machine. Whatever leaves the process, or
//! reads the database again, goes through [`Step::homeserver`], [`Step::begin`] or [`Step::connection`],
//! which commit that first: nobody ever hears of what a crash could undo. A question that tells nobody
//! anything goes through [`Step::ask`].

use std::{collections::HashMap, sync::Arc};

use chrono::{DateTime, Duration, Utc};
use tracing::debug;

use super::{
    Context, StepError, invites, machines::Kept, outgoing, prefetch::Prefetch, provision, receive,
    reconcile, repair, send, strangers, undecrypted, verify,
};
use crate::{
    crypto::BotMachine,
    homeserver::{Actor, Homeserver},
    model::BotState,
    store::{
        Fence, PooledConnection, Rows, StoreError, Tx,
        bots::{Bot, Note},
        briefing::Briefing,
        inbox::{Entry, Work},
        outbox,
        rooms::Room,
    },
};

/// How often a running verification is looked at when nothing happens.
const VERIFICATION_TICK: Duration = Duration::seconds(15);

/// How a step ended.
pub(super) struct Outcome {
    /// The machine, if one was opened and may be used again.
    pub kept: Option<Kept>,
    /// Whether it got further than the last one, even if it failed in the end.
    pub progressed: bool,
    /// See [`Step::troubles`].
    pub troubles: Option<i32>,
    /// What it gathered last: to be committed with its end.
    pub rows: Rows,
    /// When the next step is due at the latest, if a verification is under way.
    pub result: Result<Option<DateTime<Utc>>, StepError>,
}

/// What the parts of a step share.
pub(super) struct Step<'a> {
    pub context: &'a Context,
    pub bot: Bot,
    pub actor: Actor,
    pub fence: Fence,
    /// What its machine reads first.
    pub prefetch: &'a Prefetch,
    /// What was changed and not committed yet.
    pub rows: Rows,
    /// What is known of the rooms that this step is about.
    pub rooms: HashMap<String, Arc<Room>>,
    /// The number of the last change of devices when the step began.
    pub device_epoch: i64,
    /// Whether a verification was under way when this was last looked at.
    pub verifying: bool,
    /// Whether a part of a longer work was done for good.
    pub progressed: bool,
    /// If everything was done but what the homeserver did not take of what the machine wanted sent: in how
    /// many steps in a row that was so.
    pub troubles: Option<i32>,
    /// Messages to be sent, in order.
    pub sends: Vec<outbox::Send>,
    /// Whether there are or may be other messages waiting, which a new one must not overtake.
    pub backlog: bool,
    /// Whether nothing was gathered since the last commit but what the homeserver answered to room keys.
    pub only_answers: bool,
    kept: Option<Kept>,
    /// Why nothing may be committed or leave any more: what was gathered before is lost.
    lost: Option<Lost>,
    /// What the homeserver did not take of what the machine wanted sent: it is tried again.
    trouble: Option<StepError>,
}

/// What kept a step's rows from being written.
#[derive(Clone, Copy, Debug)]
enum Lost {
    /// The database, or the machine's own store: over once the machine is given up with what followed
    /// from the rows.
    Rows,
    /// Another process has the bot: for the rest of the step.
    Lease,
}

impl Lost {
    fn error(self) -> StepError {
        match self {
            Self::Rows => StepError::Retry {
                source: "an earlier commit of this step failed".into(),
                after: None,
                machine_is_whole: false,
            },
            Self::Lease => StepError::LeaseLost,
        }
    }
}

impl<'a> Step<'a> {
    /// The bot's machine, opened the first time that a step needs it.
    pub(super) async fn machine(&mut self) -> Result<&BotMachine, StepError> {
        Ok(&self.kept().await?.machine)
    }

    /// The machine with what is kept beside it.
    pub(super) async fn kept(&mut self) -> Result<&mut Kept, StepError> {
        let kept = match self.kept.take() {
            Some(kept) => kept,
            None => Kept::new(repair::open_machine(self).await?, self.fence, &self.bot),
        };
        Ok(self.kept.insert(kept))
    }

    /// Brings what the machine, if it is open, is about to read. To be called before it writes anything:
    /// others may have read it a while ago.
    pub(super) async fn take_prefetched(&self) {
        let (bot, prefetch) = (self.bot.id, self.prefetch);
        if let Some(kept) = self.kept.as_ref().filter(|_| prefetch.has(bot)) {
            kept.machine.take_prefetched(prefetch.take(&self.context.store, bot).await);
        }
    }

    /// The machine is opened again when it is next needed.
    pub(super) fn forget_machine(&mut self) {
        self.kept = None;
    }

    /// Something failed with `error`: the machine is given up if its memory may be ahead of what is
    /// stored, and so is what stood in its way.
    pub(super) async fn failed(&mut self, error: &StepError) {
        if !error.machine_is_whole() {
            self.forget_machine();
            // What follows from what the machine had taken in is done again with it.
            self.rows = Rows::default();
            self.sends.clear();
            self.lost = self.lost.filter(|lost| matches!(lost, Lost::Lease));
            repair::drop_damaged(self, error).await;
        }
    }

    /// Whether the machine may want something sent, or the homeserver did not take it.
    pub(super) fn wants_something_sent(&self) -> bool {
        self.trouble.is_some() || self.kept.as_ref().is_some_and(|kept| kept.has_requests)
    }

    pub(super) fn has_machine(&self) -> bool {
        self.kept.is_some()
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        self.context.clock.now()
    }

    /// Whether a user is a bot of this fleet: the namespace is ours alone.
    pub(super) fn is_ours(&self, user: &str) -> bool {
        self.context.settings.namespace.is_match(user)
    }

    /// Says what is wrong with the bot, for its operator: the step goes on.
    pub(super) fn note(&mut self, error: &str) {
        let (bot, at) = (self.bot.id, self.now());
        self.rows.notes.insert(bot, Note { bot, error: Some(error.to_owned()), at });
    }

    /// Asks for a reconcile at `due_at`, unless one is asked for earlier.
    pub(super) fn ask_reconcile(&mut self, due_at: DateTime<Utc>) {
        let asked = self.rows.reconciles.entry(self.bot.id).or_insert(due_at);
        *asked = due_at.min(*asked);
    }

    /// What was gathered, the machine's part included.
    async fn take_rows(&mut self) -> Result<Rows, StepError> {
        if let Some(lost) = self.lost {
            return Err(lost.error());
        }
        let mut rows = std::mem::take(&mut self.rows);
        if let Some(kept) = &self.kept {
            match kept.machine.take_gathered().await {
                Ok(gathered) => rows.crypto.merge(gathered),
                Err(error) => return Err(self.lost_with(error.into())),
            }
        }
        Ok(rows)
    }

    /// Commits what was gathered. If that fails the machine is ahead of the database: nothing more is
    /// committed or said until [`Step::failed`] has thrown it away.
    pub(super) async fn commit(&mut self) -> Result<(), StepError> {
        let rows = self.take_rows().await?;
        match self.context.committer.commit(self.fence, rows).await {
            Ok(()) => Ok(()),
            Err(error) => Err(self.lost_with(StepError::uncommitted(error))),
        }
    }

    /// Notes that rows were taken and not written, because of `error`.
    fn lost_with(&mut self, error: StepError) -> StepError {
        let lost = if matches!(error, StepError::LeaseLost) { Lost::Lease } else { Lost::Rows };
        self.lost = Some(lost);
        error
    }

    /// The homeserver: what was gathered is committed before anything is said to it.
    pub(super) async fn homeserver(&mut self) -> Result<&'a Homeserver, StepError> {
        self.commit().await?;
        Ok(&self.context.homeserver)
    }

    /// The homeserver, for a message that was prepared to be sent. If all that was gathered since the last
    /// commit is what it answered to what was sent meanwhile, that is not committed before: lost, it is
    /// found out again.
    pub(super) async fn homeserver_for_message(&mut self) -> Result<&'a Homeserver, StepError> {
        if self.only_answers && self.lost.is_none() {
            Ok(self.ask())
        } else {
            self.homeserver().await
        }
    }

    /// The homeserver, for a question: it tells nobody anything, and so nothing is committed before.
    pub(super) const fn ask(&self) -> &'a Homeserver {
        &self.context.homeserver
    }

    /// To be called right before the homeserver is asked for what another process, if it has taken the bot
    /// over, must not find done twice. A commit proves the lease, too, but only when there is something to
    /// be committed.
    pub(super) async fn prove_lease(&self) -> Result<(), StepError> {
        Ok(self.context.store.prove(self.fence).await?)
    }

    /// A transaction under the lease, after what was gathered is committed.
    pub(super) async fn begin(&mut self) -> Result<Tx, StepError> {
        self.commit().await?;
        Ok(self.context.store.begin_fenced(self.fence).await?)
    }

    /// A connection to read with, after what was gathered is committed.
    pub(super) async fn connection(&mut self) -> Result<PooledConnection, StepError> {
        self.commit().await?;
        Ok(self.context.store.connection().await?)
    }
}

/// Runs a step. A failure of the homeserver leaves the machine as it was, with whatever verification
/// runs in it; a failure of the machine's own store, or of a commit, does not.
pub(super) async fn step(
    context: &Context,
    briefing: Briefing,
    prefetch: &Prefetch,
    fence: Fence,
    kept: Option<Kept>,
) -> Outcome {
    let Briefing { bot, entries, events, sends, .. } = briefing;
    let actor = Actor { user_id: bot.user_id.clone(), device_id: bot.device_id.clone() };
    let mut step = Step {
        context,
        bot,
        actor,
        fence,
        prefetch,
        rows: Rows::default(),
        rooms: briefing.rooms,
        device_epoch: briefing.device_epoch,
        verifying: briefing.verifying,
        progressed: false,
        troubles: None,
        sends,
        backlog: briefing.backlog,
        only_answers: false,
        kept,
        lost: None,
        trouble: None,
    };
    if !briefing.broken_entries.is_empty() {
        step.note("an entry of its inbox did not open, and was dropped: see the log");
        step.rows.done = briefing.broken_entries;
    }
    if !briefing.broken_sends.is_empty() {
        step.note("a message was not sent: its sealed content does not open");
        step.rows.outcomes = briefing.broken_sends;
    }
    let work = Entries::sort(entries);
    let result = match step.bot.state {
        BotState::Retired => Ok(None),
        BotState::Provisioning | BotState::Active => {
            all(&mut step, work, &events, briefing.repairing).await
        }
    };
    if let Err(error) = &result {
        step.failed(error).await;
    }
    let (rows, result) = match step.take_rows().await {
        Ok(rows) => (rows, result),
        Err(error) => {
            step.failed(&error).await;
            step.troubles = None;
            // Why it failed first says more than that it did not end well either.
            (Rows::default(), result.and(Err(error)))
        }
    };
    if let Some(kept) = &mut step.kept {
        kept.pinned = step.verifying;
    }
    let Step { kept, progressed, troubles, .. } = step;
    Outcome { kept, progressed, troubles, rows, result }
}

/// A bot's inbox, sorted by who takes what up.
#[derive(Default)]
struct Entries {
    for_machine: Vec<Entry>,
    events: Vec<Entry>,
    invites: Vec<Entry>,
    reconciles: Vec<Entry>,
    strangers: Vec<Entry>,
}

impl Entries {
    fn sort(entries: Vec<Entry>) -> Self {
        let mut sorted = Self::default();
        for entry in entries {
            let list = match &entry.work {
                Work::ToDevice(_) | Work::KeyCounts(_) => &mut sorted.for_machine,
                Work::RoomEvent(_) => &mut sorted.events,
                Work::Invite(_) => &mut sorted.invites,
                Work::Reconcile => &mut sorted.reconciles,
                Work::ForgetStrangers => &mut sorted.strangers,
            };
            list.push(entry);
        }
        sorted
    }
}

async fn all(
    step: &mut Step<'_>,
    mut work: Entries,
    events: &undecrypted::Events,
    repairing: bool,
) -> Result<Option<DateTime<Utc>>, StepError> {
    let device = step.bot.device_id.clone();
    if step.bot.state == BotState::Provisioning {
        provision::run(step).await?;
    } else if repairing {
        repair::run(step).await?;
        if step.bot.device_id != device {
            // They came for a device that was given up, and are gone from the inbox with it.
            work.for_machine.clear();
        }
    }
    debug!(
        for_machine = work.for_machine.len(),
        events = work.events.len(),
        invites = work.invites.len(),
        sends = step.sends.len(),
        "step"
    );
    let activity = !(work.for_machine.is_empty() && work.events.is_empty());
    receive::run(step, work.for_machine).await?;
    reconcile::run(step, work.reconciles).await?;
    undecrypted::run(step, work.events, events).await?;
    invites::run(step, work.invites).await?;
    if activity {
        reconcile::after_activity(step).await?;
    }
    if step.verifying {
        send_keys(step).await?;
        verify::run(step).await?;
    }
    send::run(step).await?;
    send_keys(step).await?;
    strangers::run(step, work.strangers).await?;
    let trouble = step.trouble.take();
    if let Some(kept) = &mut step.kept {
        kept.troubles = trouble.as_ref().map_or(0, |_| kept.troubles.saturating_add(1));
        step.troubles = trouble.as_ref().map(|_| kept.troubles);
    }
    match trouble {
        Some(trouble) => Err(trouble),
        None => Ok(step.verifying.then(|| step.now() + VERIFICATION_TICK)),
    }
}

/// Sends what the machine wants sent. What the homeserver does not take keeps nothing else back: a
/// message that cannot do without it finds that out by itself.
async fn send_keys(step: &mut Step<'_>) -> Result<(), StepError> {
    if !step.kept.as_ref().is_some_and(|kept| kept.has_requests) {
        return Ok(());
    }
    match outgoing::run(step).await {
        Err(error) if error.machine_is_whole() => {
            step.trouble = Some(error);
            Ok(())
        }
        Ok(_) => {
            // What was not taken before was tried again.
            step.trouble = None;
            Ok(())
        }
        Err(error) => Err(error),
    }
}

impl StepError {
    /// What was gathered could not be committed.
    fn uncommitted(error: StoreError) -> Self {
        match error {
            StoreError::LeaseLost => Self::LeaseLost,
            error => Self::Retry { source: Box::new(error), after: None, machine_is_whole: false },
        }
    }
}
