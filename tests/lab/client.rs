//! Clients: raw ones that send requests no honest client would send, and helpers that run
//! unmodified ones.
//!
//! The raw clients live in the test's own process, on sockets made inside a namespace.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    process::{Command, Output},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
    client::{
        EchGreaseConfig, EchMode,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        WebPkiSupportedAlgorithms,
        aws_lc_rs::{default_provider, hpke::DH_KEM_X25519_HKDF_SHA256_AES_128},
        hpke::HpkePublicKey,
        verify_tls12_signature, verify_tls13_signature,
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _};

use crate::net::{Lab, Ns};

/// The certificates that a raw client trusts.
#[derive(Debug, Clone, Default)]
pub enum Trust {
    /// All: for tests that check the server's end.
    #[default]
    Anybody,
    /// The certificates of this PEM text.
    Pem(String),
}

/// The contents of a raw TLS client's ClientHello.
#[derive(Debug, Clone)]
pub struct Hello {
    /// The name in SNI, or none.
    pub sni: Option<String>,
    /// The application protocols offered.
    pub alpn: Vec<&'static [u8]>,
    /// The certificates to trust.
    pub trust: Trust,
    /// Whether it has a meaningless encrypted ClientHello (GREASE), as a browser's has.
    pub ech: bool,
}

/// A TLS connection for arbitrary bytes.
pub struct Tls {
    stream: StreamOwned<ClientConnection, std::net::TcpStream>,
}

/// An HTTP answer.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status.
    pub status: StatusCode,
    /// The header fields.
    pub headers: HeaderMap,
    /// The body, without its chunking.
    pub body: Bytes,
    /// The trailer fields, of HTTP/2 only.
    pub trailers: HeaderMap,
}

impl Response {
    /// Returns the body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the reason word if the gateway itself gave this answer.
    pub fn reason(&self) -> Option<String> {
        let kind = self.headers.get("content-type")?;
        if kind != "application/problem+json" {
            return None;
        }
        let problem: serde_json::Value = serde_json::from_slice(&self.body).ok()?;
        problem["reason"].as_str().map(str::to_owned)
    }
}

impl Hello {
    /// Returns an HTTP/1.1 client of `name` that trusts every certificate.
    pub fn h1(name: &str) -> Self {
        let (sni, alpn) = (Some(name.to_owned()), vec![&b"http/1.1"[..]]);
        Self { sni, alpn, trust: Trust::Anybody, ech: false }
    }

    /// Returns an HTTP/2 client of `name` that trusts every certificate.
    pub fn h2(name: &str) -> Self {
        Self { alpn: vec![b"h2"], ..Self::h1(name) }
    }

    /// Returns the same client, but trusts only these certificates.
    #[must_use]
    pub fn trusting(self, pem: &str) -> Self {
        Self { trust: Trust::Pem(pem.to_owned()), ..self }
    }

    fn connection(&self) -> io::Result<ClientConnection> {
        let name = self.sni.clone().unwrap_or_else(|| "nobody.example".to_owned());
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        ClientConnection::new(Arc::new(self.config()?), name).map_err(io::Error::other)
    }

    /// Returns the same as rustls's configuration.
    ///
    /// # Errors
    /// When it is to trust something that is no certificate.
    pub fn config(&self) -> io::Result<ClientConfig> {
        let builder = match self.ech {
            true => ClientConfig::builder_with_provider(default_provider().into())
                .with_ech(EchMode::Grease(EchGreaseConfig::new(
                    DH_KEM_X25519_HKDF_SHA256_AES_128,
                    HpkePublicKey(vec![5; 32]),
                )))
                .map_err(io::Error::other)?,
            false => ClientConfig::builder(),
        };
        let mut config = match &self.trust {
            Trust::Anybody => {
                let any = Arc::new(Anybody::new());
                builder.dangerous().with_custom_certificate_verifier(any).with_no_client_auth()
            }
            Trust::Pem(pem) => builder.with_root_certificates(roots(pem)?).with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.enable_sni = self.sni.is_some();
        Ok(config)
    }
}

/// Returns the certificates in a PEM text.
///
/// # Errors
/// When it is not PEM, or a certificate cannot be a root.
pub fn roots(pem: &str) -> io::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(io::Error::other)?).map_err(io::Error::other)?;
    }
    Ok(roots)
}

impl Tls {
    /// Connects from `ns` and completes the handshake.
    ///
    /// # Errors
    /// When either fails; a TLS alert is an `InvalidData` error that names it.
    pub fn open(ns: Ns, to: SocketAddr, hello: &Hello) -> io::Result<Self> {
        let connection = hello.connection()?;
        let mut stream = StreamOwned::new(connection, ns.connect(to)?);
        while stream.conn.is_handshaking() {
            let (read, written) = stream.conn.complete_io(&mut stream.sock)?;
            if read == 0 && written == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(Self { stream })
    }

    /// Sends these bytes.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }

    /// Sends these bytes and reads one HTTP/1.1 answer.
    ///
    /// # Errors
    /// When the connection is broken or the answer is not HTTP.
    pub fn ask(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<Response> {
        self.send(bytes)?;
        self.response()
    }

    /// Reads one HTTP/1.1 answer.
    ///
    /// # Errors
    /// When the connection is broken or the answer is not HTTP.
    pub fn response(&mut self) -> io::Result<Response> {
        read_response(&mut self.stream)
    }

    /// Reads the next bytes, at most `limit`; returns none at the end.
    ///
    /// # Errors
    /// When the connection is broken.
    pub fn read_some(&mut self, limit: usize) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; limit];
        let length = self.stream.read(&mut buffer)?;
        buffer.truncate(length);
        Ok(buffer)
    }

