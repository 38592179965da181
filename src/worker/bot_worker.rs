//! One step of one bot: everything that is due for it, in the order that [`super`] tells.

use chrono::{DateTime, Duration, Utc};
use tracing::debug;

use super::{
    Context, StepError, invites, outgoing, provision, receive, reconcile, send, undecrypted, verify,
};
use crate::{
    crypto::BotMachine,
    homeserver::Actor,
    model::{BotId, BotState},
    store::{Connection, Fence, StoreError, bots, bots::Bot, inbox, inbox::Work, outbox},
};

/// How often one step looks for more before it lets others have a turn.
const ROUNDS: usize = 8;
/// How much of the inbox is taken up in one round.
const INBOX_BATCH: i64 = 200;
/// How often a running verification is looked at when nothing happens.
const VERIFICATION_TICK: Duration = Duration::seconds(15);

/// A step that went well.
pub(super) struct Outcome {
    /// The machine, if one was opened: to be kept.
    pub machine: Option<BotMachine>,
    /// Whether the machine must stay in memory.
    pub pinned: bool,
    /// When the next step is due; `None` when there is nothing to do.
    pub next: Option<DateTime<Utc>>,
}

/// What the parts of a step share.
pub(super) struct Step<'a> {
    pub context: &'a Context,
    pub bot: Bot,
    pub actor: Actor,
    pub fence: Fence,
    machine: Option<BotMachine>,
}

impl Step<'_> {
    /// The bot's machine, opened the first time that a step needs it.
    pub(super) async fn machine(&mut self) -> Result<&BotMachine, StepError> {
        let machine = match self.machine.take() {
            Some(machine) => machine,
            None => BotMachine::open(&self.context.store, self.fence, &self.bot).await?,
        };
        Ok(self.machine.insert(machine))
    }

    pub(super) fn has_machine(&self) -> bool {
        self.machine.is_some()
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        self.context.clock.now()
    }
}

/// Runs a step. The machine is given back only if all went well.
pub(super) async fn step(
    context: &Context,
    bot: BotId,
    fence: Fence,
    machine: Option<BotMachine>,
) -> Result<Outcome, StepError> {
    let mut conn = context.store.connection().await?;
    let Some(bot) = bots::load(&mut conn, bot).await? else {
        return Ok(Outcome { machine: None, pinned: false, next: None });
    };
    drop(conn);
    if bot.state == BotState::Retired {
        return Ok(Outcome { machine: None, pinned: false, next: None });
    }
    let actor = Actor { user_id: bot.user_id.clone(), device_id: bot.device_id.clone() };
    let mut step = Step { context, bot, actor, fence, machine };

    if step.bot.state == BotState::Provisioning {
        provision::run(&mut step).await?;
    }
    for _ in 0..ROUNDS {
        if !round(&mut step).await? {
            break;
        }
    }
    let mut conn = context.store.connection().await?;
    let verifying = verify::is_open(&mut conn, &step).await?;
    let next = next_due(&mut conn, &step, verifying).await?;
    Ok(Outcome { machine: step.machine, pinned: verifying, next })
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
                for_machine.push(entry)
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
    receive::run(step, for_machine).await?;
    reconcile::run(step, reconciles).await?;
    undecrypted::run(step, events).await?;
    invites::run(step, invited).await?;
    if busy || step.has_machine() {
        busy |= outgoing::run(step).await?;
    }
    verify::run(step).await?;
    busy |= send::run(step).await?;
    Ok(busy)
}

async fn next_due(
    conn: &mut Connection,
    step: &Step<'_>,
    verifying: bool,
) -> Result<Option<DateTime<Utc>>, StoreError> {
    let work = inbox::next_due(conn, step.bot.id).await?;
    let sends = outbox::next_due(conn, step.bot.id).await?;
    let tick = verifying.then(|| step.now() + VERIFICATION_TICK);
    Ok([work, sends, tick].into_iter().flatten().min())
}
