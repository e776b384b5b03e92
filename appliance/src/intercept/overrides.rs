//! Fields that make some origins replace the method, the path or the host of the request line, in
//! any spelling that they read, and names in the query that do the same.
//!
//! Errs to refusal: an override passes only where it says what the rules allow anyway. Bodies are
//! not searched, so paths have to limit an origin that takes `_method` from a form.

use http::{
    HeaderMap, HeaderName, Method,
    header::{ACCESS_CONTROL_REQUEST_METHOD, FORWARDED},
    request,
};

use super::pinned_authority::PinnedAuthority;
use crate::{
    policy::{Folded, PathRule, is_method, names_method, query_pairs, query_readings},
    reason::Reason,
};

/// Refuses a field that names another host than the pinned authority to an origin which routes by
/// such a field.
///
/// # Errors
///
/// `host_mismatch`.
pub(super) fn check_host(headers: &HeaderMap, pinned: &PinnedAuthority) -> Result<(), Reason> {
    let elsewhere = |(name, value): (&HeaderName, &http::HeaderValue)| {
        let named = |text: &str| text.split(',').all(|host| pinned.is(host.trim_ascii()));
        let forwarded = |text: &str| hosts_of(text).all(|host| pinned.is(host));
        let says_so = |says: &dyn Fn(&str) -> bool| value.to_str().is_ok_and(says);
        replaces_host(name) && !says_so(&named) || *name == FORWARDED && !says_so(&forwarded)
    };
    if headers.iter().any(elsewhere) { Err(Reason::HostMismatch) } else { Ok(()) }
}

/// Refuses fields and names that replace the method by one that is not listed, or the path where
/// there is a rule on it. `methods` is `None` where any method may be used.
///
/// # Errors
///
/// `method_denied` and `path_ambiguous`.
pub(super) fn check(
    head: &request::Parts,
    methods: Option<&[Method]>,
    paths: &[PathRule],
) -> Result<(), Reason> {
    let listed = |method: &[u8]| {
        methods.is_none_or(|list| list.iter().any(|one| one.as_str().as_bytes() == method))
    };
    // Under a name that may mean something else, a value that is no method replaces none.
    let may_be_listed = |value: &[u8]| {
        let value = value.trim_ascii().to_ascii_uppercase();
        listed(&value) || !is_method(&value)
    };
    for (name, value) in &head.headers {
        let value = value.as_bytes();
        let denied = is_one_of(name, &METHOD_FIELDS) && !listed(value)
            || may_replace_method(name) && !may_be_listed(value);
        if denied {
            return Err(Reason::MethodDenied);
        }
        if !paths.is_empty() && replaces_path(name) {
            return Err(Reason::PathAmbiguous);
        }
    }
    let mut pairs = query_pairs(head.uri.query().unwrap_or_default());
    let denied = pairs.any(|(name, value)| {
        replaces_method(name.split('\0').next().unwrap_or_default()) && !listed(value.as_bytes())
            || query_readings(&name).any(|name| names_method(&name))
                && !may_be_listed(value.as_bytes())
    });
    if denied { Err(Reason::MethodDenied) } else { Ok(()) }
}

/// Refuses fields that replace the path, where the path decides how the answer is read.
///
/// # Errors
///
/// `path_ambiguous`.
pub(super) fn check_path(headers: &HeaderMap) -> Result<(), Reason> {
    if headers.keys().any(replaces_path) { Err(Reason::PathAmbiguous) } else { Ok(()) }
}

/// Returns the hosts that a Forwarded field names (RFC 7239, section 4).
fn hosts_of(forwarded: &str) -> impl Iterator<Item = &str> {
    let pairs = forwarded.split([';', ',']).filter_map(|pair| pair.split_once('='));
    let hosts = pairs.filter(|(name, _)| name.trim_ascii().eq_ignore_ascii_case("host"));
    hosts.map(|(_, host)| host.trim_ascii().trim_matches('"'))
}

fn is_one_of(name: &HeaderName, names: &[&str]) -> bool {
    let name = Folded(name.as_str().as_bytes());
    names.iter().any(|one| Folded(one.as_bytes()) == name)
}

fn replaces_method(name: &str) -> bool {
    let name = Folded(name.as_bytes());
    METHOD_FIELDS.iter().chain(&QUERY_METHODS).any(|one| Folded(one.as_bytes()) == name)
}

