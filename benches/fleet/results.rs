//! Results: one record for each scenario, contestant and size of the fleet.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::Result;
use serde::{Deserialize, Serialize};

/// What was measured once.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Record {
    pub scenario: String,
    pub contestant: String,
    pub bots: usize,
    /// Figures by name; the name ends in the unit.
    pub figures: BTreeMap<String, f64>,
}

/// A whole run.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Results {
    /// What it ran on.
    pub machine: BTreeMap<String, String>,
    pub records: Vec<Record>,
}

impl Results {
    pub fn read(path: &Path) -> Result<Self> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        fs::write(path, serde_json::to_string_pretty(self)? + "\n")?;
        Ok(())
    }

    pub fn add(&mut self, record: Record) {
        let figures: Vec<String> = record
            .figures
            .iter()
            .map(|(name, value)| format!("{name} {}", short(*value)))
            .collect();
        eprintln!(
            "{:<15} {:<12} {:>6} bots  {}",
            record.scenario,
            record.contestant,
            record.bots,
            figures.join("  ")
        );
        self.records.push(record);
    }

    /// One figure: the median, where it was measured several times.
    pub fn figure(&self, scenario: &str, contestant: &str, bots: usize, name: &str) -> Option<f64> {
        let records = self.records.iter().filter(|record| {
            record.scenario == scenario && record.contestant == contestant && record.bots == bots
        });
        let mut all: Vec<f64> =
            records.filter_map(|record| record.figures.get(name).copied()).collect();
        all.sort_unstable_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }
}

impl Record {
    pub fn new(scenario: &str, contestant: &str, bots: usize) -> Self {
        Self {
            scenario: scenario.to_owned(),
            contestant: contestant.to_owned(),
            bots,
            figures: BTreeMap::new(),
        }
    }

    pub fn with(mut self, name: &str, value: f64) -> Self {
        self.figures.insert(name.to_owned(), value);
        self
    }
}

/// Three digits that matter.
pub fn short(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// A count as a figure.
#[expect(clippy::cast_precision_loss, reason = "no count here is near 2^52")]
pub fn number(count: usize) -> f64 {
    count as f64
}

/// The value below which `part` of the sorted durations lie.
pub fn percentile(sorted: &[Duration], part: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index between 0 and the length"
    )]
    let index = (number(sorted.len()) * part).ceil() as usize;
    sorted.get(index.saturating_sub(1)).copied().map_or(f64::NAN, millis)
}
