//! What every agent may hold at once and take in a second, so that neither one agent nor one group,
//! whose hosts may use many addresses, can take what the others need.
//!
//! A count is given back by whoever holds it, by being dropped. The table of agents is bounded for
//! each group; where a group's is full of agents that are not at rest, a new one is told no.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::agent::{AgentKey, Pace};
use crate::{
    policy::{GroupName, Limits},
    reason::Reason,
};

/// Hands out the places that connections, requests and their bytes take.
#[derive(Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    groups: Mutex<HashMap<GroupName, GroupTable>>,
}

/// A place for one connection, whoever it will be from. Taken before `accept`, so that a gateway
/// without places leaves connections to the kernel's queue instead of to EMFILE.
#[derive(Debug)]
pub struct Place {
    _all: OwnedSemaphorePermit,
}

/// The share that one connection takes of its agent's and its group's places. Given back when
/// dropped.
#[derive(Debug)]
pub struct Share(Arc<Taken>);

/// What the requests and bytes of one connection are counted against.
#[derive(Debug)]
pub struct Taken {
    agent: Arc<Tally>,
    group: Arc<Tally>,
    agent_requests: usize,
}

/// The place of one request. Given back when dropped.
#[derive(Debug)]
pub struct RequestPlace(Arc<Taken>);

/// The windows that an HTTP/2 connection may open. Given back when dropped.
#[derive(Debug)]
pub struct Windows {
    /// Whether they are large.
    pub large: bool,
    taken: Arc<Taken>,
}

/// Where bytes are on their way to. Each way has its budget: an agent that takes no answers can
/// still finish what it sends, and the other way round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To the upstream.
    Out,
    /// To the agent.
    Back,
}

/// New connections of one agent that were over its rate, since the last time it was asked.
#[derive(Debug, PartialEq, Eq)]
pub struct OverRate {
    /// Its group.
    pub group: GroupName,
    /// The agent; `None` for all those beyond the bound on agents.
    pub agent: Option<AgentKey>,
    /// How many.
    pub count: u64,
}

#[derive(Debug)]
struct GroupTable {
    tally: Arc<Tally>,
    agents: HashMap<AgentKey, Agent>,
    /// Connections of agents that the table had no room for.
    nameless: u64,
    swept: Instant,
}

#[derive(Debug)]
struct Agent {
    connecting: Pace,
    over_rate: u64,
    tally: Arc<Tally>,
}

#[derive(Debug)]
struct Tally {
    connections: AtomicUsize,
    requests: AtomicUsize,
    large_windows: AtomicUsize,
    minting: Mutex<Pace>,
    /// Bytes of bodies, each way.
    bodies: [Arc<Semaphore>; 2],
    /// What each of them began with.
    body_bytes: usize,
    large_peeks: Arc<Semaphore>,
}

impl Places {
    /// `connections` places in all.
    pub fn new(connections: usize) -> Arc<Self> {
        Arc::new(Self {
            all: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            groups: Mutex::default(),
        })
    }

