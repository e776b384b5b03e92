//! The kernel's reports about packets that it refused: their heads, through NFLOG.
//!
//! The bytes are an agent's, cut short and as odd as it likes: they are read with lax bounds, and
//! unreadable parts are left out. Errs towards reporting loss: the kernel numbers its messages, and
//! every number that did not arrive is counted.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use etherparse::{LaxNetSlice, LaxSlicedPacket};
use nftnl::nftnl_sys::libc;

use super::{
    super::{error::PacketsError, ruleset::language::SNAPLEN},
    netlink::{self, Netfilter, attribute, messages, number, text},
};
use crate::{policy::InterfaceName, reason::Reason};

/// A subscription to the packets that the kernel refuses. Only one process can have it.
#[derive(Debug)]
pub struct PacketLog {
    netfilter: Netfilter,
    next: u32,
    names: HashMap<u32, Option<InterfaceName>>,
}

/// One packet that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedPacket {
    /// The interface that it came in by; `None` where that is already gone.
    pub interface: Option<InterfaceName>,
    /// The reason.
    pub reason: Reason,
    /// Its headers, as far as they can be read.
    pub headers: Option<Headers>,
}

/// The headers of a packet. The sender chose all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// Its source.
    pub source: IpAddr,
    /// Its destination.
    pub destination: IpAddr,
    /// The transport protocol by its number, behind any extension headers.
    pub protocol: u8,
    /// The destination port, if the protocol has ports and the logged bytes reach that far.
    pub port: Option<u16>,
}

impl PacketLog {
    /// Subscribes to a group.
    ///
    /// # Errors
    ///
    /// The kernel has no NFLOG, the capability is missing, or another process has the group.
    pub fn open(group: u16) -> Result<Self, PacketsError> {
        let failed = |source| PacketsError::PacketLog { group, source };
        let mut netfilter = Netfilter::open().map_err(failed)?;
        netfilter.widen(BUFFER_BYTES);
        for body in [bind(), configuration()] {
            netfilter.send(&request(group, &body)).map_err(failed)?;
            acknowledged(&mut netfilter).map_err(failed)?;
        }
        netfilter.set_timeout(TIMEOUT).map_err(failed)?;
        Ok(Self { netfilter, next: 0, names: HashMap::new() })
    }

    /// Passes every packet that is logged before `until` to `take`, and returns how many were
    /// logged but did not arrive. May return up to a quarter of a second late.
    ///
    /// # Errors
    ///
    /// The subscription has failed.
    pub fn read(&mut self, until: Instant, mut take: impl FnMut(RefusedPacket)) -> io::Result<u64> {
        // An interface that is removed and created again has another number.
        self.names.clear();
        let mut lost = 0;
        while Instant::now() < until {
            lost += self.read_once(&mut take)?;
        }
        Ok(lost)
    }

    fn read_once(&mut self, take: &mut impl FnMut(RefusedPacket)) -> io::Result<u64> {
        let (netfilter, names) = (&mut self.netfilter, &mut self.names);
        let datagram = match netfilter.receive() {
            Ok(datagram) => datagram.to_vec(),
            Err(error) if is_passing(&error) => return Ok(0),
            Err(error) => return Err(error),
        };
        let mut lost = 0;
        for message in messages(&datagram).filter(|message| message.kind == PACKET) {
            let body = message.payload.get(netlink::GENMSG_BYTES..).unwrap_or_default();
            lost += missing(&mut self.next, body);
            let index = number(body, libc::NFULA_IFINDEX_INDEV as u16);
            let interface = index.and_then(|index| {
                if names.len() >= MAX_NAMES {
                    names.clear();
                }
                names.entry(index).or_insert_with(|| self.netfilter.interface(index)).clone()
            });
            if let Some((reason, headers)) = refused(body) {
                take(RefusedPacket { interface, reason, headers });
            }
        }
        Ok(lost)
    }
}

/// Returns how many messages before this one did not arrive. `next` is the expected number.
fn missing(next: &mut u32, body: &[u8]) -> u64 {
    let Some(sequence) = number(body, libc::NFULA_SEQ as u16) else { return 0 };
    let missing = sequence.wrapping_sub(*next);
    *next = sequence.wrapping_add(1);
    missing.into()
}

/// Reads the word that our rule gave, and the packet. Another program's log has another word.
fn refused(body: &[u8]) -> Option<(Reason, Option<Headers>)> {
    let word = text(body, libc::NFULA_PREFIX as u16)?;
    let reason = Reason::ALL.iter().find(|reason| reason.as_str() == word)?;
    let packet = attribute(body, libc::NFULA_PAYLOAD as u16).unwrap_or_default();
    Some((*reason, headers(packet)))
}

fn headers(packet: &[u8]) -> Option<Headers> {
    let sliced = LaxSlicedPacket::from_ip(packet).ok()?;
    let net = sliced.net?;
    let (source, destination): (IpAddr, IpAddr) = match &net {
        LaxNetSlice::Ipv4(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        LaxNetSlice::Ipv6(ip) => {
            (ip.header().source_addr().into(), ip.header().destination_addr().into())
        }
        LaxNetSlice::Arp(_) => return None,
    };
    let payload = net.ip_payload_ref()?;
    let protocol = payload.ip_number.0;
    let port = payload.payload.get(2..4).and_then(|port| port.first_chunk::<2>());
    // The first fragment of a packet holds the ports, as the whole one does.
    let port =
        port.filter(|_| WITH_PORTS.contains(&protocol)).map(|port| u16::from_be_bytes(*port));
    Some(Headers { source, destination, protocol, port })
}

/// Returns whether nothing came in time, or more came than there was room for, which the numbers
/// show.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
        || error.raw_os_error() == Some(libc::ENOBUFS)
}

