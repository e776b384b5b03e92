//! The servers of the internet: TLS on 443 and clear text on 80, at every address of the lab.
//!
//! They record exactly what arrived: how many connections, the name in each ClientHello, every byte
//! after decryption, and, where those bytes were HTTP, the requests in them. Their answers depend
//! on the path and are listed in [`answer`].

mod answer;
mod coded;
mod git;
mod live;
mod minted;
mod models;
mod record;
mod scripted;
mod services;
mod sites;
mod sockets;

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
};

use hyper::{server::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    net::{HOSTS, INTERNET, Lab, Ns, OPENAI},
    pki::Flaw,
};

pub use answer::pattern;
pub use coded::{TEXT, forms};
pub use minted::{MINTED, STORED};
pub use record::{Connection, Log, Received};
pub use scripted::{Script, Step};

/// All origins of a lab.
pub struct Origin {
    log: Log,
    identities: Arc<Identities>,
}

impl Origin {
    /// Starts the servers on the internet, each host with a valid certificate.
    ///
    /// # Panics
    /// When a port cannot be bound.
    pub fn start(lab: &Lab) -> Self {
        let identities = Arc::new(Identities::default());
        for host in HOSTS {
            identities.set(host.name, lab.public.issue(host.name).certified());
        }
        let log = Log::default();
        let listeners = bind(INTERNET);
        let tls = TlsAcceptor::from(Arc::new(server_config(Arc::clone(&identities))));
        let served = log.clone();
        INTERNET.spawn(|| async move {
            for (port, listener) in listeners {
                let listener = TcpListener::from_std(listener).expect("a runtime");
                let tls = (port == 443).then(|| tls.clone());
                tokio::spawn(accept(listener, tls, served.clone()));
            }
            std::future::pending().await
        });
        Self { log, identities }
    }

    /// Returns the log of everything received.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Makes `name` show a certificate with this flaw from now on.
    pub fn flaw(&self, lab: &Lab, name: &str, flaw: Flaw) {
        self.identities.set(name, lab.public.issue_flawed(name, flaw).certified());
    }

    /// Makes the git repository `NAME.git`, whose `README` holds `content`.
    ///
    /// # Panics
    /// When git fails.
    pub fn repository(&self, name: &str, content: &str) {
        git::create(name, content).expect("git is installed");
    }

    /// Makes the git repository `NAME.git`, whose `README` points to [`STORED`] in git-lfs.
    ///
    /// # Panics
    /// When git fails.
    pub fn lfs_repository(&self, name: &str) {
        self.repository(name, &minted::pointer());
    }

    /// Keeps an answer, and returns the path at which it is given.
    ///
    /// # Panics
    /// Never, unless another thread did.
    pub fn script(&self, script: Script) -> String {
        scripted::add(script)
    }

    /// Lets `/gated` send one more event.
    pub fn release(&self) {
        answer::GATE.add_permits(1);
    }

    /// Ends every connection once it is idle: GOAWAY at once, or no further request.
    pub fn say_goodbye(&self) {
        GOODBYE.notify_waiters();
    }

    /// Returns how many answers of `/gated` were abandoned before their end.
    pub fn abandoned(&self) -> usize {
        answer::ABANDONED.load(Relaxed)
    }

    /// Makes `name` show this certificate, of whatever authority, from now on.
    pub fn identity(&self, name: &str, identity: Arc<CertifiedKey>) {
        self.identities.set(name, identity);
    }
}

/// The ports that are served: HTTPS twice, the second outside any policy, and HTTP.
const PORTS: [u16; 3] = [443, 80, 8443];

fn bind(ns: Ns) -> Vec<(u16, std::net::TcpListener)> {
    ns.enter(|| {
        let mut listeners = Vec::new();
        for port in PORTS {
            let tls_port = if port == 80 { 80 } else { 443 };
            for address in addresses(port) {
                let listener = std::net::TcpListener::bind(address).expect("an origin's port");
                listener.set_nonblocking(true).expect("a socket");
                listeners.push((tls_port, listener));
            }
        }
        listeners
    })
}

/// Returns each address separately: a wildcard socket would also take the ports of Vault's address.
fn addresses(port: u16) -> impl Iterator<Item = SocketAddr> {
    let local = [
        SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        SocketAddr::from((Ipv6Addr::LOCALHOST, port)),
    ];
    HOSTS.into_iter().flat_map(move |host| [host.port(port), host.port6(port)]).chain(local)
}

fn server_config(identities: Arc<Identities>) -> ServerConfig {
    let mut config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(identities);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, log: Log) {
    loop {
        let Ok((stream, peer)) = listener.accept().await else { continue };
        let Ok(local) = stream.local_addr() else { continue };
        let id = log.opened(local, peer, tls.is_some());
        let (tls, log) = (tls.clone(), log.clone());
        tokio::spawn(async move {
            let outcome = serve(stream, tls, id, &log).await;
            log.closed(id, outcome.err());
        });
    }
}

async fn serve(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    id: usize,
    log: &Log,
) -> Result<(), String> {
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let Some(tls) = tls else {
        return serve_http(log.tee(id, stream), false, id, log).await;
    };
    let stream = tls.accept(stream).await.map_err(|error| format!("handshake: {error}"))?;
    let (_, session) = stream.get_ref();
    log.shook_hands(id, session.server_name(), session.alpn_protocol());
    let h2 = session.alpn_protocol() == Some(b"h2");
    serve_http(log.tee(id, stream), h2, id, log).await
}

async fn serve_http<S>(stream: S, h2: bool, id: usize, log: &Log) -> Result<(), String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request| answer::answer(request, id, log.clone()));
    let io = TokioIo::new(stream);
    let goodbye = GOODBYE.notified();
    let outcome = if h2 {
        let builder = conn::http2::Builder::new(TokioExecutor::new());
        let mut served = pin!(builder.serve_connection(io, service));
        tokio::select! {
            outcome = served.as_mut() => outcome,
            () = goodbye => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        }
    } else {
        let mut builder = conn::http1::Builder::new();
        builder.half_close(true).max_headers(1_000);
        let mut served = pin!(builder.serve_connection(io, service).with_upgrades());
        tokio::select! {
            outcome = served.as_mut() => outcome,
            () = goodbye => {
                served.as_mut().graceful_shutdown();
                served.await
            }
        }
    };
    outcome.map_err(|error| format!("http: {error}"))
}

/// Tells every connection to end. One test is one process.
static GOODBYE: Notify = Notify::const_new();

/// The certificate of each name.
#[derive(Default, Debug)]
struct Identities(Mutex<BTreeMap<String, Arc<CertifiedKey>>>);

impl Identities {
    fn set(&self, name: &str, identity: Arc<CertifiedKey>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(name.to_owned(), identity);
    }
}

impl ResolvesServerCert for Identities {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A server that is asked for a name it does not know shows one of its own.
        let name = hello.server_name().unwrap_or_default();
        all.get(name).or_else(|| all.get(OPENAI.name)).cloned()
    }
}
