//! A strict reader of a plain HTTP/1 request head (RFC 9112, sections 2 to 5).
//!
//! Lines end in CRLF and nothing else; the target is in origin form; the method and the number of
//! fields are bounded. The reader returns the named host and the credentials in the head, so that a
//! placeholder sent in the clear can be told apart from ordinary traffic. Credentials are decoded
//! generously, since they only ever lead to a refusal.

use base64::{Engine as _, alphabet, engine};
use httparse::{EMPTY_HEADER, Header, Request};

use super::{Peeked, PlainHead, Progress};
use crate::{
    policy::{Host, is_credential_header},
    reason::Reason,
};

/// The state of reading a head.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct HeadScan {
    /// Bytes of the stream that were read.
    at: usize,
    /// The byte before.
    last: u8,
    part: HeadPart,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum HeadPart {
    #[default]
    Method,
    RequestLine,
    /// A field line, with the number of its bytes that were read.
    Field(usize),
}

impl HeadScan {
    /// Reads on in the whole stream so far.
    pub(super) fn advance(&mut self, bytes: &[u8], max_fields: usize) -> Progress {
        while let Some(&byte) = bytes.get(self.at) {
            self.at += 1;
            if self.part == HeadPart::Method {
                if byte == b' ' {
                    self.part = HeadPart::RequestLine;
                } else if !is_token(byte) || self.at > MAX_METHOD {
                    return Progress::Done(Peeked::Other);
                }
            } else if breaks_line(self.last, byte) {
                return MALFORMED;
            } else if byte == b'\n' {
                let head = bytes.get(..self.at).unwrap_or_default();
                match self.part {
                    HeadPart::Field(1) => return parse(head, max_fields),
                    HeadPart::RequestLine if !names_version(head) => return without_version(head),
                    _ => self.part = HeadPart::Field(0),
                }
            } else if let HeadPart::Field(len) = &mut self.part {
                *len += 1;
            }
            self.last = byte;
        }
        Progress::NeedMore
    }
}

/// Returns whether a byte may stand in a method or a field name (RFC 9110, section 5.6.2).
pub(super) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Returns whether a byte is not allowed here: CR and LF come only as a pair, and no other control
/// character comes at all.
fn breaks_line(last: u8, byte: u8) -> bool {
    let pair = (last == b'\r') == (byte == b'\n');
    !pair || (byte.is_ascii_control() && !matches!(byte, b'\t' | b'\r' | b'\n'))
}

fn names_version(line: &[u8]) -> bool {
    line.ends_with(b" HTTP/1.1\r\n") || line.ends_with(b" HTTP/1.0\r\n")
}

/// Judges a first line without an HTTP version. Other protocols use lines too, so only a line that
/// mentions HTTP is held to HTTP's rules.
fn without_version(line: &[u8]) -> Progress {
    match memchr::memmem::find(line, b" HTTP/") {
        Some(_) => MALFORMED,
        None => Progress::Done(Peeked::Other),
    }
}

fn parse(head: &[u8], max_fields: usize) -> Progress {
    let mut fields = vec![EMPTY_HEADER; max_fields];
    let mut request = Request::new(&mut fields);
    match request.parse(head) {
        Ok(httparse::Status::Complete(len)) if len == head.len() => {}
        Err(httparse::Error::TooManyHeaders) => return Progress::Malformed(Reason::HeaderLimit),
        _ => return MALFORMED,
    }
    match (request.method, request.path) {
        (Some("CONNECT"), _) => return Progress::Malformed(Reason::ConnectDenied),
        (Some("OPTIONS"), Some("*")) => {}
        (_, Some(path)) if path.starts_with('/') => {}
        _ => return MALFORMED,
    }
    let (host, port) = read_host(request.headers).unzip();
    let fields = request.headers.iter().map(|field| (field.name, field.value));
    let credentials = read_credentials(fields);
    Progress::Done(Peeked::Http(PlainHead { host, port: port.flatten(), credentials }))
}

/// Returns the one Host field (RFC 9112, section 3.2), if it is plain.
fn read_host(fields: &[Header<'_>]) -> Option<(Host, Option<u16>)> {
    let mut hosts = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    let value = std::str::from_utf8(hosts.next()?.value.trim_ascii()).ok()?;
    if hosts.next().is_some() {
        return None;
    }
    match value.split_once(':') {
        None => Some((Host::parse(value).ok()?, None)),
        Some((name, port)) => Some((Host::parse(name).ok()?, Some(read_port(port)?))),
    }
}

fn read_port(digits: &str) -> Option<u16> {
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|&port| plain && port != 0)
}

/// Returns the texts that may be credentials in fields with these names and values.
pub(crate) fn read_credentials<'f>(
    fields: impl Iterator<Item = (&'f str, &'f [u8])>,
) -> Vec<Box<[u8]>> {
    let mut found = Vec::new();
    for (_, value) in fields.filter(|(name, _)| is_credential_header(name.as_bytes())) {
        let value = value.trim_ascii();
        found.push(value.into());
        let Some(space) = value.iter().position(u8::is_ascii_whitespace) else { continue };
        let (scheme, rest) = value.split_at(space);
        let rest = rest.trim_ascii();
        found.push(rest.into());
        if scheme.eq_ignore_ascii_case(b"basic") {
            read_basic(rest, &mut found);
        }
    }
    found
}

/// Reads user and password (RFC 7617, section 2); a text without a colon counts as the user.
fn read_basic(encoded: &[u8], found: &mut Vec<Box<[u8]>>) {
    let decoded = BASE64.decode(encoded).or_else(|_| BASE64_URL.decode(encoded));
    let Ok(decoded) = decoded else { return };
    found.extend(decoded.splitn(2, |&byte| byte == b':').map(Into::into));
    // A placeholder in the shape of a key may hold a colon itself.
    found.push(decoded.strip_suffix(b":").unwrap_or(&decoded).into());
}

const MALFORMED: Progress = Progress::Malformed(Reason::HttpMalformed);

/// Longest method in bytes; the longest registered one has 17 (IANA, HTTP Method Registry).
const MAX_METHOD: usize = 24;

/// Decodes base64 as leniently as any origin would: padding or none, stray trailing bits.
const LENIENT: engine::GeneralPurposeConfig = engine::GeneralPurposeConfig::new()
    .with_decode_padding_mode(engine::DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const BASE64: engine::GeneralPurpose = engine::GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const BASE64_URL: engine::GeneralPurpose =
    engine::GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
