//! What the kernel really holds, compared with what was meant.
//!
//! Compared are the chains with hook, priority and policy, the rules by chain and order with
//! their expressions by name, and the sets with every element. A difference is an error, because
//! somebody else is writing to our table.

use std::collections::BTreeMap;

use nftnl::nftnl_sys::libc;

use super::{
    error::PacketsError,
    install::netlink_error,
    lower,
    netlink::{Netfilter, attribute, attributes, number, text},
    plan::{self, Base, Hook, TABLE},
    raw_expr::RawElement,
};
use crate::reason::Reason;

/// Fails unless the static guard is loaded and its forward hook drops.
pub(super) fn require_base() -> Result<(), PacketsError> {
    let failed = |source| netlink_error("look for the guard table", source);
    let mut netfilter = Netfilter::open().map_err(failed)?;
    let chains = chains(&mut netfilter, BASE_TABLE).map_err(failed)?;
    let drops = |chain: &ChainFacts| {
        matches!(chain, Some((hook, _, policy))
        if *hook == libc::NF_INET_FORWARD as u32 && *policy == libc::NF_DROP as u32)
    };
    if chains.values().any(drops) { Ok(()) } else { Err(PacketsError::NoBaseTable) }
}

/// Names in the daemon's table that are not in the plan: left by another version, or by hand.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    pub(super) chains: Vec<String>,
    pub(super) sets: Vec<String>,
}

/// What an earlier table left behind. Empty where there is no table yet.
pub(super) fn strangers(table: &plan::Table) -> Result<Strangers, PacketsError> {
    let failed = |source| netlink_error("look at the packet rules", source);
    let mut netfilter = Netfilter::open().map_err(failed)?;
    let mut chains: Vec<String> =
        chains(&mut netfilter, TABLE).map_err(failed)?.into_keys().collect();
    chains.retain(|name| table.chains.iter().all(|chain| chain.name != name));
    if chains.is_empty() && !has_table(&mut netfilter).map_err(failed)? {
        return Ok(Strangers::default());
    }
    let mut sets = sets(&mut netfilter).map_err(failed)?;
    sets.retain(|name| table.sets.iter().all(|set| set.name != name));
    Ok(Strangers { chains, sets })
}

/// Fails unless the kernel holds exactly this table.
pub(super) fn verify(table: &plan::Table) -> Result<(), PacketsError> {
    let failed = |source| netlink_error("read back the packet rules", source);
    let mut netfilter = Netfilter::open().map_err(failed)?;
    let found = chains(&mut netfilter, TABLE).map_err(failed)?;
    let meant = table.chains.iter().map(|chain| (chain.name.to_owned(), chain.base.map(facts)));
    same("chains", &found, &meant.collect())?;
    for chain in &table.chains {
        let found = rules(&mut netfilter, chain.name).map_err(failed)?;
        let meant: Vec<Vec<String>> = chain.rules.iter().map(expression_names).collect();
        same(&format!("rules of chain {}", chain.name), &found, &meant)?;
    }
    let found = sets(&mut netfilter).map_err(failed)?;
    let mut meant: Vec<String> = table.sets.iter().map(|set| set.name.to_owned()).collect();
    meant.sort();
    same("sets", &found, &meant)?;
    for set in &table.sets {
        let found = elements(&mut netfilter, set.name).map_err(failed)?;
        let mut meant = lower::elements(set);
        meant.sort();
        same(&format!("elements of set {}", set.name), &found, &meant)?;
    }
    Ok(())
}

/// How many packets of each reason were refused without being told, because they were too many,
/// since the rules were last installed. Only reasons with any.
///
/// # Errors
///
/// Where the kernel cannot be asked.
pub fn untold() -> Result<Vec<(Reason, u64)>, PacketsError> {
    let failed = |source| netlink_error("count what was not told", source);
    let mut netfilter = Netfilter::open().map_err(failed)?;
    let narrowed = [(NFTA_TABLE, TABLE)];
    let answers = netfilter.dump(libc::NFT_MSG_GETRULE, &narrowed).map_err(failed)?;
    let ours = answers.iter().filter(|answer| text(answer, NFTA_TABLE) == Some(TABLE));
    let mut untold: Vec<(Reason, u64)> = Vec::new();
    for (reason, count) in ours.filter_map(|rule| above_the_rate(rule)).filter(|(_, n)| *n > 0) {
        match untold.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, sum)) => *sum += count,
            None => untold.push((reason, count)),
        }
    }
    Ok(untold)
}

/// The reason and the count of a rule that begins with a limit.
fn above_the_rate(rule: &[u8]) -> Option<(Reason, u64)> {
    let chain = text(rule, NFTA_RULE_CHAIN)?;
    let mut expressions = attributes(attribute(rule, NFTA_RULE_EXPRESSIONS)?);
    let (_, first) = expressions.next()?;
    let (_, counter) = expressions.next()?;
    if text(first, NFTA_EXPR_NAME) != Some("limit") {
        return None;
    }
    let data = attribute(counter, NFTA_EXPR_DATA)?;
    let packets = attribute(data, NFTA_COUNTER_PACKETS)?.first_chunk::<8>()?;
    Some((super::log::reason(chain)?, u64::from_be_bytes(*packets)))
}

