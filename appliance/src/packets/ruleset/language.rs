//! The elements of tables: sets, chains, rules and their statements.
//!
//! Pure. [`super::render`](mod@super::render) writes them as text and [`crate::packets::nft`]
//! translates them for the kernel; everything here can be expressed in both.

use std::{borrow::Cow, net::IpAddr};

use ipnet::IpNet;

use super::capture::aggregate;
use crate::{
    policy::{InterfaceName, Mac},
    reason::Reason,
};

/// The name of the daemon's tables.
pub(crate) const TABLE: &str = "cloakroom";

/// One of the tables that the daemon installs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NftTable {
    pub(crate) family: TableFamily,
    /// Named counters. They are never reset while the table exists.
    pub(crate) counters: Vec<String>,
    pub(crate) sets: Vec<Set>,
    pub(crate) chains: Vec<Chain>,
}

/// The packets that a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableFamily {
    /// IP packets, after they were taken out of their frames.
    Inet,
    /// Frames, as a device received them.
    Netdev,
    /// IPv4 packets: only tables of others.
    Ip,
    /// IPv6 packets: only tables of others.
    Ip6,
}

/// A named set, or a map from its keys to marks. Its key never changes; its elements are replaced
/// on every apply, except for a meter's, which packets add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: Cow<'static, str>,
    pub(crate) key: SetKey,
    pub(crate) elements: Vec<Element>,
    /// Whether packets add the key that they are looked up by, for [`Statement::Over`].
    pub(crate) meter: bool,
}

/// The key of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetKey {
    Interface,
    Port,
    Address(Family),
    InterfaceAndAddress(Family),
    InterfaceAndMac,
    InterfaceMacAndAddress(Family),
    Mark,
    /// The key of a map to marks.
    MarkOfInterfaceAndAddress(Family),
}

/// One member of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Element {
    Interface(String),
    Port(u16),
    Prefix(IpNet),
    InterfaceAndPrefix(String, IpNet),
    InterfaceAndMac(String, Mac),
    InterfaceMacAndAddress(String, Mac, IpAddr),
    MarkOfInterfaceAndPrefix(String, IpNet, u32),
}

/// An address family of the inet table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// A chain and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: Cow<'static, str>,
    /// The hook at which the kernel enters it; `None` for a chain that rules go to.
    pub(crate) base: Option<Base>,
    pub(crate) rules: Vec<NftRule>,
}

/// The hook of a base chain. Always of type `filter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
    /// Whether it drops packets that no rule decides, instead of accepting them.
    pub(crate) drop: bool,
}

/// The hooks in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Hook {
    /// The point where this device delivers the frames that it received; only in a table of frames.
    Ingress(InterfaceName),
    Prerouting,
    Input,
    Forward,
    Output,
}

