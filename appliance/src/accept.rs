//! A permit before every accept, then an identity for what was accepted.

mod agent;
mod agent_table;
mod fair;
mod flow_id;
mod places;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};

pub use self::{
    agent::{AgentKey, Pace},
    agent_table::{AgentTable, MAX_AGENTS},
    fair::{FairPlace, FairPlaces},
    flow_id::{FlowId, FlowIds},
    places::{
        OverRate, Place, Places, Rated, RequestPlace, Room, Share, Taken, Way, Windows, held,
    },
};
use crate::policy::Group;

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
    /// Where it got to, once it is there. All clones share it.
    pub reached: Arc<OnceLock<IpAddr>>,
}

impl Flow {
    /// The agent, for what is counted or remembered by agent.
    pub fn agent_key(&self) -> AgentKey {
        AgentKey::of(&self.group, self.agent.ip())
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

/// Closes with a reset instead of a FIN.
pub fn reset(stream: TcpStream) {
    // Where the option cannot be set the connection is closed all the same.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
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
