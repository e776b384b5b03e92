//! A value in the target of a request, which is path and query: where its placeholder stands, and the
//! target that has the value there.

use std::{borrow::Cow, ops::Range, sync::Arc};

use bytes::Bytes;
use http::{Uri, uri::PathAndQuery};
use percent_encoding::percent_decode_str;
use zeroize::Zeroizing;

use super::{
    apply::Swap,
    rules::{Rules, is},
};
use crate::{
    policy::{Binding, PathSlot, Place, query_values},
    reason::SecretCause,
};

/// The swap for the one credential in the query whose decoded name is `name` and value `value`, where a
/// binding lists that place for that placeholder. A server may cut a query at `;` or not, and read
/// the first or the last of two values of one name: where that could matter there is no swap.
pub(super) fn in_query(rules: &Rules, uri: &Uri, (name, value): (&str, &str)) -> Option<Swap> {
    let lists = |place: &Place| matches!(place, Place::Query { name: own } if **own == *name);
    let binding = listed(rules, value.as_bytes(), lists)?;
    let query = uri.query().unwrap_or_default();
    let mut values = query_values(query, name);
    let ((at, found), None) = (values.next()?, values.next()) else { return None };
    (found == value).then(|| Swap::Query { name: name.into(), at, binding: Arc::clone(binding) })
}

/// The swap for the segment of the path, of which there is one reading, where a binding lists that place
/// for the placeholder there.
pub(super) fn in_path(
    rules: &Rules,
    uri: &Uri,
    (place, at): (&PathSlot, &Range<usize>),
) -> Option<Swap> {
    let lists = |one: &Place| matches!(one, Place::Path(own) if own == place);
    let binding = listed(rules, &segment(uri, at), lists)?;
    let swap = || Swap::Path { place: place.clone(), at: at.clone(), binding: Arc::clone(binding) };
    place.fits(uri.path(), at).then(swap)
}

/// What stands there in the path, decoded once.
pub(super) fn segment<'a>(uri: &'a Uri, at: &Range<usize>) -> Cow<'a, [u8]> {
    percent_decode_str(uri.path().get(at.clone()).unwrap_or_default()).into()
}

fn listed<'a>(
    rules: &'a Rules,
    text: &[u8],
    lists: impl Fn(&Place) -> bool,
) -> Option<&'a Arc<Binding>> {
    let good = |binding: &&Arc<Binding>| {
        is(&binding.placeholder, text) && binding.places.iter().any(&lists)
    };
    rules.own.iter().find(good)
}

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
