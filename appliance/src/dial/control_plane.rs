//! The control plane: the machines that the gateway itself depends on, which are its DNS servers
//! and its Vault, and the agents.
//!
//! No name leads an agent to one of them, whatever policy lists. The owner of a name can point it
//! anywhere; agents may not reach the machines that decide about them through the gateway, nor the
//! agents of another group. Errs towards no: a machine that is both one of these and an upstream is
//! refused as an upstream.

use std::{
    collections::VecDeque,
    net::IpAddr,
    sync::{Arc, RwLock},
};

use ipnet::IpNet;

use super::address::unwrapped;
use crate::locks::{read, write};

/// Addresses that are never dialled for an agent, nor given to one. Cheap to clone; all clones
/// share the addresses.
#[derive(Debug, Clone, Default)]
pub struct ControlPlane(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    named: Vec<IpAddr>,
    learned: RwLock<VecDeque<IpAddr>>,
    agents: RwLock<Vec<IpNet>>,
}

impl ControlPlane {
    /// Creates one that holds these addresses for as long as the gateway runs.
    pub fn new(named: impl IntoIterator<Item = IpAddr>) -> Self {
        let named = named.into_iter().map(unwrapped).collect();
        Self(Arc::new(Inner { named, ..Inner::default() }))
    }

    /// Adds addresses to which the name of such a machine was resolved. The oldest go once there
    /// are [`MAX_LEARNED`].
    pub fn learn(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let mut learned = write(&self.0.learned);
        for address in addresses.into_iter().map(unwrapped) {
            learned.retain(|known| *known != address);
            learned.push_back(address);
        }
        let surplus = learned.len().saturating_sub(MAX_LEARNED);
        learned.drain(..surplus);
    }

    /// Takes the prefixes of all agents, in place of the earlier ones.
    pub fn take_agents(&self, prefixes: Vec<IpNet>) {
        *write(&self.0.agents) = prefixes;
    }

    /// Returns whether it holds the address, in whatever form that is written.
    pub fn holds(&self, address: IpAddr) -> bool {
        let address = unwrapped(address);
        let learned = || read(&self.0.learned);
        let agents = || read(&self.0.agents);
        self.0.named.contains(&address)
            || learned().contains(&address)
            || agents().iter().any(|prefix| prefix.contains(&address))
    }
}

/// Most learned addresses. A name behind a load balancer has a handful at a time.
const MAX_LEARNED: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_known_in_every_form_and_learned_ones_bounded() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let known = ControlPlane::new([address("192.0.2.53"), address("2001:db8::53")]);
        for held in ["192.0.2.53", "::ffff:192.0.2.53", "64:ff9b::c000:235", "2001:db8::53"] {
            assert!(known.holds(address(held)), "{held}");
        }
        assert!(!known.holds(address("192.0.2.54")));
        let other = known.clone();
        other.learn([address("::ffff:198.51.100.200")]);
        assert!(known.holds(address("198.51.100.200")));
        for last in 0..MAX_LEARNED as u8 {
            other.learn([IpAddr::from([203, 0, 113, last])]);
        }
        assert!(!known.holds(address("198.51.100.200")) && known.holds(address("203.0.113.0")));
        assert!(known.holds(address("192.0.2.53")), "what was named stays");
        let agents = |prefix: &str| other.take_agents(vec![prefix.parse().unwrap()]);
        agents("198.51.100.0/25");
        assert!(known.holds(address("::ffff:198.51.100.7")));
        agents("2001:db8:a::/64");
        assert!(known.holds(address("2001:db8:a::7")) && !known.holds(address("198.51.100.7")));
    }
}
