//! Time as a parameter: whoever needs to know the time is given a [`Clock`].

use std::sync::{Arc, Mutex, PoisonError};

use chrono::{DateTime, Duration, Utc};

/// Tells the time: the system's, or one that a test moves by hand. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    fixed: Option<Arc<Mutex<DateTime<Utc>>>>,
}

impl Clock {
    /// The system's clock.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// A clock that stands at `start` until [`Clock::advance`] moves it.
    #[must_use]
    pub fn fixed(start: DateTime<Utc>) -> Self {
        Self { fixed: Some(Arc::new(Mutex::new(start))) }
    }

    /// The time now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one rightful caller")]
    pub fn now(&self) -> DateTime<Utc> {
        match &self.fixed {
            Some(time) => *time.lock().unwrap_or_else(PoisonError::into_inner),
            None => Utc::now(),
        }
    }

    /// Moves a fixed clock; the system's clock cannot be moved and is left alone.
    pub fn advance(&self, by: Duration) {
        if let Some(time) = &self.fixed {
            *time.lock().unwrap_or_else(PoisonError::into_inner) += by;
        }
    }
}
