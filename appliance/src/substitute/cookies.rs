//! The cookies of a request (RFC 6265, section 4.2.1), where one of them is a place.
//!
//! Servers read more than this grammar, each in a way of its own: quotes around a `;`, commas
//! between cookies, several fields. A field that they could read in two ways is refused.

use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Version, header::COOKIE, request::Parts};
use zeroize::Zeroizing;

use super::splice::{Piece, splice};
use crate::reason::{Reason, SecretCause};

/// One cookie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cookie<'a> {
    pub(super) name: &'a str,
    pub(super) value: &'a str,
    pub(super) at: CookieSpan,
}

/// The position of a cookie's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CookieSpan {
    /// The index among the Cookie fields.
    field: usize,
    bytes: Range<usize>,
}

/// Reads the cookies of a request. HTTP/2 may split them into several fields (RFC 9113, section
/// 8.2.3); of several fields in HTTP/1.1 a server reads the first, the last, or all with a comma
/// between.
///
/// # Errors
///
/// `credential_malformed`.
pub(super) fn read(head: &Parts) -> Result<Vec<Cookie<'_>>, Reason> {
    let fields = || head.headers.get_all(COOKIE).iter().enumerate();
    if head.version != Version::HTTP_2 && fields().nth(1).is_some() {
        return Err(Reason::CredentialMalformed);
    }
    let mut cookies = Vec::new();
    for (field, value) in fields() {
        let text = value.to_str().map_err(|_| Reason::CredentialMalformed)?;
        let mut start = 0;
        for pair in text.split(';') {
            let space = usize::from(start > 0 && pair.starts_with(' '));
            let cookie = pair.get(space..).and_then(|pair| cookie(pair, field, start + space));
            cookies.push(cookie.ok_or(Reason::CredentialMalformed)?);
            start += pair.len() + 1;
        }
    }
    Ok(cookies)
}

fn cookie(pair: &str, field: usize, start: usize) -> Option<Cookie<'_>> {
    let (name, value) = pair.split_once('=')?;
    let bare = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
    let good = !name.is_empty() && name.bytes().all(is_token) && bare.bytes().all(is_octet);
    let from = start + name.len() + 1;
    good.then(|| Cookie { name, value, at: CookieSpan { field, bytes: from..from + value.len() } })
}

/// Whether no server takes a byte of a cookie's value for an end, a quote or an escape.
fn is_octet(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b',' | b';' | b'\\')
}

/// Whether a byte may be in a cookie's name (RFC 9110, section 5.6.2), except for `%`, which some
/// servers decode.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$&'*+-.^_`|~".contains(&byte)
}

/// Makes a piece that puts a value in the place of a cookie's. Cookies have no escapes, so some
/// values cannot stand there.
pub(super) fn piece(at: &CookieSpan, value: &[u8]) -> Result<(usize, Piece), SecretCause> {
    if !value.iter().all(|&byte| is_octet(byte)) {
        return Err(SecretCause::ValueInvalid);
    }
    Ok((at.field, Piece { at: at.bytes.clone(), text: Zeroizing::new(value.to_vec()) }))
}

/// Returns all Cookie fields, with each piece in its field.
pub(super) fn write(
    headers: &HeaderMap,
    mut pieces: Vec<(usize, Piece)>,
) -> Result<Vec<HeaderValue>, SecretCause> {
    let mut fields = Vec::new();
    for (nth, field) in headers.get_all(COOKIE).iter().enumerate() {
        let own = pieces.extract_if(.., |(field, _)| *field == nth).map(|(_, piece)| piece);
        let own: Vec<_> = own.collect();
        if own.is_empty() {
            fields.push(field.clone());
            continue;
        }
        let text = splice(field.as_bytes(), own).ok_or(SecretCause::ValueInvalid)?;
        let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(text))
            .map_err(|_| SecretCause::ValueInvalid)?;
        value.set_sensitive(true);
        fields.push(value);
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(version: Version, fields: &[&str]) -> Parts {
        let mut request = http::Request::builder().version(version);
        for field in fields {
            request = request.header(COOKIE, *field);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn pairs(version: Version, fields: &[&str]) -> Option<Vec<(String, String)>> {
        let parts = parts(version, fields);
        let cookies = read(&parts).ok()?;
        for cookie in &cookies {
            let field = fields[cookie.at.field];
            assert_eq!(&field[cookie.at.bytes.clone()], cookie.value);
        }
        Some(cookies.iter().map(|it| (it.name.to_owned(), it.value.to_owned())).collect())
    }

    #[test]
    fn cookies_are_read_as_their_grammar_has_them() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let h1 = |field| pairs(Version::HTTP_11, &[field]);
        assert_eq!(
            h1("a=1; b=x=y;c="),
            Some(vec![pair("a", "1"), pair("b", "x=y"), pair("c", "")])
        );
        assert_eq!(h1("a=\"1\""), Some(vec![pair("a", "\"1\"")]));
        let crumbs = pairs(Version::HTTP_2, &["a=1", "b=2; c=3"]);
        assert_eq!(crumbs, Some(vec![pair("a", "1"), pair("b", "2"), pair("c", "3")]));
        assert_eq!(pairs(Version::HTTP_2, &[]), Some(vec![]));
    }

    #[test]
    fn what_servers_could_read_in_two_ways_is_refused() {
        for field in [
            "",
            "a",
            "=1",
            "a=1;",
            ";a=1",
            "a=1;; b=2",
            "a=1;  b=2",
            " a=1",
            "a =1",
            "a= 1",
            "a=1, b=2",
            "a=\"1; b=2\"",
            "a=\"1",
            "a=1\"",
            "a=\"1\\\"\"",
            "a=b\\c",
            "a=b c",
            "a b=c",
            "a=1;\tb=2",
            "\"a\"=1",
        ] {
            assert_eq!(pairs(Version::HTTP_11, &[field]), None, "{field}");
        }
        assert_eq!(pairs(Version::HTTP_11, &["a=1", "b=2"]), None);
    }
}
