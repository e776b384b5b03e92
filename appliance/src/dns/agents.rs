//! The recent DNS queries of each agent, and its remaining shares.
//!
//! Every agent has its own share of queries, lookups, connections and audit records, so that one at
//! its limits leaves the others theirs. A group, whose hosts may use many addresses, has a share
//! too. Where it has too many agents to keep apart, one that is at rest makes room for a new one,
//! and its counts stay in the group's sum.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Instant,
};

use crate::{
    identity::AgentKey,
    limits::{AgentTable, RateLimiter},
    locks::lock,
    policy::GroupName,
};

/// Every agent that asked lately.
#[derive(Debug, Default)]
pub(super) struct Agents(Mutex<HashMap<GroupName, GroupQueries>>);

#[derive(Debug)]
struct GroupQueries {
    agents: AgentTable<AgentQueries>,
    common: Common,
}

/// The state that all agents of a group share.
#[derive(Debug)]
struct Common {
    held: SharesInUse,
    records: RateLimiter,
    /// The counts of agents that made room for others or found none, and of those that were too
    /// many to be told apart.
    rest: QueryCounts,
}

/// The numbers of an agent's queries since the last sum.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct QueryCounts {
    /// Queries that got an answer, a negative one included.
    pub(super) answered: u64,
    /// Queries that were refused, with or without a record of their own.
    pub(super) refused: u64,
    /// Queries that came too fast, or when the agent or its group had no share left.
    pub(super) limited: u64,
    /// Queries whose answer the kernel did not take.
    pub(super) undelivered: u64,
}

/// A share that an agent holds: a lookup or a connection. Given back when dropped.
#[derive(Debug)]
pub(super) struct DnsShare {
    agents: Arc<Agents>,
    key: AgentKey,
    of: Of,
}

/// The things that are shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// Names that are being resolved.
    Lookups,
    /// TCP connections.
    Connections,
}

#[derive(Debug)]
struct AgentQueries {
    queries: RateLimiter,
    records: RateLimiter,
    held: SharesInUse,
    counts: QueryCounts,
}

#[derive(Debug, Default)]
struct SharesInUse {
    lookups: usize,
    connections: usize,
}

impl Agents {
    /// Returns whether the agent may ask now: `rate` queries a second, twice as many at once.
    pub(super) fn may_ask(&self, key: &AgentKey, rate: u32, now: Instant) -> bool {
        let allowed = self.with(key, now, |agent, _| {
            let may = agent.queries.take(rate, rate.saturating_mul(2), now);
            if !may {
                agent.counts.limited += 1;
            }
            may
        });
        allowed.unwrap_or_else(|| {
            self.count_without_room(key);
            false
        })
    }

    /// Counts a query, or a connection, for which there was no share.
    pub(super) fn limited(&self, key: &AgentKey, now: Instant) {
        let counted = self.with(key, now, |agent, _| agent.counts.limited += 1);
        counted.unwrap_or_else(|| self.count_without_room(key));
    }

    /// Counts a query that was answered.
    pub(super) fn answered(&self, key: &AgentKey, now: Instant) {
        self.with(key, now, |agent, _| agent.counts.answered += 1);
    }

    /// Counts an answer that could not be sent.
    pub(super) fn undelivered(&self, key: &AgentKey, now: Instant) {
        self.with(key, now, |agent, _| agent.counts.undelivered += 1);
    }

    /// Counts a query that was refused. Returns whether it gets a record of its own.
    pub(super) fn refused(&self, key: &AgentKey, now: Instant) -> bool {
        let recorded = self.with(key, now, |agent, group| {
            agent.counts.refused += 1;
            agent.records.take(RECORDS_A_SECOND, RECORDS_AT_ONCE, now)
                && group.records.take(GROUP_RECORDS_A_SECOND, GROUP_RECORDS_AT_ONCE, now)
        });
        recorded.unwrap_or(false)
    }

