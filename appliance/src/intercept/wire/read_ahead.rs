//! Fewer and larger reads below TLS.
//!
//! rustls asks for 4 KiB at a time, a quarter of a record. Here a read takes all that the socket
//! has, up to [`AT_ONCE`], through a buffer that all connections of a thread share; only bytes that
//! were not asked for yet are kept, so that an idle connection holds nothing.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, ReadBuf};

use crate::net::writes_go_straight_through;

/// Reads more than its reader asks for; writes go straight through.
pub(in crate::intercept) struct ReadAhead<S> {
    stream: S,
    ahead: Bytes,
}

impl<S> ReadAhead<S> {
    /// Wraps a stream of which nothing was read.
    pub(in crate::intercept) fn new(stream: S) -> Self {
        Self { stream, ahead: Bytes::new() }
    }

    /// Returns the stream below, for its options.
    pub(in crate::intercept) fn get_ref(&self) -> &S {
        &self.stream
    }
}

impl<S: AsyncRead + Unpin> ReadAhead<S> {
    fn poll_shared(
        &mut self,
        cx: &mut Context<'_>,
        shared: &mut [u8],
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut room = ReadBuf::new(shared);
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut room))?;
        let read = room.filled();
        let (now, later) = read.split_at_checked(out.remaining()).unwrap_or((read, &[]));
        out.put_slice(now);
        self.ahead = Bytes::copy_from_slice(later);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for ReadAhead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            // The buffer is borrowed only here, where nothing can call back into it.
            return SHARED.with_borrow_mut(|shared| self.poll_shared(cx, shared, out));
        }
        let now = self.ahead.len().min(out.remaining());
        out.put_slice(self.ahead.get(..now).unwrap_or_default());
        self.ahead.advance(now);
        if self.ahead.is_empty() {
            self.ahead = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

writes_go_straight_through!(ReadAhead, stream);

/// Bytes of one read: two records.
const AT_ONCE: usize = 32 * 1024;

thread_local! {
    /// Holds ciphertext only, and only during a read.
    static SHARED: RefCell<Box<[u8]>> = RefCell::new(vec![0; AT_ONCE].into());
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    use super::*;

    #[tokio::test]
    async fn every_byte_comes_once_in_order_however_little_is_read() {
        let sent: Vec<u8> = (0..=255).cycle().take(100_000).collect();
        for asked in [1, 5, 4096, 40_000] {
            let (near, mut far) = duplex(70_000);
            let mut ahead = ReadAhead::new(near);
            let write = async {
                far.write_all(&sent).await.unwrap();
                far.shutdown().await.unwrap();
            };
            let read = async {
                let (mut all, mut room) = (Vec::new(), vec![0; asked]);
                while let Ok(bytes @ 1..) = ahead.read(&mut room).await {
                    all.extend_from_slice(&room[..bytes]);
                }
                all
            };
            let ((), all) = tokio::join!(write, read);
            assert!(all == sent, "{asked} bytes at a time");
        }
    }
}
