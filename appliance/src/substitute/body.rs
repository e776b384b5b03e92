//! The texts in the places of a body.
//!
//! A body with such a place is in the format that has it, whole, and in plain UTF-8, or is refused:
//! a server that guesses would find a credential that was not examined.

use std::{borrow::Cow, ops::Range};

use http::{
    HeaderMap, HeaderName, Method,
    header::{CONTENT_ENCODING, CONTENT_TYPE},
};

use super::{
    denial::Denial,
    json::{Document, PointerFault},
};
use crate::{
    policy::{
        BodyPlace, BodySpot, fold_query, is_method, names_method, only_value, query_pairs,
        query_readings,
    },
    reason::Reason,
};

/// The text in a place, or one that some server would take for it.
#[derive(Debug)]
pub(super) struct BodyValue<'a> {
    pub(super) place: &'a BodyPlace,
    /// The text, decoded once; empty where the value is no text.
    pub(super) text: Cow<'a, str>,
    /// The range for a value; `None` where the text is not exactly in the place.
    pub(super) at: Option<Range<usize>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BodyFormat {
    Json,
    Form,
}

/// Returns the texts in these places of one request, which has this body.
///
/// # Errors
///
/// `credential_malformed` where the body cannot be read in one way, and `duplicate_credential`
/// where it has two texts for one place.
pub(super) fn read<'a>(
    places: impl Iterator<Item = &'a BodyPlace>,
    headers: &HeaderMap,
    body: &'a [u8],
) -> Result<Vec<BodyValue<'a>>, Denial> {
    let places: Vec<_> = places.collect();
    let Some(first) = places.first().filter(|_| !body.is_empty()) else { return Ok(vec![]) };
    let denied = |place: &BodyPlace, reason: Reason| Denial {
        credential: Some(place.spot().to_string()),
        ..reason.into()
    };
    let malformed = || denied(first, Reason::CredentialMalformed);
    let format = format(headers).ok_or_else(malformed)?;
    let mut places = places.iter().copied().filter(|place| of(place.spot()) == format).peekable();
    places.peek().ok_or_else(malformed)?;
    let text = std::str::from_utf8(body).map_err(|_| malformed())?;
    match format {
        BodyFormat::Form if !has_one_reading(text, first.method()) => Err(malformed()),
        BodyFormat::Form => Ok(places.flat_map(|place| in_form(place, text)).collect()),
        BodyFormat::Json => {
            let document = Document::read(text).map_err(|_| malformed())?;
            let found = places
                .map(|place| in_json(place, &document).map_err(|reason| denied(place, reason)));
            Ok(found.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
        }
    }
}

/// Whether every server decodes a form alike, and none takes it for a request with another method.
fn has_one_reading(form: &str, method: &Method) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_hexdigit();
    // Some servers take `%uXXXX` for an escape, and some end a text at a NUL.
    let is_escape =
        |pair: &[u8]| pair.len() == 2 && pair.iter().copied().all(is_digit) && pair != b"00";
    let escapes = form.as_bytes().split(|&byte| byte == b'%').skip(1);
    let another_method = |value: &str| {
        let value = value.trim().to_ascii_uppercase();
        is_method(value.as_bytes()) && value != method.as_str()
    };
    !form.bytes().any(|byte| byte.is_ascii_control())
        && escapes.map(|after| after.get(..2).unwrap_or_default()).all(is_escape)
        && !query_pairs(form).any(|(name, value)| {
            query_readings(&name).any(|name| names_method(&name)) && another_method(&value)
        })
}

fn in_json<'a>(
    place: &'a BodyPlace,
    document: &Document<'_>,
) -> Result<Option<BodyValue<'a>>, Reason> {
    let BodySpot::Json(pointer) = place.spot() else { return Ok(None) };
    let found = document.find(pointer).map_err(|fault| match fault {
        PointerFault::Malformed => Reason::CredentialMalformed,
        PointerFault::Twice => Reason::DuplicateCredential,
    })?;
    Ok(found.map(|found| BodyValue {
        place,
        at: Some(found.at).filter(|_| found.exact && found.text.is_some()),
        text: found.text.unwrap_or_default().into(),
    }))
}

