//! The static guard as text for nft: the table of `nft/base.nft`, with the agents' interfaces.

use crate::policy::InterfaceName;

/// Returns the text that `nft -f` loads in one transaction: the guard, and these interfaces in its
/// set. Loaded again, it replaces rules and removes no interface.
pub fn guard(interfaces: &[InterfaceName]) -> String {
    let mut names: Vec<String> = interfaces.iter().map(|name| format!("\"{name}\"")).collect();
    names.sort();
    names.dedup();
    let names = names.join(", ");
    format!("{BASE}\nadd element inet cloakroom_base agent_interfaces {{ {names} }}\n")
}

const BASE: &str = include_str!("../../../../nft/base.nft");
