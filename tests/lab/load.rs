//! Many HTTP/2 connections of many agents that ask for much and then do nothing: they neither read
//! nor close, so that everything on its way to them stays where it is.

use std::{
    any::Any,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use rustls_pki_types::ServerName;
use tokio::{
    net::TcpSocket,
    runtime::{Builder, Runtime},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    client::Hello,
    net::{Ns, OPENAI},
};

/// The requests of one connection.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The agent's address, which must be one of its own.
    pub from: IpAddr,
    /// The address that it dials.
    pub to: SocketAddr,
    /// The number of requests at once.
    pub streams: usize,
    /// The whole target.
    pub url: String,
    /// The placeholder, sent as a bearer token.
    pub placeholder: &'static str,
    /// The body of each request, of which as much is sent as the gateway accepts.
    pub body: Bytes,
}

impl Ask {
    /// Returns one request of the first agent to the first API, over the family of the address.
    pub fn of(from: IpAddr, path: &str, body: Bytes) -> Self {
        let to = if from.is_ipv4() { OPENAI.port(443) } else { OPENAI.port6(443) };
        let url = format!("https://{}{path}", OPENAI.name);
        Self { from, to, streams: 1, url, placeholder: "OPENAI_API_KEY", body }
    }
}

/// Connections that stand still. They are closed when this is dropped.
pub struct Load {
    held: Vec<Box<dyn Any + Send>>,
    /// The reasons why others have failed so far.
    pub failures: Vec<String>,
    _runtime: Runtime,
}

impl Load {
    /// Opens a connection for each of these, in turns; each is served for `time` and then left.
    ///
    /// # Errors
    /// When there are no descriptors or threads for it.
    ///
    /// # Panics
    /// When the name in `hello` is invalid.
    pub fn take(ns: Ns, hello: &Hello, asks: &[Ask], time: Duration) -> io::Result<Self> {
        let connector = TlsConnector::from(Arc::new(hello.config()?));
        let name = ServerName::try_from(hello.sni.clone().unwrap_or_default());
        let name = name.expect("a host name");
        ns.enter(|| {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let (mut held, mut failures) = (Vec::new(), Vec::new());
            runtime.block_on(async {
                let turns = Arc::new(Semaphore::new(HANDSHAKES));
                let mut all = JoinSet::new();
                for ask in asks {
                    let (connector, name) = (connector.clone(), name.clone());
                    all.spawn(stuck(ask.clone(), connector, name, Arc::clone(&turns), time));
                }
                while let Some(Ok(done)) = all.join_next().await {
                    match done {
                        Ok(connection) => held.push(connection),
                        Err(error) => failures.push(error.to_string()),
                    }
                }
            });
            Ok(Self { held, failures, _runtime: runtime })
        })
    }

    /// Returns how many stand still.
    pub fn held(&self) -> usize {
        self.held.len()
    }
}

async fn stuck(
    ask: Ask,
    connector: TlsConnector,
    name: ServerName<'static>,
    turns: Arc<Semaphore>,
    time: Duration,
) -> io::Result<Box<dyn Any + Send>> {
    let turn = turns.acquire().await.map_err(io::Error::other)?;
    let socket = if ask.from.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.bind((ask.from, 0).into())?;
    let stream = timeout(TIMEOUT, socket.connect(ask.to)).await??;
    let stream = timeout(TIMEOUT, connector.connect(name, stream)).await??;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(WINDOW).initial_connection_window_size(WINDOW);
    let (mut requests, mut connection) =
        timeout(TIMEOUT, builder.handshake(stream)).await?.map_err(io::Error::other)?;
    drop(turn);
    let mut streams = Vec::new();
    for _ in 0..ask.streams {
        let head = Request::post(&ask.url)
            .header("authorization", format!("Bearer {}", ask.placeholder))
            .body(())
            .map_err(io::Error::other)?;
        let (answer, mut send) =
            requests.send_request(head, ask.body.is_empty()).map_err(io::Error::other)?;
        if !ask.body.is_empty() {
            send.send_data(ask.body.clone(), true).map_err(io::Error::other)?;
        }
        streams.push((answer, send));
    }
    // From here on nobody reads the socket.
    match timeout(time, &mut connection).await {
        Err(_) => Ok(Box::new((connection, requests, streams))),
        Ok(ended) => Err(io::Error::other(format!("it was ended: {ended:?}"))),
    }
}

/// Handshakes at once.
const HANDSHAKES: usize = 16;
/// Longest time of one step of them.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The largest window that HTTP/2 allows (RFC 9113, section 6.9.1).
const WINDOW: u32 = (1 << 31) - 1;
