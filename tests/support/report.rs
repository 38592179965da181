//! Storms: tests that break things again and again, small in the ordinary suite, and as large as
//! `scripts/reliability` wants them, which makes the table of docs/RELIABILITY.md of what they report.
//!
//! ```text
//! GREENSHIELD_STORM_MINUTES        how long all storms together may take; unset in the suite
//! GREENSHIELD_STORM_SEED           what random choices come from; unset: a new one, which is printed
//! GREENSHIELD_RELIABILITY_REPORT   the file that gets one line of JSON per row
//! ```

use std::{env, fs::OpenOptions, io::Write as _, time::Duration};

use serde_json::json;

use super::random;

/// Notes that `what` was tried so many `times`, and how many things were `lost` by it. Rows of the
/// same area and text are added up; `note` says, in a sentence, what was looked at afterwards.
///
/// To be called at the end of a storm: one that fails has no row.
#[expect(clippy::print_stdout, reason = "whoever runs the storms reads it")]
pub fn row(area: &str, what: &str, times: u64, lost: u64, note: &str) {
    println!("{area}: {what}: {times} times, {lost} lost. {note}");
    let Some(path) = env::var_os("GREENSHIELD_RELIABILITY_REPORT") else { return };
    let row = json!({ "area": area, "what": what, "times": times, "lost": lost, "note": note });
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // In one piece: several tests write at once.
    file.write_all(format!("{row}\n").as_bytes()).expect("the report can be written");
}

/// How long this storm may go on: `small` in the suite, else its `share` of the whole.
pub fn budget(share: f64, small: Duration) -> Duration {
    match number("GREENSHIELD_STORM_MINUTES") {
        Some(minutes) => Duration::from_secs_f64(minutes * 60.0 * share),
        None => small,
    }
}

/// Whether this is a run of `scripts/reliability`.
pub fn is_large() -> bool {
    number("GREENSHIELD_STORM_MINUTES").is_some()
}

/// Where the random choices of the storm `name` come from; printed, so that it can be repeated.
#[expect(clippy::print_stdout, reason = "whoever runs the storms reads it")]
pub fn seed(name: &str) -> u64 {
    let seed = number("GREENSHIELD_STORM_SEED")
        .map_or_else(|| u64::from(u32::from_le_bytes(random::bytes())), |seed| seed as u64);
    println!("{name}: repeat it with GREENSHIELD_STORM_SEED={seed}");
    seed
}

fn number(variable: &str) -> Option<f64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}
