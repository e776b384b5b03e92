//! What the service manager is told (`sd_notify(3)`, `systemd.service(5)`): that the daemon is
//! ready, reloads, stops, and still goes round. Whoever asked for none of it is told nothing.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

use super::Surroundings;

/// Whoever started the daemon and wants to know how it is.
#[derive(Debug)]
pub(super) struct Supervisor {
    socket: Option<UnixDatagram>,
    /// How often it wants a sign of life.
    pub(super) watchdog: Option<Duration>,
}

impl Supervisor {
    /// The one that these surroundings name.
    ///
    /// # Errors
    ///
    /// Where there is one and it cannot be spoken to: it would wait in vain and start again what
    /// runs well.
    pub(super) fn of(surroundings: &Surroundings) -> io::Result<Self> {
        let Some(path) = &surroundings.notify_socket else {
            return Ok(Self { socket: None, watchdog: None });
        };
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(path)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        socket.set_nonblocking(true)?;
        // Half of it, so that one that is late is still in time.
        let watchdog = surroundings.watchdog.map(|limit| limit / 2).filter(|half| !half.is_zero());
        Ok(Self { socket: Some(socket), watchdog })
    }

    /// It carries connections, for the first time or after a reload.
    pub(super) fn ready(&self) {
        self.tell("READY=1");
    }

    /// It takes a new configuration; [`ready`](Self::ready) follows, taken or not.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = now.tv_sec.saturating_mul(1_000_000) + now.tv_nsec / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    /// It takes nothing new any more.
    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1");
    }

    /// It goes round.
    pub(super) fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    fn tell(&self, state: &str) {
        let sent = self.socket.as_ref().map(|socket| socket.send(state.as_bytes()));
        if let Some(Err(error)) = sent {
            tracing::warn!(%error, "the service manager cannot be told");
        }
    }
}