    /// Waits for a place. `None` only once the gateway closes.
    pub async fn take(&self) -> Option<Place> {
        let permit = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Place { _all: permit })
    }

    /// Whether the agent may open a connection now: `agent_new_connections` a second, twice as many
    /// at once. One that may not is counted, and has no record of its own.
    pub fn may_connect(&self, key: &AgentKey, limits: &Limits, now: Instant) -> bool {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let table = groups.entry(key.group().clone()).or_insert_with(|| GroupTable::new(now));
        let Some(agent) = table.agent(key, limits, now) else {
            table.nameless += 1;
            return false;
        };
        let rate = limits.agent_new_connections;
        let may = agent.connecting.take(rate, rate.saturating_mul(2), now);
        agent.over_rate += u64::from(!may);
        may
    }

    /// Connections of the group that are open now.
    pub fn open(&self, group: &GroupName) -> usize {
        let groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.get(group).map_or(0, |table| table.tally.connections.load(Relaxed))
    }

    /// Counts a connection against its agent and against its group, of which `of_group` may be
    /// open at once.
    pub fn share(&self, key: &AgentKey, limits: &Limits, of_group: usize) -> Result<Share, Reason> {
        let now = Instant::now();
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let table = groups.entry(key.group().clone()).or_insert_with(|| GroupTable::new(now));
        let group = Arc::clone(&table.tally);
        let agent = table.agent(key, limits, now).ok_or(Reason::ConnectionLimit)?;
        let agent = Arc::clone(&agent.tally);
        for (tally, most) in [(&agent, limits.agent_connections), (&group, of_group)] {
            if tally.connections.load(Relaxed) >= most {
                return Err(Reason::ConnectionLimit);
            }
        }
        for tally in [&agent, &group] {
            tally.connections.fetch_add(1, Relaxed);
        }
        let agent_requests = limits.agent_requests;
        Ok(Share(Arc::new(Taken { agent, group, agent_requests })))
    }

    /// What was over its agent's rate since the last time. Agents at rest are forgotten.
    pub fn over_rate(&self, now: Instant) -> Vec<OverRate> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::new();
        for (group, table) in groups.iter_mut() {
            for (key, agent) in &mut table.agents {
                let count = std::mem::take(&mut agent.over_rate);
                all.push(OverRate { group: group.clone(), agent: Some(key.clone()), count });
            }
            let count = std::mem::take(&mut table.nameless);
            all.push(OverRate { group: group.clone(), agent: None, count });
            table.sweep(now);
        }
        groups.retain(|_, table| !table.agents.is_empty());
        all.retain(|each| each.count > 0);
        all
    }

    /// Counts again what could not be told, for the next time.
    pub fn not_told(&self, over_rate: &OverRate, now: Instant) {
        let OverRate { group, agent, count } = over_rate;
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let table = groups.entry(group.clone()).or_insert_with(|| GroupTable::new(now));
        match agent.as_ref().and_then(|key| table.agents.get_mut(key)) {
            Some(agent) => agent.over_rate += count,
            None => table.nameless += count,
        }
    }
}

impl GroupTable {
    fn new(now: Instant) -> Self {
        let tally = Arc::new(Tally::new(&Limits::default(), now));
        Self { tally, agents: HashMap::new(), nameless: 0, swept: now }
    }

    fn agent(&mut self, key: &AgentKey, limits: &Limits, now: Instant) -> Option<&mut Agent> {
        if !self.agents.contains_key(key) {
            // A look at every agent for each connection would be a way to spend the gateway's time.
            if self.agents.len() >= MAX_AGENTS && now >= self.swept + SWEEP_EVERY {
                self.sweep(now);
            }
            if self.agents.len() >= MAX_AGENTS {
                return None;
            }
            self.agents.insert(key.clone(), Agent::new(limits, now));
        }
        self.agents.get_mut(key)
    }

    fn sweep(&mut self, now: Instant) {
        self.swept = now;
        self.agents.retain(|_, agent| !agent.is_at_rest(now));
    }
}

impl Agent {
    fn new(limits: &Limits, now: Instant) -> Self {
        Self { connecting: Pace::new(now), over_rate: 0, tally: Arc::new(Tally::new(limits, now)) }
    }

    fn is_at_rest(&self, now: Instant) -> bool {
        let minting = self.tally.minting.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever holds something of it holds the tally.
        Arc::strong_count(&self.tally) == 1
            && self.over_rate == 0
            && self.connecting.is_full(now)
            && minting.is_full(now)
    }
}

impl Tally {
    /// The budgets of a policy hold for an agent from when it is first seen until it is at rest.
    fn new(limits: &Limits, now: Instant) -> Self {
        let budget = |bytes: usize| Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS)));
        Self {
            connections: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            large_windows: AtomicUsize::new(0),
            minting: Mutex::new(Pace::new(now)),
            body_bytes: limits.agent_buffers,
            bodies: [budget(limits.agent_buffers), budget(limits.agent_buffers)],
            large_peeks: budget(limits.agent_peeks),
        }
    }
}

impl Share {
    /// What the connection's requests and bytes are counted against.
    pub fn taken(&self) -> Arc<Taken> {
        Arc::clone(&self.0)
    }

    /// Whether the agent may have a leaf made for it now.
    pub fn may_mint(&self, limits: &Limits) -> bool {
        let mut minting = self.0.agent.minting.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = limits.agent_leaves;
        minting.take(rate, rate.saturating_mul(2), Instant::now())
    }

    /// Room for so many more bytes of what is read before a decision, while the agent has it.
    pub fn peek(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).ok()?;
        Arc::clone(&self.0.agent.large_peeks).try_acquire_many_owned(bytes).ok()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        for tally in [&self.0.agent, &self.0.group] {
            tally.connections.fetch_sub(1, Relaxed);
        }
    }
}

