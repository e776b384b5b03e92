//! The right to listen, which only one daemon at a time has.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixDatagram},
    },
};

use rustix::net::netdevice::name_to_index;
use socket2::Domain;

use super::{
    super::{error::PacketsError, ruleset::capture::Capture},
    inherited::InheritedListeners,
    listen::{bind, families, in_use, open, wildcard},
};
use crate::policy::InterfaceName;

/// The right to listen in this network namespace. Held for as long as the daemon listens.
#[derive(Debug)]
pub struct ListenerClaim {
    lock: UnixDatagram,
    /// The interfaces at the start, with their numbers.
    devices: Vec<(InterfaceName, u32)>,
}

impl ListenerClaim {
    /// Returns interfaces that were created again since the start, so that nobody listens on them:
    /// a socket stays bound to the old device, whatever the new one is called.
    pub fn unserved(&self) -> Vec<&InterfaceName> {
        let made_again = self.devices.iter().filter(|(name, number)| {
            name_to_index(&self.lock, name.as_str()).is_ok_and(|now| now != *number)
        });
        made_again.map(|(name, _)| name).collect()
    }
}

/// Makes sure that no other process is behind the proxy port.
///
/// Workers share the port through `SO_REUSEPORT`, and the kernel would let any process of the same
/// user share it too and take a part of the connections. Two things prevent that: a lock, which is
/// an abstract unix address, belongs to one network namespace as ports do and ends with its
/// process; and a probe that binds the port without sharing it. Where an earlier daemon's listeners
/// are kept, such a probe would meet them; then the kernel is asked whether anybody else listens.
///
/// # Errors
///
/// [`PacketsError::AlreadyRunning`] where the lock is held, [`PacketsError::PortInUse`] where
/// another process is found.
pub fn claim(
    inherited: &InheritedListeners,
    capture: &Capture,
) -> Result<ListenerClaim, PacketsError> {
    let port = capture.proxy_port;
    let lock = lock(port).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => PacketsError::AlreadyRunning { port },
        _ => PacketsError::Netlink { doing: "claim the proxy port", source },
    })?;
    let names = capture.interfaces.iter().map(|each| each.name.clone());
    let number = |name: &InterfaceName| name_to_index(&lock, name.as_str()).ok();
    let devices = names.filter_map(|name| Some((name.clone(), number(&name)?))).collect();
    if !inherited.is_empty() {
        let asking = |source| PacketsError::Netlink { doing: "ask who listens", source };
        return match (inherited.are_alone(port).map_err(asking)?, capture.interfaces.first()) {
            (false, Some(first)) => Err(in_use(wildcard(Domain::IPV4, port), &first.name)),
            _ => Ok(ListenerClaim { lock, devices }),
        };
    }
    for each in &capture.interfaces {
        for &family in families(capture) {
            let probe = open(&each.name, family)?;
            bind(&probe, &each.name, wildcard(family, port))?;
        }
    }
    Ok(ListenerClaim { lock, devices })
}

fn lock(port: u16) -> io::Result<UnixDatagram> {
    let address = UnixAddr::from_abstract_name(format!("cloakroom/proxy-port/{port}"))?;
    UnixDatagram::bind_addr(&address)
}
