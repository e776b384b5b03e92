//! `run → drain → cut`: how far the daemon is from its end.

use tokio::sync::watch;

/// How far the daemon is from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Connections are accepted.
    Run,
    /// None is accepted; those that are open may finish.
    Drain,
    /// Those that are still open are cut.
    Cut,
}

/// One watcher's view of the phase. A daemon that has gone counts as cut.
#[derive(Debug, Clone)]
pub struct Phases(watch::Receiver<Phase>);

impl Phase {
    /// Returns the word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Drain => "drain",
            Self::Cut => "cut",
        }
    }
}

impl Phases {
    /// Creates the sender that sets the phase, and the first watcher.
    pub fn new() -> (watch::Sender<Phase>, Self) {
        let (sender, receiver) = watch::channel(Phase::Run);
        (sender, Self(receiver))
    }

    /// Returns the phase now.
    pub fn now(&self) -> Phase {
        *self.0.borrow()
    }

    /// Waits until the daemon is in `phase` or beyond.
    pub async fn reached(&mut self, phase: Phase) {
        // An error means that the sender is gone, and with it the daemon.
        let _ = self.0.wait_for(|now| *now >= phase).await;
    }
}
