//! The bounds on everything that an agent may hold at once and use in a second, so that neither one
//! agent nor one group, whose hosts may use many addresses, can take what the others need.
//!
//! The holder of a count gives it back by dropping its guard. The table of agents is bounded for
//! each group; where a group's table is full, an agent at rest makes room for a new one.
//!
//! The room of all agents together is divided into equal parts, one for each group, so that all
//! other groups together cannot take a group's part; and no agent has more than half of its group's
//! part. Except for bytes of bodies, an agent also has no more than its group has left: a host that
//! is two agents, by an address of each family, leaves the others of its group a quarter. With the
//! default limits, all of them used up, the large pieces take:
//!
//! | what | bound | MiB |
//! |---|---|---|
//! | bodies between the two sides | `buffers` each way | 192 |
//! | long beginnings of undecided connections | `peeks` | 16 |
//! | large HTTP/2 windows, two for each connection | 1 MiB of [`Limits::LARGE_WINDOWS`] | 96 |
//! | windows of brotli and zstd | 8 MiB of [`Limits::LARGE_DECODERS`] | 128 |
//!
//! Besides, each connection and each request holds little, unless its agent does all it can. Their
//! sum grows with `connections` and `requests`:
//!
//! | what of each | bound | KiB |
//! |---|---|---|
//! | an undecided connection | its first bytes | 4 |
//! | a spliced connection, while bytes wait | 64 KiB each way, or a pipe | 128 |
//! | an intercepted one: TLS records on both sides | as much as both have under way | 160 |
//! | its HTTP/2 windows | 64 KiB each way | 128 |
//! | a request: its head | `head_bytes` | 64 |
//! | a decoder of gzip, and a piece of its text | | 64 |
//! | a part of each body that waits for room | 16 KiB each way | 32 |
//! | response bytes that masking keeps | 2 KiB, with values above 256 bytes 8, above 1 KiB 64 | 64 |
//! | a WebSocket: a frame that is not whole yet | 64 KiB and a read, each way | 160 |
//!
//! The kernel itself bounds its socket buffers (`tcp_mem`).

mod tally;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, atomic::Ordering::Relaxed},
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use self::tally::Tally;
pub use self::tally::{HeldBytes, Way, held};
use super::{RateLimiter, agent_table::AgentTable};
use crate::{
    identity::AgentKey,
    locks::lock,
    policy::{GroupName, Limits, Quota},
    reason::Reason,
};

/// Hands out the slots that connections, requests and their bytes take.
#[derive(Debug)]
pub struct Capacity {
    all: Arc<Semaphore>,
    groups: Mutex<HashMap<GroupName, GroupTable>>,
}

/// A slot for one connection, whichever agent it will come from. Taken before `accept`, so that a
/// gateway without slots leaves connections to the kernel's queue and does not run into EMFILE.
#[derive(Debug)]
pub struct ConnectionSlot {
    _all: OwnedSemaphorePermit,
}

/// The share that one connection takes of its agent's and its group's slots. Given back when
/// dropped.
#[derive(Debug)]
pub struct AgentShare(Arc<Taken>);

/// The shares that the requests and bytes of one connection are counted against.
#[derive(Debug)]
pub struct Taken {
    agent: Tally,
    group: Tally,
}

/// The slot of one request. Given back when dropped.
#[derive(Debug)]
pub struct RequestSlot(Arc<Taken>);

/// The windows that an HTTP/2 connection may open. Given back when dropped.
#[derive(Debug)]
pub struct H2Windows {
    /// Whether they are large.
    pub large: bool,
    taken: Arc<Taken>,
}

/// A decoder with a window of megabytes. Given back when dropped.
#[derive(Debug)]
pub struct LargeDecoder(Arc<Taken>);

/// The slot of a pipe that holds bytes of an agent's flow. Given back when dropped.
#[derive(Debug)]
pub struct PipeSlot(Arc<Taken>);

/// An act of an agent whose rate is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rated {
    /// Opening connections.
    Connections,
    /// Making requests on them.
    Requests,
}

/// The acts of one agent over its rate since the last report.
#[derive(Debug, PartialEq, Eq)]
pub struct OverRate {
    /// Its group.
    pub group: GroupName,
    /// The agent; `None` for all agents beyond the bound on agents.
    pub agent: Option<AgentKey>,
    /// The kind of act.
    pub rated: Rated,
    /// The number of acts.
    pub count: u64,
}

