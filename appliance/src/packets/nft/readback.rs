//! Compares the kernel's rules with the planned ones.
//!
//! The comparison covers the chains with hook, priority and policy, the rules by chain and order
//! with every constant, and the sets with every element. A difference is an error, because another
//! program is writing to our table.

mod elements;
mod guard;
mod rules;

use std::collections::{BTreeMap, HashMap};

use nftnl::nftnl_sys::libc;

use self::elements::{
    NFTA_CHAIN_HOOK, NFTA_CHAIN_NAME, NFTA_CHAIN_POLICY, NFTA_COUNTER_PACKETS, NFTA_HOOK_DEV,
    NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_OBJ_DATA, NFTA_OBJ_NAME, NFTA_SET_NAME, NFTA_TABLE,
    elements,
};
pub(crate) use self::{
    guard::{BASE_TABLE, require as require_guard},
    rules::found as rules,
};
use super::{
    super::{
        error::{PacketsError, netlink_error},
        ruleset::language::{self, Base, Hook, TABLE, TableFamily},
    },
    lower,
    netlink::{Netfilter, attribute, number, text},
};
use crate::reason::Reason;

/// Names in the daemon's table that are not in the plan, left by another version or by hand.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    pub(crate) chains: Vec<String>,
    pub(crate) sets: Vec<String>,
    pub(crate) counters: Vec<String>,
}

/// Returns the names that an earlier table left. Empty where there is no table yet.
pub(crate) fn strangers(table: &language::NftTable) -> Result<Strangers, PacketsError> {
    let family = table.family;
    if !has_table(family)? {
        return Ok(Strangers::default());
    }
    let failed = |source| netlink_error("look at the packet rules", source);
    let mut netfilter = Netfilter::open().map_err(failed)?;
    let mut chains: Vec<String> =
        chains(&mut netfilter, family, TABLE).map_err(failed)?.into_keys().collect();
    chains.retain(|name| table.chains.iter().all(|chain| chain.name != *name));
    let mut sets = sets(&mut netfilter, family).map_err(failed)?;
    sets.retain(|name| table.sets.iter().all(|set| set.name != *name));
    let counters = counters(&mut netfilter, family).map_err(failed)?.into_keys();
    let counters = counters.filter(|name| !table.counters.contains(name)).collect();
    Ok(Strangers { chains, sets, counters })
}

/// Returns whether the kernel has a table of ours in this family.
pub(crate) fn has_table(family: TableFamily) -> Result<bool, PacketsError> {
    let failed = |source| netlink_error("look for the packet rules", source);
    let mut netfilter = Netfilter::open().map_err(failed)?;
    Ok(tables(&mut netfilter, family).map_err(failed)?.iter().any(|table| table == TABLE))
}

/// Returns the names of all tables of a family, whoever made them.
pub(crate) fn tables(
    netfilter: &mut Netfilter,
    family: TableFamily,
) -> std::io::Result<Vec<String>> {
    let answers = netfilter.dump(family, libc::NFT_MSG_GETTABLE, &[])?;
    Ok(answers.iter().filter_map(|answer| text(answer, NFTA_TABLE)).map(str::to_owned).collect())
}

/// Fails unless the kernel holds exactly these tables.
pub(crate) fn verify(tables: &[language::NftTable]) -> Result<(), PacketsError> {
    let frames = tables.iter().any(|table| table.family == TableFamily::Netdev);
    same("the table of frames", &has_table(TableFamily::Netdev)?, &frames)?;
    tables.iter().try_for_each(verify_table)
}

fn verify_table(table: &language::NftTable) -> Result<(), PacketsError> {
    let failed = |source| netlink_error("read back the packet rules", source);
    let family = table.family;
    let mut netfilter = Netfilter::open().map_err(failed)?;
    let found = chains(&mut netfilter, family, TABLE).map_err(failed)?;
    let meant = table
        .chains
        .iter()
        .map(|chain| (chain.name.clone().into_owned(), chain.base.as_ref().map(facts)));
    same("chains", &found, &meant.collect())?;
    for chain in &table.chains {
        self::rules::verify(&mut netfilter, family, chain)?;
    }
    let found = sets(&mut netfilter, family).map_err(failed)?;
    let mut meant: Vec<String> =
        table.sets.iter().map(|set| set.name.clone().into_owned()).collect();
    meant.sort();
    same("sets", &found, &meant)?;
    let found: Vec<String> =
        counters(&mut netfilter, family).map_err(failed)?.into_keys().collect();
    let mut meant = table.counters.clone();
    meant.sort();
    same("counters", &found, &meant)?;
    // Packets put the elements of a meter there.
    for set in table.sets.iter().filter(|set| !set.meter) {
        let found = elements(&mut netfilter, family, TABLE, &set.name).map_err(failed)?;
        let mut meant = lower::elements(set);
        meant.sort();
        same(&format!("elements of set {}", set.name), &found, &meant)?;
    }
    Ok(())
}