/// Whether a field speaks of a method. CORS has such a field, which only asks whether a method may
/// be used.
fn may_replace_method(name: &HeaderName) -> bool {
    let speaks = |word: &str| word.ends_with("method") || word.ends_with("verb");
    words(name).any(speaks) && *name != ACCESS_CONTROL_REQUEST_METHOD
}

fn replaces_path(name: &HeaderName) -> bool {
    is_one_of(name, &PATHS)
        || names_source(name)
        || replaces(name, &["url", "uri", "path", "prefix"])
}

/// Whether a field names a second object, which is copied or moved to the path (`X-Amz-Copy-Source`,
/// `X-Ms-Rename-Source`, `X-Goog-Copy-Source`).
fn names_source(name: &HeaderName) -> bool {
    let mut words = words(name);
    words.next_back() == Some("source")
        && words.next_back().is_some_and(|word| ["copy", "rename"].contains(&word))
}

fn replaces_host(name: &HeaderName) -> bool {
    is_one_of(name, &HOSTS) || replaces(name, &["host", "server", "authority"])
}

/// Whether a field's name is like that of one which replaces a thing: the thing is its last word, or
/// stands before the last word `override` (`X-Original-URL`, `X-Forwarded-Path`,
/// `X-WAWS-Unencoded-URL`, `X-URL-Override`).
fn replaces(name: &HeaderName, things: &[&str]) -> bool {
    let mut words = words(name);
    let last = words.next_back().unwrap_or_default();
    things.contains(&last) && words.clone().any(|word| REPLACING.contains(&word))
        || last == "override" && words.any(|word| things.contains(&word))
}

fn words(name: &HeaderName) -> impl DoubleEndedIterator<Item = &str> + Clone {
    name.as_str().split(|char: char| !char.is_ascii_alphanumeric())
}

const METHOD_FIELDS: [&str; 6] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-forwarded-method",
    "x-original-method",
    "http-method-override",
];

/// Further names in the query: `_method` of Rails, Symfony, Laravel and Express; `$httpMethod` of
/// Google's APIs and Salesforce's.
const QUERY_METHODS: [&str; 2] = ["_method", "$httpMethod"];

/// Words in the names of fields by which one server tells another what a request was before, or is
/// to be.
const REPLACING: [&str; 11] = [
    "original",
    "rewrite",
    "rewritten",
    "override",
    "forwarded",
    "replaced",
    "request",
    "unencoded",
    "raw",
    "real",
    "proxy",
];

/// Fields that replace the path, or a part of it, although their names do not show it: the variables
/// of CGI (RFC 3875, section 4.1), which servers of Python, Ruby and Perl also read from fields;
/// and `Destination`, the second path of WebDAV (RFC 4918, section 10.3).
const PATHS: [&str; 6] = [
    "script-name",
    "x-script-name",
    "x-forwarded-script-name",
    "path-info",
    "x-traversal-path",
    "destination",
];

