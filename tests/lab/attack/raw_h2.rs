//! HTTP/2 frame by frame (RFC 9113, section 4), for what no library would send.
//!
//! Header blocks are literals that are never indexed and not Huffman-coded (RFC 7541, section
//! 6.2.3), so every byte of a name and a value is the test's.

use std::{io, net::SocketAddr};

use super::local;
use crate::{
    client::{Hello, Tls},
    net::Ns,
};

/// A connection that speaks frames.
pub struct RawH2 {
    tls: Tls,
    seen: Vec<u8>,
    /// The agent's address and port.
    pub me: SocketAddr,
}

/// The end of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// An answer; this is its body.
    Answered(String),
    /// RST_STREAM with this code.
    Reset(u32),
    /// GOAWAY with this code, or the connection ended without one.
    ConnectionEnded(Option<u32>),
}

impl Outcome {
    /// The reason word, when this is the gateway's own answer.
    pub fn reason(&self) -> Option<String> {
        let Self::Answered(body) = self else { return None };
        let problem: serde_json::Value = serde_json::from_str(body).ok()?;
        problem["reason"].as_str().map(str::to_owned)
    }
}

impl RawH2 {
    /// Connects and says the preface with empty settings.
    ///
    /// # Errors
    /// Returns the error of the handshake.
    pub fn open(from: Ns, to: SocketAddr, hello: &Hello) -> io::Result<Self> {
        let mut tls = Tls::open(from, to, hello)?;
        let me = local(&tls);
        tls.send(
            [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(SETTINGS, 0, 0, b"")].concat(),
        )?;
        Ok(Self { tls, seen: Vec::new(), me })
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.tls.send(bytes)
    }

    /// Sends a whole request without a body.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn request(&mut self, stream: u32, fields: &[(&str, &str)]) -> io::Result<()> {
        self.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, &block(fields)))
    }

    /// Reads until something final was said about the stream.
    pub fn outcome(&mut self, stream: u32) -> Outcome {
        let mut body = Vec::new();
        loop {
            let Some((kind, flags, of, payload)) = self.frame() else {
                return Outcome::ConnectionEnded(None);
            };
            match kind {
                DATA if of == stream => body.extend_from_slice(&payload),
                RST_STREAM if of == stream => return Outcome::Reset(number(&payload)),
                GOAWAY if number(payload.get(4..).unwrap_or_default()) != 0 => {
                    return Outcome::ConnectionEnded(Some(number(&payload[4..])));
                }
                _ => {}
            }
            if of == stream && matches!(kind, DATA | HEADERS) && flags & END_STREAM != 0 {
                return Outcome::Answered(String::from_utf8_lossy(&body).into_owned());
            }
        }
    }

    fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        while self.seen.len() < 9 {
            self.more()?;
        }
        let length = usize::from(self.seen[0]) << 16
            | usize::from(self.seen[1]) << 8
            | usize::from(self.seen[2]);
        while self.seen.len() < 9 + length {
            self.more()?;
        }
        let rest = self.seen.split_off(9 + length);
        let whole = std::mem::replace(&mut self.seen, rest);
        Some((whole[3], whole[4], number(&whole[5..]) & 0x7fff_ffff, whole[9..].to_vec()))
    }

    fn more(&mut self) -> Option<()> {
        let bytes = self.tls.read_some(16 * 1024).ok().filter(|bytes| !bytes.is_empty())?;
        self.seen.extend(bytes);
        Some(())
    }
}

/// The pseudo-fields of a request for `authority`, and its other fields.
pub fn fields<'a>(
    method: &'a str,
    authority: &'a str,
    path: &'a str,
    others: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let pseudo =
        [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path)];
    pseudo.iter().chain(others).copied().collect()
}

/// A header block of literals.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let fields = fields.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0x10);
        string(&mut block, name);
        string(&mut block, value);
    }
    block
}

/// One frame.
///
/// # Panics
/// When the payload has 4 GiB.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a short payload").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A string literal (RFC 7541, section 5.2).
fn string(into: &mut Vec<u8>, text: &[u8]) {
    if text.len() < 127 {
        into.push(text.len() as u8);
    } else {
        into.push(127);
        let mut rest = text.len() - 127;
        while rest >= 128 {
            into.push((rest % 128) as u8 | 0x80);
            rest /= 128;
        }
        into.push(rest as u8);
    }
    into.extend_from_slice(text);
}

fn number(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// The type of a DATA frame.
pub const DATA: u8 = 0;
/// The type of a HEADERS frame.
pub const HEADERS: u8 = 1;
/// The type of a RST_STREAM frame.
pub const RST_STREAM: u8 = 3;
/// The type of a SETTINGS frame.
pub const SETTINGS: u8 = 4;
/// The type of a PUSH_PROMISE frame.
pub const PUSH_PROMISE: u8 = 5;
/// The type of a GOAWAY frame.
pub const GOAWAY: u8 = 7;
/// The type of a CONTINUATION frame.
pub const CONTINUATION: u8 = 9;
/// The flag of a stream's last frame.
pub const END_STREAM: u8 = 1;
/// The flag of a header block's last frame.
pub const END_HEADERS: u8 = 4;
