//! `greenshield restored`

use clap::Args;

use super::{error::CliError, migrate, output};
use crate::{
    clock::Clock,
    config::Config,
    secret::{self, Alphabet},
    store::{StoreError, leases, place, repairs},
};

pub(super) const EXPLANATION: &str = "\
A backup is an older state: bots that go on from it use keys a second time that they have used since,
and cannot read what was sent to newer ones. So after this command, as soon as `greenshield serve`
runs, every bot gets a new device under the same identity: nobody has to verify again. `serve` refuses
a dump that was restored until this was run; after restoring in any other way (a snapshot of the disk,
a recovery to a point in time), run it, too.

With --nothing-lost, for a database that was only moved, or dumped after the last greenshield had
stopped, bots keep their devices and only start new room keys.

Examples:
  pg_restore --dbname greenshield greenshield.dump && greenshield restored && greenshield serve
  greenshield restored --nothing-lost";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// No greenshield has run since this state of the database.
    #[arg(long)]
    nothing_lost: bool,
}

pub(super) async fn run(config: &Config, arguments: &Arguments) -> Result<(), CliError> {
    let store = migrate::store(config).await?;
    let now = Clock::system().now();
    let mut tx = store.begin().await?;
    if leases::alive(&mut tx).await? > 0 {
        return Err(CliError::Usage(
            "a `greenshield serve` still runs on this database, or on the one that it is a copy of: \
             stop it first, for good"
                .to_owned(),
        ));
    }
    repairs::forget_room_keys(&mut tx).await?;
    let mut renewed = Vec::new();
    if !arguments.nothing_lost {
        for bot in repairs::living(&mut tx).await? {
            let device = secret::random_string(Alphabet::Upper, 10)
                .map_err(|error| CliError::Other(error.into()))?;
            renewed.push((bot, device));
        }
        repairs::renew(&mut tx, &renewed, now).await?;
        repairs::forget_unfinished_sessions(&mut tx).await?;
    }
    place::note(&mut tx, now).await?;
    tx.commit().await.map_err(StoreError::from)?;
    output::line(&if arguments.nothing_lost {
        "Noted. Bots keep their devices, and start new room keys.".to_owned()
    } else {
        format!(
            "Noted. Bots that get a new device, once `greenshield serve` runs: {}. `greenshield bots \
             list` shows how far they are.",
            renewed.len()
        )
    });
    Ok(())
}
