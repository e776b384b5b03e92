//! The strict reader in front of hyper's HTTP/1 server: bytes pass once they have one meaning.
//!
//! A violation ends the stream for hyper; the connection's owner then takes the stream back and
//! tells the agent why. A head must be whole within a deadline that begins with its first byte.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::{
    super::exchanges::{Exchanges, Violation},
    framing::{Framing, TrailerRule},
};
use crate::{net::writes_go_straight_through, policy::Limits, reason::Reason};

/// Reads from `S` and lets through what [`Framing`] clears; writes go straight to `S`.
pub(in crate::intercept) struct Guard<S> {
    stream: S,
    framing: Framing,
    trailers: Arc<dyn TrailerRule + Send + Sync>,
    held: BytesMut,
    cleared: usize,
    head_time: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
    exchanges: Arc<Exchanges>,
}

impl<S> Guard<S> {
    /// Guards a stream from its first byte on.
    pub(in crate::intercept) fn new(
        stream: S,
        limits: &Limits,
        trailers: Arc<dyn TrailerRule + Send + Sync>,
        exchanges: Arc<Exchanges>,
    ) -> Self {
        Self {
            stream,
            framing: Framing::new(limits),
            trailers,
            held: BytesMut::new(),
            cleared: 0,
            head_time: limits.head_time,
            deadline: None,
            exchanges,
        }
    }

    /// Returns the stream, and the bytes that were read from it and passed to no reader.
    pub(in crate::intercept) fn into_parts(self) -> (S, BytesMut) {
        (self.stream, self.held)
    }

    /// Returns the stream, for a last word to the agent.
    pub(in crate::intercept) fn into_inner(self) -> S {
        self.stream
    }

    fn refuse(&self, reason: Reason) {
        self.exchanges.break_rule(Violation { reason, at_head: self.framing.at_head() });
    }

    /// Ends the stream for hyper, which then gives up the request under way. Waits until that is
    /// answered, unless that very request broke the rule.
    fn poll_end(&self, at_head: bool, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if at_head {
            ready!(self.exchanges.poll_none(cx));
        }
        Poll::Ready(Err(io::Error::other("refused")))
    }

    fn release(&mut self, out: &mut ReadBuf<'_>) -> bool {
        let bytes = self.cleared.min(out.remaining());
        if bytes == 0 {
            return false;
        }
        out.put_slice(self.held.get(..bytes).unwrap_or_default());
        self.held.advance(bytes);
        self.cleared -= bytes;
        if self.held.is_empty() && self.held.try_reclaim(KEPT_BYTES + 1) {
            self.held = BytesMut::new();
        }
        true
    }

    fn clear(&mut self) -> bool {
        if self.held.is_empty() {
            return false;
        }
        match self.framing.clear(&self.held, &*self.trailers) {
            Ok(bytes) => {
                self.cleared = bytes;
                if bytes > 0 {
                    self.deadline = None;
                }
                bytes > 0
            }
            Err(reason) => {
                self.refuse(reason);
                false
            }
        }
    }

    fn check_deadline(&mut self, cx: &mut Context<'_>) {
        if !self.framing.at_head() || self.held.is_empty() {
            return;
        }
        let head_time = self.head_time;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(head_time)));
        if deadline.as_mut().poll(cx).is_ready() || deadline.deadline() <= Instant::now() {
            self.refuse(Reason::HttpTimeout);
        }
    }
}

impl<S: AsyncRead + Unpin> Guard<S> {
    /// Reads a body of known length straight to the caller, because it needs no examination.
    fn poll_opaque(&mut self, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, out))?;
        self.framing.passed((out.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }

    /// Reads into memory of its own, so that an idle connection holds none for it.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut memory = [const { MaybeUninit::uninit() }; READ_BYTES];
        let mut room = ReadBuf::uninit(&mut memory);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut room))?;
        self.held.extend_from_slice(room.filled());
        Poll::Ready(Ok(room.filled().len()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guard<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let guard = self.get_mut();
        loop {
            if guard.release(out) || out.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            if guard.clear() {
                continue;
            }
            if let Some(violation) = guard.exchanges.violation() {
                return guard.poll_end(violation.at_head, cx);
            }
            if guard.held.is_empty() && guard.framing.opaque() >= out.remaining() as u64 {
                return guard.poll_opaque(cx, out);
            }
            match guard.poll_more(cx)? {
                Poll::Ready(0) => return Poll::Ready(Ok(())),
                Poll::Ready(_) => {}
                Poll::Pending => {
                    guard.check_deadline(cx);
                    return match guard.exchanges.violation() {
                        Some(violation) => guard.poll_end(violation.at_head, cx),
                        None => Poll::Pending,
                    };
                }
            }
        }
    }
}

writes_go_straight_through!(Guard, stream);

/// Bytes that a connection goes on holding room for: most heads are shorter.
const KEPT_BYTES: usize = 1024;
/// Bytes of one read.
const READ_BYTES: usize = 4 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderMap;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    struct Anything;

    impl TrailerRule for Anything {
        fn check(&self, _: &HeaderMap) -> Result<(), Reason> {
            Ok(())
        }
    }

    async fn through(stream: &'static [u8]) -> (Vec<u8>, Option<Reason>) {
        let (mut agent, gateway) = tokio::io::duplex(7);
        tokio::spawn(async move { agent.write_all(stream).await });
        let exchanges = Arc::<Exchanges>::default();
        let mut guard =
            Guard::new(gateway, &Limits::default(), Arc::new(Anything), Arc::clone(&exchanges));
        let mut read = Vec::new();
        let _ = guard.read_to_end(&mut read).await;
        (read, exchanges.violation().map(|violation| violation.reason))
    }

    #[tokio::test]
    async fn nothing_is_lost_or_added() {
        let stream = b"POST / HTTP/1.1\r\nContent-Length: 30\r\n\r\n012345678901234567890123456789GET / HTTP/1.1\r\n\r\n";
        assert_eq!(through(stream).await, (stream.to_vec(), None));
    }

    #[tokio::test]
    async fn what_is_refused_never_reaches_the_reader() {
        let stream =
            b"GET / HTTP/1.1\r\nA: b\r\n\r\nGET /2 HTTP/1.1\r\nB: c\nAuthorization: x\r\n\r\n";
        let (read, violation) = through(stream).await;
        assert_eq!(read, b"GET / HTTP/1.1\r\nA: b\r\n\r\n");
        assert_eq!(violation, Some(Reason::HttpMalformed));
    }

    #[tokio::test]
    async fn a_head_that_trickles_is_cut_at_its_deadline() {
        let limits = Limits { head_time: Duration::from_millis(200), ..Limits::default() };
        let (mut agent, gateway) = tokio::io::duplex(64);
        let trickle = tokio::spawn(async move {
            for byte in b"GET / HTTP/1.1\r\nHost: slow".iter().cycle().take(1000) {
                sleep(Duration::from_millis(20)).await;
                if agent.write_all(&[*byte]).await.is_err() {
                    return;
                }
            }
        });
        let exchanges = Arc::<Exchanges>::default();
        let mut guard = Guard::new(gateway, &limits, Arc::new(Anything), Arc::clone(&exchanges));
        let mut read = Vec::new();
        assert!(guard.read_to_end(&mut read).await.is_err());
        let violation = Violation { reason: Reason::HttpTimeout, at_head: true };
        assert_eq!(exchanges.violation(), Some(violation));
        assert_eq!(read, b"");
        drop(guard);
        trickle.await.unwrap();
    }
}
