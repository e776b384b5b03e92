//! Rules of other programs that keep captured packets from the gateway.
//!
//! A captured packet finds its listener by the mark that the daemon's rules give it. A chain of
//! another table that runs after them at prerouting and writes a mark replaces that mark. A chain
//! at input that refuses whatever it does not know, as a firewall's does, ends the packet on its way
//! to the listener. A reverse path check that looks for the route by the mark finds this machine,
//! and drops the packet. This opens nothing, but nothing works, so it is reported to the operator.

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
    readback::{self, BASE_TABLE, ChainFacts},
};
use crate::policy::InterfaceName;

/// The chains of other tables that may keep captured packets from the gateway.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ForeignRules {
    /// Those that may write marks after ours.
    pub marks: Vec<ForeignMark>,
    /// Those that may end a captured packet.
    pub filters: Vec<ForeignFilter>,
}

/// A chain of another table that may write marks after ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignMark {
    entry: ForeignEntry,
    /// The chain that writes the mark.
    chain: String,
}

/// A chain of another table that may end captured packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignFilter {
    entry: ForeignEntry,
    fault: FilterFault,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum FilterFault {
    /// It refuses packets to this machine, and no rule admits these interfaces.
    Input(Vec<InterfaceName>),
    /// This chain looks for the way back by the packet's mark.
    ReversePath(String),
}

/// The chain by which the kernel enters another table.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ForeignEntry {
    family: TableFamily,
    table: String,
    base: String,
    priority: i32,
}

impl ForeignEntry {
    /// Names a chain of the table, and the one by which the kernel gets there.
    fn name(&self, chain: &str) -> String {
        let Self { family, table, base, .. } = self;
        let family = render::family(*family);
        match chain == base {
            true => format!("chain {chain} of table {family} {table}"),
            false => {
                format!("chain {chain} of table {family} {table}, by way of its chain {base},")
            }
        }
    }
}

impl fmt::Display for ForeignMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry, chain } = self;
        write!(
            f,
            "{} writes packet marks (prerouting, priority {}), after the gateway's own rules \
             ({MANGLE}): captured packets of agents may lose theirs, and then nothing works; leave \
             agents' interfaces out there, or give that chain a priority below {MANGLE}",
            entry.name(chain),
            entry.priority
        )
    }
}

impl fmt::Display for ForeignFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry, fault } = self;
        match fault {
            FilterFault::Input(interfaces) => {
                let names: Vec<&str> = interfaces.iter().map(InterfaceName::as_str).collect();
                write!(
                    f,
                    "{} refuses packets to this machine (input), and no rule there names {}: captured \
                     packets of agents may end in it, and then nothing works; accept all from \
                     agents' interfaces there, because the guard comes before and has dropped all \
                     but what is the gateway's",
                    entry.name(&entry.base),
                    names.join(", ")
                )
            }
            FilterFault::ReversePath(chain) => write!(
                f,
                "{} looks for the way back by the packet's mark (prerouting, priority {}): that of \
                 captured packets leads to this machine, so that they may end there, and then nothing \
                 works; turn that check off, because the gateway's own rules make a stricter one",
                entry.name(chain),
                entry.priority
            ),
        }
    }
}

/// Returns every chain of other programs that may take the daemon's mark from a packet, or end a
/// packet that was captured from one of these interfaces. A chain of the same priority runs before
/// or after ours, by which was created first; it counts as after.
///
/// Whether a filter lets a packet through is for the kernel to say. A filter that names the
/// interface, or that reads marks or the sockets of packets, is taken for one whose author knew.
///
/// # Errors
///
/// The kernel cannot be asked.
pub fn foreign_rules(interfaces: &[&InterfaceName]) -> Result<ForeignRules, PacketsError> {
    let failed = |source| netlink_error("look for rules of others", source);
    let mut netfilter = Netfilter::open().map_err(failed)?;
    let mut found = ForeignRules::default();
    for family in FAMILIES {
        for table in readback::tables(&mut netfilter, family).map_err(failed)? {
            if ![TABLE, BASE_TABLE].contains(&&*table) {
                of_table(&mut netfilter, (family, table), interfaces, &mut found)
                    .map_err(failed)?;
            }
        }
    }
    Ok(found)
}

