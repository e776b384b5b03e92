//! The first bytes of a connection: one answer however they are cut, and for a plain HTTP head the
//! host and the credentials that hyper would find.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE},
};
use cloakroom::{
    peek::{PeekFailure, Peeked, PeekedBytes, PlainHead, Progress, parse, read},
    policy::{Limits, is_credential_header},
};

use crate::{
    input::Input,
    reader::{Message, Pieces, block_on, requests},
};

/// Takes a byte for the size of pieces, and the stream.
pub(crate) fn any_stream(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let most = input.up_to(256);
    let stream = input.rest();
    let whole = parse(stream);
    check_prefixes(stream, &whole);
    for most in [1, most] {
        check_pieces(stream, most, &whole);
    }
    if let Progress::Done(Peeked::Http(head)) = &whole {
        check_head(stream, head);
    }
}

/// Checks that every prefix has the answer of the whole, or none, and that no longer prefix changes
/// an answer.
fn check_prefixes(stream: &[u8], whole: &Progress) {
    let mut answered = false;
    let step = 1 + stream.len() / MOST_PREFIXES;
    for end in (0..stream.len()).step_by(step) {
        match parse(&stream[..end]) {
            Progress::NeedMore => assert!(!answered, "taken back at {end}"),
            answer => {
                assert_eq!(answer, *whole, "another answer at {end}");
                answered = true;
            }
        }
    }
}

/// Checks that reading in pieces gives the answer of the whole, and loses and adds no byte.
pub(crate) fn check_pieces(stream: &[u8], most: usize, whole: &Progress) -> Option<usize> {
    let limits = Limits::default();
    if stream.len() >= limits.peek_bytes.min(limits.head_bytes) {
        return None;
    }
    let mut pieces = Pieces { left: stream, most };
    match (block_on(read(&mut pieces, &limits, |_| Some(()))), whole) {
        (Ok(PeekedBytes { peeked, bytes }), Progress::Done(meant)) => {
            assert_eq!(peeked, *meant);
            assert_eq!(bytes, stream[..bytes.len()], "other bytes are replayed than were read");
            assert_eq!(bytes.len() + pieces.left.len(), stream.len(), "bytes are lost");
            Some(bytes.len())
        }
        (Err(PeekFailure::Refused(reason)), Progress::Malformed(meant)) => {
            assert_eq!(reason, *meant);
            None
        }
        (Err(PeekFailure::Closed), Progress::NeedMore) => None,
        (read, whole) => panic!("{read:?} in pieces of {most}, {whole:?} as a whole"),
    }
}

/// Checks that the host is the one that hyper reads, and that no credential that hyper sees is
/// overlooked.
fn check_head(stream: &[u8], head: &PlainHead) {
    let Some(request) = requests(stream).into_iter().next() else { return };
    check_host(&request, head);
    for (name, values) in &request.fields {
        for value in values.iter().filter(|_| is_credential_header(name.as_bytes())) {
            check_credential(value, head);
        }
    }
}

fn check_host(request: &Message, head: &PlainHead) {
    let Some(host) = &head.host else { return };
    let [value] = &request.fields["host"][..] else { panic!("several hosts are read as one") };
    let mut text = host.as_str().to_owned();
    if let Some(port) = head.port {
        text = format!("{text}:{port}");
    }
    // With a final dot or leading zeros of the port it is the same name and number.
    let value = String::from_utf8_lossy(value).to_ascii_lowercase();
    let (name, port) = value.split_once(':').unwrap_or((&value, ""));
    let name = name.strip_suffix('.').unwrap_or(name);
    let port = port.trim_start_matches('0');
    let same = if port.is_empty() { name.to_owned() } else { format!("{name}:{port}") };
    assert_eq!(same, text, "hyper reads another host");
}

fn check_credential(value: &[u8], head: &PlainHead) {
    let told = |text: &[u8]| head.credentials.iter().any(|one| **one == *text);
    let value = value.trim_ascii();
    assert!(told(value), "{:?} is not told", value.escape_ascii());
    let Some(space) = value.iter().position(u8::is_ascii_whitespace) else { return };
    let credential = value[space..].trim_ascii();
    assert!(told(credential), "{:?} is not told", credential.escape_ascii());
    if !value[..space].eq_ignore_ascii_case(b"basic") {
        return;
    }
    for engine in [STANDARD, URL_SAFE] {
        let Ok(pair) = engine.decode(credential) else { continue };
        let colon = pair.iter().position(|byte| *byte == b':').unwrap_or(pair.len());
        let password = pair.get(colon + 1..).unwrap_or_default();
        assert!(told(&pair[..colon]) && (colon == pair.len() || told(password)), "{pair:?}");
    }
}

/// Most prefixes of one stream that are tried.
const MOST_PREFIXES: usize = 256;
