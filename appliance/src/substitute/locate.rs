//! Finds a placeholder in the target, the cookies and the body of a request.

use std::{borrow::Cow, ops::Range};

use http::Uri;
use percent_encoding::percent_decode_str;

use super::{apply::Swap, body, claim::Claim, cookies::Cookie, lookup::CredentialLookup};
use crate::policy::{PathSlot, Place, only_value};

/// Returns the swap for the one credential in the query whose decoded name is `name` and value
/// `value`, where a binding lists that place for that placeholder. A server may split a query at
/// `;` or not, and read the first or the last of two values of one name: there is no swap where
/// that could matter.
pub(super) fn in_query(
    lookup: &CredentialLookup<'_>,
    uri: &Uri,
    (name, value): (&str, &str),
) -> Option<Swap> {
    let lists = |place: &Place| matches!(place, Place::Query { name: own } if **own == *name);
    let claim = listed(lookup, value.as_bytes(), lists)?;
    let at = only_value(uri.query().unwrap_or_default(), name, value)?;
    Some(Swap::Query { name: name.into(), at, claim })
}

/// Returns the swap for a cookie, where a binding lists that place for its placeholder.
pub(super) fn in_cookie(lookup: &CredentialLookup<'_>, cookie: &Cookie<'_>) -> Option<Swap> {
    let lists = |place: &Place| matches!(place, Place::Cookie { name } if **name == *cookie.name);
    let claim = listed(lookup, cookie.value.as_bytes(), lists)?;
    let at = cookie.at.clone();
    Some(Swap::Cookie { name: cookie.name.into(), at, claim })
}

/// Returns the swap for the text in a place of the body, where a binding lists that place for its
/// placeholder.
pub(super) fn in_body(lookup: &CredentialLookup<'_>, found: &body::BodyValue<'_>) -> Option<Swap> {
    let lists = |place: &Place| matches!(place, Place::Body(own) if own == found.place);
    let claim = listed(lookup, found.text.as_bytes(), lists)?;
    let at = found.at.clone()?;
    Some(Swap::Body { place: found.place.clone(), at, claim })
}

/// Returns the swap for the segment of the path, which has only one reading, where a binding lists
/// that place for its placeholder.
pub(super) fn in_path(
    lookup: &CredentialLookup<'_>,
    uri: &Uri,
    (place, at): (&PathSlot, &Range<usize>),
) -> Option<Swap> {
    let lists = |one: &Place| matches!(one, Place::Path(own) if own == place);
    let claim = listed(lookup, &segment(uri, at), lists)?;
    let swap = || Swap::Path { place: place.clone(), at: at.clone(), claim };
    place.fits(uri.path(), at).then(swap)
}

/// Returns this part of the path, decoded once.
pub(super) fn segment<'a>(uri: &'a Uri, at: &Range<usize>) -> Cow<'a, [u8]> {
    percent_decode_str(uri.path().get(at.clone()).unwrap_or_default()).into()
}

fn listed(
    lookup: &CredentialLookup<'_>,
    text: &[u8],
    lists: impl Fn(&Place) -> bool,
) -> Option<Claim> {
    lookup.claims(text).find(|claim| claim.places().iter().any(&lists))
}