fn of_table(
    netfilter: &mut Netfilter,
    (family, table): (TableFamily, String),
    interfaces: &[&InterfaceName],
    found: &mut ForeignRules,
) -> io::Result<()> {
    let chains = readback::chains(netfilter, family, &table)?;
    for (base, facts) in &chains {
        let Some(facts) = facts else { continue };
        let (base, table, priority) = (base.clone(), table.clone(), facts.priority);
        let entry = ForeignEntry { family, table, base, priority };
        if facts.hook == libc::NF_INET_PRE_ROUTING as u32 && priority >= MANGLE {
            let reached = reached(netfilter, &entry, &chains)?;
            found.marks.extend(marks(&entry, &reached));
            found.filters.extend(reverse_paths(&entry, &reached));
        } else if facts.hook == libc::NF_INET_LOCAL_IN as u32 {
            let reached = reached(netfilter, &entry, &chains)?;
            found.filters.extend(input(entry, facts, &reached, interfaces));
        }
    }
    Ok(())
}

fn marks<'a>(
    entry: &'a ForeignEntry,
    reached: &'a Reached,
) -> impl Iterator<Item = ForeignMark> + 'a {
    let marking = reached.iter().filter(|(_, rules)| rules.iter().any(|rule| rule.marks));
    marking.map(|(chain, _)| ForeignMark { entry: entry.clone(), chain: chain.clone() })
}

fn reverse_paths<'a>(
    entry: &'a ForeignEntry,
    reached: &'a Reached,
) -> impl Iterator<Item = ForeignFilter> + 'a {
    let checks = |rule: &RuleFacts| rule.routes_by_mark && rule.refuses;
    let checking = reached.iter().filter(move |(_, rules)| rules.iter().any(checks));
    checking.map(|(chain, _)| {
        let fault = FilterFault::ReversePath(chain.clone());
        ForeignFilter { entry: entry.clone(), fault }
    })
}

fn input(
    entry: ForeignEntry,
    facts: &ChainFacts,
    reached: &Reached,
    interfaces: &[&InterfaceName],
) -> Option<ForeignFilter> {
    let rules = || reached.values().flatten();
    let refuses = facts.drops() || rules().any(|rule| rule.refuses);
    if !refuses || rules().any(|rule| rule.knows) {
        return None;
    }
    let unnamed = |name: &&&InterfaceName| !rules().any(|rule| rule.names(name));
    let unnamed: Vec<_> = interfaces.iter().filter(unnamed).map(|name| (*name).clone()).collect();
    let fault = FilterFault::Input(unnamed.clone());
    (!unnamed.is_empty()).then_some(ForeignFilter { entry, fault })
}

/// Chains that are entered, and the properties of their rules.
type Reached = BTreeMap<String, Vec<RuleFacts>>;

/// Returns the chain by which the kernel enters, and those that it leads to.
fn reached(
    netfilter: &mut Netfilter,
    ForeignEntry { family, table, base, .. }: &ForeignEntry,
    chains: &BTreeMap<String, Option<ChainFacts>>,
) -> io::Result<Reached> {
    let (mut reached, mut seen) = (Reached::new(), BTreeSet::from([base.clone()]));
    let mut next = vec![base.clone()];
    while let Some(chain) = next.pop() {
        let rules = readback::rules(netfilter, *family, table, &chain)?;
        let rules: Vec<RuleFacts> = rules.iter().map(|rule| RuleFacts::of(rule)).collect();
        // A map of verdicts may lead to any chain of the table that is not a base chain.
        let maps = rules.iter().any(|rule| rule.maps);
        let anywhere = chains.iter().filter(|(_, facts)| maps && facts.is_none());
        let led = rules.iter().flat_map(|rule| &rule.goes_to);
        let led = led.chain(anywhere.map(|(name, _)| name)).cloned();
        next.extend(led.filter(|name| seen.insert(name.clone())));
        reached.insert(chain, rules);
    }
    Ok(reached)
}

/// The relevant properties of a rule.
#[derive(Debug, Default, PartialEq, Eq)]
struct RuleFacts {
    /// It writes the packet's mark.
    marks: bool,
    /// It goes where a map of verdicts says.
    maps: bool,
    goes_to: Vec<String>,
    /// It drops or rejects.
    refuses: bool,
    /// It looks up a route by the packet's mark.
    routes_by_mark: bool,
    /// The names of interfaces that it compares with that of the packet. A name that does not end
    /// in a zero is the beginning of names.
    interfaces: Vec<Vec<u8>>,
    /// It reads marks or sockets, or admits interfaces in a way that is not followed here.
    knows: bool,
}