    /// Returns a share, if the agent and its group have one left. `groups` groups divide all
    /// shares.
    pub(super) fn share(
        self: &Arc<Self>,
        key: &AgentKey,
        of: Of,
        groups: usize,
    ) -> Option<DnsShare> {
        let may = self.with(key, Instant::now(), |agent, group| {
            let (of_agent, of_group) = of.most(groups);
            let (own, all) = (agent.held.of(of), group.held.of(of));
            let may = *own < of_agent && *all < of_group;
            *own += usize::from(may);
            *all += usize::from(may);
            may
        });
        may.unwrap_or(false).then(|| DnsShare { agents: Arc::clone(self), key: key.clone(), of })
    }

    /// Reports the counts of every agent since the last sweep that has any, and, without an agent,
    /// those of a group's agents that are not told apart. Counts for which `tell` returns false are
    /// reported the next time. Agents that are at rest are forgotten.
    pub(super) fn sweep(
        &self,
        now: Instant,
        mut tell: impl FnMut(&GroupName, Option<&AgentKey>, QueryCounts) -> bool,
    ) {
        let mut groups = lock(&self.0);
        groups.retain(|name, group| {
            group.sweep(now, |agent, counts| tell(name, agent, counts));
            !group.is_at_rest(now)
        });
    }

    fn count_without_room(&self, key: &AgentKey) {
        let mut groups = lock(&self.0);
        if let Some(group) = groups.get_mut(key.group()) {
            group.common.rest.limited += 1;
        }
    }

    fn with<T>(
        &self,
        key: &AgentKey,
        now: Instant,
        on: impl FnOnce(&mut AgentQueries, &mut Common) -> T,
    ) -> Option<T> {
        let mut groups = lock(&self.0);
        if !groups.contains_key(key.group()) {
            groups.insert(key.group().clone(), GroupQueries::new(now));
        }
        let GroupQueries { agents, common } = groups.get_mut(key.group())?;
        let Common { rest, .. } = common;
        let rests = |other: &mut AgentQueries| other.leaves_only_counts(now, rest);
        let agent = agents.agent(key, || AgentQueries::new(now), rests)?;
        Some(on(agent, common))
    }
}

impl GroupQueries {
    fn new(now: Instant) -> Self {
        let common = Common {
            held: SharesInUse::default(),
            records: RateLimiter::new(now),
            rest: QueryCounts::default(),
        };
        Self { agents: AgentTable::default(), common }
    }

    fn sweep(
        &mut self,
        now: Instant,
        mut tell: impl FnMut(Option<&AgentKey>, QueryCounts) -> bool,
    ) {
        let mut told = 0;
        for (key, agent) in self.agents.iter_mut() {
            if agent.counts == QueryCounts::default() {
                continue;
            }
            if told >= MAX_SUMS {
                self.common.rest.add(std::mem::take(&mut agent.counts));
            } else if tell(Some(key), agent.counts) {
                agent.counts = QueryCounts::default();
                told += 1;
            }
        }
        let rest = &mut self.common.rest;
        if *rest != QueryCounts::default() && tell(None, *rest) {
            *rest = QueryCounts::default();
        }
        self.agents.retain(|agent| !agent.is_at_rest(now));
    }

    fn is_at_rest(&self, now: Instant) -> bool {
        self.agents.is_empty()
            && self.common.rest == QueryCounts::default()
            && self.common.records.is_full(now)
    }
}

impl QueryCounts {
    fn add(&mut self, other: Self) {
        self.answered += other.answered;
        self.refused += other.refused;
        self.limited += other.limited;
        self.undelivered += other.undelivered;
    }
}

impl SharesInUse {
    fn of(&mut self, of: Of) -> &mut usize {
        match of {
            Of::Lookups => &mut self.lookups,
            Of::Connections => &mut self.connections,
        }
    }
}

