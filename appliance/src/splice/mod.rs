//! Bytes through, both ways, unread.
//!
//! Each side gets what the other sends: every byte, once, in order, and its end after them. A
//! side that ends is told to the other, which may go on; a flow in which nothing moves for too
//! long is reset, sooner when one side has ended. An end of a flow other than by both sides
//! ending it, the callers' dropping it included, resets both connections, so that neither side
//! can take a cut stream for a whole one. When [`run`] is over, both sockets are closed.
//!
//! A flow starts by copying through memory, which is cheapest for short messages. While large
//! amounts arrive at once they go through a pipe with splice(2) and never enter this process.
//! An idle flow holds neither buffer nor pipe.
//!
//! splice(2) raises SIGPIPE where a socket is gone, so the process must ignore that signal, as
//! Rust's runtime has it do.

mod buffer;
mod end;
mod pipe;
mod relay;

pub use end::{Side, SpliceEnd};

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::{audit::Traffic, limits::Taken};
use relay::{Bounds, Relay};

/// How long a flow of which one side has ended may stand still. Without this bound, a peer that
/// never closes would hold a socket in CLOSE_WAIT for the whole idle time.
pub const HALF_OPEN_TIME: Duration = Duration::from_secs(120);

/// When a flow is one that lasts. Sooner than a peer's silence, or bytes that it does not
/// acknowledge, mean anything.
const LASTING: Duration = Duration::from_secs(20);

/// Carries a flow until it ends. `from_agent_first` (what was peeked) goes to the upstream
/// before anything else. A flow that lasts makes both sockets
/// [notice a peer that is gone](crate::net::notice_absence): most are over before that could matter.
/// Pipes with bytes in them are counted as the agent's.
pub async fn run(
    agent: TcpStream,
    upstream: TcpStream,
    from_agent_first: Bytes,
    (traffic, taken): (&Traffic, &Arc<Taken>),
    idle: Duration,
) -> SpliceEnd {
    let half_open = HALF_OPEN_TIME.min(idle);
    let bounds = Bounds { idle, half_open, lasting: LASTING };
    Relay::new(agent, upstream, traffic, bounds).counted(taken).run(from_agent_first).await
}

#[cfg(test)]
mod tests;
