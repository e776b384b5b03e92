//! A permit before every accept, then an identity for what was accepted.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::policy::Group;

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
