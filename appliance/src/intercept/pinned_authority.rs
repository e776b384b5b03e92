//! The one authority that a connection is for.

use crate::policy::Host;

/// The one name and port that every request of a connection must be for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PinnedAuthority {
    /// The SNI, which is also the name that was dialled.
    pub host: Host,
    /// The port that the agent dialled and that is dialled upstream.
    pub port: u16,
}

impl PinnedAuthority {
    /// Whether an authority names this host, and this port or, for 443, none.
    pub(super) fn is(&self, authority: &str) -> bool {
        let (name, port) = match authority.rsplit_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (authority, None),
        };
        let port_fits = match port {
            Some(port) => *port == *self.port.to_string(),
            None => self.port == HTTPS,
        };
        port_fits && Host::parse(name).is_ok_and(|host| host == self.host)
    }

    /// Returns the authority as it is sent upstream.
    pub(super) fn authority(&self) -> String {
        match self.port {
            HTTPS => self.host.to_string(),
            port => format!("{}:{port}", self.host),
        }
    }
}

const HTTPS: u16 = 443;
