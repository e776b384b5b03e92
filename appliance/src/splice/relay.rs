//! Two directions in one task: the loop that moves bytes, and the timer that ends it.

use std::{
    future::poll_fn,
    io, mem,
    ops::Range,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use super::{
    buffer::Buffer,
    end::{Side, SpliceEnd},
    pipe::Pipe,
};
use crate::{
    audit::Traffic,
    limits::{PipeSlot, Taken},
    net,
};

/// One side of a relay. It must not hold written bytes back until a flush.
pub(super) trait Leg: AsyncRead + AsyncWrite + Unpin {
    /// Returns the socket for splice(2), if the leg is nothing but a socket.
    fn socket(&self) -> Option<&TcpStream>;

    /// Makes it notice a peer that is gone.
    fn notice_absence(&self);

    /// Makes its closing reset the connection.
    fn abort(&self);
}

impl Leg for TcpStream {
    fn socket(&self) -> Option<&TcpStream> {
        Some(self)
    }

    fn notice_absence(&self) {
        // Fails only on a connection that is gone, which the next read tells.
        let _ = net::notice_absence(self);
    }

    fn abort(&self) {
        // This fails only on a socket that is no longer connected.
        let _ = self.set_zero_linger();
    }
}

/// Times for which nothing may move.
#[derive(Debug, Clone, Copy)]
pub(super) struct RelayTimeouts {
    /// The time while both sides may still send.
    pub(super) idle: Duration,
    /// The time when one side has ended.
    pub(super) half_open: Duration,
    /// The age from which a flow is one that lasts.
    pub(super) lasting: Duration,
}

/// A flow. Resets both sides when it is dropped before both have ended.
pub(super) struct Relay<'a, A: Leg, U: Leg> {
    agent: A,
    upstream: U,
    up: Direction,
    down: Direction,
    traffic: &'a Traffic,
    bounds: RelayTimeouts,
    last_moved: Instant,
    half_open: bool,
    lasts: bool,
    closed: bool,
}

impl<'a, A: Leg, U: Leg> Relay<'a, A, U> {
    pub(super) fn new(agent: A, upstream: U, traffic: &'a Traffic, bounds: RelayTimeouts) -> Self {
        Self {
            agent,
            upstream,
            up: Direction::default(),
            down: Direction::default(),
            traffic,
            bounds,
            last_moved: Instant::now(),
            half_open: false,
            lasts: false,
            closed: false,
        }
    }

    /// Counts the pipes that the relay uses.
    pub(super) fn counted(mut self, taken: &Arc<Taken>) -> Self {
        for direction in [&mut self.up, &mut self.down] {
            direction.pipes = Some(Arc::clone(taken));
        }
        self
    }

    pub(super) async fn run(mut self, from_agent_first: Bytes) -> SpliceEnd {
        self.up.held = Unwritten::First(from_agent_first);
        let mut timer = pin!(sleep(self.bounds.idle.min(self.bounds.lasting)));
        poll_fn(|cx| self.poll(cx, timer.as_mut())).await
    }

    fn poll(&mut self, cx: &mut Context<'_>, timer: Pin<&mut Sleep>) -> Poll<SpliceEnd> {
        self.up.closes = self.down.stage == DirectionStage::Ended;
        let up = self.up.poll(cx, &mut self.agent, &mut self.upstream, &self.traffic.from_agent);
        if let Poll::Ready(Err(broken)) = up {
            return Poll::Ready(broken.end(Side::Agent, Side::Upstream));
        }
        self.down.closes = self.up.stage == DirectionStage::Ended;
        let down = self.down.poll(cx, &mut self.upstream, &mut self.agent, &self.traffic.to_agent);
        if let Poll::Ready(Err(broken)) = down {
            return Poll::Ready(broken.end(Side::Upstream, Side::Agent));
        }
        if up.is_ready() && down.is_ready() {
            self.closed = true;
            return Poll::Ready(SpliceEnd::BothClosed);
        }
        self.poll_clock(cx, timer, up.is_ready() || down.is_ready())
    }