impl Taken {
    /// Takes a place for one request. Each request under way holds a place in the audit's queue
    /// and buffers, which all agents share.
    pub fn request(self: &Arc<Self>) -> Result<RequestPlace, Reason> {
        // Counted first, so that whatever happens it is given back.
        let place = RequestPlace(Arc::clone(self));
        let under_way =
            [&self.agent, &self.group].map(|tally| tally.requests.fetch_add(1, Relaxed));
        let within = under_way.iter().zip([self.agent_requests, Limits::GROUP_REQUESTS]);
        if within.clone().all(|(count, most)| *count < most) {
            Ok(place)
        } else {
            Err(Reason::RateLimit)
        }
    }

    /// Windows for one more HTTP/2 connection: large ones while the agent has few of them.
    pub fn windows(self: &Arc<Self>) -> Windows {
        let more = |count: usize| (count < LARGE_WINDOWS).then_some(count + 1);
        let large = self.agent.large_windows.fetch_update(Relaxed, Relaxed, more).is_ok();
        Windows { large, taken: Arc::clone(self) }
    }

    /// Counts bytes of a body for as long as they are held anywhere, where the agent has room.
    ///
    /// # Errors
    ///
    /// The same bytes, where it has none now.
    pub fn try_hold(&self, way: Way, bytes: Bytes) -> Result<Bytes, Bytes> {
        let (budget, count) = self.budget(way, &bytes);
        match Arc::clone(budget).try_acquire_many_owned(count) {
            Ok(room) => Ok(held(bytes, room)),
            Err(_) => Err(bytes),
        }
    }

    /// [`Taken::try_hold`] that waits until there is room.
    pub async fn hold(self: Arc<Self>, way: Way, bytes: Bytes) -> Bytes {
        let (budget, count) = self.budget(way, &bytes);
        match Arc::clone(budget).acquire_many_owned(count).await {
            Ok(room) => held(bytes, room),
            // Nobody closes the budget.
            Err(_) => bytes,
        }
    }

    fn budget(&self, way: Way, bytes: &Bytes) -> (&Arc<Semaphore>, u32) {
        let [out, back] = &self.agent.bodies;
        let count = bytes.len().min(self.agent.body_bytes);
        (if way == Way::Out { out } else { back }, u32::try_from(count).unwrap_or(u32::MAX))
    }
}

