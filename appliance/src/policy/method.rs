//! The methods that a rule allows where it lists none, and those that no rule allows.

use http::Method;

/// The methods that a rule without a list allows: those of RFC 9110, section 9.3, except for
/// CONNECT and TRACE, and PATCH (RFC 5789). Any other method has to be listed.
pub const USUAL_METHODS: [Method; 7] = [
    Method::GET,
    Method::HEAD,
    Method::POST,
    Method::PUT,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
];

/// The reason why a method is never allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeverAllowed {
    /// It asks for a tunnel (RFC 9110, section 9.3.6).
    Tunnel,
    /// Its answer echoes the request, and with it the credential (RFC 9110, section 9.3.8).
    Echo,
}

/// Returns why no rule can allow a method, if so. Case makes no difference, because some origins
/// ignore it.
pub fn never_allowed(method: &str) -> Option<NeverAllowed> {
    let is = |name: &&str| method.eq_ignore_ascii_case(name);
    if is(&"CONNECT") {
        return Some(NeverAllowed::Tunnel);
    }
    ECHOES.iter().any(is).then_some(NeverAllowed::Echo)
}

/// TRACE, and a method to which IIS and others answer alike.
const ECHOES: [&str; 2] = ["TRACE", "TRACK"];

/// Whether a server may take the value of this name in a query or a form for the method. The name
/// is as [`super::fold_query`] writes it.
pub(crate) fn names_method(name: &str) -> bool {
    METHOD_NAMES.contains(&name)
}

/// Whether this is a method, in capital letters.
pub(crate) fn is_method(value: &[u8]) -> bool {
    ALL_METHODS.contains(&value)
}

/// Names in a query or a form that replace the method at some APIs (`method=delete` of Meta's Graph
/// API), and that name a remote call at others, as [`super::fold_query`] writes them.
const METHOD_NAMES: [&str; 7] = [
    "method",
    "httpmethod",
    "requestmethod",
    "methodoverride",
    "httpmethodoverride",
    "verb",
    "httpverb",
];

/// Every text that is a method wherever it stands: the usual methods, and those that are never
/// allowed.
const ALL_METHODS: [&[u8]; 10] = [
    b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE",
    b"TRACK",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_and_echoes_are_never_allowed_in_any_case() {
        for method in ["TRACE", "trace", "Track", "TRACK"] {
            assert_eq!(never_allowed(method), Some(NeverAllowed::Echo), "{method}");
        }
        assert_eq!(never_allowed("connect"), Some(NeverAllowed::Tunnel));
        for method in USUAL_METHODS.iter().map(Method::as_str).chain(["PROPFIND", "TRACER", ""]) {
            assert_eq!(never_allowed(method), None, "{method}");
        }
    }
}
