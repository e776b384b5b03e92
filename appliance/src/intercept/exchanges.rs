//! The shared state of a connection's strict reader and its exchanges: how many are under way, and
//! whether the agent's bytes broke a rule.
//!
//! A broken rule belongs to exactly one request. Inside a body it ends that request; at a head it
//! waits until the answers before it are out, so that a bad request cannot cost a good one its
//! answer.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;

use crate::reason::Reason;

/// The exchanges of one connection.
#[derive(Default)]
pub(super) struct Exchanges {
    under_way: AtomicUsize,
    begun: AtomicU64,
    moved: AtomicU64,
    ended: AtomicWaker,
    violation: OnceLock<Violation>,
}

/// A rule that the agent's bytes broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Violation {
    /// The reason.
    pub(super) reason: Reason,
    /// Whether a head was being read, so that there is no exchange for it.
    pub(super) at_head: bool,
}

/// One exchange that is under way.
pub(super) struct ActiveExchange(Arc<Exchanges>);

impl Drop for ActiveExchange {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, SeqCst);
        self.0.ended.wake();
    }
}

impl Exchanges {
    /// Counts one more exchange as under way, until the returned value is dropped.
    pub(super) fn begin(self: &Arc<Self>) -> ActiveExchange {
        self.under_way.fetch_add(1, SeqCst);
        self.begun.fetch_add(1, Relaxed);
        self.moved(1);
        ActiveExchange(Arc::clone(self))
    }

    /// Returns how many exchanges have begun, including those that have ended.
    pub(super) fn begun(&self) -> u64 {
        self.begun.load(Relaxed)
    }

    /// Notes that a part of a message went by, of this many bytes.
    pub(super) fn moved(&self, bytes: u64) {
        self.moved.fetch_add(bytes, Relaxed);
    }

    /// Returns a number that grows with every head and every part of a body, and with nothing else
    /// that an agent sends.
    pub(super) fn progress(&self) -> u64 {
        self.moved.load(Relaxed)
    }

    /// Is ready while no exchange is under way.
    pub(super) fn poll_none(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.ended.register(cx.waker());
        if self.under_way.load(SeqCst) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether no exchange is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way.load(SeqCst) == 0
    }

    /// Notes the first broken rule; later ones are its consequences.
    pub(super) fn break_rule(&self, violation: Violation) {
        // An error means only that a rule was broken before.
        let _ = self.violation.set(violation);
    }

    /// Returns the broken rule, if any.
    pub(super) fn violation(&self) -> Option<Violation> {
        self.violation.get().copied()
    }
}
