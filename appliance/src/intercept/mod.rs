//! TLS ends here: upstream first, then the agent, then one exchange after the other.
//!
//! One task drives both sides of an agent's connection. The upstream is verified for the exact
//! name before a leaf is shown; where that fails, the leaf is shown only to say so, on a
//! connection that has no upstream at all.

mod body;
mod counted;
mod decoded;
mod deferred;
mod exchange;
mod exchanges;
mod frames;
mod framing;
mod guard;
mod head_watch;
mod message;
mod overrides;
mod owners;
mod read_ahead;
mod serve;
mod site;
mod tasks;
mod unsent;
mod vigil;
pub mod websocket;
mod whole;

pub use framing::{Framing, TrailerRule};

use std::{
    io,
    sync::{Arc, atomic::AtomicBool},
    time::SystemTime,
};

use rustls::sign::CertifiedKey;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::client::TlsStream;

use self::{
    counted::Counted,
    exchange::{Connection, RequestRules},
    read_ahead::ReadAhead,
    serve::Sides,
    site::Site,
};
use crate::{
    audit::{Record, Sink},
    ca::NoLeaf,
    decide::Permit,
    dial::{self, Resolver},
    identity::Flow,
    limits::Share,
    peek::{Hello, Rewind},
    phase::Phases,
    reason::{Reason, TlsCause},
    refuse::Refusal,
    rulebook::Rulebook,
    secrets::SecretStore,
    seldom::Seldom,
    tls::{ClientSettings, Protocol, TlsFailure, Unverified},
};

/// What interception needs of the daemon.
#[derive(Clone)]
pub struct Means {
    /// Where records go.
    pub audit: Sink,
    /// Where values come from.
    pub secrets: Arc<SecretStore>,
    /// The gateway's own resolution of names.
    pub resolver: Resolver,
}

/// One connection to intercept or inspect.
pub struct Interception<'a> {
    /// The policy it was decided under.
    pub rulebook: &'a Rulebook,
    /// Whose it is.
    pub flow: &'a Flow,
    /// Where its requests are counted.
    pub share: &'a Share,
    /// What it may become.
    pub permit: Permit,
    /// What its first bytes said.
    pub hello: &'a Hello,
    /// What is shown to the agent.
    pub leaf: Arc<CertifiedKey>,
}

/// The leaf to show to an agent that has this permit. Without it a TLS alert is all that can be
/// said to the agent.
///
/// # Errors
///
/// There is no issuing CA for the host now; the record gets the cause. The reason is that of a
/// missing secret, because the CA's key is one: held for a time by grace of Vault, and missing for
/// the same causes. Or the agent has asked for too many new leaves, or no leaf can be made, which
/// is a fault of the gateway's own.
pub fn leaf(
    rulebook: &Rulebook,
    share: &Share,
    permit: &Permit,
    record: &mut Record,
) -> Result<Arc<CertifiedKey>, Reason> {
    let (rule, host, now) = (permit.route().rule(), permit.host(), SystemTime::now());
    let ca = rulebook.ca(rule).ok_or(Reason::InternalError)?;
    if let Some(kept) = ca.kept(host, now) {
        return Ok(kept);
    }
    if !share.may_mint(&rulebook.policy.limits) {
        return Err(Reason::RateLimit);
    }
    ca.leaf(host, now).map_err(|error| match error {
        NoLeaf::NoCa(cause) => {
            record.cause(cause);
            Reason::SecretUnavailable
        }
        NoLeaf::Ca(error) => {
            tracing::error!(%rule, %error, "no leaf");
            Reason::InternalError
        }
    })
}

