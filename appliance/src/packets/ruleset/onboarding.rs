//! The rules that let agents of a group with onboarding reach the gateway's own address: on one TCP
//! port, at the address that the gateway has on their interface.
//!
//! Pure. Packets are delivered to the proxy's own listeners, so that slot, rate and record are the
//! same as for every connection. No socket is bound to the port itself: a packet that no rule here
//! takes finds no socket, and one that finds no listener falls to the rule that drops packets for
//! the gateway.

use ipnet::IpNet;

use super::{
    capture::Capture,
    language::{
        Element, Family, MatchKey, NftRule, Set, SetKey, Statement, is_family, is_tcp, port_is,
        rule, set, to_here,
    },
};
use crate::policy::Group;

/// Returns the sources of those groups, in a set for each family that has some.
pub(super) fn sets(capture: &Capture) -> Vec<Set> {
    let set = |family| {
        let key = SetKey::InterfaceAndAddress(family);
        set(name(family), key, elements(family, capture))
    };
    families(capture).map(set).collect()
}

/// Returns one rule for each family. tproxy looks for an open connection before it looks for a
/// listener, so the rule also takes the packets of open connections.
pub(super) fn rules(capture: &Capture) -> Vec<NftRule> {
    let deliver = |family| {
        rule(&[
            is_family(family),
            is_tcp(),
            port_is(Group::ONBOARDING_PORT),
            to_here(),
            Statement::In(MatchKey::InterfaceAndSource(family), name(family).into()),
            Statement::Tproxy(family, None, capture.proxy_port),
            Statement::SetMark(capture.mark),
            Statement::Accept,
        ])
    };
    families(capture).map(deliver).collect()
}

fn families(capture: &Capture) -> impl Iterator<Item = Family> {
    let families: &[Family] = if capture.ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] };
    families.iter().copied().filter(|family| !elements(*family, capture).is_empty())
}

fn elements(family: Family, capture: &Capture) -> Vec<Element> {
    let mut elements = Vec::new();
    for interface in &capture.interfaces {
        let of_family = |net: &&IpNet| net.addr().is_ipv4() == (family == Family::V4);
        let prefixes = interface.onboarding.iter().filter(of_family);
        let name = interface.name.to_string();
        elements.extend(prefixes.map(|net| Element::InterfaceAndPrefix(name.clone(), *net)));
    }
    elements
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "onboarding_4",
        Family::V6 => "onboarding_6",
    }
}
