//! Listeners that outlive the daemon: the service manager keeps them while it restarts, and
//! connections that arrive meanwhile wait in their queues instead of being refused.
//!
//! An inherited listener is used only if it has the properties of a new one. A listener that is not
//! used is shut down: the kernel would go on giving it a part of the connections, and nobody would
//! answer them.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    net::{Shutdown, SocketAddr},
    os::fd::OwnedFd,
};

use rustix::fs::fstat;
use socket2::{Domain, Socket, Type};

use super::{
    super::{error::PacketsError, ruleset::capture::Capture},
    listen::{
        DnsSockets, Listener, assert_transparent, dns_address, dns_tcp, dns_udp, families,
        listen_error, listener, wildcard,
    },
};
use crate::{net::harden, policy::InterfaceName};

/// Listeners of an earlier daemon. Shut down when dropped.
#[derive(Debug, Default)]
pub struct InheritedListeners(Vec<Socket>);

impl InheritedListeners {
    /// Sorts the sockets that were passed. A socket that is no listener of ours is never used.
    pub fn new(handed: Vec<OwnedFd>) -> Self {
        Self(handed.into_iter().map(Socket::from).collect())
    }

    /// Returns whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns one listener for each interface and family, inherited or new. Called once for every
    /// worker, after [`claim`](super::super::claim).
    ///
    /// # Errors
    ///
    /// One of them cannot listen transparently. None is returned then.
    pub fn listen(&mut self, capture: &Capture) -> Result<Vec<Listener>, PacketsError> {
        let mut all = Vec::new();
        for each in &capture.interfaces {
            for &family in families(capture) {
                let at = wildcard(family, capture.proxy_port);
                let shape = SocketShape { at, kind: Type::STREAM, shared: true };
                all.push(match self.take(&shape, &each.name, family)? {
                    Some(socket) => {
                        Listener { interface: each.name.clone(), socket: socket.into() }
                    }
                    None => listener(capture, &each.name, family)?,
                });
            }
        }
        Ok(all)
    }

    /// Returns the sockets for DNS, a pair for each interface and family, inherited or new. They
    /// are not shared. Called after [`claim`](super::super::claim).
    ///
    /// # Errors
    ///
    /// [`PacketsError::PortInUse`] where another resolver listens at every address, and other
    /// errors where one of them cannot listen transparently.
    pub fn dns(&mut self, capture: &Capture) -> Result<Vec<DnsSockets>, PacketsError> {
        let shape = |family, kind| SocketShape { at: dns_address(family), kind, shared: false };
        let mut all = Vec::new();
        for each in &capture.interfaces {
            for &family in families(capture) {
                let name = &each.name;
                let udp = match self.take(&shape(family, Type::DGRAM), name, family)? {
                    Some(socket) => socket.into(),
                    None => dns_udp(name, family)?,
                };
                let tcp = match self.take(&shape(family, Type::STREAM), name, family)? {
                    Some(socket) => socket.into(),
                    None => dns_tcp(name, family)?,
                };
                all.push(DnsSockets { interface: name.clone(), udp, tcp });
            }
        }
        Ok(all)
    }

    /// Returns whether only these listen on the port in this network namespace.
    pub(crate) fn are_alone(&self, port: u16) -> io::Result<bool> {
        let own: Vec<u64> =
            self.0.iter().map(|socket| Ok(fstat(socket)?.st_ino)).collect::<io::Result<_>>()?;
        let listening = [listening("/proc/net/tcp", port)?, listening("/proc/net/tcp6", port)?];
        Ok(listening.concat().iter().all(|inode| own.contains(inode)))
    }

    fn take(
        &mut self,
        shape: &SocketShape,
        interface: &InterfaceName,
        family: Domain,
    ) -> Result<Option<Socket>, PacketsError> {
        let fits = |socket: &Socket| shape.is(socket, interface, family).unwrap_or(false);
        let Some(at) = self.0.iter().position(fits) else { return Ok(None) };
        let socket = self.0.swap_remove(at);
        assert_transparent(&socket, interface, family)?;
        if shape.kind == Type::STREAM {
            // Another version may have made it.
            harden(&socket).map_err(|source| listen_error(interface, "set TCP options", source))?;
        }
        Ok(Some(socket))
    }
}

impl Drop for InheritedListeners {
    fn drop(&mut self) {
        for socket in &self.0 {
            // A socket that does not listen has no connections waiting.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

/// The properties of a new socket, besides its interface and family.
struct SocketShape {
    at: SocketAddr,
    kind: Type,
    /// Whether the workers share its port.
    shared: bool,
}

impl SocketShape {
    fn is(&self, socket: &Socket, interface: &InterfaceName, family: Domain) -> io::Result<bool> {
        let bound = socket.local_addr()?.as_socket() == Some(self.at);
        let device = socket.device()?.is_some_and(|name| name == interface.as_str().as_bytes());
        let kind = socket.r#type()? == self.kind;
        let listens = socket.is_listener()? == (self.kind == Type::STREAM);
        let shared = socket.reuse_port()? == self.shared;
        let alone = family != Domain::IPV6 || socket.only_v6()?;
        let family = socket.domain()? == family && alone;
        Ok(bound && device && kind && listens && shared && family && socket.nonblocking()?)
    }
}

/// Returns the inodes of the sockets that listen on the port (`proc_net_tcp`, the kernel's
/// document). They come first in the file, before the connections.
fn listening(table: &str, port: u16) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for line in BufReader::new(File::open(table)?).lines().skip(1) {
        let line = line?;
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let (Some(local), Some(state), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9))
        else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        if *state != LISTEN {
            break;
        }
        let at = local.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
        if at == Some(port) {
            found.push(inode.parse().map_err(io::Error::other)?);
        }
    }
    Ok(found)
}

/// `TCP_LISTEN`, in hexadecimal.
const LISTEN: &str = "0A";
