//! The agent's side: requests over connections that are kept, over new ones, over HTTP/2, and
//! spliced bytes.

use std::{
    fs, io,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use lab::{
    gateway::OPENAI_SECRET,
    net::{CDN, OPENAI},
};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, client::Resumption, crypto::aws_lc_rs,
};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Mutex,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    load::{Done, Load, Outcome, open_loop},
    measure::Meter,
    origin::{BODY, CHUNK, EVENT, Order, head_end},
};

/// The agent's TLS settings and credential.
#[derive(Clone)]
pub struct Agent {
    h1: TlsConnector,
    h2: TlsConnector,
    hello: Arc<Vec<u8>>,
    credential: &'static str,
}

impl Agent {
    /// Creates an agent that trusts the CAs in the bundle. It makes full handshakes only, because a
    /// new connection must be one, and uses no post-quantum key exchange unless asked to, because
    /// the rivals' OpenSSL has none.
    pub fn new(bundle: &Path, post_quantum: bool) -> Self {
        let mut provider = aws_lc_rs::default_provider();
        if !post_quantum {
            provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
        }
        let mut roots = RootCertStore::empty();
        let pem = fs::read(bundle).expect("what agents trust");
        for root in CertificateDer::pem_slice_iter(&pem) {
            roots.add(root.expect("a certificate")).expect("a root");
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .expect("TLS")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        let with = |alpn: &str| {
            let mut config = config.clone();
            config.alpn_protocols = vec![alpn.into()];
            Arc::new(config)
        };
        let hello = client_hello(with("http/1.1"));
        Self {
            h1: with("http/1.1").into(),
            h2: with("h2").into(),
            hello: Arc::new(hello),
            credential: "OPENAI_API_KEY",
        }
    }

    /// Gives the agent the real key, for the way without a gateway.
    pub fn with_the_key(self) -> Self {
        Self { credential: OPENAI_SECRET, ..self }
    }

    /// Sends requests over `connections` that are kept.
    pub async fn requests(
        &self,
        to: SocketAddr,
        connections: usize,
        load: Load,
        meter: Option<Meter>,
    ) -> Outcome {
        let mut kept = Vec::new();
        for _ in 0..connections {
            kept.push(Arc::new(Mutex::new(self.connect_h1(to).await.expect("a connection"))));
        }
        open_loop(load, meter, |number| {
            let connection = Arc::clone(&kept[number % kept.len()]);
            async move { within(connection.lock().await.get()).await }
        })
        .await
    }

    /// Sends requests over HTTP/2 `connections`, on as many streams at once as it takes.
    pub async fn streams(
        &self,
        to: SocketAddr,
        connections: usize,
        load: Load,
        meter: Option<Meter>,
    ) -> Outcome {
        let mut kept = Vec::new();
        let mut drivers = JoinSet::new();
        for _ in 0..connections {
            let stream = connect(&self.h2, to).await.expect("a connection");
            let handshake = h2::client::Builder::new()
                .initial_window_size(1 << 20)
                .initial_connection_window_size(1 << 24)
                .handshake(stream);
            let (sender, connection) = handshake.await.expect("HTTP/2");
            drivers.spawn(connection);
            kept.push(sender);
        }
        open_loop(load, meter, |number| {
            let sender = kept[number % kept.len()].clone();
            within(stream(sender))
        })
        .await
    }

    /// Opens new connections, each for one request.
    pub async fn connections(&self, to: SocketAddr, load: Load, meter: Option<Meter>) -> Outcome {
        open_loop(load, meter, |_| {
            let agent = self.clone();
            within(async move {
                let mut connection = agent.connect_h1(to).await?;
                connection.get().await?;
                connection.stream.shutdown().await.map_err(text)
            })
        })
        .await
    }

    /// Opens `count` connections, makes one request over each and keeps them.
    pub async fn idle(&self, to: SocketAddr, count: usize) -> Vec<H1> {
        let mut kept = Vec::new();
        for _ in 0..count {
            let mut connection = self.connect_h1(to).await.expect("a connection");
            connection.get().await.expect("an answer");
            kept.push(connection);
        }
        kept
    }

    /// Sends small requests over spliced connections that are kept, and reads their answers.
    pub async fn spliced_requests(
        &self,
        to: SocketAddr,
        connections: usize,
        load: Load,
        meter: Option<Meter>,
    ) -> Outcome {
        let mut kept = Vec::new();
        for _ in 0..connections {
            let spliced = Spliced::connect(to, &self.hello).await.expect("a connection");
            kept.push(Arc::new(Mutex::new(spliced)));
        }
        open_loop(load, meter, |number| {
            let connection = Arc::clone(&kept[number % kept.len()]);
            async move { within(connection.lock().await.ask()).await }
        })
        .await
    }

    /// Opens new spliced connections, each for one small request.
    pub async fn spliced_connections(
        &self,
        to: SocketAddr,
        load: Load,
        meter: Option<Meter>,
    ) -> Outcome {
        open_loop(load, meter, |_| {
            let hello = Arc::clone(&self.hello);
            within(async move {
                let mut connection = Spliced::connect(to, &hello).await.map_err(text)?;
                connection.ask().await?;
                connection.stream.shutdown().await.map_err(text)
            })
        })
        .await
    }

    /// Downloads at a steady pace; a unit of work is a GiB, and `load.rate` is GiB a second.
    pub async fn bulk(
        &self,
        to: SocketAddr,
        connections: usize,
        load: Load,
        meter: Option<Meter>,
    ) -> Outcome {
        let received = Arc::new(AtomicU64::new(0));
        let mut readers = JoinSet::new();
        for _ in 0..connections {
            let mut spliced = Spliced::connect(to, &self.hello).await.expect("a connection");
            let every = CHUNK as f64 * connections as f64 * 1e3 / (load.rate * GIB);
            let order = Order { chunk: CHUNK as u32, times: u32::MAX, every: every.round() as u32 };
            spliced.stream.write_all(&order.bytes()).await.expect("an order");
            let received = Arc::clone(&received);
            readers.spawn(async move {
                let mut buffer = vec![0; CHUNK];
                while let Ok(bytes @ 1..) = spliced.stream.read(&mut buffer).await {
                    received.fetch_add(bytes as u64, Relaxed);
                }
            });
        }
        count(&received, load, meter).await.in_units_of(GIB, load)
    }

    /// Opens `count` spliced connections, asks for something over each and keeps them.
    pub async fn idle_spliced(&self, to: SocketAddr, count: usize) -> Vec<Spliced> {
        let mut kept = Vec::new();
        for _ in 0..count {
            let mut connection = Spliced::connect(to, &self.hello).await.expect("a connection");
            connection.ask().await.expect("an answer");
            kept.push(connection);
        }
        kept
    }

    /// Downloads JSON through interception; a unit of work is a GiB, and `load.rate` is GiB a second.
    pub async fn download(
        &self,
        to: SocketAddr,
        connections: usize,
        load: Load,
        meter: Option<Meter>,
    ) -> Outcome {
        let every = CHUNK as f64 * connections as f64 * 1e3 / (load.rate * GIB);
        let mut answers = self.answers(to, connections, "/v1/bulk", every).await;
        answers.count(load, meter).await.in_units_of(GIB, load)
    }

    /// Reads server-sent events through interception; a unit of work is an event.
    pub async fn events(
        &self,
        to: SocketAddr,
        connections: usize,
        load: Load,
        meter: Option<Meter>,
    ) -> Outcome {
        let every = connections as f64 * 1e3 / load.rate;
        let mut answers = self.answers(to, connections, "/v1/events", every).await;
        answers.count(load, meter).await.in_units_of(EVENT.len() as f64, load)
    }

    /// Asks for an answer without an end over each connection, which the origin writes in parts, one
    /// every so many milliseconds.
    async fn answers(&self, to: SocketAddr, connections: usize, path: &str, every: f64) -> Answers {
        let mut answers = Answers { received: Arc::default(), readers: JoinSet::new() };
        for _ in 0..connections {
            let mut connection = self.connect_h1(to).await.expect("a connection");
            let target = format!("{path}?every={}", every.round() as u32);
            let request = String::from_utf8_lossy(&connection.request).into_owned();
            connection.request = request.replace("/v1/models", &target).into_bytes();
            let received = Arc::clone(&answers.received);
            answers.readers.spawn(async move { connection.count(&received).await });
        }
        answers
    }

    async fn connect_h1(&self, to: SocketAddr) -> Result<H1, String> {
        let stream = connect(&self.h1, to).await.map_err(text)?;
        let request = REQUEST.replace("{credential}", self.credential).into_bytes();
        Ok(H1 { stream, request, held: BytesMut::with_capacity(4096) })
    }
}

/// Answers that are read as they come.
struct Answers {
    received: Arc<AtomicU64>,
    readers: JoinSet<Done>,
}

impl Answers {
    /// Counts what arrives within the measured time.
    ///
    /// # Panics
    /// When a reader has ended: it was not answered.
    async fn count(&mut self, load: Load, meter: Option<Meter>) -> Counted {
        let counted = count(&self.received, load, meter).await;
        match self.readers.try_join_next() {
            Some(ended) => panic!("an answer ended: {ended:?}"),
            None => counted,
        }
    }
}

/// Bytes that arrived, and the gateway's CPU time for them.
struct Counted {
    bytes: u64,
    cpu: Duration,
}

impl Counted {
    /// Returns the outcome where a unit of work has this many bytes.
    fn in_units_of(&self, bytes: f64, load: Load) -> Outcome {
        let done = self.bytes as f64 / bytes;
        let kept_up = done / (load.rate * load.span.as_secs_f64());
        Outcome { done, cpu: self.cpu, kept_up, ..Outcome::default() }
    }
}

/// Counts what arrives within the measured time.
async fn count(received: &AtomicU64, load: Load, meter: Option<Meter>) -> Counted {
    let cpu = || meter.map_or(Duration::ZERO, Meter::cpu);
    sleep(load.warm).await;
    let (cpu_from, from) = (cpu(), received.load(Relaxed));
    sleep(load.span).await;
    Counted { bytes: received.load(Relaxed) - from, cpu: cpu().saturating_sub(cpu_from) }
}

/// An HTTP/1.1 connection.
pub struct H1 {
    stream: TlsStream<TcpStream>,
    request: Vec<u8>,
    held: BytesMut,
}

impl H1 {
    async fn get(&mut self) -> Done {
        self.stream.write_all(&self.request).await.map_err(text)?;
        let end = loop {
            if let Some(end) = head_end(&self.held) {
                break end;
            }
            self.read().await?;
        };
        if !self.held.starts_with(b"HTTP/1.1 200") {
            return Err(String::from_utf8_lossy(&self.held).into_owned());
        }
        let whole = end + BODY;
        while self.held.len() < whole {
            self.read().await?;
        }
        if self.held.len() > whole {
            return Err("bytes after the answer".into());
        }
        self.held.clear();
        Ok(())
    }

