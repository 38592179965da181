//! Forgetting the humans with whom a bot has nothing to do any more.
//!
//! Retention asks for it (`inbox::ask_to_forget_strangers`); it is done here, last in a step, because a
//! bot's crypto rows are written in its own step only, and its machine remembers whom it tracks: it goes
//! with them, and what it is opened with next is read after this. Whoever comes back is looked up as if
//! never seen.

use chrono::Duration;
use tracing::info;

use super::{StepError, bot_worker::Step};
use crate::store::{
    StoreError, crypto_store,
    inbox::{self, Entry},
};

/// A verification lives in the machine only, and is waited for.
const AFTER_VERIFICATION: Duration = Duration::minutes(15);

/// Takes the entries up.
pub(super) async fn run(step: &mut Step<'_>, entries: Vec<Entry>) -> Result<(), StepError> {
    if entries.is_empty() {
        return Ok(());
    }
    let mut tx = step.begin().await?;
    if step.verifying {
        for entry in &entries {
            inbox::put_off(&mut tx, entry.id, step.now() + AFTER_VERIFICATION).await?;
        }
    } else {
        step.forget_machine();
        let forgotten = crypto_store::forget_strangers(&mut tx, step.bot.id).await?;
        info!(forgotten, "forgot users with whom it has nothing to do any more");
        let done: Vec<_> = entries.iter().map(|entry| entry.id).collect();
        inbox::finish(&mut tx, &done, &[], step.now()).await?;
    }
    tx.commit().await.map_err(StoreError::from)?;
    Ok(())
}
