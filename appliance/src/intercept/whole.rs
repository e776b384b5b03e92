//! Bodies that are read whole before anything is sent: that of a login or a token exchange, in
//! which a binding names a place, and one whose hash is signed.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, header::CONTENT_LENGTH, request};
use http_body::Body;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout, timeout_at};

use super::{connection::Connection, trace::Trace};
use crate::{
    limits::{HeldBytes, Way, held},
    reason::Reason,
};

/// A whole body, and its room among the bodies of its agent.
pub(super) struct WholeBody {
    pub(super) bytes: Bytes,
    room: Option<HeldBytes>,
}

/// The reason why there is no whole body.
enum Unread {
    /// The body is refused.
    Refused(Reason),
    /// The agent stopped, or broke a rule.
    BrokenOff,
}

impl From<Reason> for Unread {
    fn from(reason: Reason) -> Self {
        Self::Refused(reason)
    }
}

/// The most bytes of a body, and the longest time for reading them.
#[derive(Debug, Clone, Copy)]
pub(super) struct BodyBounds {
    pub(super) bytes: usize,
    pub(super) time: Duration,
}

/// Reads a body within its bounds, and counts its bytes.
///
/// # Errors
///
/// `body_limit`, `http_timeout`, and `trailer_denied` for any trailers, since a body of a known
/// length has none; the trace's reason for a body that broke off.
pub(super) async fn read(
    connection: &Connection,
    body: &mut Incoming,
    bounds: BodyBounds,
    trace: &Trace,
) -> Result<WholeBody, Reason> {
    if body.size_hint().lower() > bounds.bytes as u64 {
        return Err(Reason::BodyLimit);
    }
    let count = |bytes| trace.request_bytes(bytes);
    let gather = async {
        let most = body.size_hint().upper().and_then(|most| usize::try_from(most).ok());
        let most = most.unwrap_or(bounds.bytes).min(bounds.bytes);
        let room = connection.taken.room(Way::Out, most).await;
        let bytes = gather(body, count, (most, bounds.bytes), connection.head_time).await?;
        Ok::<_, Unread>(WholeBody { bytes, room })
    };
    let gathered = timeout(bounds.time, gather).await;
    gathered.unwrap_or(Err(Reason::HttpTimeout.into())).map_err(|unread| match unread {
        Unread::Refused(reason) => reason,
        Unread::BrokenOff => trace.broken_off(),
    })
}

/// Reads a body of at most `bound` bytes that comes no slower than the slowest body. Its room was
/// reserved whole before, and a slower agent would keep that from others.
async fn gather<B: Body<Data = Bytes> + Unpin>(
    body: &mut B,
    count: impl Fn(usize),
    (expected, bound): (usize, usize),
    grace: Duration,
) -> Result<Bytes, Unread> {
    let begun = Instant::now();
    let mut all = Vec::with_capacity(expected);
    loop {
        let pace = Duration::from_secs(all.len() as u64 / SLOWEST_BODY);
        let frame = timeout_at(begun + grace + pace, body.frame()).await;
        let Some(frame) = frame.map_err(|_| Reason::HttpTimeout)? else { break };
        let frame = frame.map_err(|_| Unread::BrokenOff)?;
        let data = frame.into_data().map_err(|_| Reason::TrailerDenied)?;
        count(data.len());
        if all.len() + data.len() > bound {
            return Err(Reason::BodyLimit.into());
        }
        all.extend_from_slice(&data);
    }
    Ok(all.into())
}

impl WholeBody {
    /// Returns the body as it is to be sent, in the room of the one that was read.
    pub(super) fn becomes(self, bytes: Bytes) -> Bytes {
        held(bytes, self.room)
    }
}

/// Writes the body's length into the head, however the agent framed it.
pub(super) fn frame(head: &mut request::Parts, body: &Bytes) {
    if !body.is_empty() || head.headers.contains_key(CONTENT_LENGTH) {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
}

/// Bytes a second of the slowest body that is read whole.
pub(super) const SLOWEST_BODY: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll},
    };

    use http_body::Frame;
    use http_body_util::Full;

    use super::*;

    /// A body that gives data once, and nothing after that.
    struct Stuck(Option<Bytes>);

    impl Body for Stuck {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0.take().map_or(Poll::Pending, |data| Poll::Ready(Some(Ok(Frame::data(data)))))
        }
    }

    #[tokio::test]
    async fn a_body_that_stands_still_is_given_up() {
        let grace = Duration::from_millis(1);
        let mut stuck = Stuck(Some(Bytes::from_static(b"a")));
        let read = gather(&mut stuck, |_| (), (8, 8), grace).await;
        assert!(matches!(read, Err(Unread::Refused(Reason::HttpTimeout))));
        let mut whole = Full::new(Bytes::from_static(b"whole"));
        let read = gather(&mut whole, |_| (), (8, 8), Duration::ZERO).await;
        assert!(read.is_ok_and(|read| read == "whole"));
    }
}
