//! The small languages of a binding: where a placeholder may stand, and where its value is.

use std::sync::Arc;

use http::HeaderName;

use super::value::may_hold_a_credential;
use crate::policy::{Place, Scheme, SecretRef};

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

/// Reads where a value is: `vault:MOUNT/PATH#FIELD` or `file:NAME`. The mount is the first
/// segment; one with a slash in it is quoted, as in `vault:"team/kv"/agents/openai#api_key`.
///
/// The errors repeat nothing of the text: it may be the secret itself.
pub(super) fn secret_ref(text: &str) -> Result<SecretRef, &'static str> {
    if let Some(name) = text.strip_prefix("file:") {
        return file_ref(name);
    }
    let Some(reference) = text.strip_prefix("vault:") else { return Err(NOT_A_REFERENCE) };
    let (whole, field) = reference.split_once('#').ok_or(NO_FIELD)?;
    let (mount, path) = match whole.strip_prefix('"') {
        Some(quoted) => quoted.split_once("\"/").ok_or(NO_PATH)?,
        None => whole.split_once('/').ok_or(NO_PATH)?,
    };
    if !is_path(mount) || !is_path(path) {
        return Err(BAD_PATH);
    }
    if field.is_empty() || !field.bytes().all(|b| b.is_ascii_graphic() && b != b'#') {
        return Err(NO_FIELD);
    }
    Ok(SecretRef::VaultKv2 { mount: mount.into(), path: path.into(), field: field.into() })
}

/// Whether a text is a path in Vault: plain segments, none of which a server could resolve away.
pub(super) fn is_path(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'@' | b'+');
    text.split('/').all(|segment| {
        !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(plain)
    })
}

fn file_ref(name: &str) -> Result<SecretRef, &'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
        return Err(
            "after \"file:\" stands a name of at most 64 letters, digits, '-', '_' and '.'",
        );
    }
    Ok(SecretRef::File { name: name.into() })
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
const NOT_A_REFERENCE: &str = "this says where a value is, and is never the value itself; write \
                               \"vault:MOUNT/PATH#FIELD\" or \"file:NAME\"";
const NO_FIELD: &str = "the field of the secret is missing; write \"vault:MOUNT/PATH#FIELD\"";
const NO_PATH: &str = "the path below the mount is missing; write \"vault:MOUNT/PATH#FIELD\"";
const BAD_PATH: &str = "mount and path have segments of letters, digits and '-_.@+', with one \
                        slash between two; write \"vault:MOUNT/PATH#FIELD\"";

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

    #[test]
    fn a_reference_says_where_a_value_is() {
        let vault = |mount: &str, path: &str, field: &str| SecretRef::VaultKv2 {
            mount: mount.into(),
            path: path.into(),
            field: field.into(),
        };
        for (text, meant) in [
            ("vault:kv/agents/openai#api_key", vault("kv", "agents/openai", "api_key")),
            ("vault:\"team/kv\"/openai#api_key", vault("team/kv", "openai", "api_key")),
            ("file:openai", SecretRef::File { name: "openai".into() }),
        ] {
            assert_eq!(secret_ref(text), Ok(meant.clone()));
            assert_eq!(meant.to_string(), text);
        }
    }

    #[test]
    fn a_secret_in_place_of_a_reference_is_not_repeated() {
        for text in [
            "sk-live-0123456789",
            "vault:sk-live-0123456789",
            "vault:sk-live/#x",
            "vault:a/b",
            "vault:/a#b",
            "vault:a//b#c",
            "vault:a/../b#c",
            "vault:a/b#",
            "file:",
            "file:a/b",
            "vault:\"a/b#c",
            "vault:a/b?version=1#c",
            "env:KEY",
        ] {
            let error = secret_ref(text).unwrap_err();
            assert!(!error.contains("sk-live"), "{error}");
        }
    }
}
