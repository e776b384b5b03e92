//! Pipes for splice(2), shared by all flows of a thread.
//!
//! A direction holds a pipe only while bytes are in it. A pipe with bytes of one flow never reaches
//! another: it is closed. The process has at most [`MAX_PIPES`]; where no further one is available,
//! by this bound or the kernel's, the caller copies instead.

use std::{
    cell::RefCell,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustix::{
    fd::{AsFd, OwnedFd},
    pipe::{PipeFlags, SpliceFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with, splice},
};

use crate::policy::Limits;

/// A pipe on loan.
///
/// It is filled only when it is empty, and the caller empties it before filling it again. So a
/// `WouldBlock` of [`Pipe::fill`] means that the socket is empty and never that the pipe is full;
/// splice(2) does not tell the two apart.
pub(super) struct Pipe {
    ends: Arc<Ends>,
    held: usize,
}

struct Ends {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    _slot: ProcessPipe,
}

impl Pipe {
    /// Returns an empty pipe, if one is available.
    pub(super) fn take() -> Option<Self> {
        let free = FREE.try_with(|free| free.borrow_mut().pop()).ok().flatten();
        let ends = match free {
            Some(ends) => ends,
            None => Arc::new(Ends::open()?),
        };
        Some(Self { ends, held: 0 })
    }

    /// Returns the number of bytes in the pipe.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Returns the number of free pipes of this thread.
    #[cfg(test)]
    pub(super) fn free() -> usize {
        FREE.with(|free| free.borrow().len())
    }

    /// Moves the bytes that `socket` has received into the empty pipe; 0 means the stream's end.
    pub(super) fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        debug_assert_eq!(self.held, 0);
        let moved = splice(socket, None, &self.ends.write, None, self.ends.capacity, FLAGS)?;
        self.held = moved;
        Ok(moved)
    }

    /// Moves bytes from the pipe to `socket`.
    pub(super) fn drain(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let moved = splice(&self.ends.read, None, socket, None, self.held, FLAGS)?;
        self.held = self.held.saturating_sub(moved);
        Ok(moved)
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if self.held > 0 {
            return;
        }
        let _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < MAX_FREE {
                free.push(Arc::clone(&self.ends));
            }
        });
    }
}

impl Ends {
    fn open() -> Option<Self> {
        let slot = ProcessPipe::take()?;
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
        let grown = SIZES.iter().find_map(|&size| fcntl_setpipe_size(&write, size).ok());
        let capacity = grown.or_else(|| fcntl_getpipe_size(&write).ok())?;
        // Beyond the soft limit of pipe pages the kernel makes pipes of two pages (pipe(7)).
        if capacity < MIN_BYTES {
            return None;
        }
        Some(Self { read, write, capacity, _slot: slot })
    }
}

/// A slot of the [`MAX_PIPES`].
struct ProcessPipe;

impl ProcessPipe {
    fn take() -> Option<Self> {
        let room = |open: usize| (open < MAX_PIPES).then_some(open + 1);
        OPEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).ok().map(|_| Self)
    }
}

impl Drop for ProcessPipe {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// Capacities to ask for, best first. 1 MiB halves the cost of a byte against 64 KiB; it is also
/// the default of `fs.pipe-max-size`, above which the kernel refuses.
const SIZES: [usize; 2] = [1024 * 1024, 256 * 1024];

/// Least useful capacity. Below it, copying is as cheap.
const MIN_BYTES: usize = 64 * 1024;

/// Most pipes of the process. Full, they pin 128 MiB.
const MAX_PIPES: usize = Limits::PIPES;

/// Most free pipes of one thread.
const MAX_FREE: usize = 8;

static OPEN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static FREE: RefCell<Vec<Arc<Ends>>> = const { RefCell::new(Vec::new()) };
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixStream,
    };

    use super::*;

    /// Returns a socket with `bytes` to be received.
    fn socket_with(bytes: &[u8]) -> UnixStream {
        let (mut from, to) = UnixStream::pair().expect("a pair");
        from.write_all(bytes).expect("written");
        to.set_nonblocking(true).expect("set");
        to
    }

    #[test]
    fn an_empty_pipe_is_reused_and_a_filled_one_never() {
        drop(Pipe::take().expect("a pipe"));
        assert_eq!(Pipe::free(), 1);
        let mut pipe = Pipe::take().expect("a pipe");
        assert_eq!(Pipe::free(), 0);
        assert_eq!(pipe.fill(socket_with(b"of another flow")).expect("filled"), 15);
        drop(pipe);
        assert_eq!(Pipe::free(), 0);
    }

    #[test]
    fn bytes_go_through_and_an_empty_socket_would_block() {
        let mut pipe = Pipe::take().expect("a pipe");
        let (source, (sink, mut far)) =
            (socket_with(b"hello"), UnixStream::pair().expect("a pair"));
        assert_eq!(pipe.fill(&source).expect("filled"), 5);
        assert_eq!(pipe.drain(&sink).expect("drained"), 5);
        assert_eq!(pipe.held(), 0);
        let mut room = [0; 5];
        far.read_exact(&mut room).expect("read");
        assert_eq!(&room, b"hello");
        // The far end of `source` is gone, so the stream ends and does not wait.
        assert_eq!(pipe.fill(&source).expect("filled"), 0);
        far.set_nonblocking(true).expect("set");
        assert_eq!(pipe.fill(&far).expect_err("empty").kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn there_is_an_end_to_pipes() {
        // Other tests of this process may hold some.
        let pipes: Vec<Pipe> = std::iter::from_fn(Pipe::take).take(MAX_PIPES + 1).collect();
        assert!(pipes.len() <= MAX_PIPES);
        let capacity = pipes.iter().map(|pipe| pipe.ends.capacity).min();
        assert!(capacity.is_none_or(|bytes| bytes >= MIN_BYTES));
        drop(pipes);
        assert_eq!(Pipe::free(), MAX_FREE);
    }
}
