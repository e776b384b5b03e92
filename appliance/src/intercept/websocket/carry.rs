//! Both directions of a WebSocket, from the end of its handshake to its own.

use std::{
    future::poll_fn,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{
    io::{
        AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf, split,
    },
    time::timeout,
};

use super::{
    super::idle_timer::{Ended, IdleTimer},
    lane::{FrameFault, FrameSender, Passed, WebSocketLane, close_frame},
    switch::Begun,
};
use crate::{limits::Way, reason::Reason};

/// Both streams, each behind the bytes that were read of it already.
pub(in crate::intercept) struct WebSocketEnds<A, U> {
    /// The agent's stream.
    pub(in crate::intercept) agent: (A, Bytes),
    /// The upstream's stream.
    pub(in crate::intercept) upstream: (U, Bytes),
    /// Whether the agent's stream is reset when it is dropped.
    pub(in crate::intercept) reset: Arc<AtomicBool>,
}

/// The reason why a direction stopped.
#[derive(Debug, Clone, Copy)]
enum Stop {
    /// Its close frame passed.
    Closed,
    /// Its sender left without a close frame.
    Left,
    /// A stream broke.
    Broken,
    /// The gateway ends it.
    Cut(Cut),
}

/// The reason why the gateway ends a WebSocket, and the code (RFC 6455, section 7.4.1).
#[derive(Debug, Clone, Copy)]
struct Cut {
    code: u16,
    reason: Reason,
    /// Whether the upstream sent the cause.
    upstream: bool,
}

struct LaneRelay<R, W> {
    lane: WebSocketLane,
    read: ReadHalf<R>,
    out: Outlet<W>,
    /// Whether the upstream is the sender.
    upstream: bool,
    begun: Arc<dyn Begun>,
}

/// The stream that frames leave by. It remembers a frame under way, so that a last word never
/// stands inside a frame.
struct Outlet<W> {
    stream: WriteHalf<W>,
    waiting: BytesMut,
    leaving: Bytes,
    way: Way,
    begun: Arc<dyn Begun>,
}

/// Carries a WebSocket to its end. Returns how it ended, and the reason where the gateway ended it.
pub(in crate::intercept) async fn carry<A, U>(
    ends: WebSocketEnds<A, U>,
    begun: Arc<dyn Begun>,
    mut idle_timer: IdleTimer,
) -> (Ended, Option<Reason>)
where
    A: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let ((agent, early), (upstream, first)) = (ends.agent, ends.upstream);
    let (from_agent, to_agent) = split(agent);
    let (from_upstream, to_upstream) = split(upstream);
    let out = Outlet::new(to_upstream, Way::Out, &begun);
    let mut up = LaneRelay::new(FrameSender::Agent(new_key), early, (from_agent, out));
    let out = Outlet::new(to_agent, Way::Back, &begun);
    let mut down =
        LaneRelay::new(FrameSender::Upstream(begun.masks()), first, (from_upstream, out));
    let stops = run(&mut up, &mut down, &mut idle_timer).await;
    let (ended, cut) = judge(&stops);
    if ended == Some(Ended::Closed) {
        begun.complete();
    }
    if let Some(cut) = cut {
        begun.refused(cut.reason);
    }
    let heard = last_words(&mut up, &mut down, &stops, cut).await;
    ends.reset.store(!heard, Relaxed);
    (ended.unwrap_or(Ended::Broken), cut.map(|cut| cut.reason))
}

/// Carries both directions until they stop, and returns both ends, the agent's first. `None` stands
/// for a direction that the other's end has stopped, and for both where nothing moved for too long.
async fn run<A, U>(
    up: &mut LaneRelay<A, U>,
    down: &mut LaneRelay<U, A>,
    idle_timer: &mut IdleTimer,
) -> [Option<Stop>; 2]
where
    A: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (pin!(up.run()), pin!(down.run()));
    tokio::select! {
        stop = &mut up => [Some(stop), then(stop, down).await],
        stop = &mut down => [then(stop, up).await, Some(stop)],
        _ = poll_fn(|cx| idle_timer.poll_idle(cx)) => [None, None],
    }
}

