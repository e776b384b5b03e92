//! What closes the whole gateway: asked by the status, the service manager and the ready file.

use tokio::sync::watch;

use crate::audit::{Sink, Trouble};

/// What health is made of. Cheap to clone.
#[derive(Clone)]
pub(super) struct Health {
    /// The doubt about the kernel's settings that keeps new connections out, where there is one.
    pub(super) doubt: watch::Receiver<Option<String>>,
    pub(super) audit: Sink,
}

impl Health {
    /// Why nothing is carried, where that is so.
    pub(super) fn closed(&self) -> Option<String> {
        let audit = self.audit.trouble().filter(Trouble::closes);
        let audit = audit.map(|trouble| format!("the audit cannot be written: {trouble}"));
        self.doubt.borrow().clone().or(audit)
    }
}
