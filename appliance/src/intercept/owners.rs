//! The word of the secrets' owners on one request. Policy has let it pass; this can only refuse.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::request;

use super::overrides;
use crate::{
    policy::{Api, GroupName, Host, Narrowed},
    secrets::Snapshot,
    substitute::Plan,
};

/// Holds a request against what the owners of its secrets allow.
pub(super) fn admit(
    (group, api, host): (&GroupName, &Api, &Host),
    head: &request::Parts,
    snapshot: &Snapshot,
    plan: &Plan,
) -> Result<(), Narrowed> {
    for (binding, slot) in plan.slots() {
        // Where no value is held, there is nothing to put in.
        let Some(narrowing) = snapshot.narrowing(group, &binding.secret) else { continue };
        let request = (&head.method, head.uri.path());
        let admitted = narrowing.admits((api, binding), (host, slot), request, SystemTime::now());
        if let Err(Narrowed::Unavailable(_, text)) = admitted
            && is_worth_a_word(SystemTime::now())
        {
            tracing::warn!(%group, api = %api.name, secret = %binding.secret, text, "a value is kept back");
        }
        admitted?;
        overrides::check(head, narrowing.methods(), narrowing.paths())
            .map_err(Narrowed::Refused)?;
    }
    Ok(())
}

/// Agents decide how often this happens, and must not fill the log: the audit has each case.
fn is_worth_a_word(now: SystemTime) -> bool {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let last = LAST.load(Ordering::Relaxed);
    let due = now.abs_diff(last) >= BETWEEN_WORDS.as_secs();
    due && LAST.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
}

const BETWEEN_WORDS: Duration = Duration::from_secs(10);