#[derive(Debug)]
struct GroupTable {
    /// Made when an agent first takes a part of it.
    tally: Option<Tally>,
    agents: AgentTable<AgentState>,
    /// The acts of agents that made room for others, or found none.
    nameless: Over,
}

#[derive(Debug)]
struct AgentState {
    connecting: RateLimiter,
    over: Over,
    tally: Option<Tally>,
}

/// The acts over a rate that are not reported yet.
#[derive(Debug, Default, PartialEq, Eq)]
struct Over {
    connections: u64,
    requests: u64,
}

impl Capacity {
    /// Creates `connections` slots.
    pub fn new(connections: usize) -> Arc<Self> {
        Arc::new(Self {
            all: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            groups: Mutex::default(),
        })
    }

    /// Waits for a slot. Returns `None` only once the gateway closes.
    pub async fn take(&self) -> Option<ConnectionSlot> {
        let permit = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(ConnectionSlot { _all: permit })
    }

    /// Returns whether the agent may open a connection now: `agent_new_connections` a second, twice
    /// as many at once. A connection beyond that is counted, and has no record of its own.
    pub fn may_connect(&self, key: &AgentKey, limits: &Limits, now: Instant) -> bool {
        let mut groups = lock(&self.groups);
        let table = groups.entry(key.group().clone()).or_insert_with(GroupTable::new);
        let Some(agent) = table.agent(key, now) else {
            table.nameless.connections += 1;
            return false;
        };
        let rate = limits.agent_new_connections;
        let may = agent.connecting.take(rate, rate.saturating_mul(2), now);
        agent.over.connections += u64::from(!may);
        may
    }

    /// Returns the number of the group's open connections.
    pub fn open(&self, group: &GroupName) -> usize {
        let groups = lock(&self.groups);
        let tally = groups.get(group).and_then(|table| table.tally.as_ref());
        tally.map_or(0, |tally| tally.counts.connections.load(Relaxed))
    }

    /// Counts a connection against its agent and against its group, which has an equal part among
    /// the groups. These limits bound the connection and its requests for as long as it is open.
    ///
    /// # Errors
    ///
    /// [`Reason::ConnectionLimit`], where the agent or the group has none left.
    pub fn share(
        &self,
        key: &AgentKey,
        limits: &Limits,
        groups: usize,
    ) -> Result<AgentShare, Reason> {
        let quota = Quota::of_group(limits, groups);
        let now = Instant::now();
        let mut groups = lock(&self.groups);
        let table = groups.entry(key.group().clone()).or_insert_with(GroupTable::new);
        let group = known(&mut table.tally, quota, now);
        let agent = table.agent(key, now).ok_or(Reason::ConnectionLimit)?;
        let agent = known(&mut agent.tally, quota.of_agent(limits), now);
        if !Tally::add_connection(&agent, &group) {
            return Err(Reason::ConnectionLimit);
        }
        Ok(AgentShare(Arc::new(Taken { agent, group })))
    }

    /// Returns the acts over each agent's rate since the last time. Forgets agents at rest.
    pub fn over_rate(&self, now: Instant) -> Vec<OverRate> {
        let mut groups = lock(&self.groups);
        let mut all = Vec::new();
        for (group, table) in groups.iter_mut() {
            let agents = table.agents.iter_mut().map(|(key, agent)| (Some(key), agent.over()));
            for (key, over) in agents.chain([(None, &mut table.nameless)]) {
                for rated in [Rated::Connections, Rated::Requests] {
                    let count = std::mem::take(over.of(rated));
                    if count > 0 {
                        let agent = key.cloned();
                        all.push(OverRate { group: group.clone(), agent, rated, count });
                    }
                }
            }
            table.sweep(now);
        }
        groups.retain(|_, table| !table.is_at_rest());
        all
    }

    /// Counts acts that could not be reported again, for the next time.
    pub fn not_logged(&self, over_rate: &OverRate) {
        let OverRate { group, agent, rated, count } = over_rate;
        let mut groups = lock(&self.groups);
        let table = groups.entry(group.clone()).or_insert_with(GroupTable::new);
        let agent = agent.as_ref().and_then(|key| table.agents.known(key));
        let over = agent.map_or(&mut table.nameless, |agent| &mut agent.over);
        *over.of(*rated) += count;
    }
}