/// The same bytes, which take up this room until the last handle to them is gone.
pub fn held(bytes: Bytes, room: OwnedSemaphorePermit) -> Bytes {
    struct Held(
        Bytes,
        #[expect(dead_code, reason = "dropped with the bytes")] OwnedSemaphorePermit,
    );
    impl AsRef<[u8]> for Held {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(Held(bytes, room))
}

impl Drop for RequestPlace {
    fn drop(&mut self) {
        for tally in [&self.0.agent, &self.0.group] {
            tally.requests.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        if self.large {
            self.taken.agent.large_windows.fetch_sub(1, Relaxed);
        }
    }
}

/// Agents of one group that are kept apart.
const MAX_AGENTS: usize = 16_384;
/// Pause between two looks for agents at rest.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// HTTP/2 connections of one agent with large windows.
const LARGE_WINDOWS: usize = 16;

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn limits(agent_connections: usize) -> Limits {
        Limits { agent_connections, ..Limits::default() }
    }

    fn key(last: u8, group: &str) -> AgentKey {
        AgentKey::new(&GroupName(group.into()), IpAddr::from([192, 0, 2, last]))
    }

    #[test]
    fn one_agent_cannot_take_anothers_places() {
        let places = Places::new(10);
        let share = |last| places.share(&key(last, "red"), &limits(3), 10);
        let held: Vec<_> = (0..3).map(|_| share(1).unwrap()).collect();
        assert_eq!(share(1).err(), Some(Reason::ConnectionLimit));
        assert!(share(2).is_ok());
        drop(held);
        assert!(share(1).is_ok());
        assert_eq!(places.over_rate(Instant::now()), []);
        assert!(places.groups.lock().unwrap().is_empty());
    }

    #[test]
    fn one_group_cannot_take_anothers_places_however_many_addresses_it_uses() {
        let places = Places::new(10);
        let share = |last, group| places.share(&key(last, group), &limits(3), 5);
        let _held: Vec<_> = (0..5).map(|last| share(last, "red").unwrap()).collect();
        assert_eq!(share(9, "red").err(), Some(Reason::ConnectionLimit));
        assert!(share(9, "blue").is_ok());
    }

    #[test]
    fn one_agents_requests_are_bounded_over_all_its_connections() {
        let places = Places::new(10);
        let few = Limits { agent_requests: 5, ..limits(3) };
        let [one, two, other] =
            [1, 1, 2].map(|last| places.share(&key(last, "red"), &few, 5).unwrap());
        let held: Vec<_> = (0..5).map(|_| one.taken().request().unwrap()).collect();
        for _ in 0..10 {
            assert_eq!(two.taken().request().err(), Some(Reason::RateLimit));
        }
        assert!(other.taken().request().is_ok());
        drop(held);
        assert!(two.taken().request().is_ok());
    }

    #[test]
    fn what_is_over_an_agents_rate_is_counted_once_and_the_others_connect() {
        let (places, now) = (Places::new(10), Instant::now());
        let slow = Limits { agent_new_connections: 5, ..Limits::default() };
        let greedy = key(1, "red");
        let allowed = (0..100).filter(|_| places.may_connect(&greedy, &slow, now)).count();
        assert_eq!(allowed, 10);
        assert!(places.may_connect(&key(2, "red"), &slow, now));
        let told = OverRate { group: greedy.group().clone(), agent: Some(greedy), count: 90 };
        assert_eq!(places.over_rate(now), [told]);
        assert_eq!(places.over_rate(now), []);
        assert_eq!(places.over_rate(now + Duration::from_secs(9)), []);
        assert!(places.groups.lock().unwrap().is_empty());
    }

    #[test]
    fn what_could_not_be_told_is_told_the_next_time() {
        let (places, now) = (Places::new(10), Instant::now());
        let slow = Limits { agent_new_connections: 1, ..Limits::default() };
        for _ in 0..5 {
            places.may_connect(&key(1, "red"), &slow, now);
        }
        let told = places.over_rate(now);
        places.not_told(&told[0], now);
        assert_eq!(places.over_rate(now), told);
    }

    #[test]
    fn agents_without_number_do_not_fill_the_memory_and_leave_other_groups_alone() {
        let (places, now) = (Places::new(10), Instant::now());
        let red = GroupName("red".into());
        for number in 0..20_000u32 {
            let address = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
            places.may_connect(&AgentKey::new(&red, address), &Limits::default(), now);
        }
        assert_eq!(places.groups.lock().unwrap()[&red].agents.len(), MAX_AGENTS);
        assert!(places.may_connect(&key(1, "blue"), &Limits::default(), now));
        let nameless = 20_000 - MAX_AGENTS as u64;
        assert_eq!(
            places.over_rate(now),
            [OverRate { group: red.clone(), agent: None, count: nameless }]
        );
        let later = now + Duration::from_secs(10);
        assert!(places.may_connect(&key(1, "red"), &Limits::default(), later), "the idle go");
    }

    #[test]
    fn bytes_wait_for_room_which_comes_back_with_the_last_handle() {
        let places = Places::new(10);
        let tight = Limits { agent_buffers: 100, ..Limits::default() };
        let share = places.share(&key(1, "red"), &tight, 5).unwrap();
        let hold = |way, bytes: &'static [u8]| {
            let held = share.taken().hold(way, Bytes::from_static(bytes));
            futures_util::FutureExt::now_or_never(held)
        };
        let first = hold(Way::Back, &[7; 80]).unwrap();
        assert_eq!(first, [7; 80].as_slice());
        assert!(hold(Way::Back, &[7; 80]).is_none());
        assert!(hold(Way::Out, &[7; 80]).is_some(), "the other way has its own");
        let part = first.slice(..1);
        drop(first);
        assert!(hold(Way::Back, &[7; 80]).is_none());
        drop(part);
        assert!(hold(Way::Back, &[7; 80]).is_some());
    }

    #[test]
    fn leaves_large_peeks_and_large_windows_are_an_agents_own() {
        let places = Places::new(10);
        let few = Limits { agent_leaves: 2, agent_peeks: 100, ..Limits::default() };
        let [one, other] = [1, 2].map(|last| places.share(&key(last, "red"), &few, 5).unwrap());
        assert_eq!((0..100).filter(|_| one.may_mint(&few)).count(), 4);
        assert!(other.may_mint(&few));
        let held = one.peek(90);
        assert!(held.is_some() && one.peek(20).is_none() && other.peek(90).is_some());
        drop(held);
        assert!(one.peek(20).is_some());
        let windows: Vec<_> = (0..20).map(|_| one.taken().windows()).collect();
        assert_eq!(windows.iter().filter(|it| it.large).count(), LARGE_WINDOWS);
        assert!(other.taken().windows().large);
        drop(windows);
        assert!(one.taken().windows().large);
    }
}
