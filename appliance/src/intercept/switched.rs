//! Exchanges that became WebSockets.

use std::sync::{Arc, Mutex};

use super::{
    masking::Masking,
    trace::Trace,
    websocket::{Begun, Passed},
};
use crate::{
    limits::{Taken, Way},
    locks::lock,
    reason::Reason,
    scrub::Masks,
};

/// An exchange that became a WebSocket; its record stays open.
pub(super) struct Switched {
    trace: Arc<Trace>,
    masking: Mutex<Masking>,
}

impl Switched {
    /// Takes an exchange whose head has been answered.
    pub(super) fn new(trace: Arc<Trace>, masking: Masking) -> Self {
        Self { trace, masking: Mutex::new(masking) }
    }
}

impl Begun for Switched {
    fn masks(&self) -> Arc<Masks> {
        Arc::clone(&lock(&self.masking).masks)
    }

    fn newer_masks(&self) -> Option<Arc<Masks>> {
        let mut masking = lock(&self.masking);
        *masking = self.trace.newer(&masking)?;
        Some(Arc::clone(&masking.masks))
    }

    fn passed(&self, way: Way, passed: &Passed) {
        let (bytes, messages) = (passed.bytes as u64, u64::from(passed.message));
        self.trace.moved(bytes);
        self.trace.with(|record| {
            match way {
                Way::Out => {
                    record.request_bytes(bytes);
                    record.messages(messages, 0);
                }
                Way::Back => {
                    record.response_bytes(bytes, passed.masked);
                    record.messages(0, messages);
                }
            }
            passed.close.into_iter().for_each(|code| record.closed(code));
        });
    }

    fn near_misses(&self, count: u64) -> Result<(), Reason> {
        self.trace.near_misses(count)
    }

    fn taken(&self) -> Arc<Taken> {
        self.trace.taken()
    }

    fn refused(&self, reason: Reason) {
        self.trace.refused(reason);
    }

    fn complete(&self) {
        self.trace.complete();
    }
}
