//! Paths that can be asked for.

/// The URL's parser would drop dot segments, and so read another secret.
pub(super) fn is_plain_path(path: &str) -> bool {
    path.split('/').all(|segment| !matches!(segment, "" | "." | ".."))
        && !path.contains(|c: char| c.is_ascii_control())
}
