//! The transparent listeners: the only sockets that agents ever reach.
//!
//! Each is bound to one interface and one family, shares its port only with the other workers of
//! this daemon, and is checked for transparency after it was created: one that is not transparent
//! would receive nothing while agents' connections went elsewhere.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
};

use nftnl::nftnl_sys::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    super::{
        error::PacketsError,
        ruleset::capture::{Capture, DNS_PORT, dns_at},
    },
    holder,
};
use crate::{
    net::{harden, make_room, tell_destinations},
    policy::InterfaceName,
};

/// A listener and its interface.
#[derive(Debug)]
pub struct Listener {
    /// The interface of its connections, below which an agent's group is looked up.
    pub interface: InterfaceName,
    /// Non-blocking. `local_addr` of an accepted connection is the address that the agent dialled.
    pub socket: TcpListener,
}

/// The sockets that agents' DNS queries reach, of one interface and family.
#[derive(Debug)]
pub struct DnsSockets {
    /// The interface of the queries.
    pub interface: InterfaceName,
    /// Non-blocking, on port 53, because answers have to come from there. The kernel tells the
    /// destination beside each datagram.
    pub udp: UdpSocket,
    /// Non-blocking. `local_addr` of an accepted connection is the address that the agent dialled.
    pub tcp: TcpListener,
}

pub(crate) fn dns_udp(
    interface: &InterfaceName,
    family: Domain,
) -> Result<UdpSocket, PacketsError> {
    let step = |doing| move |source| listen_error(interface, doing, source);
    let socket = open_as(interface, family, Type::DGRAM, Protocol::UDP)?;
    tell_destinations(&socket, family == Domain::IPV6).map_err(step("set IP_PKTINFO"))?;
    make_room(&socket);
    bind(&socket, interface, dns_address(family))?;
    socket.set_nonblocking(true).map_err(step("set O_NONBLOCK"))?;
    assert_transparent(&socket, interface, family)?;
    Ok(socket.into())
}

pub(crate) fn dns_address(family: Domain) -> SocketAddr {
    SocketAddr::new(dns_at(family == Domain::IPV6), DNS_PORT)
}

pub(crate) fn dns_tcp(
    interface: &InterfaceName,
    family: Domain,
) -> Result<TcpListener, PacketsError> {
    let step = |doing| move |source| listen_error(interface, doing, source);
    let socket = open(interface, family)?;
    bind(&socket, interface, dns_address(family))?;
    socket.listen(BACKLOG).map_err(step("listen"))?;
    socket.set_nonblocking(true).map_err(step("set O_NONBLOCK"))?;
    assert_transparent(&socket, interface, family)?;
    Ok(socket.into())
}

/// Returns the families that are carried.
pub(crate) fn families(capture: &Capture) -> &'static [Domain] {
    if capture.ipv6 { &[Domain::IPV4, Domain::IPV6] } else { &[Domain::IPV4] }
}

/// Creates a listener.
pub(crate) fn listener(
    capture: &Capture,
    interface: &InterfaceName,
    family: Domain,
) -> Result<Listener, PacketsError> {
    let socket = open(interface, family)?;
    let step = |doing| move |source| listen_error(interface, doing, source);
    socket.set_reuse_port(true).map_err(step("set SO_REUSEPORT"))?;
    bind(&socket, interface, wildcard(family, capture.proxy_port))?;
    socket.listen(BACKLOG).map_err(step("listen"))?;
    socket.set_nonblocking(true).map_err(step("set O_NONBLOCK"))?;
    assert_transparent(&socket, interface, family)?;
    Ok(Listener { interface: interface.clone(), socket: socket.into() })
}

