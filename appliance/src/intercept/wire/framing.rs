//! Finds where one HTTP/1 request ends and the next begins, and reads strictly.
//!
//! hyper parses and rebuilds every message. It is lenient where two readers could disagree: it
//! takes Content-Length beside Transfer-Encoding, bare LF and more. This second reader examines the
//! same bytes first, clears only those that have one meaning (RFC 9112, sections 2.2, 6 and 7.1)
//! and errs to refusal. Pure.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use httparse::Header;
use memchr::memchr_iter;

use crate::{policy::Limits, reason::Reason};

/// The strict reader's place in the stream.
#[derive(Debug)]
pub struct Framing {
    state: FramingState,
    /// The bytes of the current head, line or trailer section that were examined before.
    scanned: usize,
    head_bytes: usize,
    head_fields: usize,
}

/// Whether trailers may be passed on.
pub trait TrailerRule {
    /// Refuses trailers that policy forbids.
    fn check(&self, trailers: &HeaderMap) -> Result<(), Reason>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FramingState {
    Head,
    Fixed(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
}

enum BodyKind {
    None,
    Fixed(u64),
    Chunked,
}

impl Framing {
    /// Begins before the first head of a connection.
    pub fn new(limits: &Limits) -> Self {
        Self {
            state: FramingState::Head,
            scanned: 0,
            head_bytes: limits.head_bytes,
            head_fields: limits.head_fields,
        }
    }

    /// Whether a head, rather than a body, comes next or is under way.
    pub fn at_head(&self) -> bool {
        self.state == FramingState::Head
    }

    /// Returns how many bytes of a Content-Length body are still to come. They are not examined.
    pub fn opaque(&self) -> u64 {
        match self.state {
            FramingState::Fixed(left) => left,
            _ => 0,
        }
    }

    /// Notes that `bytes` of an opaque body went by.
    pub fn passed(&mut self, bytes: u64) {
        if let FramingState::Fixed(left) = self.state {
            self.enter_fixed(left.saturating_sub(bytes));
        }
    }

    /// Returns how many of `held`'s first bytes are cleared; none if more must arrive first. The
    /// caller removes the cleared bytes before the next call.
    pub fn clear(&mut self, held: &[u8], trailers: &dyn TrailerRule) -> Result<usize, Reason> {
        match self.state {
            FramingState::Head => self.clear_head(held),
            FramingState::Fixed(left) => {
                let cleared = held.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                self.passed(cleared as u64);
                Ok(cleared)
            }
            FramingState::ChunkSize => self.clear_chunk_size(held),
            FramingState::ChunkData(left) => {
                let cleared = held.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let left = left - cleared as u64;
                self.state =
                    if left == 0 { FramingState::ChunkEnd } else { FramingState::ChunkData(left) };
                Ok(cleared)
            }
            FramingState::ChunkEnd => self.clear_chunk_end(held),
            FramingState::Trailers => self.clear_trailers(held, trailers),
        }
    }

    fn clear_head(&mut self, held: &[u8]) -> Result<usize, Reason> {
        let Some(end) = self.find_section_end(held)? else { return Ok(0) };
        let head = held.get(..end).unwrap_or_default();
        self.state = match read_head(head, self.head_fields)? {
            BodyKind::None => FramingState::Head,
            BodyKind::Fixed(length) => FramingState::Fixed(length),
            BodyKind::Chunked => FramingState::ChunkSize,
        };
        Ok(end)
    }

    /// Returns the offset behind the empty line that ends a head, or `None` where it has not come.
    /// A line feed without its carriage return is refused as soon as it is seen.
    fn find_section_end(&mut self, held: &[u8]) -> Result<Option<usize>, Reason> {
        let from = self.scanned;
        for offset in memchr_iter(b'\n', held.get(from..).unwrap_or_default()) {
            let line_feed = from + offset;
            let before = held.get(..line_feed).unwrap_or_default();
            if !before.ends_with(b"\r") {
                return Err(Reason::HttpMalformed);
            }
            if line_feed == 1 {
                return Err(Reason::HttpMalformed);
            }
            if before.ends_with(b"\r\n\r") {
                self.scanned = 0;
                return self.within_bound(line_feed + 1).map(Some);
            }
        }
        self.scanned = held.len();
        self.within_bound(held.len()).map(|_| None)
    }

    fn within_bound(&self, bytes: usize) -> Result<usize, Reason> {
        if bytes > self.head_bytes { Err(Reason::HeaderLimit) } else { Ok(bytes) }
    }

    fn clear_chunk_size(&mut self, held: &[u8]) -> Result<usize, Reason> {
        let Some(line_feed) = memchr::memchr(b'\n', held) else {
            // The carriage return of a line of the greatest length may be here already.
            let too_long = held.len() > MAX_CHUNK_LINE + 1;
            return if too_long { Err(Reason::HttpMalformed) } else { Ok(0) };
        };
        let line = held.get(..line_feed).and_then(|line| line.strip_suffix(b"\r"));
        let line = line.filter(|line| line.len() <= MAX_CHUNK_LINE).ok_or(Reason::HttpMalformed)?;
        self.state = match chunk_size(line)? {
            0 => FramingState::Trailers,
            size => FramingState::ChunkData(size),
        };
        Ok(line_feed + 1)
    }

    fn clear_chunk_end(&mut self, held: &[u8]) -> Result<usize, Reason> {
        match held {
            [b'\r', b'\n', ..] => {
                self.state = FramingState::ChunkSize;
                Ok(2)
            }
            [] | [b'\r'] => Ok(0),
            _ => Err(Reason::HttpMalformed),
        }
    }

    fn clear_trailers(&mut self, held: &[u8], rule: &dyn TrailerRule) -> Result<usize, Reason> {
        if held.starts_with(b"\r\n") {
            self.state = FramingState::Head;
            return Ok(2);
        }
        if held == b"\r" || held.is_empty() {
            return Ok(0);
        }
        let Some(end) = self.find_section_end(held)? else { return Ok(0) };
        rule.check(&read_trailers(held.get(..end).unwrap_or_default(), self.head_fields)?)?;
        self.state = FramingState::Head;
        Ok(end)
    }

    fn enter_fixed(&mut self, left: u64) {
        self.state = if left == 0 { FramingState::Head } else { FramingState::Fixed(left) };
    }
}

fn read_head(head: &[u8], max_fields: usize) -> Result<BodyKind, Reason> {
    refuse_bare_cr(head)?;
    let mut fields = room_for_fields(head, max_fields);
    let mut request = httparse::Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(length)) if length == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Err(Reason::HeaderLimit),
        _ => return Err(Reason::HttpMalformed),
    }
    check_as_read_later(&request)?;
    body_kind(request.headers, request.version)
}

