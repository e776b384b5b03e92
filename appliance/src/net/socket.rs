//! Options of a TCP socket, its addresses, and its end by a reset.

use std::{io, net::SocketAddr, os::fd::AsFd, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Makes a socket notice a peer that is gone, and send small messages at once. Connections
/// have the options that their listener had when it accepted them.
///
/// # Errors
///
/// The kernel refuses an option; a connected or listening TCP socket accepts all of these.
pub fn harden(socket: &impl AsFd) -> io::Result<()> {
    send_at_once(socket)?;
    notice_absence(socket)
}

/// Makes a socket send small messages at once.
///
/// # Errors
///
/// As [`harden`].
pub fn send_at_once(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_tcp_nodelay(true)
}

/// Makes a socket notice a peer that is gone.
///
/// # Errors
///
/// As [`harden`].
pub fn notice_absence(socket: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(socket);
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

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn connections_have_what_their_listener_was_told() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(any).unwrap();
            harden(&listener).unwrap();
            let _peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let accepted = listener.accept().unwrap().0;
            let socket = SockRef::from(&accepted);
            assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_AFTER);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_EVERY);
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_TRIES);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
        }
    }
}
