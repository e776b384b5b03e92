//! The daemon's table as data: sets, chains, and rules in the order that is the argument.
//!
//! Pure. [`super::render`](mod@super::render) writes it down and [`super::lower`] translates it for the kernel; what
//! neither can express does not exist here. `nft/README.md` explains the order rule by rule.

use std::{borrow::Cow, net::IpAddr};

use ipnet::IpNet;

use super::{
    Capture, DNS_PORT, aggregate, log, lower::interface_key, meters, narrow, octets, onboarding,
    prerouting,
};
use crate::{
    policy::{
        InterfaceName, Mac,
        special::{LINK_6, MARTIAN_4, MARTIAN_6},
    },
    reason::Reason,
};

/// The name of the daemon's tables.
pub(super) const TABLE: &str = "cloakroom";

/// One of the tables that the daemon installs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) family: TableFamily,
    /// Named counters. They are never set back while the table stands.
    pub(super) counters: Vec<String>,
    pub(super) sets: Vec<Set>,
    pub(super) chains: Vec<Chain>,
}

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TableFamily {
    /// IP packets, after they were taken out of their frames.
    Inet,
    /// Frames, as a device received them.
    Netdev,
    /// IPv4 packets: only tables of others.
    Ip,
    /// IPv6 packets: only tables of others.
    Ip6,
}

/// A named set, or a map from its keys to marks. Its key never changes; its elements are replaced on
/// every apply, but for a meter's, which packets make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: Cow<'static, str>,
    pub(super) key: SetKey,
    pub(super) elements: Vec<Element>,
    /// Whether packets add what they are looked up by, for [`Statement::Over`].
    pub(super) meter: bool,
}

/// What a set is looked up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SetKey {
    Interface,
    Port,
    Address(Family),
    InterfaceAndAddress(Family),
    InterfaceAndMac,
    InterfaceMacAndAddress(Family),
    Mark,
    /// Of a map to marks.
    MarkOfInterfaceAndAddress(Family),
}

/// One member of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Element {
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
pub(super) enum Family {
    V4,
    V6,
}

/// A chain and its rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) name: Cow<'static, str>,
    /// Where the kernel enters it; `None` for a chain that rules go to.
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

/// How a base chain is hooked. Always of type `filter`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) hook: Hook,
    pub(super) priority: i32,
    /// Drop what no rule decides, instead of accepting it.
    pub(super) drop: bool,
}

/// The hooks in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hook {
    /// Where this device hands over what it received; only in a table of frames.
    Ingress(InterfaceName),
    Prerouting,
    Input,
    Forward,
    Output,
}

