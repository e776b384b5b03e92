//! What an agent or a group holds, and how much of it that may be.
//!
//! What all agents share is divided into equal parts, one for each group: what one takes in full is
//! nobody else's.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{accept::Pace, policy::Limits};

/// What one agent or one group holds now, and how much it may.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) connections: AtomicUsize,
    pub(super) requests: AtomicUsize,
    pub(super) most_requests: usize,
    pub(super) large_windows: AtomicUsize,
    most_large_windows: usize,
    pub(super) minting: Mutex<Pace>,
    /// Bytes of bodies, each way.
    bodies: [Arc<Semaphore>; 2],
    /// What each of them began with.
    body_bytes: usize,
    pub(super) large_peeks: Arc<Semaphore>,
}

/// Where bytes are on their way to. Each way has its budget: an agent that takes no answers can
/// still finish what it sends, and the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the upstream.
    Out,
    /// To the agent.
    Back,
}

/// Bytes that an agent and its group hold. Given back when dropped.
#[derive(Debug)]
pub struct Room {
    _held: [OwnedSemaphorePermit; 2],
}

/// How much one group, or one agent, may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts {
    /// Each way.
    pub(super) bodies: usize,
    pub(super) peeks: usize,
    pub(super) requests: usize,
    pub(super) large_windows: usize,
}

impl Room {
    pub(super) fn new(own: OwnedSemaphorePermit, common: OwnedSemaphorePermit) -> Self {
        Self { _held: [own, common] }
    }
}

impl Parts {
    /// The equal part of one of so many groups. However many they are, it is enough to get on with.
    pub(super) fn of_group(limits: &Limits, groups: usize) -> Self {
        let groups = groups.max(1);
        Self {
            bodies: (limits.buffers / groups).max(LEAST_BODIES),
            peeks: (limits.peeks / groups).max(limits.peek_bytes),
            requests: (limits.requests / groups).max(LEAST_REQUESTS),
            large_windows: (ALL_LARGE_WINDOWS / groups).max(1),
        }
    }

    pub(super) fn of_agent(self, limits: &Limits) -> Self {
        Self {
            bodies: limits.agent_buffers.min(self.bodies / 2),
            peeks: limits.agent_peeks.min((self.peeks / 2).max(limits.peek_bytes)),
            requests: limits.agent_requests.min(self.requests / 2),
            large_windows: LARGE_WINDOWS.min(self.large_windows),
        }
    }
}

impl Tally {
    /// The budgets of a policy hold for an agent from when it is first seen until it is at rest.
    pub(super) fn new(parts: &Parts, now: Instant) -> Self {
        let budget = |bytes: usize| Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS)));
        Self {
            connections: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            most_requests: parts.requests,
            large_windows: AtomicUsize::new(0),
            most_large_windows: parts.large_windows,
            minting: Mutex::new(Pace::new(now)),
            body_bytes: parts.bodies,
            bodies: [budget(parts.bodies), budget(parts.bodies)],
            large_peeks: budget(parts.peeks),
        }
    }

    pub(super) fn budget(&self, way: Way, bytes: &Bytes) -> (Arc<Semaphore>, u32) {
        let [out, back] = &self.bodies;
        let budget = Arc::clone(if way == Way::Out { out } else { back });
        (budget, u32::try_from(bytes.len().min(self.body_bytes)).unwrap_or(u32::MAX))
    }

    pub(super) fn take_large_windows(&self) -> bool {
        let more = |count: usize| (count < self.most_large_windows).then_some(count + 1);
        self.large_windows.fetch_update(Relaxed, Relaxed, more).is_ok()
    }
}

/// The same bytes, which take up this room until the last handle to them is gone.
pub fn held<R: Send + 'static>(bytes: Bytes, room: R) -> Bytes {
    struct Held<R>(Bytes, R);
    impl<R> AsRef<[u8]> for Held<R> {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(Held(bytes, room))
}

/// HTTP/2 connections of one agent with large windows.
pub(super) const LARGE_WINDOWS: usize = 16;
/// The same, of all agents.
pub(super) const ALL_LARGE_WINDOWS: usize = 48;
/// Requests under way that every group may have, however many groups there are.
pub(super) const LEAST_REQUESTS: usize = 32;
/// Bytes of bodies each way that every group may hold, however many groups there are.
pub(super) const LEAST_BODIES: usize = 1024 * 1024;
