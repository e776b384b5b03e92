//! Slots that groups and their agents share by one rule, so that a newcomer always finds one.
//!
//! A group may hold no more slots than are free, and an agent no more than its group might still
//! take. So a group that takes all it can leaves as many for the others as it has, two groups leave
//! a third, and within a group it is the same for its agents. A caller that may not take one now
//! waits, but only behind callers of the same agent: a slot that comes back goes to the groups in
//! turn, and in a group to its agents in turn.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use tokio::sync::oneshot;

use crate::{identity::AgentKey, locks::lock, policy::GroupName};

/// The slots. Cheap to clone; all clones share them.
#[derive(Debug, Clone)]
pub struct FairSemaphore(Arc<Mutex<Queues>>);

/// One of them. Given back when dropped.
#[derive(Debug)]
pub struct FairSlot {
    semaphore: FairSemaphore,
    key: AgentKey,
}

#[derive(Debug)]
struct Queues {
    free: usize,
    groups: HashMap<GroupName, GroupQueue>,
    /// Groups with callers that wait; the first is next.
    turns: VecDeque<GroupName>,
}

#[derive(Debug, Default)]
struct GroupQueue {
    held: usize,
    agents: HashMap<AgentKey, AgentQueue>,
    /// Agents with callers that wait; the first is next.
    turns: VecDeque<AgentKey>,
    /// All that wait, some of which may have gone away.
    waiting: usize,
}

#[derive(Debug, Default)]
struct AgentQueue {
    held: usize,
    waiting: VecDeque<Waiting>,
}

type Waiting = oneshot::Sender<FairSlot>;

impl FairSemaphore {
    /// Creates so many slots.
    pub fn new(semaphore: usize) -> Self {
        let (groups, turns) = (HashMap::new(), VecDeque::new());
        Self(Arc::new(Mutex::new(Queues { free: semaphore, groups, turns })))
    }

    /// Waits for a slot. Returns `None` where too many callers of the group wait already.
    pub async fn take(&self, key: &AgentKey) -> Option<FairSlot> {
        let turn = {
            let mut table = lock(&self.0);
            if table.take(key) {
                return Some(self.slot(key));
            }
            table.queue(key)?
        };
        turn.await.ok()
    }

    fn slot(&self, key: &AgentKey) -> FairSlot {
        FairSlot { semaphore: self.clone(), key: key.clone() }
    }

    fn give_back(&self, key: &AgentKey) {
        let mut table = lock(&self.0);
        table.give_back(key);
        let mut unwanted = Vec::new();
        while let Some((key, waiting)) = table.next() {
            // A caller that goes away at this moment drops its slot, which must not happen while
            // the table is held.
            unwanted.extend(waiting.send(self.slot(&key)).err());
        }
        drop(table);
        drop(unwanted);
    }
}

impl Drop for FairSlot {
    fn drop(&mut self) {
        self.semaphore.give_back(&self.key);
    }
}

impl Queues {
    /// Counts one more slot for the agent, if it may have one now.
    fn take(&mut self, key: &AgentKey) -> bool {
        let group = self.groups.entry(key.group().clone()).or_default();
        let may = group.may_take(key, self.free);
        if may {
            group.held += 1;
            group.agents.entry(key.clone()).or_default().held += 1;
            self.free -= 1;
        }
        may
    }

    fn queue(&mut self, key: &AgentKey) -> Option<oneshot::Receiver<FairSlot>> {
        let group = self.groups.get_mut(key.group())?;
        if group.waiting >= MAX_WAITING {
            group.forget_the_gone();
        }
        if group.waiting >= MAX_WAITING {
            return None;
        }
        let (waiting, turn) = oneshot::channel();
        if !self.turns.contains(key.group()) {
            self.turns.push_back(key.group().clone());
        }
        let agent = group.agents.entry(key.clone()).or_default();
        if agent.waiting.is_empty() {
            group.turns.push_back(key.clone());
        }
        agent.waiting.push_back(waiting);
        group.waiting += 1;
        Some(turn)
    }

