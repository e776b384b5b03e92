//! The codings that a request may ask for, and the removal of a coding from the head of an answer.

use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{ACCEPT_RANGES, CONTENT_ENCODING, CONTENT_LENGTH, ETAG},
};

use super::{
    super::fields::{DIGESTS, IDENTITY, options},
    Coding,
};
use crate::reason::Reason;

/// The codings that a request may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// None.
    Identity,
    /// The codings that take little memory: gzip and deflate.
    Small,
    /// All codings that can be decoded.
    All,
}

/// Returns the codings that an agent accepts, limited to those that may be asked for. Each coding
/// has the weight that it had first; a wildcard and a text that is no list are left out.
pub(in crate::scrub) fn accept<'a>(
    accepted: Accepted,
    asked: impl Iterator<Item = &'a HeaderValue>,
) -> HeaderValue {
    let mut list: Vec<(&str, &str)> = Vec::new();
    for member in asked.flat_map(options) {
        let Some((name, weight)) = member_of(member) else { continue };
        if name.is_within(accepted) && list.iter().all(|(other, _)| *other != name.0) {
            list.push((name.0, weight));
        }
    }
    let member = |(name, weight): &(&str, &str)| match *weight {
        "" => (*name).to_owned(),
        weight => format!("{name};q={weight}"),
    };
    let text = list.iter().map(member).collect::<Vec<_>>().join(", ");
    let is_plain = list.iter().all(|(name, _)| *name == "identity");
    if is_plain { IDENTITY } else { HeaderValue::try_from(text).unwrap_or(IDENTITY) }
}

/// Returns the codings that these fields ask for.
pub fn asked_codings<'a>(asked: impl Iterator<Item = &'a HeaderValue>) -> Accepted {
    let known = asked.flat_map(options).filter_map(member_of).filter_map(|(name, _)| name.1);
    known.fold(Accepted::Identity, |asked, coding| match coding {
        Coding::Brotli | Coding::Zstd => Accepted::All,
        Coding::Gzip | Coding::Deflate if asked == Accepted::Identity => Accepted::Small,
        Coding::Gzip | Coding::Deflate => asked,
    })
}

/// Returns the coding of the body behind this head; `None` where there is none.
///
/// # Errors
///
/// [`Reason::ResponseUnscannable`] for a coding that cannot be decoded, for more than one, which
/// nobody needs, and for a part of a compressed whole.
pub fn content_coding(status: StatusCode, headers: &HeaderMap) -> Result<Option<Coding>, Reason> {
    let is_coding = |name: &&[u8]| !name.is_empty() && !name.eq_ignore_ascii_case(b"identity");
    let mut codings = headers.get_all(CONTENT_ENCODING).iter().flat_map(options).filter(is_coding);
    let Some(name) = codings.next() else { return Ok(None) };
    let coding = NAMES.iter().find(|known| name.eq_ignore_ascii_case(known.0.as_bytes()));
    match (coding.and_then(|known| known.1), codings.next()) {
        (Some(coding), None) if status != StatusCode::PARTIAL_CONTENT => Ok(Some(coding)),
        _ => Err(Reason::ResponseUnscannable),
    }
}

/// Turns the head of a compressed answer into that of the same answer without its coding. `Vary`
/// stays true: another request may have a compressed answer that cannot be read.
///
/// The tag of the compressed form is not that of the plain form: it becomes a weak one, by which an
/// API still recognises its answer (RFC 9110, section 8.8.3).
pub fn decoded_head(headers: &mut HeaderMap) {
    headers.remove(CONTENT_ENCODING);
    headers.remove(CONTENT_LENGTH);
    headers.remove(ACCEPT_RANGES);
    DIGESTS.iter().for_each(|name: &HeaderName| drop(headers.remove(name)));
    let Some(tag) = headers.get(ETAG) else { return };
    if tag.as_bytes().starts_with(b"\"") {
        let weak = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat());
        // A valid value stays valid with a prefix of valid bytes.
        weak.ok().map(|weak| headers.insert(ETAG, weak));
    }
}

