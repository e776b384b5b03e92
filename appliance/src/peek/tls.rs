//! From TLS records to one complete ClientHello, read by two parsers.
//!
//! Accepts handshake records of any length (RFC 8446, section 5.1), down to one byte each, and
//! nothing else before the hello is complete. Our own parser finds ECH, which rustls does not show;
//! rustls, which terminates intercepted connections, is the second opinion over the same bytes.
//! Where the two differ, or either objects, the hello is malformed.

use rustls::server::{Acceptor, ClientHello};

use super::{Hello, Peeked, Progress, client_hello};
use crate::{policy::Host, reason::Reason};

/// The state of reading the records of a ClientHello.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct HelloScan {
    /// Bytes of the stream that were read.
    at: usize,
    /// Payload bytes of the current record that are still missing.
    record_left: usize,
    /// Bytes of the handshake message that were read.
    seen: usize,
    /// The message's length so far; the header may itself be spread over records.
    body_len: usize,
}

impl HelloScan {
    /// Reads on in the whole stream so far.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Progress {
        match self.find_end(bytes) {
            Ok(None) => Progress::NeedMore,
            Ok(Some(end)) => judge(bytes.get(..end).unwrap_or_default()),
            Err(TlsViolation) => MALFORMED,
        }
    }

    /// Returns the offset just after the record that completes the hello.
    fn find_end(&mut self, bytes: &[u8]) -> Result<Option<usize>, TlsViolation> {
        loop {
            if self.record_left == 0 {
                let Some(header) = bytes.get(self.at..).and_then(|rest| rest.first_chunk()) else {
                    return check_partial_header(bytes.get(self.at..).unwrap_or_default());
                };
                self.record_left = record_len(*header)?;
                self.at += header.len();
            }
            let Some(payload) = bytes.get(self.at..).filter(|rest| !rest.is_empty()) else {
                return Ok(None);
            };
            let taken = payload.len().min(self.record_left);
            self.read_message_header(payload.get(..taken).unwrap_or_default())?;
            self.at += taken;
            self.record_left -= taken;
            self.seen += taken;
            if self.seen < MESSAGE_HEADER {
                continue;
            }
            let whole = MESSAGE_HEADER + self.body_len;
            if self.seen + self.record_left > whole {
                return Err(TlsViolation); // RFC 8446, section 5.1: nothing may follow in this record
            }
            if self.seen == whole {
                return Ok(Some(self.at));
            }
        }
    }

    /// Reads type and length (RFC 8446, section 4) from the first four bytes of the message.
    fn read_message_header(&mut self, payload: &[u8]) -> Result<(), TlsViolation> {
        for (index, &byte) in (self.seen..MESSAGE_HEADER).zip(payload) {
            match index {
                0 if byte != CLIENT_HELLO => return Err(TlsViolation),
                0 => {}
                _ => self.body_len = self.body_len << 8 | usize::from(byte),
            }
        }
        if self.body_len > MAX_BODY { Err(TlsViolation) } else { Ok(()) }
    }
}

/// The error where the stream breaks a rule of TLS, or one of ours.
struct TlsViolation;

fn record_len(
    [kind, major, _minor, high, low]: [u8; RECORD_HEADER],
) -> Result<usize, TlsViolation> {
    let len = usize::from(u16::from_be_bytes([high, low]));
    let plain = kind == HANDSHAKE && major == 3 && (1..=MAX_FRAGMENT).contains(&len);
    if plain { Ok(len) } else { Err(TlsViolation) }
}

/// Refuses bytes that are no record header at the first wrong byte, so that nobody waits for the
/// rest.
fn check_partial_header(header: &[u8]) -> Result<Option<usize>, TlsViolation> {
    let kind = header.first().is_none_or(|&kind| kind == HANDSHAKE);
    let major = header.get(1).is_none_or(|&major| major == 3);
    if kind && major { Ok(None) } else { Err(TlsViolation) }
}

/// Reads the records of one complete hello with both parsers.
fn judge(records: &[u8]) -> Progress {
    let first = records.get(RECORD_HEADER..).unwrap_or_default();
    let only_one = records.first_chunk().and_then(|header| record_len(*header).ok());
    let hello = if only_one == Some(first.len()) {
        client_hello::parse(first.get(MESSAGE_HEADER..).unwrap_or_default())
    } else {
        let message = join(records);
        client_hello::parse(message.get(MESSAGE_HEADER..).unwrap_or_default())
    };
    match hello {
        Ok(hello) if rustls_agrees(records, &hello) => Progress::Done(Peeked::Tls(hello)),
        _ => MALFORMED,
    }
}

/// Joins the payloads of several records to one message.
fn join(mut records: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(records.len());
    while let Some((header, rest)) = records.split_first_chunk() {
        let len = record_len(*header).unwrap_or(0);
        let (payload, after) = rest.split_at_checked(len).unwrap_or((rest, &[]));
        message.extend_from_slice(payload);
        records = after;
    }
    message
}

fn rustls_agrees(mut records: &[u8], hello: &Hello) -> bool {
    let mut acceptor = Acceptor::default();
    // Every round reads at least one byte. rustls processes a record before it reads more than one
    // record's worth, hence a round for each read.
    while !records.is_empty() {
        if acceptor.read_tls(&mut records).is_err() {
            return false;
        }
        match acceptor.accept() {
            Ok(None) => {}
            Ok(Some(accepted)) => {
                return records.is_empty() && same(&accepted.client_hello(), hello);
            }
            Err(_) => return false,
        }
    }
    false
}

fn same(theirs: &ClientHello<'_>, ours: &Hello) -> bool {
    let name = theirs.server_name().map(Host::parse);
    let same_name = match (&name, &ours.sni) {
        (None, None) => true,
        (Some(Ok(theirs)), Some(ours)) => theirs == ours,
        _ => false,
    };
    same_name && theirs.alpn().into_iter().flatten().eq(ours.alpn.iter().map(AsRef::as_ref))
}

/// Content type of a record that carries handshake messages (RFC 8446, section 5.1).
pub(super) const HANDSHAKE: u8 = 22;

const MALFORMED: Progress = Progress::Malformed(Reason::TlsMalformed);

/// Handshake type (RFC 8446, section 4).
const CLIENT_HELLO: u8 = 1;

/// Bytes of a record's header: type, version, length.
const RECORD_HEADER: usize = 5;

/// Bytes of a handshake message's header: type, length.
const MESSAGE_HEADER: usize = 4;

/// Most bytes in a plaintext record (RFC 8446, section 5.1).
const MAX_FRAGMENT: usize = 1 << 14;

/// Most bytes in a ClientHello. The largest in use, with two post-quantum shares, have about 3 KiB;
/// a longer announcement is refused at once, without waiting for its bytes.
const MAX_BODY: usize = 64 * 1024 - MESSAGE_HEADER;
