//! The load program: plays a homeserver and its humans for greenshield and for the ceiling, side by
//! side, and measures both. `--help` tells how to run it; `scripts/bench` does all of it.
//!
//! - [`homeserver`]: the homeserver, as cheap as can be; [`human`]: who talks to bots.
//! - [`contestant`]: greenshield's real binary, or this program as the [`ceiling`].
//! - [`scene`]: bots, rooms, and courses of messages; [`scenarios`]: what is measured.
//! - [`usage`]: what it cost; [`results`]: what came of it; [`report`]: the page with all of it.

#![expect(clippy::disallowed_methods, reason = "the rules of a service that lives, not of a bench")]

mod ceiling;
mod contestant;
mod homeserver;
mod human;
mod machine;
mod options;
mod report;
mod results;
mod scenarios;
mod scene;
mod usage;
mod verifying;

use std::sync::Arc;

use anyhow::{Result, ensure};
use clap::Parser as _;

use self::{
    options::{Cli, Command},
    results::Results,
    usage::Cluster,
};

#[tokio::main]
async fn main() -> Result<()> {
    let Cli { command, options } = Cli::parse();
    match command {
        Some(Command::Ceiling { homeserver, listen }) => {
            return ceiling::serve(homeserver, listen).await;
        }
        Some(Command::Report { results, hot, page, plot }) => {
            return report::write(&results, hot.as_deref(), &page, &plot);
        }
        None => {}
    }
    let cluster = Arc::new(Cluster::of_environment().await?);
    let durability = cluster.durability().await?;
    ensure!(
        durability == "fsync=on, synchronous_commit=on",
        "this database forgets ({durability}): use `scripts/with-postgres --durable`"
    );
    let machine = machine::describe(&cluster).await?;
    let mut results = Results { machine, records: Vec::new() };
    let run = scenarios::run(&options, &cluster, &mut results).await;
    if let Some(path) = &options.json {
        results.write(path)?;
    }
    run
}
