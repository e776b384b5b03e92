//! HTTP/1 that the strict reader passes: hyper, behind it, sees the same requests with the same
//! targets, fields, bodies and ends.

use std::ops::Range;

use cloakroom::{
    intercept::{Framing, TrailerRule},
    policy::Limits,
    reason::Reason,
};
use http::{HeaderMap, Version};

use crate::{
    input::Input,
    reader::{Fields, Message, add, requests},
};

/// Takes a byte for the size of pieces, and the stream.
pub(crate) fn any_stream(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let most = input.up_to(256);
    let stream = input.rest();
    let whole = Passed::new(stream, stream.len().max(1));
    assert_eq!(stream[..whole.bytes.len()], whole.bytes, "something else is let through");
    for most in [1, most] {
        assert_eq!(Passed::new(stream, most), whole, "in pieces of {most}");
    }
    check(&whole);
}

/// The passed part of a stream, the places of its heads, and how it ended.
#[derive(Debug, PartialEq, Eq)]
struct Passed {
    bytes: Vec<u8>,
    heads: Vec<Head>,
    end: Result<(), Reason>,
    /// Whether the passed part ends behind a whole message.
    at_head: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    at: Range<usize>,
    kind: Body,
}

/// The body after a head.
#[derive(Debug, PartialEq, Eq)]
enum Body {
    None,
    Fixed(u64),
    Chunked,
}

impl Passed {
    fn new(stream: &[u8], most: usize) -> Self {
        let mut framing = Framing::new(&Limits::default());
        let mut held = Vec::new();
        let mut passed = Self { bytes: Vec::new(), heads: Vec::new(), end: Ok(()), at_head: true };
        for piece in stream.chunks(most) {
            held.extend_from_slice(piece);
            passed.end = passed.take(&mut framing, &mut held);
            if passed.end.is_err() {
                break;
            }
        }
        passed.at_head = framing.at_head();
        passed
    }

    fn take(&mut self, framing: &mut Framing, held: &mut Vec<u8>) -> Result<(), Reason> {
        loop {
            let at_head = framing.at_head();
            let count = framing.clear(held, &NoAuthorization)?;
            if count == 0 {
                return Ok(());
            }
            let begin = self.bytes.len();
            self.bytes.extend(held.drain(..count));
            if at_head {
                let kind = match (framing.at_head(), framing.opaque()) {
                    (true, _) => Body::None,
                    (false, 0) => Body::Chunked,
                    (false, bytes) => Body::Fixed(bytes),
                };
                self.heads.push(Head { at: begin..begin + count, kind });
            }
        }
    }
}

/// Checks that hyper reads the passed messages as they stand, up to one behind which it closes the
/// connection.
fn check(passed: &Passed) {
    let meant = messages(passed);
    let read = requests(&passed.bytes);
    assert!(read.len() <= meant.len(), "hyper reads {read:?}, and {meant:?} was let through");
    for (read, meant) in read.iter().zip(&meant) {
        if meant.end.is_none() {
            // hyper decides how much of a body without its end it passes on.
            let same = |message: &Message| (message.method.clone(), message.target.clone());
            assert_eq!((same(read), &read.fields, &read.end), (same(meant), &meant.fields, &None));
            assert!(meant.body.starts_with(&read.body), "{read:?} is read, {meant:?} was meant");
        } else {
            assert_eq!(read, meant);
        }
    }
    if read.len() < meant.len() {
        let last = read.last().map(closes);
        assert_eq!(last, Some(true), "hyper reads {read:?}, and {meant:?} was let through");
    }
}

/// Returns whether a server may close the connection behind a request.
fn closes(message: &Message) -> bool {
    let asks = |name| message.fields.contains_key(name);
    message.version == Version::HTTP_10
        || message.method == http::Method::CONNECT
        || asks("connection")
        || asks("upgrade")
}

fn messages(passed: &Passed) -> Vec<Message> {
    let next = passed.heads.iter().skip(1).map(|head| head.at.start);
    let ends = next.chain([passed.bytes.len()]);
    let last = passed.heads.len().saturating_sub(1);
    let each = passed.heads.iter().zip(ends).enumerate();
    each.map(|(number, (head, end))| {
        let whole = number < last || passed.at_head;
        message(&passed.bytes[head.at.clone()], &passed.bytes[head.at.end..end], &head.kind, whole)
    })
    .collect()
}

/// Reads a message in the plainest way.
fn message(head: &[u8], rest: &[u8], kind: &Body, whole: bool) -> Message {
    let mut lines = lines(head);
    let first = lines.next().expect("a request line");
    let words: Vec<_> = first.split(|byte| *byte == b' ').collect();
    let [method, target, version] = words[..] else { panic!("{:?}", first.escape_ascii()) };
    let (body, trailers) = match kind {
        Body::None => {
            assert!(rest.is_empty(), "a body behind a head without one");
            (Vec::new(), Fields::new())
        }
        Body::Fixed(length) => {
            assert_eq!(whole, rest.len() as u64 == *length, "a body of another length");
            (rest.to_vec(), Fields::new())
        }
        Body::Chunked => dechunked(rest),
    };
    Message {
        method: http::Method::from_bytes(method).expect("a method"),
        target: as_written(std::str::from_utf8(target).expect("a target")),
        version: if version == b"HTTP/1.0" { Version::HTTP_10 } else { Version::HTTP_11 },
        fields: fields(lines),
        body,
        end: whole.then_some(trailers),
    }
}

/// Returns the target. A path stays as it is; hyper adds one to a whole URL, which the gateway
/// refuses later.
fn as_written(target: &str) -> String {
    if target.starts_with('/') {
        return target.to_owned();
    }
    target.parse::<http::Uri>().expect("a target").to_string()
}

/// Returns the lines of a section, without empty ones.
fn lines(section: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines =
        section.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    lines.filter(|line| !line.is_empty())
}

fn fields<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Fields {
    let mut fields = Fields::new();
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').expect("a field");
        let name = std::str::from_utf8(&line[..colon]).expect("a name");
        add(&mut fields, name, line[colon + 1..].trim_ascii());
    }
    fields
}

/// Returns the content of a chunked body (RFC 9112, section 7.1), as far as it goes, and its
/// trailers.
fn dechunked(mut rest: &[u8]) -> (Vec<u8>, Fields) {
    let mut content = Vec::new();
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let size = rest[..end].split(|byte| b";\r".contains(byte)).next().unwrap_or_default();
        let size = std::str::from_utf8(size).expect("a chunk's size");
        let size = usize::from_str_radix(size, 16).expect("a chunk's size");
        rest = &rest[end + 1..];
        if size == 0 {
            return (content, fields(lines(rest)));
        }
        content.extend_from_slice(&rest[..size.min(rest.len())]);
        rest = rest.get(size.saturating_add(2)..).unwrap_or_default();
    }
    (content, Fields::new())
}

struct NoAuthorization;

impl TrailerRule for NoAuthorization {
    fn check(&self, trailers: &HeaderMap) -> Result<(), Reason> {
        if trailers.contains_key("authorization") { Err(Reason::TrailerDenied) } else { Ok(()) }
    }
}
