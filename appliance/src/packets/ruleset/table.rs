//! The table of IP packets: its sets, and its chains with their rules in an order that matters.
//! `nft/README.md` explains the order rule by rule.

use ipnet::IpNet;

use super::{
    capture::{Capture, DNS_PORT},
    language::{
        Chain, Element, Family, Hook, ICMP4, ICMP6, MatchKey, NftTable, Set, SetKey, Statement,
        TableFamily, Value, base, because, interface_key, is_family, is_tcp, is_udp,
        neighbour_discovery, port, port_is, prefixes, rule, set,
    },
    log::finished,
    meters, multicast, narrow, onboarding, prerouting,
};
use crate::{
    policy::special::{MARTIAN_4, MARTIAN_6},
    reason::Reason,
};

/// Returns the table of IP packets for one capture.
pub(crate) fn table(capture: &Capture) -> NftTable {
    finished(TableFamily::Inet, sets(capture), chains(capture), capture)
}

/// Returns the chains before logging is added.
pub(crate) fn chains(capture: &Capture) -> Vec<Chain> {
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
    sets.extend(multicast::sets());
    sets.extend(narrow::sets(capture));
    sets.extend(onboarding::sets(capture));
    sets.extend(prerouting::meters(capture));
    sets
}

fn input(capture: &Capture) -> Chain {
    use Statement::{Accept, Count, Drop, Is, NotIn};
    let mut rules = vec![
        rule(&[NotIn(MatchKey::Interface, "agents"), Accept]),
        rule(&[is_tcp(), Is(MatchKey::Mark, Value::mark(capture.mark)), Accept]),
        rule(&[is_udp(), port_is(DNS_PORT), Is(MatchKey::Mark, Value::mark(capture.mark)), Accept]),
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

/// Returns the output chain, which decides which errors may leave, however they came about. An ICMP
/// error quotes the packet that it is about, and goes to that packet's source. The kernel makes
/// some errors before any rule has seen the packet: about a hop-by-hop header while it reads the
/// header (RFC 8200, section 4.2), about fragments when the rest is overdue (section 4.5). Only the
/// errors with which our rules refuse may leave, and only to agents, whose source was checked by
/// then. Errors to this machine itself are about its own packets; kinds that an agent could have
/// caused are dropped.
///
/// A DHCP server answers where the request says, so its answers may go to agents only.
fn output(capture: &Capture) -> Chain {
    use Statement::{Accept, AnyOf, Count, Drop, Is, IsNot, NotIn};
    let to_itself = Value { text: "\"lo\"".into(), bytes: interface_key("lo") };
    let families = [
        (icmp(Family::V4), MatchKey::Icmp4Type, MatchKey::Icmp4Code, FORGED_4, (3, 13)),
        (icmp(Family::V6), MatchKey::Icmp6Type, MatchKey::Icmp6Code, FORGED_6, (1, 1)),
    ];
    let each =
        |icmp: &[Statement], rest: &[Statement]| rule(&[icmp, rest, &[Count, Drop]].concat());
    let mut rules = Vec::new();
    for (icmp, kind, _, forged, _) in &families {
        let forged = forged.iter().map(|(text, number)| Value::byte(text, *number)).collect();
        rules.push(each(icmp, &[AnyOf(*kind, forged)]));
    }
    rules.push(rule(&[Is(MatchKey::OutInterface, to_itself), Accept]));
    let [_, (icmp_6, kind, ..)] = &families;
    // Routers send these, and this machine is none.
    rules.push(each(icmp_6, &[Is(*kind, Value::byte("packet-too-big", 2))]));
    for (icmp, kind, code, _, (unreachable, prohibited)) in &families {
        let unreachable = || Is(*kind, Value::byte("destination-unreachable", *unreachable));
        let prohibited = Value::byte("admin-prohibited", *prohibited);
        rules.push(each(icmp, &[unreachable(), NotIn(MatchKey::OutInterface, "agents")]));
        rules.push(each(icmp, &[unreachable(), IsNot(*code, prohibited)]));
    }
    if capture.services.dhcp {
        let answer = [is_udp(), Is(MatchKey::SourcePort, port(prerouting::DHCP_PORT))];
        let elsewhere = NotIn(MatchKey::OutInterface, "agents");
        rules.push(each(&[is_family(Family::V4)], &[&answer[..], &[elsewhere]].concat()));
    }
    rules.extend(narrow::to_agents(capture));
    Chain { name: "output".into(), base: Some(base(Hook::Output, FILTER, false)), rules }
}

fn icmp(family: Family) -> [Statement; 2] {
    let protocol = match family {
        Family::V4 => Value::byte("icmp", ICMP4),
        Family::V6 => Value::byte("icmpv6", ICMP6),
    };
    [is_family(family), Statement::Is(MatchKey::L4, protocol)]
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

const FILTER: i32 = 0;

/// Types of ICMP errors (RFC 792), and of ICMPv6 messages (RFC 4443, RFC 4861), that this machine
/// would make about packets that it received and that it has no use for: a forged one could be
/// about a connection of its own.
const FORGED_4: &[(&str, u8)] =
    &[("source-quench", 4), ("redirect", 5), ("time-exceeded", 11), ("parameter-problem", 12)];
const FORGED_6: &[(&str, u8)] =
    &[("time-exceeded", 3), ("parameter-problem", 4), ("nd-redirect", 137)];
