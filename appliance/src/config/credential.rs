//! The small language of a binding's places: the parts of a request where a placeholder may stand.

use std::sync::Arc;

use http::{
    HeaderName,
    header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION},
};

use super::value::may_hold_a_credential;
use crate::policy::{
    BodyPlace, PathSlot, Place, Plain, Scheme, SubprotocolPrefix, fold_query, is_credential_header,
    is_plain_name,
};

/// The fixed texts that may stand beside a placeholder in Basic.
pub(super) struct BasicHalves {
    /// The half beside a placeholder that is the password.
    pub(super) user: Arc<str>,
    /// The half beside a placeholder that is the user.
    pub(super) password: Arc<str>,
}

/// Reads a place: `header NAME` with `bearer`, `token`, `scheme WORD` or `raw`, `basic user`,
/// `basic password`, `query NAME`, `path /TEXT{}/TEXT`, `cookie NAME`, `json POINTER in METHOD
/// PATH`, `form FIELD in METHOD PATH`, `websocket subprotocol PREFIX` or `aws`.
pub(super) fn place(text: &str, halves: &BasicHalves) -> Result<Place, String> {
    let words: Vec<&str> = text.split(' ').collect();
    match words.as_slice() {
        ["basic", "user"] => Ok(Place::BasicUser { password: halves.password.clone() }),
        ["basic", "password"] => Ok(Place::BasicPassword { user: halves.user.clone() }),
        ["aws"] => Ok(Place::Aws),
        ["header", name, scheme @ ..] => {
            let scheme = Scheme::parse(scheme).map_err(|error| error.to_string())?;
            Ok(Place::Header { name: header(name)?, scheme })
        }
        ["query", name] => Ok(Place::Query { name: query_name(name)? }),
        ["cookie", name] => Ok(Place::Cookie { name: cookie_name(name)? }),
        ["json" | "form", ..] => {
            BodyPlace::parse(&words).map(Place::Body).map_err(|error| error.to_string())
        }
        ["path", place] => {
            PathSlot::parse(place).map(Place::Path).map_err(|error| error.to_string())
        }
        ["websocket", "subprotocol", prefix] => SubprotocolPrefix::parse(prefix)
            .map(Place::Subprotocol)
            .map_err(|error| error.to_string()),
        _ => Err(format!("this is not a place; {PLACES}")),
    }
}

/// Reads a name that stands in a query as it is written here. A list's brackets, and characters
/// that separate or encode, are refused: servers read them in several ways.
fn query_name(text: &str) -> Result<Arc<str>, &'static str> {
    if !is_plain_name(text) {
        return Err("the name in a query has 1 to 128 letters, digits, '-', '.', '_', '~' and '$'");
    }
    Ok(text.into())
}

/// Reads a name of the letters that a cookie's name may have (RFC 6265, section 4.1.1); servers use
/// no others.
fn cookie_name(text: &str) -> Result<Arc<str>, &'static str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if !text.bytes().all(plain) || !(1..=MAX_COOKIE_NAME).contains(&text.len()) {
        return Err("the name of a cookie has 1 to 128 letters, digits, '-', '.' and '_'");
    }
    Ok(text.into())
}

const MAX_COOKIE_NAME: usize = 128;

/// Reads one half of a Basic credential, which is written in the file and so is no secret.
pub(super) fn basic_half(text: &str) -> Result<Arc<str>, &'static str> {
    let plain = text.bytes().all(|b| b.is_ascii_graphic() && b != b':');
    if !plain || text.len() > 256 {
        return Err("this has at most 256 visible ASCII characters, no space and no ':'");
    }
    Ok(text.into())
}

/// Reads a field that looks like a credential and is none: `header NAME` or `query NAME`. A name
/// that does not count as a credential anyway is a mistake.
pub(super) fn plain_name(text: &str) -> Result<Plain, String> {
    match text.split_once(' ') {
        Some(("header", name)) => {
            let name = header_name(name)?;
            if ALWAYS_CREDENTIALS.contains(&name) {
                return Err(format!("{name} is always a credential"));
            }
            if name == COOKIE {
                return Err("cookies are let through by keep_cookies".into());
            }
            let counts = is_credential_header(name.as_str().as_bytes());
            counts.then(|| Plain::Header(name)).ok_or_else(|| NO_CREDENTIAL.into())
        }
        // Whether a name in a query counts as a credential depends on the bindings too.
        Some(("query", name)) => Ok(Plain::Query(fold_query(name).into())),
        _ => Err("write \"header NAME\" or \"query NAME\"".into()),
    }
}

fn header_name(text: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| "this is not the name of a header field".to_owned())
}

