//! A permit before every accept, then an identity for what was accepted.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};

use crate::{policy::Group, reason::Reason};

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

/// The address and port that the agent dialled, IPv4-mapped forms undone. It is recorded and
/// compared; nothing is ever connected to it.
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

/// Hands out the places that connections take, so that one agent cannot take them all.
#[derive(Debug)]
pub struct Places {
    all: Arc<Semaphore>,
    agents: Mutex<HashMap<IpAddr, usize>>,
}

/// A place for one connection, whoever it will be from. Taken before `accept`, so that a gateway
/// without places leaves connections to the kernel's queue instead of to EMFILE.
#[derive(Debug)]
pub struct Place {
    _all: OwnedSemaphorePermit,
}

/// An agent's share of the places. Given back when dropped.
#[derive(Debug)]
pub struct AgentPlace {
    places: Arc<Places>,
    agent: IpAddr,
}

impl Places {
    /// `connections` places in all.
    pub fn new(connections: usize) -> Arc<Self> {
        Arc::new(Self {
            all: Arc::new(Semaphore::new(connections.min(Semaphore::MAX_PERMITS))),
            agents: Mutex::default(),
        })
    }

    /// Waits for a place. `None` only once the gateway closes.
    pub async fn take(&self) -> Option<Place> {
        let permit = Arc::clone(&self.all).acquire_owned().await.ok()?;
        Some(Place { _all: permit })
    }

    /// Counts a connection against its agent, of which `most` may be open at once.
    pub fn share(self: &Arc<Self>, agent: IpAddr, most: usize) -> Result<AgentPlace, Reason> {
        let mut agents = self.agents.lock().unwrap_or_else(PoisonError::into_inner);
        let open = agents.entry(agent).or_insert(0);
        if *open >= most {
            return Err(Reason::ConnectionLimit);
        }
        *open += 1;
        Ok(AgentPlace { places: Arc::clone(self), agent })
    }
}

impl Drop for AgentPlace {
    fn drop(&mut self) {
        let mut agents = self.places.agents.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = agents.get_mut(&self.agent) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                agents.remove(&self.agent);
            }
        }
    }
}

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

    #[test]
    fn one_agent_cannot_take_anothers_places() {
        let places = Places::new(10);
        let greedy: IpAddr = "192.0.2.1".parse().unwrap();
        let held: Vec<_> = (0..3).map(|_| places.share(greedy, 3).unwrap()).collect();
        assert_eq!(places.share(greedy, 3).err(), Some(Reason::ConnectionLimit));
        assert!(places.share("192.0.2.2".parse().unwrap(), 3).is_ok());
        drop(held);
        assert!(places.share(greedy, 3).is_ok());
        assert!(places.agents.lock().unwrap().is_empty());
    }

    #[test]
    fn flows_have_names_of_their_own() {
        assert_ne!(FlowId::next(), FlowId::next());
    }
}
