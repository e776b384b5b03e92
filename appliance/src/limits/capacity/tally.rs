//! The holdings of an agent or a group, counted against its quota.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::super::RateLimiter;
use crate::{locks::lock, policy::Quota};

/// The present holdings of one agent or one group, and the part that one connection may add.
///
/// The counts are the same for all its connections. The budget belongs to the policy under which a
/// connection began: one that begins after a reload has the new budget at once, and bytes that
/// older connections hold count against the old one, which ends with them.
/// ones still hold of the old budget goes with them.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    pub(super) counts: Arc<HeldCounts>,
    budget: Arc<Budget>,
}

/// The present holdings, except bytes.
#[derive(Debug)]
pub(super) struct HeldCounts {
    pub(super) connections: AtomicUsize,
    pub(super) requests: AtomicUsize,
    pub(super) large_windows: AtomicUsize,
    pub(super) large_decoders: AtomicUsize,
    pub(super) pipes: AtomicUsize,
    pub(super) minting: Mutex<RateLimiter>,
    asking: Mutex<RateLimiter>,
    /// Limits answers with minted credentials.
    renewing: Mutex<RateLimiter>,
    probing: Mutex<RateLimiter>,
    /// Requests that came too fast and are not reported yet.
    pub(super) over_rate: AtomicU64,
}

/// The quota, and the bytes that are left of it.
#[derive(Debug)]
struct Budget {
    quota: Quota,
    /// Bytes of bodies, each way.
    bodies: [Arc<Semaphore>; 2],
    peeks: Arc<Semaphore>,
}

/// The direction of bytes. Each direction has its budget: an agent that reads no answers can still
/// finish what it sends, and the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the upstream.
    Out,
    /// To the agent.
    Back,
}

/// Bytes that an agent and its group hold. Given back when dropped.
#[derive(Debug)]
pub struct HeldBytes {
    _held: [OwnedSemaphorePermit; 2],
}

impl HeldBytes {
    pub(super) fn new(own: OwnedSemaphorePermit, common: OwnedSemaphorePermit) -> Self {
        Self { _held: [own, common] }
    }
}

impl Tally {
    pub(super) fn new(quota: Quota, now: Instant) -> Self {
        let counts = HeldCounts {
            connections: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            large_windows: AtomicUsize::new(0),
            large_decoders: AtomicUsize::new(0),
            pipes: AtomicUsize::new(0),
            minting: Mutex::new(RateLimiter::new(now)),
            asking: Mutex::new(RateLimiter::new(now)),
            renewing: Mutex::new(RateLimiter::new(now)),
            probing: Mutex::new(RateLimiter::new(now)),
            over_rate: AtomicU64::new(0),
        };
        Self { counts: Arc::new(counts), budget: Arc::new(Budget::new(quota)) }
    }

    /// Returns the tally for a connection that begins now.
    pub(super) fn with_quota(&mut self, quota: Quota) -> Self {
        if self.budget.quota != quota {
            self.budget = Arc::new(Budget::new(quota));
        }
        self.clone()
    }

    /// Returns whether nothing of it is held, and it knows nothing that a new one would not.
    pub(super) fn is_at_rest(&self, now: Instant) -> bool {
        let is_full = |limiter: &Mutex<RateLimiter>| lock(limiter).is_full(now);
        Arc::strong_count(&self.counts) == 1
            && [
                &self.counts.minting,
                &self.counts.asking,
                &self.counts.renewing,
                &self.counts.probing,
            ]
            .into_iter()
            .all(is_full)
            && self.counts.over_rate.load(Relaxed) == 0
    }

    pub(super) fn may_ask(&self, now: Instant) -> bool {
        let rate = self.budget.quota.new_requests;
        let mut asking = lock(&self.counts.asking);
        asking.take(rate, rate.saturating_mul(2), now)
    }

    /// Returns whether another answer may hold a minted credential.
    pub(super) fn may_mint(&self, times: u32, now: Instant) -> bool {
        let mut renewing = lock(&self.counts.renewing);
        renewing.take(times * MINTS_A_SECOND, times * MINTS_AT_ONCE, now)
    }

    /// Returns whether responses may have so many more near misses of a secret: a few in the long
    /// run.
    pub(super) fn may_probe(&self, near_misses: u32, times: u32, now: Instant) -> bool {
        let mut probing = lock(&self.counts.probing);
        probing.take_all(near_misses, times * PROBES_A_SECOND, times * PROBES_AT_ONCE, now)
    }

    /// Counts a connection against the agent and its group, if both have one left.
    pub(super) fn add_connection(agent: &Self, group: &Self) -> bool {
        let count = |tally: &Self| tally.counts.connections.load(Relaxed);
        let may = agent.may_have(group, count, |quota| quota.connections);
        for tally in [agent, group] {
            tally.counts.connections.fetch_add(usize::from(may), Relaxed);
        }
        may
    }

