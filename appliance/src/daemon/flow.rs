//! One accepted connection, from its record to its end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::watch,
    time::timeout,
};

use crate::{
    audit::Record,
    decide::{Permit, Route, decide},
    dial::{self, OffLimits},
    identity::{AgentAddr, AgentKey, Dialled, Flow, FlowId, FlowIds},
    intercept::{self, Interception, Means},
    limits::{Place, Places, Share},
    net::{self, reset},
    peek::{self, PeekFailure, Peeked, Rewind},
    phase::{Phase, Phases},
    policy::{Group, InterfaceName},
    quarantine::Quarantined,
    reason::Reason,
    refuse,
    rulebook::Rulebook,
    splice,
};

/// What every flow shares.
pub(super) struct Gateway {
    /// What interception needs.
    pub means: Means,
    /// The policy in force.
    pub rulebook: watch::Receiver<Arc<Rulebook>>,
    /// How far the daemon is from its end.
    pub phases: Phases,
    /// The groups that get nothing through.
    pub quarantined: Quarantined,
    /// The places that connections take.
    pub places: Arc<Places>,
    /// What names them.
    pub flow_ids: FlowIds,
    /// The port of the transparent listeners, which is nobody's destination.
    pub proxy_port: u16,
}

/// What the agent understands at this point, and so how it can be refused.
enum Language {
    /// Nothing yet.
    Tcp,
    /// It sent a ClientHello.
    Tls,
    /// It sent an HTTP head.
    Http,
}

/// Whether the agent opens connections faster than it may. Such a connection costs no more than to
/// say so; it is in a sum instead of in a record of its own.
pub(super) fn is_over_rate(gateway: &Gateway, from: AgentAddr, interface: &InterfaceName) -> bool {
    let rulebook = Arc::clone(&gateway.rulebook.borrow());
    rulebook.policy.identify(interface, from.ip()).is_some_and(|group| {
        let agent = AgentKey::of(group, from.ip());
        !gateway.places.may_connect(&agent, &rulebook.policy.limits, Instant::now())
    })
}

/// Carries one connection to its end and leaves one record of it.
pub(super) async fn serve(
    gateway: Arc<Gateway>,
    place: Place,
    mut stream: TcpStream,
    from: AgentAddr,
    interface: InterfaceName,
) {
    let Ok(dialled) = stream.local_addr().map(|address| Dialled(net::canonical(address))) else {
        return reset(stream);
    };
    let Ok(slot) = gateway.means.audit.reserve() else { return reset(stream) };
    let id = gateway.flow_ids.next();
    let mut record = Record::open(slot, id, &interface, from, dialled);
    let rulebook = Arc::clone(&gateway.rulebook.borrow());
    let admitted = identify(&rulebook, (&interface, from), &mut record).and_then(|group| {
        let share = admit(&gateway, &rulebook, &group, from, dialled)?;
        Ok((group, share))
    });
    let (group, share) = match admitted {
        Ok(admitted) => admitted,
        Err(reason) => {
            record.refused(reason);
            return reset(stream);
        }
    };
    let flow = Flow { id, group, agent: from, dialled, reached: Arc::default() };
    if net::harden(&stream).is_err() {
        // The kernel refuses these options only for a connection that is already gone.
        return record.nothing_said();
    }
    let (mut phases, mut quarantined) = (gateway.phases.clone(), gateway.quarantined.clone());
    let read = tokio::select! {
        biased;
        () = quarantined.reached(&flow.group.name) => {
            record.refused(Reason::Quarantined);
            return reset(stream);
        }
        () = phases.reached(Phase::Cut) => Err(PeekFailure::Refused(Reason::ShuttingDown)),
        read = look(&gateway, &rulebook, &flow, &share, &mut stream) => read,
    };
    let (peeked, bytes) = match read {
        Ok(read) => (read.peeked, read.bytes),
        Err(PeekFailure::Closed) => return record.nothing_said(),
        Err(PeekFailure::Refused(reason)) => {
            record.refused(reason);
            return refuse(stream, language_of_failure(reason), reason, id).await;
        }
    };
    record.peeked(&peeked);
    match decide(&rulebook.policy, &flow, &peeked) {
        Ok(permit) => {
            tracing::debug!(flow = %id, route = permit.route().word(), host = %permit.host(), "permitted");
            record.permitted(&permit);
            let agent = Rewind::new(bytes, stream);
            let carried =
                Carried { rulebook: &rulebook, flow: &flow, share: &share, peeked: &peeked };
            carry(&gateway, carried, permit, agent, &mut record).await;
        }
        Err(reason) => {
            tracing::debug!(flow = %id, %reason, "refused");
            record.refused(reason);
            refuse(stream, language_of(&peeked), reason, id).await;
        }
    }
    drop((share, place));
}

