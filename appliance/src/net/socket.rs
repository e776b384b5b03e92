//! Options of a TCP socket, its addresses, and its end by a reset.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Makes a socket notice a peer that is gone, and send small messages at once.
///
/// # Errors
///
/// The kernel refuses an option; on a connected TCP socket it accepts all of these.
pub fn harden(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_AFTER)
            .with_interval(KEEPALIVE_EVERY)
            .with_retries(KEEPALIVE_TRIES),
    )?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))
}

/// Closes with a reset instead of a FIN.
pub fn reset(stream: TcpStream) {
    // Where the option cannot be set, the connection is closed all the same.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}

/// Returns an address with its IPv4-mapped form undone.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Time after which a silent peer is probed; it is given up [`USER_TIMEOUT`] after its last answer.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
const KEEPALIVE_TRIES: u32 = 6;

/// Time for which sent data may stay unacknowledged (RFC 5482; tcp(7)). It also bounds how long a
/// living peer may keep its window shut, so it must not be short.
const USER_TIMEOUT: Duration = Duration::from_secs(180);
