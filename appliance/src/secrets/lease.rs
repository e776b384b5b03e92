//! The life of one lease: when it is renewed, when it is replaced, when it ends. Pure: the time is
//! an argument.
//!
//! Errs towards ending early: a life counts from the time at which a request was sent, not from the
//! time at which Vault answered it.

use std::time::{Duration, Instant};

use super::{
    sleep::moved_back,
    source::{Lease, Prolonged},
    timing::jittered,
};

/// A lease, and its next step.
#[derive(Clone)]
pub(super) struct LeaseSchedule {
    pub(super) lease: Lease,
    /// The time from which the value is not used.
    pub(super) ends: Instant,
    renewal: LeaseRenewal,
    renewal_at: Instant,
    check_at: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LeaseRenewal {
    Renew,
    /// It cannot be renewed: another is read before it ends.
    Replace,
}

/// The next step of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextStep {
    /// Ask for another full life.
    Renew,
    /// Read another lease.
    Read,
    /// Ask whether it is still good.
    Check,
}

impl LeaseSchedule {
    /// Creates the schedule of a lease that was requested at `asked`.
    pub(super) fn new(lease: Lease, asked: Instant, check_every: Duration) -> Self {
        let life = lease.life.min(MAX_LIFE);
        let renewal = if lease.renewable { LeaseRenewal::Renew } else { LeaseRenewal::Replace };
        Self {
            ends: asked + life,
            renewal,
            renewal_at: asked + two_thirds(life),
            check_at: asked + jittered(check_every),
            lease: Lease { life, ..lease },
        }
    }

    /// Returns the next step and its time.
    pub(super) fn next(&self) -> (Instant, NextStep) {
        let renewal = match self.renewal {
            LeaseRenewal::Renew => NextStep::Renew,
            LeaseRenewal::Replace => NextStep::Read,
        };
        if self.check_at < self.renewal_at {
            (self.check_at, NextStep::Check)
        } else {
            (self.renewal_at, renewal)
        }
    }

    /// Notes a renewal that was requested at `asked`. A renewal for less than the full life means
    /// that the lease is near its longest life. A lease that is due for replacement stays due.
    pub(super) fn prolong(&mut self, by: Prolonged, asked: Instant) {
        let life = by.life.min(MAX_LIFE);
        let whole = life + ROUNDING >= self.lease.life;
        let renewal_at = asked + two_thirds(life);
        (self.renewal, self.renewal_at) = match self.renewal {
            LeaseRenewal::Renew if by.renewable && whole => (LeaseRenewal::Renew, renewal_at),
            LeaseRenewal::Renew => (LeaseRenewal::Replace, renewal_at),
            LeaseRenewal::Replace => (LeaseRenewal::Replace, renewal_at.min(self.renewal_at)),
        };
        self.ends = asked + life;
    }

    /// Returns when to ask whether it is still good.
    pub(super) fn look_at(&self) -> Instant {
        self.check_at
    }

    /// Notes that an API refused its value: the source is asked about the lease at once, or for
    /// another lease where it cannot tell.
    pub(super) fn reject(&mut self, now: Instant) {
        match self.lease.id.is_empty() {
            true => self.replace_now(now),
            false => self.check_at = self.check_at.min(now),
        }
    }

    /// Notes that it was checked.
    pub(super) fn look_later(&mut self, now: Instant, check_every: Duration) {
        self.check_at = now + jittered(check_every);
    }

    /// Makes another read due at once, because the lease was ended, cannot be renewed, or ended
    /// with its token.
    pub(super) fn replace_now(&mut self, now: Instant) {
        self.renewal = LeaseRenewal::Replace;
        self.renewal_at = now;
        self.check_at = self.check_at.max(now);
    }

    /// Delays everything that is due by `wait`, because the source cannot answer now.
    pub(super) fn put_off(&mut self, now: Instant, wait: Duration) {
        self.renewal_at = self.renewal_at.max(now + wait);
        self.check_at = self.check_at.max(now + wait);
    }

    /// Moves all times back: the machine was suspended for `slept`.
    pub(super) fn slept(&mut self, slept: Duration, now: Instant) {
        for at in [&mut self.ends, &mut self.renewal_at, &mut self.check_at] {
            *at = moved_back(*at, slept, now);
        }
    }