/// Returns each field that some server takes for the one of the place.
fn in_form<'a>(place: &'a BodyPlace, body: &'a str) -> impl Iterator<Item = BodyValue<'a>> {
    let field = match place.spot() {
        BodySpot::Form(field) => Some(&**field),
        BodySpot::Json(_) => None,
    };
    field.into_iter().flat_map(move |field| {
        let same = move |name: &str| query_readings(name).any(|one| one == fold_query(field));
        query_pairs(body).filter(move |(name, _)| same(name)).map(move |(name, value)| {
            // Only the exact spelling gets a range, and only where there is no second one.
            let at = if name == field { only_value(body, field, &value) } else { None };
            BodyValue { place, text: value, at }
        })
    })
}

fn of(spot: &BodySpot) -> BodyFormat {
    match spot {
        BodySpot::Json(_) => BodyFormat::Json,
        BodySpot::Form(_) => BodyFormat::Form,
    }
}

/// Returns the format that the fields state, where they state it in one way, and nothing else of
/// the body.
fn format(headers: &HeaderMap) -> Option<BodyFormat> {
    let one = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        let first = values.next().map(|value| value.to_str().ok());
        (values.next().is_none()).then_some(first)
    };
    let plain = |coding: Option<&str>| coding.is_some_and(|it| it.eq_ignore_ascii_case("identity"));
    if !one(CONTENT_ENCODING)?.is_none_or(plain) {
        return None;
    }
    let (kind, parameters) = match one(CONTENT_TYPE)??? {
        text if text.contains(';') => text.split_once(';')?,
        text => (text, "charset=utf-8"),
    };
    let (name, charset) = parameters.trim_ascii().split_once('=')?;
    let utf8 = charset.trim_matches('"').eq_ignore_ascii_case("utf-8");
    let kind = kind.trim_ascii().to_ascii_lowercase();
    let format = match &*kind {
        "application/x-www-form-urlencoded" => BodyFormat::Form,
        "application/json" => BodyFormat::Json,
        // Some servers recognise a form by the beginning of its type.
        other if other.starts_with("application/x-www-form-urlencoded") => return None,
        other if other.starts_with("application/") && other.ends_with("+json") => BodyFormat::Json,
        _ => return None,
    };
    (utf8 && name.eq_ignore_ascii_case("charset")).then_some(format)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_what_the_fields_plainly_say() {
        let of = |fields: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().unwrap());
            }
            format(&headers)
        };
        let kind = |value| of(&[("content-type", value)]);
        for (text, format) in [
            ("application/json", BodyFormat::Json),
            ("Application/JSON; charset=UTF-8", BodyFormat::Json),
            ("application/json;charset=\"utf-8\"", BodyFormat::Json),
            ("application/vnd.api+json", BodyFormat::Json),
            ("application/x-www-form-urlencoded", BodyFormat::Form),
            ("application/x-www-form-urlencoded; charset=utf-8", BodyFormat::Form),
        ] {
            assert_eq!(kind(text), Some(format), "{text}");
        }
        for text in [
            "",
            "text/plain",
            "text/json",
            "application/json; charset=utf-16",
            "application/json; boundary=x",
            "application/json; charset=utf-8; charset=utf-16",
            "application/json, text/plain",
            "application/json;",
            "multipart/form-data; boundary=x",
        ] {
            assert_eq!(kind(text), None, "{text}");
        }
        let json = ("content-type", "application/json");
        assert_eq!(of(&[json, ("content-encoding", "identity")]), Some(BodyFormat::Json));
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[json, json]), None);
        for coding in ["gzip", "zstd", "identity, gzip", ""] {
            assert_eq!(of(&[json, ("content-encoding", coding)]), None, "{coding}");
        }
    }
}