    fn give_back(&mut self, key: &AgentKey) {
        let Some(group) = self.groups.get_mut(key.group()) else { return };
        let Some(agent) = group.agents.get_mut(key) else { return };
        agent.held = agent.held.saturating_sub(1);
        group.held = group.held.saturating_sub(1);
        self.free += 1;
        if agent.held == 0 && agent.waiting.is_empty() {
            group.agents.remove(key);
        }
        if group.agents.is_empty() {
            self.groups.remove(key.group());
        }
    }

    /// Returns a caller that may have a slot now, which is counted as taken.
    fn next(&mut self) -> Option<(AgentKey, Waiting)> {
        for _ in 0..self.turns.len() {
            let name = self.turns.pop_front()?;
            let Some(group) = self.groups.get_mut(&name) else { continue };
            let next = group.next(self.free);
            self.free -= usize::from(next.is_some());
            if group.agents.is_empty() {
                self.groups.remove(&name);
            } else if !group.turns.is_empty() {
                self.turns.push_back(name);
            }
            if next.is_some() {
                return next;
            }
        }
        None
    }
}

impl GroupQueue {
    fn may_take(&self, key: &AgentKey, free: usize) -> bool {
        let of_agent = self.agents.get(key).map_or(0, |agent| agent.held);
        of_agent < free.saturating_sub(self.held)
    }

    fn next(&mut self, free: usize) -> Option<(AgentKey, Waiting)> {
        if free <= self.held {
            return None;
        }
        for _ in 0..self.turns.len() {
            let key = self.turns.pop_front()?;
            let may = self.may_take(&key, free);
            let Some(agent) = self.agents.get_mut(&key) else { continue };
            self.waiting = self.waiting.saturating_sub(agent.drop_the_gone());
            let next = if may { agent.waiting.pop_front() } else { None };
            let taken = usize::from(next.is_some());
            self.waiting = self.waiting.saturating_sub(taken);
            self.held += taken;
            agent.held += taken;
            if !agent.waiting.is_empty() {
                self.turns.push_back(key.clone());
            } else if agent.held == 0 {
                self.agents.remove(&key);
            }
            if let Some(next) = next {
                return Some((key, next));
            }
        }
        None
    }

    /// Forgets all callers that went away while they waited.
    fn forget_the_gone(&mut self) {
        for agent in self.agents.values_mut() {
            agent.waiting.retain(|waiting| !waiting.is_closed());
        }
        self.agents.retain(|_, agent| agent.held > 0 || !agent.waiting.is_empty());
        self.turns
            .retain(|key| self.agents.get(key).is_some_and(|agent| !agent.waiting.is_empty()));
        self.waiting = self.agents.values().map(|agent| agent.waiting.len()).sum();
    }
}

impl AgentQueue {
    /// Removes the callers at the head of the queue that no longer wait, and returns how many.
    fn drop_the_gone(&mut self) -> usize {
        let before = self.waiting.len();
        while self.waiting.front().is_some_and(oneshot::Sender::is_closed) {
            self.waiting.pop_front();
        }
        before - self.waiting.len()
    }
}

/// Most callers of one group that may wait. By default as many of its connections may be open.
const MAX_WAITING: usize = 8_192;

#[cfg(test)]
mod tests {
    use std::{
        net::IpAddr,
        pin::Pin,
        task::{Context, Poll, Waker},
    };

    use proptest::prelude::*;

    use super::*;

    fn key(group: &str, number: u8) -> AgentKey {
        AgentKey::new(&GroupName(group.into()), IpAddr::from([192, 0, 2, number]))
    }

    type Taking = Pin<Box<dyn Future<Output = Option<FairSlot>>>>;

    fn take(semaphore: &FairSemaphore, key: AgentKey) -> Taking {
        let semaphore = semaphore.clone();
        Box::pin(async move { semaphore.take(&key).await })
    }