/// Returns the end of the other direction, which has some time once one has ended.
async fn then(first: Stop, other: impl Future<Output = Stop>) -> Option<Stop> {
    match first {
        Stop::Closed => timeout(CLOSING_TIME, other).await.ok(),
        Stop::Left => timeout(LEAVING_TIME, other).await.ok(),
        Stop::Broken | Stop::Cut(_) => None,
    }
}

/// Returns how the WebSocket ended, and why where the gateway ended it.
fn judge(stops: &[Option<Stop>; 2]) -> (Option<Ended>, Option<Cut>) {
    let cut = stops.iter().find_map(|stop| match stop {
        Some(Stop::Cut(cut)) => Some(*cut),
        _ => None,
    });
    let closed = || stops.iter().any(|stop| matches!(stop, Some(Stop::Closed)));
    match stops {
        _ if cut.is_some() => (None, cut),
        [None, None] => (Some(Ended::Idle), None),
        _ if closed() => (Some(Ended::Closed), None),
        _ => (Some(Ended::Broken), None),
    }
}

/// Sends a close frame where none was sent, and closes both sides. Returns whether the agent closed
/// its own.
async fn last_words<A, U>(
    up: &mut LaneRelay<A, U>,
    down: &mut LaneRelay<U, A>,
    stops: &[Option<Stop>; 2],
    cut: Option<Cut>,
) -> bool
where
    A: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    let idle = matches!(stops, [None, None]);
    let broken = stops.iter().any(|stop| matches!(stop, Some(Stop::Broken)));
    if broken {
        return true;
    }
    let to_agent = match cut {
        Some(cut) => Some((cut.code, cut.reason.as_str())),
        None => idle.then_some((GOING_AWAY, "idle")),
    };
    // A side that is not at fault learns only that there is no more.
    let to_upstream = match cut {
        Some(cut) if cut.upstream => Some((cut.code, "")),
        _ => to_agent.map(|_| (GOING_AWAY, "")),
    };
    let to_agent = to_agent.map(|(code, word)| close_frame(code, word, None));
    let to_upstream =
        to_upstream.and_then(|(code, word)| Some(close_frame(code, word, Some(new_key()?))));
    let agent = async {
        down.out.finish(to_agent).await?;
        linger(&mut up.read).await
    };
    let upstream = up.out.finish(to_upstream);
    let (agent, _) = tokio::join!(
        timeout(LAST_WORD_TIME, agent),
        // The result does not depend on whether the upstream takes it.
        timeout(LAST_WORD_TIME, upstream),
    );
    matches!(agent, Ok(Ok(())))
}

/// Reads on for a while: closing a socket with unread bytes resets it, and a last word on its way
/// would be lost.
async fn linger<R: AsyncRead>(read: &mut ReadHalf<R>) -> io::Result<()> {
    let mut sink = [0; 4096];
    let mut left = LINGER_BYTES;
    while left > 0 {
        match read.read(&mut sink).await? {
            0 => break,
            bytes => left = left.saturating_sub(bytes),
        }
    }
    Ok(())
}

