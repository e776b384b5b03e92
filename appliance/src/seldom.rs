//! Messages in the log that agents can cause. Agents decide how often, and must not fill the log.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// One kind of message, which is logged only once in a while.
pub(crate) struct Seldom(AtomicU64);

impl Seldom {
    /// Creates a kind that was not logged yet.
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Returns whether the message may be logged now. A caller that gets `true` logs it.
    pub(crate) fn is_due(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let last = self.0.load(Relaxed);
        let due = now.abs_diff(last) >= BETWEEN_WORDS.as_secs();
        due && self.0.compare_exchange(last, now, Relaxed, Relaxed).is_ok()
    }
}

const BETWEEN_WORDS: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_repeated_seldom_even_when_clocks_go_back() {
        let (seldom, noon) = (Seldom::new(), UNIX_EPOCH + Duration::from_secs(1 << 30));
        let said = |seconds: u64| seldom.is_due(noon + Duration::from_secs(seconds));
        let told: Vec<_> = [100, 100, 109, 110, 111, 120, 0, 9].map(said).into();
        assert_eq!(told, [true, false, false, true, false, true, true, false]);
    }
}
