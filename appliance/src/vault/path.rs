//! Paths that may be requested.

/// Whether a path has no dot segments, which the URL's parser would drop, so that another secret
/// would be read, and no empty ones or control characters.
pub(super) fn is_plain_path(path: &str) -> bool {
    path.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
        && !path.contains(|c: char| c.is_ascii_control())
}
