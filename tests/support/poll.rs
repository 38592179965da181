//! Waiting for a state: ask again until the answer is there, and give up at a deadline.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long one waits between two questions.
const INTERVAL: Duration = Duration::from_millis(50);

/// One wait, for a loop that asks by itself:
///
/// ```ignore
/// let mut wait = Wait::new("the answer", patience);
/// loop {
///     if let Some(answer) = ask().await? {
///         return Ok(answer);
///     }
///     wait.again().await?;
/// }
/// ```
pub struct Wait {
    what: String,
    patience: Duration,
    started: Instant,
}

impl Wait {
    /// `what` completes the sentence "waited 30s for ...".
    pub fn new(what: impl Into<String>, patience: Duration) -> Self {
        Self { what: what.into(), patience, started: Instant::now() }
    }

    /// Returns when it is time to ask again, and fails at the deadline.
    pub async fn again(&mut self) -> Result<()> {
        if self.started.elapsed() >= self.patience {
            bail!("waited {:?} for {}", self.patience, self.what);
        }
        tokio::time::sleep(INTERVAL).await;
        Ok(())
    }
}

/// Asks `question` until it answers `Some`: for tests. An error ends the wait at once.
///
/// The future is not `Send` for every closure; where that matters, use [`Wait`].
pub async fn until<T>(
    what: &str,
    patience: Duration,
    mut question: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let mut wait = Wait::new(what, patience);
    loop {
        if let Some(answer) = question().await? {
            return Ok(answer);
        }
        wait.again().await?;
    }
}
