//! One step of one bot: everything that is due for it, in the order that [`super`] tells.

use chrono::{DateTime, Duration, Utc};
use tracing::debug;

use super::{
    Context, StepError, invites, machines::Kept, outgoing, provision, receive, reconcile, repair,
    send, undecrypted, verify,
};
use crate::{
    crypto::BotMachine,
    homeserver::Actor,
    model::{BotId, BotState},
    store::{Fence, StoreError, bots, bots::Bot, inbox, inbox::Work, outbox, verifications},
};

/// How often one step looks for more before it lets others have a turn.
const ROUNDS: usize = 8;
/// How much of the inbox is taken up in one round.
const INBOX_BATCH: i64 = 200;
/// How often a running verification is looked at when nothing happens.
const VERIFICATION_TICK: Duration = Duration::seconds(15);

/// How a step ended.
pub(super) struct Outcome {
    /// The machine, if one was opened and may be used again.
    pub machine: Option<BotMachine>,
    /// Whether a verification is running in it, so that it must stay in memory.
    pub pinned: bool,
    /// Whether it got further than the last one, even if it failed in the end.
    pub progressed: bool,
    /// When the next step is due; `None` when there is nothing to do.
    pub result: Result<Option<DateTime<Utc>>, StepError>,
}

impl Outcome {
    pub(super) const fn new(
        machine: Option<BotMachine>,
        pinned: bool,
        result: Result<Option<DateTime<Utc>>, StepError>,
    ) -> Self {
        Self { machine, pinned, progressed: false, result }
    }
}

/// What the parts of a step share.
pub(super) struct Step<'a> {
    pub context: &'a Context,
    pub bot: Bot,
    pub actor: Actor,
    pub fence: Fence,
    /// Whether a verification was under way when this was last looked at.
    pub verifying: bool,
    /// Whether a part of a longer work was done for good.
    pub progressed: bool,
    machine: Option<BotMachine>,
    /// What the homeserver did not take of what the machine wanted sent: it is tried again.
    trouble: Option<StepError>,
}

impl Step<'_> {
    /// The bot's machine, opened the first time that a step needs it.
    pub(super) async fn machine(&mut self) -> Result<&BotMachine, StepError> {
        let machine = match self.machine.take() {
            Some(machine) => machine,
            None => repair::open_machine(self).await?,
        };
        Ok(self.machine.insert(machine))
    }

    /// The machine is opened again when it is next needed.
    pub(super) fn forget_machine(&mut self) {
        self.machine = None;
    }

    /// Something failed with `error`: the machine is given up if its memory may be ahead of what is
    /// stored, and so is what stood in its way.
    pub(super) async fn failed(&mut self, error: &StepError) {
        if !error.machine_is_whole() {
            self.forget_machine();
            repair::drop_damaged(self, error).await;
        }
    }

    pub(super) fn has_machine(&self) -> bool {
        self.machine.is_some()
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        self.context.clock.now()
    }
}

/// Runs a step. A failure of the homeserver or of the database leaves the machine as it was, with
/// whatever verification runs in it; a failure of the machine's own store does not.
pub(super) async fn step(
    context: &Context,
    bot: BotId,
    fence: Fence,
    kept: Option<Kept>,
) -> Outcome {
    let verifying = kept.as_ref().is_some_and(|kept| kept.pinned);
    let machine = kept.map(|kept| kept.machine);
    let bot = match load(context, bot).await {
        Ok(Some(bot)) => bot,
        Ok(None) => return Outcome::new(None, false, Ok(None)),
        Err(error) => return Outcome::new(machine, verifying, Err(error.into())),
    };
    let actor = Actor { user_id: bot.user_id.clone(), device_id: bot.device_id.clone() };
    let mut step =
        Step { context, bot, actor, fence, verifying, progressed: false, machine, trouble: None };
    let result = all(&mut step).await;
    if let Err(error) = &result {
        step.failed(error).await;
    }
    Outcome { progressed: step.progressed, ..Outcome::new(step.machine, step.verifying, result) }
}

/// The bot, unless it is gone or retired.
async fn load(context: &Context, bot: BotId) -> Result<Option<Bot>, StoreError> {
    let mut conn = context.store.connection().await?;
    let bot = bots::load(&mut conn, bot).await?;
    Ok(bot.filter(|bot| bot.state != BotState::Retired))
}

async fn all(step: &mut Step<'_>) -> Result<Option<DateTime<Utc>>, StepError> {
    if step.bot.state == BotState::Provisioning {
        provision::run(step).await?;
    } else {
        repair::run(step).await?;
    }
    for _ in 0..ROUNDS {
        if !round(step).await? {
            break;
        }
    }
    match step.trouble.take() {
        Some(trouble) => Err(trouble),
        None => Ok(next_due(step).await?),
    }
}

/// One round; tells whether there was anything to do.
async fn round(step: &mut Step<'_>) -> Result<bool, StepError> {
    let mut conn = step.context.store.connection().await?;
    let sealer = step.context.store.sealer();
    let entries = inbox::due(&mut conn, sealer, step.bot.id, step.now(), INBOX_BATCH).await?;
    drop(conn);
    let mut for_machine = Vec::new();
    let mut events = Vec::new();
    let mut invited = Vec::new();
    let mut reconciles = Vec::new();
    for entry in entries {
        match &entry.work {
            Work::ToDevice(_) | Work::KeyCounts(_) | Work::DeviceLists(_) => {
                for_machine.push(entry);
            }
            Work::RoomEvent(_) => events.push(entry),
            Work::Invite(_) => invited.push(entry),
            Work::Reconcile => reconciles.push(entry),
        }
    }
    let mut busy = !(for_machine.is_empty()
        && events.is_empty()
        && invited.is_empty()
        && reconciles.is_empty());
    debug!(for_machine = for_machine.len(), events = events.len(), invites = invited.len(), "step");
    let activity = !(for_machine.is_empty() && events.is_empty());
    receive::run(step, for_machine).await?;
    reconcile::run(step, reconciles).await?;
    undecrypted::run(step, events).await?;
    invites::run(step, invited).await?;
    if activity {
        reconcile::after_activity(step).await?;
    }
    if busy || step.has_machine() {
        busy |= send_keys(step).await?;
    }
    verify::run(step).await?;
    busy |= send::run(step).await?;
    Ok(busy)
}

/// Sends what the machine wants sent. What the homeserver does not take keeps nothing else back: a
/// message that cannot do without it finds that out by itself.
async fn send_keys(step: &mut Step<'_>) -> Result<bool, StepError> {
    if step.trouble.is_some() {
        return Ok(false);
    }
    match outgoing::run(step).await {
        Err(error) if error.machine_is_whole() => {
            step.trouble = Some(error);
            Ok(false)
        }
        result => result,
    }
}

async fn next_due(step: &mut Step<'_>) -> Result<Option<DateTime<Utc>>, StoreError> {
    let mut conn = step.context.store.connection().await?;
    let work = inbox::next_due(&mut conn, step.bot.id).await?;
    let sends = outbox::next_due(&mut conn, step.bot.id).await?;
    step.verifying = verifications::any_open(&mut conn, step.bot.id).await?;
    let tick = step.verifying.then(|| step.now() + VERIFICATION_TICK);
    Ok([work, sends, tick].into_iter().flatten().min())
}
