//! Agents behind a hop that is narrower than their own link: a VPN, an overlay.
//!
//! A packet too large for such a hop is lost there, and nobody learns of it, because ICMP from
//! agents is refused. The kernel discovers the size that passes by itself, but only after seven
//! seconds of each connection. So both ends are told a smaller largest segment (RFC 9293, section
//! 3.7.1) in the packets that open a connection; the kernel only ever makes that number smaller.
//!
//! Pure.

use std::borrow::Cow;

use ipnet::IpNet;

use super::{
    capture::Capture,
    language::{
        Element, Family, MatchKey, NftRule, Set, SetKey, Statement, Value, is_family, is_tcp, rule,
    },
};

/// Returns the agents behind each width, in a set for each family.
pub(crate) fn sets(capture: &Capture) -> Vec<Set> {
    let set = |(mtu, family)| Set {
        name: name(mtu, family),
        key: SetKey::InterfaceAndAddress(family),
        elements: elements(mtu, family, capture),
        meter: false,
    };
    widths(capture).into_iter().map(set).collect()
}

/// Returns the rules that bound what the gateway may send an agent at once: they change the agent's
/// own announcement.
pub(crate) fn from_agents(capture: &Capture) -> Vec<NftRule> {
    clamps(capture, MatchKey::InterfaceAndSource)
}

/// Returns the rules that bound what agents may send at once: they change the gateway's
/// announcement.
pub(crate) fn to_agents(capture: &Capture) -> Vec<NftRule> {
    clamps(capture, MatchKey::InterfaceAndDestination)
}

fn clamps(capture: &Capture, agent: fn(Family) -> MatchKey) -> Vec<NftRule> {
    let clamp = |(mtu, family): (u16, Family)| {
        let opens = Statement::Is(MatchKey::OpeningFlags, Value::byte("syn", SYN));
        let segment = Statement::MaxSegment(mtu.saturating_sub(headers(family)));
        let is_agent = Statement::In(agent(family), name(mtu, family));
        rule(&[is_family(family), is_tcp(), opens, is_agent, segment])
    };
    widths(capture).into_iter().map(clamp).collect()
}

fn name(mtu: u16, family: Family) -> Cow<'static, str> {
    match family {
        Family::V4 => format!("narrow_{mtu}_4").into(),
        Family::V6 => format!("narrow_{mtu}_6").into(),
    }
}

/// Returns each width with each family that has agents behind it.
fn widths(capture: &Capture) -> Vec<(u16, Family)> {
    let narrow = capture.interfaces.iter().flat_map(|each| &each.narrow);
    let mut widths: Vec<u16> = narrow.map(|(mtu, _)| *mtu).collect();
    widths.sort_unstable();
    widths.dedup();
    let families: &[Family] = if capture.ipv6 { &[Family::V4, Family::V6] } else { &[Family::V4] };
    let of = |mtu: u16| families.iter().map(move |family| (mtu, *family));
    let widths = widths.into_iter().flat_map(of);
    widths.filter(|(mtu, family)| !elements(*mtu, *family, capture).is_empty()).collect()
}

fn elements(mtu: u16, family: Family, capture: &Capture) -> Vec<Element> {
    let mut elements = Vec::new();
    for interface in &capture.interfaces {
        let narrow = interface.narrow.iter().filter(|(width, _)| *width == mtu);
        let prefixes = narrow.flat_map(|(_, prefixes)| prefixes);
        let prefixes =
            prefixes.filter(|prefix| matches!(prefix, IpNet::V4(_)) == (family == Family::V4));
        let name = interface.name.to_string();
        elements.extend(prefixes.map(|net| Element::InterfaceAndPrefix(name.clone(), *net)));
    }
    elements
}

/// Returns the bytes of the headers before a segment, without options (RFC 6691).
fn headers(family: Family) -> u16 {
    match family {
        Family::V4 => 20 + 20,
        Family::V6 => 40 + 20,
    }
}

/// The flag of TCP that begins a connection (RFC 9293, section 3.1).
const SYN: u8 = 2;
