//! The servers behind the gateways, which are fast enough not to affect the measurement.
//!
//! One speaks TLS with HTTP/1.1 or HTTP/2 and answers every request that carries the real key with
//! 1 KiB, or, over HTTP/1.1, with JSON or events without an end. The other serves spliced connections: it reads a ClientHello and then speaks plain bytes,
//! because nobody between it and the client reads the bytes after the hello, and TLS at both ends
//! would only take CPU from the machine that is measured.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes, BytesMut};
use lab::{gateway::OPENAI_SECRET, net::INTERNET};
use rustls::{ServerConfig, server::ResolvesServerCert, sign::CertifiedKey};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{MissedTickBehavior, interval},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

/// Bytes of an answer's body.
pub const BODY: usize = 1024;

/// Bytes that are sent at once in bulk.
pub const CHUNK: usize = 256 * 1024;

/// An event of a stream, as a model's API has it.
pub const EVENT: &str = "data: {\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\
    \"created\":1700000000,\"model\":\"lab-1\",\"choices\":[{\"index\":0,\"delta\":\
    {\"content\":\" word\"},\"finish_reason\":null}]}\n\n";

/// An order to the plain server, after the ClientHello.
#[derive(Debug, Clone, Copy)]
pub struct Order {
    /// Bytes to send at once.
    pub chunk: u32,
    /// Number of chunks, or no end.
    pub times: u32,
    /// Milliseconds between chunks.
    pub every: u32,
}

impl Order {
    /// Bytes of a request: the order and something to carry.
    pub const LENGTH: usize = 256;

    /// Returns the order as it is sent.
    pub fn bytes(self) -> [u8; Self::LENGTH] {
        let mut bytes = [0; Self::LENGTH];
        bytes[..4].copy_from_slice(&self.chunk.to_be_bytes());
        bytes[4..8].copy_from_slice(&self.times.to_be_bytes());
        bytes[8..12].copy_from_slice(&self.every.to_be_bytes());
        bytes
    }

    fn read(mut bytes: &[u8]) -> Self {
        Self { chunk: bytes.get_u32(), times: bytes.get_u32(), every: bytes.get_u32() }
    }
}

/// Starts the TLS server at every address of `tls` and the plain one at every address of `plain`.
pub fn start(key: Arc<CertifiedKey>, tls: Vec<SocketAddr>, plain: Vec<SocketAddr>) {
    let listen = |addresses: Vec<SocketAddr>| -> Vec<std::net::TcpListener> {
        INTERNET.enter(|| addresses.iter().map(|address| listener(*address)).collect())
    };
    let (tls, plain) = (listen(tls), listen(plain));
    INTERNET.spawn(move || async move {
        let acceptor = TlsAcceptor::from(Arc::new(tls_config(key)));
        for listener in tls {
            let acceptor = acceptor.clone();
            serve(listener, move |stream| {
                let acceptor = acceptor.clone();
                async move { http(acceptor.accept(stream).await?).await }
            });
        }
        for listener in plain {
            serve(listener, obey);
        }
        std::future::pending().await
    });
}

fn listener(address: SocketAddr) -> std::net::TcpListener {
    let listener = std::net::TcpListener::bind(address).expect("an address of the internet");
    listener.set_nonblocking(true).expect("a socket");
    listener
}

fn serve<F>(listener: std::net::TcpListener, talk: impl Fn(TcpStream) -> F + Send + 'static)
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let listener = TcpListener::from_std(listener).expect("a runtime");
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let _ = stream.set_nodelay(true);
            // The client checks how a connection ends.
            tokio::spawn(talk(stream));
        }
    });
}

fn tls_config(key: Arc<CertifiedKey>) -> ServerConfig {
    let mut config =
        ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(OneKey(key)));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

#[derive(Debug)]
struct OneKey(Arc<CertifiedKey>);

