//! Frames of WebSocket by the letter of RFC 6455, without code of the gateway or of its codec. Each is
//! written as a test wants it, in order or not; only frames in order are read.

use std::io::{self, Read};

use base64::{Engine as _, engine::general_purpose::STANDARD};

/// A frame that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The FIN bit: whether it is the last of its message.
    pub last: bool,
    /// The kind of the frame, such as [`TEXT`].
    pub opcode: u8,
    /// The payload, unmasked.
    pub payload: Vec<u8>,
}

/// A text, or the first part of one.
pub const TEXT: u8 = 1;
/// Bytes, or the first part of them.
pub const BINARY: u8 = 2;
/// The end, with a code and a reason.
pub const CLOSE: u8 = 8;
/// A question whether the other end is there.
pub const PING: u8 = 9;
/// The answer to a ping.
pub const PONG: u8 = 10;

/// Returns the value of `Sec-WebSocket-Accept` for a value of `Sec-WebSocket-Key` (RFC 6455, section
/// 4.2.2).
pub fn accept(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let sha1 = &aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY;
    STANDARD.encode(aws_lc_rs::digest::digest(sha1, text.as_bytes()))
}

/// Returns a frame of a client, which is masked, or of a server.
///
/// # Panics
/// Never: each length is in its range.
pub fn frame(client: bool, last: bool, opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mark = if client { 0x80 } else { 0 };
    let mut frame = vec![opcode | if last { 0x80 } else { 0 }];
    match payload.len() {
        short @ 0..126 => frame.push(mark | u8::try_from(short).expect("short")),
        middle @ 126..65_536 => {
            frame.push(mark | 126);
            frame.extend(u16::try_from(middle).expect("short").to_be_bytes());
        }
        long => {
            frame.push(mark | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    let key: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    if client {
        frame.extend(key);
    }
    let masked = |(nth, byte): (usize, &u8)| if client { byte ^ key[nth % 4] } else { *byte };
    frame.extend(payload.iter().enumerate().map(masked));
    frame
}

/// Returns the payload of a close frame.
pub fn code(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes()[..], reason.as_bytes()].concat()
}

/// Reads the next frame from the other end, which is masked if that is a client.
///
/// # Errors
/// Where the stream ends.
///
/// # Panics
/// Where the frame has a reserved bit, or a mask that its sender may not use.
pub fn read(stream: &mut impl Read, from_client: bool) -> io::Result<Frame> {
    let mut two = [0; 2];
    stream.read_exact(&mut two)?;
    assert_eq!(two[0] & 0x70, 0, "a reserved bit");
    assert_eq!(two[1] & 0x80 != 0, from_client, "only clients mask");
    let length = match two[1] & 0x7f {
        126 => {
            let mut bytes = [0; 2];
            stream.read_exact(&mut bytes)?;
            u64::from(u16::from_be_bytes(bytes))
        }
        127 => {
            let mut bytes = [0; 8];
            stream.read_exact(&mut bytes)?;
            u64::from_be_bytes(bytes)
        }
        short => u64::from(short),
    };
    let mut key = [0; 4];
    if from_client {
        stream.read_exact(&mut key)?;
    }
    let mut payload = vec![0; usize::try_from(length).expect("it fits")];
    stream.read_exact(&mut payload)?;
    payload.iter_mut().enumerate().for_each(|(nth, byte)| *byte ^= key[nth % 4]);
    Ok(Frame { last: two[0] & 0x80 != 0, opcode: two[0] & 0xf, payload })
}
