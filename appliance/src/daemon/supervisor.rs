//! What the service manager is told (`sd_notify(3)`, `systemd.service(5)`): that the daemon is
//! ready, reloads, stops, and still goes round; in a line, how it is; and what it keeps while the
//! daemon restarts (`FDSTORE=1`). A service manager that asked for none of it is told nothing.
//!
//! A file says to others that connections are carried, by being there.

use std::{
    ffi::OsString,
    fs,
    io::{self, IoSlice},
    mem::MaybeUninit,
    os::{
        fd::{BorrowedFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg},
    time::{ClockId, clock_gettime},
};

use super::Launched;

/// The environment's word about the daemon's starter; read by the command line.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// The socket of a service manager (`NOTIFY_SOCKET`, `sd_notify(3)`).
    pub notify_socket: Option<OsString>,
    /// The time within which it wants signs of life (`WATCHDOG_USEC`, `sd_watchdog_enabled(3)`).
    pub watchdog: Option<Duration>,
    /// The sockets that were handed over (`LISTEN_FDS`, `sd_listen_fds(3)`).
    pub handed: Vec<OwnedFd>,
    /// Where it was launched: by a process that the service manager takes for the daemon.
    pub launched: Option<Launched>,
}

/// The starter of the daemon, which wants to know its state.
#[derive(Debug)]
pub(super) struct Supervisor {
    socket: Option<UnixDatagram>,
    /// There while connections are carried.
    ready_file: Option<PathBuf>,
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
    pub(super) fn of(surroundings: &Surroundings, ready_file: Option<&Path>) -> io::Result<Self> {
        let ready_file = ready_file.map(Path::to_owned);
        let Some(path) = &surroundings.notify_socket else {
            return Ok(Self { socket: None, ready_file, watchdog: None });
        };
        let address = match path.as_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(path)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // A manager that does not read holds up nobody for long.
        socket.set_write_timeout(Some(TIMEOUT))?;
        // Half of it, so that one that is late is still in time.
        let watchdog = surroundings.watchdog.map(|limit| limit / 2).filter(|half| !half.is_zero());
        Ok(Self { socket: Some(socket), ready_file, watchdog })
    }

    /// It carries connections, for the first time or after a reload. `state` as in
    /// [`is`](Self::is).
    pub(super) fn ready(&self, state: &str) {
        self.tell(&format!("READY=1\nSTATUS={state}"));
    }

    /// How it is: one line for `systemctl status`, and whether connections are carried.
    pub(super) fn is(&self, state: &str, open: bool) {
        self.tell(&format!("STATUS={state}"));
        let said = if open { self.write_ready_file() } else { self.remove_ready_file() };
        if let Err(error) = said {
            tracing::warn!(%error, "the file that says ready is not as it should be");
        }
    }

    /// Says that connections are carried to whoever looks at the file.
    pub(super) fn write_ready_file(&self) -> io::Result<()> {
        match &self.ready_file {
            Some(path) if !path.exists() => fs::write(path, "ready\n").map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            }),
            _ => Ok(()),
        }
    }

    /// The file says nothing, as where a daemon that was killed has left it.
    pub(super) fn remove_ready_file(&self) -> io::Result<()> {
        match &self.ready_file {
            Some(path) if path.exists() => fs::remove_file(path),
            _ => Ok(()),
        }
    }

    /// It takes a new configuration; [`ready`](Self::ready) follows, taken or not.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = now.tv_sec.saturating_mul(1_000_000) + now.tv_nsec / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    /// It takes nothing new any more. The file is the next daemon's to write.
    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1");
        if let Err(error) = self.remove_ready_file() {
            tracing::warn!(%error, "the file that says ready is still there");
        }
    }

    /// It goes round.
    pub(super) fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    /// Gives it sockets to keep, under this name. One that it keeps already it does not keep twice.
    pub(super) fn keep<'a>(&self, name: &str, sockets: impl Iterator<Item = BorrowedFd<'a>>) {
        let Some(manager) = &self.socket else { return };
        for some in sockets.collect::<Vec<_>>().chunks(MAX_SENT) {
            if let Err(error) = send(manager, name, some) {
                tracing::warn!(%error, "the service manager does not keep the sockets");
            }
        }
    }

    fn tell(&self, state: &str) {
        let sent = self.socket.as_ref().map(|socket| socket.send(state.as_bytes()));
        if let Some(Err(error)) = sent {
            tracing::warn!(%error, "the service manager cannot be told");
        }
    }
}

fn send(manager: &UnixDatagram, name: &str, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_SENT))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // Not polled: that something is wrong with a socket is for whoever reads it to find.
    let text = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
    sendmsg(manager, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Time for the manager to take a message.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Sockets in one message; the kernel takes at most 253 (`SCM_MAX_FD`).
const MAX_SENT: usize = 64;