    /// Ends the flow when nothing has moved for too long. The timer first fires when the flow
    /// lasts, and is set again only when it fires, or when its bound becomes a shorter one: most
    /// flows never touch it.
    fn poll_clock(
        &mut self,
        cx: &mut Context<'_>,
        mut timer: Pin<&mut Sleep>,
        half_open: bool,
    ) -> Poll<SpliceEnd> {
        let moved = self.up.take_moved() | self.down.take_moved();
        if moved || half_open != self.half_open {
            self.last_moved = Instant::now();
        }
        let (bound, end) = if half_open {
            (self.bounds.half_open, SpliceEnd::HalfOpen)
        } else {
            (self.bounds.idle, SpliceEnd::Idle)
        };
        let deadline = self.last_moved + bound;
        if half_open && !self.half_open && deadline < timer.deadline() {
            timer.as_mut().reset(deadline);
        }
        self.half_open = half_open;
        while timer.as_mut().poll(cx).is_ready() {
            if deadline <= Instant::now() {
                return Poll::Ready(end);
            }
            self.watch_peers();
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

impl<A: Leg, U: Leg> Relay<'_, A, U> {
    fn watch_peers(&mut self) {
        if !mem::replace(&mut self.lasts, true) {
            self.agent.notice_absence();
            self.upstream.notice_absence();
        }
    }
}

impl<A: Leg, U: Leg> Drop for Relay<'_, A, U> {
    fn drop(&mut self) {
        if !self.closed {
            self.agent.abort();
            self.upstream.abort();
        }
    }
}

/// One direction of a flow.
#[derive(Default)]
struct Direction {
    stage: DirectionStage,
    held: Unwritten,
    /// Bytes that were delivered.
    delivered: u64,
    /// Bytes of the last read.
    last_read: usize,
    /// Whether a byte was read or written since the last check.
    moved: bool,
    /// Whether the other direction has ended, so that the sink is closed when this one ends, and is
    /// told by that.
    closes: bool,
    /// Whether splice(2) does not work on these sockets.
    copy_only: bool,
    /// The share against which its pipes are counted, if any.
    pipes: Option<Arc<Taken>>,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum DirectionStage {
    #[default]
    Open,
    /// The source has ended; the sink is told once it has everything.
    Ending,
    Ended,
}

/// Bytes that were read and not yet written. Nothing is read while there are any.
#[derive(Default)]
enum Unwritten {
    #[default]
    Nothing,
    First(Bytes),
    Copied(Buffer, Range<usize>),
    Piped {
        pipe: Pipe,
        _slot: Option<PipeSlot>,
    },
}

/// The end of a direction that failed, and its error.
enum DirectionFailure {
    Source(io::Error),
    Sink(io::Error),
}

impl DirectionFailure {
    fn end(&self, source: Side, sink: Side) -> SpliceEnd {
        let (side, error) = match self {
            Self::Source(error) => (source, error),
            Self::Sink(error) => (sink, error),
        };
        match error.kind() {
            io::ErrorKind::TimedOut => SpliceEnd::TimedOut(side),
            _ => SpliceEnd::Reset(side),
        }
    }
}

impl Direction {
    fn take_moved(&mut self) -> bool {
        mem::take(&mut self.moved)
    }

