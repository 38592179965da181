//! What a run ran on.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::Result;

use crate::usage::Cluster;

pub async fn describe(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (processors, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let count = processors.lines().filter(|line| line.starts_with("processor")).count();
    let kib: f64 = field(&memory, "MemTotal").trim_end_matches(" kB").parse().unwrap_or_default();
    let command = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output.map_or_else(
            |_| String::new(),
            |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        )
    };
    let entries = [
        (
            "processors",
            format!("{count} × {}, shared with the load program", field(&processors, "model name")),
        ),
        ("memory", format!("{:.0} GiB", kib / 1_048_576.0)),
        ("system", format!("Linux {}", read("/proc/sys/kernel/osrelease").trim())),
        (
            "database",
            format!("PostgreSQL {}, {}", cluster.version().await?, cluster.durability().await?),
        ),
        ("greenshield", command("git", &["describe", "--always", "--dirty", "--abbrev=10"])),
        ("date", command("date", &["--utc", "--iso-8601=date"])),
    ];
    Ok(entries.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}
