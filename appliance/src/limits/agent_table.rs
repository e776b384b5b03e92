//! A bounded table of the agents of a group.
//!
//! A host on the wire can send from any number of addresses, each of which looks like an agent. So
//! in a full table a new agent replaces one that is at rest, whose entry holds nothing that a new
//! entry would not. The search for one takes a few steps and goes on where the last ended. If none
//! of the agents in these steps is at rest, there is no room, and the new agent gets none.

use indexmap::IndexMap;

use crate::identity::AgentKey;

/// Agents of one group.
#[derive(Debug)]
pub struct AgentTable<T> {
    agents: IndexMap<AgentKey, T>,
    /// The agent that the next search looks at first.
    next: usize,
}

impl<T> Default for AgentTable<T> {
    fn default() -> Self {
        Self { agents: IndexMap::new(), next: 0 }
    }
}

impl<T> AgentTable<T> {
    /// Returns the entry of an agent, made by `new` where it is not known. `rests` says of another
    /// agent whether it is at rest, and takes the values to be kept from it; that one is then
    /// forgotten. Returns `None` where there is no room.
    pub fn agent(
        &mut self,
        key: &AgentKey,
        new: impl FnOnce() -> T,
        rests: impl FnMut(&mut T) -> bool,
    ) -> Option<&mut T> {
        if !self.agents.contains_key(key) {
            if self.agents.len() >= MAX_AGENTS && !self.make_room(rests) {
                return None;
            }
            self.agents.insert(key.clone(), new());
        }
        self.agents.get_mut(key)
    }

    fn make_room(&mut self, mut rests: impl FnMut(&mut T) -> bool) -> bool {
        for _ in 0..LOOKS {
            let at = self.next % self.agents.len().max(1);
            self.next = at + 1;
            if self.agents.get_index_mut(at).is_some_and(|(_, agent)| rests(agent)) {
                self.agents.swap_remove_index(at);
                return true;
            }
        }
        false
    }

    /// Returns the entry of an agent, if it is known.
    pub fn known(&mut self, key: &AgentKey) -> Option<&mut T> {
        self.agents.get_mut(key)
    }

    /// Returns all agents, in no order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&AgentKey, &mut T)> {
        self.agents.iter_mut()
    }

    /// Forgets the agents for which `keep` returns false.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.agents.retain(|_, agent| keep(agent));
    }

    /// Returns whether no agent is known.
    pub fn is_empty(&self) -> bool {
        self.agents.is_empty()
    }

    /// Returns how many agents are known.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.agents.len()
    }
}

/// Most agents of one group that are told apart.
pub const MAX_AGENTS: usize = 16_384;
/// Agents that a search looks at. They stand in the order in which they came, so the active ones of
/// a flood stand together; but at the rates that the packet rules let through they are a tenth of
/// the table.
const LOOKS: usize = 64;

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::policy::GroupName;

    fn key(number: u32) -> AgentKey {
        AgentKey::new(&GroupName("red".into()), IpAddr::from(number.to_be_bytes()))
    }

    fn full(of: impl Fn(u32) -> bool) -> AgentTable<bool> {
        let mut table = AgentTable::default();
        for number in 0..MAX_AGENTS as u32 {
            table.agent(&key(number), || of(number), |_| panic!("there is room")).unwrap();
        }
        table
    }

    /// Adds so many new, active agents, and returns how many of them had room.
    fn places(table: &mut AgentTable<bool>, from: u32, count: u32) -> usize {
        (from..from + count)
            .filter(|number| table.agent(&key(*number), || false, |rests| *rests).is_some())
            .count()
    }

    #[test]
    fn in_a_full_table_only_idle_agents_make_room() {
        let mut table = full(|number| number % 10 == 9);
        let resting = MAX_AGENTS.div_ceil(10) - 1;
        assert_eq!(places(&mut table, 1_000_000, 1_000), 1_000);
        assert_eq!(table.len(), MAX_AGENTS);
        assert!((0..MAX_AGENTS as u32).all(|it| it % 10 == 9 || table.known(&key(it)).is_some()));
        let all = 1_000 + places(&mut table, 2_000_000, 20_000);
        assert_eq!(all, resting, "each of them made room once");
        assert!(table.known(&key(1_000_000)).is_some(), "who does something stays");
    }

    #[test]
    fn a_look_takes_a_bounded_number_of_steps() {
        let mut table = full(|_| false);
        let mut steps = 0;
        let place = table.agent(
            &key(1_000_000),
            || false,
            |_| {
                steps += 1;
                false
            },
        );
        assert!(place.is_none());
        assert_eq!(steps, LOOKS);
    }
}
