//! A value in the query: where its placeholder stands, and the target that has the value there.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use http::{Uri, uri::PathAndQuery};
use zeroize::Zeroizing;

use super::{
    apply::Swap,
    rules::{Rules, is},
};
use crate::{
    policy::{Binding, Place, query_values},
    reason::SecretCause,
};

/// The swap for the one credential in `query` whose decoded name is `name` and value `value`, where a
/// binding lists that place for that placeholder. A server may cut a query at `;` or not, and read
/// the first or the last of two values of one name: where that could matter there is no swap.
pub(super) fn classify(rules: &Rules, query: &str, (name, value): (&str, &str)) -> Option<Swap> {
    let lists = |place: &Place| matches!(place, Place::Query { name: own } if **own == *name);
    let good = |binding: &&Arc<Binding>| {
        is(&binding.placeholder, value.as_bytes()) && binding.places.iter().any(lists)
    };
    let binding = rules.own.iter().find(good)?;
    let mut values = query_values(query, name);
    let ((at, found), None) = (values.next()?, values.next()) else { return None };
    (found == value).then(|| Swap::Query { name: name.into(), at, binding: Arc::clone(binding) })
}

/// The target with each value percent-encoded in its place (RFC 3986, section 2.1); every other byte
/// stays. The places are of the query, in the order in which they stand, and do not overlap.
pub(super) fn write(
    uri: &Uri,
    values: &[(Range<usize>, Zeroizing<Vec<u8>>)],
) -> Result<Uri, SecretCause> {
    let query = uri.query().unwrap_or_default().as_bytes();
    let encoded: usize = values.iter().flat_map(|(_, value)| value.iter()).map(|&b| width(b)).sum();
    let whole = uri.path().len() + "?".len() + query.len() + encoded;
    let mut target = Zeroizing::new(Vec::with_capacity(whole));
    target.extend_from_slice(uri.path().as_bytes());
    target.push(b'?');
    let mut from = 0;
    for (at, value) in values {
        let kept = query.get(from..at.start).ok_or(SecretCause::ValueInvalid)?;
        target.extend_from_slice(kept);
        value.iter().for_each(|&byte| encode(&mut target, byte));
        from = at.end;
    }
    target.extend_from_slice(query.get(from..).ok_or(SecretCause::ValueInvalid)?);
    debug_assert!(target.len() <= whole, "growth leaves a copy behind");
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
