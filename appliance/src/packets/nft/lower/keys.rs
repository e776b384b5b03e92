//! How each key of the plan is loaded into registers: what is read, from where, and how wide.
//!
//! Pure. One register is enough, because nothing compares two fields; only keys of several fields
//! fill the ones after it.

use nftnl::nftnl_sys::libc;

use super::super::raw_expr::{REGISTER, RawExpr};
use crate::packets::ruleset::language::{Family, Key};

/// The expressions that load a key, the first field into the register that is compared.
pub(super) fn load(key: Key, expressions: &mut Vec<RawExpr>) {
    let meta = |key: i32| RawExpr::meta_load(key as u32, REGISTER);
    match key {
        Key::Interface => expressions.push(meta(libc::NFT_META_IIFNAME)),
        Key::OutInterface => expressions.push(meta(libc::NFT_META_OIFNAME)),
        Key::Family => expressions.push(meta(libc::NFT_META_NFPROTO)),
        Key::L4 => expressions.push(meta(libc::NFT_META_L4PROTO)),
        Key::Mark => expressions.push(meta(libc::NFT_META_MARK)),
        Key::Source(family) => expressions.push(source(family, REGISTER)),
        Key::Destination(family) => expressions.push(destination(family, REGISTER)),
        Key::InterfaceAndSource(family) => {
            // The name takes sixteen bytes, one whole register, so the address starts the next.
            expressions.extend([meta(libc::NFT_META_IIFNAME), source(family, REGISTER + 1)]);
        }
        Key::InterfaceAndDestination(family) => {
            expressions.extend([meta(libc::NFT_META_OIFNAME), destination(family, REGISTER + 1)]);
        }
        Key::OpeningFlags => {
            expressions.push(RawExpr::payload(TRANSPORT, 13, 1, REGISTER));
            expressions.push(RawExpr::mask(REGISTER, &[SYN_AND_RST]));
        }
        Key::HopLimit => expressions.push(RawExpr::payload(NETWORK, 7, 1, REGISTER)),
        Key::Icmp6Type => expressions.push(RawExpr::payload(TRANSPORT, 0, 1, REGISTER)),
        Key::SourcePort => expressions.push(RawExpr::payload(TRANSPORT, 0, 2, REGISTER)),
        Key::DestinationPort => expressions.push(RawExpr::payload(TRANSPORT, 2, 2, REGISTER)),
        Key::WayBack => expressions.push(RawExpr::fib(FIB_SADDR | FIB_IIF | FIB_PRESENT, FIB_OIF)),
        Key::WayBackInterface => expressions.push(RawExpr::fib(FIB_SADDR, FIB_OIFNAME)),
        Key::SourceType => expressions.push(RawExpr::fib(FIB_SADDR, FIB_ADDRTYPE)),
        Key::DestinationType => expressions.push(RawExpr::fib(FIB_DADDR, FIB_ADDRTYPE)),
        Key::SocketTransparent => expressions.push(RawExpr::socket(SOCKET_TRANSPARENT)),
        Key::SocketWildcard => expressions.push(RawExpr::socket(SOCKET_WILDCARD)),
        Key::Icmp4Type => expressions.push(RawExpr::payload(TRANSPORT, 0, 1, REGISTER)),
        Key::Icmp4Code | Key::Icmp6Code => {
            expressions.push(RawExpr::payload(TRANSPORT, 1, 1, REGISTER));
        }
        Key::DestinationTypeHere => {
            expressions.push(RawExpr::fib(FIB_DADDR | FIB_IIF, FIB_ADDRTYPE));
        }
        Key::InterfaceAndAgent(family) => {
            expressions.extend([meta(libc::NFT_META_IIFNAME), source(family, REGISTER + 1)]);
            if family == Family::V6 {
                expressions.push(RawExpr::mask(REGISTER + 1, &AGENT_6));
            }
        }
        Key::Priority => expressions.push(meta(libc::NFT_META_PRIORITY)),
        Key::InterfaceType => expressions.push(meta(libc::NFT_META_IIFTYPE)),
        Key::EtherType => expressions.push(RawExpr::payload(LINK, 12, 2, REGISTER)),
        Key::Protocol => expressions.push(meta(libc::NFT_META_PROTOCOL)),
        Key::Mac => expressions.push(mac(REGISTER)),
        Key::ArpSource => expressions.push(arp_source(REGISTER)),
        Key::InterfaceAndMac => {
            expressions.extend([meta(libc::NFT_META_IIFNAME), mac(REGISTER + 1)]);
        }
        Key::InterfaceAndArpMac => {
            expressions.extend([meta(libc::NFT_META_IIFNAME), arp_mac(REGISTER + 1)]);
        }
        Key::InterfaceAndArpSource => {
            expressions.extend([meta(libc::NFT_META_IIFNAME), arp_source(REGISTER + 1)]);
        }
        Key::InterfaceMacAndSource(family) => expressions.extend([
            meta(libc::NFT_META_IIFNAME),
            mac(REGISTER + 1),
            source(family, AFTER_MAC),
        ]),
        Key::InterfaceMacAndArpSource => expressions.extend([
            meta(libc::NFT_META_IIFNAME),
            mac(REGISTER + 1),
            arp_source(AFTER_MAC),
        ]),
        Key::InterfaceArpMacAndArpSource => expressions.extend([
            meta(libc::NFT_META_IIFNAME),
            arp_mac(REGISTER + 1),
            arp_source(AFTER_MAC),
        ]),
        Key::NeighbourTarget => expressions.push(RawExpr::payload(TRANSPORT, 8, 16, REGISTER)),
        Key::DhcpClient => expressions.push(RawExpr::payload(TRANSPORT, 8 + 12, 4, REGISTER)),
        Key::DhcpRelay => expressions.push(RawExpr::payload(TRANSPORT, 8 + 24, 4, REGISTER)),
    }
}

/// The source address in its header (RFC 791, section 3.1; RFC 8200, section 3).
fn source(family: Family, register: u32) -> RawExpr {
    match family {
        Family::V4 => RawExpr::payload(NETWORK, 12, 4, register),
        Family::V6 => RawExpr::payload(NETWORK, 8, 16, register),
    }
}

/// The source of the frame.
fn mac(register: u32) -> RawExpr {
    RawExpr::payload(LINK, 6, 6, register)
}

/// The sender's hardware and protocol address (RFC 826, for Ethernet and IPv4).
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

/// The word register behind an interface's name (16 bytes from `NFT_REG32_00`) and a MAC address.
const AFTER_MAC: u32 = libc::NFT_REG32_00 as u32 + 6;

/// RFC 9293, section 3.1.
const SYN_AND_RST: u8 = 0b110;

/// An IPv6 agent is its /64.
const AGENT_6: [u8; 16] = (u128::MAX << 64).to_be_bytes();

// linux/netfilter/nf_tables.h, where the libc crate has no name for them.
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
