//! What the first bytes of a connection say, under a byte bound and a deadline.
//!
//! The parsers are pure: they take a prefix of the stream and answer with what it is, that it is
//! malformed, or that more bytes are needed. An answer is final: bytes that follow never change
//! it, and it does not depend on how the stream was cut into segments. Errors lean to refusal.

mod client_hello;
mod http_head;
mod read;
mod rewind;
mod tls;

pub use read::{PeekFailure, Read, read};
pub use rewind::Rewind;

use std::fmt;

use crate::{
    policy::{Host, Limits},
    reason::Reason,
};

/// What the first bytes turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peeked {
    /// A complete TLS ClientHello.
    Tls(Hello),
    /// A complete HTTP/1 request head.
    Http(PlainHead),
    /// Neither.
    Other,
    /// Not looked at, because protocols on this port name no host. What is known instead: every
    /// name for which the agent was given the address that it dialled.
    Unread(Vec<Host>),
}

/// What a ClientHello shows in the clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The server name; `None` where there is none, or where it is an IP address.
    pub sni: Option<Host>,
    /// The application protocols on offer, in the client's order.
    pub alpn: Vec<Box<[u8]>>,
    /// Whether an `encrypted_client_hello` extension is there (RFC 9849), GREASE included.
    pub ech: bool,
}

/// What a plain HTTP/1 request head shows.
#[derive(Clone, PartialEq, Eq)]
pub struct PlainHead {
    /// The one Host field's name, without its port; `None` where the field is missing, repeated
    /// or no plain host name. Whether its port is the one dialled is for `decide` to say.
    pub host: Option<Host>,
    /// The port of the Host field where it names one.
    pub port: Option<u16>,
    /// The decoded credential texts that stand in well-known credential fields: the value after
    /// a scheme, both halves of Basic, and the raw value.
    pub credentials: Vec<Box<[u8]>>,
}

/// The credentials may be live ones of the agent's own, so only their number is shown.
impl fmt::Debug for PlainHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainHead")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("credentials", &self.credentials.len())
            .finish()
    }
}

/// How far a prefix of the stream leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// Nothing can be said yet.
    NeedMore,
    /// This is what it is.
    Done(Peeked),
    /// It began as TLS or HTTP and broke its rules.
    Malformed(Reason),
}

/// Reads a prefix of a stream, with the default bound on header fields.
pub fn parse(bytes: &[u8]) -> Progress {
    Scan::new(Limits::default().head_fields).advance(bytes)
}

/// Remembers how far a growing prefix was read, so that a stream which arrives byte by byte
/// costs no more than one that arrives at once.
#[derive(Debug)]
struct Scan {
    protocol: Protocol,
    head_fields: usize,
}

/// What the first byte chose.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Protocol {
    Unknown,
    Tls(tls::Scan),
    Http(http_head::Scan),
}

impl Scan {
    fn new(head_fields: usize) -> Self {
        Self { protocol: Protocol::Unknown, head_fields }
    }

    /// Goes on with `bytes`, the whole stream so far: what was given before, and more.
    fn advance(&mut self, bytes: &[u8]) -> Progress {
        if self.protocol == Protocol::Unknown {
            self.protocol = match bytes.first() {
                None => return Progress::NeedMore,
                Some(&tls::HANDSHAKE) => Protocol::Tls(tls::Scan::default()),
                Some(&byte) if http_head::is_token(byte) => {
                    Protocol::Http(http_head::Scan::default())
                }
                Some(_) => return Progress::Done(Peeked::Other),
            };
        }
        match &mut self.protocol {
            Protocol::Unknown => Progress::NeedMore,
            Protocol::Tls(scan) => scan.advance(bytes),
            Protocol::Http(scan) => scan.advance(bytes, self.head_fields),
        }
    }

    /// What to say when the bound on bytes is reached without an answer.
    fn overrun(&self) -> Reason {
        match self.protocol {
            Protocol::Http(_) => Reason::HeaderLimit,
            Protocol::Unknown | Protocol::Tls(_) => Reason::TlsMalformed,
        }
    }
}

#[cfg(test)]
mod tests;