/// Opens a transparent TCP socket of one interface, which is not bound to a port yet. The
/// connections that it accepts once it listens are hardened.
pub(super) fn open(interface: &InterfaceName, family: Domain) -> Result<Socket, PacketsError> {
    let socket = open_as(interface, family, Type::STREAM, Protocol::TCP)?;
    // Allows a restart to bind while old connections are in TIME_WAIT, but not beside a listener.
    let reuse = socket.set_reuse_address(true);
    reuse.map_err(|source| listen_error(interface, "set SO_REUSEADDR", source))?;
    harden(&socket).map_err(|source| listen_error(interface, "set TCP options", source))?;
    Ok(socket)
}

/// Opens a transparent socket of one interface, which is not bound to a port yet.
fn open_as(
    interface: &InterfaceName,
    family: Domain,
    kind: Type,
    protocol: Protocol,
) -> Result<Socket, PacketsError> {
    let step = |doing| move |source| listen_error(interface, doing, source);
    let socket = Socket::new(family, kind, Some(protocol)).map_err(step("open a socket"))?;
    if family == Domain::IPV6 {
        // Without it the socket would also take IPv4, under mapped addresses.
        socket.set_only_v6(true).map_err(step("set IPV6_V6ONLY"))?;
        socket.set_ip_transparent_v6(true).map_err(step("set IPV6_TRANSPARENT"))?;
    } else {
        socket.set_ip_transparent_v4(true).map_err(step("set IP_TRANSPARENT"))?;
    }
    let name = interface.as_str().as_bytes();
    socket.bind_device(Some(name)).map_err(step("set SO_BINDTODEVICE"))?;
    Ok(socket)
}

pub(crate) fn wildcard(family: Domain, port: u16) -> SocketAddr {
    match family {
        Domain::IPV6 => (Ipv6Addr::UNSPECIFIED, port).into(),
        _ => (Ipv4Addr::UNSPECIFIED, port).into(),
    }
}

pub(super) fn bind(
    socket: &Socket,
    interface: &InterfaceName,
    at: SocketAddr,
) -> Result<(), PacketsError> {
    socket.bind(&at.into()).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => in_use(at, interface),
        _ => listen_error(interface, "bind", source),
    })
}

pub(super) fn in_use(at: SocketAddr, interface: &InterfaceName) -> PacketsError {
    let (port, holders) = (at.port(), holder::of(at));
    PacketsError::PortInUse { port, interface: interface.clone(), holders }
}

/// Asks the kernel, and does not trust that setting the option has worked.
pub(crate) fn assert_transparent(
    socket: &Socket,
    interface: &InterfaceName,
    family: Domain,
) -> Result<(), PacketsError> {
    let transparent = match family {
        Domain::IPV6 => socket.ip_transparent_v6(),
        _ => socket.ip_transparent_v4(),
    };
    match transparent {
        Ok(true) => Ok(()),
        Ok(false) => Err(PacketsError::NotTransparent(interface.clone())),
        Err(source) => Err(listen_error(interface, "ask for transparency", source)),
    }
}

pub(super) fn listen_error(
    interface: &InterfaceName,
    doing: &'static str,
    source: io::Error,
) -> PacketsError {
    match source.raw_os_error() {
        Some(libc::EACCES) if doing == "bind" => PacketsError::NoBindService,
        Some(libc::EPERM) => PacketsError::NoNetAdmin { doing: "listen transparently" },
        Some(libc::ENODEV) => PacketsError::NoInterface(interface.clone()),
        _ => PacketsError::Listen { interface: interface.clone(), doing, source },
    }
}

/// Connections that wait to be accepted; the kernel caps it at net.core.somaxconn (4096).
const BACKLOG: i32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_that_is_not_transparent_is_refused() {
        let interface = InterfaceName("agents0".into());
        for family in [Domain::IPV4, Domain::IPV6] {
            let socket = Socket::new(family, Type::STREAM, Some(Protocol::TCP)).unwrap();
            let refused = assert_transparent(&socket, &interface, family).unwrap_err();
            assert!(matches!(refused, PacketsError::NotTransparent(_)), "{refused}");
        }
    }
}
