//! The plan in the kernel's terms: each statement as expressions, each set as keys in bytes.
//!
//! Pure except for the types of libnftnl.

mod keys;

use std::ffi::{CStr, CString};

use ipnet::IpNet;
use nftnl::nftnl_sys::libc;

use super::{
    super::ruleset::language::{
        Element, Family, METER_MILLISECONDS, METER_SIZE, MatchKey, NAME_BYTES, NftRule, SNAPLEN,
        Set, SetKey, Statement, TableFamily, Value, interface_key, octets,
    },
    raw_expr::{Declaration, REGISTER, RawElement, RawExpr, SET_CONCAT},
};
use crate::policy::Mac;
use keys::load;

/// A rule ready to be sent, with the anonymous sets that it looks up.
pub(crate) struct LoweredRule {
    pub(crate) expressions: Vec<RawExpr>,
    pub(crate) sets: Vec<(Declaration, Vec<RawElement>)>,
}

/// Translates one rule. `ids` hands out numbers for anonymous sets.
pub(crate) fn rule(
    rule: &NftRule,
    family: TableFamily,
    ids: &mut impl Iterator<Item = u32>,
) -> LoweredRule {
    let mut lowered = LoweredRule { expressions: Vec::new(), sets: Vec::new() };
    for statement in &rule.statements {
        lower(statement, &mut lowered, ids);
    }
    for (declaration, _) in &mut lowered.sets {
        declaration.family = family;
    }
    lowered
}

/// Returns the declaration of a named set. Its id is not used for lookups, which go by name.
pub(crate) fn declaration(set: &Set, family: TableFamily) -> Declaration {
    let interval = libc::NFT_SET_INTERVAL as u32;
    let (flags, types, fields): (u32, &[u32], Vec<u8>) = match set.key {
        SetKey::Interface => (0, &[TYPE_IFNAME], vec![NAME_BYTES]),
        SetKey::Port => (0, &[TYPE_INET_SERVICE], vec![2]),
        SetKey::Address(family) => (interval, &[address_type(family)], vec![address_bytes(family)]),
        SetKey::InterfaceAndAddress(family) => (
            interval | SET_CONCAT,
            &[TYPE_IFNAME, address_type(family)],
            vec![NAME_BYTES, address_bytes(family)],
        ),
        SetKey::InterfaceAndMac => {
            (0, &[TYPE_IFNAME, TYPE_ETHER_ADDR], vec![NAME_BYTES, MAC_BYTES])
        }
        SetKey::Mark => (0, &[TYPE_MARK], vec![MARK_BYTES]),
        SetKey::MarkOfInterfaceAndAddress(family) => (
            interval | SET_CONCAT | libc::NFT_SET_MAP as u32,
            &[TYPE_IFNAME, address_type(family)],
            vec![NAME_BYTES, address_bytes(family)],
        ),
        SetKey::InterfaceMacAndAddress(family) => (
            0,
            &[TYPE_IFNAME, TYPE_ETHER_ADDR, address_type(family)],
            vec![NAME_BYTES, MAC_BYTES, address_bytes(family)],
        ),
    };
    let (flags, size) = if set.meter {
        ((libc::NFT_SET_EVAL | libc::NFT_SET_TIMEOUT) as u32, METER_SIZE)
    } else {
        (flags, 0)
    };
    let key_type = types.iter().fold(0, |number, kind| number << TYPE_BITS | kind);
    let name = c_string(&set.name);
    let userdata = match set.key {
        SetKey::Interface | SetKey::Mark => HOST_ORDER.to_vec(),
        SetKey::MarkOfInterfaceAndAddress(_) => DATA_IN_HOST_ORDER.to_vec(),
        _ => Vec::new(),
    };
    let is_map = matches!(set.key, SetKey::MarkOfInterfaceAndAddress(_));
    let data = is_map.then_some((TYPE_MARK, MARK_BYTES));
    let id = 0;
    Declaration { table: TABLE_C, family, name, size, id, flags, key_type, fields, data, userdata }
}

/// Returns a set with nothing but its name: the kernel needs no more to remove it.
pub(crate) fn named(name: &str, family: TableFamily) -> Declaration {
    Declaration {
        table: TABLE_C,
        family,
        name: c_string(name),
        size: 0,
        id: 0,
        flags: 0,
        key_type: TYPE_INET_SERVICE,
        fields: vec![2],
        data: None,
        userdata: Vec::new(),
    }
}

/// Returns the elements of a named set, as the kernel takes and lists them.
pub(crate) fn elements(set: &Set) -> Vec<RawElement> {
    set.elements.iter().flat_map(element).collect()
}

/// Returns text for the kernel. Names in this module hold no NUL; one that does ends there.
pub(crate) fn c_string(text: &str) -> CString {
    let bytes = text.bytes().take_while(|byte| *byte != 0).collect::<Vec<u8>>();
    CString::new(bytes).unwrap_or_default()
}

