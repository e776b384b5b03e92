//! Accepts connections.

use std::{io, time::Duration};

use tokio::net::{TcpListener, TcpStream};

use crate::{identity::AgentAddr, net::canonical};

/// Accepts the next connection. Passes over errors of single connections; where the machine is out
/// of descriptors or memory, waits before it tries again (accept(2), "Error handling").
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

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(error.kind(), K::ConnectionAborted | K::ConnectionReset | K::Interrupted)
}

/// Pause after an accept that failed for lack of descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(50);
