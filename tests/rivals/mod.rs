//! Several greenshields on one database, homeservers that go away, bots that are sick, and backups
//! that are restored. Small here; `scripts/reliability` gives them more time.

mod absence;
mod backup;
mod calls;
mod freeze;
mod outages;
mod pair;
mod partition;
mod patience;
mod processes;
mod sick;
mod watch;

use anyhow::Result;

use crate::{fast::scene::PATIENCE, fast::scene::Scene, support::poll};

/// Until nothing is under way but what waits for its time: a look for what was lost, and events whose
/// keys are gone.
async fn quiet(scene: &Scene) -> Result<()> {
    poll::until("nothing to be left to do", PATIENCE, async || {
        let left: i64 = sqlx::query_scalar(
            "SELECT (SELECT COUNT(*) FROM inbox WHERE waiting_for IS NULL AND kind <> 'reconcile')
                + (SELECT COUNT(*) FROM outbox WHERE state = 'queued')",
        )
        .fetch_one(&scene.sql)
        .await?;
        Ok((scene.fake.is_pushed() && left == 0).then_some(()))
    })
    .await
}
