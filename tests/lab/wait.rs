//! Waits for events elsewhere by looking often, never by sleeping for a guessed time.

use std::time::{Duration, Instant};

/// How long a test waits for an event that should happen at once. Generous, because the machine may
/// be busy; only a failure uses all of it.
pub const SOON: Duration = Duration::from_secs(15);

/// How long a test checks that an event does *not* happen.
pub const QUIET: Duration = Duration::from_millis(400);

/// Looks until `probe` finds something or `limit` has passed.
pub fn until<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Panics with `what` unless `probe` becomes true [`SOON`].
#[track_caller]
pub fn expect(what: &str, mut probe: impl FnMut() -> bool) {
    assert!(until(SOON, || probe().then_some(())).is_some(), "did not happen in {SOON:?}: {what}");
}
