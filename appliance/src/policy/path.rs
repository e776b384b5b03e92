//! Rules on request paths, and the paths that no rule can be applied to safely.

use std::{fmt, sync::Arc};

use http::Method;

use crate::reason::Reason;

/// A path that may be used: exact (`/v1/models`), or everything below a folder (`/v1/*`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathRule {
    text: Arc<str>,
}

/// Why a text is not a [`PathRule`], or a path cannot be held against one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathError {
    /// Does not begin with a slash.
    NotAbsolute,
    /// A `*` anywhere but as the whole last segment.
    StarInside,
    /// A dot segment, an encoded slash, dot or backslash, an empty segment or a raw backslash:
    /// origins disagree on what such a path means.
    Ambiguous,
}

impl PathRule {
    /// Reads a rule as policy writes it.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if !text.starts_with('/') {
            return Err(PathError::NotAbsolute);
        }
        let fixed = text.strip_suffix("/*").unwrap_or(text);
        if fixed.contains('*') {
            return Err(PathError::StarInside);
        }
        if !fixed.is_empty() {
            check(fixed)?;
        }
        Ok(Self { text: text.into() })
    }

    /// Whether `path` (without query) falls under the rule. `path` has passed [`check`].
    pub fn matches(&self, path: &str) -> bool {
        match self.text.strip_suffix('*') {
            Some(folder) => path.starts_with(folder),
            None => path == &*self.text,
        }
    }

    /// Whether some path falls under both rules.
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self.text.strip_suffix('*'), other.text.strip_suffix('*')) {
            (Some(one), Some(other)) => one.starts_with(other) || other.starts_with(one),
            (Some(_), None) => self.matches(&other.text),
            (None, _) => other.matches(&self.text),
        }
    }
}

/// Refuses a path that two readers could take for two different ones. Only a path that passes
/// may be held against a [`PathRule`].
pub fn check(path: &str) -> Result<(), PathError> {
    if !path.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    let segments = path.split('/').skip(1);
    let mut segments = segments.peekable();
    while let Some(segment) = segments.next() {
        let inner_empty = segment.is_empty() && segments.peek().is_some();
        if inner_empty || is_ambiguous(segment) {
            return Err(PathError::Ambiguous);
        }
    }
    Ok(())
}

/// Whether a rule's methods and paths permit a request. Either list permits everything where it
/// is empty; a path is judged only where there is a rule to hold it against.
pub fn permits(
    methods: &[Method],
    paths: &[PathRule],
    method: &Method,
    path: &str,
) -> Result<(), Reason> {
    if !methods.is_empty() && !methods.contains(method) {
        return Err(Reason::MethodDenied);
    }
    if paths.is_empty() {
        return Ok(());
    }
    check(path).map_err(|_| Reason::PathAmbiguous)?;
    if paths.iter().any(|rule| rule.matches(path)) { Ok(()) } else { Err(Reason::PathDenied) }
}

/// Some origins cut a segment at `;` before they resolve dots (RFC 3986, section 3.3), so `..;`
/// counts as a dot segment. A percent sign that starts no valid pair, `%25` (which a second
/// decoding would turn into one), and bytes that are no UTF-8 (`%c0%ae` is a dot to decoders that
/// take overlong forms) are refused for the same reason.
fn is_ambiguous(segment: &str) -> bool {
    let name = segment.split(';').next().unwrap_or(segment);
    if name == "." || name == ".." || segment.contains('\\') {
        return true;
    }
    let encoded = segment.split('%').skip(1).any(|after| {
        let Some(pair) = after.get(..2) else { return true };
        let Ok(byte) = u8::from_str_radix(pair, 16) else { return true };
        matches!(byte, b'/' | b'\\' | b'.' | b'%' | b';' | 0..=0x1f | 0x7f) || pair.starts_with('+')
    });
    encoded || !is_utf8(segment)
}

/// Whether the segment, decoded once, is UTF-8. Its percent signs all start valid pairs.
fn is_utf8(segment: &str) -> bool {
    let mut parts = segment.split('%');
    let mut decoded = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let Some((pair, rest)) = part.split_at_checked(2) else { return false };
        decoded.extend(u8::from_str_radix(pair, 16));
        decoded.extend_from_slice(rest.as_bytes());
    }
    std::str::from_utf8(&decoded).is_ok()
}

impl fmt::Display for PathRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAbsolute => "a path begins with '/'",
            Self::StarInside => "'*' stands only for everything below a folder, as in '/v1/*'",
            Self::Ambiguous => "a path has no dot segments, empty segments or encoded separators",
        })
    }
}

impl std::error::Error for PathError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_rule_means_what_is_below_it() {
        let rule = PathRule::parse("/v1/*").unwrap();
        assert!(rule.matches("/v1/models"));
        assert!(rule.matches("/v1/a/b"));
        assert!(!rule.matches("/v1"));
        assert!(!rule.matches("/v10/x"));
        assert!(PathRule::parse("/*").unwrap().matches("/"));
    }

    #[test]
    fn an_exact_rule_means_one_path() {
        let rule = PathRule::parse("/v1/models").unwrap();
        assert!(rule.matches("/v1/models"));
        assert!(!rule.matches("/v1/models/"));
        assert!(!rule.matches("/V1/models"));
    }

    #[test]
    fn a_path_that_could_mean_another_is_refused() {
        for path in [
            "/v1/../admin",
            "/v1/./x",
            "/v1/%2e%2e/x",
            "/v1/%2E./x",
            "/v1%2fadmin",
            "/v1%5cadmin",
            "/v1\\admin",
            "//v1",
            "/v1//x",
            "/v1/..;/x",
            "/v1/%252e",
            "/v1/%",
            "/v1/%2",
            "/v1/%zz",
            "/v1/%+1",
            "/v1/%00",
            "/v1/..",
            "/v1/%c0%ae%c0%ae/x",
            "/v1/%e0%80%af",
            "/v1/%ff",
            "/v1/%c3",
        ] {
            assert_eq!(check(path), Err(PathError::Ambiguous), "{path}");
        }
        for path in [
            "/",
            "/v1/",
            "/v1/a.b",
            "/v1/...",
            "/v1/a%20b",
            "/v1/a:b;c=d",
            "/v1/.well-known",
            "/v1/%c3%a9",
        ] {
            assert_eq!(check(path), Ok(()), "{path}");
        }
    }

    #[test]
    fn a_rule_that_is_no_rule_is_refused() {
        assert_eq!(PathRule::parse("v1"), Err(PathError::NotAbsolute));
        assert_eq!(PathRule::parse("/a*"), Err(PathError::StarInside));
        assert_eq!(PathRule::parse("/*/b"), Err(PathError::StarInside));
        assert_eq!(PathRule::parse("/a/../b"), Err(PathError::Ambiguous));
    }
}
