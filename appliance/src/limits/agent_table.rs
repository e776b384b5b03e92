//! A table of the agents of a group, with a bound.
//!
//! A host on the wire can send from addresses without number, each of which looks like an
//! agent. So in a full table a new agent takes the place of one that is at rest: of which nothing
//! is known that a new one would not say. The look for one takes a few steps and goes on where the
//! last ended. Where all who are looked at do something, there is no place, and whoever asked is
//! told no.

use indexmap::IndexMap;

use crate::identity::AgentKey;

/// Agents of one group.
#[derive(Debug)]
pub struct AgentTable<T> {
    agents: IndexMap<AgentKey, T>,
    /// The agent that is looked at next, when there is no place.
    next: usize,
}

impl<T> Default for AgentTable<T> {
    fn default() -> Self {
        Self { agents: IndexMap::new(), next: 0 }
    }
}

impl<T> AgentTable<T> {
    /// The agent, as a `new` one where it is not known. `rests` says of another whether it is at
    /// rest, and takes from it what is to be kept; that one is then forgotten. `None` where the
    /// table is full of others.
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

    /// The agent, where it is known.
    pub fn known(&mut self, key: &AgentKey) -> Option<&mut T> {
        self.agents.get_mut(key)
    }

    /// Everybody, in no order.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&AgentKey, &mut T)> {
        self.agents.iter_mut()
    }

    /// Forgets those of whom it is not so.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.agents.retain(|_, agent| keep(agent));
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.agents.is_empty()
    }

    /// How many are known.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.agents.len()
    }
}

/// Agents of one group that are kept apart.
pub const MAX_AGENTS: usize = 16_384;
/// Agents that are looked at for one that is at rest. They are in the order in which they came, so
/// that those of a flood who do something stand together; but at the rates that the packet rules
/// let through they are a tenth of the table.
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

    /// Takes in so many new ones who do something, and says how many of them had a place.
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
