//! The machine's own addresses, as the kernel tells of them.
//!
//! A list is kept, and a subscription to what changes in it (`rtnetlink(7)`). Every question first
//! reads what was told since the last one: the kernel tells of an address before it delivers to it,
//! and puts that into the socket's queue itself, so that there is no moment at which an address of
//! a card is the machine's and the answer is no. That costs a question one system call, and nobody
//! has to follow. While the list cannot be had, each address counts as own.

use std::{
    collections::HashSet,
    io,
    net::IpAddr,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use ipnet::IpNet;
use nftnl::nftnl_sys::libc;
use rtnetlink::sys::{self, protocols::NETLINK_ROUTE};
use rustix::io::Errno;
use socket2::SockRef;

use crate::{
    locks::lock,
    net::netlink::{Message, attribute, message, messages},
    seldom::Seldom,
};

/// The addresses of this thread's network namespace, from the first question on.
#[derive(Default)]
pub(super) struct OwnAddresses(Mutex<Option<Followed>>);

impl OwnAddresses {
    /// Whether the address is one of this machine's own. Errs to yes.
    pub(super) fn holds(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let is_broadcast = matches!(address, IpAddr::V4(it) if it.is_broadcast());
        if address.is_loopback()
            || address.is_unspecified()
            || address.is_multicast()
            || is_broadcast
        {
            return true;
        }
        let mut followed = lock(&self.0);
        match current(&mut followed) {
            Ok(list) => list.holds(address),
            Err(error) => {
                // The list is not followed any more; the next question reads it again.
                *followed = None;
                warn(&error);
                true
            }
        }
    }
}

impl std::fmt::Debug for OwnAddresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OwnAddresses")
    }
}

/// The list as it is now.
fn current(followed: &mut Option<Followed>) -> io::Result<&AddressList> {
    let followed = match followed {
        Some(followed) => followed,
        None => followed.insert(Followed::begin()?),
    };
    followed.catch_up()?;
    Ok(&followed.list)
}

/// A list, and what is told of changes in it.
struct Followed {
    changes: sys::Socket,
    heard: Vec<u8>,
    list: AddressList,
    /// Whether something may have changed since the list was read.
    stale: bool,
}

impl Followed {
    /// Subscribed first and read then, so that no change is between.
    fn begin() -> io::Result<Self> {
        let mut changes = sys::Socket::new(NETLINK_ROUTE)?;
        changes.bind(&sys::SocketAddr::new(0, GROUPS))?;
        let heard = Vec::with_capacity(HEARD_BYTES);
        Ok(Self { changes, heard, list: AddressList::default(), stale: true })
    }

    /// Hears what was told, and reads the list again where that may have changed it. An address
    /// that comes while it is read is heard of afterwards.
    fn catch_up(&mut self) -> io::Result<()> {
        for _ in 0..MAX_READINGS {
            self.hear()?;
            if !self.stale {
                return Ok(());
            }
            (self.list, self.stale) = AddressList::read()?;
        }
        self.hear()?;
        if self.stale { Err(io::Error::other("the addresses keep changing")) } else { Ok(()) }
    }

    fn hear(&mut self) -> io::Result<()> {
        loop {
            self.heard.clear();
            match self.changes.recv(&mut self.heard, libc::MSG_DONTWAIT) {
                // One that was cut is not worth a look.
                Ok(length) => {
                    self.stale |= length >= self.heard.capacity() || changes_list(&self.heard)
                }
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::AGAIN) => return Ok(()),
                    Some(Errno::INTR) => {}
                    // More was told than there was room for.
                    Some(Errno::NOBUFS) => self.stale = true,
                    _ => return Err(error),
                },
            }
        }
    }
}

/// Addresses of cards, and the kernel's table of what it delivers to itself.
#[derive(Debug, Default)]
struct AddressList {
    single: HashSet<IpAddr>,
    wide: Vec<IpNet>,
}

impl AddressList {
    fn holds(&self, address: IpAddr) -> bool {
        self.single.contains(&address) || self.wide.iter().any(|net| net.contains(&address))
    }

