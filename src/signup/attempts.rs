//! How often one address may try, and one code be tried.

use std::{
    hash::Hash,
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use governor::{
    DefaultKeyedRateLimiter, Quota, RateLimiter,
    clock::{Clock as _, DefaultClock},
};

use crate::{
    model::CodeId,
    web::{ApiError, ClientAddr},
};

/// How many are remembered each by itself.
const REMEMBERED: usize = 10_000;
/// Forgetting those that have nothing against them looks at all of them: not more often than this.
const FORGET_EVERY: Duration = Duration::from_secs(1);

/// Counts attempts.
pub(super) struct Attempts {
    /// To sign up, by client address.
    addresses: Counted<IpAddr>,
    /// To show a token, by client address.
    tokens: Counted<IpAddr>,
    /// By code, of those that exist: whoever shares one out is not the only one who tries it.
    codes: Counted<CodeId>,
}

impl Attempts {
    pub(super) fn new(per_minute: u32) -> Self {
        let crowd = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Self {
            addresses: Counted::new(per_minute, crowd),
            tokens: Counted::new(per_minute, crowd),
            codes: Counted::new(per_minute, CodeId(0)),
        }
    }

    /// Counts one more signup.
    ///
    /// # Errors
    ///
    /// `M_LIMIT_EXCEEDED` if it is one too many.
    pub(super) fn sign_up(&self, client: ClientAddr) -> Result<(), ApiError> {
        self.addresses.count(client.0)
    }

    /// Counts one more call with a token.
    ///
    /// # Errors
    ///
    /// `M_LIMIT_EXCEEDED` if it is one too many.
    pub(super) fn token(&self, client: ClientAddr) -> Result<(), ApiError> {
        self.tokens.count(client.0)
    }

    /// Counts one more use, or attempt at one, of a code that exists.
    ///
    /// # Errors
    ///
    /// `M_LIMIT_EXCEEDED` if it is one too many.
    pub(super) fn code(&self, code: CodeId) -> Result<(), ApiError> {
        self.codes.count(code)
    }
}

/// A limit per key, in bounded memory: while too many keys are remembered, new ones are counted
/// together, as one crowd.
struct Counted<K: Hash + Eq + Clone> {
    limiter: DefaultKeyedRateLimiter<K>,
    clock: DefaultClock,
    crowd: K,
    forgot: Mutex<Option<Instant>>,
}

impl<K: Hash + Eq + Clone> Counted<K> {
    fn new(per_minute: u32, crowd: K) -> Self {
        let per_minute = NonZeroU32::new(per_minute).unwrap_or(NonZeroU32::MIN);
        Self {
            limiter: RateLimiter::keyed(Quota::per_minute(per_minute)),
            clock: DefaultClock::default(),
            crowd,
            forgot: Mutex::new(None),
        }
    }

    fn count(&self, key: K) -> Result<(), ApiError> {
        let key = if self.is_full() { self.crowd.clone() } else { key };
        self.limiter
            .check_key(&key)
            .map_err(|not_yet| ApiError::limit_exceeded(not_yet.wait_time_from(self.clock.now())))
    }

    fn is_full(&self) -> bool {
        if self.limiter.len() < REMEMBERED {
            return false;
        }
        let mut forgot = self.forgot.lock().unwrap_or_else(PoisonError::into_inner);
        if forgot.is_none_or(|last| last.elapsed() >= FORGET_EVERY) {
            self.limiter.retain_recent();
            *forgot = Some(Instant::now());
        }
        self.limiter.len() >= REMEMBERED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: usize) -> ClientAddr {
        let n = u32::try_from(n).expect("a small number");
        ClientAddr(IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + n)))
    }

    #[test]
    fn each_address_and_each_code_has_its_own_attempts() {
        let attempts = Attempts::new(2);
        let (one, other) = (address(1), address(2));
        assert!(attempts.sign_up(one).is_ok() && attempts.sign_up(one).is_ok());
        let refused = attempts.sign_up(one).expect_err("a third");
        assert_eq!(refused.errcode(), "M_LIMIT_EXCEEDED");
        assert!(refused.again_after().is_some());
        assert!(attempts.sign_up(other).is_ok() && attempts.token(one).is_ok());

        assert!(attempts.code(CodeId(1)).is_ok() && attempts.code(CodeId(1)).is_ok());
        assert!(attempts.code(CodeId(1)).is_err() && attempts.code(CodeId(2)).is_ok());
    }

    #[test]
    fn a_flood_from_everywhere_is_counted_as_one_and_takes_no_more_memory() {
        let attempts = Attempts::new(1);
        let started = Instant::now();
        let (mut passed, mut sweeps, mut last) = (0, 0, None);
        for n in 0..2 * REMEMBERED {
            passed += usize::from(attempts.sign_up(address(n)).is_ok());
            let forgot = *attempts.addresses.forgot.lock().expect("whole");
            sweeps += u64::from(forgot != last);
            last = forgot;
        }
        assert!(attempts.addresses.limiter.len() <= REMEMBERED + 1);
        assert!((1..=started.elapsed().as_secs() + 1).contains(&sweeps), "{sweeps} sweeps");
        // Each of those remembered once, and the crowd once: all of this takes less than the minute after
        // which one of them may try again.
        assert_eq!(passed, REMEMBERED + 1);
    }
}
