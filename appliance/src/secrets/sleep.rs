//! The time for which the machine was suspended.
//!
//! Instants stand still meanwhile, and leases and the world do not. So a deadline at an instant is
//! moved back by that time. Errs towards ending early: an instant that cannot be moved becomes now.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime};

/// The part of the suspended time that was taken into account.
#[derive(Debug)]
pub(super) struct Slept {
    known: Duration,
}

impl Slept {
    /// Counts from `suspended` on, the value of [`suspended()`].
    pub(super) const fn new(suspended: Duration) -> Self {
        Self { known: suspended }
    }

    /// Returns how long the machine slept since the last call; `suspended` is the total so far.
    /// Returns `None` for less than a second, because the two clocks are not read together.
    pub(super) fn since(&mut self, suspended: Duration) -> Option<Duration> {
        let slept = suspended.checked_sub(self.known).filter(|slept| *slept > LEAST)?;
        self.known = suspended;
        Some(slept)
    }
}

/// Returns how long the machine was suspended since it started (`clock_gettime(2)`,
/// `CLOCK_BOOTTIME`).
pub(super) fn suspended() -> Duration {
    let counts = since_start(clock_gettime(ClockId::Boottime));
    counts.saturating_sub(since_start(clock_gettime(ClockId::Monotonic)))
}

/// Returns `at` less the time that was slept.
pub(super) fn moved_back(at: Instant, slept: Duration, now: Instant) -> Instant {
    at.checked_sub(slept).unwrap_or(now)
}

fn since_start(time: Timespec) -> Duration {
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanoseconds)
}

const LEAST: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_is_told_once_and_small_sleeps_add_up() {
        let at = Duration::from_millis;
        let mut slept = Slept::new(at(5_000));
        for (suspended, told) in [
            (5_000, None),
            (5_001, None),
            (4_999, None),
            (5_700, None),
            (6_400, Some(1_400)),
            (6_400, None),
            (3_606_400, Some(3_600_000)),
            (3_606_401, None),
        ] {
            assert_eq!(slept.since(at(suspended)), told.map(at), "{suspended}");
        }
    }

    #[test]
    fn a_machine_that_is_awake_has_not_slept() {
        assert_eq!(Slept::new(suspended()).since(suspended()), None);
    }

    #[test]
    fn an_instant_that_cannot_be_moved_back_is_over() {
        let now = Instant::now();
        let minute = Duration::from_secs(60);
        assert_eq!(moved_back(now + minute, minute, now), now);
        assert!(moved_back(now + minute, Duration::MAX, now) <= now);
    }
}
