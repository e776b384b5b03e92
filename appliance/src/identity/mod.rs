//! The identity of a connection: its agent and group, its source and the address that it dialled.

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

/// The address and port that a connection came from; IPv4-mapped forms are undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct AgentAddr(pub SocketAddr);

impl AgentAddr {
    /// Returns the agent's address, whatever port it used.
    pub fn ip(self) -> IpAddr {
        self.0.ip()
    }
}

/// The address and port that the agent dialled; IPv4-mapped forms are undone. It is recorded and
/// compared; the gateway connects to it only if a permit says that the gateway gave it to the
/// agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Dialled(pub SocketAddr);

/// One accepted connection whose group is known.
#[derive(Debug, Clone)]
pub struct Flow {
    /// Its id.
    pub id: FlowId,
    /// The group of its agent.
    pub group: Arc<Group>,
    /// Its source.
    pub agent: AgentAddr,
    /// The address and port that the agent dialled.
    pub dialled: Dialled,
    /// The upstream's address, once it is connected. All clones share it.
    pub reached: Arc<OnceLock<IpAddr>>,
}

impl Flow {
    /// Returns the agent, for what is counted or remembered by agent.
    pub fn agent_key(&self) -> AgentKey {
        AgentKey::of(&self.group, self.agent.ip())
    }
}