    /// Reads until the other side ends; a missing `close_notify` counts as an end.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        // Bytes before a reset are the answer.
        let _ = self.stream.read_to_end(&mut all);
        all
    }

    /// Returns every certificate that the server showed, its leaf first.
    pub fn chain(&self) -> Vec<CertificateDer<'static>> {
        let shown = self.stream.conn.peer_certificates().unwrap_or_default();
        shown.iter().cloned().map(CertificateDer::into_owned).collect()
    }

    /// Returns the server's leaf certificate.
    pub fn leaf(&self) -> Option<CertificateDer<'static>> {
        self.stream.conn.peer_certificates()?.first().cloned()
    }

    /// Returns the agreed application protocol.
    pub fn alpn(&self) -> Option<Vec<u8>> {
        self.stream.conn.alpn_protocol().map(<[u8]>::to_vec)
    }

    /// Returns the TCP socket below.
    pub fn socket(&self) -> &std::net::TcpStream {
        &self.stream.sock
    }
}

/// Sends one request over a TLS session on any stream, and reads one HTTP/1.1 answer.
///
/// # Errors
/// When the handshake or the exchange fails.
pub fn tls_over(
    stream: &mut (impl Read + Write),
    hello: &Hello,
    request: &[u8],
) -> io::Result<Response> {
    let mut connection = hello.connection()?;
    let mut stream = rustls::Stream::new(&mut connection, stream);
    stream.write_all(request)?;
    stream.flush()?;
    read_response(&mut stream)
}

/// Returns the bytes of a ClientHello as this machine's rustls writes it: two TCP segments with
/// ML-KEM.
///
/// # Panics
/// When the name is invalid.
pub fn client_hello(hello: &Hello) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut connection = hello.connection().expect("a host name");
    connection.write_tls(&mut bytes).expect("a vector grows");
    bytes
}

/// Reads one HTTP/1.1 answer from any stream.
///
/// # Errors
/// When the stream is broken or the answer is not HTTP.
pub fn read_response(stream: &mut impl Read) -> io::Result<Response> {
    let mut seen = Vec::new();
    let (status, headers, head) = loop {
        read_more(stream, &mut seen)?;
        if let Some(head) = parse_head(&seen)? {
            break head;
        }
    };
    let mut body = seen.split_off(head);
    let length = headers.get("content-length").and_then(|value| value.to_str().ok()?.parse().ok());
    let chunked = headers.get("transfer-encoding").is_some_and(|value| value == "chunked");
    if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED {
        body.clear();
    } else if chunked {
        while !body.ends_with(b"0\r\n\r\n") {
            read_more(stream, &mut body)?;
        }
        body = dechunk(&body)?;
    } else if let Some(length) = length {
        while body.len() < length {
            read_more(stream, &mut body)?;
        }
    } else {
        let _ = stream.read_to_end(&mut body);
    }
    Ok(Response { status, headers, body: body.into(), trailers: HeaderMap::new() })
}

fn read_more(stream: &mut impl Read, into: &mut Vec<u8>) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    match stream.read(&mut buffer)? {
        0 => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("ended after {:?}", String::from_utf8_lossy(into)),
        )),
        length => {
            into.extend_from_slice(&buffer[..length]);
            Ok(())
        }
    }
}

fn parse_head(bytes: &[u8]) -> io::Result<Option<(StatusCode, HeaderMap, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; 128];
    let mut response = httparse::Response::new(&mut fields);
    let length = match response.parse(bytes).map_err(io::Error::other)? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(None),
    };
    let status = StatusCode::from_u16(response.code.unwrap_or(0)).map_err(io::Error::other)?;
    let mut headers = HeaderMap::new();
    for field in response.headers.iter() {
        let name: http::HeaderName = field.name.parse().map_err(io::Error::other)?;
        let value = http::HeaderValue::from_bytes(field.value).map_err(io::Error::other)?;
        headers.append(name, value);
    }
    Ok(Some((status, headers, length)))
}

fn dechunk(mut rest: &[u8]) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let status = httparse::parse_chunk_size(rest)
            .map_err(|_| io::Error::other("a malformed chunk size"))?;
        let httparse::Status::Complete((start, length)) = status else {
            return Err(io::Error::other("a truncated chunk"));
        };
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let Some(chunk) = rest.get(start..start + length) else {
            return Err(io::Error::other("a truncated chunk"));
        };
        if length == 0 {
            return Ok(body);
        }
        body.extend_from_slice(chunk);
        rest = rest.get(start + length + 2..).unwrap_or_default();
    }
}

