//! Reads the first bytes of a connection, under a byte bound and a deadline.
//!
//! The parsers are pure: they take a prefix of the stream and return its meaning, that it is
//! malformed, or that more bytes are needed. A result is final: bytes that follow never change it,
//! and it does not depend on how the stream was cut into segments. Errors lean to refusal.

mod client_hello;
mod found;
mod http_head;
mod read;
mod rewind;
mod tls;

pub use found::{Hello, Peeked, PlainHead, Progress};
pub(crate) use http_head::read_credentials;
pub use read::{PeekFailure, PeekedBytes, read};
pub use rewind::Rewind;

use crate::{policy::Limits, reason::Reason};

/// Reads a prefix of a stream, with the default bound on header fields.
pub fn parse(bytes: &[u8]) -> Progress {
    PrefixScan::new(Limits::default().head_fields).advance(bytes)
}

/// The state of reading a growing prefix, so that a stream which arrives byte by byte costs no more
/// than one that arrives at once.
#[derive(Debug)]
struct PrefixScan {
    protocol: FirstProtocol,
    head_fields: usize,
}

/// The protocol that the first byte indicates.
#[derive(Debug, Clone, PartialEq, Eq)]
enum FirstProtocol {
    Unknown,
    Tls(tls::HelloScan),
    Http(http_head::HeadScan),
}

impl PrefixScan {
    fn new(head_fields: usize) -> Self {
        Self { protocol: FirstProtocol::Unknown, head_fields }
    }

    /// Reads on in `bytes`, the whole stream so far: the bytes of the last call, and more.
    fn advance(&mut self, bytes: &[u8]) -> Progress {
        if self.protocol == FirstProtocol::Unknown {
            self.protocol = match bytes.first() {
                None => return Progress::NeedMore,
                Some(&tls::HANDSHAKE) => FirstProtocol::Tls(tls::HelloScan::default()),
                Some(&byte) if http_head::is_token(byte) => {
                    FirstProtocol::Http(http_head::HeadScan::default())
                }
                Some(_) => return Progress::Done(Peeked::Other),
            };
        }
        match &mut self.protocol {
            FirstProtocol::Unknown => Progress::NeedMore,
            FirstProtocol::Tls(scan) => scan.advance(bytes),
            FirstProtocol::Http(scan) => scan.advance(bytes, self.head_fields),
        }
    }

    /// Returns the reason where the bound on bytes is reached without a result.
    fn overrun(&self) -> Reason {
        match self.protocol {
            FirstProtocol::Http(_) => Reason::HeaderLimit,
            FirstProtocol::Unknown | FirstProtocol::Tls(_) => Reason::TlsMalformed,
        }
    }
}

#[cfg(test)]
mod tests;
