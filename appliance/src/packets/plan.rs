//! The daemon's table as data: sets, chains, and rules in the order that is the argument.
//!
//! Pure. [`super::render`](mod@super::render) writes it down and [`super::lower`] translates it for the kernel; what
//! neither can express does not exist here. `nft/README.md` explains the order rule by rule.

use std::borrow::Cow;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Capture, DNS_PORT, aggregate, log, only_v4, only_v6};
use crate::{
    policy::special::{LINK_6, MARTIAN_4, MARTIAN_6, SPECIAL_4, SPECIAL_6},
    reason::Reason,
};

/// The name of the daemon's table, family inet.
pub(super) const TABLE: &str = "cloakroom";

/// Everything the daemon installs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) sets: Vec<Set>,
    pub(super) chains: Vec<Chain>,
}

/// A named set. Its key never changes; its elements are replaced on every apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Set {
    pub(super) name: &'static str,
    pub(super) key: SetKey,
    pub(super) elements: Vec<Element>,
}

/// What a set is looked up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SetKey {
    Interface,
    Port,
    Address(Family),
    InterfaceAndAddress(Family),
}

/// One member of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Element {
    Interface(String),
    Port(u16),
    Prefix(IpNet),
    InterfaceAndPrefix(String, IpNet),
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
    pub(super) name: &'static str,
    /// Where the kernel enters it; `None` for a chain that rules go to.
    pub(super) base: Option<Base>,
    pub(super) rules: Vec<Rule>,
}

/// How a base chain is hooked. Always of type `filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Base {
    pub(super) hook: Hook,
    pub(super) priority: i32,
    /// Drop what no rule decides, instead of accepting it.
    pub(super) drop: bool,
}

/// The hooks in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hook {
    Prerouting,
    Input,
    Forward,
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
    /// Go on only where the key is in the named set.
    In(Key, &'static str),
    /// Go on only where the key is not in the named set.
    NotIn(Key, &'static str),
    Count,
    /// Go on only above so many packets a second.
    Above(u32),
    /// Copy the packet's head, under the reason's word, to this NFLOG group.
    Tell(Reason, u16),
    SetMark(u32),
    /// Hand the packet to the listener on this port; go on only where there is one.
    Tproxy(Family, u16),
    RejectReset,
    RejectProhibited,
    Accept,
    Drop,
    Goto(&'static str),
}

/// What a packet is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Interface,
    Family,
    /// The transport protocol, behind any IPv6 extension headers.
    L4,
    Mark,
    Source(Family),
    Destination(Family),
    InterfaceAndSource(Family),
    HopLimit,
    Icmp6Type,
    DestinationPort,
    /// Whether the way back to the source leaves through the interface it came in by.
    WayBack,
    SourceType,
    DestinationType,
    SocketTransparent,
    SocketWildcard,
}

/// A constant: how nft spells it, and its bytes as the kernel compares them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) text: Cow<'static, str>,
    pub(super) bytes: Vec<u8>,
}

/// The whole table for one capture.
pub(super) fn table(capture: &Capture) -> Table {
    let chains = log::told(chains(capture), capture.nflog_group);
    Table { sets: sets(capture), chains }
}

/// The chains before anything is told to the audit.
pub(super) fn chains(capture: &Capture) -> Vec<Chain> {
    vec![refuse(), prerouting(capture), input(capture), forward()]
}

fn sets(capture: &Capture) -> Vec<Set> {
    let set = |name, key, elements| Set { name, key, elements };
    let interfaces = capture.interfaces.iter();
    let agents = interfaces.map(|each| Element::Interface(each.name.to_string())).collect();
    let ports = capture.ports.iter().copied().map(Element::Port).collect();
    let (v4, v6) = (SetKey::Address(Family::V4), SetKey::Address(Family::V6));
    let (from_4, from_6) =
        (SetKey::InterfaceAndAddress(Family::V4), SetKey::InterfaceAndAddress(Family::V6));
    vec![
        set("agents", SetKey::Interface, agents),
        set("sources_4", from_4, sources(capture, |net| matches!(net, IpNet::V4(_)))),
        set("sources_6", from_6, sources(capture, |net| matches!(net, IpNet::V6(_)))),
        set("martian_4", v4, prefixes_4(MARTIAN_4)),
        set("martian_6", v6, prefixes_6(MARTIAN_6)),
        set("link_6", v6, prefixes_6(LINK_6)),
        set("special_4", v4, prefixes_4(SPECIAL_4)),
        set("special_6", v6, prefixes_6(SPECIAL_6)),
        set("homes_4", v4, prefixes_4(&only_v4(&capture.homes))),
        set("homes_6", v6, prefixes_6(&only_v6(&capture.homes))),
        set("ports", SetKey::Port, ports),
    ]
}