impl<R, W> LaneRelay<R, W>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    fn new(from: FrameSender, read_already: Bytes, (read, out): (ReadHalf<R>, Outlet<W>)) -> Self {
        let upstream = matches!(from, FrameSender::Upstream(_));
        let mut lane = WebSocketLane::new(from, Instant::now());
        lane.room().extend_from_slice(&read_already);
        let begun = Arc::clone(&out.begun);
        Self { lane, read, out, upstream, begun }
    }

    async fn run(&mut self) -> Stop {
        loop {
            match self.pass_all().await {
                Ok(None) => {}
                Ok(Some(stop)) | Err(stop) => return stop,
            }
            let room = self.lane.room();
            if room.is_empty() {
                // A silent connection keeps no room for a large frame.
                *room = BytesMut::new();
            }
            room.reserve(READ_BYTES);
            match self.read.read_buf(room).await {
                Ok(0) => {
                    // The other side hears of it; where that fails, the other side is gone too.
                    let _ = self.out.stream.shutdown().await;
                    return Stop::Left;
                }
                Ok(_) => {}
                Err(_) => return Stop::Broken,
            }
        }
    }

    /// Sends on everything that may pass: nothing that is here waits for the next read.
    async fn pass_all(&mut self) -> Result<Option<Stop>, Stop> {
        loop {
            self.renew_masks();
            let stop = match self.lane.next(Instant::now()) {
                Ok(Some(passed)) => self.note(passed)?,
                Ok(None) => {
                    self.out.drain().await?;
                    return Ok(None);
                }
                Err(fault) => Some(Stop::Cut(self.fault(fault))),
            };
            if stop.is_some() || self.out.waiting.len() >= BATCH {
                self.out.drain().await?;
            }
            if stop.is_some() {
                return Ok(stop);
            }
        }
    }

    fn renew_masks(&mut self) {
        if self.upstream
            && let Some(newer) = self.begun.newer_masks()
        {
            self.lane.renew(newer);
        }
    }

    /// Counts the frames that pass, and gives them to the outlet.
    fn note(&mut self, passed: Passed) -> Result<Option<Stop>, Stop> {
        self.begun.passed(self.out.way, &passed);
        let upstream = self.upstream;
        self.begun
            .near_misses(passed.near_misses)
            .map_err(|reason| Stop::Cut(Cut { code: POLICY, reason, upstream }))?;
        self.out.waiting.extend_from_slice(&passed.frames);
        Ok(passed.close.map(|_| Stop::Closed))
    }

    fn fault(&self, fault: FrameFault) -> Cut {
        let (code, reason) = match fault {
            FrameFault::Malformed => (PROTOCOL_ERROR, Reason::WebsocketMalformed),
            FrameFault::TooLarge => (TOO_LARGE, Reason::WebsocketLimit),
            FrameFault::TooMany => (POLICY, Reason::WebsocketLimit),
            FrameFault::Failed => (INTERNAL_ERROR, Reason::InternalError),
        };
        Cut { code, reason, upstream: self.upstream }
    }
}

impl<W: AsyncWrite + Unpin> Outlet<W> {
    fn new(stream: WriteHalf<W>, way: Way, begun: &Arc<dyn Begun>) -> Self {
        let begun = Arc::clone(begun);
        Self { stream, waiting: BytesMut::new(), leaving: Bytes::new(), way, begun }
    }

    /// Sends the waiting bytes, once there is room for them among those that the agent's bodies may
    /// hold.
    async fn drain(&mut self) -> Result<(), Stop> {
        if self.leaving.is_empty() && !self.waiting.is_empty() {
            let waiting = std::mem::take(&mut self.waiting).freeze();
            self.leaving = self.begun.taken().hold(self.way, waiting).await;
        }
        self.send().await.map_err(|_| Stop::Broken)
    }

    async fn send(&mut self) -> io::Result<()> {
        while !self.leaving.is_empty() {
            let written = self.stream.write(&self.leaving).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            self.leaving.advance(written);
        }
        // The bytes are counted for as long as they are held, and no longer.
        self.leaving = Bytes::new();
        self.stream.flush().await
    }

    /// Sends the rest of a frame that was begun, a last one, and the end of the stream.
    async fn finish(&mut self, last: Option<Vec<u8>>) -> io::Result<()> {
        self.send().await?;
        if let Some(last) = last {
            self.stream.write_all(&last).await?;
        }
        self.stream.shutdown().await
    }
}

/// Makes a key that nobody can foretell (RFC 6455, section 10.3).
fn new_key() -> Option<[u8; 4]> {
    let mut key = [0; 4];
    aws_lc_rs::rand::fill(&mut key).ok().map(|()| key)
}

const GOING_AWAY: u16 = 1001;
const PROTOCOL_ERROR: u16 = 1002;
const POLICY: u16 = 1008;
const TOO_LARGE: u16 = 1009;
const INTERNAL_ERROR: u16 = 1011;

/// Time for the close frame of one side once the other has sent its own.
const CLOSING_TIME: Duration = Duration::from_secs(10);
/// Time for frames under way once one side has left without a close frame: a WebSocket cannot be
/// half closed.
const LEAVING_TIME: Duration = Duration::from_secs(2);
/// Time for both sides to take a last word.
const LAST_WORD_TIME: Duration = Duration::from_secs(2);
/// Bytes that are read meanwhile, and thrown away.
const LINGER_BYTES: usize = 1024 * 1024;
/// Bytes of room that are made for one read: a TLS record.
const READ_BYTES: usize = 16 * 1024;
/// Bytes of frames that leave together while more are at hand.
const BATCH: usize = 64 * 1024;
