//! What the packet rules lean on, asserted for as long as the daemon runs.
//!
//! Somebody may change a kernel setting or a rule under a running gateway. What may be set right is
//! set right and said; where it may not, the gateway closes to new connections, because an
//! argument with a premise missing proves nothing. Connections that were accepted go on: each has
//! its permit.

use super::Daemon;
use crate::packets::{self, Capture, PacketsError};

impl Daemon {
    /// Asserts what the packet rules lean on, and repairs it. Where that cannot be done the gateway
    /// closes: no port is captured, so every new connection is reset. It opens again by itself.
    ///
    /// An error means that not even the rules can be installed, so that nothing is sure any more.
    pub(super) async fn assert_ground(&mut self) -> Result<(), PacketsError> {
        let doubt = packets::assert_ground(&self.capture).await.err();
        if let Some(error) = &doubt {
            tracing::error!("closed to new connections: {error}");
        } else if self.is_closed() {
            tracing::info!("open again: what the packet rules lean on is as it has to be");
        }
        for name in self.claim.unserved() {
            tracing::error!(
                "{name} was made again, and nobody listens on it: connections of its agents are \
                 refused; restart the daemon"
            );
        }
        let changes = doubt.is_some() != self.is_closed();
        self.doubt.send_replace(doubt.map(|error| error.to_string()));
        let rules = self.rules(&self.capture);
        if changes {
            return packets::apply(&rules);
        }
        if let Err(error) = packets::verify(&rules) {
            tracing::error!("{error}; installing the packet rules again");
            packets::apply(&rules)?;
        }
        Ok(())
    }

    fn is_closed(&self) -> bool {
        self.doubt.borrow().is_some()
    }

    /// What is to be installed: as configured, or without a port where the gateway is closed.
    pub(super) fn rules(&self, capture: &Capture) -> Capture {
        if self.is_closed() { capture.closed() } else { capture.clone() }
    }
}