/// Makes a method, a target and fields of a head, as hyper will. Where hyper fails to do so, it
/// answers by itself, without a word and without a record.
fn check_as_read_later(request: &httparse::Request<'_, '_>) -> Result<(), Reason> {
    let method = request.method.unwrap_or_default();
    Method::from_bytes(method.as_bytes()).map_err(|_| Reason::HttpMalformed)?;
    check_target(request.path.unwrap_or_default())?;
    request.headers.iter().try_for_each(|field| read_field(field).map(|_| ()))
}

/// Checks a target. A fragment, which hyper would drop, has no place in one (RFC 9112, section
/// 3.2.1).
fn check_target(target: &str) -> Result<(), Reason> {
    if target.len() > MAX_TARGET {
        return Err(Reason::HeaderLimit);
    }
    if target.contains('#') || Uri::try_from(target).is_err() {
        return Err(Reason::HttpMalformed);
    }
    Ok(())
}

fn read_field(field: &Header<'_>) -> Result<(HeaderName, HeaderValue), Reason> {
    if field.name.len() > MAX_NAME {
        return Err(Reason::HeaderLimit);
    }
    let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| Reason::HttpMalformed)?;
    let value = HeaderValue::from_bytes(field.value).map_err(|_| Reason::HttpMalformed)?;
    Ok((name, value))
}

/// Makes room for as many fields as a section has lines, so that a short section costs little
/// whatever the limit is.
fn room_for_fields(section: &[u8], most: usize) -> Vec<Header<'_>> {
    let lines = memchr_iter(b'\n', section).count();
    vec![httparse::EMPTY_HEADER; lines.min(most)]
}

/// Decides how the body is framed, by RFC 9112, section 6.3, without the leniency that it permits.
fn body_kind(fields: &[Header<'_>], version: Option<u8>) -> Result<BodyKind, Reason> {
    let named = |name: &'static str| {
        fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name))
    };
    let mut lengths = named("content-length");
    let mut codings = named("transfer-encoding");
    let (length, coding) = (lengths.next(), codings.next());
    if lengths.next().is_some() || codings.next().is_some() {
        return Err(Reason::HttpMalformed);
    }
    match (length, coding) {
        (None, None) => Ok(BodyKind::None),
        (Some(length), None) => Ok(match content_length(length.value)? {
            0 => BodyKind::None,
            bytes => BodyKind::Fixed(bytes),
        }),
        (None, Some(coding))
            if version == Some(1) && coding.value.eq_ignore_ascii_case(b"chunked") =>
        {
            Ok(BodyKind::Chunked)
        }
        _ => Err(Reason::HttpMalformed),
    }
}

