//! The management address: `/metrics` for Prometheus, and `/ready` for programs that ask whether
//! connections are carried.
//!
//! No agent's packet reaches the address: it lies outside of the agents' prefixes and on none of
//! their interfaces, or the daemon does not start; besides, the guard and the packet rules refuse
//! agents this machine's own addresses. The metrics hold no value, no path and no agent's name.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge, info::Info},
    registry::Registry,
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use super::health::{SecretUse, Vitals, uses};
use crate::{
    health::{Health, HealthState},
    policy::InterfaceName,
};

/// Listens on the address.
///
/// # Errors
///
/// It is an address of an agents' interface, or not one of this machine's.
pub(super) fn bind(address: SocketAddr, agents: &[&InterfaceName]) -> io::Result<TcpListener> {
    if let Some(interface) = interface_of(address.ip())?
        && agents.iter().any(|agents| agents.as_str() == interface)
    {
        return Err(io::Error::other(format!(
            "it is an address of {interface}, which agents are behind; take one of another interface"
        )));
    }
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Answers requests until `closing`.
pub(super) async fn serve(
    listener: TcpListener,
    vitals: Vitals,
    closing: impl Future<Output = ()>,
) {
    let mut open = JoinSet::new();
    let mut closing = std::pin::pin!(closing);
    loop {
        tokio::select! {
            () = &mut closing => return,
            Some(_) = open.join_next() => {}
            accepted = listener.accept(), if open.len() < MAX_OPEN => match accepted {
                Ok((stream, _)) => {
                    open.spawn(answer(stream, vitals.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed on the management address; waiting");
                    tokio::time::sleep(BACK_OFF).await;
                }
            },
        }
    }
}

async fn answer(stream: TcpStream, vitals: Vitals) {
    let respond = service_fn(move |request: Request<Incoming>| {
        let answer = respond(request.method(), request.uri().path(), &vitals);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(DEADLINE)
        .max_buf_size(MAX_HEAD_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), respond);
    // A client whose request was wrong, or that is gone, asks again.
    let _ = timeout(DEADLINE, connection).await;
}

fn respond(method: &Method, path: &str, vitals: &Vitals) -> Response<Full<Bytes>> {
    match (method, path) {
        (&Method::GET, "/metrics") => match text(vitals) {
            Ok(text) => plain(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "no metrics\n".into()),
        },
        (&Method::GET, "/ready") => {
            let health = vitals.health();
            let status = match health.state() {
                HealthState::Closed => StatusCode::SERVICE_UNAVAILABLE,
                HealthState::Healthy | HealthState::Degraded => StatusCode::OK,
            };
            plain(status, TEXT, format!("{}\n", health.state()))
        }
        _ => plain(StatusCode::NOT_FOUND, TEXT, "GET /metrics or GET /ready\n".into()),
    }
}

fn plain(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

fn text(vitals: &Vitals) -> Result<String, std::fmt::Error> {
    let mut registry = Registry::with_prefix("cloakroom");
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "The program", build);
    of_health(&mut registry, &vitals.health());
    of_groups(&mut registry, vitals);
    of_secrets(&mut registry, vitals);
    of_cas(&mut registry, vitals);
    vitals.gateway.services.audit.metrics().text(&registry)
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabels {
    cause: &'static str,
    group: String,
    rule: String,
    why: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GroupLabels {
    group: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuleLabels {
    rule: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UseLabels {
    group: String,
    rule: String,
}

fn of_health(registry: &mut Registry, health: &Health) {
    let states: Family<StateLabels, Gauge> = Family::default();
    for state in HealthState::ALL {
        let is = i64::from(health.state() == state);
        states.get_or_create(&StateLabels { state: state.as_str() }).set(is);
    }
    let causes: Family<CauseLabels, Gauge> = Family::default();
    for finding in health.findings() {
        let caused = CauseLabels {
            cause: finding.cause.as_str(),
            group: finding.group.clone().unwrap_or_default(),
            rule: finding.rule.clone().unwrap_or_default(),
            why: finding.why.unwrap_or_default(),
        };
        causes.get_or_create(&caused).inc();
    }
    registry.register("health", "1 for the state that the gateway is in", states);
    registry.register("health_cause", "Causes that keep it from being healthy", causes);
}

fn of_groups(registry: &mut Registry, vitals: &Vitals) {
    let open: Family<GroupLabels, Gauge> = Family::default();
    let gateway = &vitals.gateway;
    for group in &gateway.policy_snapshot.borrow().policy.groups {
        let connections = gateway.capacity.open(&group.name);
        let labels = GroupLabels { group: group.name.to_string() };
        open.get_or_create(&labels).set(i64::try_from(connections).unwrap_or(i64::MAX));
    }
    registry.register("open_connections", "Connections that are open", open);
}

/// Adds, for each group and rule, the value that ends first.
fn of_secrets(registry: &mut Registry, vitals: &Vitals) {
    let left: Family<UseLabels, Gauge> = Family::default();
    let policy_snapshot = Arc::clone(&vitals.gateway.policy_snapshot.borrow());
    let secrets = vitals.gateway.services.secrets.snapshot();
    let now = Instant::now();
    let mut first: std::collections::HashMap<UseLabels, Duration> =
        std::collections::HashMap::new();
    for SecretUse { group, api, binding } in uses(&policy_snapshot) {
        let Some(time) = secrets.good_for(group, &binding.secret, now) else { continue };
        let labels = UseLabels { group: group.to_string(), rule: api.name.to_string() };
        first.entry(labels).and_modify(|least| *least = time.min(*least)).or_insert(time);
    }
    for (labels, time) in first {
        left.get_or_create(&labels).set(i64::try_from(time.as_secs()).unwrap_or(i64::MAX));
    }
    let help = "Seconds for which a held value can still be used if its source says nothing more";
    registry.register("secret_left_seconds", help, left);
}

fn of_cas(registry: &mut Registry, vitals: &Vitals) {
    let (begins, ends): (Family<RuleLabels, Gauge>, Family<RuleLabels, Gauge>) = Default::default();
    let policy_snapshot = Arc::clone(&vitals.gateway.policy_snapshot.borrow());
    for ca in policy_snapshot.cas() {
        let Some((from, to)) = ca.life() else { continue };
        let labels = RuleLabels { rule: ca.rule().to_string() };
        begins.get_or_create(&labels).set(seconds(from));
        ends.get_or_create(&labels).set(seconds(to));
    }
    registry.register("ca_begins_timestamp_seconds", "When an issuing CA began", begins);
    registry.register("ca_ends_timestamp_seconds", "When an issuing CA ends", ends);
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Returns the interface that has this address.
fn interface_of(address: IpAddr) -> io::Result<Option<String>> {
    let holds = |it: &nix::ifaddrs::InterfaceAddress| {
        let own = it.address.as_ref();
        let v4 = own.and_then(|own| own.as_sockaddr_in()).map(|own| IpAddr::from(own.ip()));
        let v6 = own.and_then(|own| own.as_sockaddr_in6()).map(|own| IpAddr::from(own.ip()));
        v4.or(v6) == Some(address)
    };
    Ok(nix::ifaddrs::getifaddrs()?.find(holds).map(|it| it.interface_name))
}

const TEXT: &str = "text/plain; charset=utf-8";
/// Connections at once.
const MAX_OPEN: usize = 8;
/// Bytes of a request's head; hyper takes no less.
const MAX_HEAD_BYTES: usize = 8_192;
/// Time for a request to arrive, and for its answer to be taken.
const DEADLINE: Duration = Duration::from_secs(5);
/// Pause after an accept that failed for lack of descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(50);
