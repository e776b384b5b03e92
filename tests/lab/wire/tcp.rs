//! The byte streams in recorded packets, of IPv4 and IPv6.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

/// Returns the byte streams of TCP, each up to its first gap.
pub(super) fn reassemble(packets: &[Vec<u8>]) -> BTreeMap<(SocketAddr, SocketAddr), Vec<u8>> {
    let mut segments: BTreeMap<_, (u32, BTreeMap<u32, &[u8]>)> = BTreeMap::new();
    for segment in packets.iter().filter_map(|packet| Segment::of(packet)) {
        let flow = (segment.from, segment.to);
        if segment.syn {
            segments.entry(flow).or_insert((segment.sequence.wrapping_add(1), BTreeMap::new()));
        } else if let Some((first, parts)) = segments.get_mut(&flow) {
            let at = segment.sequence.wrapping_sub(*first);
            let longest = parts.entry(at).or_default();
            if longest.len() < segment.payload.len() {
                *longest = segment.payload;
            }
        }
    }
    segments.into_iter().map(|(flow, (_, parts))| (flow, join(parts))).collect()
}

fn join(parts: BTreeMap<u32, &[u8]>) -> Vec<u8> {
    let mut stream = Vec::new();
    for (at, part) in parts {
        let known = stream.len().checked_sub(at as usize);
        match known.map(|known| part.get(known..)) {
            Some(Some(new)) => stream.extend_from_slice(new),
            // A retransmission that is shorter.
            Some(None) => {}
            // A keep-alive probe is one byte before the window, which here looks far beyond every
            // stream.
            None if part.len() <= 1 => {}
            None => panic!("{MISSING}"),
        }
    }
    stream
}

/// A TCP segment in an Ethernet frame.
struct Segment<'p> {
    from: SocketAddr,
    to: SocketAddr,
    sequence: u32,
    syn: bool,
    payload: &'p [u8],
}

impl<'p> Segment<'p> {
    fn of(frame: &'p [u8]) -> Option<Self> {
        let packet = frame.get(14..)?;
        let address4 =
            |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
        let address6 =
            |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
        let (protocol, from, to, segment) = match frame.get(12..14)? {
            [0x08, 0x00] => {
                let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
                let head = usize::from(packet[0] & 15) * 4;
                (packet[9], address4(12)?, address4(16)?, packet.get(head..length)?)
            }
            [0x86, 0xdd] => {
                let length = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
                (packet[6], address6(8)?, address6(24)?, packet.get(40..40 + length)?)
            }
            _ => return None,
        };
        if protocol != TCP {
            return None;
        }
        let port = |at: usize| Some(u16::from_be_bytes([*segment.get(at)?, *segment.get(at + 1)?]));
        let head = usize::from(segment.get(12)? >> 4) * 4;
        Some(Self {
            from: SocketAddr::new(from, port(0)?),
            to: SocketAddr::new(to, port(2)?),
            sequence: u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?),
            syn: segment.get(13)? & 2 != 0,
            payload: segment.get(head..)?,
        })
    }
}

const TCP: u8 = 6;

const MISSING: &str = "a packet is missing from the recording: the kernel gives an ordinary user's \
                       recorder little room, and this machine was too busy to empty it; run as root";
