//! The figures of the page's table, each with its target.

use std::path::Path;

use serde_json::Value;

use crate::results::{Results, short};

/// One line of the table.
pub struct Row {
    pub figure: String,
    pub greenshield: String,
    pub ceiling: String,
    pub ratio: String,
    pub target: &'static str,
    pub verdict: String,
}

/// What is aimed at.
enum Target {
    /// At least this part of the ceiling's.
    Part(f64),
    /// At most this.
    Most(f64),
    /// At most so many times the ceiling's.
    Times(f64),
    /// Nothing: told for its own sake.
    None,
}

struct Want {
    scenario: &'static str,
    bots: &'static [usize],
    name: &'static str,
    says: &'static str,
    unit: &'static str,
    target: Target,
    target_says: &'static str,
}

const TALK: &[usize] = &[10, 100, 1000];

const WANTS: &[Want] = &[
    Want {
        scenario: "warm",
        bots: TALK,
        name: "messages_per_s",
        says: "`!ping` answered, warm",
        unit: "/s",
        target: Target::Part(0.5),
        target_says: "≥ 0.5 × ceiling",
    },
    Want {
        scenario: "warm",
        bots: TALK,
        name: "cpu_ms",
        says: "processor time per answer, Postgres included",
        unit: " ms",
        target: Target::Most(1.0),
        target_says: "≤ 1.0 ms",
    },
    Want {
        scenario: "warm",
        bots: TALK,
        name: "commits",
        says: "commits per answer, warm",
        unit: "",
        target: Target::Most(0.2),
        target_says: "< 0.2",
    },
    Want {
        scenario: "warm",
        bots: TALK,
        name: "statements",
        says: "statements per answer, warm",
        unit: "",
        target: Target::None,
        target_says: "",
    },
    Want {
        scenario: "paced",
        bots: TALK,
        name: "p50_ms",
        says: "PUT to answer at 50/s, p50",
        unit: " ms",
        target: Target::Most(5.0),
        target_says: "≤ 5 ms",
    },
    Want {
        scenario: "paced",
        bots: TALK,
        name: "p99_ms",
        says: "PUT to answer at 50/s, p99",
        unit: " ms",
        target: Target::Most(15.0),
        target_says: "≤ 15 ms",
    },
    Want {
        scenario: "paced",
        bots: TALK,
        name: "logged_p50_ms",
        says: "PUT to logged at 50/s, p50",
        unit: " ms",
        target: Target::None,
        target_says: "",
    },
    Want {
        scenario: "paced",
        bots: TALK,
        name: "logged_p99_ms",
        says: "PUT to logged at 50/s, p99",
        unit: " ms",
        target: Target::None,
        target_says: "",
    },
    Want {
        scenario: "cold",
        bots: TALK,
        name: "messages_per_s",
        says: "first contact: key, message, answer",
        unit: "/s",
        target: Target::Part(0.5),
        target_says: "≥ 0.5 × ceiling",
    },
    Want {
        scenario: "burst",
        bots: &[100],
        name: "acknowledged_ms",
        says: "burst for bots not in memory: the `200`",
        unit: " ms",
        target: Target::Most(50.0),
        target_says: "milliseconds",
    },
    Want {
        scenario: "burst",
        bots: &[100],
        name: "last_answer_ms",
        says: "burst for bots not in memory: the last answer",
        unit: " ms",
        target: Target::Most(1000.0),
        target_says: "< 1,000 ms",
    },
    Want {
        scenario: "idle",
        bots: &[1000, 10_000],
        name: "idle_rss_mib",
        says: "memory after start, idle",
        unit: " MiB",
        target: Target::Most(100.0),
        target_says: "≤ 100 MiB",
    },
    Want {
        scenario: "idle",
        bots: &[1000, 10_000],
        name: "ready_ms",
        says: "from start to ready",
        unit: " ms",
        target: Target::Most(2000.0),
        target_says: "≤ 2,000 ms",
    },
    Want {
        scenario: "idle",
        bots: &[1000, 10_000],
        name: "calls_at_start",
        says: "requests in the first 10 s after start",
        unit: "",
        target: Target::Most(50.0),
        target_says: "≤ 5 a second, however many bots",
    },
    Want {
        scenario: "idle",
        bots: &[1000, 10_000],
        name: "onboarded_per_s",
        says: "bots signed up",
        unit: "/s",
        target: Target::None,
        target_says: "",
    },
    Want {
        scenario: "idle",
        bots: &[1000, 10_000],
        name: "kib_per_bot",
        says: "database per bot",
        unit: " KiB",
        target: Target::None,
        target_says: "",
    },
    Want {
        scenario: "device_changes",
        bots: &[1000],
        name: "users_queried",
        says: "users looked up when 1,000 humans change devices",
        unit: "",
        target: Target::Most(1100.0),
        target_says: "≤ 1,100",
    },
    Want {
        scenario: "mixed",
        bots: &[200],
        name: "messages_per_s",
        says: "all at once: warm, cold, new keys, verifications",
        unit: "/s",
        target: Target::None,
        target_says: "no failure",
    },
    Want {
        scenario: "mixed",
        bots: &[200],
        name: "verifications_per_s",
        says: "verifications meanwhile",
        unit: "/s",
        target: Target::None,
        target_says: "no failure",
    },
];

