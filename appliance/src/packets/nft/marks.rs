//! Other programs' rules that write packet marks.
//!
//! A captured packet finds its listener by the mark that the daemon's rules give it. A chain of
//! another table that runs after them at prerouting and writes a mark replaces that mark, and the
//! captured packet ends as if it were for the gateway itself. This opens nothing, but nothing
//! works, so it is reported to the operator.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
};

use nftnl::nftnl_sys::libc;

use super::{
    super::{
        error::{PacketsError, netlink_error},
        ruleset::{
            language::{MANGLE, TABLE, TableFamily},
            render,
        },
    },
    netlink::{Netfilter, attribute, attributes, number, text},
    readback::{self, ChainFacts},
};

/// A chain of another table that may write marks after ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignMark {
    family: TableFamily,
    table: String,
    /// The chain that the kernel enters.
    base: String,
    /// The chain that writes the mark.
    chain: String,
    priority: i32,
}

impl fmt::Display for ForeignMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { family, table, base, chain, priority } = self;
        let family = render::family(*family);
        write!(f, "chain {chain} of table {family} {table} writes packet marks")?;
        if chain != base {
            write!(f, ", by way of its chain {base}")?;
        }
        write!(
            f,
            " (prerouting, priority {priority}), after the gateway's own rules ({MANGLE}): captured \
             packets of agents may lose theirs, and then nothing works; leave agents' interfaces out \
             there, or give that chain a priority below {MANGLE}"
        )
    }
}

/// Returns every chain of other programs that may take the daemon's mark from a packet. A chain of
/// the same priority runs before or after ours, by which was created first; it counts as after.
///
/// # Errors
///
/// The kernel cannot be asked.
pub fn foreign_marks() -> Result<Vec<ForeignMark>, PacketsError> {
    let failed = |source| netlink_error("look for others who write packet marks", source);
    let mut netfilter = Netfilter::open().map_err(failed)?;
    let mut found = Vec::new();
    for family in FAMILIES {
        for table in readback::tables(&mut netfilter, family).map_err(failed)? {
            if table != TABLE {
                of_table(&mut netfilter, family, &table, &mut found).map_err(failed)?;
            }
        }
    }
    Ok(found)
}

fn of_table(
    netfilter: &mut Netfilter,
    family: TableFamily,
    table: &str,
    found: &mut Vec<ForeignMark>,
) -> io::Result<()> {
    let chains = readback::chains(netfilter, family, table)?;
    let after = |facts: &ChainFacts| {
        facts.hook == libc::NF_INET_PRE_ROUTING as u32 && facts.priority >= MANGLE
    };
    for (base, facts) in &chains {
        let Some(facts) = facts.as_ref().filter(|facts| after(facts)) else { continue };
        for chain in marking(netfilter, family, table, (base, &chains))? {
            let (table, base, priority) = (table.to_owned(), base.clone(), facts.priority);
            found.push(ForeignMark { family, table, base, chain, priority });
        }
    }
    Ok(())
}

/// Returns the chains that are reached from this one and write a mark.
fn marking(
    netfilter: &mut Netfilter,
    family: TableFamily,
    table: &str,
    (base, chains): (&str, &BTreeMap<String, Option<ChainFacts>>),
) -> io::Result<Vec<String>> {
    let (mut marking, mut seen) = (Vec::new(), BTreeSet::from([base.to_owned()]));
    let mut next = vec![base.to_owned()];
    while let Some(chain) = next.pop() {
        let mut marks = false;
        for rule in readback::rules(netfilter, family, table, &chain)? {
            let does = Does::of(&rule);
            marks |= does.marks;
            // A map of verdicts may lead to any chain of the table that is not a base chain.
            let anywhere = chains.iter().filter(|(_, facts)| does.maps && facts.is_none());
            let led = does.goes_to.into_iter().chain(anywhere.map(|(name, _)| name.clone()));
            next.extend(led.filter(|name| seen.insert(name.clone())));
        }
        if marks {
            marking.push(chain);
        }
    }
    Ok(marking)
}

/// The relevant properties of a rule.
#[derive(Debug, Default, PartialEq, Eq)]
struct Does {
    marks: bool,
    maps: bool,
    goes_to: Vec<String>,
}

impl Does {
    fn of(expressions: &[u8]) -> Self {
        let mut does = Self::default();
        for (_, expression) in attributes(expressions) {
            let data = attribute(expression, NFTA_EXPR_DATA).unwrap_or_default();
            match text(expression, NFTA_EXPR_NAME) {
                Some("meta") => does.marks |= sets_mark(data),
                // iptables-nft uses this for extensions that it does not translate.
                Some("target") => {
                    let target = text(data, NFTA_TARGET_NAME);
                    does.marks |= target.is_some_and(|name| MARKING_TARGETS.contains(&name));
                }
                Some("immediate") => does.goes_to.extend(verdict_chain(data)),
                Some("lookup") => does.maps |= number(data, NFTA_LOOKUP_DREG) == Some(0),
                _ => {}
            }
        }
        does
    }
}

fn sets_mark(meta: &[u8]) -> bool {
    attribute(meta, NFTA_META_SREG).is_some()
        && number(meta, NFTA_META_KEY) == Some(libc::NFT_META_MARK as u32)
}

fn verdict_chain(immediate: &[u8]) -> Option<String> {
    let verdict = attribute(attribute(immediate, NFTA_IMMEDIATE_DATA)?, NFTA_DATA_VERDICT)?;
    text(verdict, NFTA_VERDICT_CHAIN).map(str::to_owned)
}

const FAMILIES: [TableFamily; 3] = [TableFamily::Inet, TableFamily::Ip, TableFamily::Ip6];
const MARKING_TARGETS: [&str; 2] = ["MARK", "CONNMARK"];

// From linux/netfilter/nf_tables.h and nf_tables_compat.h.
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_META_KEY: u16 = 2;
const NFTA_META_SREG: u16 = 3;
const NFTA_TARGET_NAME: u16 = 1;
const NFTA_LOOKUP_DREG: u16 = 3;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CHAIN: u16 = 2;