fn refuse() -> Chain {
    let rules = vec![
        rule(&[is_tcp(), Statement::Count, Statement::RejectReset]),
        rule(&[Statement::Count, Statement::RejectProhibited]),
    ];
    Chain { name: "refuse", base: None, rules }
}

fn prerouting(capture: &Capture) -> Chain {
    use Statement::{Accept, AnyOf, Count, Drop, Goto, In, IsNot, NotIn};
    let families: &[Family] = if capture.ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] };
    let mut rules = vec![rule(&[NotIn(Key::Interface, "agents"), Accept])];

    if capture.ipv6 {
        let mut discovery = neighbour_discovery();
        discovery.extend([In(Key::Source(Family::V6), "link_6"), Accept]);
        rules.push(rule(&discovery));
    } else {
        rules.push(because(Reason::ProtocolDenied, &[is_family(Family::V6), Count, Drop]));
    }

    // Never an answer to any of these: a reject quotes the sender's bytes to the sender's choice.
    for &family in families {
        let (martian, sources) = match family {
            Family::V4 => ("martian_4", "sources_4"),
            Family::V6 => ("martian_6", "sources_6"),
        };
        let martian = [is_family(family), In(Key::Source(family), martian), Count, Drop];
        rules.push(because(Reason::SpoofedSource, &martian));
        let foreign =
            [is_family(family), NotIn(Key::InterfaceAndSource(family), sources), Count, Drop];
        rules.push(because(Reason::SpoofedSource, &foreign));
    }
    let ours = [IsNot(Key::SourceType, fib_type("unicast", 1)), Count, Drop];
    rules.push(because(Reason::SpoofedSource, &ours));
    // The kernel says present or missing in one byte and clears the rest of the four.
    let missing = Value { text: "missing".into(), bytes: 0u32.to_ne_bytes().to_vec() };
    let astray = [Statement::Is(Key::WayBack, missing), Count, Drop];
    rules.push(because(Reason::SpoofedSource, &astray));

    if capture.ipv6 {
        let mut discovery = neighbour_discovery();
        discovery.push(Accept);
        rules.push(rule(&discovery));
    }

    let many = vec![fib_type("broadcast", 3), fib_type("anycast", 4), fib_type("multicast", 5)];
    rules.push(because(Reason::SelfDestination, &[AnyOf(Key::DestinationType, many), Count, Drop]));
    for &family in families {
        rules.push(deliver_dns(family, is_tcp(), capture));
        rules.push(deliver_dns(family, is_udp(), capture));
    }
    let tcp_and_udp = vec![Value::byte("tcp", TCP), Value::byte("udp", UDP)];
    let dns = [AnyOf(Key::L4, tcp_and_udp), port_is(DNS_PORT), Count, Goto("refuse")];
    rules.push(because(Reason::DnsDenied, &dns));
    let own = [Statement::Is(Key::DestinationType, fib_type("local", 2)), Count, Drop];
    rules.push(because(Reason::SelfDestination, &own));
    for &family in families {
        let (special, homes) = match family {
            Family::V4 => ("special_4", "homes_4"),
            Family::V6 => ("special_6", "homes_6"),
        };
        let to = Key::Destination(family);
        let special = [is_family(family), In(to, special), NotIn(to, homes), Count, Goto("refuse")];
        rules.push(because(Reason::DestinationDenied, &special));
    }

    rules.push(divert(capture.mark));
    rules.extend(families.iter().map(|family| deliver(*family, capture)));

    // The closing rules. Without them a packet that no listener takes would be routed.
    rules.push(because(Reason::PortDenied, &[is_tcp(), Count, Goto("refuse")]));
    rules.push(because(Reason::ProtocolDenied, &[Count, Goto("refuse")]));
    Chain { name: "prerouting", base: Some(base(Hook::Prerouting, MANGLE, false)), rules }
}

