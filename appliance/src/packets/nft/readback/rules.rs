//! Compares the rules of a chain with the planned ones, down to their constants.
//!
//! Each rule is built as it would be sent, and compared with the kernel's dump: the same
//! expressions in the same order, each with every attribute that was sent and that the kernel
//! reports at all. The kernel's own additions, such as a counter's count, do not matter.

use nftnl::{Batch, Chain, MsgType, Rule, nftnl_sys::libc};

use super::{
    super::{
        lower::{self, ANONYMOUS, TABLE_C, c_string},
        netlink::{GENMSG_BYTES, Netfilter, attribute, attributes, messages, nests, text},
        raw_expr::RawElement,
    },
    elements::{NFTA_EXPR_NAME, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS, NFTA_TABLE, elements},
};
use crate::packets::{
    error::{PacketsError, netlink_error},
    ruleset::{
        language::{self, TABLE, TableFamily},
        render,
    },
};

/// Fails at the first rule of the chain that differs from the plan.
pub(crate) fn verify(
    netfilter: &mut Netfilter,
    family: TableFamily,
    chain: &language::Chain,
) -> Result<(), PacketsError> {
    let failed = |source| netlink_error("read back the packet rules", source);
    let different = |place| Err(PacketsError::ReadBack { place });
    let found = found(netfilter, family, TABLE, &chain.name).map_err(failed)?;
    let meant = meant(chain, family);
    if found.len() != meant.len() || meant.len() != chain.rules.len() {
        return different(format!("number of rules of chain {}", chain.name));
    }
    for ((found, meant), rule) in found.iter().zip(&meant).zip(&chain.rules) {
        if !is(netfilter, family, found, meant).map_err(failed)? {
            return different(format!("rule `{}` of chain {}", render::rule(rule), chain.name));
        }
    }
    Ok(())
}

/// A planned rule, as it would be sent.
struct Meant {
    expressions: Vec<u8>,
    /// The elements of its anonymous sets, in the order of their lookups.
    sets: Vec<Vec<RawElement>>,
}

/// Returns the kernel's rules of a chain as lists of expressions.
pub(crate) fn found(
    netfilter: &mut Netfilter,
    family: TableFamily,
    table: &str,
    chain: &str,
) -> std::io::Result<Vec<Vec<u8>>> {
    let narrowed = [(NFTA_TABLE, table), (NFTA_RULE_CHAIN, chain)];
    let answers = netfilter.dump(family, libc::NFT_MSG_GETRULE, &narrowed)?;
    let ours = answers.iter().filter(|answer| {
        text(answer, NFTA_TABLE) == Some(table) && text(answer, NFTA_RULE_CHAIN) == Some(chain)
    });
    Ok(ours
        .map(|answer| attribute(answer, NFTA_RULE_EXPRESSIONS).unwrap_or_default().to_vec())
        .collect())
}

fn meant(chain: &language::Chain, family: TableFamily) -> Vec<Meant> {
    let owner = nftnl::Table::new(TABLE_C, family.proto());
    let raw_chain = Chain::new(c_string(&chain.name), &owner);
    let (mut batch, mut sets) = (Batch::new(), Vec::new());
    for rule in &chain.rules {
        let lowered = lower::rule(rule, family, &mut (1..));
        let mut raw = Rule::new(&raw_chain);
        for expression in &lowered.expressions {
            raw.add_expr(expression);
        }
        batch.add(&raw, MsgType::Add);
        sets.push(lowered.sets.into_iter().map(|(_, elements)| elements).collect());
    }
    let bytes: Vec<u8> = batch.finalize().iter().flatten().copied().collect();
    let new_rule = (libc::NFNL_SUBSYS_NFTABLES << 8 | libc::NFT_MSG_NEWRULE) as u16;
    let rules = messages(&bytes).filter(|message| message.kind == new_rule);
    let lists = rules.map(|message| {
        let body = message.payload.get(GENMSG_BYTES..).unwrap_or_default();
        attribute(body, NFTA_RULE_EXPRESSIONS).unwrap_or_default().to_vec()
    });
    lists.zip(sets).map(|(expressions, sets)| Meant { expressions, sets }).collect()
}

fn is(
    netfilter: &mut Netfilter,
    family: TableFamily,
    found: &[u8],
    meant: &Meant,
) -> std::io::Result<bool> {
    let list = |bytes| attributes(bytes).map(|(_, expression)| expression).collect::<Vec<_>>();
    let (found, wanted) = (list(found), list(&meant.expressions));
    let mut sets = meant.sets.iter();
    for (found, wanted) in found.iter().zip(&wanted) {
        let name = text(wanted, NFTA_EXPR_NAME);
        if text(found, NFTA_EXPR_NAME) != name {
            return Ok(false);
        }
        let data = |expression| attribute(expression, NFTA_EXPR_DATA).unwrap_or_default();
        let (found, wanted) = (data(found), data(wanted));
        let anonymous = attribute(wanted, NFTA_LOOKUP_SET) == Some(ANONYMOUS.to_bytes_with_nul());
        let set = if anonymous { sets.next() } else { None };
        let same = match set {
            Some(set) => looks_up(netfilter, family, found, wanted, set)?,
            None => agree(found, wanted, unsaid(name.unwrap_or_default())),
        };
        if !same {
            return Ok(false);
        }
    }
    Ok(found.len() == wanted.len())
}

/// Returns whether a lookup is in an anonymous set of these elements. The kernel has given the set
/// a number.
fn looks_up(
    netfilter: &mut Netfilter,
    family: TableFamily,
    found: &[u8],
    wanted: &[u8],
    set: &[RawElement],
) -> std::io::Result<bool> {
    let Some(name) = text(found, NFTA_LOOKUP_SET) else { return Ok(false) };
    let inverted = |lookup| attribute(lookup, NFTA_LOOKUP_FLAGS);
    let mut meant = set.to_vec();
    meant.sort();
    Ok(inverted(found) == inverted(wanted) && elements(netfilter, family, TABLE, name)? == meant)
}

/// Returns whether every wanted attribute is there with the same value, except for one that the
/// kernel may leave out.
fn agree(found: &[u8], wanted: &[u8], unsaid: Option<u16>) -> bool {
    nests(wanted).all(|(number, is_nest, wanted)| match attribute(found, number) {
        Some(found) if is_nest => agree(found, wanted, None),
        // libnftnl leaves out the NUL that ends the name of a counter.
        Some(found) => found == wanted || found.strip_suffix(&[0]) == Some(wanted),
        None => unsaid == Some(number),
    })
}

/// Returns the attribute of an expression that the kernel does not report although it was sent.
fn unsaid(name: &str) -> Option<u16> {
    match name {
        // The number of a set within its transaction is not reported.
        "lookup" => Some(NFTA_LOOKUP_SET_ID),
        "dynset" => Some(NFTA_DYNSET_SET_ID),
        // A reset has no code. A refusal that is no reset differs in its type.
        "reject" => Some(NFTA_REJECT_ICMP_CODE),
        _ => None,
    }
}

// From linux/netfilter/nf_tables.h.
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SET_ID: u16 = 4;
const NFTA_LOOKUP_FLAGS: u16 = 5;
const NFTA_DYNSET_SET_ID: u16 = 2;
const NFTA_REJECT_ICMP_CODE: u16 = 2;