/// Reads a length: digits without a zero before them, which some readers take for octal, because
/// the field goes on as it is.
pub(in crate::intercept) fn content_length(value: &[u8]) -> Result<u64, Reason> {
    let digits = match value {
        [b'0'] => true,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    let text = std::str::from_utf8(value).map_err(|_| Reason::HttpMalformed)?;
    let length = text.parse().ok().filter(|length| digits && *length <= MAX_LENGTH);
    length.ok_or(Reason::HttpMalformed)
}

/// Reads `chunk-size [ chunk-ext ]` (RFC 9112, section 7.1). Extensions are dropped, so they only
/// have to be free of control bytes.
fn chunk_size(line: &[u8]) -> Result<u64, Reason> {
    let (size, extension) = match memchr::memchr(b';', line) {
        Some(at) => line.split_at_checked(at).ok_or(Reason::HttpMalformed)?,
        None => (line, &[][..]),
    };
    let hex = !size.is_empty() && size.len() <= 15 && size.iter().all(u8::is_ascii_hexdigit);
    if !hex || extension.iter().any(u8::is_ascii_control) {
        return Err(Reason::HttpMalformed);
    }
    let size = std::str::from_utf8(size).map_err(|_| Reason::HttpMalformed)?;
    u64::from_str_radix(size, 16).map_err(|_| Reason::HttpMalformed)
}

fn read_trailers(section: &[u8], max_fields: usize) -> Result<HeaderMap, Reason> {
    refuse_bare_cr(section)?;
    let mut fields = room_for_fields(section, max_fields);
    let fields = match httparse::parse_headers(section, &mut fields) {
        Ok(httparse::Status::Complete((_, fields))) => fields,
        Err(httparse::Error::TooManyHeaders) => return Err(Reason::HeaderLimit),
        _ => return Err(Reason::HttpMalformed),
    };
    fields.iter().map(read_field).collect()
}

fn refuse_bare_cr(section: &[u8]) -> Result<(), Reason> {
    let followed = |at: usize| section.get(at + 1) == Some(&b'\n');
    if memchr_iter(b'\r', section).all(followed) { Ok(()) } else { Err(Reason::HttpMalformed) }
}

/// The greatest length of a body: readers that use signed numbers take a greater one as negative.
const MAX_LENGTH: u64 = i64::MAX as u64;
/// The most bytes of a target that hyper reads.
const MAX_TARGET: usize = u16::MAX as usize - 1;
/// The most bytes of a field's name that hyper reads.
const MAX_NAME: usize = u16::MAX as usize;
/// The most bytes of a chunk's size and extensions.
const MAX_CHUNK_LINE: usize = 256;

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Empty;
    use hyper::{body::Incoming, server::conn::http1, service::service_fn};
    use hyper_util::rt::TokioIo;
    use proptest::{collection::vec, prelude::*};
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    struct NoAuthorization;

    impl TrailerRule for NoAuthorization {
        fn check(&self, trailers: &HeaderMap) -> Result<(), Reason> {
            if trailers.contains_key("authorization") { Err(Reason::TrailerDenied) } else { Ok(()) }
        }
    }

    /// Clears `stream`, arriving in pieces of at most `step`, and returns what was cleared.
    fn run(stream: &[u8], step: usize) -> (Vec<u8>, Result<bool, Reason>) {
        run_within(&Limits::default(), stream, step)
    }

    fn run_within(limits: &Limits, stream: &[u8], step: usize) -> (Vec<u8>, Result<bool, Reason>) {
        let mut framing = Framing::new(limits);
        let (mut held, mut cleared) = (Vec::new(), Vec::new());
        for piece in stream.chunks(step) {
            held.extend_from_slice(piece);
            loop {
                match framing.clear(&held, &NoAuthorization) {
                    Ok(0) => break,
                    Ok(bytes) => cleared.extend(held.drain(..bytes)),
                    Err(reason) => return (cleared, Err(reason)),
                }
            }
        }
        (cleared, Ok(held.is_empty() && framing.at_head()))
    }

    const GOOD: &[&str] = &[
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\ntransfer-encoding: Chunked\r\n\r\n5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Sum: 1\r\n\r\n",
        "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n0\r\n\r\nGET /2 HTTP/1.1\r\n\r\n",
    ];

    const BAD: &[(&str, Reason)] = &[
        ("GET / HTTP/1.1\nHost: a\n\n", Reason::HttpMalformed),
        ("GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", Reason::HttpMalformed),
        ("GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", Reason::HttpMalformed),
        ("\r\nGET / HTTP/1.1\r\n\r\n", Reason::HttpMalformed),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", Reason::HttpMalformed),
        ("GET /<x> HTTP/1.1\r\nHost: a\r\n\r\n", Reason::HttpMalformed),
        ("GET / HTTP/1.1\r\nX: a\r\n folded\r\n\r\n", Reason::HttpMalformed),
        (
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            Reason::HttpMalformed,
        ),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
            Reason::HttpMalformed,
        ),
        (
            "POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            Reason::HttpMalformed,
        ),
        ("POST / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n", Reason::HttpMalformed),
        ("POST / HTTP/1.1\r\nContent-Length: +5\r\n\r\n", Reason::HttpMalformed),
        ("POST / HTTP/1.1\r\nContent-Length: 05\r\n\r\n", Reason::HttpMalformed),
        ("POST / HTTP/1.1\r\nContent-Length: 00\r\n\r\n", Reason::HttpMalformed),
        ("POST / HTTP/1.1\r\nContent-Length: \r\n\r\n", Reason::HttpMalformed),
        ("POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", Reason::HttpMalformed),
        ("POST / HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n", Reason::HttpMalformed),
        ("POST / HTTP/1.1\r\nContent-Length: 9223372036854775808\r\n\r\n", Reason::HttpMalformed),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Reason::HttpMalformed),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: identity\r\n\r\n", Reason::HttpMalformed),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            Reason::HttpMalformed,
        ),
        ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Reason::HttpMalformed),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5 \r\n", Reason::HttpMalformed),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\n", Reason::HttpMalformed),
        ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello", Reason::HttpMalformed),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n",
            Reason::HttpMalformed,
        ),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000000\r\n",
            Reason::HttpMalformed,
        ),
        (
            "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nAuthorization: Bearer x\r\n\r\n",
            Reason::TrailerDenied,
        ),
    ];

    #[test]
    fn what_has_one_meaning_is_cleared_whole_at_every_split() {
        for stream in GOOD {
            for step in 1..=stream.len() {
                let (cleared, end) = run(stream.as_bytes(), step);
                assert_eq!(end, Ok(true), "{stream:?} by {step}");
                assert_eq!(cleared, stream.as_bytes());
            }
        }
    }

    #[test]
    fn what_could_have_two_meanings_is_refused_at_every_split() {
        for (stream, reason) in BAD {
            for step in 1..=stream.len() {
                let (_, end) = run(stream.as_bytes(), step);
                assert_eq!(end, Err(*reason), "{stream:?} by {step}");
            }
        }
    }

    #[test]
    fn a_chunk_line_is_cleared_up_to_its_longest_length() {
        let stream = |line: usize| {
            let extension = "x".repeat(line - "0;".len());
            format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0;{extension}\r\n\r\n")
        };
        let (longest, longer) = (stream(MAX_CHUNK_LINE), stream(MAX_CHUNK_LINE + 1));
        for step in 1..=longest.len() {
            assert_eq!(run(longest.as_bytes(), step).1, Ok(true), "by {step}");
            assert_eq!(run(longer.as_bytes(), step).1, Err(Reason::HttpMalformed), "by {step}");
        }
    }

    #[test]
    fn no_head_is_cleared_before_it_is_whole() {
        let head = GOOD[0].as_bytes();
        for end in 0..head.len() {
            assert_eq!(run(&head[..end], head.len()).0, b"", "{end}");
        }
    }

    #[test]
    fn a_cleared_target_is_one_the_library_reads_whole() {
        for byte in 0..=u8::MAX {
            let head = [b"GET /a", &[byte][..], b"c HTTP/1.1\r\nHost: a\r\n\r\n"].concat();
            if run(&head, head.len()).1 == Ok(true) {
                let target = head.get(4..8).unwrap();
                let uri = Uri::try_from(target).unwrap_or_else(|_| panic!("{byte:#x}"));
                let read = uri.path_and_query().unwrap().as_str();
                assert_eq!(read.as_bytes(), target, "{byte:#x}");
            }
        }
    }

    #[test]
    fn a_head_beyond_its_bounds_is_refused() {
        let endless = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; 70_000]].concat();
        assert_eq!(run(&endless, 4096).1, Err(Reason::HeaderLimit));
    }

    #[test]
    fn exactly_as_many_fields_as_the_limit_are_read() {
        for limit in [16, 100, 128, 129, 1_000] {
            let limits = Limits { head_fields: limit, ..Limits::default() };
            let read = |fields: usize| {
                let fields = "A: b\r\n".repeat(fields);
                let head = format!("GET / HTTP/1.1\r\n{fields}\r\n");
                let trailers = format!(
                    "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{fields}\r\n"
                );
                [head, trailers].map(|stream| run_within(&limits, stream.as_bytes(), 4096).1)
            };
            assert_eq!(read(limit), [Ok(true); 2], "{limit}");
            assert_eq!(read(limit + 1), [Err(Reason::HeaderLimit); 2], "{limit}");
        }
    }

    #[test]
    fn heads_too_long_for_the_library_are_beyond_any_bounds() {
        let limits = Limits { head_bytes: 1 << 20, ..Limits::default() };
        let (longest, longer) = (u16::MAX as usize, u16::MAX as usize + 1);
        let name = |bytes| format!("GET / HTTP/1.1\r\n{}: b\r\n\r\n", "a".repeat(bytes));
        let target = |bytes: usize| format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(bytes - 1));
        for (head, end) in [
            (name(longest), Ok(true)),
            (name(longer), Err(Reason::HeaderLimit)),
            (target(longest - 1), Ok(true)),
            (target(longest), Err(Reason::HeaderLimit)),
        ] {
            assert_eq!(run_within(&limits, head.as_bytes(), 4096).1, end, "{} bytes", head.len());
        }
    }

    /// Whether hyper makes a request of a head, with the bounds that it is given behind the guard.
    async fn is_a_request(head: &[u8]) -> bool {
        let (mut agent, gateway) = tokio::io::duplex(1 << 20);
        let (asked, limits) = (std::cell::Cell::new(false), Limits::default());
        let service = service_fn(|_: Request<Incoming>| {
            asked.set(true);
            async { Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())) }
        });
        agent.write_all(head).await.unwrap();
        agent.shutdown().await.unwrap();
        let mut builder = http1::Builder::new();
        builder.max_headers(limits.head_fields);
        let _ = builder.serve_connection(TokioIo::new(gateway), service).await;
        asked.get()
    }

    /// A head in which one piece is replaced by arbitrary bytes.
    fn heads() -> impl Strategy<Value = Vec<u8>> {
        let odd = prop_oneof![
            any::<u8>().prop_map(|byte| vec![byte]),
            vec(any::<u8>(), 0..6),
            vec(
                prop_oneof![
                    Just(b' '),
                    Just(b'\t'),
                    Just(b':'),
                    Just(b'/'),
                    Just(b'0'),
                    Just(b'%')
                ],
                0..6
            ),
            "[!-~]{0,12}".prop_map(String::into_bytes),
            any::<u64>().prop_map(|number| number.to_string().into_bytes()),
            (u64::MAX - 8..=u64::MAX).prop_map(|number| number.to_string().into_bytes()),
        ];
        let pieces = [
            "POST",
            " ",
            "/v1/x",
            " ",
            "HTTP/1.1",
            "\r\n",
            "Host",
            ": ",
            "api.example",
            "\r\n",
            "Content-Length",
            ": ",
            "0",
            "\r\n",
            "Expect",
            ": ",
            "100-continue",
            "\r\n\r\n",
        ];
        (odd, 0..pieces.len(), any::<bool>()).prop_map(move |(odd, at, beside)| {
            let piece = |it: usize| match (it == at, beside) {
                (false, _) => pieces[it].as_bytes().to_vec(),
                (true, true) => [pieces[it].as_bytes(), &odd].concat(),
                (true, false) => odd.clone(),
            };
            (0..pieces.len()).flat_map(piece).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn a_cleared_head_is_a_request_for_the_library(head in heads()) {
            let (cleared, end) = run(&head, head.len());
            if end == Ok(true) && cleared == head {
                let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                prop_assert!(runtime.block_on(is_a_request(&head)), "{}", head.escape_ascii());
            }
        }
    }

    proptest! {
        #[test]
        fn the_split_never_changes_the_answer(
            bytes in vec(prop_oneof![
                Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'5'), Just(b':'), Just(b' '), any::<u8>(),
            ], 0..200),
            start in 0..GOOD.len(),
            step in 1..50usize,
        ) {
            let stream = [GOOD[start].as_bytes(), &bytes].concat();
            let (whole, end) = run(&stream, stream.len());
            let (pieces, end_in_pieces) = run(&stream, step);
            prop_assert_eq!(end, end_in_pieces);
            prop_assert_eq!(whole, pieces);
        }
    }
}
