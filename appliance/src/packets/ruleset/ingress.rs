//! The table that binds agents to their network cards: it decides which frames an interface takes.
//!
//! Pure. An interface with a bound agent gets a chain where its device delivers frames, with policy
//! drop. An admitted packet is marked as proven, and prerouting takes nothing without that proof
//! from such an interface: where the chain is missing, for whatever reason, nothing passes.
//! `nft/README.md` explains rule by rule.

use ipnet::IpNet;

use super::{
    capture::{Capture, CaptureInterface},
    language::{
        Chain, Element, Family, Hook, ICMP6, MatchKey, NftRule, NftTable, Set, SetKey, Statement,
        TableFamily, Value, base, because, meter, proof, rule, set,
    },
    log::finished,
    multicast,
    prerouting::{DISCOVERS, SERVICE_RATE, SOLICITATIONS, discover, solicitation},
};
use crate::{policy::InterfaceName, reason::Reason};

/// Returns the table of frames; `None` where no agent is bound. A missing interface gets no chain,
/// because the kernel does not create one.
pub(crate) fn table(
    capture: &Capture,
    is_there: impl Fn(&InterfaceName) -> bool,
) -> Option<NftTable> {
    let bound: Vec<&CaptureInterface> =
        capture.interfaces.iter().filter(|each| !each.bound.is_empty()).collect();
    if bound.is_empty() {
        return None;
    }
    let mut chains = vec![admit(capture)];
    if capture.ipv6 {
        chains.extend([adverts(&bound), admit_6(capture)]);
    }
    chains.extend(bound.iter().filter(|each| is_there(&each.name)).map(|each| door(&each.name)));
    Some(finished(TableFamily::Netdev, sets(&bound, capture), chains, capture))
}

/// Returns the chain of one device. Its name includes the device's, so that it never moves to
/// another.
fn door(device: &InterfaceName) -> Chain {
    Chain {
        name: format!("on_{device}").into(),
        base: Some(base(Hook::Ingress(device.clone()), FIRST, true)),
        rules: vec![rule(&[Statement::Goto("admit")])],
    }
}

fn admit(capture: &Capture) -> Chain {
    use Statement::{Count, Drop, Goto, In, Is, NotIn, NotOneOf};
    let kinds = vec![Value::pair("ip", IP), Value::pair("arp", ARP), Value::pair("ip6", IP6)];
    // The type in the frame's own header: that of a tag, even if the tag itself was stripped.
    let other = [is_ethernet(), NotOneOf(MatchKey::EtherType, kinds), Count, Drop];
    let mut rules = vec![because(Reason::SpoofedSource, &other)];

    let from_bound = In(MatchKey::InterfaceMacAndSource(Family::V4), "bound_4".into());
    rules.push(admitted(&[holds("ip", IP), is_ethernet(), from_bound]));
    let from_free = [
        holds("ip", IP),
        is_ethernet(),
        NotIn(MatchKey::InterfaceAndMac, "bound"),
        In(MatchKey::InterfaceAndSource(Family::V4), "free_4".into()),
    ];
    rules.push(admitted(&from_free));
    if capture.services.dhcp {
        rules.extend(dhcp());
    }

    rules.extend(multicast::from_link(Family::V4, &holds("ip", IP)));

    // An address has one MAC, so the frame's must equal the one in ARP.
    let arp = [
        holds("arp", ARP),
        is_ethernet(),
        In(MatchKey::InterfaceMacAndArpSource, "bound_4".into()),
        In(MatchKey::InterfaceArpMacAndArpSource, "bound_4".into()),
    ];
    rules.push(admitted(&arp));
    // A probe asks whether an address is taken (RFC 5227, section 2.1.1), and tells nobody anything
    // else.
    let probe = [
        holds("arp", ARP),
        is_ethernet(),
        In(MatchKey::InterfaceAndMac, "bound".into()),
        In(MatchKey::InterfaceAndArpMac, "bound".into()),
        Is(MatchKey::ArpSource, Value::address(std::net::Ipv4Addr::UNSPECIFIED.into())),
    ];
    rules.push(admitted(&probe));
    let free_arp = [
        holds("arp", ARP),
        is_ethernet(),
        NotIn(MatchKey::InterfaceAndMac, "bound"),
        NotIn(MatchKey::InterfaceAndArpMac, "bound"),
        In(MatchKey::InterfaceAndArpSource, "free_4".into()),
    ];
    rules.push(admitted(&free_arp));

    if capture.ipv6 {
        let advert = [
            holds("ip6", IP6),
            is_icmp6(),
            Is(MatchKey::Icmp6Type, Value::byte("nd-neighbor-advert", 136)),
            Goto("adverts"),
        ];
        rules.push(rule(&advert));
        rules.push(rule(&[holds("ip6", IP6), Goto("admit_6")]));
    } else {
        rules.push(because(Reason::ProtocolDenied, &[holds("ip6", IP6), Count, Drop]));
    }
    rules.push(because(Reason::SpoofedSource, &[Count, Drop]));
    Chain { name: "admit".into(), base: None, rules }
}

