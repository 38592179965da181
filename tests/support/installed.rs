//! Where `scripts/setup` and cargo put the programs that tests start.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

/// `target/harness`, whatever the target directory is called: the closest one above this program.
fn harness() -> Result<PathBuf> {
    let program = env::current_exe()?;
    program
        .ancestors()
        .map(|above| above.join("harness"))
        .find(|candidate| candidate.is_dir())
        .context("the test programs are not installed: run scripts/setup")
}

fn existing(path: PathBuf) -> Result<PathBuf> {
    ensure!(path.exists(), "{} is missing: run scripts/setup", path.display());
    Ok(path)
}

/// The Python of the virtual environment that holds Synapse.
pub fn synapse_python() -> Result<PathBuf> {
    existing(harness()?.join("synapse/bin/python"))
}

/// The directory that holds the JS human's `node_modules`.
pub fn human_js() -> Result<PathBuf> {
    existing(harness()?.join("human-js"))
}

/// The balancer of `docs/OPERATIONS.md`: Debian puts it where only root's `PATH` looks.
pub fn haproxy() -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut candidates = env::split_paths(&path).chain(["/usr/sbin".into()]);
    let found = candidates.find_map(|dir| Some(dir.join("haproxy")).filter(|file| file.exists()));
    found.context("haproxy is missing: run scripts/setup")
}

/// The binary under test: cargo names it to tests; an example finds it beside itself.
pub fn greenshield() -> Result<PathBuf> {
    let program = match (env::var_os("GREENSHIELD_BIN"), option_env!("CARGO_BIN_EXE_greenshield")) {
        (Some(named), _) => PathBuf::from(named),
        (None, Some(built)) => PathBuf::from(built),
        (None, None) => {
            let example = env::current_exe()?;
            let profile = example.ancestors().nth(2).unwrap_or(Path::new("."));
            profile.join("greenshield")
        }
    };
    ensure!(program.exists(), "{} is missing: run cargo build", program.display());
    Ok(program)
}
