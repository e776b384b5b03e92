//! The two sides of a connection, as both versions of HTTP need them.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use tokio::net::TcpStream;
use tokio_rustls::{client, server};

use super::{
    connection::Connection,
    trace::Trace,
    wire::{Counted, ReadAhead},
};
use crate::reason::Reason;

/// The agent's side, once TLS is up.
///
/// Boxed, as the upstream's is: each future that it is moved through would hold room for all of it.
pub(super) type AgentTls = Box<server::TlsStream<Counted>>;
/// The upstream's side.
pub(super) type UpstreamTls = Box<client::TlsStream<ReadAhead<TcpStream>>>;

/// Both sides of a connection whose upstream has been verified.
pub(super) struct Sides {
    /// The agent's side.
    pub(super) agent: AgentTls,
    /// The upstream's side.
    pub(super) upstream: UpstreamTls,
    /// Whether the agent's side is reset when it is dropped.
    pub(super) reset: Arc<AtomicBool>,
}

/// Records a message that never became a request.
pub(super) fn note_violation(connection: &Arc<Connection>, reason: Reason) -> Reason {
    match Trace::begin(connection, connection.exchanges.begin()) {
        Ok(trace) => {
            trace.refused(reason);
            reason
        }
        Err(unavailable) => unavailable,
    }
}

/// Time for an agent to take the last word of a connection.
pub(super) const LAST_WORD_TIME: Duration = Duration::from_secs(2);
