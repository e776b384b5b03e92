//! One accepted connection, from its record to its end.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use tokio::{net::TcpStream, sync::watch};

use super::{
    farewell::{self, Language},
    onboard::{self, OnboardingAgent},
};
use crate::{
    audit::Record,
    decide::{Permit, Route, decide},
    dial::{self, OffLimits},
    identity::{AgentAddr, AgentKey, Dialled, Flow, FlowIds},
    intercept::{self, Interception, Services},
    limits::{AgentShare, Capacity, ConnectionSlot},
    net::{self, reset},
    onboarding::Pages,
    peek::{self, PeekFailure, Peeked, Rewind},
    phase::{Phase, Phases},
    policy::{Group, InterfaceName},
    policy_snapshot::PolicySnapshot,
    quarantine::Quarantined,
    reason::Reason,
    splice,
};

/// The state that every flow shares.
pub(super) struct Gateway {
    /// The services of interception.
    pub services: Services,
    /// The policy in force.
    pub policy_snapshot: watch::Receiver<Arc<PolicySnapshot>>,
    /// How far the daemon is from its end.
    pub phases: Phases,
    /// The groups that get nothing through.
    pub quarantined: Quarantined,
    /// The slots that connections take.
    pub capacity: Arc<Capacity>,
    /// The source of their ids.
    pub flow_ids: FlowIds,
    /// The port of the transparent listeners, which no agent may dial.
    pub proxy_port: u16,
}

/// Returns whether the agent opens connections faster than it may. Such a connection costs only
/// this check; it is counted in a sum and has no record of its own.
pub(super) fn is_over_rate(gateway: &Gateway, from: AgentAddr, interface: &InterfaceName) -> bool {
    let policy_snapshot = Arc::clone(&gateway.policy_snapshot.borrow());
    policy_snapshot.policy.identify(interface, from.ip()).is_some_and(|group| {
        let agent = AgentKey::of(group, from.ip());
        !gateway.capacity.may_connect(&agent, &policy_snapshot.policy.limits, Instant::now())
    })
}

/// Carries one connection to its end and leaves one record of it.
///
/// Interception, and each step that is short or rare, is boxed, so that a spliced flow, of which
/// there may be many, holds no room for it.
pub(super) async fn serve(
    gateway: Arc<Gateway>,
    connection_slot: ConnectionSlot,
    mut stream: TcpStream,
    from: AgentAddr,
    interface: InterfaceName,
) {
    let Ok(dialled) = stream.local_addr().map(|address| Dialled(net::canonical(address))) else {
        return reset(stream);
    };
    // Record: a slot comes before anything is done.
    let Ok(slot) = gateway.services.audit.reserve() else { return reset(stream) };
    let id = gateway.flow_ids.next();
    let mut record = Record::open(slot, id, &interface, from, dialled);
    let policy_snapshot = Arc::clone(&gateway.policy_snapshot.borrow());
    // Identify and admit: find the group, and take a slot of its share.
    let admitted = identify(&policy_snapshot, (&interface, from), &mut record).and_then(|group| {
        let pages = onboarding_pages(&gateway, &policy_snapshot, &group, dialled)?;
        let share = admit(&gateway, &policy_snapshot, &group, from)?;
        Ok((group, share, pages))
    });
    let (group, share, pages) = match admitted {
        Ok(admitted) => admitted,
        Err(reason) => {
            record.refused(reason);
            return reset(stream);
        }
    };
    let flow = Flow { id, group, agent: from, dialled, reached: Arc::default() };
    // Onboarding ends here: nothing is dialled for such a connection.
    if let Some(pages) = pages {
        let agent = OnboardingAgent { stream, flow: &flow, share: &share };
        let ends = (gateway.phases.clone(), gateway.quarantined.clone());
        let limits = &policy_snapshot.policy.limits;
        return Box::pin(onboard::serve(ends, limits, pages, agent, &mut record)).await;
    }
    // Peek: the first bytes, unless a quarantine or the cut comes first.
    let (mut phases, mut quarantined) = (gateway.phases.clone(), gateway.quarantined.clone());
    let read = tokio::select! {
        biased;
        () = quarantined.reached(&flow.group.name) => {
            record.refused(Reason::Quarantined);
            return reset(stream);
        }
        () = phases.reached(Phase::Cut) => Err(PeekFailure::Refused(Reason::ShuttingDown)),
        read = look(&gateway, &policy_snapshot, &flow, &share, &mut stream) => read,
    };
    let (peeked, bytes) = match read {
        Ok(read) => (read.peeked, read.bytes),
        Err(PeekFailure::Closed) => return record.nothing_said(),
        Err(PeekFailure::Refused(reason)) => {
            record.refused(reason);
            let language = farewell::language_of_failure(reason);
            return Box::pin(farewell::refuse(stream, language, reason, id)).await;
        }
    };
    record.peeked(&peeked);
    // Decide: a permit, by which the connection is carried, or a reason, which the agent is told.
    match decide(&policy_snapshot.policy, &flow, &peeked) {
        Ok(permit) => {
            tracing::debug!(flow = %id, route = permit.route().as_str(), host = %permit.host(), "permitted");
            record.permitted(&permit);
            let agent = Rewind::new(bytes, stream);
            let carried = CarriedFlow {
                policy_snapshot: &policy_snapshot,
                flow: &flow,
                share: &share,
                peeked: &peeked,
            };
            carry(&gateway, carried, permit, agent, &mut record).await;
        }
        Err(reason) => {
            tracing::debug!(flow = %id, %reason, "refused");
            record.refused(reason);
            Box::pin(farewell::refuse(stream, farewell::language_of(&peeked), reason, id)).await;
        }
    }
    drop((share, connection_slot));
}