impl Of {
    /// Returns the most that one agent, and one group among so many, may hold.
    fn most(self, groups: usize) -> (usize, usize) {
        match self {
            Self::Lookups => (MAX_LOOKUPS, MAX_GROUP_LOOKUPS),
            Self::Connections => {
                let of_group = INTERFACE_CONNECTIONS / groups.max(1);
                let of_group = of_group.max(MIN_GROUP_CONNECTIONS);
                (MAX_CONNECTIONS.min(of_group / 2), of_group)
            }
        }
    }
}

impl AgentQueries {
    fn new(now: Instant) -> Self {
        let limiter = RateLimiter::new(now);
        Self {
            queries: limiter,
            records: limiter,
            held: SharesInUse::default(),
            counts: QueryCounts::default(),
        }
    }

    fn is_at_rest(&self, now: Instant) -> bool {
        self.counts == QueryCounts::default() && self.is_idle(now)
    }

    /// Returns whether nothing is known of the agent except its counts. They are moved to `rest`
    /// then.
    fn leaves_only_counts(&mut self, now: Instant, rest: &mut QueryCounts) -> bool {
        let idle = self.is_idle(now);
        if idle {
            rest.add(std::mem::take(&mut self.counts));
        }
        idle
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.held.lookups + self.held.connections == 0
            && self.queries.is_full(now)
            && self.records.is_full(now)
    }
}

impl Drop for DnsShare {
    fn drop(&mut self) {
        self.agents.with(&self.key, Instant::now(), |agent, group| {
            for held in [&mut agent.held, &mut group.held] {
                let held = held.of(self.of);
                *held = held.saturating_sub(1);
            }
        });
    }
}