/// Reads the first bytes, or asks what else is known where they would not name a host.
async fn look(
    gateway: &Gateway,
    rulebook: &Rulebook,
    flow: &Flow,
    share: &Share,
    stream: &mut TcpStream,
) -> Result<peek::Read, PeekFailure> {
    let policy = &rulebook.policy;
    if !policy.names_no_host(flow.dialled.0.port()) {
        return peek::read(stream, &policy.limits, |bytes| share.peek(bytes)).await;
    }
    let answered = gateway.means.resolver.answered();
    let names = answered.names(&flow.agent_key(), flow.dialled.0.ip());
    Ok(peek::Read { peeked: Peeked::Unread(names), bytes: Bytes::new() })
}

/// Whose connection it is, which its record says whatever becomes of it.
fn identify(
    rulebook: &Rulebook,
    (interface, from): (&InterfaceName, AgentAddr),
    record: &mut Record,
) -> Result<Arc<Group>, Reason> {
    let group = rulebook.policy.identify(interface, from.ip()).ok_or(Reason::NoGroup)?;
    record.group(&group.name);
    Ok(Arc::clone(group))
}

fn admit(
    gateway: &Gateway,
    rulebook: &Rulebook,
    group: &Group,
    from: AgentAddr,
    dialled: Dialled,
) -> Result<Share, Reason> {
    if dialled.0.port() == gateway.proxy_port || dial::is_own(dialled.0.ip()) {
        return Err(Reason::SelfDestination);
    }
    if gateway.quarantined.holds(&group.name) {
        return Err(Reason::Quarantined);
    }
    let agent = AgentKey::of(group, from.ip());
    let policy = &rulebook.policy;
    gateway.places.share(&agent, &policy.limits, policy.groups.len())
}

#[derive(Clone, Copy)]
struct Carried<'a> {
    rulebook: &'a Rulebook,
    flow: &'a Flow,
    share: &'a Share,
    peeked: &'a Peeked,
}

async fn carry(
    gateway: &Gateway,
    carried: Carried<'_>,
    permit: Permit,
    agent: Rewind<TcpStream>,
    record: &mut Record,
) {
    let (mut phases, mut quarantined) = (gateway.phases.clone(), gateway.quarantined.clone());
    let revoked = revoked(gateway, carried, permit.route().clone());
    let cut = tokio::select! {
        biased;
        () = quarantined.reached(&carried.flow.group.name) => Reason::Quarantined,
        reason = revoked => reason,
        () = phases.reached(Phase::Cut) => Reason::ShuttingDown,
        () = carry_on(gateway, carried, permit, agent, record) => return,
    };
    record.cut(cut);
}

async fn carry_on(
    gateway: &Gateway,
    carried: Carried<'_>,
    permit: Permit,
    agent: Rewind<TcpStream>,
    record: &mut Record,
) {
    let Carried { rulebook, flow, share, peeked } = carried;
    match (permit.route(), peeked) {
        (Route::Splice(_) | Route::Tcp(_), _) => {
            let (bytes, stream) = agent.into_parts();
            carry_splice(gateway, carried, &permit, (stream, bytes), record).await;
        }
        (Route::Intercept(_) | Route::Inspect(_), Peeked::Tls(hello)) => {
            match intercept::leaf(rulebook, share, &permit, record) {
                Ok(leaf) => {
                    let interception = Interception { rulebook, flow, share, permit, hello, leaf };
                    let phases = gateway.phases.clone();
                    intercept::run(&gateway.means, interception, agent, phases, record).await;
                }
                Err(reason) => {
                    record.refused(reason);
                    refuse(agent.into_parts().1, Language::Tls, reason, flow.id).await;
                }
            }
        }
        // The decision makes no such permit.
        (Route::Intercept(_) | Route::Inspect(_), _) => record.refused(Reason::InternalError),
    }
}

