//! The agent's end of a WebSocket, and what the API's end sends.

use std::io::{self, Read, Write};

use lab::{
    client::Tls,
    websocket::{Frame, frame, read},
};

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
