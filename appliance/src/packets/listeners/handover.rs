//! The handover from one daemon to the next, without a moment in which nobody accepts: the old one
//! accepts until the new one does, and the new one is not ready before the old one has stopped.
//!
//! Each tells its state by holding a name, an abstract unix address of the network namespace: both
//! are confined, so neither may connect to a socket of the other (`landlock(7)`,
//! `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET`). A name that a stranger holds costs time, and opens
//! nothing.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

/// A name that is held until this is dropped.
#[derive(Debug)]
pub struct HeldName {
    _socket: UnixDatagram,
}

/// A state of a daemon that others can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DaemonState {
    /// It accepts, or has to begin without the sockets of an earlier one: that one stops accepting.
    Serves,
    /// It is on its way out, but still accepts: the next one is not ready.
    AcceptsStill,
}

impl DaemonState {
    /// Holds the name of the daemons behind this proxy port.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::AddrInUse`] where another process holds it.
    pub fn hold(self, port: u16) -> io::Result<HeldName> {
        let address =
            SocketAddr::from_abstract_name(format!("cloakroom/{}/{port}", self.as_str()))?;
        Ok(HeldName { _socket: UnixDatagram::bind_addr(&address)? })
    }

    /// Returns whether another process holds the name.
    pub fn is_said(self, port: u16) -> bool {
        self.hold(port).is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Serves => "serves",
            Self::AcceptsStill => "accepts-still",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handover_is_heard_while_it_is_held() {
        // No daemon has this port: the test shares the network of its caller.
        let port = 0;
        for says in [DaemonState::Serves, DaemonState::AcceptsStill] {
            assert!(!says.is_said(port));
            let held = says.hold(port).unwrap();
            assert!(says.is_said(port) && !says.is_said(port + 1));
            assert_eq!(says.hold(port).unwrap_err().kind(), io::ErrorKind::AddrInUse);
            drop(held);
            assert!(!says.is_said(port));
        }
    }
}
