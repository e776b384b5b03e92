//! The measurements that an agent can make of one answer: TLS records, chunks or frames, and
//! fields.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Arc,
};

use lab::{client::Hello, net::Ns};
use rustls::{ClientConnection, StreamOwned};

use crate::attack::raw_h2::{
    DATA, END_HEADERS, END_STREAM, HEADERS, SETTINGS, block, fields, frame,
};

/// The measurements of an answer, from the request on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// The sizes of TLS records on the wire.
    pub(super) records: Vec<usize>,
    /// The sizes of chunks, or the kinds, flags and sizes of frames.
    pub(super) parts: Vec<(u8, u8, usize)>,
    /// The head of HTTP/1.1; the blocks of HTTP/2, including that of its trailers.
    pub(super) fields: Vec<Vec<u8>>,
    /// The body.
    pub(super) body: Vec<u8>,
    /// The places and lengths of the body's parts in the decrypted bytes.
    payloads: Vec<(usize, usize)>,
}

/// A place in a body at which a part ends that an agent can tell from the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum End {
    /// The end of a TLS record, after so many bytes of the body.
    Record(usize),
    /// The end of a chunk or a frame.
    Part(usize),
}

impl Seen {
    fn empty() -> Self {
        let (records, parts, fields) = Default::default();
        Self { records, parts, fields, body: Vec::new(), payloads: Vec::new() }
    }

    /// Returns every place in the body at which a part ended.
    pub(super) fn ends(&self) -> BTreeSet<End> {
        let mut decrypted = 0;
        let records = self.records.iter().map(|size| {
            decrypted += size.saturating_sub(RECORD_OVERHEAD);
            End::Record(self.bytes_before(decrypted))
        });
        let parts = self
            .payloads
            .iter()
            .map(|(begin, length)| End::Part(self.bytes_before(begin + length)));
        records.collect::<Vec<_>>().into_iter().chain(parts).collect()
    }

    /// Returns how many bytes of the body are in the first `end` decrypted bytes.
    fn bytes_before(&self, end: usize) -> usize {
        let of = |(begin, length): &(usize, usize)| end.saturating_sub(*begin).min(*length);
        self.payloads.iter().map(of).sum()
    }
}

/// The request, and the connection on which it is sent.
pub(super) struct Question<'a> {
    pub(super) from: Ns,
    pub(super) to: SocketAddr,
    pub(super) hello: Hello,
    pub(super) path: &'a str,
    pub(super) placeholder: &'a str,
}

impl Question<'_> {
    /// Asks in HTTP/1.1, and reads to the end of the connection.
    pub(super) fn h1(&self) -> io::Result<Seen> {
        let mut wire = Wire::open(self)?;
        let begin = wire.read_so_far();
        let name = self.hello.sni.as_deref().unwrap_or_default();
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {name}\r\nAuthorization: Bearer {}\r\nTE: trailers\r\n\
             Connection: close, TE\r\n\r\n",
            self.path, self.placeholder
        );
        wire.say(request.as_bytes())?;
        let mut text = Vec::new();
        while wire.more(&mut text)? > 0 {}
        Ok(Seen { records: wire.records(begin), ..chunks(&text)? })
    }

    /// Asks in HTTP/2, once both sides have exchanged settings, and reads to the end of the stream.
    pub(super) fn h2(&self) -> io::Result<Seen> {
        let mut wire = Wire::open(self)?;
        let window = [&[0, 4], &WINDOW.to_be_bytes()[..]].concat();
        let settings = frame(SETTINGS, 0, 0, &window);
        let update = frame(WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
        wire.say(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings[..], &update[..]].concat())?;
        // The windows of the connection come with a first request.
        let first = self.h2_request(1, "/v1/scripted/none");
        let ping = frame(PING, 0, 0, b"settled?");
        wire.say(&[frame(SETTINGS, ACK, 0, b""), first].concat())?;
        let mut text = Vec::new();
        while !matches!(next_frame(&mut wire, &mut text)?, (DATA, flags, _) if flags & END_STREAM != 0)
        {
        }
        wire.say(&ping)?;
        while next_frame(&mut wire, &mut text)?.0 != PING {}
        let begin = wire.read_so_far();
        wire.say(&self.h2_request(3, self.path))?;
        let (mut seen, mut decrypted) = (Seen::empty(), 0);
        loop {
            let (kind, flags, payload) = next_frame(&mut wire, &mut text)?;
            if kind == DATA {
                seen.payloads.push((decrypted + FRAME_HEADER, payload.len()));
            }
            decrypted += FRAME_HEADER + payload.len();
            seen.parts.push((kind, flags, payload.len()));
            match kind {
                DATA => seen.body.extend(payload),
                HEADERS => seen.fields.push(payload),
                _ => return Err(io::Error::other(format!("a frame of kind {kind}"))),
            }
            if flags & END_STREAM != 0 {
                seen.records = wire.records(begin);
                return Ok(seen);
            }
        }
    }

    fn h2_request(&self, stream: u32, path: &str) -> Vec<u8> {
        let name = self.hello.sni.as_deref().unwrap_or_default();
        let bearer = format!("Bearer {}", self.placeholder);
        let others = [("authorization", bearer.as_str()), ("te", "trailers")];
        let request = block(&fields("GET", name, path, &others));
        frame(HEADERS, END_STREAM | END_HEADERS, stream, &request)
    }
}

