//! Writes values into the target of a request, which is path and query.

use bytes::Bytes;
use http::{Uri, uri::PathAndQuery};

use super::splice::{Piece, splice};
use crate::reason::SecretCause;

/// The two parts of a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TargetPart {
    Path,
    Query,
}

/// Returns the target with each piece in its place in its part.
pub(super) fn write(uri: &Uri, pieces: Vec<(TargetPart, Piece)>) -> Result<Uri, SecretCause> {
    let query = uri.path().len() + "?".len();
    let pieces = pieces.into_iter().map(|(part, Piece { at, text })| {
        let start = if part == TargetPart::Query { query } else { 0 };
        Piece { at: start + at.start..start + at.end, text }
    });
    let before = uri.path_and_query().map_or("", PathAndQuery::as_str);
    let target = splice(before.as_bytes(), pieces.collect()).ok_or(SecretCause::ValueInvalid)?;
    let target = PathAndQuery::from_maybe_shared(Bytes::from_owner(target));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(target.map_err(|_| SecretCause::ValueInvalid)?);
    Uri::from_parts(parts).map_err(|_| SecretCause::ValueInvalid)
}
