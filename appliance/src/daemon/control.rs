//! The control socket, through which root gives the running daemon orders.
//!
//! The socket is a path on this machine and on no network, with mode 0600, in a folder that nobody
//! else can write to. Its client must be root or the daemon's own user, according to the kernel
//! (`SO_PEERCRED`, `unix(7)`). One order for each connection, four connections at once.
//! of it (`SO_PEERCRED`, `unix(7)`). One order for each connection, four connections at once.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{FlockOperation, Mode, fchmod, flock};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::timeout,
};

use super::orders::Orders;
use crate::control::{EX_USAGE, Order, OrderReply};

/// The socket, bound and listening. Removed when dropped.
pub(super) struct Control {
    path: PathBuf,
    listener: UnixListener,
    /// Held as long as the daemon lives; the kernel releases it however the daemon dies.
    _lock: File,
}

impl Control {
    /// Binds the socket, and replaces one that a dead daemon has left.
    ///
    /// # Errors
    ///
    /// A living daemon has the path, somebody else could take the socket away, or something that is
    /// no socket stands at the path.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        own_folder(folder.unwrap_or(Path::new(".")))?;
        let lock = lock(path)?;
        remove_stale(path)?;
        let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None)?;
        // The file takes the socket's mode, so that it never has another one.
        fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
        socket.bind(&SockAddr::unix(path)?)?;
        socket.listen(MAX_WAITING)?;
        let listener = UnixListener::from_std(socket.into())?;
        Ok(Self { path: path.to_owned(), listener, _lock: lock })
    }

    /// Executes orders until `closing`.
    pub(super) async fn serve(self, orders: Orders, closing: impl Future<Output = ()>) {
        let mut open = JoinSet::new();
        let mut closing = std::pin::pin!(closing);
        loop {
            tokio::select! {
                () = &mut closing => return,
                Some(_) = open.join_next() => {}
                accepted = self.listener.accept(), if open.len() < MAX_OPEN => match accepted {
                    Ok((stream, _)) => {
                        open.spawn(answer(stream, orders.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "accept failed on the control socket; waiting");
                        tokio::time::sleep(BACK_OFF).await;
                    }
                },
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // The next daemon replaces a socket that is left behind.
        let _ = fs::remove_file(&self.path);
    }
}

async fn answer(mut stream: UnixStream, orders: Orders) {
    let Ok(peer) = stream.peer_cred() else { return };
    if peer.uid() != 0 && peer.uid() != rustix::process::geteuid().as_raw() {
        return tracing::warn!(uid = peer.uid(), "refused at the control socket");
    }
    let answer = match timeout(DEADLINE, read(&mut stream)).await {
        Ok(Ok(line)) => match Order::parse(&line) {
            Some(order) => orders.carry_out(order, peer.uid()).await,
            None => OrderReply::failed(EX_USAGE, "no such order"),
        },
        // The client is gone, or does not speak this protocol.
        Ok(Err(_)) | Err(_) => return,
    };
    let mut line = serde_json::to_vec(&answer).unwrap_or_default();
    line.push(b'\n');
    // An executed order stays executed, whether or not the client waits for the answer.
    let _ = timeout(DEADLINE, stream.write_all(&line)).await;
}

/// Reads one line, without its end.
async fn read(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut bounded = stream.take(Order::MAX_BYTES as u64);
    while line.last() != Some(&b'\n') {
        if bounded.read_buf(&mut line).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    line.pop();
    Ok(line)
}

fn own_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let meta = fs::metadata(folder)?;
    let own = [0, rustix::process::geteuid().as_raw()].contains(&meta.uid());
    if own && meta.mode() & 0o022 == 0 {
        return Ok(());
    }
    Err(io::Error::other(
        "its folder must belong to root or to the daemon's user, and nobody else may write to it",
    ))
}

/// Takes the lock of the socket. A process that holds it is alive and owns the socket.
fn lock(path: &Path) -> io::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let lock =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(name)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon uses it"))
        }
        locked => Ok(locked.map(|()| lock)?),
    }
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "something that is not a socket stands in its place",
        )),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Time for an order to arrive, and for its answer to be taken.
const DEADLINE: Duration = Duration::from_secs(5);
/// Orders at once.
const MAX_OPEN: usize = 4;
/// Connections that wait to be accepted.
const MAX_WAITING: i32 = 16;
/// Pause after an accept that failed for lack of descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(50);
