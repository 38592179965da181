//! What we tell of ourselves: log lines and metrics. Neither ever carries a message, a key or a token.

mod chain;
mod logs;
mod metrics;
mod panics;

pub use self::{
    chain::chain,
    logs::{Format, LogError, init},
    metrics::{Metrics, MetricsError, count},
    panics::tell_panics,
};
