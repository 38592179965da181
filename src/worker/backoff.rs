//! How long to wait before trying again: doubling, bounded, and never all at the same instant.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::StepError;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(300);
/// For what waiting does not cure: often enough to notice that somebody has cured it.
const AFTER_FAIL: Duration = Duration::from_secs(600);

/// When to try again after `failures` failures in a row, the last of them `error`: later than the
/// homeserver asks for, if there have been many, and never at once. `salt` spreads those that failed
/// together.
pub(super) fn next_attempt(
    error: &StepError,
    failures: i32,
    salt: i64,
    now: DateTime<Utc>,
) -> DateTime<Utc> {
    let wait = match error {
        StepError::Fail { .. } => AFTER_FAIL,
        _ => doubled(failures).max(error.retry_after().unwrap_or_default()),
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
    fn no_wait_is_shorter_than_the_homeserver_asks_for_or_than_ours() {
        let now = DateTime::UNIX_EPOCH;
        let seconds = Duration::from_secs;
        for (asked, failures, wait) in [
            (seconds(7), 1, seconds(7)),
            (seconds(7), 9, seconds(128)),
            (seconds(120), 30, LONGEST),
            (Duration::ZERO, 1, FIRST),
            (Duration::ZERO, 4, seconds(4)),
        ] {
            let error = StepError::Retry {
                source: "slow down".into(),
                after: Some(asked),
                machine_is_whole: true,
            };
            for salt in 0..100 {
                // The spread only adds.
                let next = next_attempt(&error, failures, salt, now);
                let in_time = next >= now + wait && next <= now + wait + wait / 4;
                assert!(in_time, "asked for {asked:?} after {failures}: {next}");
            }
        }
    }
}
