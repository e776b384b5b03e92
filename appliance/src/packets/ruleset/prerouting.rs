//! The chain that decides about every packet of an agent, in an order that matters.
//!
//! Pure. Errs towards dropping: the last two rules refuse a packet that no other rule takes, and
//! everything that is answered comes after the checks of its source. `nft/README.md` explains rule
//! by rule.

use std::net::{IpAddr, Ipv4Addr};

use super::{
    capture::{Capture, DNS_PORT, dns_at},
    language::{
        Chain, Family, Hook, ICMP4, ICMP6, MANGLE, METER_SIZE, MatchKey, NftRule, Rate, Set,
        SetKey, Statement, TCP, UDP, Value, base, because, fib_type, is_family, is_tcp, is_udp,
        meter, neighbour_discovery, port_is, proof, rule, to_here,
    },
    meters, multicast, narrow, onboarding,
};
use crate::{policy::Quota, reason::Reason};

/// A service other than DNS that the gateway's own address offers.
struct Service {
    /// The conditions of a packet that asks for it.
    asked: Vec<Statement>,
    /// The meter that counts such packets by agent.
    meter: &'static str,
}

/// Returns the base chain at prerouting.
pub(crate) fn chain(capture: &Capture) -> Chain {
    let mut rules = others(capture);
    rules.extend(identity(capture));
    rules.extend(narrow::from_agents(capture));
    rules.extend(dns(capture));
    rules.extend(services(capture));
    rules.extend(onboarding::rules(capture));
    rules.extend(destinations(capture));
    rules.push(divert(capture.mark));
    rules.extend(families(capture).iter().map(|family| deliver(*family, capture)));
    // The closing rules. Without them a packet that no listener takes would be routed.
    let end = [Statement::Count, Statement::Goto("refuse")];
    rules.push(because(Reason::PortDenied, &[&[is_tcp()], &end[..]].concat()));
    rules.push(because(Reason::ProtocolDenied, &end));
    Chain { name: "prerouting".into(), base: Some(base(Hook::Prerouting, MANGLE, false)), rules }
}

/// Returns the chain that ends a refused packet, for every reason: at once, except for an agent
/// that has had its refusals of this second, of which nothing more is logged.
pub(crate) fn refuse(capture: &Capture) -> Chain {
    use Statement::{Count, Drop, Over, RejectProhibited, RejectReset};
    let mut rules = vec![rule(&[is_tcp(), Count, RejectReset])];
    for &family in families(capture) {
        for (mut who, key) in meters::agents(family, capture) {
            let rate = match key {
                MatchKey::InterfaceAndAgent(Family::V6) => REFUSALS_OF_MANY,
                _ => REFUSALS,
            };
            let over = Over(key, of(family, "refusals_4", "refusals_6").into(), rate);
            who.extend([over, Count, Drop]);
            rules.push(rule(&who));
        }
    }
    rules.push(rule(&[Count, RejectProhibited]));
    Chain { name: "refuse".into(), base: None, rules }
}

/// Returns the sets in which the meters of these chains count.
pub(crate) fn meters(capture: &Capture) -> Vec<Set> {
    let mut meters = Vec::new();
    if capture.ipv6 {
        meters.push(meter(SOLICITATIONS, SetKey::Interface));
    }
    for family in families(capture) {
        let key = SetKey::InterfaceAndAddress(*family);
        meters.push(meter(of(*family, "dns_4", "dns_6"), key));
        meters.push(meter(of(*family, "refusals_4", "refusals_6"), key));
        meters.extend(services_of(*family, capture).iter().map(|each| meter(each.meter, key)));
    }
    meters.push(meter(DNS_GROUPS, SetKey::Mark));
    if capture.services.dhcp {
        meters.push(meter(DISCOVERS, SetKey::Interface));
    }
    if families(capture).iter().any(|family| !services_of(*family, capture).is_empty()) {
        meters.push(meter(SERVICES, SetKey::Interface));
    }
    meters
}

/// Returns the rules of the input hook for the gateway's services: it admits packets that this
/// chain has marked.
pub(crate) fn admitted_services(capture: &Capture) -> Vec<NftRule> {
    let marked = || Statement::Is(MatchKey::Mark, Value::mark(capture.mark));
    let services = families(capture).iter().flat_map(|family| services_of(*family, capture));
    let admit =
        |service: Service| rule(&[service.asked, vec![marked(), Statement::Accept]].concat());
    services.map(admit).collect()
}

