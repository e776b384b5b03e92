//! A permit before every accept, then an identity for what was accepted.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{
    policy::{Group, GroupName},
    reason::Reason,
};

/// Names one flow in the audit, in answers and in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FlowId(pub u64);

impl fmt::Display for FlowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The address and port that a connection came from, IPv4-mapped forms undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AgentAddr(pub SocketAddr);

impl AgentAddr {
    /// The agent, whatever port it used.
    pub fn ip(self) -> IpAddr {
        self.0.ip()
    }
}

/// One agent, for what is counted or remembered by agent: an IPv4 address or an IPv6 /64 of its
/// group, since within a /64 it can take any address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AgentKey {
    group: GroupName,
    prefix: IpAddr,
}

impl AgentKey {
    /// The agent of this group at this address.
    pub fn new(group: &GroupName, address: IpAddr) -> Self {
        let prefix = match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        };
        Self { group: group.clone(), prefix }
    }

    /// Its group.
    pub fn group(&self) -> &GroupName {
        &self.group
    }

    /// The first address of those that it may have.
    pub fn prefix(&self) -> IpAddr {
        self.prefix
    }

    /// As the audit names the agent.
    pub fn text(&self) -> String {
        match self.prefix {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("{v6}/64"),
        }
    }
}

/// The address and port that the agent dialled, IPv4-mapped forms undone. It is recorded and
/// compared; nothing is connected to it unless a permit says that the gateway gave it to the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dialled(pub SocketAddr);

/// One accepted connection whose group is known.
#[derive(Debug, Clone)]
pub struct Flow {
    /// Its name.
    pub id: FlowId,
    /// Whose it is.
    pub group: Arc<Group>,
    /// Where it came from.
    pub agent: AgentAddr,
    /// Where it wanted to go.
    pub dialled: Dialled,
}

impl Flow {
    /// The agent, for what is counted or remembered by agent.
    pub fn agent_key(&self) -> AgentKey {
        AgentKey::new(&self.group.name, self.agent.ip())
    }
}

/// Hands out the places that connections and requests take, so that neither one agent nor one
/// group, whose hosts may use many addresses, can take them all.
#[derive(Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    taken: Mutex<HashMap<Who, Arc<Tally>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Who {
    Agent(IpAddr),
    Group(GroupName),
}

#[derive(Debug, Default)]
struct Tally {
    connections: AtomicUsize,
    requests: AtomicUsize,
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
pub struct Share {
    places: Arc<Places>,
    taken: Arc<Taken>,
}

/// Where the requests of one connection are counted.
#[derive(Debug)]
pub struct Taken([(Who, Arc<Tally>); 2]);

/// The place of one request. Given back when dropped.
#[derive(Debug)]
pub struct RequestPlace(Arc<Taken>);

impl Places {
    /// `connections` places in all.
    pub fn new(connections: usize) -> Arc<Self> {
        Arc::new(Self {
            all: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            taken: Mutex::default(),
        })
    }

    /// Waits for a place. `None` only once the gateway closes.
    pub async fn take(&self) -> Option<Place> {
        let permit = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Place { _all: permit })
    }

    /// Counts a connection against its agent, of which `of_agent` may be open at once, and
    /// against its group, of which `of_group` may.
    pub fn share(
        self: &Arc<Self>,
        agent: IpAddr,
        group: &GroupName,
        (of_agent, of_group): (usize, usize),
    ) -> Result<Share, Reason> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let [agent, group] = [Who::Agent(agent), Who::Group(group.clone())];
        for (who, most) in [(&agent, of_agent), (&group, of_group)] {
            let open = taken.get(who).map_or(0, |tally| tally.connections.load(Relaxed));
            if open >= most {
                return Err(Reason::ConnectionLimit);
            }
        }
        let tallies = [agent, group].map(|who| {
            let tally = Arc::clone(taken.entry(who.clone()).or_default());
            tally.connections.fetch_add(1, Relaxed);
            (who, tally)
        });
        drop(taken);
        Ok(Share { places: Arc::clone(self), taken: Arc::new(Taken(tallies)) })
    }
}

impl Share {
    /// Where the connection's requests are counted.
    pub fn taken(&self) -> Arc<Taken> {
        Arc::clone(&self.taken)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for (who, tally) in &self.taken.0 {
            if tally.connections.fetch_sub(1, Relaxed) == 1 {
                taken.remove(who);
            }
        }
    }
}