/// The name of a coding as it is passed on.
struct Name(&'static str, Option<Coding>);

impl Name {
    fn is_within(&self, accepted: Accepted) -> bool {
        match self.1 {
            None => true,
            Some(Coding::Gzip | Coding::Deflate) => accepted != Accepted::Identity,
            Some(Coding::Brotli | Coding::Zstd) => accepted == Accepted::All,
        }
    }
}

/// Reads a member of a list that names a known coding, and its weight (RFC 9110, section 12.4.2).
fn member_of(member: &[u8]) -> Option<(Name, &str)> {
    let mut parts = std::str::from_utf8(member).ok()?.split(';').map(str::trim);
    let name = parts.next()?;
    let known = NAMES.iter().find(|known| name.eq_ignore_ascii_case(known.0))?;
    let weight = match (parts.next(), parts.next()) {
        (None, _) => "",
        (Some(weight), None) => {
            let weight = weight.strip_prefix("q=").or_else(|| weight.strip_prefix("Q="))?;
            Some(weight).filter(|weight| is_weight(weight))?
        }
        _ => return None,
    };
    Some((Name(known.0, known.1), weight))
}

fn is_weight(text: &str) -> bool {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digit = if whole == "0" { '0'..='9' } else { '0'..='0' };
    matches!(whole, "0" | "1")
        && decimals.len() <= 3
        && decimals.chars().all(|decimal| digit.contains(&decimal))
}

static NAMES: [(&str, Option<Coding>); 6] = [
    ("gzip", Some(Coding::Gzip)),
    ("x-gzip", Some(Coding::Gzip)),
    ("deflate", Some(Coding::Deflate)),
    ("br", Some(Coding::Brotli)),
    ("zstd", Some(Coding::Zstd)),
    ("identity", None),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn values(list: &[&'static str]) -> Vec<HeaderValue> {
        list.iter().map(|value| HeaderValue::from_static(value)).collect()
    }

    #[test]
    fn accepted_codings_are_cut_to_those_we_can_decode() {
        let cut = |accepted, list: &[&'static str]| accept(accepted, values(list).iter());
        let all = |list: &[&'static str]| cut(Accepted::All, list);
        assert_eq!(all(&["gzip, deflate, br, zstd"]), "gzip, deflate, br, zstd");
        assert_eq!(all(&["GZIP;q=0.5 , br;q=1.0", "br;q=0"]), "gzip;q=0.5, br;q=1.0");
        assert_eq!(all(&["gzip, identity;q=0, *;q=0, compress, dcb"]), "gzip, identity;q=0");
        for none in [&["*"][..], &["identity"], &[""], &[], &["compress, x"], &["gzip;q=2"]] {
            assert_eq!(all(none), "identity", "{none:?}");
        }
        for bad in ["gzip;q=0.1234", "gzip;q", "gzip;x=1", "gzip;q=1;q=1", "gz ip", "gzip;q=1.5"] {
            assert_eq!(all(&[bad]), "identity", "{bad}");
        }
        assert_eq!(cut(Accepted::Small, &["br, zstd, gzip"]), "gzip");
        assert_eq!(cut(Accepted::Identity, &["br, zstd, gzip"]), "identity");
    }

    #[test]
    fn what_is_asked_for_is_known_before_it_is_cut() {
        let asked = |list: &[&'static str]| asked_codings(values(list).iter());
        assert_eq!(asked(&["gzip, deflate"]), Accepted::Small);
        assert_eq!(asked(&["zstd", "gzip"]), Accepted::All);
        assert_eq!(asked(&["identity, *"]), Accepted::Identity);
    }

    #[test]
    fn one_coding_is_decoded_and_no_other_nor_a_part() {
        let coding = |status: u16, list: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values(list) {
                headers.append(CONTENT_ENCODING, value);
            }
            content_coding(StatusCode::from_u16(status).unwrap(), &headers)
        };
        assert_eq!(coding(200, &["X-Gzip"]), Ok(Some(Coding::Gzip)));
        assert_eq!(coding(200, &["identity, br"]), Ok(Some(Coding::Brotli)));
        assert_eq!(coding(206, &["identity", ""]), Ok(None));
        for bad in ["gzip, br", "compress", "gzip;q=1", "dcz", "*"] {
            assert_eq!(coding(200, &[bad]), Err(Reason::ResponseUnscannable), "{bad}");
        }
        assert_eq!(coding(200, &["gzip", "gzip"]), Err(Reason::ResponseUnscannable));
        assert_eq!(coding(206, &["gzip"]), Err(Reason::ResponseUnscannable));
    }

    #[test]
    fn a_decoded_answers_head_is_that_of_a_plain_one() {
        let head = |tag: &'static str| {
            let mut headers = HeaderMap::new();
            for (name, value) in [
                ("content-encoding", "gzip"),
                ("content-length", "5"),
                ("content-digest", "x"),
                ("vary", "Accept-Encoding"),
                ("etag", tag),
            ] {
                headers.insert(name, HeaderValue::from_static(value));
            }
            decoded_head(&mut headers);
            headers
        };
        let headers = head("\"a\"");
        assert_eq!(headers.len(), 2);
        assert_eq!(
            (&headers["etag"], &headers["vary"]),
            (&HeaderValue::from_static("W/\"a\""), &HeaderValue::from_static("Accept-Encoding"))
        );
        assert_eq!(head("W/\"a\"")["etag"], "W/\"a\"");
    }
}
