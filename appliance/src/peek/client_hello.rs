//! A small strict reader of a ClientHello's body (RFC 8446, section 4.1.2).
//!
//! It returns the name, the application protocols and whether ECH is there, and refuses everything
//! that two readers could take differently: lengths that do not add up, bytes left over, an
//! extension or a name that comes twice, a name that is neither a host name nor an IP address.

use std::net::IpAddr;

use super::Hello;
use crate::policy::{Host, HostError};

/// The error where the body is not one plain ClientHello.
#[derive(Debug)]
pub(super) struct Malformed;

/// Reads the body of a ClientHello, without its four-byte message header.
pub(super) fn parse(body: &[u8]) -> Result<Hello, Malformed> {
    let mut body = Reader(body);
    body.take(2)?; // legacy_version: says nothing since TLS 1.3
    body.take(32)?; // random
    let session_id = body.vec8()?;
    let suites = body.vec16()?;
    let compression = body.vec8()?;
    let lengths = session_id.0.len() <= 32
        && !suites.0.is_empty()
        && suites.0.len().is_multiple_of(2)
        && !compression.0.is_empty();
    if !lengths {
        return Err(Malformed);
    }
    // TLS 1.2 lets a client leave the whole block out (RFC 5246, section 7.4.1.2).
    let extensions = if body.is_empty() { Reader(&[]) } else { body.vec16()? };
    body.end()?;
    parse_extensions(extensions)
}

fn parse_extensions(mut list: Reader<'_>) -> Result<Hello, Malformed> {
    let mut hello = Hello { sni: None, alpn: Vec::new(), ech: false };
    let mut kinds = Vec::with_capacity(32);
    while !list.is_empty() {
        let kind = list.u16()?;
        let content = list.vec16()?;
        if kinds.contains(&kind) || kinds.len() == MAX_EXTENSIONS {
            return Err(Malformed);
        }
        kinds.push(kind);
        match kind {
            SERVER_NAME => hello.sni = parse_server_name(content)?,
            ALPN => hello.alpn = parse_alpn(content)?,
            _ if ECH.contains(&kind) => hello.ech = true,
            _ => {}
        }
    }
    Ok(hello)
}

/// Reads the name (RFC 6066, section 3) from a list, which must hold exactly one host name. Other
/// name types were never defined, and cannot be skipped because their length is not known.
fn parse_server_name(mut content: Reader<'_>) -> Result<Option<Host>, Malformed> {
    let mut list = content.vec16()?;
    content.end()?;
    let kind = list.u8()?;
    let name = list.vec16()?;
    list.end()?;
    if kind != HOST_NAME {
        return Err(Malformed);
    }
    let text = std::str::from_utf8(name.0).map_err(|_| Malformed)?;
    match Host::parse(text) {
        Ok(host) => Ok(Some(host)),
        // Against the RFC, some clients put an address here. It names no host.
        Err(HostError::IpAddress) => Ok(None),
        Err(_) if text.parse::<IpAddr>().is_ok() => Ok(None),
        Err(_) => Err(Malformed),
    }
}

/// Reads the application protocols (RFC 7301, section 3.1).
fn parse_alpn(mut content: Reader<'_>) -> Result<Vec<Box<[u8]>>, Malformed> {
    let mut list = content.vec16()?;
    content.end()?;
    let mut names = Vec::new();
    while !list.is_empty() {
        let name = list.vec8()?;
        if name.is_empty() || names.len() == MAX_PROTOCOLS {
            return Err(Malformed);
        }
        names.push(name.0.into());
    }
    if names.is_empty() { Err(Malformed) } else { Ok(names) }
}

/// The bytes that are left to read. Nothing can be read twice or past the end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        let (&byte, rest) = self.0.split_first().ok_or(Malformed)?;
        self.0 = rest;
        Ok(byte)
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    /// Reads a vector with a length of one byte (RFC 8446, section 3.4).
    fn vec8(&mut self) -> Result<Self, Malformed> {
        let len = self.u8()?;
        self.take(len.into()).map(Self)
    }

    /// Reads a vector with a length of two bytes.
    fn vec16(&mut self) -> Result<Self, Malformed> {
        let len = self.u16()?;
        self.take(len.into()).map(Self)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn end(&self) -> Result<(), Malformed> {
        if self.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

/// Extension types (IANA, TLS ExtensionType Values).
const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;

/// `encrypted_client_hello` and `ech_outer_extensions` (RFC 9849, section 5), and the numbers that
/// its drafts used: a client that sends one of them hides a name.
const ECH: [u16; 5] = [0xfe0d, 0xfd00, 0xff02, 0xff03, 0xffce];

/// The one name type of `server_name`.
const HOST_NAME: u8 = 0;

/// Most extensions in a hello. Browsers send about 20; each is compared with all before it.
const MAX_EXTENSIONS: usize = 128;

/// Most application protocols on offer. Browsers send three.
const MAX_PROTOCOLS: usize = 64;