fn header(text: &str) -> Result<HeaderName, String> {
    let name = header_name(text)?;
    if may_hold_a_credential(&name) {
        return Ok(name);
    }
    Err(format!("{name} frames, routes or describes messages; no credential stands there"))
}

static ALWAYS_CREDENTIALS: [HeaderName; 2] = [AUTHORIZATION, PROXY_AUTHORIZATION];

pub(super) const NO_CREDENTIAL: &str =
    "a value under this name is no credential anyway; leave it out, or mend the name";

const PLACES: &str = "write \"header NAME bearer\", \"header NAME token\", \"header NAME scheme WORD\", \
                      \"header NAME raw\", \"basic user\", \"basic password\", \"query NAME\", \"path /TEXT{}/TEXT\", \
                      \"cookie NAME\", \"json POINTER in METHOD PATH\", \"form FIELD in METHOD PATH\", \
                      \"websocket subprotocol PREFIX\" or \"aws\"";

#[cfg(test)]
mod tests {
    use super::*;

    fn halves() -> BasicHalves {
        BasicHalves { user: "x-access-token".into(), password: "".into() }
    }

    #[test]
    fn every_place_has_one_way_to_be_written() {
        let header = |name: &'static str, scheme| Place::Header {
            name: HeaderName::from_static(name),
            scheme,
        };
        let word = |word| Scheme::parse(&["scheme", word]).unwrap();
        let body = |words: &[&str]| Place::Body(BodyPlace::parse(words).unwrap());
        for (text, place_meant) in [
            ("header authorization bearer", header("authorization", word("Bearer"))),
            ("header Authorization token", header("authorization", word("token"))),
            ("header authorization scheme Key", header("authorization", word("Key"))),
            ("header x-api-key raw", header("x-api-key", Scheme::Raw)),
            ("query key", Place::Query { name: "key".into() }),
            ("path /bot{}/", Place::Path(PathSlot::parse("/bot{}/").unwrap())),
            ("cookie SESSION", Place::Cookie { name: "SESSION".into() }),
            ("json /a in POST /b", body(&["json", "/a", "in", "POST", "/b"])),
            ("form a in PUT /b", body(&["form", "a", "in", "PUT", "/b"])),
            (
                "websocket subprotocol openai-insecure-api-key.",
                Place::Subprotocol(SubprotocolPrefix::parse("openai-insecure-api-key.").unwrap()),
            ),
            ("aws", Place::Aws),
            ("basic user", Place::BasicUser { password: "".into() }),
            ("basic password", Place::BasicPassword { user: "x-access-token".into() }),
        ] {
            assert_eq!(place_meant.to_string(), text.replace("Authorization", "authorization"));
            assert_eq!(place(text, &halves()), Ok(place_meant), "{text}");
        }
        for text in [
            "",
            "basic",
            "basic both",
            "aws s3",
            "header",
            "header authorization",
            "header a b raw",
            "header x-api-key Bearer",
            "header authorization Key",
            "header authorization scheme",
            "header authorization scheme Basic",
            "header authorization scheme a b",
            "header  x-api-key raw",
            "body",
            "query",
            "query a b",
            "path",
            "path /bot/",
            "path bot{}",
            "path /a {}/",
            "websocket",
            "websocket subprotocol",
            "websocket subprotocol key",
            "websocket subprotocol a. b.",
            "query a[]",
            "query a&b",
            "query k%65y",
            "query a=b",
            "query a;b",
            "header x:y raw",
            "cookie",
            "cookie a b",
            "cookie a=b",
            "cookie a;b",
            "cookie \"a\"",
            "json /a",
            "json /a in GET /b",
            "form a in POST /b/*",
        ] {
            assert!(place(text, &halves()).is_err(), "{text}");
        }
    }

    #[test]
    fn only_what_would_be_a_credential_is_listed_as_plain() {
        let sort = Plain::Header(HeaderName::from_static("x-sort-key"));
        assert_eq!(plain_name("header X-Sort-Key"), Ok(sort));
        assert_eq!(plain_name("query api_KEY"), Ok(Plain::Query("apikey".into())));
        for text in [
            "header authorization",
            "header proxy-authorization",
            "header cookie",
            "header x-note",
            "header x y",
            "header",
            "cookie session",
            "key",
            "",
        ] {
            assert!(plain_name(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_credential_stands_in_a_field_that_frames_or_routes() {
        for name in [
            "host",
            "connection",
            "transfer-encoding",
            "te",
            "trailer",
            "upgrade",
            "cookie",
            "set-cookie",
            "content-length",
            "content-type",
            "proxy-authorization",
            "expect",
            "accept-encoding",
            "sec-websocket-protocol",
            "keep-alive",
            "proxy-connection",
        ] {
            assert!(place(&format!("header {name} raw"), &halves()).is_err(), "{name}");
        }
    }
}