impl GroupTable {
    fn new() -> Self {
        Self { tally: None, agents: AgentTable::default(), nameless: Over::default() }
    }

    fn agent(&mut self, key: &AgentKey, now: Instant) -> Option<&mut AgentState> {
        let Self { agents, nameless, .. } = self;
        let rests = |other: &mut AgentState| other.leaves_only_counts(now, nameless);
        agents.agent(key, || AgentState::new(now), rests)
    }

    fn sweep(&mut self, now: Instant) {
        self.tally.take_if(|tally| tally.is_at_rest(now));
        self.agents.retain(|agent| !agent.is_at_rest(now));
    }

    /// Returns whether the entry has nothing to report or to keep.
    fn is_at_rest(&self) -> bool {
        self.agents.is_empty() && self.nameless == Over::default()
    }
}

impl AgentState {
    fn new(now: Instant) -> Self {
        Self { connecting: RateLimiter::new(now), over: Over::default(), tally: None }
    }

    /// Returns the acts to report, including requests that the agent's connections have counted.
    fn over(&mut self) -> &mut Over {
        if let Some(tally) = &self.tally {
            self.over.requests += tally.counts.over_rate.swap(0, Relaxed);
        }
        &mut self.over
    }

    fn is_at_rest(&self, now: Instant) -> bool {
        self.over == Over::default() && self.is_idle(now)
    }

    /// Returns whether the entry holds nothing except acts over the rate. They move to `nameless`
    /// then.
    fn leaves_only_counts(&mut self, now: Instant, nameless: &mut Over) -> bool {
        let over = std::mem::take(self.over());
        let idle = self.is_idle(now);
        let to = if idle { nameless } else { &mut self.over };
        to.add(over);
        idle
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.tally.as_ref().is_none_or(|tally| tally.is_at_rest(now))
            && self.connecting.is_full(now)
    }
}

impl Over {
    fn add(&mut self, other: Self) {
        self.connections += other.connections;
        self.requests += other.requests;
    }

    fn of(&mut self, rated: Rated) -> &mut u64 {
        match rated {
            Rated::Connections => &mut self.connections,
            Rated::Requests => &mut self.requests,
        }
    }
}

fn known(tally: &mut Option<Tally>, quota: Quota, now: Instant) -> Tally {
    tally.get_or_insert_with(|| Tally::new(quota, now)).with_quota(quota)
}

impl AgentShare {
    /// Returns the shares that the connection's requests and bytes are counted against.
    pub fn taken(&self) -> Arc<Taken> {
        Arc::clone(&self.0)
    }

    /// Returns whether a leaf may be made for the agent now.
    pub fn may_mint(&self, limits: &Limits) -> bool {
        let mut minting = lock(&self.0.agent.counts.minting);
        let rate = limits.agent_leaves;
        minting.take(rate, rate.saturating_mul(2), Instant::now())
    }

    /// Returns room for so many more bytes that are read before a decision, if the agent and its
    /// group have it.
    pub fn peek(&self, bytes: usize) -> Option<HeldBytes> {
        let bytes = u32::try_from(bytes).ok()?;
        Tally::try_peek(&self.0.agent, &self.0.group, bytes)
    }
}

impl Drop for AgentShare {
    fn drop(&mut self) {
        for tally in [&self.0.agent, &self.0.group] {
            tally.counts.connections.fetch_sub(1, Relaxed);
        }
    }
}

impl Taken {
    /// Returns whether the agent may make a request now: `agent_new_requests` a second, twice as
    /// many at once, and all agents of its group together [`Quota::GROUP_RATE`] times that. A
    /// request beyond that is counted, and has no record of its own.
    pub fn may_ask(&self, now: Instant) -> bool {
        let may = self.agent.may_ask(now) && self.group.may_ask(now);
        self.agent.counts.over_rate.fetch_add(u64::from(!may), Relaxed);
        may
    }