    /// Moves bytes until there is nothing to move; is ready once the sink has been told of the end.
    /// Yields after [`POLL_BYTES`], so that one large flow does not starve others.
    fn poll<R: Leg, W: Leg>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &mut W,
        count: &AtomicU64,
    ) -> Poll<Result<(), DirectionFailure>> {
        let pause_at = self.delivered.saturating_add(POLL_BYTES);
        while self.stage == DirectionStage::Open {
            ready!(self.poll_write(cx, to, count)).map_err(DirectionFailure::Sink)?;
            if self.delivered >= pause_at {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if ready!(self.poll_read(cx, from, to)).map_err(DirectionFailure::Source)? == 0 {
                self.stage = DirectionStage::Ending;
            }
        }
        if self.stage == DirectionStage::Ending && self.closes {
            self.stage = DirectionStage::Ended;
        }
        if self.stage == DirectionStage::Ending {
            match ready!(Pin::new(to).poll_shutdown(cx)) {
                // The peer has reset since then: it has no use for an end, and nothing was lost.
                Err(error) if error.kind() != io::ErrorKind::NotConnected => {
                    return Poll::Ready(Err(DirectionFailure::Sink(error)));
                }
                _ => self.stage = DirectionStage::Ended,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Writes all bytes that are held.
    fn poll_write<W: Leg>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut W,
        count: &AtomicU64,
    ) -> Poll<io::Result<()>> {
        loop {
            let written = match &mut self.held {
                Unwritten::Nothing => return Poll::Ready(Ok(())),
                held if held.len() == 0 => {
                    *held = Unwritten::Nothing;
                    continue;
                }
                Unwritten::First(bytes) => {
                    let written = ready!(Pin::new(&mut *to).poll_write(cx, bytes))?;
                    bytes.advance(written.min(bytes.len()));
                    written
                }
                Unwritten::Copied(buffer, range) => {
                    let bytes = buffer.bytes().get(range.clone()).unwrap_or_default();
                    let written = ready!(Pin::new(&mut *to).poll_write(cx, bytes))?;
                    range.start += written;
                    written
                }
                Unwritten::Piped { pipe, .. } => {
                    let Some(socket) = to.socket() else { return Poll::Ready(Err(gone())) };
                    ready!(socket.poll_write_ready(cx))?;
                    match socket.try_io(Interest::WRITABLE, || pipe.drain(socket)) {
                        Err(error) if is_transient(&error) => continue,
                        result => result?,
                    }
                }
            };
            if written == 0 {
                return Poll::Ready(Err(gone()));
            }
            self.moved = true;
            self.delivered += written as u64;
            count.fetch_add(written as u64, Ordering::Relaxed);
        }
    }

    /// Reads when no bytes are held; 0 means the end.
    fn poll_read<R: Leg, W: Leg>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut R,
        to: &W,
    ) -> Poll<io::Result<usize>> {
        let bulk = self.delivered >= SPLICE_AFTER && self.last_read >= SPLICE_READ;
        let read = match from.socket() {
            Some(socket) if bulk && !self.copy_only && to.socket().is_some() => {
                match ready!(self.poll_splice(cx, socket))? {
                    Some(read) => read,
                    None => ready!(self.poll_copy(cx, from))?,
                }
            }
            _ => ready!(self.poll_copy(cx, from))?,
        };
        self.last_read = read;
        self.moved |= read > 0;
        Poll::Ready(Ok(read))
    }

    fn poll_copy<R: Leg>(&mut self, cx: &mut Context<'_>, from: &mut R) -> Poll<io::Result<usize>> {
        // The socket is asked first, so that waiting takes no buffer, not even for a moment.
        if let Some(socket) = from.socket() {
            ready!(socket.poll_read_ready(cx))?;
        }
        let mut buffer = Buffer::take();
        let mut room = ReadBuf::new(buffer.bytes_mut());
        ready!(Pin::new(from).poll_read(cx, &mut room))?;
        let read = room.filled().len();
        if read > 0 {
            self.held = Unwritten::Copied(buffer, 0..read);
        }
        Poll::Ready(Ok(read))
    }

    /// Reads through a pipe; returns `None` where that is not possible now.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
    ) -> Poll<io::Result<Option<usize>>> {
        loop {
            ready!(from.poll_read_ready(cx))?;
            let slot = match self.pipes.as_ref().map(Taken::pipe) {
                Some(None) => return Poll::Ready(Ok(None)),
                slot => slot.flatten(),
            };
            let Some(mut pipe) = Pipe::take() else { return Poll::Ready(Ok(None)) };
            match from.try_io(Interest::READABLE, || pipe.fill(from)) {
                Ok(0) => return Poll::Ready(Ok(Some(0))),
                Ok(read) => {
                    self.held = Unwritten::Piped { pipe, _slot: slot };
                    return Poll::Ready(Ok(Some(read)));
                }
                Err(error) if is_transient(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    self.copy_only = true;
                    return Poll::Ready(Ok(None));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Unwritten {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::First(bytes) => bytes.len(),
            Self::Copied(_, range) => range.len(),
            Self::Piped { pipe, .. } => pipe.held(),
        }
    }
}

/// Returns the error of a sink that accepts nothing, and will accept nothing later either.
fn gone() -> io::Error {
    io::ErrorKind::WriteZero.into()
}

fn is_transient(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// Bytes that one direction moves before others get their turn: about half a millisecond.
const POLL_BYTES: u64 = 2 * 1024 * 1024;

/// Bytes after which a direction may be spliced: most flows never carry so many.
const SPLICE_AFTER: u64 = 256 * 1024;

/// A read of fewer bytes is a message and not a bulk transfer, for which copying is cheaper.
const SPLICE_READ: usize = 8 * 1024;
