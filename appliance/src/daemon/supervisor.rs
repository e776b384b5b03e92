//! The messages to the service manager (`sd_notify(3)`, `systemd.service(5)`): that the daemon is
//! ready, reloads, stops, and that its loop still runs; its health in one line; and the sockets
//! that the manager keeps while the daemon restarts (`FDSTORE=1`). A service manager that asked for
//! none of it is told nothing.
//!
//! A file shows other programs, by its presence, that connections are carried.

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

/// The properties of the process that the service manager and the launcher set; read by the command
/// line.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// The socket of a service manager (`NOTIFY_SOCKET`, `sd_notify(3)`).
    pub notify_socket: Option<OsString>,
    /// The time within which the manager wants signs of life (`WATCHDOG_USEC`,
    /// `sd_watchdog_enabled(3)`).
    pub watchdog: Option<Duration>,
    /// The sockets that were passed (`LISTEN_FDS`, `sd_listen_fds(3)`).
    pub handed: Vec<OwnedFd>,
    /// The launcher, if there is one: the process that the service manager takes for the daemon.
    pub launched: Option<Launched>,
}

/// The service manager that started the daemon and wants to know its state.
#[derive(Debug)]
pub(super) struct Supervisor {
    socket: Option<UnixDatagram>,
    /// The file that exists while connections are carried.
    ready_file: Option<PathBuf>,
    /// Interval at which the manager wants a sign of life.
    pub(super) watchdog: Option<Duration>,
}

impl Supervisor {
    /// Connects to the service manager that these surroundings name.
    ///
    /// # Errors
    ///
    /// There is a manager, and it cannot be reached: it would wait in vain and restart a daemon
    /// that runs well.
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
        // A manager that does not read delays nobody for long.
        socket.set_write_timeout(Some(TIMEOUT))?;
        // Half of the time, so that a sign that comes late is still in time.
        let watchdog = surroundings.watchdog.map(|limit| limit / 2).filter(|half| !half.is_zero());
        Ok(Self { socket: Some(socket), ready_file, watchdog })
    }

    /// Says that the daemon carries connections, for the first time or after a reload. `state` as
    /// in [`is`](Self::is).
    pub(super) fn ready(&self, state: &str) {
        self.tell(&format!("READY=1\nSTATUS={state}"));
    }

    /// Sends the health in one line for `systemctl status`, and keeps the ready file as long as
    /// connections are carried.
    pub(super) fn is(&self, state: &str, open: bool) {
        self.tell(&format!("STATUS={state}"));
        let said = if open { self.write_ready_file() } else { self.remove_ready_file() };
        if let Err(error) = said {
            tracing::warn!(%error, "the file that says ready is not as it should be");
        }
    }

    /// Writes the ready file, which shows that connections are carried.
    pub(super) fn write_ready_file(&self) -> io::Result<()> {
        match &self.ready_file {
            Some(path) if !path.exists() => fs::write(path, "ready\n").map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            }),
            _ => Ok(()),
        }
    }

    /// Removes the ready file, which a daemon that was killed may have left.
    pub(super) fn remove_ready_file(&self) -> io::Result<()> {
        match &self.ready_file {
            Some(path) if path.exists() => fs::remove_file(path),
            _ => Ok(()),
        }
    }

    /// Says that the daemon reads a new configuration. [`ready`](Self::ready) follows, whether it
    /// is taken or not.
    pub(super) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        let microseconds = now.tv_sec.saturating_mul(1_000_000) + now.tv_nsec / 1_000;
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}"));
    }

    /// Says that the daemon accepts nothing new any more. The ready file is then the next daemon's.
    pub(super) fn stopping(&self) {
        self.tell("STOPPING=1");
        if let Err(error) = self.remove_ready_file() {
            tracing::warn!(%error, "the file that says ready is still there");
        }
    }

    /// Sends a sign of life.
    pub(super) fn alive(&self) {
        self.tell("WATCHDOG=1");
    }

    /// Gives the manager sockets to keep, under this name. It does not keep a socket twice.
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
    // The manager does not poll them: the reader of a socket finds its faults.
    let text = format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0");
    sendmsg(manager, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Time for the manager to take a message.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Sockets in one message; the kernel takes at most 253 (`SCM_MAX_FD`).
const MAX_SENT: usize = 64;