/// Hook, priority and policy of a base chain.
type ChainFacts = Option<(u32, i32, u32)>;

fn same<T: PartialEq>(place: &str, found: &T, meant: &T) -> Result<(), PacketsError> {
    if found == meant {
        return Ok(());
    }
    Err(PacketsError::ReadBack { place: place.to_owned() })
}

fn facts(base: Base) -> (u32, i32, u32) {
    let hook = match base.hook {
        Hook::Prerouting => libc::NF_INET_PRE_ROUTING,
        Hook::Input => libc::NF_INET_LOCAL_IN,
        Hook::Forward => libc::NF_INET_FORWARD,
    };
    let policy = if base.drop { libc::NF_DROP } else { libc::NF_ACCEPT };
    (hook as u32, base.priority, policy as u32)
}

fn expression_names(rule: &plan::Rule) -> Vec<String> {
    let lowered = lower::rule(rule, &mut (1..));
    let names = lowered.expressions.iter();
    names.map(|expression| expression.name().to_string_lossy().into_owned()).collect()
}

fn chains(netfilter: &mut Netfilter, table: &str) -> std::io::Result<BTreeMap<String, ChainFacts>> {
    let answers = netfilter.dump(libc::NFT_MSG_GETCHAIN, &[])?;
    let ours = answers.iter().filter(|answer| text(answer, NFTA_TABLE) == Some(table));
    Ok(ours
        .filter_map(|answer| {
            let name = text(answer, NFTA_CHAIN_NAME)?.to_owned();
            let hook = attribute(answer, NFTA_CHAIN_HOOK).and_then(|hook| {
                let priority = number(hook, NFTA_HOOK_PRIORITY)?.cast_signed();
                let policy = number(answer, NFTA_CHAIN_POLICY)?;
                Some((number(hook, NFTA_HOOK_HOOKNUM)?, priority, policy))
            });
            Some((name, hook))
        })
        .collect())
}

fn has_table(netfilter: &mut Netfilter) -> std::io::Result<bool> {
    let answers = netfilter.dump(libc::NFT_MSG_GETTABLE, &[])?;
    Ok(answers.iter().any(|answer| text(answer, NFTA_TABLE) == Some(TABLE)))
}

fn rules(netfilter: &mut Netfilter, chain: &str) -> std::io::Result<Vec<Vec<String>>> {
    let narrowed = [(NFTA_TABLE, TABLE), (NFTA_RULE_CHAIN, chain)];
    let answers = netfilter.dump(libc::NFT_MSG_GETRULE, &narrowed)?;
    let ours = answers.iter().filter(|answer| {
        text(answer, NFTA_TABLE) == Some(TABLE) && text(answer, NFTA_RULE_CHAIN) == Some(chain)
    });
    Ok(ours
        .map(|answer| {
            let list = attribute(answer, NFTA_RULE_EXPRESSIONS).unwrap_or_default();
            attributes(list)
                .map(|(_, expression)| text(expression, NFTA_EXPR_NAME).unwrap_or_default())
                .map(str::to_owned)
                .collect()
        })
        .collect())
}

fn sets(netfilter: &mut Netfilter) -> std::io::Result<Vec<String>> {
    let answers = netfilter.dump(libc::NFT_MSG_GETSET, &[(NFTA_TABLE, TABLE)])?;
    let ours = answers.iter().filter(|answer| text(answer, NFTA_TABLE) == Some(TABLE));
    let names = ours.filter_map(|answer| text(answer, NFTA_SET_NAME));
    // Anonymous sets come and go with their rules.
    let mut named: Vec<String> =
        names.filter(|name| !name.starts_with("__set")).map(str::to_owned).collect();
    named.sort();
    Ok(named)
}

fn elements(netfilter: &mut Netfilter, set: &str) -> std::io::Result<Vec<RawElement>> {
    let narrowed = [(NFTA_TABLE, TABLE), (NFTA_SET_ELEM_LIST_SET, set)];
    let answers = netfilter.dump(libc::NFT_MSG_GETSETELEM, &narrowed)?;
    let lists = answers.iter().filter_map(|answer| attribute(answer, NFTA_SET_ELEM_LIST_ELEMENTS));
    // nft opens an interval set by ending, at zero, what is before its first one; that says nothing.
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
    }
}

/// The table of `nft/base.nft`.
const BASE_TABLE: &str = "cloakroom_base";

// linux/netfilter/nf_tables.h. The table's name is attribute 1 of every object.
const NFTA_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_COUNTER_PACKETS: u16 = 2;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_FLAGS: u16 = 3;
const NFTA_SET_ELEM_KEY_END: u16 = 10;
const NFTA_DATA_VALUE: u16 = 1;