    fn now(taking: &mut Taking) -> Option<FairSlot> {
        match taking.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(slot) => slot,
            Poll::Pending => None,
        }
    }

    /// Takes as many as the agents, in turn, can have at once.
    fn all(semaphore: &FairSemaphore, keys: &[AgentKey]) -> Vec<FairSlot> {
        let keys = (0..1_000).flat_map(|_| keys.iter().cloned());
        keys.filter_map(|key| now(&mut take(semaphore, key))).collect()
    }

    fn is_as_new(semaphore: &FairSemaphore, most: usize) -> bool {
        let table = semaphore.0.lock().unwrap();
        table.free == most && table.groups.values().all(|group| group.held == 0)
    }

    #[test]
    fn greedy_groups_and_agents_leave_as_much_as_they_take() {
        let semaphore = FairSemaphore::new(120);
        let agents: Vec<_> = (0..100).map(|number| key("red", number)).collect();
        let red = all(&semaphore, &agents);
        assert_eq!(red.len(), 60, "a group has half");
        assert_eq!(
            all(&semaphore, &[key("blue", 1)]).len(),
            20,
            "its one agent a third of the rest"
        );
        drop(red);
        assert!(is_as_new(&semaphore, 120));
        assert_eq!(all(&semaphore, &[key("red", 1)]).len(), 40, "one agent, of one group");
        let both: Vec<_> =
            (0..200).map(|number| key(["red", "blue"][number % 2], number as u8)).collect();
        assert_eq!(all(&semaphore, &both).len(), 80, "two groups have two thirds");
    }

    #[test]
    fn who_waits_is_behind_its_own_agent_only() {
        let semaphore = FairSemaphore::new(8);
        let mut held = all(&semaphore, &[key("red", 1), key("red", 2)]);
        let mut greedy: Vec<_> = (0..100).map(|_| take(&semaphore, key("red", 1))).collect();
        assert!(greedy.iter_mut().all(|taking| now(taking).is_none()));
        let mut other = take(&semaphore, key("red", 3));
        assert!(now(&mut other).is_none());
        let mut others = Vec::new();
        while now(&mut take(&semaphore, key("blue", others.len() as u8))).is_some_and(|slot| {
            others.push(slot);
            true
        }) {}
        assert!(!others.is_empty());
        drop(held.pop());
        let waited = now(&mut other).is_some() || {
            drop(others.pop());
            now(&mut other).is_some()
        };
        assert!(waited, "soon, whoever came before");
    }

    #[test]
    fn waiters_are_bounded_and_those_who_left_do_not_count() {
        let semaphore = FairSemaphore::new(1);
        let held = all(&semaphore, &[key("red", 1)]);
        let mut waiting: Vec<_> =
            (0..MAX_WAITING).map(|_| take(&semaphore, key("red", 2))).collect();
        assert!(waiting.iter_mut().all(|taking| now(taking).is_none()));
        let mut beyond = take(&semaphore, key("red", 3));
        let context = &mut Context::from_waker(Waker::noop());
        assert!(matches!(beyond.as_mut().poll(context), Poll::Ready(None)));
        waiting.clear();
        let mut again = take(&semaphore, key("red", 3));
        assert!(now(&mut again).is_none());
        drop(held);
        assert!(now(&mut again).is_some());
        assert!(is_as_new(&semaphore, 1));
    }

    proptest! {
        /// Whatever comes, goes and gives up: no slot is lost or made, no caller that may have one
        /// waits, and in the end the table is empty.
        #[test]
        fn places_are_neither_lost_nor_made(
            most in 1_usize..20,
            steps in prop::collection::vec((0..4_u8, 0..3_u8, 0..64_usize), 0..200),
        ) {
            let semaphore = FairSemaphore::new(most);
            let (mut held, mut waiting) = (Vec::new(), Vec::new());
            for (group, agent, which) in steps {
                match which % 4 {
                    0 if !held.is_empty() => drop(held.swap_remove(which % held.len())),
                    1 if !waiting.is_empty() => drop(waiting.swap_remove(which % waiting.len())),
                    _ => waiting.push(take(&semaphore, key(&group.to_string(), agent))),
                }
                waiting.retain_mut(|taking| now(taking).map(|slot| held.push(slot)).is_none());
                let table = semaphore.0.lock().unwrap();
                prop_assert_eq!(table.free + held.len(), most);
                for group in table.groups.values() {
                    prop_assert!(group.held > 0 || group.waiting > 0);
                    let agents = group.agents.values();
                    prop_assert_eq!(agents.map(|agent| agent.held).sum::<usize>(), group.held);
                    for (key, agent) in &group.agents {
                        let waits = agent.waiting.iter().any(|waiting| !waiting.is_closed());
                        prop_assert!(!waits || !group.may_take(key, table.free));
                    }
                }
            }
            waiting.clear();
            held.clear();
            prop_assert!(is_as_new(&semaphore, most));
        }
    }
}