/// Returns, for each reason, how many packets were refused without being logged, because they were
/// too many, since the tables were created. Installing rules does not reset these counters.
///
/// # Errors
///
/// The kernel cannot be asked.
pub fn unlogged() -> Result<HashMap<Reason, u64>, PacketsError> {
    let failed = |source| netlink_error("count what was not logged", source);
    let mut netfilter = Netfilter::open().map_err(failed)?;
    let mut unlogged = HashMap::new();
    for family in [TableFamily::Inet, TableFamily::Netdev] {
        for (name, packets) in counters(&mut netfilter, family).map_err(failed)? {
            if let Some(reason) = super::super::ruleset::log::reason(&name) {
                *unlogged.entry(reason).or_default() += packets;
            }
        }
    }
    Ok(unlogged)
}

/// The hook of a base chain.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ChainFacts {
    pub(crate) hook: u32,
    pub(crate) priority: i32,
    policy: u32,
    /// The device, at ingress.
    device: Option<String>,
}

impl ChainFacts {
    /// Whether the chain's policy ends the packets that none of its rules decides.
    pub(crate) fn drops(&self) -> bool {
        self.policy == libc::NF_DROP as u32
    }
}

fn same<T: PartialEq>(place: &str, found: &T, meant: &T) -> Result<(), PacketsError> {
    if found == meant {
        return Ok(());
    }
    Err(PacketsError::ReadBack { place: place.to_owned() })
}

fn facts(base: &Base) -> ChainFacts {
    let (hook, device) = match &base.hook {
        Hook::Ingress(device) => (NF_NETDEV_INGRESS, Some(device.to_string())),
        Hook::Prerouting => (libc::NF_INET_PRE_ROUTING, None),
        Hook::Input => (libc::NF_INET_LOCAL_IN, None),
        Hook::Forward => (libc::NF_INET_FORWARD, None),
        Hook::Output => (libc::NF_INET_LOCAL_OUT, None),
    };
    let policy = if base.drop { libc::NF_DROP } else { libc::NF_ACCEPT };
    ChainFacts { hook: hook as u32, priority: base.priority, policy: policy as u32, device }
}

pub(crate) fn chains(
    netfilter: &mut Netfilter,
    family: TableFamily,
    table: &str,
) -> std::io::Result<BTreeMap<String, Option<ChainFacts>>> {
    let answers = netfilter.dump(family, libc::NFT_MSG_GETCHAIN, &[])?;
    let ours = answers.iter().filter(|answer| text(answer, NFTA_TABLE) == Some(table));
    Ok(ours
        .filter_map(|answer| {
            let name = text(answer, NFTA_CHAIN_NAME)?.to_owned();
            let facts = attribute(answer, NFTA_CHAIN_HOOK).and_then(|hook| {
                Some(ChainFacts {
                    hook: number(hook, NFTA_HOOK_HOOKNUM)?,
                    priority: number(hook, NFTA_HOOK_PRIORITY)?.cast_signed(),
                    policy: number(answer, NFTA_CHAIN_POLICY)?,
                    device: text(hook, NFTA_HOOK_DEV).map(str::to_owned),
                })
            });
            Some((name, facts))
        })
        .collect())
}

/// Returns the named counters and the packets that they have counted.
fn counters(
    netfilter: &mut Netfilter,
    family: TableFamily,
) -> std::io::Result<BTreeMap<String, u64>> {
    let answers = netfilter.dump(family, libc::NFT_MSG_GETOBJ, &[(NFTA_TABLE, TABLE)])?;
    let ours = answers.iter().filter(|answer| text(answer, NFTA_TABLE) == Some(TABLE));
    Ok(ours
        .filter_map(|answer| {
            let name = text(answer, NFTA_OBJ_NAME)?.to_owned();
            let packets = attribute(answer, NFTA_OBJ_DATA)
                .and_then(|data| attribute(data, NFTA_COUNTER_PACKETS))
                .and_then(|packets| packets.first_chunk::<8>());
            Some((name, packets.map_or(0, |packets| u64::from_be_bytes(*packets))))
        })
        .collect())
}

fn sets(netfilter: &mut Netfilter, family: TableFamily) -> std::io::Result<Vec<String>> {
    let answers = netfilter.dump(family, libc::NFT_MSG_GETSET, &[(NFTA_TABLE, TABLE)])?;
    let ours = answers.iter().filter(|answer| text(answer, NFTA_TABLE) == Some(TABLE));
    let names = ours.filter_map(|answer| text(answer, NFTA_SET_NAME));
    // Anonymous sets come and go with their rules.
    let mut named: Vec<String> =
        names.filter(|name| !name.starts_with("__set")).map(str::to_owned).collect();
    named.sort();
    Ok(named)
}

/// From linux/netfilter.h.
const NF_NETDEV_INGRESS: i32 = 0;
