//! What we tell of ourselves: log lines and metrics. Neither ever carries a message, a key or a token.

mod logs;
mod metrics;

pub use self::{
    logs::{Format, LogError, init},
    metrics::{Metrics, MetricsError},
};
