//! TLS ends here: upstream first, then the agent, then one exchange after the other.
//!
//! One task drives both sides of an agent's connection. The upstream is verified for the exact
//! name before a leaf is shown; where that fails, the leaf is shown only to say so, on a
//! connection that has no upstream at all.

mod h1;
mod h2;
mod sides;
mod signed;

mod exchange;
mod receive;
mod sender;
mod switched;
pub mod websocket;

mod body;
mod decoded;
mod prepare;
mod whole;

mod message;
mod minting;
mod overrides;
mod owner_restrictions;
mod pinned_authority;

mod connection;
mod exchanges;
mod masking;
mod trace;

mod idle_timer;
mod retryable;
mod tasks;
mod wire;

pub use prepare::admits;
pub use wire::{Framing, TrailerRule};

use std::{
    io,
    sync::{Arc, atomic::AtomicBool},
    time::SystemTime,
};

use rustls::sign::CertifiedKey;
use tokio::{net::TcpStream, time::timeout};

use self::{
    connection::{Connection, RequestRules},
    pinned_authority::PinnedAuthority,
    sides::{AgentTls, Sides, UpstreamTls},
    wire::{Counted, ReadAhead},
};
use crate::{
    audit::{Record, Sink},
    ca::LeafError,
    decide::Permit,
    dial::{self, Resolver},
    identity::Flow,
    limits::AgentShare,
    net::notice_absence,
    peek::{Hello, Rewind},
    phase::Phases,
    policy::Limits,
    policy_snapshot::PolicySnapshot,
    reason::{Reason, TlsCause},
    refuse::Refusal,
    secrets::SecretStore,
    seldom::Seldom,
    tickets::Tickets,
    tls::{ClientSettings, Protocol, TlsFailure, Unverified},
};

/// The parts of the daemon that interception needs.
#[derive(Clone)]
pub struct Services {
    /// The sink of records.
    pub audit: Sink,
    /// The store of values.
    pub secrets: Arc<SecretStore>,
    /// The tickets that agents hold in the place of minted credentials.
    pub tickets: Arc<Tickets>,
    /// The gateway's own resolution of names.
    pub resolver: Resolver,
}

/// One connection to intercept or inspect.
pub struct Interception<'a> {
    /// The policy that it was decided under.
    pub policy_snapshot: &'a PolicySnapshot,
    /// Its flow.
    pub flow: &'a Flow,
    /// The agent's share, against which its requests are counted.
    pub share: &'a AgentShare,
    /// The permit to dial its upstream.
    pub permit: Permit,
    /// Its ClientHello.
    pub hello: &'a Hello,
    /// The certificate that the agent is shown.
    pub leaf: Arc<CertifiedKey>,
}

/// Returns the leaf to show to an agent that has this permit. Without a leaf the agent can only be
/// sent a TLS alert.
///
/// # Errors
///
/// There is no issuing CA for the host now; the record gets the cause. The reason is that of a
/// missing secret, because the CA's key is one: it is held only while Vault allows it, and is
/// missing for the same causes. Or the agent has asked for too many new leaves, or no leaf can be
/// made, which is a fault of the gateway's own.
pub fn leaf(
    policy_snapshot: &PolicySnapshot,
    share: &AgentShare,
    permit: &Permit,
    record: &mut Record,
) -> Result<Arc<CertifiedKey>, Reason> {
    let (rule, host, now) = (permit.route().rule(), permit.host(), SystemTime::now());
    let ca = policy_snapshot.ca(rule).ok_or(Reason::InternalError)?;
    if let Some(cached) = ca.cached(host, now) {
        return Ok(cached);
    }
    if !share.may_mint(&policy_snapshot.policy.limits) {
        return Err(Reason::RateLimit);
    }
    ca.leaf(host, now).map_err(|error| match error {
        LeafError::NoCa(cause) => {
            record.cause(cause);
            Reason::SecretUnavailable
        }
        LeafError::Ca(error) => {
            tracing::error!(%rule, %error, "no leaf");
            Reason::InternalError
        }
    })
}

/// Carries the connection to its end. Work that is done once and over soon, or seldom done,
/// is boxed: an idle connection has no room for it.
pub async fn run(
    services: &Services,
    interception: Interception<'_>,
    agent: Rewind<TcpStream>,
    phases: Phases,
    record: &mut Record,
) {
    let upstream = Box::pin(interception.connect(services, record)).await;
    let protocol = upstream.as_ref().ok().map(|(_, protocol)| *protocol);
    let (stream, traffic) = (ReadAhead::new(agent), Arc::clone(record.traffic()));
    let reset = Arc::new(AtomicBool::new(false));
    let agent = Counted { stream, traffic, reset: Arc::clone(&reset) };
    let limits = &interception.policy_snapshot.policy.limits;
    let handshake =
        interception.policy_snapshot.tls.accept(agent, Arc::clone(&interception.leaf), protocol);
    let agent = Box::pin(timeout(limits.head_time, handshake)).await;
    let upstream = upstream.map_err(|unverified| interception.refusal(unverified, record));
    let agent = match agent {
        Ok(Ok(agent)) => agent,
        Ok(Err(error)) => return agent_failed(&error, record),
        // The agent never finished its handshake.
        Err(_) => return record.agent_tls_failed(),
    };
    let connection = Arc::new(interception.connection(services));
    match upstream {
        Ok((upstream, Protocol::H1)) => {
            let sides = Sides { agent, upstream, reset };
            Box::pin(h1::serve(connection, sides, limits, phases, record)).await;
        }
        Ok((upstream, Protocol::H2)) => {
            let sides = Sides { agent, upstream, reset };
            Box::pin(h2::serve(connection, sides, limits, phases, record)).await;
        }
        Err(refusal) => Box::pin(refuse(connection, agent, refusal, limits, record)).await,
    }
}

