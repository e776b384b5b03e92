//! The change of a connection to a WebSocket, which still needs parts of the request that it began
//! as.

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

/// The state of a WebSocket that a connection's exchanges and its owner share.
#[derive(Default)]
pub(in crate::intercept) struct Switch {
    asked: AtomicBool,
    made: Mutex<Option<Arc<dyn Begun>>>,
}

/// The request that a WebSocket began as.
pub(in crate::intercept) trait Begun: Send + Sync {
    /// Returns the masks for the upstream's messages.
    fn masks(&self) -> Arc<Masks>;

    /// Returns other masks where values have changed since masks were given. The check is cheap.
    fn newer_masks(&self) -> Option<Arc<Masks>>;

    /// Counts the frames that pass.
    fn passed(&self, way: Way, passed: &Passed);

    /// Counts parts of messages that hold much of a secret and not all of it.
    ///
    /// # Errors
    ///
    /// `secret_probed`, where the agent has had too many.
    fn near_misses(&self, count: u64) -> Result<(), Reason>;

    /// Returns the account against which bytes are counted while they are held.
    fn taken(&self) -> Arc<Taken>;

    /// Notes why the gateway ended it.
    fn refused(&self, reason: Reason);

    /// Notes that it came to its end.
    fn complete(&self);
}

impl Switch {
    /// Notes that a handshake goes upstream. It is the connection's last request, whatever its
    /// answer: nothing that follows it can be taken for another one.
    pub(in crate::intercept) fn ask(&self) {
        self.asked.store(true, SeqCst);
    }

    /// Whether a handshake went upstream.
    pub(in crate::intercept) fn is_asked(&self) -> bool {
        self.asked.load(SeqCst)
    }

    /// Notes that the upstream has agreed.
    pub(in crate::intercept) fn make(&self, begun: Arc<dyn Begun>) {
        *lock(&self.made) = Some(begun);
    }

    /// Takes the request that a WebSocket was made of. Only the first call returns it.
    pub(in crate::intercept) fn take(&self) -> Option<Arc<dyn Begun>> {
        lock(&self.made).take()
    }
}