/// The microbenchmarks that the issue of all this sets a target for: ours, and the one in memory.
const HOT: &[(&str, &str)] = &[
    ("megolm_decrypt", "one core: a message decrypted"),
    ("megolm_encrypt", "one core: a message encrypted"),
    ("room_key_alone", "one core: a room key received, alone"),
    ("room_key_batch", "one core: a room key received, in a batch of 50"),
];

pub fn rows(results: &Results, hot: Option<&Path>) -> Vec<Row> {
    let mut rows: Vec<Row> = WANTS
        .iter()
        .flat_map(|want| want.bots.iter().filter_map(|bots| want.row(results, *bots)))
        .collect();
    let hot = hot.into_iter().flat_map(|directory| {
        HOT.iter().filter_map(move |(name, says)| {
            let per = if *name == "room_key_batch" { 50.0 } else { 1.0 };
            let ours = estimate(directory, name, "postgres")? / per;
            let memory = estimate(directory, name, "memory")? / per;
            Some(row(
                (*says).to_owned(),
                " µs",
                Some(ours),
                Some(memory),
                &Target::Times(3.0),
                "≤ 3 ×",
            ))
        })
    });
    rows.extend(hot);
    rows
}

impl Want {
    fn row(&self, results: &Results, bots: usize) -> Option<Row> {
        let of = |contestant| results.figure(self.scenario, contestant, bots, self.name);
        let ours = of("greenshield")?;
        let plural = if bots == 1 { "" } else { "s" };
        let figure = format!("{} ({bots} bot{plural})", self.says);
        let (target, says) = (&self.target, self.target_says);
        Some(row(figure, self.unit, Some(ours), of("ceiling"), target, says))
    }
}

fn row(
    figure: String,
    unit: &str,
    ours: Option<f64>,
    ceiling: Option<f64>,
    target: &Target,
    target_says: &'static str,
) -> Row {
    let text = |value: Option<f64>| {
        value.map_or_else(|| "–".to_owned(), |value| format!("{}{unit}", short(value)))
    };
    let ratio = ours.zip(ceiling).filter(|(_, ceiling)| *ceiling > 0.0).map(|(a, b)| a / b);
    // How many times better than the target; below 1 it is missed.
    let margin = match (target, ours, ratio) {
        (Target::Part(part), _, Some(ratio)) => Some(ratio / part),
        (Target::Times(times), _, Some(ratio)) => Some(times / ratio),
        (Target::Most(most), Some(ours), _) => Some(most / ours.max(f64::MIN_POSITIVE)),
        _ => None,
    };
    let verdict = match margin {
        None => String::new(),
        Some(margin) if margin >= 1.0 => "met".to_owned(),
        Some(margin) => format!("missed by a factor of {:.1}", 1.0 / margin),
    };
    Row {
        figure,
        greenshield: text(ours),
        ceiling: text(ceiling),
        ratio: ratio.map_or_else(|| "–".to_owned(), |ratio| format!("{ratio:.2}")),
        target: target_says,
        verdict,
    }
}

/// Criterion's median of a benchmark, in microseconds.
fn estimate(directory: &Path, group: &str, name: &str) -> Option<f64> {
    let file = directory.join(group).join(name).join("new/estimates.json");
    let estimates: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    Some(estimates["median"]["point_estimate"].as_f64()? / 1000.0)
}
