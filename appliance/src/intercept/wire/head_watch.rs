//! Two things that the HTTP/2 library does not do for a head: a deadline, and a report of each that
//! it refuses.
//!
//! The watch reads frames as they pass (RFC 9113, section 4.1) and changes none. From the first
//! byte of the preface, of a header block, or of any frame that is not DATA, the whole of it must
//! arrive within `head_time`, however many frames and bytes it is cut into. Otherwise the stream
//! ends for the library, and the connection's owner tells the agent why. A body may take longer: it
//! is watched as messages, and not as frames.
//!
//! The library itself answers a head that it finds malformed or too large, and tells nobody. So it
//! receives heads one at a time: the bytes behind a head wait until the owner has asked whether a
//! request came of it.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::{
    super::exchanges::{Exchanges, Violation},
    frames::{Frame, Frames, HEADERS, RST_STREAM},
};
use crate::{limits::RateLimiter, locks::lock, reason::Reason};

/// Passes the bytes of `S` on, head by head, and ends the stream where a head takes too long.
pub(in crate::intercept) struct HeadWatch<S> {
    stream: S,
    read: Frames,
    written: Frames,
    /// The stream of the last header block that began, and of the last that opened one.
    block: u32,
    opened: u32,
    /// The bytes that were read behind a head.
    behind: Bytes,
    head_time: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    resets: RateLimiter,
    exchanges: Arc<Exchanges>,
    heads: Arc<Heads>,
}

/// The state of a connection's heads, which its watch and its owner share.
#[derive(Default)]
pub(in crate::intercept) struct Heads(Mutex<Judged>);

#[derive(Default)]
struct Judged {
    /// The head that the library has and of which the owner has not asked yet.
    whole: Option<Whole>,
    /// Whether a head has begun and is not whole.
    under_way: bool,
    /// Whether the agent was told that its further heads are ignored.
    closing: bool,
}

struct Whole {
    stream: u32,
    /// The number of exchanges that had begun before it.
    begun: u64,
    reply: Option<LibraryReply>,
}

/// The library's own reply to a head.
#[derive(Clone, Copy)]
enum LibraryReply {
    Answer,
    Reset(u32),
}

/// The library's verdict on a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::intercept) enum HeadVerdict {
    /// The head is a request, or came after the announcement of the connection's end.
    Passed,
    /// The library refused it.
    Refused(Reason),
}

impl Heads {
    /// Returns the verdict on the last head, given how many exchanges have begun; `None` where no
    /// head waits for one. From here on, the bytes behind the head are handed out.
    pub(in crate::intercept) fn settle(&self, begun: u64) -> Option<HeadVerdict> {
        let mut judged = self.judged();
        let head = judged.whole.take()?;
        let ignored = judged.closing && head.reply.is_none();
        Some(if begun > head.begun || ignored {
            HeadVerdict::Passed
        } else {
            HeadVerdict::Refused(head.reply.map_or(Reason::HttpMalformed, LibraryReply::reason))
        })
    }

    /// Whether a head has begun and is not whole.
    pub(in crate::intercept) fn under_way(&self) -> bool {
        self.judged().under_way
    }

    /// Notes that the connection was told to end: from here on the library ignores heads (RFC 9113,
    /// section 6.8), and they are no requests.
    pub(in crate::intercept) fn close(&self) {
        self.judged().closing = true;
    }

    fn waits(&self) -> bool {
        self.judged().whole.is_some()
    }

    /// Notes the reply to a head; only the first one counts.
    fn replied(&self, frame: Frame) {
        let reply = match frame.kind {
            RST_STREAM => LibraryReply::Reset(frame.code.unwrap_or_default()),
            HEADERS => LibraryReply::Answer,
            _ => return,
        };
        let mut judged = self.judged();
        if let Some(head) = judged.whole.as_mut().filter(|head| head.stream == frame.stream) {
            head.reply.get_or_insert(reply);
        }
    }

    fn judged(&self) -> MutexGuard<'_, Judged> {
        lock(&self.0)
    }
}

impl LibraryReply {
    const fn reason(self) -> Reason {
        match self {
            // 431 is the one answer that the library gives.
            Self::Answer => Reason::HeaderLimit,
            Self::Reset(REFUSED_STREAM) => Reason::RateLimit,
            Self::Reset(_) => Reason::HttpMalformed,
        }
    }
}

impl<S> HeadWatch<S> {
    /// Watches a stream from its first byte on. Its owner asks [`Heads`] after each poll of the
    /// library, and polls it again wherever a head had waited.
    pub(in crate::intercept) fn new(
        stream: S,
        head_time: Duration,
        exchanges: Arc<Exchanges>,
    ) -> (Self, Arc<Heads>) {
        let heads = Arc::<Heads>::default();
        let watch = Self {
            stream,
            read: Frames::of_client(),
            written: Frames::of_server(),
            block: 0,
            opened: 0,
            behind: Bytes::new(),
            head_time,
            deadline: None,
            resets: RateLimiter::new(Instant::now().into_std()),
            exchanges,
            heads: Arc::clone(&heads),
        };
        (watch, heads)
    }