/// Carries the connection to its end.
pub async fn run(
    means: &Means,
    interception: Interception<'_>,
    agent: Rewind<TcpStream>,
    phases: Phases,
    record: &mut Record,
) {
    let upstream = interception.connect(means, record).await;
    let protocol = upstream.as_ref().ok().map(|(_, protocol)| *protocol);
    let (stream, traffic) = (ReadAhead::new(agent), Arc::clone(record.traffic()));
    let reset = Arc::new(AtomicBool::new(false));
    let agent = Counted { stream, traffic, reset: Arc::clone(&reset) };
    let limits = &interception.rulebook.policy.limits;
    let handshake =
        interception.rulebook.tls.accept(agent, Arc::clone(&interception.leaf), protocol);
    let agent = timeout(limits.head_time, handshake).await;
    let upstream = upstream.map_err(|unverified| interception.refusal(unverified, record));
    let agent = match agent {
        Ok(Ok(agent)) => agent,
        Ok(Err(error)) => return agent_failed(&error, record),
        // It never finished.
        Err(_) => return record.agent_tls_failed(),
    };
    let connection = Arc::new(interception.connection(means));
    match upstream {
        Ok((upstream, Protocol::H1)) => {
            serve::h1(connection, Sides { agent, upstream, reset }, limits, phases, record).await;
        }
        Ok((upstream, Protocol::H2)) => {
            serve::h2(connection, Sides { agent, upstream, reset }, limits, phases, record).await;
        }
        Err(refusal) => serve::refusal(connection, agent, refusal, limits, record).await,
    }
}

/// The agent does not take the leaf, or went away; its alert says which.
fn agent_failed(error: &io::Error, record: &mut Record) {
    record.agent_tls_failed();
    if let Some(alert) = TlsFailure::of(error).and_then(|failure| failure.alert) {
        record.alert(alert);
    }
}

impl Interception<'_> {
    async fn connect(
        &self,
        means: &Means,
        record: &mut Record,
    ) -> Result<(TlsStream<ReadAhead<TcpStream>>, Protocol), Unverified> {
        let patience = self.rulebook.policy.limits.dial_time;
        let dialled = dial::connect(&self.permit, self.flow, &means.resolver, patience).await?;
        record.upstream(dialled.address);
        if dialled.elsewhere {
            record.dialled_elsewhere();
        }
        let offer = Protocol::offered(&self.hello.alpn);
        let settings = ClientSettings {
            group: &self.flow.group.name,
            rule: self.permit.route().rule(),
            upstream: self.permit.upstream(),
            offer: &offer,
        };
        let handshake =
            self.rulebook.tls.connect(ReadAhead::new(dialled.stream), self.permit.host(), settings);
        timeout(patience, handshake).await.unwrap_or(Err(Reason::UpstreamUnreachable.into()))
    }

    /// Notes why there is no upstream, and gives what the agent is told.
    fn refusal(&self, Unverified { reason, failure }: Unverified, record: &mut Record) -> Refusal {
        record.refused(reason);
        if let Some(TlsFailure { cause, alert }) = failure {
            record.cause(cause);
            alert.into_iter().for_each(|alert| record.alert(alert));
            self.warn(cause, alert);
        }
        Refusal { reason, cause: failure.map(|failure| failure.cause) }
    }

    /// Agents decide how often this happens, and must not fill the log: the audit has each case.
    fn warn(&self, cause: TlsCause, alert: Option<&str>) {
        static SELDOM: Seldom = Seldom::new();
        if SELDOM.is_due(SystemTime::now()) {
            let (rule, host) = (self.permit.route().rule(), self.permit.host());
            let alert = alert.map(tracing::field::display);
            tracing::warn!(%rule, %host, %cause, alert, "an upstream did not prove that it is its host");
        }
    }

    fn connection(&self, means: &Means) -> Connection {
        let group = Arc::clone(&self.flow.group);
        let route = self.permit.route();
        let rules = RequestRules::of(route, |api| self.rulebook.rules(&group.name, api));
        Connection {
            flow: self.flow.id,
            group: Arc::clone(&group),
            agent: self.flow.agent,
            site: Site { host: self.permit.host().clone(), port: self.permit.port() },
            route: route.clone(),
            rules,
            taken: self.share.taken(),
            audit: means.audit.clone(),
            secrets: Arc::clone(&means.secrets),
            masks: Arc::clone(&self.rulebook.masks),
            coded: self.rulebook.coded.of(&group.name, route.rule()),
            head_fields: self.rulebook.policy.limits.head_fields,
            head_bytes: self.rulebook.policy.limits.head_bytes,
            head_time: self.rulebook.policy.limits.head_time,
            idle_time: self.rulebook.policy.limits.idle_time,
            exchanges: Arc::default(),
        }
    }
}