/// Fields that replace the host, although their names do not show it.
const HOSTS: [&str; 1] = ["x-host"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Host;

    fn head(query: &str, fields: &[(&str, &str)]) -> request::Parts {
        let mut request = http::Request::builder().uri(format!("/v1?{query}"));
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    const LISTED: [Method; 2] = [Method::GET, Method::POST];

    #[test]
    fn no_field_overrides_the_method_with_an_unlisted_one() {
        let with = |name, value, methods| check(&head("", &[(name, value)]), methods, &[]);
        for name in [
            "X-HTTP-Method-Override",
            "x_http_method_override",
            "X.HTTP.Method.Override",
            "x-http-method",
            "X-Method_Override",
            "X-Forwarded-Method",
        ] {
            for value in ["DELETE", "get", "TRACE", "GET, DELETE", ""] {
                let refused = with(name, value, Some(&LISTED[..]));
                assert_eq!(refused, Err(Reason::MethodDenied), "{name}: {value}");
            }
            assert_eq!(with(name, "GET", Some(&LISTED)), Ok(()));
            assert_eq!(with(name, "DELETE", None), Ok(()));
        }
    }

    #[test]
    fn a_method_override_field_holds_listed_methods_alone() {
        let with = |name, value| check(&head("", &[(name, value)]), Some(&LISTED), &[]);
        for name in ["X-Method", "X-HttpMethod", "X_HTTP_Verb_Override", "X-Verb", "Request-Method"]
        {
            for value in ["DELETE", " delete", "Trace", "TRACK"] {
                assert_eq!(with(name, value), Err(Reason::MethodDenied), "{name}: {value}");
            }
            for value in ["POST", "get", "tools/call", ""] {
                assert_eq!(with(name, value), Ok(()), "{name}: {value}");
            }
        }
        assert_eq!(with("Access-Control-Request-Method", "DELETE"), Ok(()));
    }

    #[test]
    fn no_query_name_overrides_the_method_with_an_unlisted_one() {
        let with = |query: &str| check(&head(query, &[]), Some(&LISTED), &[]);
        for query in [
            "_method=DELETE",
            "a=b&_method=delete",
            "a=b;_method=DELETE",
            "_METHOD=PUT",
            "%5Fmethod=DELETE",
            "$httpMethod=DELETE",
            "X-HTTP-Method-Override=DELETE",
            "_method=GET&_method=DELETE",
            "_method",
            "_HttpMethod=PATCH",
            "method=delete",
            "a=b&http_method=PUT",
            "verb=TRACE",
        ] {
            assert_eq!(with(query), Err(Reason::MethodDenied), "{query}");
        }
        for query in
            ["_method=POST", "method=flickr.test", "method=post", "q=_method=DELETE", "verb=go", ""]
        {
            assert_eq!(with(query), Ok(()), "{query}");
        }
    }

    #[test]
    fn no_field_overrides_the_path_beside_a_path_rule() {
        let paths = [PathRule::parse("/v1/*").unwrap()];
        for name in [
            "X-Original-URL",
            "X-Original-URI",
            "x_rewrite_url",
            "X.Rewrite.URL",
            "X-Forwarded-Prefix",
            "X-Replaced-Path",
            "x_waws_unencoded_url",
            "X-Envoy-Original-Path",
            "Request-Uri",
            "X-Forwarded-Uri",
            "X.Script.Name",
            "SCRIPT_NAME",
            "Script-Name",
            "X-Forwarded-Script-Name",
            "PATH_INFO",
            "X-Traversal-Path",
            "X-HTTP-Path-Override",
            "X_URL_Override",
            "X-Amz-Copy-Source",
            "x_amz_rename_source",
            "x-ms-copy-source",
            "X-Goog-Copy-Source",
            "X-Oss-Copy-Source",
            "X-Ms-Rename-Source",
            "Destination",
        ] {
            let head = head("", &[(name, "/v1/a")]);
            assert_eq!(check(&head, None, &paths), Err(Reason::PathAmbiguous), "{name}");
            assert_eq!(check(&head, None, &[]), Ok(()), "{name}");
        }
        for name in [
            "X-Url",
            "X-Amz-Copy-Source-Range",
            "Callback-Url",
            "X-Request-Id",
            "HTTP-Referer",
            "X-Source",
            "X-Override",
        ] {
            assert_eq!(check(&head("", &[(name, "/v1/a")]), None, &paths), Ok(()), "{name}");
        }
    }

    #[test]
    fn no_field_names_another_host() {
        let pinned = PinnedAuthority { host: Host::parse("api.example").unwrap(), port: 443 };
        let with = |name, value| check_host(&head("", &[(name, value)]).headers, &pinned);
        for (name, value) in [
            ("X-Forwarded-Host", "evil.example"),
            ("x_forwarded_host", "evil.example"),
            ("X-Forwarded-Host", "api.example, evil.example"),
            ("X-Forwarded-Host", "api.example:8443"),
            ("X-Forwarded-Host", ""),
            ("X-Original-Host", "evil.example"),
            ("X.Host", "evil.example"),
            ("X-Forwarded-Server", "evil.example"),
            ("X-Real-Host", "evil.example"),
            ("Proxy_Host", "evil.example"),
            ("X-HTTP-Host-Override", "evil.example"),
            ("Forwarded", "for=192.0.2.1;host=evil.example"),
            ("Forwarded", "host=api.example, HOST = \"evil.example\""),
        ] {
            assert_eq!(with(name, value), Err(Reason::HostMismatch), "{name}: {value}");
        }
        for (name, value) in [
            ("X-Forwarded-Host", "API.example"),
            ("X-Forwarded-For", "192.0.2.1"),
            ("X-Forwarded-Proto", "https"),
            ("Forwarded", "for=\"[2001:db8::1]\";proto=https;host=\"api.example:443\""),
            ("Forwarded", "for=192.0.2.1"),
            ("X-Client-Host", "laptop"),
        ] {
            assert_eq!(with(name, value), Ok(()), "{name}: {value}");
        }
    }
}