fn acknowledged(netfilter: &mut Netfilter) -> io::Result<()> {
    loop {
        for message in messages(netfilter.receive()?) {
            match message.errno() {
                Some(0) => return Ok(()),
                Some(errno) => return Err(io::Error::from_raw_os_error(errno)),
                None => {}
            }
        }
    }
}

fn request(group: u16, attributes: &[u8]) -> Vec<u8> {
    let [high, low] = group.to_be_bytes();
    let mut body = vec![libc::AF_UNSPEC as u8, 0, high, low];
    body.extend(attributes);
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    netlink::message(LOG_SUBSYSTEM | libc::NFULNL_MSG_CONFIG as u16, flags, &body)
}

fn bind() -> Vec<u8> {
    netlink::encode(libc::NFULA_CFG_CMD as u16, &[libc::NFULNL_CFG_CMD_BIND as u8])
}

fn configuration() -> Vec<u8> {
    let mut mode = SNAPLEN.to_be_bytes().to_vec();
    mode.extend([libc::NFULNL_COPY_PACKET as u8, 0]);
    let sequence = (libc::NFULNL_CFG_F_SEQ as u16).to_be_bytes();
    [
        netlink::encode(libc::NFULA_CFG_MODE as u16, &mode),
        netlink::encode(libc::NFULA_CFG_NLBUFSIZ as u16, &BATCH_BYTES.to_be_bytes()),
        netlink::encode(libc::NFULA_CFG_TIMEOUT as u16, &BATCH_CENTISECONDS.to_be_bytes()),
        netlink::encode(libc::NFULA_CFG_QTHRESH as u16, &BATCH_PACKETS.to_be_bytes()),
        netlink::encode(libc::NFULA_CFG_FLAGS as u16, &sequence),
    ]
    .concat()
}

const LOG_SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_ULOG as u16) << 8;
const PACKET: u16 = LOG_SUBSYSTEM | libc::NFULNL_MSG_PACKET as u16;
/// Time for which one read waits.
const TIMEOUT: Duration = Duration::from_millis(250);
/// Bytes that the kernel may keep for us: some ten thousand packets.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// The kernel delivers packets in batches: after so many bytes or packets, or after so long.
const BATCH_BYTES: u32 = 32 * 1024;
const BATCH_PACKETS: u32 = 100;
const BATCH_CENTISECONDS: u32 = 10;
/// Names of interfaces that are remembered within one read.
const MAX_NAMES: usize = 1_024;
/// TCP, UDP, DCCP, SCTP and UDP-Lite: the destination port is in bytes 2 and 3.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
        let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
    }

    /// UDP from 192.0.2.10 to 198.51.100.10, port 443.
    const UDP_4: &str = "4500 0024 0000 4000 4011 0000 c000020a c633640a 9000 01bb 0010 0000";
    /// UDP to port 53 behind a hop-by-hop and a destination header.
    const UDP_6: &str = "60000000 0018 00 40 20010db8000a00000000000000000010 \
        20010db8000e00000000000000000020 3c00010400000000 1100010400000000 9000 0035 0008 0000";

    #[test]
    fn ports_are_read_behind_extension_headers() {
        let read = headers(&hex(UDP_4)).unwrap();
        assert_eq!((read.protocol, read.port), (17, Some(443)));
        assert_eq!(read.source, IpAddr::from([192, 0, 2, 10]));
        assert_eq!(read.destination, IpAddr::from([198, 51, 100, 10]));
        let read = headers(&hex(UDP_6)).unwrap();
        assert_eq!((read.protocol, read.port), (17, Some(53)));
    }

    #[test]
    fn a_packet_cut_short_anywhere_says_what_it_still_can() {
        for (packet, ip) in [(hex(UDP_4), 20), (hex(UDP_6), 40)] {
            for end in 0..=packet.len() {
                let read = headers(&packet[..end]);
                assert_eq!(read.is_some(), end >= ip, "{end}");
                let port = read.and_then(|read| read.port);
                assert!(port.is_none() || port == headers(&packet).unwrap().port, "{end}");
            }
        }
    }

    #[test]
    fn every_number_that_did_not_arrive_is_counted() {
        let mut next = 0;
        let mut counts = |numbers: &[u32]| {
            let body =
                |number: &u32| netlink::encode(libc::NFULA_SEQ as u16, &number.to_be_bytes());
            numbers.iter().map(|it| missing(&mut next, &body(it))).collect::<Vec<_>>()
        };
        assert_eq!(counts(&[0, 1, 5, 6]), [0, 0, 3, 0]);
        assert_eq!(counts(&[u32::MAX, 0, 2]), [u64::from(u32::MAX) - 7, 0, 1], "it wraps");
        assert_eq!(missing(&mut next, &[]), 0, "a message without a number says nothing");
        assert_eq!(next, 3);
    }

    #[test]
    fn only_our_own_words_count() {
        let body = |word: &str| {
            let mut body =
                netlink::encode(libc::NFULA_PREFIX as u16, format!("{word}\0").as_bytes());
            body.extend(netlink::encode(libc::NFULA_PAYLOAD as u16, &hex(UDP_4)));
            body
        };
        assert_eq!(refused(&body("port_denied")).unwrap().0, Reason::PortDenied);
        assert_eq!(refused(&body("somebody else's")), None);
    }

    proptest! {
        #[test]
        fn nothing_an_agent_could_send_panics(bytes in prop::collection::vec(any::<u8>(), 0..160)) {
            let _ = headers(&bytes);
            for first in [0x45, 0x4f, 0x60] {
                let mut bytes = bytes.clone();
                if let Some(byte) = bytes.first_mut() {
                    *byte = first;
                }
                let _ = headers(&bytes);
            }
        }
    }
}