    /// Counts a request against the agent and its group, whatever they have left. Returns whether
    /// there was a slot for it.
    pub(super) fn add_request(agent: &Self, group: &Self) -> bool {
        let count = |tally: &Self| tally.counts.requests.fetch_add(1, Relaxed);
        agent.may_have(group, count, |quota| quota.requests)
    }

    /// Counts large windows against the agent and its group, if both have them left.
    pub(super) fn add_large_windows(agent: &Self, group: &Self) -> bool {
        let count = |tally: &Self| tally.counts.large_windows.fetch_add(1, Relaxed);
        let may = agent.may_have(group, count, |quota| quota.large_windows);
        for tally in [agent, group] {
            tally.counts.large_windows.fetch_sub(usize::from(!may), Relaxed);
        }
        may
    }

    /// Counts a decoder with a large window against the agent and its group, if both have one left.
    pub(super) fn add_large_decoder(agent: &Self, group: &Self) -> bool {
        let count = |tally: &Self| tally.counts.large_decoders.fetch_add(1, Relaxed);
        let may = agent.may_have(group, count, |quota| quota.large_decoders);
        for tally in [agent, group] {
            tally.counts.large_decoders.fetch_sub(usize::from(!may), Relaxed);
        }
        may
    }

    /// Counts a pipe against the agent and its group, if both have one left.
    pub(super) fn add_pipe(agent: &Self, group: &Self) -> bool {
        let count = |tally: &Self| tally.counts.pipes.fetch_add(1, Relaxed);
        let may = agent.may_have(group, count, |quota| quota.pipes);
        for tally in [agent, group] {
            tally.counts.pipes.fetch_sub(usize::from(!may), Relaxed);
        }
        may
    }

    /// Returns whether the agent may have one more beside those that both hold: no more than its
    /// quota, and no more than its group has left. So there is always one for the next agent of the
    /// group.
    fn may_have(
        &self,
        group: &Self,
        count: impl Fn(&Self) -> usize,
        most: impl Fn(&Quota) -> usize,
    ) -> bool {
        let [own, of_group] = [self, group].map(count);
        let left = most(&group.budget.quota).saturating_sub(of_group);
        own < most(&self.budget.quota) && own < left
    }

    /// Returns the bytes of the longest body that is counted whole.
    pub(super) fn largest_body(&self) -> usize {
        self.budget.quota.bodies
    }

    /// Returns the budget in which the bytes of a body are counted, and how many of them count.
    pub(super) fn body(&self, way: Way, bytes: usize) -> (Arc<Semaphore>, u32) {
        let [out, back] = &self.budget.bodies;
        let left = Arc::clone(if way == Way::Out { out } else { back });
        let count = bytes.max(LEAST_COUNTED).min(self.budget.quota.bodies);
        (left, u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Returns room for so many more bytes of undecided connections, if the agent holds less than
    /// its group has left.
    pub(super) fn try_peek(agent: &Self, group: &Self, bytes: u32) -> Option<HeldBytes> {
        let left = |tally: &Self| tally.budget.peeks.available_permits();
        let held = agent.budget.quota.peeks.saturating_sub(left(agent));
        if held >= left(group) {
            return None;
        }
        let take =
            |tally: &Self| Arc::clone(&tally.budget.peeks).try_acquire_many_owned(bytes).ok();
        Some(HeldBytes::new(take(agent)?, take(group)?))
    }
}

impl Budget {
    fn new(quota: Quota) -> Self {
        let bytes = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Self {
            bodies: [bytes(quota.bodies), bytes(quota.bodies)],
            peeks: bytes(quota.peeks),
            quota,
        }
    }
}

/// Answers with minted credentials to an agent, a second in the long run and at once: more than
/// clients that keep their credentials ask for.
const MINTS_A_SECOND: u32 = 8;
const MINTS_AT_ONCE: u32 = 64;
/// Near misses of an agent in the long run. A random value has none by chance; a value that ends in
/// words, such as a name with a domain, may have some.
const PROBES_A_SECOND: u32 = 16;
/// Near misses of an agent at once. Their delay, up to this number, is lost in the noise of any
/// network. More at once are refused and not counted: if they used the budget up, the next single
/// one could be told from none.
const PROBES_AT_ONCE: u32 = 1024;

/// Returns the same bytes, which take up this room until their last handle is dropped.
pub fn held<R: Send + 'static>(bytes: Bytes, room: R) -> Bytes {
    struct Held<R>(Bytes, R);
    impl<R> AsRef<[u8]> for Held<R> {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(Held(bytes, room))
}

/// Least bytes that a frame of a body counts as, for its place in queues and its counters.
const LEAST_COUNTED: usize = 512;
