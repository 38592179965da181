//! The two copies of a bot's private identity, in `bot_identities` and in its machine: if one of them is
//! damaged, it comes back from the other.

use tracing::warn;

use super::{StepError, bot_worker::Step, guard};
use crate::{
    crypto::{self, BotMachine},
    model::BotState,
    store::{
        StoreError, bots,
        bots::{IdentitySecrets, PublicIdentity},
        repairs,
    },
    telemetry::chain,
};

/// Gives a machine that has lost the private identity what `bot_identities` keeps of it. Without it the
/// bot still reads and writes, and so what waiting does not cure is only told.
pub(super) async fn bring_back(step: &mut Step<'_>, machine: &BotMachine) -> Result<(), StepError> {
    if step.bot.state != BotState::Active || machine.has_identity().await {
        return Ok(());
    }
    let mut conn = step.connection().await?;
    let repair = repairs::open(&mut conn, step.bot.id).await?;
    drop(conn);
    if repair.is_some_and(|repair| repair.switched) {
        // A new device, which the repair is about to sign with it.
        return Ok(());
    }
    match give(step, machine).await {
        Err(StepError::Fail { error, .. }) => {
            warn!(error, "the private identity does not come back into the bot's machine");
            step.note(&error);
            Ok(())
        }
        result => result,
    }
}

async fn give(step: &mut Step<'_>, machine: &BotMachine) -> Result<(), StepError> {
    let Some(secrets) = kept(step).await? else {
        return Err(StepError::fail("M_UNKNOWN", "the bot has no identity"));
    };
    // The machine takes the private identity only if it has seen the public one.
    let (id, _) = machine.query_keys(std::slice::from_ref(&step.bot.user_id));
    let answer = guard::ask(step).await?;
    machine.mark_sent(&id, &answer).await?;
    machine.restore_identity(&secrets).await?;
    warn!(user_id = %step.bot.user_id, "the private identity is back in the bot's machine");
    Ok(())
}

async fn kept(step: &mut Step<'_>) -> Result<Option<IdentitySecrets>, StepError> {
    let mut conn = step.connection().await?;
    let sealer = step.context.store.sealer();
    Ok(bots::identity_secrets(&mut conn, sealer, step.bot.id).await?)
}

/// Makes certain that the kept copy is whole and `public`'s, before anything else that holds the private
/// identity is given up. If it is not, the machine's takes its place, where the machine `opens`.
pub(super) async fn secure(
    step: &mut Step<'_>,
    public: &PublicIdentity,
    opens: bool,
) -> Result<(), StepError> {
    match kept(step).await {
        Ok(Some(kept)) if crypto::is_identity_of(&kept, public) => return Ok(()),
        Ok(_) => warn!("the private identity that is kept of the bot is not its own"),
        // A seal that does not open.
        Err(StepError::Fail { error, .. }) => {
            warn!(error, "the private identity that is kept of the bot is damaged");
        }
        Err(error) => return Err(error),
    }
    let copy = if opens {
        step.machine().await?.identity_secrets().await.map_err(StepError::from)
    } else {
        Err(StepError::fail("M_UNKNOWN", "its machine does not open"))
    };
    match copy {
        Ok(copy) if crypto::is_identity_of(&copy, public) => {
            let mut tx = step.begin().await?;
            let sealer = step.context.store.sealer();
            bots::mend_identity(&mut tx, sealer, step.bot.id, public, &copy).await?;
            tx.commit().await.map_err(StoreError::from)?;
            warn!(user_id = %step.bot.user_id, "the kept identity was mended from the machine's copy");
            return Ok(());
        }
        Ok(_) => warn!("the private identity in the bot's machine is not its own"),
        Err(StepError::LeaseLost) => return Err(StepError::LeaseLost),
        Err(error) => warn!(error = chain(&error), "the machine has no copy of the identity"),
    }
    Err(StepError::fail(
        "M_UNKNOWN",
        "the private identity in `bot_identities` is damaged, and the bot's machine has no other copy: \
         nothing was changed; bring this row back from a backup of the database",
    ))
}
