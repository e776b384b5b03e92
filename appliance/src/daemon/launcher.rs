//! The launcher: the process that a service manager takes for the daemon.
//!
//! A manager starts the next daemon when the main process of the old one has ended, but the old one
//! has connections that may finish. So the main process is this small one. It starts the daemon as
//! its child, passes signals on, and ends as soon as the child says that it holds nothing any more
//! that the next daemon needs. The child drains alone (`KillMode=process`, `systemd.kill(5)`).
//!
//! The launcher reads no configuration and holds no secret. Until the child has let go, the kernel
//! kills it when the launcher ends, however that happens.

use std::{
    ffi::OsString,
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::{net::UnixStream, process::ExitStatusExt},
    },
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::{
    io::fcntl_dupfd_cloexec,
    process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal},
    stdio::stdin,
};
use tokio::{
    io::AsyncReadExt,
    signal::unix::{self, SignalKind, signal},
};

/// The variable that tells the child of its launcher: the number of the launcher's process.
pub const LAUNCHER: &str = "CLOAKROOM_LAUNCHER";

/// Starts the program with these arguments, and stays until it lets go or ends. Returns the status
/// to exit with.
///
/// # Errors
///
/// The program cannot be started, or signals cannot be handled.
pub async fn launch(program: &Path, arguments: impl Iterator<Item = OsString>) -> io::Result<u8> {
    let mut signals = LauncherSignals::new()?;
    let (own, childs) = UnixStream::pair()?;
    own.set_nonblocking(true)?;
    let mut told = tokio::net::UnixStream::from_std(own)?;
    let mut child = Command::new(program)
        .args(arguments)
        .env(LAUNCHER, std::process::id().to_string())
        // These variables name this process, and are meant for the child.
        .env_remove("LISTEN_PID")
        .env_remove("WATCHDOG_PID")
        .stdin(Stdio::from(OwnedFd::from(childs)))
        .spawn()?;
    let mut stopping = false;
    let mut ending = false;
    loop {
        let signal = tokio::select! {
            Ok(LET_GO) = told.read_u8() => return Ok(0),
            signal = signals.next() => signal,
        };
        match signal {
            // A manager that made this process end sends its own signal all the same.
            Some(Signal::TERM) if ending => {}
            Some(signal) => {
                ending |= signal == Signal::INT;
                stopping |= ending || signal == Signal::TERM;
                hand_on(&child, signal);
            }
            None => {
                if let Some(status) = child.try_wait()? {
                    return Ok(exit(status, stopping));
                }
            }
        }
    }
}

fn hand_on(child: &Child, signal: Signal) {
    // A child that has ended needs no signal.
    let _ = kill_process(Pid::from_child(child), signal);
}

/// Returns the exit status as a shell does. A child that was told to stop before it listened to
/// signals has stopped.
fn exit(status: ExitStatus, stopping: bool) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(u8::MAX),
        (None, Some(signal)) if stopping && STOPS.map(Signal::as_raw).contains(&signal) => 0,
        (None, signal) => u8::try_from(128 + signal.unwrap_or_default()).unwrap_or(u8::MAX),
    }
}

const STOPS: [Signal; 2] = [Signal::TERM, Signal::INT];

/// The events that the launcher waits for.
struct LauncherSignals {
    stop: [unix::Signal; 2],
    reload: unix::Signal,
    /// The watchdog's signal: the child's loop is stuck.
    abort: unix::Signal,
    child: unix::Signal,
}

impl LauncherSignals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            stop: [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?],
            reload: signal(SignalKind::hangup())?,
            abort: signal(SignalKind::from_raw(Signal::ABORT.as_raw()))?,
            child: signal(SignalKind::child())?,
        })
    }

    /// Returns the signal to pass on; `None` where the child may have ended.
    async fn next(&mut self) -> Option<Signal> {
        let [terminate, interrupt] = &mut self.stop;
        tokio::select! {
            biased;
            // Read first: the manager sends SIGTERM right after the SIGINT of its unit's ExecStop=.
            _ = interrupt.recv() => Some(Signal::INT),
            _ = terminate.recv() => Some(Signal::TERM),
            _ = self.reload.recv() => Some(Signal::HUP),
            _ = self.abort.recv() => Some(Signal::KILL),
            _ = self.child.recv() => None,
        }
    }
}

/// The daemon's end of the launcher's socket.
#[derive(Debug)]
pub struct Launched(UnixStream);

impl Launched {
    /// Makes the kernel kill this process, from here on, when its launcher ends.
    ///
    /// # Errors
    ///
    /// The process `launcher` did not start this one, or its socket is not there.
    pub fn by(launcher: u32) -> io::Result<Self> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        let parent = getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
        if parent != Some(launcher) {
            return Err(io::Error::other("the process that started it is gone"));
        }
        let own = fcntl_dupfd_cloexec(stdin(), 3)?;
        Ok(Self(UnixStream::from(own)))
    }

    /// Ends the launcher; this process lives on without it.
    pub(super) fn let_go(mut self) -> io::Result<()> {
        set_parent_process_death_signal(None)?;
        self.0.write_all(&[LET_GO])
    }
}

/// The child's message that it holds nothing any more that the next daemon needs.
const LET_GO: u8 = 1;
