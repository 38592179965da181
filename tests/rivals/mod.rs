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

use crate::{
    fast::scene::{PATIENCE, Scene},
    support::fake_homeserver::FakeHomeserver,
};

/// Until nothing is under way but what waits for its time: a look for what was lost, and events whose
/// keys are gone.
async fn quiet(scene: &Scene) -> Result<()> {
    let left =
        "SELECT (SELECT COUNT(*) FROM inbox WHERE waiting_for IS NULL AND kind <> 'reconcile')
            + (SELECT COUNT(*) FROM outbox WHERE state = 'queued')";
    scene.until_none("nothing to be left to do", PATIENCE, left, FakeHomeserver::all_pushed).await
}
