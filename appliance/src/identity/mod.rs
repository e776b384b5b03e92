//! The opener of a connection: its agent and group, where it came from and where it wanted to go.

mod agent;
mod flow_id;

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
};

pub use self::{
    agent::AgentKey,
    flow_id::{FlowId, FlowIds},
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
