//! Masks response heads and trailers, and limits a request so that its response can be read.
//!
//! Errs on the side of refusal: a response with an encoding or a part that cannot be scanned is
//! refused. Where a body is decoded on the way, [`super::decoded_head`] has removed the coding from
//! the head before.

use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{
        ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_RANGES, ALT_SVC, CONTENT_ENCODING, CONTENT_TYPE,
        IF_RANGE, RANGE, SEC_WEBSOCKET_EXTENSIONS, SET_COOKIE, TE,
    },
};

use super::{
    coding::{Accepted, accept},
    fields::{DIGESTS, IDENTITY, options},
    masks::{Masks, overwrite},
};
use crate::{policy::ResponseRules, reason::Reason};

/// A report of the changes to a head or to trailers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeadReport {
    /// Bytes of field values that were masked, and of the names of fields that were removed because
    /// a secret stood in the name.
    pub masked: u64,
    /// As [`super::MaskStream::near_misses`].
    pub near_misses: u64,
}

/// Removes from a response head what the rules do not let through, and masks the rest.
///
/// # Errors
///
/// [`Reason::ResponseUnscannable`] for a content coding other than identity, for a part of a
/// representation (206) unless ranges are allowed, and for a delta (226, RFC 3229).
pub fn mask_head(
    masks: &Masks,
    rules: &ResponseRules,
    status: &StatusCode,
    headers: &mut HeaderMap,
) -> Result<HeadReport, Reason> {
    let partial = *status == StatusCode::PARTIAL_CONTENT && !rules.ranges;
    if partial || *status == StatusCode::IM_USED || is_encoded(headers) {
        return Err(Reason::ResponseUnscannable);
    }
    Ok(mask_trailers(masks, rules, headers))
}

/// As [`mask_head`], for the trailers of a response.
pub fn mask_trailers(masks: &Masks, rules: &ResponseRules, trailers: &mut HeaderMap) -> HeadReport {
    remove_unlisted(rules, trailers);
    let mut report = HeadReport { masked: remove_secret_names(masks, trailers), near_misses: 0 };
    trailers.values_mut().for_each(|value| mask_value(masks, value, &mut report));
    report
}