/// Accepts traffic that is not the agents', unless its source routes back to an agent: this
/// machine's reply would deliver an outsider's bytes there, and `rp_filter` is for IPv4 alone.
///
/// There is a rule for each interface, because nft 1.0.6 cannot reload its listing of a lookup of
/// this key in a set of interfaces.
fn others(capture: &Capture) -> Vec<NftRule> {
    use Statement::{Accept, Count, Drop, Is, NotIn};
    let others = || NotIn(MatchKey::Interface, "agents");
    let forged = capture.interfaces.iter().map(|each| {
        let agents = Is(MatchKey::WayBackInterface, Value::interface(&each.name));
        rule(&[others(), agents, Count, Drop])
    });
    forged.chain([rule(&[others(), Accept])]).collect()
}

/// Returns the rules that decide who may send at all. Their order is that of the checks, each
/// before the rules that rely on it.
fn identity(capture: &Capture) -> Vec<NftRule> {
    use Statement::{Accept, Count, Drop, In, Is, IsNot, NotIn};
    let mut rules = Vec::new();
    if capture.interfaces.iter().any(|each| !each.bound.is_empty()) {
        let unproven = IsNot(MatchKey::Priority, proof());
        let unproven = [In(MatchKey::Interface, "bound".into()), unproven, Count, Drop];
        rules.push(because(Reason::SpoofedSource, &unproven));
    }
    if capture.services.dhcp {
        rules.extend(for_others());
        rules.push(discovers());
        rules.push(dhcp_from_nowhere(capture.mark));
    }
    if capture.ipv6 {
        rules.push(solicitations(capture));
        let mut discovery = neighbour_discovery();
        discovery.extend([
            In(MatchKey::Source(Family::V6), "link_6".into()),
            for_this_machine(),
            Accept,
        ]);
        rules.push(rule(&discovery));
    } else {
        rules.push(because(Reason::ProtocolDenied, &[is_family(Family::V6), Count, Drop]));
    }

    for &family in families(capture) {
        rules.extend(multicast::from_link(family, &is_family(family)));
    }
    // None of these is ever answered: a reject quotes the sender's bytes to a receiver of its
    // choice.
    for &family in families(capture) {
        let martian = In(MatchKey::Source(family), of(family, "martian_4", "martian_6").into());
        rules.push(because(Reason::SpoofedSource, &[is_family(family), martian, Count, Drop]));
        let sources = of(family, "sources_4", "sources_6");
        let foreign = NotIn(MatchKey::InterfaceAndSource(family), sources);
        rules.push(because(Reason::SpoofedSource, &[is_family(family), foreign, Count, Drop]));
    }
    let ours = [IsNot(MatchKey::SourceType, fib_type("unicast", 1)), Count, Drop];
    rules.push(because(Reason::SpoofedSource, &ours));
    // The kernel writes present or missing in one byte and clears the rest of the four.
    let missing = Value { text: "missing".into(), bytes: 0u32.to_ne_bytes().to_vec() };
    rules.push(because(Reason::SpoofedSource, &[Is(MatchKey::WayBack, missing), Count, Drop]));

    if capture.ipv6 {
        let mut discovery = neighbour_discovery();
        discovery.extend([for_this_machine(), Accept]);
        rules.push(rule(&discovery));
    }
    let many = vec![fib_type("broadcast", 3), fib_type("multicast", 5)];
    let many = [Statement::AnyOf(MatchKey::DestinationType, many), Count, Drop];
    rules.push(because(Reason::MulticastDenied, &many));
    let nearest = [Is(MatchKey::DestinationType, fib_type("anycast", 4)), Count, Drop];
    rules.push(because(Reason::SelfDestination, &nearest));
    rules
}

