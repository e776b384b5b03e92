//! Ends an intercepted connection from outside, for a drain or for idleness.
//!
//! The caller says what counts as progress: every byte where each belongs to a message, and only
//! the bytes of messages where an agent could send other things for ever.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    phase::{Phase, Phases},
    policy::Limits,
};

/// The way in which a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// Both sides were done.
    Closed,
    /// One side left, or broke the protocol.
    Broken,
    /// Nothing moved.
    Idle,
}

impl Ended {
    /// Returns the word that the audit uses.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Broken => "broken",
            Self::Idle => "idle",
        }
    }
}

/// Watches a connection for the two things that end it from outside: a drain, and silence.
pub(super) struct IdleTimer {
    drain: Pin<Box<dyn Future<Output = ()> + Send>>,
    draining: bool,
    progress: Box<dyn Fn() -> u64 + Send>,
    seen: u64,
    idle_time: Duration,
    timer: Pin<Box<Sleep>>,
}

impl IdleTimer {
    /// Makes a timer. The number that `progress` returns grows with all that keeps a connection
    /// alive.
    pub(super) fn new(
        limits: &Limits,
        mut phases: Phases,
        progress: impl Fn() -> u64 + Send + 'static,
    ) -> Self {
        let drained = async move { phases.reached(Phase::Drain).await };
        Self {
            drain: Box::pin(drained),
            draining: false,
            seen: progress(),
            progress: Box::new(progress),
            idle_time: limits.idle_time,
            timer: Box::pin(sleep_until(Instant::now() + limits.idle_time)),
        }
    }

    /// Returns true once, when the drain begins.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> bool {
        if self.draining || self.drain.as_mut().poll(cx).is_pending() {
            return false;
        }
        self.draining = true;
        true
    }

    /// Is ready when nothing moved for the idle time. The timer looks once in each idle time, so a
    /// silent connection lives at most twice as long.
    pub(super) fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let now = (self.progress)();
            if now == self.seen {
                return Poll::Ready(Ended::Idle);
            }
            self.seen = now;
            self.timer.as_mut().reset(Instant::now() + self.idle_time);
        }
        Poll::Pending
    }
}
