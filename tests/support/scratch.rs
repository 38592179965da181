//! A directory that goes away with the test process, however that ends.
//!
//! `tempfile` removes a directory on drop, and a killed process or a `static` drops nothing. So a
//! small shell sits beside it, and removes it when our end of its standard input closes.
//! `GREENSHIELD_TEST_KEEP=1` keeps the directories, to read the logs in peace.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

/// Programs of this directory are killed by the same event, and may write for a moment longer:
/// hence the second look.
const JANITOR: &str = r#"
trap '' HUP INT TERM
while read -r _; do :; done
for attempt in 1 2 3 4 5; do rm -rf "$1" 2>/dev/null && break; sleep 0.2; done
sleep 1; rm -rf "$1"
"#;

pub struct Scratch {
    path: PathBuf,
    /// Ends when its standard input closes, which dropping it does.
    _janitor: Option<Child>,
}

impl Scratch {
    pub fn new(name: &str) -> Result<Self> {
        let path =
            tempfile::Builder::new().prefix(&format!("greenshield-{name}-")).tempdir()?.keep();
        if env::var_os("GREENSHIELD_TEST_KEEP").is_some() {
            eprintln!("keeping {}", path.display());
            return Ok(Self { path, _janitor: None });
        }
        let janitor = Command::new("bash")
            .args(["-c", JANITOR, "janitor"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting bash")?;
        Ok(Self { path, _janitor: Some(janitor) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}
