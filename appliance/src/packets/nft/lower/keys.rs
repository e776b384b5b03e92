//! The expressions that load each key of the plan into registers: source, offset and width.
//!
//! Pure. One register is enough, because no rule compares two fields; only keys of several fields
//! fill the registers after it.

use nftnl::nftnl_sys::libc;

use super::super::raw_expr::{REGISTER, RawExpr};
use crate::packets::ruleset::language::{Family, MatchKey};

/// Adds the expressions that load a key, with its first field in the register that is compared.
#[expect(clippy::too_many_lines, reason = "a table, with one entry for each key")]
pub(super) fn load(key: MatchKey, expressions: &mut Vec<RawExpr>) {
    let meta = |key: i32| RawExpr::meta_load(key as u32, REGISTER);
    match key {
        MatchKey::Interface => expressions.push(meta(libc::NFT_META_IIFNAME)),
        MatchKey::OutInterface => expressions.push(meta(libc::NFT_META_OIFNAME)),
        MatchKey::Family => expressions.push(meta(libc::NFT_META_NFPROTO)),
        MatchKey::L4 => expressions.push(meta(libc::NFT_META_L4PROTO)),
        MatchKey::Mark => expressions.push(meta(libc::NFT_META_MARK)),
        MatchKey::Source(family) => expressions.push(source(family, REGISTER)),
        MatchKey::Destination(family) => expressions.push(destination(family, REGISTER)),
        MatchKey::InterfaceAndSource(family) => {
            // The name takes sixteen bytes, one whole register, so the address starts the next.
            expressions.extend([meta(libc::NFT_META_IIFNAME), source(family, REGISTER + 1)]);
        }
        MatchKey::InterfaceAndDestination(family) => {
            expressions.extend([meta(libc::NFT_META_OIFNAME), destination(family, REGISTER + 1)]);
        }
        MatchKey::OpeningFlags => {
            expressions.push(RawExpr::payload(TRANSPORT, 13, 1, REGISTER));
            expressions.push(RawExpr::mask(REGISTER, &[SYN_AND_RST]));
        }
        MatchKey::HopLimit => expressions.push(RawExpr::payload(NETWORK, 7, 1, REGISTER)),
        MatchKey::Icmp6Type => expressions.push(RawExpr::payload(TRANSPORT, 0, 1, REGISTER)),
        MatchKey::SourcePort => expressions.push(RawExpr::payload(TRANSPORT, 0, 2, REGISTER)),
        MatchKey::DestinationPort => expressions.push(RawExpr::payload(TRANSPORT, 2, 2, REGISTER)),
        MatchKey::WayBack => {
            expressions.push(RawExpr::fib(FIB_SADDR | FIB_IIF | FIB_PRESENT, FIB_OIF))
        }
        MatchKey::WayBackInterface => expressions.push(RawExpr::fib(FIB_SADDR, FIB_OIFNAME)),
        MatchKey::SourceType => expressions.push(RawExpr::fib(FIB_SADDR, FIB_ADDRTYPE)),
        MatchKey::DestinationType => expressions.push(RawExpr::fib(FIB_DADDR, FIB_ADDRTYPE)),
        MatchKey::SocketTransparent => expressions.push(RawExpr::socket(SOCKET_TRANSPARENT)),
        MatchKey::SocketWildcard => expressions.push(RawExpr::socket(SOCKET_WILDCARD)),
        MatchKey::Icmp4Type => expressions.push(RawExpr::payload(TRANSPORT, 0, 1, REGISTER)),
        MatchKey::Icmp4Code | MatchKey::Icmp6Code => {
            expressions.push(RawExpr::payload(TRANSPORT, 1, 1, REGISTER));
        }
        MatchKey::DestinationTypeHere => {
            expressions.push(RawExpr::fib(FIB_DADDR | FIB_IIF, FIB_ADDRTYPE));
        }
        MatchKey::InterfaceAndAgent(family) => {
            expressions.extend([meta(libc::NFT_META_IIFNAME), source(family, REGISTER + 1)]);
            if family == Family::V6 {
                expressions.push(RawExpr::mask(REGISTER + 1, &AGENT_6));
            }
        }
        MatchKey::Priority => expressions.push(meta(libc::NFT_META_PRIORITY)),
        MatchKey::InterfaceType => expressions.push(meta(libc::NFT_META_IIFTYPE)),
        MatchKey::EtherType => expressions.push(RawExpr::payload(LINK, 12, 2, REGISTER)),
        MatchKey::Protocol => expressions.push(meta(libc::NFT_META_PROTOCOL)),
        MatchKey::Mac => expressions.push(mac(REGISTER)),
        MatchKey::ArpSource => expressions.push(arp_source(REGISTER)),
        MatchKey::InterfaceAndMac => {
            expressions.extend([meta(libc::NFT_META_IIFNAME), mac(REGISTER + 1)]);
        }
        MatchKey::InterfaceAndArpMac => {
            expressions.extend([meta(libc::NFT_META_IIFNAME), arp_mac(REGISTER + 1)]);
        }
        MatchKey::InterfaceAndArpSource => {
            expressions.extend([meta(libc::NFT_META_IIFNAME), arp_source(REGISTER + 1)]);
        }
        MatchKey::InterfaceMacAndSource(family) => expressions.extend([
            meta(libc::NFT_META_IIFNAME),
            mac(REGISTER + 1),
            source(family, AFTER_MAC),
        ]),
        MatchKey::InterfaceMacAndArpSource => expressions.extend([
            meta(libc::NFT_META_IIFNAME),
            mac(REGISTER + 1),
            arp_source(AFTER_MAC),
        ]),
        MatchKey::InterfaceArpMacAndArpSource => expressions.extend([
            meta(libc::NFT_META_IIFNAME),
            arp_mac(REGISTER + 1),
            arp_source(AFTER_MAC),
        ]),
        MatchKey::NeighbourTarget => expressions.push(RawExpr::payload(TRANSPORT, 8, 16, REGISTER)),
        MatchKey::DhcpClient => expressions.push(RawExpr::payload(TRANSPORT, 8 + 12, 4, REGISTER)),
        MatchKey::DhcpRelay => expressions.push(RawExpr::payload(TRANSPORT, 8 + 24, 4, REGISTER)),
    }
}

