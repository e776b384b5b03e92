//! Writes that leave together.
//!
//! The HTTP/2 library flushes after nearly every frame, and each flush is a TLS record and a system
//! call of its own. Here a flush only notes that bytes wait; the connection's task sends them with
//! [`Flusher::poll`] once it has polled everything that may write. A write beyond [`FULL`] waits
//! for the stream like any other, so no more than that is ever held back.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, Weak},
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::locks::lock;

/// A stream whose writes wait for the task's [`Flusher`].
pub(in crate::intercept) struct Deferred<S>(Arc<Mutex<DeferredWrites<S>>>);

/// Sends the bytes that wait in a [`Deferred`]. Does not keep the stream open.
pub(in crate::intercept) struct Flusher<S>(Weak<Mutex<DeferredWrites<S>>>);

struct DeferredWrites<S> {
    stream: S,
    waiting: BytesMut,
}

impl<S> Deferred<S> {
    /// Returns a stream, and the flusher that sends its writes.
    pub(in crate::intercept) fn new(stream: S) -> (Self, Flusher<S>) {
        let held = Arc::new(Mutex::new(DeferredWrites { stream, waiting: BytesMut::new() }));
        let flusher = Flusher(Arc::downgrade(&held));
        (Self(held), flusher)
    }

    /// Locks the writes. The lock would be contended only if two tasks shared one connection.
    fn held(&self) -> MutexGuard<'_, DeferredWrites<S>> {
        lock(&self.0)
    }
}

impl<S: AsyncWrite + Unpin> Flusher<S> {
    /// Sends the bytes that wait. Where the stream takes no more now, it wakes the task when it
    /// does, and the task must call this again. A stream that broke tells its reader so.
    pub(in crate::intercept) fn poll(&self, cx: &mut Context<'_>) {
        let Some(held) = self.0.upgrade() else { return };
        let mut held = lock(&held);
        if !held.waiting.is_empty()
            && let Poll::Ready(Err(_)) = held.poll_send(cx)
        {
            held.waiting = BytesMut::new();
        }
    }
}

impl<S: AsyncWrite + Unpin> Flusher<S> {
    /// Sends these bytes behind those that wait, even where nothing else will write.
    pub(in crate::intercept) async fn say(&self, bytes: &[u8]) -> io::Result<()> {
        let held = self.0.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        let locked = || lock(&held);
        locked().waiting.extend_from_slice(bytes);
        poll_fn(|cx| locked().poll_send(cx)).await
    }
}

impl<S: AsyncWrite + Unpin> DeferredWrites<S> {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.waiting))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.waiting.advance(written);
        }
        // An idle connection holds no buffer.
        self.waiting = BytesMut::new();
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.waiting.len() >= FULL {
            ready!(self.poll_send(cx))?;
        }
        Poll::Ready(Ok(FULL - self.waiting.len()))
    }

    fn hold(&mut self, bytes: &[u8], room: usize) -> usize {
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.waiting.extend_from_slice(taken);
        taken.len()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Deferred<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.held().stream).poll_read(cx, out)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Deferred<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut held = self.held();
        let room = ready!(held.poll_room(cx))?;
        Poll::Ready(Ok(held.hold(bytes, room)))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut held = self.held();
        let room = ready!(held.poll_room(cx))?;
        let taken = slices.iter().fold(0, |taken, bytes| taken + held.hold(bytes, room - taken));
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut held = self.held();
        ready!(held.poll_send(cx))?;
        Pin::new(&mut held.stream).poll_shutdown(cx)
    }
}

/// Bytes that are held back at most: one full TLS record (RFC 8446, section 5.1).
const FULL: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn flushed_bytes_wait_for_the_flusher_and_leave_at_once() {
        let (near, mut far) = duplex(1024);
        let (mut deferred, flusher) = Deferred::new(near);
        for part in [&b"one "[..], b"two ", b"three"] {
            deferred.write_all(part).await.unwrap();
            deferred.flush().await.unwrap();
        }
        let mut room = [0; 64];
        let mut context = Context::from_waker(Waker::noop());
        let mut buffer = ReadBuf::new(&mut room);
        assert!(Pin::new(&mut far).poll_read(&mut context, &mut buffer).is_pending());
        flusher.poll(&mut context);
        assert_eq!(far.read(&mut room).await.unwrap(), 13);
        assert!(room.starts_with(b"one two three"));
    }

    #[tokio::test]
    async fn a_last_word_comes_behind_what_waits() {
        let (near, mut far) = duplex(8);
        let (mut deferred, flusher) = Deferred::new(near);
        deferred.write_all(b"what waits, ").await.unwrap();
        let mut room = [0; 21];
        let (said, read) = tokio::join!(flusher.say(b"goodbye.."), far.read_exact(&mut room));
        assert!(said.is_ok() && read.is_ok());
        assert_eq!(&room, b"what waits, goodbye..");
        drop(deferred);
        assert!(flusher.say(b"x").await.is_err());
    }

    #[tokio::test]
    async fn no_more_than_one_record_is_held_back() {
        let (near, mut far) = duplex(FULL);
        let (mut deferred, _flusher) = Deferred::new(near);
        let written = async {
            deferred.write_all(&[7; 10 * FULL]).await.unwrap();
            deferred.shutdown().await.unwrap();
        };
        let read = async {
            let mut all = Vec::new();
            far.read_to_end(&mut all).await.unwrap();
            all
        };
        let ((), all) = tokio::join!(written, read);
        assert_eq!(all, vec![7; 10 * FULL]);
    }

    #[tokio::test]
    async fn a_slow_reader_gets_every_byte_in_order() {
        let (near, mut far) = duplex(3);
        let (mut deferred, flusher) = Deferred::new(near);
        let sent: Vec<u8> = (0..=255).cycle().take(5_000).collect();
        let written = async {
            for chunk in sent.chunks(97) {
                let (one, two) = chunk.split_at(chunk.len() / 3);
                let slices = [io::IoSlice::new(one), io::IoSlice::new(two)];
                assert_eq!(deferred.write_vectored(&slices).await.unwrap(), chunk.len());
                poll_fn(|cx| {
                    flusher.poll(cx);
                    Poll::Ready(())
                })
                .await;
            }
            deferred.shutdown().await.unwrap();
        };
        let mut all = Vec::new();
        let (_, read) = tokio::join!(written, far.read_to_end(&mut all));
        read.unwrap();
        assert_eq!(all, sent);
    }

    #[tokio::test]
    async fn a_stream_that_is_gone_holds_nothing() {
        let (near, far) = duplex(8);
        let (mut deferred, flusher) = Deferred::new(near);
        deferred.write_all(b"lost").await.unwrap();
        drop(far);
        flusher.poll(&mut Context::from_waker(Waker::noop()));
        assert!(deferred.held().waiting.is_empty());
    }
}
