//! Rules on request paths, and the paths that no rule can be applied to safely.
//!
//! Origins disagree on `%2F`: to some it is a byte of a segment, to others the end of one. Both
//! readings are checked against the rules, and a path passes where they agree. A path that leads
//! out of a folder in either reading never passes.
//!
//! Some origins tell a path that begins with two slashes from the one with a single slash. It
//! passes where a rule begins so, whose author means that path.

use std::{borrow::Cow, fmt, sync::Arc};

use http::Method;

use crate::reason::Reason;

/// A path that may be used: exact (`/v1/models`), or everything below a folder (`/v1/*`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PathRule {
    /// The rule's text, without the first of two slashes at its beginning.
    text: Arc<str>,
    /// The same with its encoded slashes decoded.
    opened: Arc<str>,
    /// Whether the rule begins with two slashes.
    doubled: bool,
}

/// The reason why a text is not a [`PathRule`], or a path cannot be checked against one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Does not begin with a slash.
    #[error("a path begins with '/'")]
    NotAbsolute,
    /// A `*` anywhere but as the whole last segment.
    #[error("'*' stands only for everything below a folder, as in '/v1/*'")]
    StarInside,
    /// A dot segment, an encoded dot or backslash, an empty segment or a raw backslash: origins
    /// read such a path in different ways.
    #[error("a path has no dot segments, empty segments, encoded dots or backslashes")]
    Ambiguous,
    /// A byte that no path of a request has (RFC 3986, section 3.3).
    #[error(
        "a path has no query, fragment or space; other characters than ASCII are written as %XX"
    )]
    NotAPath,
}

impl PathRule {
    /// Reads a rule as policy writes it.
    pub fn parse(text: &str) -> Result<Self, PathError> {
        if !text.starts_with('/') {
            return Err(PathError::NotAbsolute);
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?' && byte != b'#') {
            return Err(PathError::NotAPath);
        }
        let (doubled, text) = undoubled(text);
        let fixed = text.strip_suffix("/*").unwrap_or(text);
        if fixed.contains('*') {
            return Err(PathError::StarInside);
        }
        let opened = opened(text);
        check(text).and_then(|()| check(&opened))?;
        Ok(Self { text: closed(text).into(), opened: opened.into(), doubled })
    }

    /// Whether the rule names one path, and not all below a folder.
    pub fn is_exact(&self) -> bool {
        !self.text.ends_with('*')
    }

    /// Whether `path` (without query), which has only one reading, falls under the rule.
    pub fn matches(&self, path: &str) -> bool {
        let (doubled, path) = undoubled(path);
        doubled == self.doubled && falls_under(path, &self.text)
    }

    /// Whether the path falls under the rule or, where it is `open`, some longer path that begins
    /// with it.
    pub(super) fn is_reached(&self, path: &str, open: bool) -> bool {
        let onward = |fixed: &str| open && fixed.starts_with(path);
        !self.doubled
            && match self.text.strip_suffix('*') {
                Some(folder) => path.starts_with(folder) || onward(folder),
                None => path == &*self.text || onward(&self.text),
            }
    }

    /// Whether some path falls under both rules.
    pub fn overlaps(&self, other: &Self) -> bool {
        let within = match (self.text.strip_suffix('*'), other.text.strip_suffix('*')) {
            (Some(one), Some(other)) => one.starts_with(other) || other.starts_with(one),
            (Some(_), None) => falls_under(&other.text, &self.text),
            (None, _) => falls_under(&self.text, &other.text),
        };
        self.doubled == other.doubled && within
    }
}

/// Whether a rule's methods and paths permit a request.
///
/// # Errors
///
/// `method_denied` for a method that is not listed; then as [`permits_path`].
pub fn permits(
    methods: &[Method],
    paths: &[PathRule],
    method: &Method,
    path: &str,
) -> Result<(), Reason> {
    if !methods.contains(method) {
        return Err(Reason::MethodDenied);
    }
    permits_path(paths, path)
}

