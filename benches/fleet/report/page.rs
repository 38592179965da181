//! The page as Markdown.

use std::fmt::Write as _;

use super::figures::Row;
use crate::results::{Results, short};

const BEGIN: &str = "<!-- written by hand: kept by scripts/bench -->";
const END: &str = "<!-- end of what is written by hand -->";

/// Figures of the table of growth, with their units.
const GROWTH: &[(&str, &str)] = &[
    ("messages_per_s", "answers/s"),
    ("cpu_ms", "CPU ms per answer"),
    ("p50_ms", "p50 ms"),
    ("p99_ms", "p99 ms"),
    ("idle_rss_mib", "MiB, idle"),
    ("rss_mib", "MiB, busy"),
    ("kib_per_bot", "KiB on disk per bot"),
];

pub fn render(results: &Results, rows: &[Row], old: &str, picture: &str) -> String {
    let mut page = String::from(
        "# Performance\n\n\
         One command repeats all of this, and writes this page and the picture:\n\n\
         ```sh\nscripts/bench            # about an hour; --quick: whether it works, in minutes\n```\n\n\
         Figures of different machines, and of different runs on a shared one, do not compare. So\n\
         everything here is measured side by side in one run: greenshield's real binary on a PostgreSQL\n\
         that is durable (`fsync` and `synchronous_commit` on), and the **ceiling**: the same protocol\n\
         with matrix-sdk-crypto in memory behind HTTP, which stores nothing and forgets all when it\n\
         ends. Both are driven by the same program (`benches/fleet`), which plays the homeserver and the\n\
         humans on the same processors, with real keys and real ciphertexts. An answer counts once, in\n\
         its room, for the message that it relates to; of each measurement fifty are decrypted\n\
         afterwards. The contestants take turns; where a figure was measured several times, this is the\n\
         median. Processor time is that of the process and of all of PostgreSQL's.\n\n",
    );
    for (name, value) in &results.machine {
        let _ = writeln!(page, "- {name}: {value}");
    }
    page.push_str("\n| figure | greenshield | ceiling | ratio | target | |\n");
    page.push_str("| --- | ---: | ---: | ---: | --- | --- |\n");
    for row in rows {
        let Row { figure, greenshield, ceiling, ratio, target, verdict } = row;
        let _ = writeln!(
            page,
            "| {figure} | {greenshield} | {ceiling} | {ratio} | {target} | {verdict} |"
        );
    }
    growth(&mut page, results, picture);
    page.push_str("\n## What stands in the way\n\n");
    page.push_str(BEGIN);
    page.push_str(&by_hand(old));
    page.push_str(END);
    page.push('\n');
    page
}

fn growth(page: &mut String, results: &Results, picture: &str) {
    let records: Vec<_> =
        results.records.iter().filter(|record| record.scenario == "sizes").collect();
    if records.is_empty() {
        return;
    }
    let _ = write!(
        page,
        "\n## Growth\n\nTen bots talk (one, in a fleet of one), and all the others are there.\n\n\
         ![cost against fleet size]({picture})\n\n| bots | |"
    );
    for (_, says) in GROWTH {
        let _ = write!(page, " {says} |");
    }
    page.push_str("\n| ---: | --- |");
    page.push_str(&" ---: |".repeat(GROWTH.len()));
    page.push('\n');
    for record in records {
        let _ = write!(page, "| {} | {} |", record.bots, record.contestant);
        for (name, _) in GROWTH {
            let value = record.figures.get(*name).filter(|value| **value > 0.0);
            let _ = write!(page, " {} |", value.map_or_else(|| "–".to_owned(), |v| short(*v)));
        }
        page.push('\n');
    }
}

/// What stands between the markers of the page as it was.
fn by_hand(old: &str) -> String {
    let kept = old.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
    kept.map_or_else(|| "\n".to_owned(), |(text, _)| text.to_owned())
}
