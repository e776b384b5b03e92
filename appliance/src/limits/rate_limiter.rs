//! Limits on how fast something may happen.

use std::time::{Duration, Instant};

/// A token bucket, as the time at which it will be full again (the generic cell rate algorithm).
#[derive(Debug, Clone, Copy)]
pub struct RateLimiter {
    full_at: Instant,
}

impl RateLimiter {
    /// Creates a full bucket.
    pub fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes one, of `a_second` in the long run and `at_once` together, if there is one.
    pub fn take(&mut self, a_second: u32, at_once: u32, now: Instant) -> bool {
        self.take_all(1, a_second, at_once, now)
    }

    /// Takes `count` of them, if there are so many.
    pub fn take_all(&mut self, count: u32, a_second: u32, at_once: u32, now: Instant) -> bool {
        let each = Duration::from_secs(1) / a_second.max(1);
        let next = self.full_at.max(now) + each.saturating_mul(count);
        let may = next.saturating_duration_since(now) <= each * at_once.max(1);
        if may {
            self.full_at = next;
        }
        may
    }

    /// Returns whether it is full, so that it knows nothing that a new one would not.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_limiter_gives_its_burst_then_its_rate() {
        let start = Instant::now();
        let mut limiter = RateLimiter::new(start);
        assert_eq!((0..100).filter(|_| limiter.take(10, 20, start)).count(), 20);
        let later = |ms| start + Duration::from_millis(ms);
        let allowed = (1..=10_000).filter(|ms| limiter.take(10, 20, later(*ms))).count();
        assert!((99..=101).contains(&allowed), "{allowed}");
        assert!(!limiter.is_full(later(10_000)) && limiter.is_full(later(12_001)));
    }
}
