//! How a connection becomes a WebSocket, and what that goes on needing of the request it began as.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use super::lane::Passed;
use crate::{
    limits::{Taken, Way},
    locks::lock,
    reason::Reason,
    scrub::Masks,
};

/// What the exchanges of a connection and its owner tell each other of a WebSocket.
#[derive(Default)]
pub(in crate::intercept) struct Switch {
    asked: AtomicBool,
    made: Mutex<Option<Arc<dyn Begun>>>,
}

/// The request that a WebSocket began as.
pub(in crate::intercept) trait Begun: Send + Sync {
    /// The masks for what the upstream sends.
    fn masks(&self) -> Arc<Masks>;

    /// Others, where values have changed since masks were given. Cheap where they have not.
    fn newer_masks(&self) -> Option<Arc<Masks>>;

    /// Counts what passes.
    fn passed(&self, way: Way, passed: &Passed);

    /// Counts places that hold much of a secret and not all of it.
    ///
    /// # Errors
    ///
    /// `secret_probed`, where the agent has had too many.
    fn near_misses(&self, count: u64) -> Result<(), Reason>;

    /// What bytes are counted against while they are held.
    fn taken(&self) -> Arc<Taken>;

    /// Why the gateway ended it.
    fn refused(&self, reason: Reason);

    /// It came to its end.
    fn complete(&self);
}

impl Switch {
    /// A handshake goes upstream. It is the connection's last request, whatever its answer: nothing
    /// that follows it can be taken for another one.
    pub(in crate::intercept) fn ask(&self) {
        self.asked.store(true, SeqCst);
    }

    /// Whether one went upstream.
    pub(in crate::intercept) fn is_asked(&self) -> bool {
        self.asked.load(SeqCst)
    }

    /// The upstream has agreed.
    pub(in crate::intercept) fn make(&self, begun: Arc<dyn Begun>) {
        *lock(&self.made) = Some(begun);
    }

    /// What the connection has become, once.
    pub(in crate::intercept) fn take(&self) -> Option<Arc<dyn Begun>> {
        lock(&self.made).take()
    }
}