fn lower(statement: &Statement, to: &mut LoweredRule, ids: &mut impl Iterator<Item = u32>) {
    match statement {
        Statement::Is(key, value) => compare(*key, libc::NFT_CMP_EQ, value, to),
        Statement::IsNot(key, value) => compare(*key, libc::NFT_CMP_NEQ, value, to),
        Statement::AnyOf(key, values) => any_of(*key, values, false, to, ids),
        Statement::NotOneOf(key, values) => any_of(*key, values, true, to, ids),
        Statement::In(key, set) => look_up(*key, set, false, to),
        Statement::NotIn(key, set) => look_up(*key, set, true, to),
        Statement::Count => to.expressions.push(RawExpr::counter()),
        Statement::CountAs(name) => to.expressions.push(RawExpr::count_as(&c_string(name))),
        Statement::Over(key, set, rate) => {
            load(*key, &mut to.expressions);
            let limit = RawExpr::limit_over(*rate);
            to.expressions.push(RawExpr::meter(&c_string(set), METER_MILLISECONDS, limit));
        }
        Statement::Above(rate) => to.expressions.push(RawExpr::limit_over((*rate).into())),
        Statement::Tell(reason, group) => {
            to.expressions.push(RawExpr::log(&c_string(reason.as_str()), *group, SNAPLEN));
        }
        Statement::SetMark(mark) => to.expressions.extend([
            RawExpr::immediate(&mark.to_ne_bytes()),
            RawExpr::meta_set(libc::NFT_META_MARK as u32, REGISTER),
        ]),
        Statement::SetMarkOf(key, map) => {
            load(*key, &mut to.expressions);
            to.expressions.extend([
                RawExpr::look_up_into(&c_string(map), REGISTER),
                RawExpr::meta_set(libc::NFT_META_MARK as u32, REGISTER),
            ]);
        }
        Statement::SetPriority(value) => to.expressions.extend([
            RawExpr::immediate(&value.bytes),
            RawExpr::meta_set(libc::NFT_META_PRIORITY as u32, REGISTER),
        ]),
        Statement::MaxSegment(bytes) => to
            .expressions
            .extend([RawExpr::immediate(&bytes.to_be_bytes()), RawExpr::max_segment()]),
        Statement::Tproxy(family, None, port) => to
            .expressions
            .extend([RawExpr::immediate(&port.to_be_bytes()), RawExpr::tproxy(*family, false)]),
        Statement::Tproxy(family, Some(address), port) => to.expressions.extend([
            RawExpr::immediate(&octets(*address)),
            RawExpr::immediate_at(REGISTER + 1, &port.to_be_bytes()),
            RawExpr::tproxy(*family, true),
        ]),
        Statement::RejectReset => {
            to.expressions.push(RawExpr::reject(libc::NFT_REJECT_TCP_RST as u32, 0));
        }
        Statement::RejectProhibited => to.expressions.push(RawExpr::reject(
            libc::NFT_REJECT_ICMPX_UNREACH as u32,
            libc::NFT_REJECT_ICMPX_ADMIN_PROHIBITED as u8,
        )),
        Statement::Accept => to.expressions.push(RawExpr::verdict(libc::NF_ACCEPT)),
        Statement::Drop => to.expressions.push(RawExpr::verdict(libc::NF_DROP)),
        Statement::Goto(chain) => to.expressions.push(RawExpr::goto(&c_string(chain))),
    }
}

fn compare(key: MatchKey, operator: i32, value: &Value, to: &mut LoweredRule) {
    load(key, &mut to.expressions);
    to.expressions.push(RawExpr::compare(operator as u32, &value.bytes));
}

fn look_up(key: MatchKey, set: &str, invert: bool, to: &mut LoweredRule) {
    load(key, &mut to.expressions);
    to.expressions.push(RawExpr::lookup(&c_string(set), 0, invert));
}

fn any_of(
    key: MatchKey,
    values: &[Value],
    invert: bool,
    to: &mut LoweredRule,
    ids: &mut impl Iterator<Item = u32>,
) {
    load(key, &mut to.expressions);
    let id = ids.next().unwrap_or_default();
    to.expressions.push(RawExpr::lookup(ANONYMOUS, id, invert));
    let (key_type, bytes) = match key {
        MatchKey::L4 => (TYPE_INET_PROTOCOL, 1),
        MatchKey::Icmp4Type => (TYPE_ICMP_TYPE, 1),
        MatchKey::Icmp6Type => (TYPE_ICMP6_TYPE, 1),
        MatchKey::EtherType => (TYPE_ETHER_TYPE, 2),
        _ => (TYPE_FIB_ADDRTYPE, 4),
    };
    let flags = (libc::NFT_SET_ANONYMOUS | libc::NFT_SET_CONSTANT) as u32;
    let name = ANONYMOUS.to_owned();
    let (fields, userdata) = (vec![bytes], Vec::new());
    let (table, family, size, data) = (TABLE_C, TableFamily::Inet, 0, None);
    let declaration =
        Declaration { table, family, name, size, id, flags, key_type, fields, data, userdata };
    to.sets.push((declaration, values.iter().map(|value| single(value.bytes.clone())).collect()));
}

