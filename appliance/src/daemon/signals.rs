//! Signals: SIGHUP reloads; SIGTERM stops the daemon, and another may follow; SIGINT stops it, and
//! none follows.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that the daemon obeys.
pub(super) struct DaemonSignals {
    reload: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl DaemonSignals {
    pub(super) fn new() -> std::io::Result<Self> {
        Ok(Self {
            reload: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for the next signal.
    pub(super) async fn next(&mut self) -> SignalMeaning {
        tokio::select! {
            _ = self.reload.recv() => SignalMeaning::Reload,
            _ = self.terminate.recv() => SignalMeaning::Stop,
            _ = self.interrupt.recv() => SignalMeaning::End,
        }
    }

    /// Waits until the daemon is told to stop, in either way.
    pub(super) async fn stop(&mut self) {
        while self.next().await == SignalMeaning::Reload {}
    }
}

/// The order that a signal stands for.
#[derive(PartialEq, Eq)]
pub(super) enum SignalMeaning {
    /// Read the configuration again.
    Reload,
    /// Stop; another daemon may follow.
    Stop,
    /// Stop; no other daemon follows.
    End,
}
