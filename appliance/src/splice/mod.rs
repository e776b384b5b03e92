//! Passes bytes both ways without reading them.
//!
//! Each side gets the bytes of the other: every byte, once, in order, and the end after them. When
//! a side ends, the other is told and may go on; a flow in which nothing moves for too long is
//! reset, and sooner when one side has ended. Any end other than by both sides, such as the
//! caller's dropping the flow, resets both connections, so that neither side can take a cut stream
//! for a whole one. When [`run`] returns, both sockets are closed.
//!
//! A flow starts by copying through memory, which is cheapest for short messages. While large
//! amounts arrive at once they go through a pipe with splice(2) and never enter this process. An
//! idle flow holds neither buffer nor pipe.
//!
//! splice(2) raises SIGPIPE where a socket is gone, so the process must ignore that signal, as
//! Rust's runtime makes it do.

mod buffer;
mod end;
mod pipe;
mod relay;

pub use end::{Side, SpliceEnd};

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::net::TcpStream;

use crate::{audit::Traffic, limits::Taken};
use relay::{Relay, RelayTimeouts};

/// Time for which a flow may stand still after one side has ended. Without this bound, a peer that
/// never closes would hold a socket in CLOSE_WAIT for the whole idle time.
pub const HALF_OPEN_TIME: Duration = Duration::from_secs(120);

/// When a flow is one that lasts. Sooner than a peer's silence, or bytes that it does not
/// acknowledge, mean anything.
const LASTING: Duration = Duration::from_secs(20);

/// Carries a flow until it ends. `from_agent_first` (the peeked bytes) goes to the upstream
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
    let bounds = RelayTimeouts { idle, half_open, lasting: LASTING };
    Relay::new(agent, upstream, traffic, bounds).counted(taken).run(from_agent_first).await
}

#[cfg(test)]
mod tests;