    /// Returns whether responses to the agent may have so many more places that hold much of a
    /// secret but not all of it. Each costs the gateway some time, and that time tells of the
    /// secret.
    pub fn may_probe(&self, near_misses: u64, now: Instant) -> bool {
        let count = u32::try_from(near_misses).unwrap_or(u32::MAX);
        self.agent.may_probe(count, 1, now) && self.group.may_probe(count, Quota::GROUP_RATE, now)
    }

    /// Returns whether the agent may send a request now whose answer may hold a minted credential.
    /// Masks are compiled again for each.
    pub fn may_mint(&self, now: Instant) -> bool {
        self.agent.may_mint(1, now) && self.group.may_mint(Quota::GROUP_RATE, now)
    }

    /// Takes a slot for one request. Each request under way holds a slot in the audit's queue and
    /// buffers, which all agents share.
    pub fn request(self: &Arc<Self>) -> Result<RequestSlot, Reason> {
        // Counted first, so that it is given back whatever happens.
        let slot = RequestSlot(Arc::clone(self));
        let within = Tally::add_request(&self.agent, &self.group);
        if within { Ok(slot) } else { Err(Reason::RateLimit) }
    }

    /// Returns windows for one more HTTP/2 connection: large ones while the agent and its group
    /// have few of them.
    pub fn windows(self: &Arc<Self>) -> H2Windows {
        let large = Tally::add_large_windows(&self.agent, &self.group);
        H2Windows { large, taken: Arc::clone(self) }
    }

    /// Returns a slot for a decoder with a large window, if the agent and its group have one left.
    pub fn large_decoder(self: &Arc<Self>) -> Option<LargeDecoder> {
        let may = Tally::add_large_decoder(&self.agent, &self.group);
        may.then(|| LargeDecoder(Arc::clone(self)))
    }

    /// Returns a slot for a pipe, if the agent and its group have one left.
    pub fn pipe(self: &Arc<Self>) -> Option<PipeSlot> {
        let may = Tally::add_pipe(&self.agent, &self.group);
        may.then(|| PipeSlot(Arc::clone(self)))
    }

    /// Counts bytes of a body for as long as they are held anywhere, if the agent and its group
    /// have room.
    ///
    /// # Errors
    ///
    /// The same bytes, where there is no room now.
    pub fn try_hold(&self, way: Way, bytes: Bytes) -> Result<Bytes, Bytes> {
        let room = |tally: &Tally| {
            let (left, count) = tally.body(way, bytes.len());
            left.try_acquire_many_owned(count).ok()
        };
        match room(&self.agent).zip(room(&self.group)) {
            Some((own, common)) => Ok(held(bytes, HeldBytes::new(own, common))),
            None => Err(bytes),
        }
    }

    /// Does the same as [`Taken::try_hold`], but waits until there is room.
    pub async fn hold(self: Arc<Self>, way: Way, bytes: Bytes) -> Bytes {
        match self.room(way, bytes.len()).await {
            Some(room) => held(bytes, room),
            None => bytes,
        }
    }

    /// Returns the bytes of the longest body for which there can be room.
    pub fn largest(&self) -> usize {
        self.agent.largest_body().min(self.group.largest_body())
    }

    /// Waits for room for so many bytes of a body. Returns `None` only if a budget were closed,
    /// which never happens.
    pub async fn room(&self, way: Way, bytes: usize) -> Option<HeldBytes> {
        // The agent's own budget first, where it waits behind no other agent.
        let (own, count) = self.agent.body(way, bytes);
        let own = own.acquire_many_owned(count).await.ok()?;
        let (common, count) = self.group.body(way, bytes);
        Some(HeldBytes::new(own, common.acquire_many_owned(count).await.ok()?))
    }
}

impl Drop for RequestSlot {
    fn drop(&mut self) {
        for tally in [&self.0.agent, &self.0.group] {
            tally.counts.requests.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for LargeDecoder {
    fn drop(&mut self) {
        for tally in [&self.0.agent, &self.0.group] {
            tally.counts.large_decoders.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for PipeSlot {
    fn drop(&mut self) {
        for tally in [&self.0.agent, &self.0.group] {
            tally.counts.pipes.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for H2Windows {
    fn drop(&mut self) {
        if self.large {
            for tally in [&self.taken.agent, &self.taken.group] {
                tally.counts.large_windows.fetch_sub(1, Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests;