/// A TLS connection of which every byte on the wire is kept.
struct Wire(StreamOwned<ClientConnection, Tap>);

struct Tap {
    socket: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    fn open(question: &Question<'_>) -> io::Result<Self> {
        let name = question.hello.sni.clone().unwrap_or_default();
        let name = name.try_into().map_err(io::Error::other)?;
        let config = Arc::new(question.hello.config()?);
        let session = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let tap = Tap { socket: question.from.connect(question.to)?, read: Vec::new() };
        let mut tls = StreamOwned::new(session, tap);
        while tls.conn.is_handshaking() {
            tls.conn.complete_io(&mut tls.sock)?;
        }
        Ok(Self(tls))
    }

    fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)?;
        self.0.flush()
    }

    fn more(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        let mut buffer = [0; 16 * 1024];
        let length = match self.0.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
            other => other?,
        };
        into.extend(&buffer[..length]);
        Ok(length)
    }

    fn read_so_far(&self) -> usize {
        self.0.sock.read.len()
    }

    /// Returns the sizes of the records that begin at `begin` (RFC 8446, section 5.1).
    fn records(&self, begin: usize) -> Vec<usize> {
        let mut rest = &self.0.sock.read[begin..];
        let mut sizes = Vec::new();
        while let [_, _, _, high, low, after @ ..] = rest {
            let size = usize::from(*high) << 8 | usize::from(*low);
            sizes.push(size);
            rest = after.get(size..).unwrap_or_default();
        }
        sizes
    }
}

impl Read for Tap {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.socket.read(buffer)?;
        self.read.extend(&buffer[..length]);
        Ok(length)
    }
}

impl Write for Tap {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.flush()
    }
}

fn next_frame(wire: &mut Wire, text: &mut Vec<u8>) -> io::Result<(u8, u8, Vec<u8>)> {
    loop {
        if let [high, middle, low, kind, flags, _, _, _, _, rest @ ..] = text.as_slice() {
            let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
            if let Some(payload) = rest.get(..length) {
                let found = (*kind, *flags, payload.to_vec());
                text.drain(..FRAME_HEADER + length);
                return Ok(found);
            }
        }
        if wire.more(text)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Reads the head of an answer, its chunks and its body. It has no trailers in HTTP/1.1.
fn chunks(text: &[u8]) -> io::Result<Seen> {
    let broken = || io::Error::other(format!("ended after {:?}", String::from_utf8_lossy(text)));
    let until = |rest: &[u8], end: &[u8]| rest.windows(end.len()).position(|it| it == end);
    let mut at = until(text, b"\r\n\r\n").ok_or_else(broken)? + 4;
    let (head, rest) = text.split_at(at);
    let mut seen = Seen { fields: vec![head.to_vec()], ..Seen::empty() };
    let is_chunked = until(&head.to_ascii_lowercase(), b"transfer-encoding: chunked").is_some();
    if !is_chunked {
        return Ok(Seen { payloads: vec![(at, rest.len())], body: rest.to_vec(), ..seen });
    }
    loop {
        let line = until(&text[at..], b"\r\n").ok_or_else(broken)?;
        let size = String::from_utf8_lossy(&text[at..at + line]);
        let size = usize::from_str_radix(&size, 16).map_err(io::Error::other)?;
        at += line + 2;
        let chunk = text.get(at..at + size).ok_or_else(broken)?;
        match (size, text.get(at + size..at + size + 2)) {
            (0, Some(b"\r\n")) => return Ok(seen),
            (1.., Some(b"\r\n")) => {}
            _ => return Err(broken()),
        }
        seen.parts.push((DATA, 0, size));
        seen.payloads.push((at, size));
        seen.body.extend(chunk);
        at += size + 2;
    }
}

/// Bytes of a record's inner type and its tag (RFC 8446, section 5.2).
const RECORD_OVERHEAD: usize = 17;
const FRAME_HEADER: usize = 9;
const ACK: u8 = 1;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
/// Room for a whole answer.
const WINDOW: u32 = 16 << 20;
