//! What the strict reader and the exchanges of one connection tell each other: how many are under
//! way, and whether the agent's bytes broke a rule.
//!
//! A broken rule belongs to exactly one request. Inside a body it ends that request; at a head it
//! waits until the answers before it are out, so that a bad request cannot cost a good one its
//! answer.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;

use crate::reason::Reason;

/// The exchanges of one connection.
#[derive(Default)]
pub struct Exchanges {
    under_way: AtomicUsize,
    ended: AtomicWaker,
    violation: OnceLock<Violation>,
}

/// The rule that the agent's bytes broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Violation {
    /// Which one.
    pub reason: Reason,
    /// Whether a head was being read, so that no exchange stands for it.
    pub at_head: bool,
}

impl Exchanges {
    /// One more is under way.
    pub fn begin(&self) {
        self.under_way.fetch_add(1, SeqCst);
    }

    /// One of them is over.
    pub fn end(&self) {
        self.under_way.fetch_sub(1, SeqCst);
        self.ended.wake();
    }

    /// Ready while none is under way.
    pub fn poll_none(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.ended.register(cx.waker());
        if self.under_way.load(SeqCst) == 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether none is under way.
    pub fn is_empty(&self) -> bool {
        self.under_way.load(SeqCst) == 0
    }

    /// Notes the first broken rule; later ones are its consequences.
    pub fn break_rule(&self, violation: Violation) {
        // An error only says that there is one already.
        let _ = self.violation.set(violation);
    }

    /// The broken rule, if any.
    pub fn violation(&self) -> Option<Violation> {
        self.violation.get().copied()
    }
}