/// Answers every request with the same refusal, for a connection that has no upstream.
async fn refuse(
    connection: Arc<Connection>,
    agent: AgentTls,
    refusal: Refusal,
    limits: &Limits,
    record: &mut Record,
) {
    let is_h2 = agent.get_ref().1.alpn_protocol() == Some(b"h2");
    let served = async {
        if is_h2 {
            h2::serve_refusal(connection, agent, refusal, limits).await;
        } else {
            h1::serve_refusal(connection, agent, refusal, limits, record).await;
        }
    };
    // The result does not depend on whether the agent stayed to hear it.
    let _ = timeout(limits.head_time, served).await;
}

/// Records that the agent did not take the leaf, or went away; its alert says which.
fn agent_failed(error: &io::Error, record: &mut Record) {
    record.agent_tls_failed();
    if let Some(alert) = TlsFailure::of(error).and_then(|failure| failure.alert) {
        record.alert(alert);
    }
}

impl Interception<'_> {
    async fn connect(
        &self,
        services: &Services,
        record: &mut Record,
    ) -> Result<(UpstreamTls, Protocol), Unverified> {
        let time_limit = self.policy_snapshot.policy.limits.dial_time;
        let dialled =
            dial::connect(&self.permit, self.flow, &services.resolver, time_limit).await?;
        record.upstream(dialled.address);
        if dialled.elsewhere {
            record.dialled_elsewhere();
        }
        notice_absence(&dialled.stream).map_err(|_| Reason::UpstreamUnreachable)?;
        let offer = Protocol::offered(&self.hello.alpn);
        let settings = ClientSettings {
            group: &self.flow.group.name,
            rule: self.permit.route().rule(),
            upstream: self.permit.upstream(),
            offer: &offer,
        };
        let handshake = self.policy_snapshot.tls.connect(
            ReadAhead::new(dialled.stream),
            self.permit.host(),
            settings,
        );
        timeout(time_limit, handshake).await.unwrap_or(Err(Reason::UpstreamUnreachable.into()))
    }

    /// Notes why there is no upstream, and returns the refusal that the agent is told.
    fn refusal(&self, Unverified { reason, failure }: Unverified, record: &mut Record) -> Refusal {
        record.refused(reason);
        if let Some(TlsFailure { cause, alert }) = failure {
            record.cause(cause);
            alert.into_iter().for_each(|alert| record.alert(alert));
            self.warn(cause, alert);
        }
        Refusal { reason, cause: failure.map(|failure| failure.cause) }
    }

    /// Logs a failure now and then. Agents decide how often it happens, and must not fill the log:
    /// the audit has each case.
    fn warn(&self, cause: TlsCause, alert: Option<&str>) {
        static SELDOM: Seldom = Seldom::new();
        if SELDOM.is_due(SystemTime::now()) {
            let (rule, host) = (self.permit.route().rule(), self.permit.host());
            let alert = alert.map(tracing::field::display);
            tracing::warn!(%rule, %host, %cause, alert, "an upstream did not prove that it is its host");
        }
    }

    fn connection(&self, services: &Services) -> Connection {
        let group = Arc::clone(&self.flow.group);
        let route = self.permit.route();
        let rules = RequestRules::of(route, |api| self.policy_snapshot.rules(&group.name, api));
        Connection {
            flow: self.flow.id,
            group: Arc::clone(&group),
            agent: self.flow.agent,
            pinned: PinnedAuthority { host: self.permit.host().clone(), port: self.permit.port() },
            route: route.clone(),
            rules,
            taken: self.share.taken(),
            audit: services.audit.clone(),
            secrets: Arc::clone(&services.secrets),
            tickets: Arc::clone(&services.tickets),
            masks: Arc::clone(&self.policy_snapshot.masks),
            coded: self.policy_snapshot.coded.of(&group.name, route.rule()),
            head_fields: self.policy_snapshot.policy.limits.head_fields,
            head_bytes: self.policy_snapshot.policy.limits.head_bytes,
            head_time: self.policy_snapshot.policy.limits.head_time,
            idle_time: self.policy_snapshot.policy.limits.idle_time,
            exchanges: Arc::default(),
        }
    }
}