/// An HTTP/2 connection for arbitrary requests.
pub struct H2 {
    runtime: tokio::runtime::Runtime,
    requests: h2::client::SendRequest<Bytes>,
    local: SocketAddr,
}

impl H2 {
    /// Connects from `ns`, completes both handshakes.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn open(ns: Ns, to: SocketAddr, hello: &Hello) -> io::Result<Self> {
        let config = tokio_rustls::TlsConnector::from(Arc::new(hello.config()?));
        let name = hello.sni.clone().unwrap_or_else(|| "nobody.example".to_owned());
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        let socket = ns.connect(to)?;
        socket.set_nonblocking(true)?;
        let local = socket.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let requests = runtime.block_on(limited(async move {
            let socket = tokio::net::TcpStream::from_std(socket)?;
            let stream = config.connect(name, socket).await?;
            // One stream that is not read must not stop the others.
            let mut builder = h2::client::Builder::new();
            builder.initial_connection_window_size(16 << 20);
            let (requests, connection) =
                builder.handshake(stream).await.map_err(io::Error::other)?;
            // Its end shows in the requests.
            tokio::spawn(async move { drop(connection.await) });
            Ok(requests)
        }))?;
        Ok(Self { runtime, requests, local })
    }

    /// Returns this end's address and port.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Runs `work` on the connection, for at most ten seconds.
    ///
    /// # Errors
    /// The error of `work`, or one that says it took too long.
    pub fn run<T, F>(
        &mut self,
        work: impl FnOnce(h2::client::SendRequest<Bytes>) -> F,
    ) -> io::Result<T>
    where
        F: Future<Output = Result<T, h2::Error>>,
    {
        let work = work(self.requests.clone());
        self.runtime.block_on(limited(async { work.await.map_err(io::Error::other) }))
    }

    /// Sends one request and reads the whole answer.
    ///
    /// # Errors
    /// When the stream or the connection is reset.
    pub fn ask(&mut self, request: Request<()>, body: impl Into<Bytes>) -> io::Result<Response> {
        let requests = self.requests.clone();
        let body = body.into();
        self.runtime.block_on(limited(async move {
            let mut requests = requests.ready().await.map_err(io::Error::other)?;
            let (answer, mut send) =
                requests.send_request(request, body.is_empty()).map_err(io::Error::other)?;
            if !body.is_empty() {
                send.send_data(body, true).map_err(io::Error::other)?;
            }
            let (head, mut body) = answer.await.map_err(io::Error::other)?.into_parts();
            let mut all = Vec::new();
            while let Some(chunk) = body.data().await {
                let chunk = chunk.map_err(io::Error::other)?;
                let _ = body.flow_control().release_capacity(chunk.len());
                all.extend_from_slice(&chunk);
            }
            let trailers = body.trailers().await.map_err(io::Error::other)?;
            Ok(Response {
                status: head.status,
                headers: head.headers,
                body: all.into(),
                trailers: trailers.unwrap_or_default(),
            })
        }))
    }
}

async fn limited<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let limit = Duration::from_secs(10);
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Returns a command in the environment of an agent: the placeholders, and the CA bundle under the
/// names that the usual runtimes look for.
pub fn agent(lab: &Lab, ns: Ns, program: &str) -> Command {
    let bundle = lab.dir.join("agents.pem");
    let mut command = ns.command(program);
    for variable in BUNDLE_VARIABLES {
        command.env(variable, &bundle);
    }
    for placeholder in ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GIT_TOKEN"] {
        command.env(placeholder, placeholder);
    }
    command
}

/// Runs an agent's program and requires that it succeeds.
///
/// # Panics
/// When it does not. The panic shows its output.
#[track_caller]
pub fn succeed(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("the program starts");
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?} ({status}):\n{stdout}\n{stderr}");
    stdout.into_owned()
}

/// Returns the Python of the virtual environment with the pinned SDKs.
///
/// # Panics
/// When it has not been made.
pub fn python() -> std::path::PathBuf {
    tool("python")
}

/// Returns a program of that environment, which has node and npm, too.
///
/// # Panics
/// When it has not been made.
pub fn tool(name: &str) -> std::path::PathBuf {
    let tool = crate::tools::cache().join("python/bin").join(name);
    assert!(tool.is_file(), "{} is missing: run tests/clients/get", tool.display());
    tool
}

const BUNDLE_VARIABLES: [&str; 4] =
    ["SSL_CERT_FILE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "REQUESTS_CA_BUNDLE"];

/// A verifier that trusts every certificate, but still checks that a signature fits its key.
#[derive(Debug)]
struct Anybody(WebPkiSupportedAlgorithms);

impl Anybody {
    fn new() -> Self {
        Self(rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms)
    }
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _leaf: &CertificateDer<'_>,
        _chain: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