    pub(super) fn has_ended(&self, now: Instant) -> bool {
        self.ends <= now
    }
}

/// Returns two thirds of a life, less some jitter.
fn two_thirds(life: Duration) -> Duration {
    jittered(life * 2 / 3)
}

/// Longest life, a year. Keeps sums of instants in range.
const MAX_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// Deducted from each life: Vault counts whole seconds, and may have counted one by the time it
/// answers.
const ROUNDING: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    const MINUTE: Duration = Duration::from_secs(60);

    fn lease(seconds: u64, renewable: bool) -> Lease {
        let life = Duration::from_secs(seconds);
        Lease { id: Arc::new("l".to_owned().into()), life, renewable, generation: 0 }
    }

    fn prolonged(seconds: u64, renewable: bool) -> Prolonged {
        Prolonged { life: Duration::from_secs(seconds), renewable }
    }

    #[test]
    fn a_lease_is_renewed_at_two_thirds_or_replaced() {
        let now = Instant::now();
        for (renewable, step) in [(true, NextStep::Renew), (false, NextStep::Read)] {
            let (at, next) = LeaseSchedule::new(lease(30, renewable), now, MINUTE).next();
            assert_eq!(next, step);
            let seconds = (at - now).as_secs_f64();
            assert!((16.0..=20.0).contains(&seconds), "{seconds}");
        }
    }

    #[test]
    fn a_renewal_cut_short_is_the_last_one() {
        let now = Instant::now();
        let mut schedule = LeaseSchedule::new(lease(30, true), now, MINUTE);
        schedule.prolong(prolonged(29, true), now);
        assert_eq!(schedule.next().1, NextStep::Renew, "a second is rounding");
        schedule.prolong(prolonged(20, true), now);
        let (at, step) = schedule.next();
        assert_eq!(step, NextStep::Read);
        assert!(at < schedule.ends, "another is read before this one ends");
        schedule.prolong(prolonged(0, false), now);
        assert_eq!((schedule.next(), schedule.has_ended(now)), ((now, NextStep::Read), true));
    }

    #[test]
    fn a_long_lease_is_looked_at_each_refresh() {
        let now = Instant::now();
        let mut schedule = LeaseSchedule::new(lease(3_600, true), now, MINUTE);
        let (at, step) = schedule.next();
        assert_eq!(step, NextStep::Check);
        assert!(at <= now + MINUTE);
        schedule.look_later(at, MINUTE);
        assert!(schedule.next().0 > at);
        schedule.replace_now(at);
        assert_eq!(schedule.next(), (at, NextStep::Read));
    }

    #[test]
    fn a_lease_ends_in_a_suspended_machine_too() {
        let now = Instant::now();
        let mut schedule = LeaseSchedule::new(lease(30, true), now, MINUTE);
        let (next, step) = schedule.next();
        schedule.slept(Duration::from_secs(10), now);
        assert_eq!(schedule.next(), (next - Duration::from_secs(10), step));
        assert!(!schedule.has_ended(now));
        schedule.slept(Duration::from_secs(20), now);
        assert!(schedule.has_ended(now));
    }

    proptest! {
        /// However a lease is treated, its end follows from Vault's last answer, and the next step
        /// comes before it unless the source could not answer.
        #[test]
        fn no_errand_moves_the_end(life in 0_u64..100_000, short in 0_u64..100_000, wait in 0_u64..60) {
            let now = Instant::now();
            let mut schedule = LeaseSchedule::new(lease(life, true), now, MINUTE);
            prop_assert_eq!(schedule.ends, now + Duration::from_secs(life));
            prop_assert!(schedule.next().0 <= schedule.ends);
            schedule.put_off(now, Duration::from_secs(wait));
            schedule.look_later(now, MINUTE);
            schedule.replace_now(now);
            prop_assert_eq!(schedule.ends, now + Duration::from_secs(life));
            schedule.prolong(prolonged(short, true), now);
            prop_assert_eq!(schedule.ends, now + Duration::from_secs(short));
            prop_assert!(schedule.next().0 <= schedule.ends);
        }
    }
}
