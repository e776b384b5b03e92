//! The kinds of first bytes.

use std::fmt;

use crate::{policy::Host, reason::Reason};

/// The meaning of the first bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peeked {
    /// A complete TLS ClientHello.
    Tls(Hello),
    /// A complete HTTP/1 request head.
    Http(PlainHead),
    /// Neither.
    Other,
    /// The bytes are not read, because protocols on this port name no host. Instead there are all
    /// names for which the agent was given the address that it dialled.
    Unread(Vec<Host>),
}

/// The plain part of a ClientHello.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The server name; `None` where there is none, or where it is an IP address.
    pub sni: Option<Host>,
    /// The application protocols on offer, in the client's order.
    pub alpn: Vec<Box<[u8]>>,
    /// Whether an `encrypted_client_hello` extension is there (RFC 9849), GREASE included.
    pub ech: bool,
}

/// The parts of a plain HTTP/1 request head that are used.
#[derive(Clone, PartialEq, Eq)]
pub struct PlainHead {
    /// The one Host field's name, without its port; `None` where the field is missing, repeated or
    /// no plain host name. `decide` compares its port with the dialled one.
    pub host: Option<Host>,
    /// The port of the Host field, if it names one.
    pub port: Option<u16>,
    /// The decoded credential texts in well-known credential fields: the value after a scheme, both
    /// halves of Basic, and the raw value.
    pub credentials: Vec<Box<[u8]>>,
}

/// Shows only the number of credentials, because they may be live ones of the agent's own.
impl fmt::Debug for PlainHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlainHead")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("credentials", &self.credentials.len())
            .finish()
    }
}

/// The result of reading a prefix of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// More bytes are needed.
    NeedMore,
    /// The meaning is known.
    Done(Peeked),
    /// It began as TLS or HTTP and broke its rules.
    Malformed(Reason),
}
