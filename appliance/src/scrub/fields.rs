//! Header fields that heads and content codings have in common.

use http::{HeaderName, HeaderValue};

/// Returns the members of a comma-separated list.
pub(super) fn options(value: &HeaderValue) -> impl Iterator<Item = &[u8]> {
    value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii)
}

/// The coding that changes nothing (RFC 9110, section 12.5.3).
pub(super) const IDENTITY: HeaderValue = HeaderValue::from_static("identity");

/// Digest fields. A digest tells whether a guess at a masked text is right (RFC 9530 and its
/// forerunners).
pub(super) static DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-md5"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];