/// Whether a rule's paths permit a request. Where there is no path rule, every path is permitted
/// and none is examined.
///
/// # Errors
///
/// `path_ambiguous` where two origins could read the path differently and one of the readings falls
/// under no rule, or leads out of every folder; `path_denied` where no reading falls under one.
pub fn permits_path(rules: &[PathRule], path: &str) -> Result<(), Reason> {
    if rules.is_empty() {
        return Ok(());
    }
    let (doubled, path) = undoubled(path);
    let mut rules = rules.iter().filter(|rule| rule.doubled == doubled).peekable();
    if doubled && rules.peek().is_none() {
        return Err(Reason::PathAmbiguous);
    }
    let opened = opened(path);
    check(path).and_then(|()| check(&opened)).map_err(|_| Reason::PathAmbiguous)?;
    let closed = closed(path);
    let mut readings = (false, false);
    for rule in rules {
        readings.0 |= falls_under(&closed, &rule.text);
        readings.1 |= falls_under(&opened, &rule.opened);
    }
    match readings {
        (true, true) => Ok(()),
        (false, false) => Err(Reason::PathDenied),
        _ => Err(Reason::PathAmbiguous),
    }
}

/// Whether every server splits the path into the same segments, and spells each of them so.
/// Stricter than rules are: where a segment is a credential, no other spelling may hide one.
pub(crate) fn has_one_reading(path: &str) -> bool {
    let opened = opened(path);
    let slashes = |path: &str| path.bytes().filter(|&byte| byte == b'/').count();
    let needless = |pair: &str| {
        u8::from_str_radix(pair, 16).map_or(true, |byte| {
            byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || !byte.is_ascii()
        })
    };
    let escapes = path.split('%').skip(1).map(|after| after.get(..2).unwrap_or_default());
    check(path).is_ok()
        && check(&opened).is_ok()
        && slashes(path) == slashes(&opened)
        && !escapes.into_iter().any(needless)
}

/// Returns whether a path begins with two slashes, and the path without the first of them.
fn undoubled(path: &str) -> (bool, &str) {
    match path.strip_prefix('/') {
        Some(rest) if rest.starts_with('/') => (true, rest),
        _ => (false, path),
    }
}

fn falls_under(path: &str, rule: &str) -> bool {
    match rule.strip_suffix('*') {
        Some(folder) => path.starts_with(folder),
        None => path == rule,
    }
}

/// Returns the path as read by an origin that takes an encoded slash for a byte like others, in one
/// spelling.
fn closed(path: &str) -> Cow<'_, str> {
    if path.contains("%2f") { path.replace("%2f", "%2F").into() } else { path.into() }
}

/// Returns the path as read by an origin that decodes slashes before it splits segments, and
/// replaces characters by those that Unicode calls compatible with them (NFKC).
pub(super) fn opened(path: &str) -> Cow<'_, str> {
    if !path.contains('%') {
        return path.into();
    }
    let mut rest = path;
    let mut opened = String::with_capacity(path.len());
    while let Some(first) = rest.chars().next() {
        let encoded = |(code, _): &&(&str, &str)| {
            rest.get(..code.len()).is_some_and(|start| start.eq_ignore_ascii_case(code))
        };
        let (taken, meant) = match READ_AS.iter().find(encoded) {
            Some((code, meant)) => (code.len(), *meant),
            None => (first.len_utf8(), rest.get(..first.len_utf8()).unwrap_or_default()),
        };
        opened.push_str(meant);
        rest = rest.get(taken..).unwrap_or_default();
    }
    opened.into()
}

