//! The revocation queue: leases that are being given back. Pure: the time is an argument.
//!
//! A source that cannot be reached is asked again until the lease has ended by itself. A refused
//! revocation is not repeated, and the log has it.

use std::time::{Duration, Instant};

use super::{FetchError, source::Lease, timing::back_off};
use crate::policy::GroupName;

/// The leases that wait to be given back.
#[derive(Default)]
pub(super) struct RevocationQueue {
    waiting: Vec<Revocation>,
    tickets: u64,
}

/// One lease that is being given back.
#[derive(Clone)]
pub(super) struct Revocation {
    pub(super) group: GroupName,
    pub(super) lease: Lease,
    ticket: u64,
    due: Instant,
    /// The time at which it ends by itself.
    ends: Instant,
    tries: u32,
    asking: bool,
}

impl RevocationQueue {
    /// Plans the revocation of a lease at `due`. `ends` may be too early, so the lease stays in the
    /// queue at least as long as it takes to try.
    pub(super) fn add(&mut self, group: &GroupName, lease: Lease, due: Instant, ends: Instant) {
        if self.waiting.len() >= MAX_WAITING {
            let soonest =
                (0..self.waiting.len()).min_by_key(|&at| self.waiting.get(at).map(|one| one.ends));
            soonest.map(|at| self.waiting.swap_remove(at));
            tracing::warn!("too many leases wait to be given back; one is left to end by itself");
        }
        self.tickets += 1;
        let least = if lease.life.is_zero() { LEAST_TRY } else { lease.life.min(LEAST_TRY) };
        let ends = ends.max(due + least);
        let (group, ticket) = (group.clone(), self.tickets);
        self.waiting.push(Revocation { group, lease, ticket, due, ends, tries: 0, asking: false });
    }

    /// Returns the revocations that are due now, as far as the bound on requests at once allows,
    /// and the time of the next.
    pub(super) fn take_due(&mut self, now: Instant) -> (Vec<Revocation>, Option<Instant>) {
        self.waiting.retain(|one| one.asking || now < one.ends || one.tries == 0);
        let asking = self.waiting.iter().filter(|one| one.asking).count();
        let free = AT_ONCE.saturating_sub(asking);
        let mut due = Vec::new();
        let waiting = self.waiting.iter_mut().filter(|one| !one.asking && one.due <= now);
        for one in waiting.take(free) {
            one.asking = true;
            due.push(one.clone());
        }
        let later = self.waiting.iter().map(|one| one.due).filter(|due| *due > now);
        (due, later.min())
    }

    /// Notes the source's answer. Returns `true` where the lease has to end by itself.
    pub(super) fn enter(
        &mut self,
        returned: &Revocation,
        answer: Result<(), FetchError>,
        now: Instant,
    ) -> bool {
        let at = self.waiting.iter().position(|one| one.ticket == returned.ticket);
        let Some(one) = at.and_then(|at| self.waiting.get_mut(at)) else { return false };
        one.asking = false;
        one.tries = one.tries.saturating_add(1);
        let asked_for = answer.err().map_or(Duration::ZERO, FetchError::asks_for);
        one.due = now + back_off(one.tries).max(asked_for);
        let again = answer.is_err_and(|error| !error.is_gone()) && one.due < one.ends;
        if !again {
            at.map(|at| self.waiting.swap_remove(at));
        }
        !again && answer.is_err()
    }

    /// Takes all of them; none waits afterwards.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = (GroupName, Lease)> {
        std::mem::take(&mut self.waiting).into_iter().map(|one| (one.group, one.lease))
    }
}

/// Revocations at once.
const AT_ONCE: usize = 4;

/// Most leases that wait; the one that ends soonest makes room.
const MAX_WAITING: usize = 1_024;

/// Time for which the revocation of a lease with unknown end is tried.
const LEAST_TRY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reason::SecretCause;
    use std::sync::Arc;

    const DOWN: FetchError = FetchError::Outage(SecretCause::VaultUnreachable, "down");
    const REFUSED: FetchError = FetchError::Gone(SecretCause::VaultDenied, "refused");

    fn lease(number: usize) -> Lease {
        let id = Arc::new(number.to_string().into());
        Lease { id, life: Duration::from_secs(3_600), renewable: true, generation: 0 }
    }

    fn agents() -> GroupName {
        GroupName("agents".into())
    }

    fn after(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_is_tried_until_it_has_ended_by_itself() {
        let (mut revocations, start) = (RevocationQueue::default(), Instant::now());
        revocations.add(&agents(), lease(1), start, start + after(40));
        let (mut now, mut tries) = (start, 0);
        loop {
            let (due, next) = revocations.take_due(now);
            for one in due {
                tries += 1;
                revocations.enter(&one, Err(DOWN), now);
            }
            match next.or_else(|| revocations.take_due(now).1) {
                Some(next) => now = next,
                None => break,
            }
        }
        assert!(tries >= 5, "{tries}");
        assert!(revocations.waiting.is_empty() && now <= start + after(120));
    }

    #[test]
    fn a_lease_without_a_life_is_tried_for_a_minute() {
        let (mut revocations, start) = (RevocationQueue::default(), Instant::now());
        let lease = Lease { life: Duration::ZERO, ..lease(1) };
        revocations.add(&agents(), lease, start, start);
        for seconds in 0..3 {
            let (due, _) = revocations.take_due(start + after(20 * seconds));
            assert_eq!(due.len(), 1, "after {seconds} times 20 seconds");
            revocations.enter(&due[0], Err(DOWN), start + after(20 * seconds));
        }
    }

    #[test]
    fn a_refused_return_is_given_up_and_told() {
        let (mut revocations, now) = (RevocationQueue::default(), Instant::now());
        revocations.add(&agents(), lease(1), now, now + after(40));
        let (due, _) = revocations.take_due(now);
        assert!(revocations.take_due(now).0.is_empty(), "not asked twice at once");
        assert!(revocations.enter(&due[0], Err(REFUSED), now));
        assert!(revocations.waiting.is_empty());
    }

    #[test]
    fn revocations_wait_for_their_time_and_few_go_together() {
        let (mut revocations, now) = (RevocationQueue::default(), Instant::now());
        for number in 0..10 {
            revocations.add(&agents(), lease(number), now + after(60), now + after(600));
        }
        assert_eq!(revocations.take_due(now).1, Some(now + after(60)));
        assert_eq!(revocations.take_due(now + after(60)).0.len(), AT_ONCE);
        assert_eq!(revocations.take_all().count(), 10);
    }

    #[test]
    fn the_table_is_bounded() {
        let (mut revocations, now) = (RevocationQueue::default(), Instant::now());
        for number in 0..MAX_WAITING + 5 {
            revocations.add(&agents(), lease(number), now, now + after(60 + number as u64));
        }
        assert_eq!(revocations.waiting.len(), MAX_WAITING);
    }
}
