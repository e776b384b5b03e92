//! The elements of a set as the kernel reports them, and the numbers of its attributes.

use nftnl::nftnl_sys::libc;

use crate::packets::{
    nft::{
        netlink::{Netfilter, attribute, attributes, number},
        raw_expr::RawElement,
    },
    ruleset::language::TableFamily,
};

pub(super) fn elements(
    netfilter: &mut Netfilter,
    family: TableFamily,
    table: &str,
    set: &str,
) -> std::io::Result<Vec<RawElement>> {
    let narrowed = [(NFTA_TABLE, table), (NFTA_SET_ELEM_LIST_SET, set)];
    let answers = netfilter.dump(family, libc::NFT_MSG_GETSETELEM, &narrowed)?;
    let lists = answers.iter().filter_map(|answer| attribute(answer, NFTA_SET_ELEM_LIST_ELEMENTS));
    // nft begins an interval set with an element at zero that ends the interval before its first
    // one; it has no meaning.
    let opening =
        |element: &RawElement| element.ends_interval && element.key.iter().all(|byte| *byte == 0);
    let mut elements: Vec<RawElement> = lists
        .flat_map(|list| attributes(list).map(|(_, element)| raw_element(element)))
        .filter(|element| !opening(element))
        .collect();
    elements.sort();
    Ok(elements)
}

fn raw_element(element: &[u8]) -> RawElement {
    let key = |which| {
        attribute(element, which)
            .and_then(|key| attribute(key, NFTA_DATA_VALUE))
            .map(<[u8]>::to_vec)
    };
    let flags = number(element, NFTA_SET_ELEM_FLAGS).unwrap_or_default();
    RawElement {
        key: key(NFTA_SET_ELEM_KEY).unwrap_or_default(),
        key_end: key(NFTA_SET_ELEM_KEY_END),
        ends_interval: flags & libc::NFT_SET_ELEM_INTERVAL_END as u32 != 0,
        data: key(NFTA_SET_ELEM_DATA),
    }
}

// From linux/netfilter/nf_tables.h. The table's name is attribute 1 of every object.
pub(super) const NFTA_TABLE: u16 = 1;
pub(super) const NFTA_CHAIN_NAME: u16 = 3;
pub(super) const NFTA_CHAIN_HOOK: u16 = 4;
pub(super) const NFTA_CHAIN_POLICY: u16 = 5;
pub(super) const NFTA_HOOK_HOOKNUM: u16 = 1;
pub(super) const NFTA_HOOK_PRIORITY: u16 = 2;
pub(super) const NFTA_HOOK_DEV: u16 = 3;
pub(super) const NFTA_RULE_CHAIN: u16 = 2;
pub(super) const NFTA_RULE_EXPRESSIONS: u16 = 4;
pub(super) const NFTA_EXPR_NAME: u16 = 1;
pub(super) const NFTA_OBJ_NAME: u16 = 2;
pub(super) const NFTA_OBJ_DATA: u16 = 4;
pub(super) const NFTA_COUNTER_PACKETS: u16 = 2;
pub(super) const NFTA_SET_NAME: u16 = 2;
pub(super) const NFTA_SET_ELEM_LIST_SET: u16 = 2;
pub(super) const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
pub(super) const NFTA_SET_ELEM_KEY: u16 = 1;
pub(super) const NFTA_SET_ELEM_DATA: u16 = 2;
pub(super) const NFTA_SET_ELEM_FLAGS: u16 = 3;
pub(super) const NFTA_SET_ELEM_KEY_END: u16 = 10;
pub(super) const NFTA_DATA_VALUE: u16 = 1;
