//! A body that is read whole before anything is sent: one of a login or a token exchange, in which
//! a binding names a place, and one whose hash is signed.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, header::CONTENT_LENGTH, request};
use http_body::Body;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{connection::Connection, trace::Trace};
use crate::{
    limits::{HeldBytes, Taken, Way, held},
    reason::Reason,
};

/// A whole body, and the room that it takes up among those of its agent.
pub(super) struct WholeBody {
    pub(super) bytes: Bytes,
    room: Option<HeldBytes>,
}

/// Why there is no whole body.
enum Unread {
    /// It is not taken.
    Refused(Reason),
    /// The agent left off, or broke a rule.
    BrokenOff,
}

impl From<Reason> for Unread {
    fn from(reason: Reason) -> Self {
        Self::Refused(reason)
    }
}

/// How much may be read, and how long that may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) bytes: usize,
    pub(super) time: Duration,
}

/// Reads a body within its bounds, and counts its bytes.
///
/// # Errors
///
/// `body_limit`, `http_timeout`, and `trailer_denied` for any trailers, since a body of a known length
/// has none. What the trace says of a body that broke off.
pub(super) async fn read(
    connection: &Connection,
    body: &mut Incoming,
    bounds: Bounds,
    trace: &Trace,
) -> Result<WholeBody, Reason> {
    if body.size_hint().lower() > bounds.bytes as u64 {
        return Err(Reason::BodyLimit);
    }
    let count = |bytes| trace.request_bytes(bytes);
    let gathered = timeout(bounds.time, gather(body, &connection.taken, count, bounds.bytes)).await;
    gathered.unwrap_or(Err(Reason::HttpTimeout.into())).map_err(|unread| match unread {
        Unread::Refused(reason) => reason,
        Unread::BrokenOff => trace.broken_off(),
    })
}

async fn gather(
    body: &mut Incoming,
    taken: &Taken,
    count: impl Fn(usize),
    bound: usize,
) -> Result<WholeBody, Unread> {
    let most = body.size_hint().upper().and_then(|most| usize::try_from(most).ok());
    let most = most.unwrap_or(bound).min(bound);
    let room = taken.room(Way::Out, most).await;
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Unread::BrokenOff)?;
        let data = frame.into_data().map_err(|_| Reason::TrailerDenied)?;
        count(data.len());
        if all.len() + data.len() > bound {
            return Err(Reason::BodyLimit.into());
        }
        all.extend_from_slice(&data);
    }
    Ok(WholeBody { bytes: all.into(), room })
}

impl WholeBody {
    /// The body as it is to be sent, in the room of the one that was read.
    pub(super) fn becomes(self, bytes: Bytes) -> Bytes {
        held(bytes, self.room)
    }
}

/// Says how long the body is, whatever the agent's own framing was.
pub(super) fn frame(head: &mut request::Parts, body: &Bytes) {
    if !body.is_empty() || head.headers.contains_key(CONTENT_LENGTH) {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
}