/// Names that one agent may have resolved at once. While a daemon starts, queries wait, and no name
/// is remembered: 200 names a second, each asked for in both families, have to fit for half a
/// second.
const MAX_LOOKUPS: usize = 256;
/// Names that one group may have resolved at once, including those that wait for their turn. A
/// query that waits holds about 2 KiB.
const MAX_GROUP_LOOKUPS: usize = 4_096;
/// TCP connections of one interface and family.
pub(super) const INTERFACE_CONNECTIONS: usize = 256;
/// TCP connections of one agent.
const MAX_CONNECTIONS: usize = 16;
/// TCP connections that every group has, however many groups there are. Up to 32 groups can have
/// all of theirs on one listener.
const MIN_GROUP_CONNECTIONS: usize = 8;
/// Refused queries of one agent with a record of their own; the others are only counted.
const RECORDS_A_SECOND: u32 = 5;
const RECORDS_AT_ONCE: u32 = 50;
/// The same for one group.
const GROUP_RECORDS_A_SECOND: u32 = 50;
const GROUP_RECORDS_AT_ONCE: u32 = 500;
/// Agents of one group with a sum of their own in each sweep; the others are in one sum.
const MAX_SUMS: usize = 1_024;

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use super::*;
    use crate::limits::MAX_AGENTS;

    fn key(address: &str) -> AgentKey {
        AgentKey::new(&GroupName("red".into()), address.parse().unwrap())
    }

    #[test]
    fn an_agent_has_its_rate_and_a_burst_of_double() {
        let (agents, start) = (Agents::default(), Instant::now());
        let greedy = key("192.0.2.1");
        let burst = (0..1_000).filter(|_| agents.may_ask(&greedy, 10, start)).count();
        assert_eq!(burst, 20);
        assert!(agents.may_ask(&key("192.0.2.2"), 10, start), "another agent");
        let mut allowed = 0;
        for millisecond in 1..=10_000 {
            let now = start + Duration::from_millis(millisecond);
            allowed += usize::from(agents.may_ask(&greedy, 10, now));
        }
        assert!((99..=101).contains(&allowed), "{allowed}");
    }

    #[test]
    fn shares_come_back() {
        let agents = Arc::new(Agents::default());
        let agent = key("192.0.2.1");
        let held: Vec<_> =
            (0..100).filter_map(|_| agents.share(&agent, Of::Connections, 1)).collect();
        assert_eq!(held.len(), MAX_CONNECTIONS);
        assert!(agents.share(&agent, Of::Lookups, 1).is_some());
        assert!(agents.share(&key("192.0.2.2"), Of::Connections, 1).is_some());
        drop(held);
        assert!(agents.share(&agent, Of::Connections, 1).is_some());
    }

    /// Returns the reports of a sweep that can report everything.
    fn swept(agents: &Agents, now: Instant) -> Vec<(Option<AgentKey>, QueryCounts)> {
        let mut told = Vec::new();
        agents.sweep(now, |_, agent, counts| {
            told.push((agent.cloned(), counts));
            true
        });
        told
    }

    #[test]
    fn a_sweep_tells_once_and_forgets_who_is_at_rest() {
        let (agents, now) = (Agents::default(), Instant::now());
        agents.answered(&key("192.0.2.1"), now);
        let recorded = (0..1_000).filter(|_| agents.refused(&key("192.0.2.2"), now)).count();
        assert_eq!(recorded, RECORDS_AT_ONCE as usize);
        let counts = swept(&agents, now);
        assert_eq!(counts.len(), 2);
        assert_eq!(counts.iter().map(|(_, each)| each.refused).sum::<u64>(), 1_000);
        assert!(swept(&agents, now + Duration::from_secs(60)).is_empty());
        assert!(agents.0.lock().unwrap().is_empty());
    }

    #[test]
    fn agents_beyond_the_bound_are_in_the_sum_too() {
        let (agents, now) = (Agents::default(), Instant::now());
        let beyond = 3;
        for number in 0..(MAX_AGENTS + beyond) as u32 {
            agents.limited(&key(&IpAddr::from(number.to_be_bytes()).to_string()), now);
        }
        let told = swept(&agents, now);
        let sum: u64 = told.iter().map(|(_, counts)| counts.limited).sum();
        assert_eq!(sum, (MAX_AGENTS + beyond) as u64);
    }

    #[test]
    fn what_could_not_be_told_is_told_the_next_time() {
        let (agents, now) = (Agents::default(), Instant::now());
        agents.answered(&key("192.0.2.1"), now);
        let later = now + Duration::from_secs(60);
        agents.sweep(later, |_, _, _| false);
        agents.answered(&key("192.0.2.1"), later);
        agents.undelivered(&key("192.0.2.1"), later);
        let both = QueryCounts { answered: 2, undelivered: 1, ..QueryCounts::default() };
        assert_eq!(swept(&agents, later), [(Some(key("192.0.2.1")), both)]);
    }

    #[test]
    fn a_groups_records_are_bounded_and_every_query_is_counted() {
        let (agents, now) = (Agents::default(), Instant::now());
        let mut recorded = 0;
        for number in 0..20_000u32 {
            let agent = key(&IpAddr::from(number.to_be_bytes()).to_string());
            if agents.may_ask(&agent, 10, now) {
                recorded += usize::from(agents.refused(&agent, now));
            }
        }
        assert_eq!(recorded, GROUP_RECORDS_AT_ONCE as usize);
        let blue = AgentKey::new(&GroupName("blue".into()), IpAddr::from([192, 0, 2, 1]));
        assert!(agents.refused(&blue, now), "another group has its own");
        let told = swept(&agents, now);
        assert_eq!(told.len(), MAX_SUMS + 2);
        assert_eq!(told.iter().map(|(_, it)| it.refused + it.limited).sum::<u64>(), 20_001);
        assert_eq!(told.iter().filter(|(agent, _)| agent.is_none()).count(), 1);
    }

    /// Returns one of the addresses that an attacker makes up.
    fn made_up(number: u32) -> AgentKey {
        key(&IpAddr::from((0x0a00_0000 + number).to_be_bytes()).to_string())
    }

    #[test]
    fn agents_without_number_do_not_fill_the_memory() {
        let (agents, now) = (Agents::default(), Instant::now());
        for number in 0..20_000 {
            agents.may_ask(&made_up(number), 10, now);
        }
        assert_eq!(agents.0.lock().unwrap()[&GroupName("red".into())].agents.len(), MAX_AGENTS);
        let blue = AgentKey::new(&GroupName("blue".into()), IpAddr::from([192, 0, 2, 1]));
        assert!(agents.may_ask(&blue, 10, now), "another group's agent");
    }

    #[test]
    fn made_up_agents_block_no_new_one_and_are_counted() {
        let (agents, start) = (Agents::default(), Instant::now());
        let (flood, honest) = (100_000_u32, 50);
        let mut asked = 0;
        for number in 0..flood {
            // As many a second as the packet rules let through, each of them refused.
            let now = start + Duration::from_micros(u64::from(number) * 150);
            let made_up = made_up(number);
            if agents.may_ask(&made_up, 200, now) {
                agents.refused(&made_up, now);
            }
            if number % (flood / honest) == 0 {
                let new = key(&format!("192.0.2.{asked}"));
                assert!(agents.may_ask(&new, 200, now), "{number}");
                agents.answered(&new, now);
                asked += 1;
            }
        }
        let end = start + Duration::from_secs(20);
        let told = swept(&agents, end);
        let sum = |of: fn(&QueryCounts) -> u64| told.iter().map(|(_, it)| of(it)).sum::<u64>();
        assert_eq!(sum(|it| it.refused), u64::from(flood), "nobody was told no");
        assert_eq!((sum(|it| it.answered), sum(|it| it.limited)), (u64::from(honest), 0));
    }

    #[test]
    fn an_agent_with_share_or_debt_is_not_forgotten() {
        let (agents, now) = (Arc::new(Agents::default()), Instant::now());
        let greedy = key("192.0.2.1");
        let held = agents.share(&greedy, Of::Lookups, 1).unwrap();
        let fast = key("192.0.2.2");
        let burst = (0..100).filter(|_| agents.may_ask(&fast, 10, now)).count();
        for number in 0..40_000 {
            agents.may_ask(&made_up(number), 10_000, now + Duration::from_micros(number.into()));
        }
        assert_eq!((burst, agents.may_ask(&fast, 10, now)), (20, false));
        drop(held);
        let groups = agents.0.lock().unwrap();
        assert_eq!(groups[greedy.group()].common.held.lookups, 0);
    }

    #[test]
    fn one_groups_hosts_do_not_take_what_all_groups_share() {
        let agents = Arc::new(Agents::default());
        for (of, most) in [(Of::Lookups, MAX_GROUP_LOOKUPS), (Of::Connections, 128)] {
            let red = |number: u32| key(&IpAddr::from(number.to_be_bytes()).to_string());
            let held: Vec<_> =
                (0..10_000).filter_map(|number| agents.share(&red(number), of, 2)).collect();
            assert_eq!(held.len(), most, "{of:?}");
            let blue = AgentKey::new(&GroupName("blue".into()), IpAddr::from([192, 0, 2, 1]));
            assert!(agents.share(&blue, of, 2).is_some(), "{of:?}");
            drop(held);
            assert!(agents.share(&red(0), of, 2).is_some(), "{of:?}");
        }
    }

    #[test]
    fn all_groups_but_one_leave_the_last_its_connections() {
        for groups in 1..=32 {
            let (of_agent, of_group) = Of::Connections.most(groups);
            assert!(0 < of_agent && 2 * of_agent <= of_group, "one agent has all of its group's");
            assert!(of_group >= MIN_GROUP_CONNECTIONS);
            let of_all_but_one = of_group * (groups - 1);
            let left = INTERFACE_CONNECTIONS - of_all_but_one;
            assert!(left >= of_group, "{groups} groups, {left} left of {of_group}");
        }
        let (_, of_group) = Of::Connections.most(10_000);
        assert_eq!(of_group, MIN_GROUP_CONNECTIONS);
    }
}