/// Returns the rules for DNS to any address, our own included, and for DNS that no listener took.
fn dns(capture: &Capture) -> Vec<NftRule> {
    use Statement::{AnyOf, Count, Drop, Goto, Over, SetMarkOf};
    let query = || [is_udp(), port_is(DNS_PORT)];
    let mut rules = Vec::new();
    // One socket serves the interface, so neither an agent nor a group may fill its buffer.
    let rate = capture.dns_rate.saturating_mul(DNS_HEADROOM);
    for &family in families(capture) {
        for (who, key) in meters::agents(family, capture) {
            let over = Over(key, of(family, "dns_4", "dns_6").into(), rate.into());
            let flood = [&query()[..], &who[..], &[over, Count, Drop]].concat();
            rules.push(because(Reason::DnsRate, &flood));
        }
    }
    for &family in families(capture) {
        let group = SetMarkOf(MatchKey::InterfaceAndSource(family), meters::groups_name(family));
        rules.push(rule(&[&query()[..], &[is_family(family), group]].concat()));
    }
    for (which, rate) in group_rates(capture) {
        let over = Over(MatchKey::Mark, DNS_GROUPS.into(), rate.into());
        let flood = [&query()[..], &which[..], &[over, Count, Drop]].concat();
        rules.push(because(Reason::DnsRate, &flood));
    }
    for &family in families(capture) {
        rules.push(deliver_dns(family, is_tcp(), capture));
        rules.push(deliver_dns(family, is_udp(), capture));
    }
    let tcp_and_udp = vec![Value::byte("tcp", TCP), Value::byte("udp", UDP)];
    let nobody = [AnyOf(MatchKey::L4, tcp_and_udp), port_is(DNS_PORT), Count, Goto("refuse")];
    rules.push(because(Reason::DnsDenied, &nobody));
    rules
}

/// Returns the queries a second of all agents of a group, each with the conditions on the mark of
/// its groups. A group that binds more cards than the usual rate allows for has the rate of each
/// card: nobody can make up cards.
fn group_rates(capture: &Capture) -> Vec<(Vec<Statement>, u32)> {
    let (mut rates, mut others) = (Vec::new(), Vec::new());
    let usual = capture.dns_rate.saturating_mul(Quota::GROUP_RATE);
    for (number, cards) in meters::cards(capture) {
        let cards = u32::try_from(cards).unwrap_or(u32::MAX);
        let rate = capture.dns_rate.saturating_mul(cards).min(DNS_OF_ONE_THREAD);
        if rate > usual {
            let mark = Value::mark(number);
            rates.push((vec![Statement::Is(MatchKey::Mark, mark.clone())], rate));
            others.push(Statement::IsNot(MatchKey::Mark, mark));
        }
    }
    rates.push((others, usual));
    rates
}

/// Returns the rules for the other services that the operator lets the gateway offer, at the
/// address that it has on the interface the packet came in by, and at no other.
fn services(capture: &Capture) -> Vec<NftRule> {
    use Statement::{Accept, Count, Drop, Over, SetMark};
    let mut rules = Vec::new();
    for &family in families(capture) {
        for service in services_of(family, capture) {
            let here = [service.asked, vec![to_here()]].concat();
            for (who, key) in meters::agents(family, capture) {
                let over = Over(key, service.meter.into(), SERVICE_RATE.into());
                let flood = [&here[..], &who, &[over, Count, Drop]].concat();
                rules.push(because(Reason::RateLimit, &flood));
            }
            // This also applies where a meter is full and takes no new agent.
            let over = Over(MatchKey::Interface, SERVICES.into(), SERVICES_RATE.into());
            let flood = [&here[..], &[over, Count, Drop]].concat();
            rules.push(because(Reason::RateLimit, &flood));
            rules.push(rule(&[here, vec![SetMark(capture.mark), Accept]].concat()));
        }
    }
    rules
}

/// Returns the rules for addresses to which nobody may connect: our own, and special ones that
/// policy does not list.
fn destinations(capture: &Capture) -> Vec<NftRule> {
    use Statement::{Count, Drop, Goto, In, NotIn};
    let own = [Statement::Is(MatchKey::DestinationType, fib_type("local", 2)), Count, Drop];
    let mut rules = vec![because(Reason::SelfDestination, &own)];
    for &family in families(capture) {
        let to = MatchKey::Destination(family);
        let special = In(to, of(family, "special_4", "special_6").into());
        let elsewhere = NotIn(to, of(family, "homes_4", "homes_6"));
        let statements = [is_family(family), special, elsewhere, Count, Goto("refuse")];
        rules.push(because(Reason::DestinationDenied, &statements));
    }
    rules
}

