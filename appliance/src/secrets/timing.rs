//! Times of further attempts, spread so that gateways do not ask in step.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// Returns how long to wait after so many outages in a row.
pub(crate) fn back_off(outages: u32) -> Duration {
    let doublings = outages.saturating_sub(1).min(5);
    (FIRST_RETRY * 2_u32.pow(doublings)).min(LAST_RETRY)
}

/// Returns between 80 % and all of `time`, so that gateways do not ask in step, and requests that
/// began together do not stay together.
pub(crate) fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.8) + spread(time.mul_f64(0.2))
}

/// Returns between nothing and all of `time`. Spreads load, and is not fit for anything that must
/// be hard to guess.
pub(crate) fn spread(time: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 1_000;
    time.mul_f64(random as f64 / 1_000.0)
}

const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);
