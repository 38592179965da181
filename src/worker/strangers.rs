//! Forgetting the humans with whom a bot has nothing to do any more.
//!
//! Retention asks for it (`inbox::ask_to_forget_strangers`); it is done here, last in a step, because a
//! bot's crypto rows are written in its own step only, and its machine remembers whom it tracks: it goes
//! with them, and what it is opened with next is read after this. Whoever comes back is looked up as if
//! never seen.

use chrono::Duration;
use tracing::{info, warn};

use super::{StepError, bot_worker::Step, send};
use crate::{
    store::{
        Connection, StoreError, crypto_store,
        inbox::{self, Entry},
        rooms,
    },
    telemetry::chain,
};

/// How many rooms the homeserver is asked about at once.
const ROOMS: i64 = 20;
/// A verification lives in the machine only, and what it still wants sent may, too: both are waited for.
const NOT_NOW: Duration = Duration::minutes(15);
/// A room about which the homeserver does not answer.
const NOT_TODAY: Duration = Duration::days(1);

/// Takes the entries up.
pub(super) async fn run(step: &mut Step<'_>, entries: Vec<Entry>) -> Result<(), StepError> {
    if entries.is_empty() {
        return Ok(());
    }
    let wait = if step.verifying || step.wants_something_sent() {
        Some(NOT_NOW)
    } else {
        know_all_members(step).await?
    };
    let forgotten = match wait {
        Some(_) => Vec::new(),
        None => strangers(step).await?,
    };
    let now = step.now();
    let mut tx = step.begin().await?;
    if let Some(wait) = wait {
        for entry in &entries {
            inbox::put_off(&mut tx, entry.id, now + wait).await?;
        }
    } else {
        step.forget_machine();
        crypto_store::forget(&mut tx, step.bot.id, &forgotten).await?;
        let done: Vec<_> = entries.iter().map(|entry| entry.id).collect();
        inbox::finish(&mut tx, &done, &[], now).await?;
        info!(users = forgotten.len(), "forgot users with whom it has nothing to do any more");
    }
    tx.commit().await.map_err(StoreError::from)?;
    Ok(())
}

/// Asks about rooms whose members are not all known, since each of them may be anybody's companion; says
/// how long to wait if some are left.
async fn know_all_members(step: &mut Step<'_>) -> Result<Option<Duration>, StepError> {
    let user = step.bot.user_id.clone();
    let unknown = async |conn: &mut Connection| rooms::unknown(conn, user.as_str(), ROOMS).await;
    let unknown = step.context.store.run(unknown).await?;
    for room in &unknown {
        match send::known_room(step, room).await {
            Ok(_) => {}
            Err(error) if error.machine_is_whole() => {
                warn!(error = chain(&error), %room, "cannot ask who is in a room");
                return Ok(Some(NOT_TODAY));
            }
            Err(error) => return Err(error),
        }
    }
    let all = i64::try_from(unknown.len()).is_ok_and(|asked| asked < ROOMS);
    Ok((!all).then_some(NOT_NOW))
}

async fn strangers(step: &mut Step<'_>) -> Result<Vec<String>, StepError> {
    // Whom this very step began to track is among those that are looked at.
    step.commit().await?;
    let bot = step.bot.id;
    let strangers = async |conn: &mut Connection| crypto_store::strangers(conn, bot).await;
    Ok(step.context.store.run(strangers).await?)
}