/// Statements that are processed in order until one does not match or one decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NftRule {
    pub(crate) statements: Vec<Statement>,
    /// The reason that the audit gives.
    pub(crate) reason: Option<Reason>,
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Statement {
    /// Go on only where the key equals the value.
    Is(MatchKey, Value),
    /// Go on only where the key differs from the value.
    IsNot(MatchKey, Value),
    /// Go on only where the key is one of the values.
    AnyOf(MatchKey, Vec<Value>),
    /// Go on only where the key is none of the values.
    NotOneOf(MatchKey, Vec<Value>),
    /// Go on only where the key is in the named set.
    In(MatchKey, Cow<'static, str>),
    /// Go on only where the key is not in the named set.
    NotIn(MatchKey, &'static str),
    Count,
    /// Count into the named counter.
    CountAs(String),
    /// Go on only above so many packets a second.
    Above(u32),
    /// Go on only above so many packets a second that share this key. The set is of bounded size;
    /// where it is full, packets with a new key do not go on.
    Over(MatchKey, Cow<'static, str>, Rate),
    /// Copy the packet's head, under the reason's word, to this NFLOG group.
    Tell(Reason, u16),
    SetMark(u32),
    /// Set the mark to the named map's value for the key; go on only if it has one.
    SetMarkOf(MatchKey, &'static str),
    SetPriority(Value),
    /// Make the largest segment that a packet announces no larger than this.
    MaxSegment(u16),
    /// Hand the packet to the listener on this port, and at this address if one is given; go on
    /// only if there is one.
    Tproxy(Family, Option<IpAddr>, u16),
    RejectReset,
    RejectProhibited,
    Accept,
    Drop,
    Goto(&'static str),
}

/// Packets in a second, and the most at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) a_second: u32,
    pub(crate) at_once: u32,
}

/// The property of a packet that is matched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MatchKey {
    Interface,
    /// The interface by which a packet leaves.
    OutInterface,
    Family,
    /// The transport protocol, behind any IPv6 extension headers.
    L4,
    Mark,
    Source(Family),
    Destination(Family),
    InterfaceAndSource(Family),
    /// The interface by which a packet leaves, and its destination.
    InterfaceAndDestination(Family),
    /// The flags SYN and RST of TCP.
    OpeningFlags,
    HopLimit,
    Icmp6Type,
    SourcePort,
    DestinationPort,
    /// Whether the way back to the source leaves through the interface that the packet came in by.
    WayBack,
    /// The interface through which the way back to the source leaves.
    WayBackInterface,
    SourceType,
    DestinationType,
    SocketTransparent,
    SocketWildcard,
    Icmp4Type,
    Icmp4Code,
    Icmp6Code,
    /// The type of the destination on the interface that the packet came in by.
    DestinationTypeHere,
    /// The interface, and the source by which agents without a bound card are told apart: an
    /// address, or an IPv6 /64.
    InterfaceAndAgent(Family),
    Priority,
    InterfaceType,
    /// The type in the frame's own header; that of its VLAN tag if it has one.
    EtherType,
    /// The protocol in the frame, inside of any tag that was stripped.
    Protocol,
    Mac,
    ArpSource,
    InterfaceAndMac,
    InterfaceAndArpMac,
    InterfaceAndArpSource,
    InterfaceMacAndSource(Family),
    InterfaceMacAndArpSource,
    InterfaceArpMacAndArpSource,
    /// The target of a neighbour solicitation or advertisement.
    NeighbourTarget,
    /// The address that a DHCP client says it has (`ciaddr`, RFC 2131, section 2).
    DhcpClient,
    /// The address of the relay to which a DHCP answer would go (`giaddr`).
    DhcpRelay,
}

/// A constant: nft's spelling of it, and its bytes as the kernel compares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Value {
    pub(crate) text: Cow<'static, str>,
    pub(crate) bytes: Vec<u8>,
}

/// Matches solicitations and advertisements of neighbours; hop limit 255 proves that no router
/// passed them on (RFC 4861, section 7.1). Router advertisements and redirects do not match.
pub(crate) fn neighbour_discovery() -> Vec<Statement> {
    let types =
        vec![Value::byte("nd-neighbor-solicit", 135), Value::byte("nd-neighbor-advert", 136)];
    vec![
        is_family(Family::V6),
        Statement::Is(MatchKey::L4, Value::byte("icmpv6", ICMP6)),
        Statement::Is(MatchKey::HopLimit, Value::byte("255", 255)),
        Statement::AnyOf(MatchKey::Icmp6Type, types),
    ]
}

pub(crate) fn is_family(family: Family) -> Statement {
    Statement::Is(MatchKey::Family, family.value())
}

pub(crate) fn is_tcp() -> Statement {
    Statement::Is(MatchKey::L4, Value::byte("tcp", TCP))
}

pub(crate) fn is_udp() -> Statement {
    Statement::Is(MatchKey::L4, Value::byte("udp", UDP))
}

/// Matches the address that the gateway has on the interface the packet came in by, and no other.
pub(super) fn to_here() -> Statement {
    Statement::Is(MatchKey::DestinationTypeHere, fib_type("local", 2))
}

pub(crate) fn port_is(number: u16) -> Statement {
    Statement::Is(MatchKey::DestinationPort, port(number))
}

pub(crate) fn port(number: u16) -> Value {
    Value { text: number.to_string().into(), bytes: number.to_be_bytes().to_vec() }
}

pub(crate) fn fib_type(text: &'static str, number: u32) -> Value {
    Value { text: text.into(), bytes: number.to_ne_bytes().to_vec() }
}

pub(crate) fn set(name: &'static str, key: SetKey, elements: Vec<Element>) -> Set {
    Set { name: name.into(), key, elements, meter: false }
}

pub(crate) fn meter(name: impl Into<Cow<'static, str>>, key: SetKey) -> Set {
    Set { name: name.into(), key, elements: Vec::new(), meter: true }
}

pub(crate) fn rule(statements: &[Statement]) -> NftRule {
    NftRule { statements: statements.to_vec(), reason: None }
}

pub(crate) fn because(reason: Reason, statements: &[Statement]) -> NftRule {
    NftRule { statements: statements.to_vec(), reason: Some(reason) }
}

pub(crate) fn base(hook: Hook, priority: i32, drop: bool) -> Base {
    Base { hook, priority, drop }
}

/// Returns the prefixes of one family, in the fewest elements.
pub(crate) fn prefixes(prefixes: &[IpNet], family: Family) -> Vec<Element> {
    let of_family = |net: &&IpNet| matches!(net, IpNet::V4(_)) == (family == Family::V4);
    let prefixes: Vec<IpNet> = prefixes.iter().filter(of_family).copied().collect();
    aggregate(&prefixes).into_iter().map(Element::Prefix).collect()
}

/// Returns the value of an admitted packet's priority. The field is the kernel's own: a packet from
/// a wire has 0 in it.
pub(crate) fn proof() -> Value {
    Value { text: "c10a:1".into(), bytes: 0xc10a_0001_u32.to_ne_bytes().to_vec() }
}

/// Returns an interface's name as the kernel compares it.
pub(crate) fn interface_key(name: &str) -> Vec<u8> {
    let mut key: Vec<u8> = name.bytes().take(usize::from(NAME_BYTES) - 1).collect();
    key.resize(usize::from(NAME_BYTES), 0);
    key
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl From<u32> for Rate {
    fn from(a_second: u32) -> Self {
        Self { a_second, at_once: a_second }
    }
}

impl Family {
    /// Returns the number of the family, `NFPROTO_*`.
    pub(crate) const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    pub(crate) fn value(self) -> Value {
        match self {
            Self::V4 => Value::byte("ipv4", self.number()),
            Self::V6 => Value::byte("ipv6", self.number()),
        }
    }
}

impl Value {
    /// Returns a number of two bytes in network order.
    pub(crate) fn pair(text: &'static str, number: u16) -> Self {
        Self { text: text.into(), bytes: number.to_be_bytes().to_vec() }
    }

    /// Returns an interface by its name.
    pub(crate) fn interface(name: &InterfaceName) -> Self {
        Self { text: format!("\"{name}\"").into(), bytes: interface_key(name.as_str()) }
    }

    pub(crate) fn mac(mac: Mac) -> Self {
        Self { text: mac.to_string().into(), bytes: mac.octets().to_vec() }
    }

    /// Returns an address, as its header holds it.
    pub(crate) fn address(address: IpAddr) -> Self {
        Self { text: address.to_string().into(), bytes: octets(address) }
    }

    pub(crate) fn byte(text: &'static str, byte: u8) -> Self {
        Self { text: text.into(), bytes: vec![byte] }
    }

    pub(crate) fn mark(mark: u32) -> Self {
        Self { text: format!("{mark:#010x}").into(), bytes: mark.to_ne_bytes().to_vec() }
    }
}

/// Priorities by their names in nft(8). `mangle` comes after defragmentation, which tproxy and
/// socket switch on, and before routing.
pub(crate) const MANGLE: i32 = -150;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMP4: u8 = 1;
pub(crate) const ICMP6: u8 = 58;

/// Bytes of a packet that are logged: the headers of IPv6 with some extensions, and the ports.
pub(crate) const SNAPLEN: u32 = 128;

/// Agents that one meter tells apart: about a megabyte of the kernel's memory.
pub(crate) const METER_SIZE: u32 = 4_096;

/// Time for which a meter remembers an agent that sends nothing.
pub(crate) const METER_MILLISECONDS: u64 = 10_000;

/// `IFNAMSIZ`.
pub(crate) const NAME_BYTES: u8 = 16;
