//! TLS ends here: upstream first, then the agent, then one exchange after the other.
//!
//! One task drives both sides of an agent's connection. The upstream is verified for the exact
//! name before a leaf is shown; where that fails, the leaf is shown only to say so, on a
//! connection that has no upstream at all.

mod body;
mod exchange;
mod framing;
mod guard;
mod message;
mod serve;
mod tasks;
mod tls;

pub use tls::{Tls, provider};

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::SystemTime,
};

use rustls::sign::CertifiedKey;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::client::TlsStream;

use self::{
    exchange::{Connection, RequestRules},
    message::Site,
    tls::{ClientSettings, Protocol},
};
use crate::{
    accept::Flow,
    audit::{Record, Sink, Traffic},
    daemon::Phases,
    decide::Permit,
    dial::{self, Resolver},
    peek::{Hello, Rewind},
    reason::Reason,
    rulebook::{MaskCache, Rulebook},
    secrets::SecretStore,
};

/// What interception needs of the daemon.
#[derive(Clone)]
pub struct Means {
    /// Where records go.
    pub audit: Sink,
    /// Where values come from.
    pub secrets: Arc<SecretStore>,
    /// Compiled masks.
    pub masks: Arc<MaskCache>,
    /// The gateway's own resolution of names.
    pub resolver: Resolver,
}

/// One connection to intercept or inspect.
pub struct Interception<'a> {
    /// The policy it was decided under.
    pub rulebook: &'a Rulebook,
    /// Whose it is.
    pub flow: &'a Flow,
    /// What it may become.
    pub permit: Permit,
    /// What its first bytes said.
    pub hello: &'a Hello,
}

/// Carries the connection to its end.
pub async fn run(
    means: &Means,
    interception: Interception<'_>,
    agent: Rewind<TcpStream>,
    phases: Phases,
    record: &mut Record,
) {
    let Interception { rulebook, flow, permit, hello } = interception;
    let Some(leaf) = leaf_for(rulebook, &permit) else {
        return record.refused(Reason::InternalError);
    };
    let upstream = connect(means, rulebook, flow, &permit, hello, record).await;
    let protocol = upstream.as_ref().ok().map(|(_, protocol)| *protocol);
    let agent = Counted { stream: agent, traffic: Arc::clone(record.traffic()) };
    let limits = &rulebook.policy.limits;
    let connection = Arc::new(connection(means, rulebook, flow, &permit));
    let handshake = accept(&rulebook.tls, agent, leaf, protocol);
    let agent = match timeout(limits.head_time, handshake).await {
        Ok(Ok(agent)) => agent,
        // The agent does not trust the leaf, went away, or never finished; it knows why.
        Ok(Err(_)) | Err(_) => {
            record.ended("agent_tls_failed");
            if let Err(reason) = upstream {
                record.refused(reason);
            }
            return;
        }
    };
    match upstream {
        Ok((upstream, Protocol::H1)) => {
            serve::h1(connection, agent, upstream, limits, phases, record).await;
        }
        Ok((upstream, Protocol::H2)) => {
            serve::h2(connection, agent, upstream, limits, phases, record).await;
        }
        Err(reason) => {
            record.refused(reason);
            serve::refusal(connection, agent, reason, limits).await;
        }
    }
}

fn leaf_for(rulebook: &Rulebook, permit: &Permit) -> Option<Arc<CertifiedKey>> {
    let rule = permit.route().rule();
    let leaf = rulebook.leaves(rule)?.leaf(permit.host(), SystemTime::now());
    leaf.inspect_err(|error| tracing::error!(%rule, %error, "no leaf")).ok()
}

async fn connect(
    means: &Means,
    rulebook: &Rulebook,
    flow: &Flow,
    permit: &Permit,
    hello: &Hello,
    record: &mut Record,
) -> Result<(TlsStream<TcpStream>, Protocol), Reason> {
    let patience = rulebook.policy.limits.dial_time;
    let dialled = dial::connect(permit, &means.resolver, patience).await?;
    record.upstream(dialled.address);
    let offer = Protocol::offered(&hello.alpn);
    let settings = ClientSettings {
        group: &flow.group.name,
        rule: permit.route().rule(),
        upstream: permit.upstream(),
        offer: &offer,
    };
    let handshake = rulebook.tls.connect(dialled.stream, permit.host(), settings);
    timeout(patience, handshake).await.unwrap_or(Err(Reason::UpstreamUnreachable))
}

async fn accept(
    tls: &Tls,
    agent: Counted<Rewind<TcpStream>>,
    leaf: Arc<CertifiedKey>,
    protocol: Option<Protocol>,
) -> io::Result<serve::AgentTls> {
    tls.accept(agent, leaf, protocol).await
}

fn connection(means: &Means, rulebook: &Rulebook, flow: &Flow, permit: &Permit) -> Connection {
    let group = Arc::clone(&flow.group);
    let rules = RequestRules::of(permit.route(), |api| rulebook.rules(&group.name, api));
    Connection {
        flow: flow.id,
        group,
        site: Site { host: permit.host().clone(), port: permit.port() },
        route: permit.route().clone(),
        rules,
        audit: means.audit.clone(),
        secrets: Arc::clone(&means.secrets),
        masks: Arc::clone(&means.masks),
        under_way: AtomicUsize::new(0),
    }
}

/// Counts what goes over the agent's side of the wire, TLS and all.
pub struct Counted<S> {
    stream: S,
    traffic: Arc<Traffic>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, out))?;
        self.traffic.from_agent.fetch_add((out.filled().len() - before) as u64, Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        self.traffic.to_agent.fetch_add(written as u64, Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bytes))?;
        self.traffic.to_agent.fetch_add(written as u64, Relaxed);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
