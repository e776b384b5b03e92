//! The reasons to read a value sooner than after each `refresh`: the engine says when it changes,
//! or an API refuses it. Pure: the time is an argument.
//!
//! An agent can cause as many refusals of an API as it likes. So they count once in each `refresh`
//! for a value that stays, and not more often than once in [`LEAST`] for one that changes with each
//! read.

use std::time::{Duration, Instant};

use super::timing::jittered;

/// The read times of one location.
#[derive(Debug, Default)]
pub(super) struct RefreshRate {
    /// Reads in a row that came after the value should have changed.
    overdue: u32,
    rejected: Option<Instant>,
    /// Whether the value has changed since then.
    changed: bool,
}

impl RefreshRate {
    /// Returns when to read next, after a read at `asked` whose value changes in `changes_in`.
    pub(super) fn next_read(
        &mut self,
        refresh: Duration,
        changes_in: Option<Duration>,
        asked: Instant,
        now: Instant,
    ) -> Instant {
        let regular = now + jittered(refresh);
        if self.rejected.is_some_and(|rejected| rejected > asked) {
            return now;
        }
        let Some(time) = changes_in else { return regular };
        // The engine counts whole seconds and checks every few of them.
        self.overdue = if time < SECOND { self.overdue.saturating_add(1) } else { 0 };
        match self.overdue > MOST_OVERDUE {
            true => regular,
            false => regular.min(asked + time.clamp(SECOND, refresh.max(SECOND))),
        }
    }

    /// Notes that an API refused the value. Returns true where that is a reason to read at once.
    pub(super) fn reject(&mut self, refresh: Duration, now: Instant) -> bool {
        let pause = if self.changed { LEAST.min(refresh) } else { refresh };
        if self.rejected.is_some_and(|then| now < then + pause) {
            return false;
        }
        (self.rejected, self.changed) = (Some(now), false);
        true
    }

    /// Notes that the value is another than before.
    pub(super) const fn changed(&mut self) {
        self.changed = true;
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// Reads of an overdue value, each a second after the one before. After these it is read each
/// `refresh` again: its engine does not rotate it.
const MOST_OVERDUE: u32 = 10;

/// Least time between two reads because of an API, where each brings another value.
const LEAST: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REFRESH: Duration = Duration::from_secs(60);

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn a_changing_value_is_read_then_and_not_without_end() {
        let (mut rate, now) = (RefreshRate::default(), Instant::now());
        let mut next = |changes_in| rate.next_read(REFRESH, changes_in, now, now) - now;
        assert_eq!(next(Some(seconds(17))), seconds(17));
        assert!(next(Some(seconds(3_600))) > seconds(40));
        assert!(next(None) > seconds(40));
        for _ in 0..MOST_OVERDUE {
            assert_eq!(next(Some(Duration::ZERO)), SECOND);
        }
        assert!(next(Some(Duration::ZERO)) > seconds(40), "nobody rotates it");
        assert_eq!(next(Some(seconds(5))), seconds(5));
    }

    #[test]
    fn refusals_count_at_once_then_once_a_refresh() {
        let (mut rate, now) = (RefreshRate::default(), Instant::now());
        assert!(rate.reject(REFRESH, now));
        assert!(!rate.reject(REFRESH, now + seconds(59)));
        rate.changed();
        assert!(!rate.reject(REFRESH, now + seconds(4)));
        assert!(rate.reject(REFRESH, now + seconds(5)));
        assert!(!rate.reject(REFRESH, now + seconds(64)));
        assert!(rate.reject(REFRESH, now + seconds(65)));
    }

    #[test]
    fn a_refusal_after_a_read_began_needs_another_read() {
        let (mut rate, now) = (RefreshRate::default(), Instant::now());
        rate.reject(REFRESH, now + seconds(1));
        let answered = now + seconds(2);
        assert_eq!(rate.next_read(REFRESH, None, now, answered), answered);
        assert!(rate.next_read(REFRESH, None, answered, answered) > answered + seconds(40));
    }

    proptest! {
        /// This holds however many refusals of a value that stays an agent causes.
        #[test]
        fn agents_at_most_double_how_often_the_gateway_asks(
            steps in prop::collection::vec(0_u64..30, 1..200),
        ) {
            let (mut rate, begun) = (RefreshRate::default(), Instant::now());
            let (mut now, mut reads) = (begun, 0);
            for step in steps {
                now += seconds(step);
                reads += u64::from(rate.reject(REFRESH, now));
            }
            prop_assert!(reads <= 1 + (now - begun).as_secs() / 60);
        }
    }
}