async fn carry_splice(
    gateway: &Gateway,
    carried: Carried<'_>,
    permit: &Permit,
    (agent, bytes): (TcpStream, Bytes),
    record: &mut Record,
) {
    let limits = &carried.rulebook.policy.limits;
    let resolver = &gateway.means.resolver;
    match dial::connect(permit, carried.flow, resolver, limits.dial_time).await {
        Ok(upstream) => {
            record.upstream(upstream.address);
            if upstream.elsewhere {
                record.dialled_elsewhere();
            }
            let traffic = Arc::clone(record.traffic());
            let end = splice::run(agent, upstream.stream, bytes, &traffic, limits.idle_time).await;
            record.ended(end.word());
        }
        Err(reason) => {
            record.refused(reason);
            refuse(agent, language_of(carried.peeked), reason, carried.flow.id).await;
        }
    }
}

/// Ends when a new policy no longer says about this flow what the old one said.
async fn revoked(gateway: &Gateway, carried: Carried<'_>, route: Route) -> Reason {
    let (mut rulebooks, off_limits) =
        (gateway.rulebook.clone(), gateway.means.resolver.off_limits());
    loop {
        if rulebooks.changed().await.is_err() {
            // The daemon is going; the phase will say so.
            std::future::pending::<()>().await;
        }
        let now = Arc::clone(&rulebooks.borrow_and_update());
        if !still_permitted(&now, off_limits, carried, &route) {
            return Reason::PolicyRevoked;
        }
    }
}

fn still_permitted(
    now: &Rulebook,
    off_limits: &OffLimits,
    carried: Carried<'_>,
    route: &Route,
) -> bool {
    let flow = carried.flow;
    let group = now.policy.identify(&flow.group.interface, flow.agent.ip());
    let Some(group) = group.filter(|group| group.name == flow.group.name) else { return false };
    let flow = Flow { group: Arc::clone(group), ..flow.clone() };
    let may_stay = |permit: &Permit| {
        flow.reached.get().is_none_or(|at| off_limits.allows(*at, permit.upstream()))
    };
    decide(&now.policy, &flow, carried.peeked)
        .is_ok_and(|permit| permit.route() == route && may_stay(&permit))
}

fn language_of(peeked: &Peeked) -> Language {
    match peeked {
        Peeked::Tls(_) => Language::Tls,
        Peeked::Http(_) => Language::Http,
        Peeked::Other | Peeked::Unread(_) => Language::Tcp,
    }
}

fn language_of_failure(reason: Reason) -> Language {
    match reason {
        Reason::TlsMalformed => Language::Tls,
        Reason::HttpMalformed | Reason::HeaderLimit => Language::Http,
        _ => Language::Tcp,
    }
}

/// Tells the agent why, in its language, and closes.
async fn refuse(mut stream: TcpStream, language: Language, reason: Reason, id: FlowId) {
    let farewell = async {
        match language {
            Language::Tcp => return Ok(()),
            Language::Tls => stream.write_all(&refuse::alert_record(reason)).await?,
            Language::Http => stream.write_all(&refuse::answer_bytes(reason, id)).await?,
        }
        stream.shutdown().await?;
        drain(&mut stream).await
    };
    // An agent that does not listen is reset.
    let heard = timeout(FAREWELL_TIME, farewell).await;
    if matches!(language, Language::Tcp) || !matches!(heard, Ok(Ok(()))) {
        reset(stream);
    }
}

/// Closing a socket with unread bytes resets it, and the farewell would be lost with it.
async fn drain(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut sink = [0; 1024];
    for _ in 0..FAREWELL_READS {
        if stream.read(&mut sink).await? == 0 {
            break;
        }
    }
    Ok(())
}

/// Time for a refused agent to take its refusal.
const FAREWELL_TIME: Duration = Duration::from_secs(2);
/// Reads of 1 KiB that a refused agent gets before it is reset.
const FAREWELL_READS: usize = 64;