/// Delivers packets of connections that our listeners have already accepted.
fn divert(mark: u32) -> NftRule {
    rule(&[
        is_tcp(),
        Statement::Is(MatchKey::SocketTransparent, Value::byte("1", 1)),
        Statement::Is(MatchKey::SocketWildcard, Value::byte("0", 0)),
        Statement::SetMark(mark),
        Statement::Accept,
    ])
}

/// Delivers new connections to listed ports.
fn deliver(family: Family, capture: &Capture) -> NftRule {
    rule(&[
        is_family(family),
        is_tcp(),
        Statement::In(MatchKey::DestinationPort, "ports".into()),
        Statement::Tproxy(family, None, capture.proxy_port),
        Statement::SetMark(capture.mark),
        Statement::Accept,
    ])
}

/// Delivers DNS to any address, our own included. The rule also takes the packets of open
/// connections.
fn deliver_dns(family: Family, transport: Statement, capture: &Capture) -> NftRule {
    rule(&[
        is_family(family),
        transport,
        port_is(DNS_PORT),
        Statement::Tproxy(family, Some(dns_at(family == Family::V6)), DNS_PORT),
        Statement::SetMark(capture.mark),
        Statement::Accept,
    ])
}

/// Admits a DHCP client without an address, to any server that may give it one.
fn dhcp_from_nowhere(mark: u32) -> NftRule {
    let mut statements = vec![is_family(Family::V4)];
    statements.extend(discover());
    statements.extend([Statement::SetMark(mark), Statement::Accept]);
    rule(&statements)
}

/// Drops DHCP that asks a server to answer elsewhere: at a relay, although no agent is one, or at
/// an address that a client without an address says it has. A server believes either, and its
/// answer would carry the agent's bytes there.
fn for_others() -> [NftRule; 2] {
    use Statement::{Count, Drop, IsNot};
    let nobody = || Value { text: "0x0".into(), bytes: vec![0; 4] };
    let relayed = [is_family(Family::V4), is_udp(), port_is(DHCP_PORT)];
    let relayed = [&relayed[..], &[IsNot(MatchKey::DhcpRelay, nobody()), Count, Drop]].concat();
    let elsewhere = [&[is_family(Family::V4)], &discover()[..]].concat();
    let elsewhere =
        [&elsewhere[..], &[IsNot(MatchKey::DhcpClient, nobody()), Count, Drop]].concat();
    [relayed, elsewhere].map(|statements| because(Reason::SpoofedSource, &statements))
}

/// Bounds these packets by interface: they all have the same source, so nothing else tells them
/// apart here.
fn discovers() -> NftRule {
    let mut statements = vec![is_family(Family::V4)];
    statements.extend(discover());
    let over = Statement::Over(MatchKey::Interface, DISCOVERS.into(), INTERFACE_RATE.into());
    statements.extend([over, Statement::Count, Statement::Drop]);
    rule(&statements)
}