    /// Returns the list, and whether it changed while it was read.
    fn read() -> io::Result<(Self, bool)> {
        let (mut list, mut interrupted) = (Self::default(), false);
        for family in [libc::AF_INET, libc::AF_INET6] {
            let [addresses, mut routes] = [ADDRESS_HEADER, ROUTE_HEADER].map(|it| vec![0; it]);
            if let Some(table) = routes.get_mut(TABLE_AT) {
                *table = libc::RT_TABLE_LOCAL;
            }
            for (kind, mut body) in [(libc::RTM_GETADDR, addresses), (libc::RTM_GETROUTE, routes)] {
                if let Some(of) = body.first_mut() {
                    *of = family as u8;
                }
                interrupted |= dump(kind, &body, |message| list.take(message))?;
            }
        }
        Ok((list, interrupted))
    }

    fn take(&mut self, message: &Message<'_>) -> io::Result<()> {
        let held = match message.kind {
            libc::RTM_NEWADDR => card_address(message.payload)?,
            libc::RTM_NEWROUTE if is_of_local_table(message.payload) => delivered(message.payload)?,
            _ => None,
        };
        match held {
            Some(net) if net.prefix_len() == net.max_prefix_len() => {
                self.single.insert(net.addr());
            }
            Some(net) => self.wide.push(net),
            None => {}
        }
        Ok(())
    }
}

/// The address of a card: the local one, where it has a peer.
fn card_address(payload: &[u8]) -> io::Result<Option<IpNet>> {
    let Some(family) = family(payload) else { return Ok(None) };
    let attributes = payload.get(ADDRESS_HEADER..).unwrap_or_default();
    let local = attribute(attributes, libc::IFA_LOCAL);
    let address = local.or_else(|| attribute(attributes, libc::IFA_ADDRESS));
    let address = address.and_then(|bytes| read(family, bytes)).ok_or_else(unread)?;
    Ok(Some(address.into()))
}

/// The addresses that the kernel does not pass on: its own, and those of everybody on a link.
fn delivered(payload: &[u8]) -> io::Result<Option<IpNet>> {
    let (Some(family), Some(&kind)) = (family(payload), payload.get(KIND_AT)) else {
        return Ok(None);
    };
    if !DELIVERED.contains(&kind) {
        return Ok(None);
    }
    let length = payload.get(LENGTH_AT).copied().ok_or_else(unread)?;
    let attributes = payload.get(ROUTE_HEADER..).unwrap_or_default();
    let net = match attribute(attributes, libc::RTA_DST) {
        Some(bytes) => read(family, bytes),
        None if length == 0 => read(family, &[0; 16]),
        None => None,
    };
    let net = net.and_then(|address| IpNet::new(address, length).ok()).ok_or_else(unread)?;
    Ok(Some(net.trunc()))
}

/// Whether a datagram tells of something that may be in the list.
fn changes_list(datagram: &[u8]) -> bool {
    messages(datagram).any(|message| match message.kind {
        libc::RTM_NEWADDR | libc::RTM_DELADDR => true,
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => is_of_local_table(message.payload),
        _ => false,
    })
}

fn is_of_local_table(payload: &[u8]) -> bool {
    payload.get(TABLE_AT) == Some(&libc::RT_TABLE_LOCAL)
}

fn family(payload: &[u8]) -> Option<i32> {
    let family = i32::from(*payload.first()?);
    matches!(family, libc::AF_INET | libc::AF_INET6).then_some(family)
}

fn read(family: i32, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        libc::AF_INET => bytes.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        _ => bytes.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
    }
}

fn unread() -> io::Error {
    io::Error::other("an address that the kernel tells cannot be read")
}