/// Peeks at the connection; where its first bytes would name no host, finds the names of the
/// dialled address instead.
async fn look(
    gateway: &Gateway,
    policy_snapshot: &PolicySnapshot,
    flow: &Flow,
    share: &AgentShare,
    stream: &mut TcpStream,
) -> Result<peek::PeekedBytes, PeekFailure> {
    let policy = &policy_snapshot.policy;
    if !policy.names_no_host(flow.dialled.0.port()) {
        return peek::read(stream, &policy.limits, |bytes| share.peek(bytes)).await;
    }
    let answered = gateway.services.resolver.answered();
    let names = answered.names(&flow.agent_key(), flow.dialled.0.ip());
    Ok(peek::PeekedBytes { peeked: Peeked::Unread(names), bytes: Bytes::new() })
}

/// Finds the agent's group and notes it in the record, whatever becomes of the connection.
fn identify(
    policy_snapshot: &PolicySnapshot,
    (interface, from): (&InterfaceName, AgentAddr),
    record: &mut Record,
) -> Result<Arc<Group>, Reason> {
    let group = policy_snapshot.policy.identify(interface, from.ip()).ok_or(Reason::NoGroup)?;
    record.group(&group.name);
    Ok(Arc::clone(group))
}

/// Returns the onboarding pages, if the connection is to the gateway itself and may have them;
/// nothing where it leads elsewhere.
fn onboarding_pages<'a>(
    gateway: &Gateway,
    policy_snapshot: &'a PolicySnapshot,
    group: &Group,
    dialled: Dialled,
) -> Result<Option<&'a Pages>, Reason> {
    let (address, port) = (dialled.0.ip(), dialled.0.port());
    if port == gateway.proxy_port {
        return Err(Reason::SelfDestination);
    }
    if !gateway.services.resolver.off_limits().is_own(address) {
        return Ok(None);
    }
    let pages = policy_snapshot.onboarding(&group.name).filter(|_| port == Group::ONBOARDING_PORT);
    pages.map(Some).ok_or(Reason::SelfDestination)
}

fn admit(
    gateway: &Gateway,
    policy_snapshot: &PolicySnapshot,
    group: &Group,
    from: AgentAddr,
) -> Result<AgentShare, Reason> {
    if gateway.quarantined.holds(&group.name) {
        return Err(Reason::Quarantined);
    }
    let agent = AgentKey::of(group, from.ip());
    let policy = &policy_snapshot.policy;
    gateway.capacity.share(&agent, &policy.limits, policy.groups.len())
}

#[derive(Clone, Copy)]
struct CarriedFlow<'a> {
    policy_snapshot: &'a PolicySnapshot,
    flow: &'a Flow,
    share: &'a AgentShare,
    peeked: &'a Peeked,
}