/// Matches the packets of a DHCP client without an address (RFC 2131, section 4.1), over IPv4.
pub(crate) fn discover() -> [Statement; 4] {
    let any = Value::address(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let everybody = Value::address(IpAddr::V4(Ipv4Addr::BROADCAST));
    [
        is_udp(),
        Statement::Is(MatchKey::Source(Family::V4), any),
        Statement::Is(MatchKey::Destination(Family::V4), everybody),
        port_is(DHCP_PORT),
    ]
}

/// Bounds solicitations by interface. The kernel remembers every host that asks for the gateway's
/// address, in one table for all interfaces, and takes no new one while the table is full of new
/// ones. Bound addresses are exempt: they are few, and no other host may take their places.
fn solicitations(capture: &Capture) -> NftRule {
    let mut statements = vec![is_family(Family::V6)];
    statements.extend(solicitation());
    if !meters::bound_6(capture).elements.is_empty() {
        let source = MatchKey::InterfaceAndSource(Family::V6);
        statements.push(Statement::NotIn(source, meters::BOUND_6));
    }
    let over = Statement::Over(MatchKey::Interface, SOLICITATIONS.into(), INTERFACE_RATE.into());
    statements.extend([over, Statement::Count, Statement::Drop]);
    rule(&statements)
}

/// Matches a request for the MAC of a neighbour (RFC 4861, section 4.3), over IPv6.
pub(crate) fn solicitation() -> [Statement; 2] {
    [
        Statement::Is(MatchKey::L4, Value::byte("icmpv6", ICMP6)),
        Statement::Is(MatchKey::Icmp6Type, Value::byte("nd-neighbor-solicit", 135)),
    ]
}

fn echo_request(family: Family) -> Vec<Statement> {
    let (protocol, kind) = match family {
        Family::V4 => (
            Value::byte("icmp", ICMP4),
            Statement::Is(MatchKey::Icmp4Type, Value::byte("echo-request", 8)),
        ),
        Family::V6 => (
            Value::byte("icmpv6", ICMP6),
            Statement::Is(MatchKey::Icmp6Type, Value::byte("echo-request", 128)),
        ),
    };
    vec![is_family(family), Statement::Is(MatchKey::L4, protocol), kind]
}

/// Matches packets for this machine or for all. Neighbours send no others: a packet for another
/// host would be routed, and refused with an error to the source that it claims.
fn for_this_machine() -> Statement {
    let types = vec![fib_type("local", 2), fib_type("multicast", 5)];
    Statement::AnyOf(MatchKey::DestinationType, types)
}

/// Returns the services of one family that the operator names. DHCP is of IPv4.
fn services_of(family: Family, capture: &Capture) -> Vec<Service> {
    let (wanted, mut services) = (capture.services, Vec::new());
    let udp = |port| vec![is_family(family), is_udp(), port_is(port)];
    if wanted.ping {
        let asked = echo_request(family);
        services.push(Service { asked, meter: of(family, "pings_4", "pings_6") });
    }
    if wanted.ntp {
        services.push(Service { asked: udp(NTP_PORT), meter: of(family, "ntp_4", "ntp_6") });
    }
    if wanted.dhcp && family == Family::V4 {
        services.push(Service { asked: udp(DHCP_PORT), meter: "dhcp_4" });
    }
    services
}

fn families(capture: &Capture) -> &'static [Family] {
    if capture.ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] }
}

fn of(family: Family, v4: &'static str, v6: &'static str) -> &'static str {
    match family {
        Family::V4 => v4,
        Family::V6 => v6,
    }
}

/// Packets a second that each service takes from one agent, and from one bound card, where the
/// source does not identify the agent.
pub(crate) const SERVICE_RATE: u32 = 10;
/// Packets a second that all services together take from all agents of one interface: one of each
/// agent that a meter has room for.
const SERVICES_RATE: u32 = METER_SIZE;
const SERVICES: &str = "services";

/// ICMP refusals that one agent gets in a second, and at once. A refusal to an address whose card
/// is not known waits for three seconds, charged to a socket of the kernel that all interfaces
/// share and that has room for 132 KiB on each CPU; `unres_qlen_bytes` bounds what waits for one
/// address. The number is so large because a browser tries many hosts at once over QUIC, and waits
/// where it is not refused.
const REFUSALS: Rate = Rate { a_second: 50, at_once: 50 };
/// The same, where one agent may have every address of a /64, so that nothing else bounds what
/// waits: 40 at once and 15 in the three seconds are 55 of 2,304 bytes, the largest.
const REFUSALS_OF_MANY: Rate = Rate { a_second: 5, at_once: 40 };

/// Packets a second that are taken from one interface where the source does not identify the agent:
/// two thousand hosts solicit the gateway twice a minute.
const INTERFACE_RATE: u32 = 100;
pub(crate) const SOLICITATIONS: &str = "solicitations";
pub(crate) const DISCOVERS: &str = "discovers";

/// Multiple of an agent's own rate above which the kernel drops its queries. Queries above the rate
/// and below this are dropped by the resolver, whose own measure forgives a burst.
const DNS_HEADROOM: u32 = 4;
/// The meter that bounds what all agents of a group send together. At the default rate, the answers
/// to all these queries, sent to agents that do not reveal their card, wait in half of the socket's
/// room. For bound cards, `unres_qlen_bytes` bounds what waits.
const DNS_GROUPS: &str = "dns_groups";
/// Highest rate of a group, whatever it binds: half of the queries that the one thread answers
/// (`benches/README.md`).
const DNS_OF_ONE_THREAD: u32 = 47_000;

const NTP_PORT: u16 = 123;
/// The port of a server (RFC 2131, section 4.1).
pub(crate) const DHCP_PORT: u16 = 67;