/// Returns the chain that lets no agent claim a MAC for another's address.
fn adverts(bound: &[&CaptureInterface]) -> Chain {
    let mut rules = Vec::new();
    for interface in bound {
        for agent in &interface.bound {
            let mine = agent.addresses.iter().filter(|address| address.is_ipv6());
            rules.extend(mine.map(|address| {
                let mut target = Value::address(*address);
                let std::net::IpAddr::V6(number) = address else { return rule(&[]) };
                target.text = format!("{:#034x}", u128::from(*number)).into();
                because(
                    Reason::SpoofedSource,
                    &[
                        Statement::Is(MatchKey::NeighbourTarget, target),
                        Statement::Is(MatchKey::Interface, Value::interface(&interface.name)),
                        is_ethernet(),
                        Statement::IsNot(MatchKey::Mac, Value::mac(agent.mac)),
                        Statement::Count,
                        Statement::Drop,
                    ],
                )
            }));
        }
    }
    rules.push(rule(&[Statement::Goto("admit_6")]));
    Chain { name: "adverts".into(), base: None, rules }
}

fn admit_6(capture: &Capture) -> Chain {
    use Statement::{Count, Drop, In, Is, NotIn};
    let from_bound = In(MatchKey::InterfaceMacAndSource(Family::V6), "bound_6".into());
    let card = [holds("ip6", IP6), is_ethernet(), In(MatchKey::InterfaceAndMac, "bound".into())];
    let mut rules = vec![too_many(&[&card[..], &solicitation()].concat(), SOLICITATIONS)];
    rules.push(admitted(&[holds("ip6", IP6), is_ethernet(), from_bound]));
    rules.push(admitted(&[
        holds("ip6", IP6),
        is_ethernet(),
        NotIn(MatchKey::InterfaceAndMac, "bound"),
        In(MatchKey::InterfaceAndSource(Family::V6), "free_6".into()),
    ]));
    let discovery = |who: &[Statement]| {
        let types =
            vec![Value::byte("nd-neighbor-solicit", 135), Value::byte("nd-neighbor-advert", 136)];
        let found = [
            holds("ip6", IP6),
            is_icmp6(),
            Is(MatchKey::HopLimit, Value::byte("255", 255)),
            Statement::AnyOf(MatchKey::Icmp6Type, types),
            In(MatchKey::Source(Family::V6), "link_6".into()),
        ];
        admitted(&[&found[..], who].concat())
    };
    rules.push(discovery(&[is_ethernet(), In(MatchKey::InterfaceAndMac, "bound".into())]));
    if capture.interfaces.iter().any(|each| !each.bound.is_empty() && !each.free.is_empty()) {
        rules.push(discovery(&[In(MatchKey::Interface, "mixed".into())]));
    }
    rules.extend(multicast::from_link(Family::V6, &holds("ip6", IP6)));
    rules.push(because(Reason::SpoofedSource, &[Count, Drop]));
    Chain { name: "admit_6".into(), base: None, rules }
}

