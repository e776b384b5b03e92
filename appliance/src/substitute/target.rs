//! The target of a request, which is path and query, with values in it.

use std::ops::Range;

use bytes::Bytes;
use http::{Uri, uri::PathAndQuery};
use zeroize::Zeroizing;

use crate::reason::SecretCause;

/// The two parts of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Path,
    Query,
}

/// A value that takes the place of some bytes of a part.
pub(super) struct Piece {
    pub(super) part: Part,
    pub(super) at: Range<usize>,
    pub(super) value: Zeroizing<Vec<u8>>,
}

/// The target with each value percent-encoded in its place (RFC 3986, section 2.1); every other byte
/// stays. No two places overlap.
pub(super) fn write(uri: &Uri, mut pieces: Vec<Piece>) -> Result<Uri, SecretCause> {
    pieces.sort_unstable_by_key(|piece| (piece.part, piece.at.start));
    let before = uri.path_and_query().map_or("", PathAndQuery::as_str).as_bytes();
    let query = uri.path().len() + "?".len();
    let widths = pieces.iter().flat_map(|piece| piece.value.iter()).map(|&byte| width(byte));
    let whole = before.len() + widths.sum::<usize>();
    // Sized before it is filled, so that no copy is left behind by growth.
    let mut target = Zeroizing::new(Vec::with_capacity(whole));
    let mut from = 0;
    for Piece { part, at, value } in &pieces {
        let start = if *part == Part::Query { query } else { 0 };
        let kept = before.get(from..start + at.start).ok_or(SecretCause::ValueInvalid)?;
        target.extend_from_slice(kept);
        value.iter().for_each(|&byte| encode(&mut target, byte));
        from = start + at.end;
    }
    target.extend_from_slice(before.get(from..).ok_or(SecretCause::ValueInvalid)?);
    let target = PathAndQuery::from_maybe_shared(Bytes::from_owner(target));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(target.map_err(|_| SecretCause::ValueInvalid)?);
    Uri::from_parts(parts).map_err(|_| SecretCause::ValueInvalid)
}

/// The unreserved characters (RFC 3986, section 2.3).
const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

const fn width(byte: u8) -> usize {
    if is_unreserved(byte) { 1 } else { 3 }
}

fn encode(target: &mut Vec<u8>, byte: u8) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).copied().unwrap_or_default();
    if is_unreserved(byte) {
        target.push(byte);
    } else {
        target.extend([b'%', digit(byte >> 4), digit(byte & 0xf)]);
    }
}
