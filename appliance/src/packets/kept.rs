//! Listeners that outlive the daemon: the service manager keeps them while it restarts, and
//! connections that arrive meanwhile wait in their queues instead of being refused.
//!
//! A kept listener is taken only where it is what a new one would be. What nobody takes is shut
//! down: the kernel would go on giving it a part of the connections, and nobody would answer them.

use std::{
    fs::File,
    io::{self, BufRead, BufReader},
    net::Shutdown,
    os::fd::OwnedFd,
};

use rustix::fs::fstat;
use socket2::{Domain, Socket};

use super::{
    Capture, PacketsError,
    listen::{Listener, assert_transparent, families, listener},
};
use crate::policy::InterfaceName;

/// Listeners of an earlier daemon. Shut down when dropped.
#[derive(Debug, Default)]
pub struct Kept(Vec<Socket>);

impl Kept {
    /// What was handed over. Anything that is not a listener of ours is never taken.
    pub fn new(handed: Vec<OwnedFd>) -> Self {
        Self(handed.into_iter().map(Socket::from).collect())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One listener for each interface and family, kept or new. Called once for every worker, after
    /// [`claim`](super::claim).
    ///
    /// # Errors
    ///
    /// Whatever keeps one of them from listening transparently. None is returned then.
    pub fn listen(&mut self, capture: &Capture) -> Result<Vec<Listener>, PacketsError> {
        let mut all = Vec::new();
        for each in &capture.interfaces {
            for &family in families(capture) {
                all.push(match self.take(capture.proxy_port, &each.name, family) {
                    Some(socket) => {
                        assert_transparent(&socket, &each.name, family)?;
                        Listener { interface: each.name.clone(), socket: socket.into() }
                    }
                    None => listener(capture, &each.name, family)?,
                });
            }
        }
        Ok(all)
    }

    /// Whether these and nobody else listen on the port in this network namespace.
    pub(super) fn are_alone(&self, port: u16) -> io::Result<bool> {
        let own: Vec<u64> =
            self.0.iter().map(|socket| Ok(fstat(socket)?.st_ino)).collect::<io::Result<_>>()?;
        let listening = [listening("/proc/net/tcp", port)?, listening("/proc/net/tcp6", port)?];
        Ok(listening.concat().iter().all(|inode| own.contains(inode)))
    }

    fn take(&mut self, port: u16, interface: &InterfaceName, family: Domain) -> Option<Socket> {
        let fits = |socket: &Socket| fits(socket, port, interface, family).unwrap_or(false);
        let at = self.0.iter().position(fits)?;
        Some(self.0.swap_remove(at))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for socket in &self.0 {
            // One that does not listen has nobody waiting.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

fn fits(socket: &Socket, port: u16, interface: &InterfaceName, family: Domain) -> io::Result<bool> {
    let address = socket.local_addr()?.as_socket();
    let bound = address.is_some_and(|at| at.port() == port && at.ip().is_unspecified());
    let device = socket.device()?.is_some_and(|name| name == interface.as_str().as_bytes());
    let shared = socket.is_listener()? && socket.reuse_port()?;
    let alone = family != Domain::IPV6 || socket.only_v6()?;
    Ok(bound && device && shared && alone && socket.domain()? == family && socket.nonblocking()?)
}

/// The inodes of the sockets that listen on the port (`proc_net_tcp`, the kernel's document). They
/// come first in the file, before the connections.
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