async fn carry(
    gateway: &Gateway,
    carried: CarriedFlow<'_>,
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
    carried: CarriedFlow<'_>,
    permit: Permit,
    agent: Rewind<TcpStream>,
    record: &mut Record,
) {
    let CarriedFlow { policy_snapshot, flow, share, peeked } = carried;
    match (permit.route(), peeked) {
        (Route::Splice(_) | Route::Tcp(_), _) => {
            let (bytes, stream) = agent.into_parts();
            carry_splice(gateway, carried, &permit, (stream, bytes), record).await;
        }
        (Route::Intercept(_) | Route::Inspect(_), Peeked::Tls(hello)) => {
            match intercept::leaf(policy_snapshot, share, &permit, record) {
                Ok(leaf) => {
                    let interception =
                        Interception { policy_snapshot, flow, share, permit, hello, leaf };
                    let phases = gateway.phases.clone();
                    let services = &gateway.services;
                    Box::pin(intercept::run(services, interception, agent, phases, record)).await;
                }
                Err(reason) => {
                    record.refused(reason);
                    let stream = agent.into_parts().1;
                    Box::pin(farewell::refuse(stream, Language::Tls, reason, flow.id)).await;
                }
            }
        }
        // The decision makes no such permit.
        (Route::Intercept(_) | Route::Inspect(_), _) => record.refused(Reason::InternalError),
    }
}

async fn carry_splice(
    gateway: &Gateway,
    carried: CarriedFlow<'_>,
    permit: &Permit,
    (agent, bytes): (TcpStream, Bytes),
    record: &mut Record,
) {
    let limits = &carried.policy_snapshot.policy.limits;
    let resolver = &gateway.services.resolver;
    match Box::pin(dial::connect(permit, carried.flow, resolver, limits.dial_time)).await {
        Ok(upstream) => {
            record.upstream(upstream.address);
            if upstream.elsewhere {
                record.dialled_elsewhere();
            }
            let traffic = Arc::clone(record.traffic());
            let taken = carried.share.taken();
            let (upstream, counted) = (upstream.stream, (&*traffic, &taken));
            let end = splice::run(agent, upstream, bytes, counted, limits.idle_time).await;
            record.ended(end.as_str());
        }
        Err(reason) => {
            record.refused(reason);
            let (language, id) = (farewell::language_of(carried.peeked), carried.flow.id);
            Box::pin(farewell::refuse(agent, language, reason, id)).await;
        }
    }
}

/// Waits until a new policy no longer says the same of this flow as the old one.
async fn revoked(gateway: &Gateway, carried: CarriedFlow<'_>, route: Route) -> Reason {
    let (mut policy_snapshots, off_limits) =
        (gateway.policy_snapshot.clone(), gateway.services.resolver.off_limits());
    loop {
        if policy_snapshots.changed().await.is_err() {
            // The daemon is about to stop; the phase will say so.
            std::future::pending::<()>().await;
        }
        let now = Arc::clone(&policy_snapshots.borrow_and_update());
        if !still_permitted(&now, off_limits, carried, &route) {
            return Reason::PolicyRevoked;
        }
    }
}

fn still_permitted(
    now: &PolicySnapshot,
    off_limits: &OffLimits,
    carried: CarriedFlow<'_>,
    route: &Route,
) -> bool {
    let flow = carried.flow;
    let group = now.policy.identify(&flow.group.interface, flow.agent.ip());
    let Some(group) = group.filter(|group| group.name == flow.group.name) else { return false };
    let flow = Flow { group: Arc::clone(group), ..flow.clone() };
    let ends_here = matches!(route, Route::Intercept(_) | Route::Inspect(_));
    let may_stay = |permit: &Permit| {
        let upstream = permit.upstream();
        flow.reached.get().is_none_or(|at| off_limits.allows(*at, upstream))
            && (!ends_here || now.trusts_as(carried.policy_snapshot, upstream))
    };
    decide(&now.policy, &flow, carried.peeked)
        .is_ok_and(|permit| permit.route() == route && may_stay(&permit))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, D, E, F>(_: impl FnOnce(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_flow_takes_little_memory() {
        assert!(size(serve) <= MOST_BYTES, "{}", size(serve));
    }

    /// A spliced flow that is idle, without its sockets.
    const MOST_BYTES: usize = 4096;
}
