//! The address that a text stands for, in every form in which it can be written.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use rustix::io::Errno;

use crate::policy::nat64;

/// Returns the IPv4 address inside a mapped, compatible, NAT64, 6to4 or Teredo address; returns any
/// other address unchanged.
pub fn unwrapped(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    embedded_v4(v6).map_or(address, IpAddr::V4)
}

/// Returns whether the kernel has a route to the address. Nothing is sent: to connect a datagram
/// socket only looks up the route. Errs to yes.
pub fn has_route(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let looked_up = UdpSocket::bind(SocketAddr::new(any, 0))
        .and_then(|socket| socket.connect(SocketAddr::new(address, DISCARD)));
    match looked_up.map_err(|error| error.raw_os_error()) {
        Ok(()) => true,
        // The kernel has no route, or one that is unreachable, prohibited or a black hole; no
        // source address of that family; or no such family.
        Err(Some(code)) => !NO_ROUTE.iter().any(|errno| errno.raw_os_error() == code),
        Err(None) => true,
    }
}

const NO_ROUTE: [Errno; 6] = [
    Errno::NETUNREACH,
    Errno::HOSTUNREACH,
    Errno::ACCESS,
    Errno::INVAL,
    Errno::ADDRNOTAVAIL,
    Errno::AFNOSUPPORT,
];
/// Any port will do (RFC 863).
const DISCARD: u16 = 9;

fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    match [a, b, c, d, e, f] {
        // IPv4-mapped (RFC 4291, section 2.5.5.2) and IPv4-translated (RFC 2765).
        [0, 0, 0, 0, 0, 0xffff] | [0, 0, 0, 0, 0xffff, 0] => Some(from_halves(g, h)),
        // IPv4-compatible (RFC 4291, section 2.5.5.1); :: and ::1 are addresses of their own.
        [0, 0, 0, 0, 0, 0] if g != 0 || h > 1 => Some(from_halves(g, h)),
        // 6to4 (RFC 3056).
        [0x2002, high, low, ..] => Some(from_halves(high, low)),
        // Teredo: the client's address, inverted (RFC 4380, section 4).
        [0x2001, 0, ..] => Some(from_halves(!g, !h)),
        _ => nat64::embedded(&nat64::WELL_KNOWN, address),
    }
}

fn from_halves(high: u16, low: u16) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))
}
