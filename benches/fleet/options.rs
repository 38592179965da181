//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::contestant::Kind;

/// Measures a fleet of greenshield's bots beside the ceiling: the same work with matrix-sdk-crypto in
/// memory behind HTTP, nothing stored.
///
/// Plays the homeserver and the humans, in this process; each contestant is a process of its own.
#[derive(Parser)]
#[command(
    name = "fleet",
    after_help = "Examples:
  scripts/with-postgres --durable cargo bench --bench fleet -- --quick
  scripts/with-postgres --durable cargo bench --bench fleet -- --only warm,paced --bots 10,100
  scripts/with-postgres --durable cargo bench --bench fleet -- --contestant greenshield --json out.json"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Subcommand)]
pub enum Command {
    /// Is the ceiling: for the program itself.
    #[command(hide = true)]
    Ceiling {
        /// The homeserver's address.
        homeserver: String,
        /// Where to listen.
        listen: String,
    },
    /// Writes the page and its plot from a run's results
    Report {
        /// What a run wrote with --json
        results: PathBuf,
        /// Criterion's directory
        #[arg(long)]
        hot: Option<PathBuf>,
        /// The page
        #[arg(long, default_value = "docs/PERFORMANCE.md")]
        page: PathBuf,
        /// The plot
        #[arg(long, default_value = "docs/performance.svg")]
        plot: PathBuf,
    },
}

#[derive(Args)]
pub struct Options {
    /// Only these scenarios
    #[arg(long, value_delimiter = ',')]
    only: Vec<Scenario>,
    /// Fleets of these sizes, instead of each scenario's own
    #[arg(long, value_delimiter = ',')]
    bots: Vec<usize>,
    /// Only this contestant
    #[arg(long)]
    contestant: Option<Kind>,
    /// Small fleets and short measurements: a minute in all
    #[arg(long)]
    pub quick: bool,
    /// How many messages are under way at once
    #[arg(long, default_value_t = 100)]
    pub outstanding: usize,
    /// How often bots talk for each measurement; the page takes the median
    #[arg(long, default_value_t = 1)]
    pub rounds: usize,
    /// Writes the results to this file, too
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// Cargo gives this to every benchmark
    #[arg(long, hide = true, global = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Scenario {
    /// The most messages a second, and what one costs
    Warm,
    /// Fifty messages a second: how long an answer takes
    Paced,
    /// First contact of humans and bots
    Cold,
    /// One transaction for a hundred bots that are not in memory
    Burst,
    /// Many bots that do nothing: start, memory, disk
    Idle,
    /// A thousand humans change devices
    DeviceChanges,
    /// Warm and cold, new keys and verifications, all at once
    Mixed,
    /// How figures grow with the fleet
    Sizes,
}

impl ValueEnum for Kind {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::BOTH
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(self.name().into())
    }
}

impl Options {
    pub fn wants(&self, scenario: Scenario) -> bool {
        self.only.is_empty() || self.only.contains(&scenario)
    }

    /// The sizes to measure: those asked for, or `usual`, or the smaller of them when it must be quick.
    pub fn sizes(&self, usual: &[usize]) -> Vec<usize> {
        match (self.bots.is_empty(), self.quick) {
            (false, _) => self.bots.clone(),
            (true, false) => usual.to_vec(),
            (true, true) => usual.iter().copied().filter(|bots| *bots <= 10).collect(),
        }
    }

    pub fn contestants(&self) -> Vec<Kind> {
        self.contestant.map_or_else(|| Kind::BOTH.to_vec(), |kind| vec![kind])
    }
}
