//! One end of a WebSocket, of either side: frames by the letter of RFC 6455, without code of the
//! gateway or of its codec. It sends arbitrary frames, and reads only those in order.

use std::io::{self, Read, Write};

use lab::client::Tls;

/// A frame that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub last: bool,
    pub opcode: u8,
    pub payload: Vec<u8>,
}

pub const TEXT: u8 = 1;
pub const BINARY: u8 = 2;
pub const CLOSE: u8 = 8;
pub const PING: u8 = 9;
pub const PONG: u8 = 10;

/// Returns a frame of a client or of a server.
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

/// The agent's end, and every byte that it received.
pub struct Agent {
    tls: Tls,
    pub received: Vec<u8>,
    at: usize,
}

impl Agent {
    /// Sends a handshake and reads the head of its answer.
    #[track_caller]
    pub fn shake(mut tls: Tls, handshake: impl AsRef<[u8]>) -> (Self, String) {
        tls.send(handshake).expect("sent");
        let mut agent = Self { tls, received: vec![], at: 0 };
        let mut head = vec![];
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if agent.read_exact(&mut byte).is_err() {
                break;
            }
            head.push(byte[0]);
        }
        (agent, String::from_utf8_lossy(&head).into_owned())
    }

    #[track_caller]
    pub fn send(&mut self, bytes: &[u8]) {
        self.tls.send(bytes).expect("sent");
    }

    #[track_caller]
    pub fn say(&mut self, opcode: u8, payload: &[u8]) {
        self.send(&frame(true, true, opcode, payload));
    }

    #[track_caller]
    pub fn hear(&mut self) -> Frame {
        self.try_hear().expect("a frame")
    }

    pub fn try_hear(&mut self) -> io::Result<Frame> {
        read(self, false)
    }

    /// Reads a whole message, without the control frames between its frames.
    #[track_caller]
    pub fn message(&mut self) -> (u8, Vec<u8>) {
        let (mut opcode, mut text) = (0, vec![]);
        loop {
            let frame = self.hear();
            if frame.opcode >= 8 {
                continue;
            }
            opcode = opcode.max(frame.opcode);
            text.extend(frame.payload);
            if frame.last {
                return (opcode, text);
            }
        }
    }

    /// Reads everything up to the end.
    pub fn rest(&mut self) {
        let rest = self.tls.read_to_end();
        self.received.extend(rest);
    }

    pub fn tls(&self) -> &Tls {
        &self.tls
    }
}

impl Read for Agent {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.received.len() {
            self.received.extend(self.tls.read_some(16_384)?);
        }
        let ready = &self.received[self.at..];
        let taken = ready.len().min(out.len());
        out[..taken].copy_from_slice(&ready[..taken]);
        self.at += taken;
        Ok(taken)
    }
}

/// Sends a server's frame.
///
/// # Errors
/// Where the stream is broken.
pub fn serve(stream: &mut impl Write, last: bool, opcode: u8, payload: &[u8]) -> io::Result<()> {
    stream.write_all(&frame(false, last, opcode, payload))?;
    stream.flush()
}
