//! The keys by which the kernel tells agents apart where it bounds what each of them sends.
//!
//! Pure. The keys are those of [`crate::identity::AgentKey`]: an agent is an IPv4 address or an
//! IPv6 /64, and each address of an agent that is bound to its card counts by itself, so that no
//! agent takes the share of another in the same /64. A group is the set of its sources: however
//! many new sources an agent makes up, they are still one group.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    capture::{Capture, CaptureInterface},
    language::{Element, Family, MatchKey, Set, SetKey, Statement, is_family, set},
};

/// Returns what tells the agents of a family apart: conditions of which exactly one holds for each
/// of its packets, each with the key that counts then.
pub(crate) fn agents(family: Family, capture: &Capture) -> Vec<(Vec<Statement>, MatchKey)> {
    let is = is_family(family);
    let shared = MatchKey::InterfaceAndAgent(family);
    if family == Family::V4 || bound_6(capture).elements.is_empty() {
        return vec![(vec![is], shared)];
    }
    let own = MatchKey::InterfaceAndSource(family);
    vec![
        (vec![is.clone(), Statement::In(own, BOUND_6.into())], own),
        (vec![is, Statement::NotIn(own, BOUND_6)], shared),
    ]
}

/// Returns the IPv6 addresses that are bound to cards, each on its interface.
pub(crate) fn bound_6(capture: &Capture) -> Set {
    let mut elements = Vec::new();
    for interface in &capture.interfaces {
        let addresses = interface.bound.iter().flat_map(|agent| &agent.addresses);
        let of_6 = addresses.filter(|address| address.is_ipv6());
        let name = interface.name.to_string();
        elements
            .extend(of_6.map(|each| Element::InterfaceAndPrefix(name.clone(), IpNet::from(*each))));
    }
    set(BOUND_6, SetKey::InterfaceAndAddress(Family::V6), elements)
}

/// The name of that set.
pub(crate) const BOUND_6: &str = "bound_6";

/// Returns the map from each source to the number of its group, as a mark. The mark is replaced
/// before the packet is delivered.
pub(crate) fn groups(family: Family, capture: &Capture) -> Set {
    let elements = numbered(capture).flat_map(|(number, interface, prefixes)| {
        let name = interface.name.to_string();
        let of_family =
            prefixes.iter().filter(move |net| net.addr().is_ipv4() == (family == Family::V4));
        of_family.map(move |net| Element::MarkOfInterfaceAndPrefix(name.clone(), *net, number))
    });
    set(groups_name(family), SetKey::MarkOfInterfaceAndAddress(family), elements.collect())
}

/// Returns how many network cards each group binds, by its number in that map.
pub(crate) fn cards(capture: &Capture) -> impl Iterator<Item = (u32, usize)> {
    numbered(capture).map(|(number, interface, prefixes)| {
        let is_its = |address: &IpAddr| prefixes.iter().any(|prefix| prefix.contains(address));
        let its = interface.bound.iter().filter(|agent| agent.addresses.iter().any(is_its));
        (number, its.count())
    })
}

/// Returns each group with its interface and its prefixes.
fn numbered(capture: &Capture) -> impl Iterator<Item = (u32, &CaptureInterface, &[IpNet])> {
    let groups = capture.interfaces.iter().flat_map(|interface| {
        interface.groups.iter().map(move |prefixes| (interface, prefixes.as_slice()))
    });
    (1..).zip(groups).map(|(number, (interface, prefixes))| (number, interface, prefixes))
}

/// Returns the name of that map.
pub(crate) fn groups_name(family: Family) -> &'static str {
    match family {
        Family::V4 => "groups_4",
        Family::V6 => "groups_6",
    }
}