/// Returns the rules for a bound card that has no address yet.
fn dhcp() -> [NftRule; 2] {
    let card =
        [holds("ip", IP), is_ethernet(), Statement::In(MatchKey::InterfaceAndMac, "bound".into())];
    let statements = [&card[..], &discover()].concat();
    [too_many(&statements, DISCOVERS), admitted(&statements)]
}

/// Drops the packets of one card that are too many, so that none takes all that its interface may
/// send.
fn too_many(of_a_card: &[Statement], meter: &'static str) -> NftRule {
    let over = Statement::Over(MatchKey::InterfaceAndMac, meter.into(), SERVICE_RATE.into());
    rule(&[of_a_card, &[over, Statement::Count, Statement::Drop]].concat())
}

fn admitted(statements: &[Statement]) -> NftRule {
    let end = [Statement::SetPriority(proof()), Statement::Accept];
    rule(&[statements, &end[..]].concat())
}

fn sets(bound: &[&CaptureInterface], capture: &Capture) -> Vec<Set> {
    let mut cards = Vec::new();
    let (mut pairs_4, mut pairs_6) = (Vec::new(), Vec::new());
    let (mut free_4, mut free_6) = (Vec::new(), Vec::new());
    for interface in bound {
        let name = interface.name.to_string();
        for agent in &interface.bound {
            cards.push(Element::InterfaceAndMac(name.clone(), agent.mac));
            for address in &agent.addresses {
                let pairs = if address.is_ipv4() { &mut pairs_4 } else { &mut pairs_6 };
                pairs.push(Element::InterfaceMacAndAddress(name.clone(), agent.mac, *address));
            }
        }
        for prefix in &interface.free {
            let free = if matches!(prefix, IpNet::V4(_)) { &mut free_4 } else { &mut free_6 };
            free.push(Element::InterfaceAndPrefix(name.clone(), *prefix));
        }
    }
    let mixed = bound.iter().filter(|each| !each.free.is_empty());
    let mixed = mixed.map(|each| Element::Interface(each.name.to_string())).collect();
    let mut sets = vec![
        set("bound", SetKey::InterfaceAndMac, cards),
        set("bound_4", SetKey::InterfaceMacAndAddress(Family::V4), pairs_4),
        set("bound_6", SetKey::InterfaceMacAndAddress(Family::V6), pairs_6),
        set("free_4", SetKey::InterfaceAndAddress(Family::V4), free_4),
        set("free_6", SetKey::InterfaceAndAddress(Family::V6), free_6),
        set("mixed", SetKey::Interface, mixed),
    ];
    sets.extend(multicast::sets());
    let meters = [(capture.ipv6, SOLICITATIONS), (capture.services.dhcp, DISCOVERS)];
    let meters = meters.into_iter().filter(|(used, _)| *used);
    sets.extend(meters.map(|(_, name)| meter(name, SetKey::InterfaceAndMac)));
    sets
}

fn is_ethernet() -> Statement {
    Statement::Is(
        MatchKey::InterfaceType,
        Value { text: "ether".into(), bytes: ARPHRD_ETHER.into() },
    )
}

fn is_icmp6() -> Statement {
    Statement::Is(MatchKey::L4, Value::byte("icmpv6", ICMP6))
}

fn holds(text: &'static str, kind: u16) -> Statement {
    Statement::Is(MatchKey::Protocol, Value::pair(text, kind))
}

// From linux/if_ether.h.
const IP: u16 = 0x0800;
const ARP: u16 = 0x0806;
const IP6: u16 = 0x86dd;

/// `ARPHRD_ETHER`, from linux/if_arp.h.
const ARPHRD_ETHER: [u8; 2] = 1u16.to_ne_bytes();

/// The priority before everything else that is hooked to a device.
const FIRST: i32 = -500;
