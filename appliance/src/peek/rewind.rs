//! A stream whose first bytes come from memory: what was read to decide on is read again by
//! whoever carries the connection on. No byte is lost, repeated or reordered.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, ReadBuf};

use crate::net::writes_go_straight_through;

/// Yields `prefix`, then what `inner` yields. Writes go straight to `inner`.
#[derive(Debug)]
pub struct Rewind<S> {
    prefix: Bytes,
    inner: S,
}

impl<S> Rewind<S> {
    /// Puts `prefix` in front of what `inner` has yet to yield.
    pub fn new(prefix: Bytes, inner: S) -> Self {
        Self { prefix, inner }
    }

    /// The stream below, for its addresses and options. Reading from it would skip the prefix.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// What is still to be replayed, and the stream below.
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