    /// Adds the bytes of an answer without an end to `received`, as they come.
    async fn count(mut self, received: &AtomicU64) -> Done {
        self.stream.write_all(&self.request).await.map_err(text)?;
        let end = loop {
            if let Some(end) = head_end(&self.held) {
                break end;
            }
            self.read().await?;
        };
        if !self.held.starts_with(b"HTTP/1.1 200") {
            return Err(String::from_utf8_lossy(&self.held).into_owned());
        }
        received.fetch_add((self.held.len() - end) as u64, Relaxed);
        let mut buffer = vec![0; CHUNK];
        loop {
            match self.stream.read(&mut buffer).await.map_err(text)? {
                0 => return Err("closed".into()),
                bytes => received.fetch_add(bytes as u64, Relaxed),
            };
        }
    }

    async fn read(&mut self) -> Done {
        match self.stream.read_buf(&mut self.held).await {
            Ok(0) => Err("closed".into()),
            Ok(_) => Ok(()),
            Err(error) => Err(text(error)),
        }
    }
}

/// A spliced connection, kept. The bytes after the hello are no TLS, see [`crate::origin`].
pub struct Spliced {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Spliced {
    async fn connect(to: SocketAddr, hello: &[u8]) -> io::Result<Self> {
        let mut stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        stream.write_all(hello).await?;
        Ok(Self { stream, answer: vec![0; BODY] })
    }

