//! A stream whose first bytes come from memory: bytes that were read to decide are read again by
//! the code that carries the connection on. No byte is lost, repeated or reordered.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, ReadBuf};

use crate::net::writes_go_straight_through;

/// A stream that yields `prefix`, then the bytes of `inner`. Writes go straight to `inner`.
#[derive(Debug)]
pub struct Rewind<S> {
    prefix: Bytes,
    inner: S,
}

impl<S> Rewind<S> {
    /// Puts `prefix` in front of the remaining bytes of `inner`.
    pub fn new(prefix: Bytes, inner: S) -> Self {
        Self { prefix, inner }
    }

    /// Returns the stream below, for its addresses and options. Reading from it would skip the
    /// prefix.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns the bytes that are still to be replayed, and the stream below.
    pub fn into_parts(self) -> (Bytes, S) {
        (self.prefix, self.inner)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewind<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let taken = self.prefix.len().min(buf.remaining());
        buf.put_slice(self.prefix.get(..taken).unwrap_or_default());
        self.prefix.advance(taken);
        if self.prefix.is_empty() {
            self.prefix = Bytes::new(); // gives the memory back for the rest of the connection
        }
        Poll::Ready(Ok(()))
    }
}

writes_go_straight_through!(Rewind, inner);
