//! How often one address may try.

use std::{net::IpAddr, num::NonZeroU32};

use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
};

use crate::web::{ApiError, ClientAddr};

/// Addresses that are remembered before those with nothing against them are forgotten.
const REMEMBERED: usize = 10_000;

/// Counts attempts per client address.
pub(super) struct Attempts {
    limiter: DefaultKeyedRateLimiter<IpAddr>,
    clock: DefaultClock,
}

impl Attempts {
    pub(super) fn new(per_minute: u32) -> Self {
        let per_minute = NonZeroU32::new(per_minute).unwrap_or(NonZeroU32::MIN);
        Self {
            limiter: RateLimiter::keyed(Quota::per_minute(per_minute)),
            clock: DefaultClock::default(),
        }
    }

    /// Counts one more attempt.
    ///
    /// # Errors
    ///
    /// `M_LIMIT_EXCEEDED` if it is one too many.
    pub(super) fn count(&self, client: ClientAddr) -> Result<(), ApiError> {
        if self.limiter.len() > REMEMBERED {
            self.limiter.retain_recent();
        }
        self.limiter
            .check_key(&client.0)
            .map_err(|not_yet| ApiError::limit_exceeded(not_yet.wait_time_from(self.clock.now())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_own_attempts() {
        let attempts = Attempts::new(2);
        let [one, other] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(|a| ClientAddr(IpAddr::from(a)));
        assert!(attempts.count(one).is_ok() && attempts.count(one).is_ok());
        let refused = attempts.count(one).expect_err("a third");
        assert_eq!(refused.errcode(), "M_LIMIT_EXCEEDED");
        assert!(attempts.count(other).is_ok());
    }
}
