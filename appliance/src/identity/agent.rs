//! The identity of an agent, used wherever agents share something.

use std::net::{IpAddr, Ipv6Addr};

use crate::policy::{Group, GroupName, Mac};

/// An agent: an IPv4 address or an IPv6 /64 of its group. Within a /64 it can take any address,
/// unless it is bound to its network card: then each address is an agent.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AgentKey {
    group: GroupName,
    prefix: IpAddr,
    /// The card, if the group binds its agents to their cards.
    card: Option<Mac>,
}

impl AgentKey {
    /// Returns the agent of this group that has this address.
    pub fn of(group: &Group, address: IpAddr) -> Self {
        if group.agents.is_empty() {
            return Self::new(&group.name, address);
        }
        let bound = group.agents.iter().find(|agent| agent.addresses.contains(&address));
        Self { group: group.name.clone(), prefix: address, card: bound.map(|agent| agent.mac) }
    }

    /// Returns the agent that has this address, in a group that binds no agent to a card.
    pub fn new(group: &GroupName, address: IpAddr) -> Self {
        let prefix = match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        };
        Self { group: group.clone(), prefix, card: None }
    }

    /// Returns the key with this address instead, and the same card if that is known.
    pub fn at(&self, address: IpAddr) -> Self {
        Self { prefix: address, ..self.clone() }
    }

    /// Returns its group.
    pub fn group(&self) -> &GroupName {
        &self.group
    }

    /// Returns the first address that it may have.
    pub fn prefix(&self) -> IpAddr {
        self.prefix
    }

    /// Returns its name in the audit.
    pub fn text(&self) -> String {
        match self.prefix {
            IpAddr::V6(v6) if v6.to_bits() << 64 == 0 => format!("{v6}/64"),
            address => address.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::policy::{BoundAgent, InterfaceName, Mac};

    fn key(address: &str) -> AgentKey {
        AgentKey::new(&GroupName(Arc::from("red")), address.parse().unwrap())
    }

    #[test]
    fn within_a_64_there_is_one_agent() {
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:2"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("2001:db8::1").text(), "2001:db8::/64");
    }

    #[test]
    fn bound_agents_of_a_64_are_apart() {
        let group = |agents| Group {
            name: GroupName(Arc::from("red")),
            interface: InterfaceName(Arc::from("agents0")),
            prefixes: vec!["2001:db8::/64".parse().unwrap()],
            vault_role: "cloakroom".into(),
            clients: Vec::new(),
            mtu: None,
            onboarding: None,
            agents,
        };
        let [one, two] = ["2001:db8::1", "2001:db8::2"].map(|text| text.parse().unwrap());
        let mac = Mac::parse("02:00:00:00:00:01").unwrap();
        let bound = group(vec![BoundAgent { mac, addresses: vec![one, two] }]);
        assert_ne!(AgentKey::of(&bound, one), AgentKey::of(&bound, two));
        assert_eq!(AgentKey::of(&bound, one).text(), "2001:db8::1");
        assert_eq!(AgentKey::of(&bound, one).at(two), AgentKey::of(&bound, two), "one card");
        assert_eq!(AgentKey::of(&group(Vec::new()), one), key("2001:db8::2"));
    }
}