impl ResolvesServerCert for OneKey {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

async fn http(stream: TlsStream<TcpStream>) -> io::Result<()> {
    match stream.get_ref().1.alpn_protocol() {
        Some(b"h2") => h2(stream).await.map_err(io::Error::other),
        _ => h1(stream).await,
    }
}

async fn h1(mut stream: TlsStream<TcpStream>) -> io::Result<()> {
    let good = [GOOD_HEAD, &[b'x'; BODY]].concat();
    let mut held = BytesMut::with_capacity(16 * 1024);
    loop {
        while let Some(end) = head_end(&held) {
            let head = held.split_to(end);
            if find(&head, OPENAI_SECRET.as_bytes())
                && let Some(endless) = Endless::asked(&head)
            {
                return endless.write(stream).await;
            }
            let answer: &[u8] = if find(&head, OPENAI_SECRET.as_bytes()) { &good } else { BAD };
            stream.write_all(answer).await?;
        }
        if stream.read_buf(&mut held).await? == 0 {
            return Ok(());
        }
    }
}

/// An answer that goes on until nobody reads it.
struct Endless {
    kind: &'static str,
    part: Vec<u8>,
    every: Duration,
}

impl Endless {
    fn asked(head: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(head).ok()?.lines().next()?;
        let (path, every) = line.split(' ').nth(1)?.split_once("?every=")?;
        let every = Duration::from_millis(every.parse().ok()?);
        let json = || EVENT.trim().trim_start_matches("data: ").repeat(CHUNK / EVENT.len() + 1);
        match path {
            "/v1/bulk" => {
                let mut part = json().into_bytes();
                part.resize(CHUNK, b' ');
                Some(Self { kind: "application/json", part, every })
            }
            "/v1/events" => Some(Self { kind: "text/event-stream", part: EVENT.into(), every }),
            _ => None,
        }
    }

    /// A length stands before it, so that every byte after the head is of the body. nginx gathers an
    /// answer unless the field says otherwise.
    async fn write(self, mut stream: TlsStream<TcpStream>) -> io::Result<()> {
        let head = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: {}\r\nx-accel-buffering: no\r\n\
             content-length: 1099511627776\r\n\r\n",
            self.kind
        );
        stream.write_all(head.as_bytes()).await?;
        let mut pace = interval(self.every);
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        loop {
            pace.tick().await;
            stream.write_all(&self.part).await?;
            stream.flush().await?;
        }
    }
}

async fn h2(stream: TlsStream<TcpStream>) -> Result<(), h2::Error> {
    let body = Bytes::from_static(&[b'x'; BODY]);
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(request) = connection.accept().await {
        let (request, mut respond) = request?;
        let authorization = request.headers().get("authorization");
        let good = authorization.is_some_and(|it| find(it.as_bytes(), OPENAI_SECRET.as_bytes()));
        let response = http::Response::builder()
            .status(if good { 200 } else { 401 })
            .header("content-type", "application/json")
            .header("content-length", BODY)
            .body(())
            .expect("a response");
        respond.send_response(response, false)?.send_data(body.clone(), true)?;
    }
    Ok(())
}

/// Reads one ClientHello, then follows the client's order.
async fn obey(mut stream: TcpStream) -> io::Result<()> {
    let mut header = [0; 5];
    stream.read_exact(&mut header).await?;
    let mut hello = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
    stream.read_exact(&mut hello).await?;
    let mut order = [0; Order::LENGTH];
    let mut sent = Vec::new();
    while stream.read_exact(&mut order).await.is_ok() {
        let order = Order::read(&order);
        sent.resize(order.chunk as usize, b'x');
        if order.every == 0 {
            for _ in 0..order.times {
                stream.write_all(&sent).await?;
            }
            continue;
        }
        let mut pace = interval(Duration::from_millis(order.every.into()));
        pace.set_missed_tick_behavior(MissedTickBehavior::Burst);
        for _ in 0..order.times {
            pace.tick().await;
            stream.write_all(&sent).await?;
        }
    }
    Ok(())
}

/// Returns where a head ends, if it does.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

fn find(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

const GOOD_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
    date: Thu, 01 Jan 1970 00:00:00 GMT\r\ncontent-length: 1024\r\n\r\n";
const BAD: &[u8] = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