/// Loads the source address from its header (RFC 791, section 3.1; RFC 8200, section 3).
fn source(family: Family, register: u32) -> RawExpr {
    match family {
        Family::V4 => RawExpr::payload(NETWORK, 12, 4, register),
        Family::V6 => RawExpr::payload(NETWORK, 8, 16, register),
    }
}

/// Loads the source of the frame.
fn mac(register: u32) -> RawExpr {
    RawExpr::payload(LINK, 6, 6, register)
}

/// Loads the sender's hardware and protocol address (RFC 826, for Ethernet and IPv4).
fn arp_mac(register: u32) -> RawExpr {
    RawExpr::payload(NETWORK, 8, 6, register)
}

fn arp_source(register: u32) -> RawExpr {
    RawExpr::payload(NETWORK, 14, 4, register)
}

fn destination(family: Family, register: u32) -> RawExpr {
    match family {
        Family::V4 => RawExpr::payload(NETWORK, 16, 4, register),
        Family::V6 => RawExpr::payload(NETWORK, 24, 16, register),
    }
}

/// The word register after an interface's name (16 bytes from `NFT_REG32_00`) and a MAC address.
const AFTER_MAC: u32 = libc::NFT_REG32_00 as u32 + 6;

/// RFC 9293, section 3.1.
const SYN_AND_RST: u8 = 0b110;

/// The mask of an IPv6 agent, which is its /64.
const AGENT_6: [u8; 16] = (u128::MAX << 64).to_be_bytes();

// From linux/netfilter/nf_tables.h, where the libc crate has no name for them.
const LINK: u32 = 0;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const FIB_SADDR: u32 = 1;
const FIB_DADDR: u32 = 1 << 1;
const FIB_IIF: u32 = 1 << 3;
const FIB_PRESENT: u32 = 1 << 5;
const FIB_OIF: u32 = 1;
const FIB_OIFNAME: u32 = 2;
const FIB_ADDRTYPE: u32 = 3;
const SOCKET_TRANSPARENT: u32 = 0;
const SOCKET_WILDCARD: u32 = 2;
