//! An API that speaks WebSocket, every byte of which is this test's, and the messages that it
//! received.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lab::{
    Lab,
    net::INTERNET,
    websocket::{BINARY, CLOSE, Frame, PING, PONG, TEXT, accept, code, frame, read},
};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned, server::ResolvesServerCert, sign::CertifiedKey,
};

use super::peer::serve;

/// The address of the API under all of its names.
pub const ADDRESS: &str = "198.51.100.78";

type Stream = StreamOwned<ServerConnection, std::net::TcpStream>;

/// A message that the API received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// The head of a request.
    Head(String),
    /// A frame.
    Frame(Frame),
    /// Bytes that are no frame in order, or the end: nothing more is read on that connection.
    End,
}

#[derive(Clone, Default)]
pub struct Api(Arc<Mutex<Vec<Received>>>);

/// The certificate of each name.
#[derive(Debug)]
struct Names(Vec<(String, Arc<CertifiedKey>)>);

impl ResolvesServerCert for Names {
    fn resolve(&self, hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?;
        self.0.iter().find(|(own, _)| own == name).map(|(_, key)| Arc::clone(key))
    }
}

impl Api {
    /// Listens under each of these names; `said` is what it sends at the path `/v1/say/N`.
    pub fn start(lab: &Lab, names: &[&str], said: Vec<Vec<u8>>) -> Self {
        let api = Self::default();
        INTERNET.shell(&format!("ip addr add {ADDRESS}/32 dev lo"));
        let certified =
            names.iter().map(|name| ((*name).to_owned(), lab.public.issue(name).certified()));
        let names = Arc::new(Names(certified.collect()));
        let config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(names);
        let (config, said) = (Arc::new(config), Arc::new(said));
        let listener = INTERNET.enter(|| TcpListener::bind((ADDRESS, 443)).expect("a port"));
        let log = api.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                let session = ServerConnection::new(Arc::clone(&config)).expect("a session");
                let (log, said) = (log.clone(), Arc::clone(&said));
                std::thread::spawn(move || {
                    let mut tls = StreamOwned::new(session, stream);
                    // The tests check for an end of any kind.
                    let _ = log.converse(&mut tls, &said);
                    log.note(Received::End);
                    tls.conn.send_close_notify();
                    let _ = tls.flush();
                });
            }
        });
        api
    }

    pub fn received(&self) -> Vec<Received> {
        self.0.lock().expect("no panic").clone()
    }

    pub fn heads(&self) -> Vec<String> {
        let heads = self.received().into_iter().filter_map(|one| match one {
            Received::Head(head) => Some(head),
            _ => None,
        });
        heads.collect()
    }

    pub fn frames(&self) -> Vec<Frame> {
        let frames = self.received().into_iter().filter_map(|one| match one {
            Received::Frame(frame) => Some(frame),
            _ => None,
        });
        frames.collect()
    }

    fn note(&self, one: Received) {
        self.0.lock().expect("no panic").push(one);
    }

    fn converse(&self, tls: &mut Stream, said: &[Vec<u8>]) -> std::io::Result<()> {
        let head = head_of(tls)?;
        self.note(Received::Head(head.clone()));
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let path = path.split('?').next().unwrap_or_default();
        tls.write_all(answer(path, &head).as_bytes())?;
        tls.flush()?;
        if path == "/v1/refused" {
            // Another request would be read as well.
            let head = head_of(tls)?;
            self.note(Received::Head(head));
            return Ok(());
        }
        if let Some(nth) = path.strip_prefix("/v1/say/") {
            let frames = &said[nth.parse::<usize>().expect("a number")];
            tls.write_all(frames)?;
            tls.flush()?;
        }
        self.echo(tls)
    }

    /// Returns each frame, and pings as pongs; a text `close` is an end without a close frame.
    fn echo(&self, tls: &mut Stream) -> std::io::Result<()> {
        loop {
            let frame = read(tls, true)?;
            self.note(Received::Frame(frame.clone()));
            let Frame { last, opcode, payload } = frame;
            match opcode {
                CLOSE => return serve(tls, true, CLOSE, &payload),
                PING => serve(tls, true, PONG, &payload)?,
                PONG => {}
                TEXT if payload == b"leave" => return Ok(()),
                _ => serve(tls, last, opcode, &payload)?,
            }
        }
    }
}

fn head_of(tls: &mut Stream) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        tls.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (own, value) = line.split_once(':')?;
        own.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// Returns the answer of each path; by default the one to the handshake.
fn answer(path: &str, head: &str) -> String {
    let accept = accept(field(head, "sec-websocket-key").unwrap_or_default());
    let offers = field(head, "sec-websocket-protocol").unwrap_or_default();
    let offer = |nth: usize| offers.split(',').nth(nth).unwrap_or_default().trim().to_owned();
    let chosen = |protocol: String| match protocol.is_empty() {
        true => String::new(),
        false => format!("Sec-WebSocket-Protocol: {protocol}\r\n"),
    };
    let switch = |accept: &str, more: &str| {
        format!(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
             Sec-WebSocket-Accept: {accept}\r\nX-Request-Id: 7\r\nSet-Cookie: a=b\r\n{more}\r\n"
        )
    };
    match path {
        "/v1/wrong-accept" => switch("AAAAAAAAAAAAAAAAAAAAAAAAAAA=", ""),
        "/v1/extension" => switch(&accept, "Sec-WebSocket-Extensions: permessage-deflate\r\n"),
        "/v1/other-protocol" => switch(&accept, "Sec-WebSocket-Protocol: mine\r\n"),
        "/v1/second-offer" => switch(&accept, &chosen(offer(1))),
        "/v1/plain-101" => "HTTP/1.1 101 Switching Protocols\r\n\r\n".into(),
        "/v1/plain-200" => {
            let offers = field(head, "authorization").unwrap_or_default();
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{offers}", offers.len())
        }
        "/v1/refused" => "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno".into(),
        _ => switch(&accept, &chosen(offer(0))),
    }
}

/// Returns a text in frames of this size, over and over, with a ping between each two.
pub fn in_frames(opcode: u8, text: &[u8], size: usize) -> Vec<u8> {
    let parts: Vec<&[u8]> = text.chunks(size).collect();
    let mut all = vec![];
    for (nth, part) in parts.iter().enumerate() {
        let last = nth + 1 == parts.len();
        all.extend(frame(false, last, if nth == 0 { opcode } else { 0 }, part));
        if !last && nth % 16 == 0 {
            all.extend(frame(false, true, PING, b"between"));
        }
    }
    all
}

/// Returns a secret in every form that is masked, each in messages of its own, and in control
/// frames.
pub fn in_every_form(secret: &str) -> Vec<u8> {
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let percent: String = secret.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let escaped: String = secret.bytes().map(|byte| format!("\\u{byte:04x}")).collect();
    let wide: Vec<u8> = secret.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut all = vec![];
    for text in [secret.to_owned(), hex, percent, escaped, STANDARD.encode(secret)] {
        let text = format!("{{\"said\":\"{text}\",\"and\":\"more\"}}");
        for size in [1, 7, 1000] {
            all.extend(in_frames(TEXT, text.as_bytes(), size));
        }
    }
    all.extend(in_frames(BINARY, &wide, 5));
    all.extend(frame(false, true, PING, secret.as_bytes()));
    all.extend(frame(false, true, PONG, secret.as_bytes()));
    all.extend(frame(false, true, CLOSE, &code(1008, &format!("bad key {secret}"))));
    all
}
