//! What the first bytes of a connection say, under a byte bound and a deadline.
//!
//! The parsers are pure: they take a prefix of the stream and answer with what it is, that it is
//! malformed, or that more bytes are needed. Errors lean to refusal.

use crate::policy::Host;

/// What the first bytes turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peeked {
    /// A complete TLS ClientHello.
    Tls(Hello),
    /// A complete HTTP/1 request head.
    Http(PlainHead),
    /// Neither.
    Other,
}

/// What a ClientHello shows in the clear.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The server name; `None` where there is none.
    pub sni: Option<Host>,
    /// The application protocols on offer, in the client's order.
    pub alpn: Vec<Box<[u8]>>,
    /// Whether an `encrypted_client_hello` extension is there (RFC 9849), GREASE included.
    pub ech: bool,
}

/// What a plain HTTP/1 request head shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainHead {
    /// The one Host field's name, without its port; `None` where it is missing, repeated,
    /// no plain host name, or names another port than the head was sent to.
    pub host: Option<Host>,
    /// The port of the Host field where it names one.
    pub port: Option<u16>,
    /// The decoded credential texts that stand in well-known credential fields: the value after
    /// a scheme, both halves of Basic, and the raw value.
    pub credentials: Vec<Box<[u8]>>,
}
