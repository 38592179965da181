//! Metrics, through the `metrics` facade, in Prometheus' text form.

use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;

/// Upper bounds of the buckets of everything named `..._seconds`.
const SECONDS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Why metrics could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be recorded")]
pub struct MetricsError(#[from] BuildError);

/// What was recorded so far; cheap to clone.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    /// Records the whole process' metrics from now on.
    ///
    /// # Errors
    ///
    /// If another recorder was installed before.
    pub fn install() -> Result<Self, MetricsError> {
        let handle = builder()?.install_recorder()?;
        Ok(Self { handle })
    }

    /// A page without a recorder behind it, for tests: several may exist.
    ///
    /// # Errors
    ///
    /// Never in practice.
    pub fn detached() -> Result<Self, MetricsError> {
        Ok(Self { handle: builder()?.build_recorder().handle() })
    }

    /// Everything recorded, in Prometheus' text form.
    #[must_use]
    pub fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds new samples in every few seconds until `stop`, so that memory stays bounded when nobody
    /// asks for the page.
    pub async fn upkeep(self, stop: CancellationToken) {
        let mut timer = tokio::time::interval(Duration::from_secs(5));
        while stop.run_until_cancelled(timer.tick()).await.is_some() {
            self.handle.run_upkeep();
        }
    }
}

/// A number of things, as gauges take it.
#[must_use]
pub fn count(things: usize) -> f64 {
    f64::from(u32::try_from(things).unwrap_or(u32::MAX))
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_detached_page_is_empty() {
        assert_eq!(Metrics::detached().expect("builds").render(), "");
    }
}