/// Packets of connections that our listeners accepted already.
fn divert(mark: u32) -> Rule {
    rule(&[
        is_tcp(),
        Statement::Is(Key::SocketTransparent, Value::byte("1", 1)),
        Statement::Is(Key::SocketWildcard, Value::byte("0", 0)),
        Statement::SetMark(mark),
        Statement::Accept,
    ])
}

/// New connections to listed ports.
fn deliver(family: Family, capture: &Capture) -> Rule {
    rule(&[
        is_family(family),
        is_tcp(),
        Statement::In(Key::DestinationPort, "ports"),
        Statement::Tproxy(family, capture.proxy_port),
        Statement::SetMark(capture.mark),
        Statement::Accept,
    ])
}

/// DNS to any address, our own included. It takes the packets of open connections too.
fn deliver_dns(family: Family, transport: Statement, capture: &Capture) -> Rule {
    rule(&[
        is_family(family),
        transport,
        port_is(DNS_PORT),
        Statement::Tproxy(family, DNS_PORT),
        Statement::SetMark(capture.mark),
        Statement::Accept,
    ])
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
    rules.push(because(Reason::SelfDestination, &[Count, Drop]));
    Chain { name: "input", base: Some(base(Hook::Input, FILTER, false)), rules }
}

fn forward() -> Chain {
    let rules = vec![rule(&[Statement::Count, Statement::Drop])];
    Chain { name: "forward", base: Some(base(Hook::Forward, FILTER, true)), rules }
}

/// Solicitations and advertisements of neighbours; hop limit 255 proves that no router passed
/// them on (RFC 4861, section 7.1). No router advertisement, no redirect.
fn neighbour_discovery() -> Vec<Statement> {
    let types =
        vec![Value::byte("nd-neighbor-solicit", 135), Value::byte("nd-neighbor-advert", 136)];
    vec![
        is_family(Family::V6),
        Statement::Is(Key::L4, Value::byte("ipv6-icmp", ICMP6)),
        Statement::Is(Key::HopLimit, Value::byte("255", 255)),
        Statement::AnyOf(Key::Icmp6Type, types),
    ]
}

fn is_family(family: Family) -> Statement {
    Statement::Is(Key::Family, family.value())
}

fn is_tcp() -> Statement {
    Statement::Is(Key::L4, Value::byte("tcp", TCP))
}

fn is_udp() -> Statement {
    Statement::Is(Key::L4, Value::byte("udp", UDP))
}

fn port_is(port: u16) -> Statement {
    let bytes = port.to_be_bytes().to_vec();
    Statement::Is(Key::DestinationPort, Value { text: port.to_string().into(), bytes })
}

fn fib_type(text: &'static str, number: u32) -> Value {
    Value { text: text.into(), bytes: number.to_ne_bytes().to_vec() }
}

fn rule(statements: &[Statement]) -> Rule {
    Rule { statements: statements.to_vec(), reason: None }
}

fn because(reason: Reason, statements: &[Statement]) -> Rule {
    Rule { statements: statements.to_vec(), reason: Some(reason) }
}

fn base(hook: Hook, priority: i32, drop: bool) -> Base {
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

fn prefixes_4(prefixes: &[Ipv4Net]) -> Vec<Element> {
    let prefixes: Vec<IpNet> = prefixes.iter().copied().map(IpNet::V4).collect();
    aggregate(&prefixes).into_iter().map(Element::Prefix).collect()
}

fn prefixes_6(prefixes: &[Ipv6Net]) -> Vec<Element> {
    let prefixes: Vec<IpNet> = prefixes.iter().copied().map(IpNet::V6).collect();
    aggregate(&prefixes).into_iter().map(Element::Prefix).collect()
}

impl Family {
    /// The number of the family, `NFPROTO_*`.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    fn value(self) -> Value {
        match self {
            Self::V4 => Value::byte("ipv4", self.number()),
            Self::V6 => Value::byte("ipv6", self.number()),
        }
    }
}

impl Value {
    fn byte(text: &'static str, byte: u8) -> Self {
        Self { text: text.into(), bytes: vec![byte] }
    }

    fn mark(mark: u32) -> Self {
        Self { text: format!("{mark:#010x}").into(), bytes: mark.to_ne_bytes().to_vec() }
    }
}

/// Priorities by their names in nft(8). `mangle` comes after defragmentation, which tproxy and
/// socket switch on, and before routing.
const MANGLE: i32 = -150;
const FILTER: i32 = 0;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP6: u8 = 58;