    async fn ask(&mut self) -> Done {
        let order = Order { chunk: BODY as u32, times: 1, every: 0 };
        self.stream.write_all(&order.bytes()).await.map_err(text)?;
        self.stream.read_exact(&mut self.answer).await.map(|_| ()).map_err(text)
    }
}

async fn connect(tls: &TlsConnector, to: SocketAddr) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    tls.connect(ServerName::try_from(OPENAI.name).expect("a name"), stream).await
}

async fn stream(sender: SendRequest<Bytes>) -> Done {
    let mut sender = sender.ready().await.map_err(text)?;
    let request = http::Request::builder()
        .uri("https://api.openai.example/v1/models")
        .header("authorization", "Bearer OPENAI_API_KEY")
        .header("accept", "*/*")
        .header("user-agent", "bench/1")
        .body(())
        .expect("a request");
    let (response, _) = sender.send_request(request, true).map_err(text)?;
    let response = response.await.map_err(text)?;
    if response.status() != 200 {
        return Err(format!("status {}", response.status()));
    }
    let mut body = response.into_body();
    let mut length = 0;
    while let Some(data) = body.data().await {
        let data = data.map_err(text)?;
        length += data.len();
        body.flow_control().release_capacity(data.len()).map_err(text)?;
    }
    if length == BODY { Ok(()) } else { Err(format!("{length} bytes")) }
}

async fn within(work: impl Future<Output = Done>) -> Done {
    timeout(TIMEOUT, work).await.unwrap_or_else(|_| Err("timed out".into()))
}

fn client_hello(config: Arc<ClientConfig>) -> Vec<u8> {
    let name = ServerName::try_from(CDN.name).expect("a name");
    let mut connection = ClientConnection::new(config, name).expect("TLS");
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).expect("memory");
    hello
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

const REQUEST: &str = "GET /v1/models HTTP/1.1\r\nHost: api.openai.example\r\n\
    Authorization: Bearer {credential}\r\nAccept: */*\r\nUser-Agent: bench/1\r\n\r\n";
const TIMEOUT: Duration = Duration::from_secs(5);
const GIB: f64 = (1_u64 << 30) as f64;