/// Statements that are taken in order until one does not match or one decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) statements: Vec<Statement>,
    /// The reason that the audit would give.
    pub(super) reason: Option<Reason>,
}

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Statement {
    /// Go on only where the key equals the value.
    Is(Key, Value),
    /// Go on only where the key differs from the value.
    IsNot(Key, Value),
    /// Go on only where the key is one of the values.
    AnyOf(Key, Vec<Value>),
    /// Go on only where the key is none of the values.
    NotOneOf(Key, Vec<Value>),
    /// Go on only where the key is in the named set.
    In(Key, Cow<'static, str>),
    /// Go on only where the key is not in the named set.
    NotIn(Key, &'static str),
    Count,
    /// Count into the named counter.
    CountAs(String),
    /// Go on only above so many packets a second.
    Above(u32),
    /// Go on only above so many packets a second that share this key. The set is of bounded size;
    /// where it is full, a new key does not go on.
    Over(Key, Cow<'static, str>, Rate),
    /// Copy the packet's head, under the reason's word, to this NFLOG group.
    Tell(Reason, u16),
    SetMark(u32),
    /// Set the mark to what the named map has for the key; go on only where it has something.
    SetMarkOf(Key, &'static str),
    SetPriority(Value),
    /// Make the largest segment that a packet announces no larger than this.
    MaxSegment(u16),
    /// Hand the packet to the listener on this port, and at this address where one is given; go on
    /// only where there is one.
    Tproxy(Family, Option<IpAddr>, u16),
    RejectReset,
    RejectProhibited,
    Accept,
    Drop,
    Goto(&'static str),
}

/// Packets in a second, and how many may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) a_second: u32,
    pub(super) at_once: u32,
}

/// What a packet is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Interface,
    /// The interface that a packet leaves by.
    OutInterface,
    Family,
    /// The transport protocol, behind any IPv6 extension headers.
    L4,
    Mark,
    Source(Family),
    Destination(Family),
    InterfaceAndSource(Family),
    /// The interface that a packet leaves by, and where it goes.
    InterfaceAndDestination(Family),
    /// Of the flags of TCP, SYN and RST.
    OpeningFlags,
    HopLimit,
    Icmp6Type,
    SourcePort,
    DestinationPort,
    /// Whether the way back to the source leaves through the interface it came in by.
    WayBack,
    /// The interface that the way back to the source leaves by.
    WayBackInterface,
    SourceType,
    DestinationType,
    SocketTransparent,
    SocketWildcard,
    Icmp4Type,
    Icmp4Code,
    Icmp6Code,
    /// What the destination is on the interface the packet came in by.
    DestinationTypeHere,
    /// The interface, and the source as agents that are bound to no card are told apart: an
    /// address, or an IPv6 /64.
    InterfaceAndAgent(Family),
    Priority,
    InterfaceType,
    /// The type in the frame's own header; that of its VLAN tag where it has one.
    EtherType,
    /// What is in the frame, inside of any tag that was stripped.
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
    /// The address of the relay that a DHCP answer would go to (`giaddr`).
    DhcpRelay,
}

/// A constant: how nft spells it, and its bytes as the kernel compares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) text: Cow<'static, str>,
    pub(super) bytes: Vec<u8>,
}

/// The table of IP packets for one capture.
pub(super) fn table(capture: &Capture) -> Table {
    finished(TableFamily::Inet, sets(capture), chains(capture), capture)
}

/// A table in which what is refused is told, with the counters and meters that this takes.
pub(super) fn finished(
    family: TableFamily,
    mut sets: Vec<Set>,
    chains: Vec<Chain>,
    capture: &Capture,
) -> Table {
    let told = log::told(chains, capture);
    sets.extend(told.meters);
    Table { family, counters: told.counters, sets, chains: told.chains }
}

/// The chains before anything is told to the audit.
pub(super) fn chains(capture: &Capture) -> Vec<Chain> {
    let refuse = prerouting::refuse(capture);
    vec![refuse, prerouting::chain(capture), input(capture), forward(), output(capture)]
}

fn sets(capture: &Capture) -> Vec<Set> {
    let interfaces = capture.interfaces.iter();
    let agents = interfaces.map(|each| Element::Interface(each.name.to_string())).collect();
    let bound = capture.interfaces.iter().filter(|each| !each.bound.is_empty());
    let bound = bound.map(|each| Element::Interface(each.name.to_string())).collect();
    let ports = capture.ports.iter().copied().map(Element::Port).collect();
    let (v4, v6) = (SetKey::Address(Family::V4), SetKey::Address(Family::V6));
    let (from_4, from_6) =
        (SetKey::InterfaceAndAddress(Family::V4), SetKey::InterfaceAndAddress(Family::V6));
    let mut sets = vec![
        set("agents", SetKey::Interface, agents),
        set("bound", SetKey::Interface, bound),
        set("sources_4", from_4, sources(capture, |net| matches!(net, IpNet::V4(_)))),
        set("sources_6", from_6, sources(capture, |net| matches!(net, IpNet::V6(_)))),
        set("martian_4", v4, prefixes(MARTIAN_4, Family::V4)),
        set("martian_6", v6, prefixes(MARTIAN_6, Family::V6)),
        set("link_6", v6, prefixes(LINK_6, Family::V6)),
        set("special_4", v4, prefixes(&capture.special, Family::V4)),
        set("special_6", v6, prefixes(&capture.special, Family::V6)),
        set("homes_4", v4, prefixes(&capture.homes, Family::V4)),
        set("homes_6", v6, prefixes(&capture.homes, Family::V6)),
        set("ports", SetKey::Port, ports),
        meters::bound_6(capture),
        meters::groups(Family::V4, capture),
    ];
    if capture.ipv6 {
        sets.push(meters::groups(Family::V6, capture));
    }
    sets.extend(narrow::sets(capture));
    sets.extend(onboarding::sets(capture));
    sets.extend(prerouting::meters(capture));
    sets
}

fn input(capture: &Capture) -> Chain {
    use Statement::{Accept, Count, Drop, Is, NotIn};
    let mut rules = vec![
        rule(&[NotIn(Key::Interface, "agents"), Accept]),
        rule(&[is_tcp(), Is(Key::Mark, Value::mark(capture.mark)), Accept]),
        rule(&[is_udp(), port_is(DNS_PORT), Is(Key::Mark, Value::mark(capture.mark)), Accept]),
    ];
    if capture.ipv6 {
        let mut discovery = neighbour_discovery();
        discovery.push(Accept);
        rules.push(rule(&discovery));
    }
    rules.extend(prerouting::admitted_services(capture));
    rules.push(because(Reason::SelfDestination, &[Count, Drop]));
    Chain { name: "input".into(), base: Some(base(Hook::Input, FILTER, false)), rules }
}

fn forward() -> Chain {
    let rules = vec![rule(&[Statement::Count, Statement::Drop])];
    Chain { name: "forward".into(), base: Some(base(Hook::Forward, FILTER, true)), rules }
}

/// An ICMP error quotes the packet that it is about, and goes to that packet's source. The kernel
/// makes some before any rule has seen the packet: of a hop-by-hop header while it reads the header
/// (RFC 8200, section 4.2), of fragments when the rest is overdue (section 4.5). So what errors may
/// leave is decided here, however they came about: only what a rule of ours refuses with, and only to
/// agents, whose source was looked at by then. What may go to this machine itself are words about its
/// own packets: none of those that an agent could have had made.
///
/// A DHCP server answers where the question says. It is for agents.
fn output(capture: &Capture) -> Chain {
    use Statement::{Accept, AnyOf, Count, Drop, Is, IsNot, NotIn};
    let to_itself = Value { text: "\"lo\"".into(), bytes: interface_key("lo") };
    let families = [
        (icmp(Family::V4), Key::Icmp4Type, Key::Icmp4Code, FORGED_4, (3, 13)),
        (icmp(Family::V6), Key::Icmp6Type, Key::Icmp6Code, FORGED_6, (1, 1)),
    ];
    let each =
        |icmp: &[Statement], rest: &[Statement]| rule(&[icmp, rest, &[Count, Drop]].concat());
    let mut rules = Vec::new();
    for (icmp, kind, _, forged, _) in &families {
        let forged = forged.iter().map(|(text, number)| Value::byte(text, *number)).collect();
        rules.push(each(icmp, &[AnyOf(*kind, forged)]));
    }
    rules.push(rule(&[Is(Key::OutInterface, to_itself), Accept]));
    let [_, (icmp_6, kind, ..)] = &families;
    // Said by routers, and this machine is none.
    rules.push(each(icmp_6, &[Is(*kind, Value::byte("packet-too-big", 2))]));
    for (icmp, kind, code, _, (unreachable, prohibited)) in &families {
        let unreachable = || Is(*kind, Value::byte("destination-unreachable", *unreachable));
        let prohibited = Value::byte("admin-prohibited", *prohibited);
        rules.push(each(icmp, &[unreachable(), NotIn(Key::OutInterface, "agents")]));
        rules.push(each(icmp, &[unreachable(), IsNot(*code, prohibited)]));
    }
    if capture.services.dhcp {
        let answer = [is_udp(), Is(Key::SourcePort, port(prerouting::DHCP_PORT))];
        let elsewhere = NotIn(Key::OutInterface, "agents");
        rules.push(each(&[is_family(Family::V4)], &[&answer[..], &[elsewhere]].concat()));
    }
    rules.extend(narrow::to_agents(capture));
    Chain { name: "output".into(), base: Some(base(Hook::Output, FILTER, false)), rules }
}

/// Solicitations and advertisements of neighbours; hop limit 255 proves that no router passed
/// them on (RFC 4861, section 7.1). No router advertisement, no redirect.
pub(super) fn neighbour_discovery() -> Vec<Statement> {
    let types =
        vec![Value::byte("nd-neighbor-solicit", 135), Value::byte("nd-neighbor-advert", 136)];
    vec![
        is_family(Family::V6),
        Statement::Is(Key::L4, Value::byte("icmpv6", ICMP6)),
        Statement::Is(Key::HopLimit, Value::byte("255", 255)),
        Statement::AnyOf(Key::Icmp6Type, types),
    ]
}

pub(super) fn is_family(family: Family) -> Statement {
    Statement::Is(Key::Family, family.value())
}

fn icmp(family: Family) -> [Statement; 2] {
    let protocol = match family {
        Family::V4 => Value::byte("icmp", ICMP4),
        Family::V6 => Value::byte("icmpv6", ICMP6),
    };
    [is_family(family), Statement::Is(Key::L4, protocol)]
}

pub(super) fn is_tcp() -> Statement {
    Statement::Is(Key::L4, Value::byte("tcp", TCP))
}

pub(super) fn is_udp() -> Statement {
    Statement::Is(Key::L4, Value::byte("udp", UDP))
}

/// To the address that the gateway has on the interface the packet came in by, and to no other.
pub(super) fn to_here() -> Statement {
    Statement::Is(Key::DestinationTypeHere, fib_type("local", 2))
}

pub(super) fn port_is(number: u16) -> Statement {
    Statement::Is(Key::DestinationPort, port(number))
}

fn port(number: u16) -> Value {
    Value { text: number.to_string().into(), bytes: number.to_be_bytes().to_vec() }
}

pub(super) fn fib_type(text: &'static str, number: u32) -> Value {
    Value { text: text.into(), bytes: number.to_ne_bytes().to_vec() }
}

pub(super) fn set(name: &'static str, key: SetKey, elements: Vec<Element>) -> Set {
    Set { name: name.into(), key, elements, meter: false }
}

pub(super) fn meter(name: impl Into<Cow<'static, str>>, key: SetKey) -> Set {
    Set { name: name.into(), key, elements: Vec::new(), meter: true }
}

pub(super) fn rule(statements: &[Statement]) -> Rule {
    Rule { statements: statements.to_vec(), reason: None }
}

pub(super) fn because(reason: Reason, statements: &[Statement]) -> Rule {
    Rule { statements: statements.to_vec(), reason: Some(reason) }
}

pub(super) fn base(hook: Hook, priority: i32, drop: bool) -> Base {
    Base { hook, priority, drop }
}

fn sources(capture: &Capture, family: fn(&IpNet) -> bool) -> Vec<Element> {
    let mut sources = Vec::new();
    for interface in &capture.interfaces {
        let prefixes = interface.prefixes.iter().filter(|prefix| family(prefix));
        let name = interface.name.to_string();
        sources.extend(prefixes.map(|net| Element::InterfaceAndPrefix(name.clone(), *net)));
    }
    sources
}

/// The prefixes of one family, in the fewest elements.
pub(super) fn prefixes(prefixes: &[IpNet], family: Family) -> Vec<Element> {
    let of_family = |net: &&IpNet| matches!(net, IpNet::V4(_)) == (family == Family::V4);
    let prefixes: Vec<IpNet> = prefixes.iter().filter(of_family).copied().collect();
    aggregate(&prefixes).into_iter().map(Element::Prefix).collect()
}

impl From<u32> for Rate {
    fn from(a_second: u32) -> Self {
        Self { a_second, at_once: a_second }
    }
}

impl Family {
    /// The number of the family, `NFPROTO_*`.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    pub(super) fn value(self) -> Value {
        match self {
            Self::V4 => Value::byte("ipv4", self.number()),
            Self::V6 => Value::byte("ipv6", self.number()),
        }
    }
}

impl Value {
    /// A number of two bytes in network order.
    pub(super) fn pair(text: &'static str, number: u16) -> Self {
        Self { text: text.into(), bytes: number.to_be_bytes().to_vec() }
    }

    /// An interface by its name.
    pub(super) fn interface(name: &InterfaceName) -> Self {
        Self { text: format!("\"{name}\"").into(), bytes: interface_key(name.as_str()) }
    }

    pub(super) fn mac(mac: Mac) -> Self {
        Self { text: mac.to_string().into(), bytes: mac.octets().to_vec() }
    }

    /// An address, as its header holds it.
    pub(super) fn address(address: IpAddr) -> Self {
        Self { text: address.to_string().into(), bytes: octets(address) }
    }

    pub(super) fn byte(text: &'static str, byte: u8) -> Self {
        Self { text: text.into(), bytes: vec![byte] }
    }

    pub(super) fn mark(mark: u32) -> Self {
        Self { text: format!("{mark:#010x}").into(), bytes: mark.to_ne_bytes().to_vec() }
    }
}

/// Priorities by their names in nft(8). `mangle` comes after defragmentation, which tproxy and
/// socket switch on, and before routing.
pub(super) const MANGLE: i32 = -150;
const FILTER: i32 = 0;

/// Errors of ICMP (RFC 792) and of ICMPv6 (RFC 4443, RFC 4861) that this machine makes of packets that
/// it received, and has no use for: a forged one could be about a connection of its own.
const FORGED_4: &[(&str, u8)] =
    &[("source-quench", 4), ("redirect", 5), ("time-exceeded", 11), ("parameter-problem", 12)];
const FORGED_6: &[(&str, u8)] =
    &[("time-exceeded", 3), ("parameter-problem", 4), ("nd-redirect", 137)];

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP4: u8 = 1;
pub(super) const ICMP6: u8 = 58;
