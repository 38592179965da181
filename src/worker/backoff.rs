//! How long to wait before trying again: doubling, bounded, and never all at the same instant.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::StepError;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(300);
/// For what waiting does not cure: often enough to notice that somebody has cured it.
const AFTER_FAIL: Duration = Duration::from_secs(600);

/// When to try again after `failures` failures in a row, the last of them `error`. `salt` spreads
/// those that failed together.
pub(super) fn next_attempt(
    error: &StepError,
    failures: i32,
    salt: i64,
    now: DateTime<Utc>,
) -> DateTime<Utc> {
    let wait = match error {
        StepError::Fail { .. } => AFTER_FAIL,
        _ => error.retry_after().unwrap_or_else(|| doubled(failures)),
    };
    // Up to a quarter more, by a multiplicative hash: the same bot always waits the same.
    let spread = wait / 4 * (salt.unsigned_abs().wrapping_mul(2_654_435_761) % 1024) as u32 / 1024;
    now + wait + spread
}

/// Waits for a parked event's key: eager first, then patient.
pub(super) fn next_look(attempts: i32) -> Duration {
    match attempts {
        ..=0 => Duration::from_secs(5),
        1 => Duration::from_secs(30),
        2 => Duration::from_secs(300),
        _ => Duration::from_secs(3600),
    }
}

fn doubled(failures: i32) -> Duration {
    let exponent = failures.saturating_sub(1).clamp(0, 12).unsigned_abs();
    (FIRST * 2_u32.pow(exponent)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_and_is_bounded() {
        assert_eq!(doubled(0), FIRST);
        assert_eq!(doubled(1), FIRST);
        assert_eq!(doubled(2), FIRST * 2);
        assert_eq!(doubled(i32::MAX), LONGEST);
    }

    #[test]
    fn the_homeservers_wish_comes_first_and_the_spread_only_adds() {
        let wish = Duration::from_secs(7);
        let error = StepError::Retry {
            source: "slow down".into(),
            after: Some(wish),
            machine_is_whole: true,
        };
        let now = DateTime::UNIX_EPOCH;
        for salt in 0..100 {
            let next = next_attempt(&error, 9, salt, now);
            assert!(next >= now + wish && next <= now + wish + wish / 4, "{next}");
        }
    }
}