/// Gives everything of one kind that the kernel has. Returns whether that changed in between: where
/// a card went away, something may be left out, and nobody is told.
fn dump(
    kind: u16,
    body: &[u8],
    mut take: impl FnMut(&Message<'_>) -> io::Result<()>,
) -> io::Result<bool> {
    let socket = sys::Socket::new(NETLINK_ROUTE)?;
    SockRef::from(&socket).set_read_timeout(Some(READ_DEADLINE))?;
    // Has the kernel tell of the one table alone. One that cannot tells of all.
    let _ = socket.set_netlink_get_strict_chk(true);
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    socket.send(&message(kind, flags, body), 0)?;
    let (mut buffer, mut interrupted) = (Vec::with_capacity(DUMP_BYTES), false);
    loop {
        buffer.clear();
        if socket.recv(&mut buffer, 0)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for message in messages(&buffer) {
            interrupted |= message.is_interrupted();
            match message.errno().or_else(|| message.end()) {
                None => take(&message)?,
                Some(0) => return Ok(interrupted),
                Some(code) if NONE.iter().any(|none| none.raw_os_error() == code) => {
                    return Ok(interrupted);
                }
                Some(code) => return Err(io::Error::from_raw_os_error(code)),
            }
        }
    }
}

/// Connections end for this, and agents decide how many there are.
fn warn(error: &io::Error) {
    static SELDOM: Seldom = Seldom::new();
    if SELDOM.is_due(SystemTime::now()) {
        tracing::error!(%error, "the gateway's own addresses are not known; no address is dialled");
    }
}

/// Addresses and routes of both families.
const GROUPS: u32 = (libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_ROUTE) as u32;
const DELIVERED: [u8; 4] =
    [libc::RTN_LOCAL, libc::RTN_BROADCAST, libc::RTN_ANYCAST, libc::RTN_MULTICAST];
/// `struct ifaddrmsg`, and `struct rtmsg` with where its fields stand.
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;
const LENGTH_AT: usize = 1;
const TABLE_AT: usize = 4;
const KIND_AT: usize = 7;
/// The most bytes of one notice: an address or a route takes some hundred.
const HEARD_BYTES: usize = 8 * 1024;
/// There is no such table yet, or no such family here, in which anything could be own.
const NONE: [Errno; 3] = [Errno::NOENT, Errno::OPNOTSUPP, Errno::AFNOSUPPORT];
/// The largest datagram the kernel makes for a dump is 32 KiB.
const DUMP_BYTES: usize = 64 * 1024;
const READ_DEADLINE: Duration = Duration::from_secs(1);
/// How often the list is read for one question.
const MAX_READINGS: usize = 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::net::netlink::encode;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_own_address_is_known() {
        let own = OwnAddresses::default();
        for text in ["127.0.0.1", "127.3.2.1", "0.0.0.0", "::1", "::ffff:127.0.0.1", "224.0.0.1"] {
            assert!(own.holds(address(text)), "{text}");
        }
        assert!(!own.holds(address("203.0.113.99")) && !own.holds(address("2001:db8:77::1")));
    }

    #[test]
    fn all_of_a_local_route_is_own() {
        let route = |kind: u8, table: u8, net: &str| {
            let net: IpNet = net.parse().unwrap();
            let (family, octets) = match net.addr() {
                IpAddr::V4(v4) => (libc::AF_INET, v4.octets().to_vec()),
                IpAddr::V6(v6) => (libc::AF_INET6, v6.octets().to_vec()),
            };
            let mut body =
                vec![family as u8, net.prefix_len(), 0, 0, table, 0, 0, kind, 0, 0, 0, 0];
            body.extend(encode(libc::RTA_DST, &octets));
            message(libc::RTM_NEWROUTE, 0, &body)
        };
        let local = libc::RT_TABLE_LOCAL;
        let told = [
            route(libc::RTN_LOCAL, local, "198.51.100.0/24"),
            route(libc::RTN_LOCAL, local, "2001:db8:5::7/128"),
            route(libc::RTN_UNICAST, local, "192.0.2.0/24"),
            route(libc::RTN_LOCAL, 100, "203.0.113.0/24"),
        ];
        let mut list = AddressList::default();
        for bytes in &told {
            messages(bytes).for_each(|message| list.take(&message).unwrap());
        }
        assert_eq!(list.wide, [net("198.51.100.0/24")]);
        assert!(list.holds(address("198.51.100.9")) && list.holds(address("2001:db8:5::7")));
        assert!(!list.holds(address("192.0.2.1")) && !list.holds(address("203.0.113.1")));
        let changing = |bytes: &Vec<u8>| changes_list(bytes);
        assert_eq!(told.each_ref().map(changing), [true, true, true, false]);
    }

    #[test]
    fn the_local_end_of_a_peers_link_is_own() {
        let mut body = vec![libc::AF_INET as u8, 32, 0, 0, 1, 0, 0, 0];
        body.extend(encode(libc::IFA_ADDRESS, &[192, 0, 2, 2]));
        body.extend(encode(libc::IFA_LOCAL, &[192, 0, 2, 1]));
        assert_eq!(card_address(&body).unwrap(), Some(net("192.0.2.1/32")));
        body.truncate(ADDRESS_HEADER);
        assert!(card_address(&body).is_err(), "an address that is not read is no address less");
    }

    proptest! {
        #[test]
        fn nothing_that_could_be_told_panics(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let _ = (changes_list(&bytes), card_address(&bytes), delivered(&bytes));
        }
    }
}