/// Refuses a path that leads out of its folder for some reader, or that two readers take for
/// different ones.
fn check(path: &str) -> Result<(), PathError> {
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

/// Whether servers may read a segment in different ways. Some origins cut a segment at `;` before
/// they resolve dots (RFC 3986, section 3.3), so `..;` counts as a dot segment. A percent sign that
/// starts no valid pair, `%25` (which a second decoding would turn into one), and bytes that are
/// not UTF-8 (`%c0%ae` is a dot to decoders that accept overlong forms) are refused for the same
/// reason.
fn is_ambiguous(segment: &str) -> bool {
    let encoded = segment.split('%').skip(1).any(|after| {
        let Some(pair) = after.get(..2) else { return true };
        let Ok(byte) = u8::from_str_radix(pair, 16) else { return true };
        matches!(byte, b'\\' | b'.' | b'%' | b';' | 0..=0x1f | 0x7f) || pair.starts_with('+')
    });
    encoded || segment.contains('\\') || decoded(segment).is_none_or(|text| is_dots(&text))
}

/// Whether a decoded segment is `.` or `..`, or would be for an origin that removes spaces, as
/// Windows does at the end of names.
fn is_dots(segment: &str) -> bool {
    let name = segment.split(';').next().unwrap_or(segment);
    let is_space = |char: char| char.is_whitespace() || char == '+';
    let bare = name.replace(is_space, "");
    let spaced = bare.len() < name.len() && bare.starts_with('.');
    bare == "." || bare == ".." || spaced && bare.bytes().all(|byte| byte == b'.')
}

/// Returns the segment decoded once, where that is UTF-8. Its percent signs all start valid pairs.
fn decoded(segment: &str) -> Option<String> {
    let mut parts = segment.split('%');
    let mut decoded = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (pair, rest) = part.split_at_checked(2)?;
        decoded.extend(u8::from_str_radix(pair, 16));
        decoded.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(decoded).ok()
}

/// The reading of an encoded slash, and of each character that Unicode calls compatible with
/// nothing but slashes, dots, backslashes, semicolons, pluses (spaces to some) or a percent sign,
/// which a second decoding would find.
const READ_AS: [(&str, &str); 22] = [
    ("%2F", "/"),
    ("%EF%BC%8F", "/"),
    ("%EF%BC%8E", "."),
    ("%E2%80%A4", "."),
    ("%EF%B9%92", "."),
    ("%E2%80%A5", ".."),
    ("%EF%B8%B0", ".."),
    ("%E2%80%A6", "..."),
    ("%EF%B8%99", "..."),
    ("%EF%BC%BC", "\\"),
    ("%EF%B9%A8", "\\"),
    ("%CD%BE", ";"),
    ("%EF%B8%94", ";"),
    ("%EF%B9%94", ";"),
    ("%EF%BC%9B", ";"),
    ("%E2%81%BA", "+"),
    ("%E2%82%8A", "+"),
    ("%EF%AC%A9", "+"),
    ("%EF%B9%A2", "+"),
    ("%EF%BC%8B", "+"),
    ("%EF%BC%85", "%25"),
    ("%EF%B9%AA", "%25"),
];

impl fmt::Display for PathRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.doubled { "/" } else { "" };
        write!(f, "{slash}{}", self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

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
            "/v1%5cadmin",
            "/v1/..%20/x",
            "/v1/%20../x",
            "/v1/.%20./x",
            "/v1/..+/x",
            "/v1/..%c2%a0/x",
            "/v1/...%20/x",
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
            "/v1/%20",
            "/v1/+/x",
            "/v1/a%20b",
            "/v1/a%2fb",
        ] {
            assert_eq!(check(path), Ok(()), "{path}");
        }
    }

    fn judged(rules: &[&str], path: &str) -> Result<(), Reason> {
        let rules: Vec<_> = rules.iter().map(|rule| PathRule::parse(rule).unwrap()).collect();
        permits_path(&rules, path)
    }

    #[test]
    fn two_leading_slashes_pass_where_a_rule_begins_so() {
        for (rules, path, verdict) in [
            (&["//ws/*"][..], "//ws/a.b/C", Ok(())),
            (&["//ws/*"], "//ws/a%2Fb", Ok(())),
            (&["//ws/*"], "/ws/a", Err(Reason::PathDenied)),
            (&["//ws/*"], "//wsx/a", Err(Reason::PathDenied)),
            (&["/ws/*"], "//ws/a", Err(Reason::PathAmbiguous)),
            (&["/*"], "//ws/a", Err(Reason::PathAmbiguous)),
            (&["//ws/*"], "///ws/a", Err(Reason::PathAmbiguous)),
            (&["//ws/*"], "//ws//a", Err(Reason::PathAmbiguous)),
            (&["//ws/*"], "//ws/../a", Err(Reason::PathAmbiguous)),
            (&["//ws/*"], "//../ws/a", Err(Reason::PathAmbiguous)),
            (&["//ws/*", "/v1/*"], "/v1/a", Ok(())),
        ] {
            assert_eq!(judged(rules, path), verdict, "{rules:?} {path}");
        }
        let rule = PathRule::parse("//ws/*").unwrap();
        assert_eq!(rule.to_string(), "//ws/*");
        assert!(rule.matches("//ws/a") && !rule.matches("/ws/a"));
        assert!(!rule.overlaps(&PathRule::parse("/ws/*").unwrap()));
        for text in ["///ws", "//ws//*", "//../ws", "//*/"] {
            assert!(PathRule::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_encoded_slash_passes_where_both_readings_are_listed() {
        for (rule, path) in [
            ("/*", "/@scope%2fpkg"),
            ("/@scope%2Fpkg", "/@scope%2fpkg"),
            ("/@scope%2fpkg", "/@scope%2Fpkg"),
            ("/@scope%2Fpkg/*", "/@scope%2Fpkg/-/x%2fy"),
            ("/api/v4/projects/*", "/api/v4/projects/group%2Fproj/issues"),
            ("/v1/*", "/v1/a%EF%BC%8Fb"),
            ("/v1/*", "/v1/a%EF%BC%8Eb"),
            ("/v1/*", "/v1/a%EF%BC%9Bb"),
            ("/v1/*", "/v1/a%E2%80%A6"),
            ("/v1/*", "/v1/a%EF%BC%8Bb"),
        ] {
            assert_eq!(judged(&[rule], path), Ok(()), "{path}");
        }
        assert_eq!(judged(&["/a/*", "/a%2Fb"], "/a%2Fb"), Ok(()));
    }

    #[test]
    fn a_path_whose_readings_differ_in_verdict_is_refused() {
        for (rule, path) in [
            ("/v1/*", "/v1%2fadmin"),
            ("/v1/a/*", "/v1/a%2fb"),
            ("/v1/a%2Fb", "/v1/a/b"),
            ("/*", "/v1/..%2fadmin"),
            ("/*", "/v1/..%2f..%2fadmin"),
            ("/*", "/v1%2f..%2fadmin"),
            ("/*", "/v1%2f..;%2fadmin"),
            ("/*", "/v1%2f%2fadmin"),
            ("/*", "/%2fadmin"),
            ("/*", "/v1/%252fadmin"),
            ("/*", "/v1%2F.%20.%2Fadmin"),
            ("/*", "/v1/%EF%BC%8E%EF%BC%8E/x"),
            ("/*", "/v1/%e2%80%a5/x"),
            ("/*", "/v1/..%EF%BC%8Fx"),
            ("/*", "/v1/x%EF%BC%BC..%EF%BC%BCy"),
            ("/v1/*", "/v1%EF%BC%8Fx"),
            ("/*", "/v1/%EF%BC%852e%EF%BC%852e/x"),
            ("/*", "/v1/%ef%b9%aa2e./x"),
            ("/*", "/v1/..%EF%BC%9Bx/y"),
            ("/*", "/v1/..%cd%be/y"),
            ("/*", "/v1/..%ef%b8%94/y"),
            ("/*", "/v1/%EF%B8%B0/y"),
            ("/*", "/v1/%E2%80%A6%20/y"),
            ("/*", "/v1/..%EF%BC%8B/y"),
        ] {
            assert_eq!(judged(&[rule], path), Err(Reason::PathAmbiguous), "{path}");
        }
        for path in ["/v2/a%2fb", "/a%2fv1/x"] {
            assert_eq!(judged(&["/v1/*"], path), Err(Reason::PathDenied), "{path}");
        }
    }

    #[test]
    fn a_rule_that_is_no_rule_is_refused() {
        assert_eq!(PathRule::parse("v1"), Err(PathError::NotAbsolute));
        assert_eq!(PathRule::parse("/a*"), Err(PathError::StarInside));
        assert_eq!(PathRule::parse("/*/b"), Err(PathError::StarInside));
        for rule in ["/a/../b", "/a%2f../b", "/a%2f/*", "/a%20/..%20/*"] {
            assert_eq!(PathRule::parse(rule), Err(PathError::Ambiguous), "{rule}");
        }
    }

    proptest! {
        /// Where an origin decodes slashes and resolves dots, in any order, the result never leads
        /// out of the folder of a rule.
        #[test]
        fn no_reading_of_a_path_that_passes_leaves_its_folder(
            path in "/v1(/|%2[fF]|\\.|%20|;|a|%EF%BC%8[EF]){0,12}",
        ) {
            if judged(&["/v1/*"], &path).is_ok() {
                let read = opened(&path).replace("%20", "");
                let names = read.split('/').map(|name| name.split(';').next().unwrap_or_default());
                prop_assert!(names.clone().all(|name| name != ".." && name != "."), "{path}");
                prop_assert!(read.starts_with("/v1/") && path.starts_with("/v1/"), "{path}");
            }
        }
    }
}
