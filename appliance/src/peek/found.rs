//! The kinds of first bytes.

use std::fmt;

use crate::{policy::Host, reason::Reason};

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
