//! `scripts/demo`: a bot comes to be and turns green, before your eyes.
//!
//! A homeserver, greenshield, and one human with a real client. One `POST` makes a bot; then come the
//! three tiers, each told when the human's client sees it. The parts are those of the tests.

#![allow(
    clippy::pedantic,
    clippy::disallowed_methods,
    clippy::excessive_nesting,
    reason = "it shares the scenes and the support of the tests"
)]

mod telling;
mod walk;

#[path = "../e2e/scene.rs"]
#[expect(dead_code, reason = "the demo plays one scene, and the tests many")]
mod scene;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use self::{
    support::{human::Engine, process::Guarded, world::World},
    telling::Telling,
};

/// Shows greenshield at work with a homeserver, a database and a human of its own.
#[derive(Debug, Parser)]
#[command(
    name = "scripts/demo",
    after_help = "Exit codes: 0 all was well, 1 it was not, 130 stopped."
)]
struct Arguments {
    /// Ends after the walk instead of staying up: exits with 0 if all was well.
    #[arg(long)]
    check: bool,
    /// The human's client: Element Web's engine (js) or Element X's (rust).
    #[arg(long, value_enum, default_value = "js")]
    engine: EngineName,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum EngineName {
    Js,
    Rust,
}

impl EngineName {
    const fn engine(self) -> Engine {
        match self {
            Self::Js => Engine::Js,
            Self::Rust => Engine::Rust,
        }
    }

    const fn told(self) -> &'static str {
        match self {
            Self::Js => "matrix-js-sdk, the engine of Element Web",
            Self::Rust => "matrix-rust-sdk, the engine of Element X",
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let telling = Telling::new();
    // Whatever runs is dropped when the other branch wins, and takes its programs along.
    let result = tokio::select! {
        result = demo(&arguments, &telling) => result,
        stopped = told_to_stop() => {
            telling.line("");
            telling.line("stopped; everything is removed");
            stopped.map(|()| ExitCode::from(130))
        }
    };
    result.unwrap_or_else(|error| {
        telling.failure(&error);
        ExitCode::FAILURE
    })
}

async fn told_to_stop() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
        _ = hang_up.recv() => {}
    }
    Ok(())
}

async fn demo(arguments: &Arguments, telling: &Telling) -> Result<ExitCode> {
    telling.title("greenshield: the demo", arguments.engine.told());
    let world = walk::raise(telling).await?;
    let walked = walk::walk(&world, arguments.engine.engine(), telling).await;
    let (scene, account) = walked.map_err(|error| error.context(logs(&world)))?;
    if !arguments.check {
        walk::invite_the_reader(&scene, &account, telling).await?;
        // Until a signal ends us.
        std::future::pending::<()>().await;
    }
    scene.human.stop().await.context("closing the human's client")?;
    telling.verdict("all three tiers are true");
    Ok(ExitCode::SUCCESS)
}

/// What the programs said last: where to look when something is not well.
fn logs(world: &World) -> String {
    let synapse = world.synapse.process().map(Guarded::log_tail);
    let tails: Vec<_> = [synapse, world.greenshield.log_tail()].into_iter().flatten().collect();
    tails.join("\n")
}