/// Makes a request ask for a response that can be read: only those of its codings that are
/// `accepted`, no choice of a character set, no delta, no compressed messages inside gRPC, Connect
/// or WebSocket, and no part of a whole unless ranges are allowed. A part that is compressed could
/// not be read. `TE` keeps `trailers` alone, which gRPC needs.
pub fn request_encodings(rules: &ResponseRules, accepted: Accepted, headers: &mut HeaderMap) {
    let in_part = rules.ranges && headers.contains_key(RANGE);
    let accepted = if in_part { Accepted::Identity } else { accepted };
    let codings = accept(accepted, headers.get_all(ACCEPT_ENCODING).iter());
    headers.insert(ACCEPT_ENCODING, codings);
    for name in &MESSAGE_CODINGS_ACCEPTED {
        if headers.contains_key(name) {
            headers.insert(name, IDENTITY);
        }
    }
    headers.remove(SEC_WEBSOCKET_EXTENSIONS);
    headers.remove(A_IM);
    headers.remove(ACCEPT_CHARSET);
    if !rules.ranges {
        headers.remove(RANGE);
        headers.remove(IF_RANGE);
    }
    let trailers = headers
        .get_all(TE)
        .iter()
        .flat_map(options)
        .any(|option| option.eq_ignore_ascii_case(b"trailers"));
    headers.remove(TE);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Whether the body is a sequence of messages that each stand behind their length.
pub fn in_envelopes(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let kind = kind.to_ascii_lowercase();
    let in_text = kind.starts_with(b"application/grpc-web-text");
    !in_text && ENVELOPED.iter().any(|begin| kind.starts_with(begin))
}

fn is_encoded(headers: &HeaderMap) -> bool {
    let coded = |name: &HeaderName| {
        let identity =
            |coding: &[u8]| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity");
        headers.get_all(name).iter().flat_map(options).any(|coding| !identity(coding))
    };
    CODINGS.iter().any(coded) || headers.contains_key(SEC_WEBSOCKET_EXTENSIONS)
}

fn remove_unlisted(rules: &ResponseRules, headers: &mut HeaderMap) {
    // An alternative service would lead the agent around the gateway (RFC 7838).
    headers.remove(ALT_SVC);
    if !rules.cookies {
        headers.remove(SET_COOKIE);
        headers.remove(SET_COOKIE2);
    }
    if !rules.ranges {
        headers.remove(ACCEPT_RANGES);
        DIGESTS.iter().for_each(|name| drop(headers.remove(name)));
    }
}

fn remove_secret_names(masks: &Masks, headers: &mut HeaderMap) -> u64 {
    let holds_secret = |name: &&HeaderName| masks.is_in_name(name.as_str().as_bytes());
    let names: Vec<HeaderName> = headers.keys().filter(holds_secret).cloned().collect();
    names.iter().for_each(|name| drop(headers.remove(name)));
    names.iter().map(|name| name.as_str().len() as u64).sum()
}

fn mask_value(masks: &Masks, value: &mut HeaderValue, report: &mut HeadReport) {
    let scan = masks.scan(value.as_bytes().into(), usize::MAX, 0);
    report.near_misses += scan.near_misses;
    if scan.covered.is_empty() {
        return;
    }
    let mut text = BytesMut::from(value.as_bytes());
    report.masked += overwrite(&mut text, 0, &scan.covered);
    let sensitive = value.is_sensitive();
    // Asterisks keep a valid value valid. The empty value is a fallback that is never used.
    *value =
        HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or(HeaderValue::from_static(""));
    value.set_sensitive(sensitive);
}

const A_IM: HeaderName = HeaderName::from_static("a-im");
const SET_COOKIE2: HeaderName = HeaderName::from_static("set-cookie2");

const GRPC_ACCEPT: HeaderName = HeaderName::from_static("grpc-accept-encoding");
const CONNECT_ACCEPT: HeaderName = HeaderName::from_static("connect-accept-encoding");

static MESSAGE_CODINGS_ACCEPTED: [HeaderName; 2] = [GRPC_ACCEPT, CONNECT_ACCEPT];

/// The fields of several words by which a request chooses the form of its answer, and which
/// [`request_encodings`] removes or rewrites.
pub static ANSWER_FORM: [HeaderName; 6] =
    [ACCEPT_ENCODING, ACCEPT_CHARSET, A_IM, IF_RANGE, GRPC_ACCEPT, CONNECT_ACCEPT];

/// The types of gRPC, and of Connect's streams.
static ENVELOPED: [&[u8]; 2] = [b"application/grpc", b"application/connect+"];

static CODINGS: [HeaderName; 3] = [
    CONTENT_ENCODING,
    HeaderName::from_static("grpc-encoding"),
    HeaderName::from_static("connect-content-encoding"),
];

#[cfg(test)]
mod tests {
    use super::{
        super::oracle::{masks, oracle},
        *,
    };

    const SECRET: &str = "sk-Proj-0123456789abcdefgh";

    fn fields(list: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap())
        };
        list.iter().map(pair).collect()
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    const OPEN: ResponseRules = ResponseRules { cookies: true, ranges: true };
    const CLOSED: ResponseRules = ResponseRules { cookies: false, ranges: false };

    fn mask(rules: &ResponseRules, status: u16, headers: &mut HeaderMap) -> Result<u64, Reason> {
        let status = StatusCode::from_u16(status).unwrap();
        mask_head(&masks(&[SECRET]), rules, &status, headers).map(|report| report.masked)
    }

    #[test]
    fn what_policy_does_not_let_through_is_removed() {
        let all = [
            ("set-cookie", "a=b"),
            ("set-cookie", "c=d"),
            ("set-cookie2", "e"),
            ("alt-svc", "h3=\":443\""),
            ("accept-ranges", "bytes"),
            ("content-md5", "x"),
            ("digest", "x"),
            ("content-digest", "x"),
            ("repr-digest", "x"),
            ("etag", "\"x\""),
            ("content-type", "text/plain"),
        ];
        let mut headers = fields(&all);
        assert_eq!(mask(&CLOSED, 200, &mut headers), Ok(0));
        assert_eq!(names(&headers), ["content-type", "etag"]);

        let mut headers = fields(&all);
        assert_eq!(mask(&OPEN, 200, &mut headers), Ok(0));
        assert!(!headers.contains_key("alt-svc"));
        assert_eq!(headers.len(), all.len() - 1);
    }

    #[test]
    fn what_cannot_be_scanned_is_refused() {
        let unscannable = Err(Reason::ResponseUnscannable);
        assert_eq!(mask(&CLOSED, 206, &mut fields(&[])), unscannable);
        assert_eq!(mask(&OPEN, 206, &mut fields(&[])), Ok(0));
        assert_eq!(mask(&OPEN, 226, &mut fields(&[])), unscannable);
        for coding in ["gzip", "GZIP", "identity, br", "deflate", "x", "identity;q=1"] {
            for name in ["content-encoding", "grpc-encoding", "connect-content-encoding"] {
                assert_eq!(
                    mask(&OPEN, 200, &mut fields(&[(name, coding)])),
                    unscannable,
                    "{coding}"
                );
            }
        }
        let twice = [("content-encoding", "identity"), ("content-encoding", "zstd")];
        assert_eq!(mask(&CLOSED, 200, &mut fields(&twice)), unscannable);
        let deflate = [("sec-websocket-extensions", "permessage-deflate")];
        assert_eq!(mask(&OPEN, 101, &mut fields(&deflate)), unscannable);
        for coding in ["identity", "Identity", "", "identity, identity"] {
            assert_eq!(mask(&CLOSED, 200, &mut fields(&[("content-encoding", coding)])), Ok(0));
        }
    }

    #[test]
    fn a_secret_in_a_field_value_is_masked_alone() {
        let location = format!("https://x.example/?k={SECRET}&s=1");
        let mut headers = fields(&[("location", &location), ("x-a", SECRET), ("x-a", "plain")]);
        assert_eq!(mask(&CLOSED, 302, &mut headers), Ok(2 * SECRET.len() as u64));
        assert_eq!(headers["location"].as_bytes(), oracle(&[SECRET], location.as_bytes()));
        let values: Vec<_> = headers.get_all("x-a").iter().collect();
        assert_eq!(values, ["*".repeat(SECRET.len()).as_str(), "plain"]);
    }

    #[test]
    fn a_field_whose_name_holds_a_secret_is_removed() {
        let hex: String = SECRET.bytes().map(|byte| format!("{byte:02X}")).collect();
        let base64 =
            base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, SECRET);
        for name in [SECRET.to_owned(), format!("x-{SECRET}-y"), hex, base64] {
            let mut headers = fields(&[(&name, "1"), ("x-plain", "2")]);
            assert_eq!(mask(&CLOSED, 200, &mut headers), Ok(name.len() as u64), "{name}");
            assert_eq!(names(&headers), ["x-plain"]);
        }
    }

    #[test]
    fn trailers_are_treated_as_the_head_is() {
        let mut trailers =
            fields(&[("set-cookie", "a=b"), ("digest", "x"), ("grpc-message", SECRET)]);
        let report = mask_trailers(&masks(&[SECRET]), &CLOSED, &mut trailers);
        assert_eq!(report.masked, SECRET.len() as u64);
        assert_eq!(names(&trailers), ["grpc-message"]);
    }

    #[test]
    fn a_request_asks_for_nothing_that_cannot_be_scanned() {
        let request = [
            ("accept-encoding", "gzip, br"),
            ("accept-encoding", "zstd"),
            ("range", "bytes=0-1"),
            ("if-range", "x"),
            ("te", "gzip, trailers;q=1"),
            ("te", "Trailers"),
            ("a-im", "vcdiff"),
            ("accept-charset", "utf-7"),
            ("grpc-accept-encoding", "gzip"),
            ("sec-websocket-extensions", "permessage-deflate"),
        ];
        let mut headers = fields(&request);
        request_encodings(&CLOSED, Accepted::Identity, &mut headers);
        assert_eq!(names(&headers), ["accept-encoding", "grpc-accept-encoding", "te"]);
        assert_eq!(headers.len(), 3);
        assert_eq!(
            (&headers["accept-encoding"], &headers["te"]),
            (&IDENTITY, &HeaderValue::from_static("trailers"))
        );
        assert_eq!(headers["grpc-accept-encoding"], "identity");

        let mut headers = fields(&[("range", "bytes=0-1"), ("te", "deflate")]);
        request_encodings(&OPEN, Accepted::Identity, &mut headers);
        assert_eq!(names(&headers), ["accept-encoding", "range"]);
    }
}
