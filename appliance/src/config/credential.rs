//! The small language of a binding's places: where a placeholder may stand.

use std::sync::Arc;

use http::HeaderName;

use super::value::may_hold_a_credential;
use crate::policy::{Place, Scheme};

/// The fixed texts that may stand beside a placeholder in Basic.
pub(super) struct BasicHalves {
    /// Beside a placeholder that is the password.
    pub(super) user: Arc<str>,
    /// Beside a placeholder that is the user.
    pub(super) password: Arc<str>,
}

/// Reads a place: `header NAME bearer`, `header NAME token`, `header NAME raw`, `basic user` or
/// `basic password`.
pub(super) fn place(text: &str, halves: &BasicHalves) -> Result<Place, String> {
    let words: Vec<&str> = text.split(' ').collect();
    match words.as_slice() {
        ["basic", "user"] => Ok(Place::BasicUser { password: halves.password.clone() }),
        ["basic", "password"] => Ok(Place::BasicPassword { user: halves.user.clone() }),
        ["header", name, scheme] => {
            Ok(Place::Header { name: header(name)?, scheme: parse_scheme(scheme)? })
        }
        ["header", _] => Err("say how the placeholder stands there: bearer, token or raw".into()),
        _ => Err(format!("this is not a place; {PLACES}")),
    }
}

/// One half of a Basic credential that is written in the file and so is no secret.
pub(super) fn basic_half(text: &str) -> Result<Arc<str>, &'static str> {
    let plain = text.bytes().all(|b| b.is_ascii_graphic() && b != b':');
    if !plain || text.len() > 256 {
        return Err("this has at most 256 visible ASCII characters, no space and no ':'");
    }
    Ok(text.into())
}

fn header(text: &str) -> Result<HeaderName, String> {
    let name = HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| "this is not the name of a header field".to_owned())?;
    if may_hold_a_credential(&name) {
        return Ok(name);
    }
    Err(format!("{name} frames, routes or describes messages; no credential stands there"))
}

fn parse_scheme(text: &str) -> Result<Scheme, String> {
    match text {
        "bearer" => Ok(Scheme::Bearer),
        "token" => Ok(Scheme::Token),
        "raw" => Ok(Scheme::Raw),
        _ => Err("the last word is bearer, token or raw".into()),
    }
}

const PLACES: &str = "write \"header NAME bearer\", \"header NAME token\", \"header NAME raw\", \
                      \"basic user\" or \"basic password\"";
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
        for (text, place_meant) in [
            ("header authorization bearer", header("authorization", Scheme::Bearer)),
            ("header Authorization token", header("authorization", Scheme::Token)),
            ("header x-api-key raw", header("x-api-key", Scheme::Raw)),
            ("basic user", Place::BasicUser { password: "".into() }),
            ("basic password", Place::BasicPassword { user: "x-access-token".into() }),
        ] {
            assert_eq!(place(text, &halves()), Ok(place_meant), "{text}");
        }
        for text in [
            "",
            "basic",
            "basic both",
            "header",
            "header authorization",
            "header a b raw",
            "header x-api-key Bearer",
            "header  x-api-key raw",
            "body",
            "query key",
            "header x:y raw",
        ] {
            assert!(place(text, &halves()).is_err(), "{text}");
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