    /// Returns how many of these bytes the library may have now: up to the end of a head that opens
    /// a stream, and up to the beginning of a header block, so that the library has dealt with all
    /// before it.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let (mut at, mut behind_a_frame) = (0, false);
        let mut clear = !self.read.in_head();
        while let Some(left) = bytes.get(at..).filter(|left| !left.is_empty()) {
            let begins = self.read.begins_block(left);
            if begins && behind_a_frame {
                break;
            }
            let (taken, frame) = self.read.step(left);
            at += taken;
            clear |= !self.read.in_head();
            behind_a_frame |= frame.is_some();
            self.count_reset(frame);
            if frame.is_some_and(|frame| self.opens(frame)) {
                break;
            }
        }
        // A whole head has no deadline any more; one that has begun has a deadline that counts from
        // its own beginning.
        if clear {
            self.deadline = None;
        }
        self.heads.judged().under_way = self.read.in_block();
        at
    }

    /// Counts resets. A stream that is opened and reset at once costs its agent next to nothing,
    /// and the gateway a request, and the library counts only those that it has not handed out.
    fn count_reset(&mut self, frame: Option<Frame>) {
        let is_reset = frame.is_some_and(|frame| frame.kind == RST_STREAM);
        let now = Instant::now().into_std();
        if is_reset && !self.resets.take(RESETS_A_SECOND, RESETS_AT_ONCE, now) {
            self.exchanges.break_rule(Violation { reason: Reason::RateLimit, at_head: true });
        }
    }

    /// Whether the frame completes a head that opens a stream, which then waits for the owner's
    /// question.
    fn opens(&mut self, frame: Frame) -> bool {
        if frame.kind == HEADERS {
            self.block = frame.stream;
        }
        let opens = frame.ends_block() && self.block > self.opened;
        if opens {
            self.opened = self.block;
            let whole = Whole { stream: self.block, begun: self.exchanges.begun(), reply: None };
            self.heads.judged().whole = Some(whole);
        }
        opens
    }

    fn wrote(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (taken, frame) = self.written.step(bytes);
            bytes = bytes.get(taken..).unwrap_or_default();
            if let Some(frame) = frame {
                self.heads.replied(frame);
            }
        }
    }

    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.read.in_head() {
            return Poll::Pending;
        }
        let head_time = self.head_time;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(head_time)));
        if deadline.as_mut().poll(cx).is_ready() || deadline.deadline() <= Instant::now() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn give_behind(&mut self, out: &mut ReadBuf<'_>) {
        let behind = self.behind.clone();
        let now = behind.get(..out.remaining()).unwrap_or(&behind);
        let passed = self.pass(now);
        out.put_slice(now.get(..passed).unwrap_or_default());
        self.behind.advance(passed);
        if self.behind.is_empty() {
            self.behind = Bytes::new();
        }
    }
}

impl<S: AsyncRead + Unpin> HeadWatch<S> {
    fn poll_new(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, out))?;
        let new = out.filled().get(before..).unwrap_or_default();
        let passed = self.pass(new);
        self.behind = Bytes::copy_from_slice(new.get(passed..).unwrap_or_default());
        out.set_filled(before + passed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeadWatch<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let watch = self.get_mut();
        if watch.heads.waits() {
            // The owner asks for the verdict and polls again.
            return Poll::Pending;
        }
        let read = if watch.behind.is_empty() {
            watch.poll_new(cx, out)
        } else {
            watch.give_behind(out);
            Poll::Ready(Ok(()))
        };
        if watch.poll_late(cx).is_ready() {
            let violation = Violation { reason: Reason::HttpTimeout, at_head: true };
            watch.exchanges.break_rule(violation);
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if watch.exchanges.violation().is_some_and(|it| it.reason == Reason::RateLimit) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeadWatch<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let watch = self.get_mut();
        let written = ready!(Pin::new(&mut watch.stream).poll_write(cx, bytes))?;
        watch.wrote(bytes.get(..written).unwrap_or_default());
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let watch = self.get_mut();
        let written = ready!(Pin::new(&mut watch.stream).poll_write_vectored(cx, slices))?;
        slices.iter().fold(written, |left, slice| {
            let (now, _) = slice.split_at_checked(left).unwrap_or((slice, &[]));
            watch.wrote(now);
            left - now.len()
        });
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The code for a stream that the library has no room for (RFC 9113, section 7).
const REFUSED_STREAM: u32 = 7;

/// Streams that an agent may reset on a connection, each second and at once. A client that gives up
/// half of its open streams stays below; one that goes beyond has to connect again.
const RESETS_A_SECOND: u32 = 10;
const RESETS_AT_ONCE: u32 = 50;

#[cfg(test)]
mod tests;
