//! Checks the static guard: the table of `nft/base.nft`, which the machine loads and the daemon
//! only reads.
//!
//! The check covers the guarantees that must hold while the daemon's own table is missing: nothing
//! is forwarded, agents do not reach this machine's services, and no error quotes their packets to
//! others. The rules in the guard's input and output chains are not compared, so that an operator
//! may narrow them; only their presence is checked.

use std::io;

use nftnl::nftnl_sys::libc;

use super::{super::netlink::Netfilter, ChainFacts, chains, elements::elements, rules};
use crate::{
    packets::{
        error::{PacketsError, netlink_error},
        ruleset::language::TableFamily,
    },
    policy::InterfaceName,
};

/// Fails unless the guard is loaded, its forward hook drops, its input and output hooks have rules,
/// and these interfaces are among those that it closes.
pub(crate) fn require(agents: &[&InterfaceName]) -> Result<(), PacketsError> {
    let failed = |source| netlink_error("look for the guard table", source);
    let mut netfilter = Netfilter::open().map_err(failed)?;
    require_chains(&mut netfilter).map_err(failed)?.map_or(Ok(()), Err)?;
    let guarded = guarded(&mut netfilter).map_err(failed)?;
    let open = agents.iter().filter(|name| !guarded.contains(&key(name)));
    let open: Vec<InterfaceName> = open.map(|name| (*name).clone()).collect();
    if open.is_empty() { Ok(()) } else { Err(PacketsError::Unguarded(open)) }
}

/// Returns the faults of the guard's chains.
fn require_chains(netfilter: &mut Netfilter) -> io::Result<Option<PacketsError>> {
    let chains = chains(netfilter, FAMILY, BASE_TABLE)?;
    let drops = |facts: &ChainFacts| {
        facts.hook == libc::NF_INET_FORWARD as u32 && facts.policy == libc::NF_DROP as u32
    };
    if !chains.values().flatten().any(drops) {
        return Ok(Some(PacketsError::NoBaseTable));
    }
    for (name, hook) in [("input", libc::NF_INET_LOCAL_IN), ("output", libc::NF_INET_LOCAL_OUT)] {
        let facts = chains.get(name).and_then(Option::as_ref);
        let hooked = facts.is_some_and(|facts| facts.hook == hook as u32);
        if !hooked || rules::found(netfilter, FAMILY, BASE_TABLE, name)?.is_empty() {
            return Ok(Some(PacketsError::NoBaseChain(name)));
        }
    }
    Ok(None)
}

/// Returns the keys of the guard's set of interfaces. None where there is no such set.
fn guarded(netfilter: &mut Netfilter) -> io::Result<Vec<Vec<u8>>> {
    match elements(netfilter, FAMILY, BASE_TABLE, AGENT_INTERFACES) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        found => Ok(found?.into_iter().map(|element| element.key).collect()),
    }
}

/// Returns the name as the kernel keeps it in a set, filled up with zeros.
fn key(name: &InterfaceName) -> Vec<u8> {
    let mut key = name.as_str().as_bytes().to_vec();
    key.resize(NAME_BYTES, 0);
    key
}

const FAMILY: TableFamily = TableFamily::Inet;
/// The table of `nft/base.nft`, and its set of the interfaces that it closes.
pub(crate) const BASE_TABLE: &str = "cloakroom_base";
const AGENT_INTERFACES: &str = "agent_interfaces";
/// `IFNAMSIZ`.
const NAME_BYTES: usize = 16;
