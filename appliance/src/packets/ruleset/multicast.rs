//! Packets that honest hosts send to all on their link, before or beside an address that identifies
//! them: to listen to groups (MLD, IGMP), or to look for a router, for an address (DHCP) or for
//! names (mDNS). Nobody here answers them, but they are no forgery, so they have a reason of their
//! own.
//!
//! Pure. Packets that speak for a neighbour or a router are not among them: other rules admit
//! these, or they are forgeries.

use super::language::{
    Family, ICMP6, MatchKey, NftRule, Set, SetKey, Statement, Value, because, is_udp, prefixes, set,
};
use crate::{
    policy::special::{LINK_4, LINK_6, MANY_4, MANY_6},
    reason::Reason,
};

/// The sets of the rules below, and of those about neighbour discovery.
pub(crate) fn sets() -> [Set; 4] {
    let of = |name, family, nets| set(name, SetKey::Address(family), prefixes(nets, family));
    [
        of("link_4", Family::V4, LINK_4),
        of("link_6", Family::V6, LINK_6),
        of("many_4", Family::V4, MANY_4),
        of("many_6", Family::V6, MANY_6),
    ]
}

/// Returns rules for packets from sources that have a meaning only on their link, to many
/// receivers. They stand behind the rules that admit some of these packets; `of_family` matches the
/// packets of this family.
pub(crate) fn from_link(family: Family, of_family: &Statement) -> Vec<NftRule> {
    use Statement::{Count, Drop, In};
    let (link, many) = match family {
        Family::V4 => ("link_4", "many_4"),
        Family::V6 => ("link_6", "many_6"),
    };
    let from = In(MatchKey::Source(family), link.into());
    let to = In(MatchKey::Destination(family), many.into());
    let denied = |said: Vec<Statement>| {
        let end = [from.clone(), to.clone(), Count, Drop];
        let whole = [std::slice::from_ref(of_family), &said[..], &end];
        because(Reason::MulticastDenied, &whole.concat())
    };
    said(family).map(denied).into()
}

/// Matches such packets. None of them tells a neighbour's address (RFC 4861), and none is a
/// fragment.
fn said(family: Family) -> [Vec<Statement>; 2] {
    use Statement::{AnyOf, Is};
    let about_links = match family {
        Family::V4 => vec![Is(MatchKey::L4, Value::byte("igmp", IGMP))],
        Family::V6 => {
            let types = vec![
                Value::byte("mld-listener-query", 130),
                Value::byte("mld-listener-report", 131),
                Value::byte("mld-listener-done", 132),
                Value::byte("nd-router-solicit", 133),
                Value::byte("mld2-listener-report", 143),
            ];
            let icmp6 = Is(MatchKey::L4, Value::byte("icmpv6", ICMP6));
            vec![icmp6, AnyOf(MatchKey::Icmp6Type, types)]
        }
    };
    [about_links, vec![is_udp()]]
}

/// From IANA, protocol numbers.
const IGMP: u8 = 2;