impl Taken {
    /// Takes a place for one request. Each request under way holds a place in the audit's queue
    /// and buffers, which all agents share.
    pub fn request(self: &Arc<Self>) -> Result<RequestPlace, Reason> {
        // Counted first, so that whatever happens it is given back.
        for (_, tally) in &self.0 {
            tally.requests.fetch_add(1, Relaxed);
        }
        let place = RequestPlace(Arc::clone(self));
        let within = |(who, tally): &(Who, Arc<Tally>)| {
            tally.requests.load(Relaxed)
                <= match who {
                    Who::Agent(_) => AGENT_REQUESTS,
                    Who::Group(_) => GROUP_REQUESTS,
                }
        };
        if self.0.iter().all(within) { Ok(place) } else { Err(Reason::RateLimit) }
    }
}

impl Drop for RequestPlace {
    fn drop(&mut self) {
        for (_, tally) in &self.0.0 {
            tally.requests.fetch_sub(1, Relaxed);
        }
    }
}

/// Requests under way at once, of one agent.
const AGENT_REQUESTS: usize = 4_096;
/// Requests under way at once, of one group. Several groups fit into the audit's queue.
const GROUP_REQUESTS: usize = 16_384;

/// Accepts the next connection. Errors of single connections are passed over; where the machine is
/// out of descriptors or memory it waits before it tries again (accept(2), "Error handling").
pub async fn accept(listener: &TcpListener) -> (TcpStream, AgentAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, from)) => return (stream, AgentAddr(canonical(from))),
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "accept failed; waiting");
                tokio::time::sleep(BACK_OFF).await;
            }
        }
    }
}

/// An address with its IPv4-mapped form undone.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::Interrupted)
}

/// Pause after an accept that failed for want of something.
const BACK_OFF: Duration = Duration::from_millis(50);

impl FlowId {
    /// The next id. They begin anywhere, so that two runs of the daemon do not share them.
    pub fn next() -> Self {
        static NEXT: LazyLock<AtomicU64> =
            LazyLock::new(|| AtomicU64::new(RandomState::new().build_hasher().finish()));
        Self(NEXT.fetch_add(1, Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn within_a_64_there_is_one_agent() {
        let key = |text: &str| AgentKey::new(&GroupName("red".into()), text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::ffff:2"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("2001:db8::1").text(), "2001:db8::/64");
    }

    #[test]
    fn one_agent_cannot_take_anothers_places() {
        let places = Places::new(10);
        let group = GroupName("red".into());
        let share = |last| places.share(address(last), &group, (3, 10));
        let held: Vec<_> = (0..3).map(|_| share(1).unwrap()).collect();
        assert_eq!(share(1).err(), Some(Reason::ConnectionLimit));
        assert!(share(2).is_ok());
        drop(held);
        assert!(share(1).is_ok());
        assert!(places.taken.lock().unwrap().is_empty());
    }

    #[test]
    fn one_group_cannot_take_anothers_places_however_many_addresses_it_uses() {
        let places = Places::new(10);
        let [red, blue] = ["red", "blue"].map(|name| GroupName(name.into()));
        let _held: Vec<_> =
            (0..5).map(|last| places.share(address(last), &red, (3, 5)).unwrap()).collect();
        let refused = places.share(address(9), &red, (3, 5));
        assert_eq!(refused.err(), Some(Reason::ConnectionLimit));
        assert!(places.share(address(9), &blue, (3, 5)).is_ok());
    }

    #[test]
    fn one_agents_requests_are_bounded_over_all_its_connections() {
        let places = Places::new(10);
        let red = GroupName("red".into());
        let [one, two, other] =
            [1, 1, 2].map(|last| places.share(address(last), &red, (3, 5)).unwrap());
        let held: Vec<_> = (0..AGENT_REQUESTS).map(|_| one.taken().request().unwrap()).collect();
        assert_eq!(two.taken().request().err(), Some(Reason::RateLimit));
        assert!(other.taken().request().is_ok());
        drop(held);
        assert!(two.taken().request().is_ok());
    }

    #[test]
    fn flows_have_names_of_their_own() {
        assert_ne!(FlowId::next(), FlowId::next());
    }
}