fn element(element: &Element) -> Vec<RawElement> {
    match element {
        Element::Interface(name) => vec![single(interface_key(name))],
        Element::Port(port) => vec![single(port.to_be_bytes().to_vec())],
        Element::Prefix(net) => interval(*net),
        Element::InterfaceAndMac(name, mac) => vec![single(interface_and_mac(name, *mac))],
        Element::InterfaceMacAndAddress(name, mac, address) => {
            vec![single([interface_and_mac(name, *mac), octets(*address)].concat())]
        }
        Element::InterfaceAndPrefix(name, net) => vec![interface_and_prefix(name, *net)],
        Element::MarkOfInterfaceAndPrefix(name, net, mark) => {
            let data = Some(mark.to_ne_bytes().to_vec());
            vec![RawElement { data, ..interface_and_prefix(name, *net) }]
        }
    }
}

fn interface_and_prefix(name: &str, net: IpNet) -> RawElement {
    let joined = |address: Vec<u8>| [interface_key(name), address].concat();
    let key_end = Some(joined(octets(net.broadcast())));
    RawElement { key_end, ..single(joined(octets(net.network()))) }
}

fn interface_and_mac(name: &str, mac: Mac) -> Vec<u8> {
    [&interface_key(name)[..], &mac.octets(), &[0, 0]].concat()
}

/// Returns the two elements of a single-field interval: its first key, and the first key after it.
/// An interval that reaches the last address has no end.
fn interval(net: IpNet) -> Vec<RawElement> {
    let mut both = vec![single(octets(net.network()))];
    if let Some(after) = successor(octets(net.broadcast())) {
        both.push(RawElement { ends_interval: true, ..single(after) });
    }
    both
}

fn successor(mut key: Vec<u8>) -> Option<Vec<u8>> {
    for byte in key.iter_mut().rev() {
        *byte = byte.wrapping_add(1);
        if *byte != 0 {
            return Some(key);
        }
    }
    None
}

fn single(key: Vec<u8>) -> RawElement {
    RawElement { key, key_end: None, ends_interval: false, data: None }
}

fn address_type(family: Family) -> u32 {
    match family {
        Family::V4 => TYPE_IPV4_ADDR,
        Family::V6 => TYPE_IPV6_ADDR,
    }
}

fn address_bytes(family: Family) -> u8 {
    match family {
        Family::V4 => 4,
        Family::V6 => 16,
    }
}

/// The table's name for C. It is the same constant in two forms; a test keeps them equal.
pub(crate) const TABLE_C: &CStr = c"cloakroom";

/// The name of anonymous sets, which the kernel numbers itself.
pub(crate) const ANONYMOUS: &CStr = c"__set%d";

/// Bytes of a MAC address, padded to whole words.
const MAC_BYTES: u8 = 8;

const MARK_BYTES: u8 = 4;

// Data types by nft's own numbers (nftables, include/datatype.h): only listings use them.
const TYPE_IPV4_ADDR: u32 = 7;
const TYPE_IPV6_ADDR: u32 = 8;
const TYPE_ETHER_ADDR: u32 = 9;
const TYPE_ETHER_TYPE: u32 = 10;
const TYPE_INET_PROTOCOL: u32 = 12;
const TYPE_INET_SERVICE: u32 = 13;
const TYPE_ICMP_TYPE: u32 = 14;
const TYPE_MARK: u32 = 19;
const TYPE_ICMP6_TYPE: u32 = 29;
const TYPE_FIB_ADDRTYPE: u32 = 38;
const TYPE_IFNAME: u32 = 41;
/// Says that keys are in host order (attribute 0, four bytes, 1): without it nft lists names as
/// empty.
const HOST_ORDER: [u8; 6] = {
    let [a, b, c, d] = 1u32.to_ne_bytes();
    [0, 4, a, b, c, d]
};
/// Says the same of a map's values (attribute 1).
const DATA_IN_HOST_ORDER: [u8; 6] = {
    let [a, b, c, d] = 1u32.to_ne_bytes();
    [1, 4, a, b, c, d]
};
/// Bits of one type in the number of a concatenation.
const TYPE_BITS: u32 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_one_name() {
        assert_eq!(TABLE_C.to_str(), Ok(crate::packets::ruleset::language::TABLE));
    }

    #[test]
    fn an_interval_ends_one_after_its_last_address_or_nowhere() {
        let net = |text: &str| interval(text.parse().unwrap());
        assert_eq!(net("10.0.0.0/8")[1].key, [11, 0, 0, 0]);
        assert_eq!(net("10.255.0.0/16")[1].key, [11, 0, 0, 0]);
        assert_eq!(net("240.0.0.0/4").len(), 1);
        assert_eq!(net("0.0.0.0/0").len(), 1);
    }

    #[test]
    fn an_interface_name_fills_its_field() {
        assert_eq!(interface_key("eth1"), *b"eth1\0\0\0\0\0\0\0\0\0\0\0\0");
        assert_eq!(interface_key("a23456789012345x").last(), Some(&0));
    }
}
