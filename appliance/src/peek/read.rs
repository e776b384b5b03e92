//! The edge where bytes come from a socket: reads until the parsers have a result, and not one byte
//! or second beyond the bounds. The bytes are kept, to be replayed.

use std::io;

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::{FirstProtocol, Peeked, PrefixScan, Progress};
use crate::{limits, policy::Limits, reason::Reason};

/// The result of a peek, and the bytes that were read for it.
#[derive(Debug)]
pub struct PeekedBytes {
    /// The meaning of the first bytes.
    pub peeked: Peeked,
    /// All bytes read so far, which may be more than were peeked at. The next reader of the stream
    /// must get them before the stream's own bytes.
    pub bytes: Bytes,
}

/// The reasons why there is nothing to decide on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeekFailure {
    /// The agent's bytes, or their pace, are refused.
    Refused(Reason),
    /// The agent closed or reset the connection first.
    Closed,
}

/// Reads from `stream` until its first bytes have a meaning, for at most `limits.peek_time` and at
/// most `limits.peek_bytes` bytes; a plain HTTP head also keeps to `limits.head_bytes`. An
/// unusually long beginning needs `room` for as much as it may become, and takes that up until the
/// bytes are gone.
///
/// # Errors
///
/// [`PeekFailure::Refused`] with `peek_timeout`, with `connection_limit` where there is no room, or
/// with the rule that the bytes broke; bytes beyond the bound are `tls_malformed` or
/// `header_limit`. [`PeekFailure::Closed`] where the stream ends.
pub async fn read<S, R>(
    stream: &mut S,
    limits: &Limits,
    room: impl Fn(usize) -> Option<R>,
) -> Result<PeekedBytes, PeekFailure>
where
    S: AsyncRead + Unpin,
    R: Send + 'static,
{
    tokio::time::timeout(limits.peek_time, read_on(stream, limits, room))
        .await
        .unwrap_or(Err(PeekFailure::Refused(Reason::PeekTimeout)))
}

async fn read_on<S, R>(
    stream: &mut S,
    limits: &Limits,
    room: impl Fn(usize) -> Option<R>,
) -> Result<PeekedBytes, PeekFailure>
where
    S: AsyncRead + Unpin,
    R: Send + 'static,
{
    let mut scan = PrefixScan::new(limits.head_fields);
    let mut bytes = BytesMut::with_capacity(FIRST_READ.min(limits.peek_bytes));
    let mut larger = None;
    loop {
        let left = bound(&scan, limits).saturating_sub(bytes.len());
        if left == 0 {
            return Err(PeekFailure::Refused(scan.overrun()));
        }
        if bytes.len() == bytes.capacity() {
            if larger.is_none() {
                larger = Some(room(limits.peek_bytes).ok_or(NO_ROOM)?);
            }
            bytes.reserve(FIRST_READ);
        }
        match stream.read_buf(&mut (&mut bytes).limit(left)).await {
            Ok(0) => return Err(PeekFailure::Closed),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return Err(PeekFailure::Closed),
        }
        match scan.advance(&bytes) {
            Progress::NeedMore => {}
            Progress::Done(peeked) => {
                let bytes = bytes.freeze();
                let bytes = match larger {
                    Some(room) => limits::held(bytes, room),
                    None => bytes,
                };
                return Ok(PeekedBytes { peeked, bytes });
            }
            Progress::Malformed(reason) => return Err(PeekFailure::Refused(reason)),
        }
    }
}

fn bound(scan: &PrefixScan, limits: &Limits) -> usize {
    match scan.protocol {
        FirstProtocol::Http(_) => limits.peek_bytes.min(limits.head_bytes),
        FirstProtocol::Unknown | FirstProtocol::Tls(_) => limits.peek_bytes,
    }
}

const NO_ROOM: PeekFailure = PeekFailure::Refused(Reason::ConnectionLimit);

/// Room for a hello with a post-quantum share and much else, or for most request heads: only longer
/// beginnings count against an agent.
/// is longer counts against an agent.
const FIRST_READ: usize = 4 * 1024;
