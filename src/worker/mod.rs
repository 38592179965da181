//! The engine: rows in, homeserver calls and rows out.
//!
//! The [`Supervisor`] leases shards and finds bots with work; for each it runs one *step*, which alone
//! owns that bot's machine while it lasts:
//!
//! 1. [`provision`]: if the bot is still being made, the steps of its signup; [`repair`]: if it has lost
//!    its device, a new one, under the same [`identity`];
//! 2. [`receive`]: to-device messages and key counts, in one call;
//! 3. [`reconcile`]: if asked, the to-device messages that transactions lost, and a look at what the
//!    homeserver shows of the bot ([`guard`]);
//! 4. [`undecrypted`]: room events: decrypted, logged, or parked until their key comes;
//! 5. [`invites`]: accepted or declined by policy;
//! 6. [`verify`]: every verification, one move on, if any is under way;
//! 7. [`send`]: the outbox, and the room keys that it needs ([`device_keys`]);
//! 8. [`outgoing`]: whatever else the machine wants sent: key uploads, key queries, to-device messages;
//! 9. [`strangers`]: if asked, whom it need not know any more.
//!
//! A step begins with a [`Briefing`](crate::store::briefing::Briefing), read for many bots at once. What
//! it changes it gathers as [`Rows`](crate::store::Rows), and the [`Committer`] commits those of many
//! steps together, under the [`Fence`](crate::store::Fence) of each, before anything that follows from
//! them leaves the process. So a step is at-least-once: it may be broken off anywhere and done again.
//! What fails is `retry` or `fail` ([`StepError`]), is put off with [`backoff`], and touches no other
//! bot.

mod backoff;
mod bot_worker;
mod device_keys;
mod error;
mod guard;
mod identity;
mod invites;
mod lost;
mod machines;
mod outgoing;
mod prefetch;
mod provision;
mod receive;
mod reconcile;
mod repair;
mod retention;
mod send;
mod strangers;
mod supervisor;
mod undecrypted;
mod verify;

use std::sync::Arc;

use regex::Regex;
use ruma::{OwnedRoomId, OwnedServerName, OwnedUserId};

pub use self::{device_keys::InFlight, error::StepError, reconcile::Pace, supervisor::Supervisor};
use crate::{
    clock::Clock,
    config::InvitePolicy,
    homeserver::Homeserver,
    model::Respond,
    store::{Committer, Store},
};

/// What every step needs; cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The database.
    pub store: Store,
    /// The homeserver.
    pub homeserver: Homeserver,
    /// The time.
    pub clock: Clock,
    /// What commits the rows of many steps together.
    pub committer: Committer,
    /// Whose devices are just being asked for.
    pub in_flight: Arc<InFlight>,
    /// What spreads the looks for lost messages.
    pub pace: Arc<Pace>,
    /// What the operator decided.
    pub settings: Arc<Settings>,
}

/// What the operator decided about the work.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many bots are worked at once.
    pub concurrency: usize,
    /// How much memory the machines that stay open may take together, in bytes.
    pub machine_cache: usize,
    /// How long a lease lasts.
    pub lease: std::time::Duration,
    /// Our homeserver's name.
    pub server_name: OwnedServerName,
    /// Whose invitations are accepted.
    pub invite_policy: InvitePolicy,
    /// The users of [`InvitePolicy::List`].
    pub invite_allow: Vec<OwnedUserId>,
    /// The space that new bots join.
    pub space: Option<OwnedRoomId>,
    /// The rooms that new bots join.
    pub rooms: Vec<OwnedRoomId>,
    /// The built-in responder, if it is to look at messages.
    pub respond: Option<Respond>,
    /// Whose users our bots are: the namespace of the registration.
    pub namespace: Regex,
}