impl RuleFacts {
    fn of(expressions: &[u8]) -> Self {
        let mut rule = Self::default();
        let mut loaded = None;
        for (_, expression) in attributes(expressions) {
            let data = attribute(expression, NFTA_EXPR_DATA).unwrap_or_default();
            let name = text(expression, NFTA_EXPR_NAME).unwrap_or_default();
            rule.add(name, data, loaded);
            let loads = name == "meta" && attribute(data, NFTA_META_DREG).is_some();
            loaded = loads.then(|| number(data, NFTA_META_KEY)).flatten();
        }
        rule
    }

    /// Adds an expression; `loaded` is the key of packet metadata that the one before it has read.
    fn add(&mut self, name: &str, data: &[u8], loaded: Option<u32>) {
        let interface = [libc::NFT_META_IIFNAME, libc::NFT_META_IIF];
        let of_interface = loaded.is_some_and(|key| interface.contains(&(key as libc::c_int)));
        match name {
            "meta" => {
                let key = number(data, NFTA_META_KEY) == Some(libc::NFT_META_MARK as u32);
                let sets = attribute(data, NFTA_META_SREG).is_some();
                self.marks |= key && sets;
                self.knows |= key && !sets;
            }
            // iptables-nft uses these for extensions that it does not translate.
            "target" => {
                let target = text(data, NFTA_TARGET_NAME).unwrap_or_default();
                self.marks |= MARKING_TARGETS.contains(&target);
                self.refuses |= target == "REJECT";
            }
            "match" => {
                let read = text(data, NFTA_MATCH_NAME).unwrap_or_default();
                self.knows |= KNOWING_MATCHES.contains(&read);
            }
            "immediate" => {
                self.goes_to.extend(verdict_chain(data));
                self.refuses |= verdict_code(data) == Some(libc::NF_DROP as u32);
            }
            "reject" => self.refuses = true,
            "socket" => self.knows = true,
            "fib" => {
                let flags = number(data, NFTA_FIB_FLAGS).unwrap_or_default();
                self.routes_by_mark |= flags & FIB_BY_MARK == FIB_BY_MARK;
            }
            "lookup" => {
                self.maps |= number(data, NFTA_LOOKUP_DREG) == Some(0);
                self.knows |= of_interface;
            }
            "cmp" if of_interface => {
                let is = number(data, NFTA_CMP_OP) == Some(libc::NFT_CMP_EQ as u32);
                let value = attribute(data, NFTA_CMP_DATA);
                let value = value.and_then(|data| attribute(data, NFTA_DATA_VALUE));
                match (loaded, value) {
                    (Some(key), Some(value)) if is && key == libc::NFT_META_IIFNAME as u32 => {
                        self.interfaces.push(value.to_owned());
                    }
                    // The number of an interface: that of the loopback is 1.
                    (_, Some(value)) if is => self.knows |= value != 1_u32.to_ne_bytes(),
                    _ => self.knows = true,
                }
            }
            _ => {}
        }
    }

    fn names(&self, interface: &InterfaceName) -> bool {
        let name = [interface.as_str().as_bytes(), &[0]].concat();
        self.interfaces.iter().any(|it| match it.iter().position(|byte| *byte == 0) {
            Some(end) => it.get(..=end) == Some(name.as_slice()),
            None => name.starts_with(it),
        })
    }
}

fn verdict_chain(immediate: &[u8]) -> Option<String> {
    text(verdict(immediate)?, NFTA_VERDICT_CHAIN).map(str::to_owned)
}

fn verdict_code(immediate: &[u8]) -> Option<u32> {
    number(verdict(immediate)?, NFTA_VERDICT_CODE)
}

fn verdict(immediate: &[u8]) -> Option<&[u8]> {
    attribute(attribute(immediate, NFTA_IMMEDIATE_DATA)?, NFTA_DATA_VERDICT)
}

const FAMILIES: [TableFamily; 3] = [TableFamily::Inet, TableFamily::Ip, TableFamily::Ip6];
const MARKING_TARGETS: [&str; 2] = ["MARK", "CONNMARK"];
const KNOWING_MATCHES: [&str; 2] = ["mark", "socket"];

// From linux/netfilter/nf_tables.h and nf_tables_compat.h.
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_META_SREG: u16 = 3;
const NFTA_TARGET_NAME: u16 = 1;
const NFTA_MATCH_NAME: u16 = 1;
const NFTA_FIB_FLAGS: u16 = 3;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_LOOKUP_DREG: u16 = 3;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
/// `NFTA_FIB_F_SADDR` and `NFTA_FIB_F_MARK`.
const FIB_BY_MARK: u32 = 1 << 0 | 1 << 2;
