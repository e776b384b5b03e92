//! Handles the queries of both transports: identity, rate, audit, answer.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    agents::{Agents, DnsShare, Of},
    message::{self, Asker, DnsQuestion, DnsReply, QueryVerdict, RefusedQuery},
};
use crate::{
    audit::{DnsRecord, DnsSummary, Sink},
    dial::{self, Resolved, Resolver, Unresolved},
    identity::AgentKey,
    phase::Phases,
    policy::{Group, GroupName, InterfaceName, MeantBy},
    policy_snapshot::PolicySnapshot,
    quarantine::Quarantined,
    reason::Reason,
};

/// The parts that answering needs. One for the daemon.
pub struct QueryHandler {
    policy_snapshot: watch::Receiver<Arc<PolicySnapshot>>,
    resolver: Resolver,
    audit: Sink,
    phases: Phases,
    quarantined: Quarantined,
    ipv6: bool,
    agents: Arc<Agents>,
}

/// The source and destination of a query.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub(super) interface: InterfaceName,
    pub(super) from: SocketAddr,
    /// The address that was asked, which need not be the gateway's.
    pub(super) to: IpAddr,
    pub(super) datagram: bool,
}

/// The result of handling a query.
pub(super) enum QueryOutcome {
    /// Nothing is sent back.
    Silence,
    /// This is sent back.
    Answer(Vec<u8>),
    /// The name has to be resolved first.
    Later(Pending),
}

/// A query whose name is being resolved.
pub(super) struct Pending {
    asked: ListedQuery,
    share: DnsShare,
}

/// A query for a listed name.
struct ListedQuery {
    policy_snapshot: Arc<PolicySnapshot>,
    group: Arc<Group>,
    key: AgentKey,
    question: Box<DnsQuestion>,
    origin: Origin,
}

impl Pending {
    pub(super) fn origin(&self) -> &Origin {
        &self.asked.origin
    }
}

impl QueryHandler {
    /// Creates a handler that answers by the policy in force, from the cache and through the
    /// servers of `resolver`.
    pub fn new(
        policy_snapshot: watch::Receiver<Arc<PolicySnapshot>>,
        (resolver, audit): (Resolver, Sink),
        phases: Phases,
        quarantined: Quarantined,
        ipv6: bool,
    ) -> Arc<Self> {
        Arc::new(Self {
            policy_snapshot,
            resolver,
            audit,
            phases,
            quarantined,
            ipv6,
            agents: Arc::default(),
        })
    }

    pub(super) fn phases(&self) -> Phases {
        self.phases.clone()
    }

    /// Returns a share of the connections, if the agent has one left. A refused connection counts
    /// as a query that came too fast, because it would have had at least one.
    pub(super) fn connection(&self, interface: &InterfaceName, from: IpAddr) -> Option<DnsShare> {
        let policy_snapshot = Arc::clone(&self.policy_snapshot.borrow());
        let group = policy_snapshot.policy.identify(interface, from)?;
        let groups =
            policy_snapshot.policy.groups.iter().filter(|each| each.interface == *interface);
        let groups = groups.count();
        let key = AgentKey::of(group, from);
        let share = self.agents.share(&key, Of::Connections, groups);
        if share.is_none() {
            self.agents.limited(&key, Instant::now());
        }
        share
    }

    /// Handles a query without waiting for anything.
    pub(super) fn consider(&self, origin: &Origin, query: &[u8]) -> QueryOutcome {
        let policy_snapshot = Arc::clone(&self.policy_snapshot.borrow());
        let Some(group) = policy_snapshot.policy.identify(&origin.interface, origin.from.ip())
        else {
            return QueryOutcome::Silence;
        };
        let group = Arc::clone(group);
        let key = AgentKey::of(&group, origin.from.ip());
        let rate = policy_snapshot.policy.limits.dns_rate;
        // Without the audit nothing is answered, so that nothing goes unseen.
        if !self.agents.may_ask(&key, rate, Instant::now()) || self.audit.reserve().is_err() {
            return QueryOutcome::Silence;
        }
        let asker = Asker {
            policy: &policy_snapshot.policy,
            group: &group,
            ipv6: self.ipv6,
            datagram: origin.datagram,
        };
        let verdict = if self.quarantined.holds(&group.name) {
            message::refuse(query, origin.datagram, Reason::Quarantined)
        } else {
            message::answer(asker, query)
        };
        let question = match verdict {
            QueryVerdict::Silence => return QueryOutcome::Silence,
            QueryVerdict::Answered(reply) => return self.tell(&key, origin, reply),
            QueryVerdict::Resolve(question) => question,
        };
        let asked = ListedQuery { policy_snapshot, group, key, question, origin: origin.clone() };
        if let Some(found) = self.resolver.remembered(asked.question.host(), &asked.group.name) {
            return self.conclude(&asked, &found);
        }
        let groups = asked.policy_snapshot.policy.groups.len();
        match self.agents.share(&asked.key, Of::Lookups, groups) {
            Some(share) => QueryOutcome::Later(Pending { asked, share }),
            None => {
                self.agents.limited(&asked.key, Instant::now());
                QueryOutcome::Silence
            }
        }
    }

    /// Waits until the name is resolved. The answer is in time for a client that waits five
    /// seconds.
    pub(super) async fn resolve(&self, pending: Pending) -> QueryOutcome {
        let Pending { asked, share: _share } = pending;
        let lookup = self.resolver.resolve(asked.question.host(), &asked.key);
        let found = timeout(TIMEOUT, lookup).await.unwrap_or(Err(Unresolved::Failed));
        self.conclude(&asked, &found)
    }

    /// Counts an answer that the kernel did not take.
    pub(super) fn count_undelivered(&self, origin: &Origin) {
        let policy_snapshot = Arc::clone(&self.policy_snapshot.borrow());
        let address = origin.from.ip();
        if let Some(group) = policy_snapshot.policy.identify(&origin.interface, address) {
            self.agents.undelivered(&AgentKey::of(group, address), Instant::now());
        }
    }

    fn conclude(&self, asked: &ListedQuery, found: &Result<Resolved, Unresolved>) -> QueryOutcome {
        let ListedQuery { policy_snapshot, group, key, question, origin } = asked;
        if self.quarantined.holds(&group.name) {
            return self.tell(key, origin, question.refused(Reason::Quarantined));
        }
        let usable = |address| {
            let mut upstreams = policy_snapshot.policy.upstreams(group, question.host());
            upstreams.any(|upstream| self.resolver.off_limits().allows(address, upstream))
        };
        let found =
            &found.clone().map(|found| match names_no_host(policy_snapshot, group, question) {
                true => routed(group, found, usable),
                false => found,
            });
        let reply = question.reply(found, Instant::now(), usable);
        if let Ok(found) = found
            && !reply.given.is_empty()
        {
            let (answered, until) = (self.resolver.answered(), found.until.max(Instant::now()));
            answered.remember(key, question.host(), &reply.given, until);
        }
        self.tell(key, origin, reply)
    }

    fn tell(&self, key: &AgentKey, origin: &Origin, reply: DnsReply) -> QueryOutcome {
        let now = Instant::now();
        match &reply.refused {
            None => self.agents.answered(key, now),
            Some(refused) if self.agents.refused(key, now) => {
                self.record(key.group(), origin, refused);
            }
            Some(_) => {}
        }
        QueryOutcome::Answer(reply.bytes)
    }

    fn record(&self, group: &GroupName, origin: &Origin, refused: &RefusedQuery) {
        // A slot was free a moment ago; the summary counts a query that finds none now.
        let Ok(slot) = self.audit.reserve() else { return };
        let (name, kind) = refused.asked.as_ref().map(|(name, kind)| (&**name, &**kind)).unzip();
        DnsRecord {
            interface: &origin.interface,
            group,
            agent: origin.from,
            server: origin.to,
            transport: if origin.datagram { "udp" } else { "tcp" },
            name,
            kind,
            reason: refused.reason,
        }
        .write(slot);
    }

    /// Records the sums of each agent's queries at intervals, until the daemon ends.
    pub(super) async fn summarise(&self) {
        let mut phases = self.phases();
        let mut closing = std::pin::pin!(phases.reached(crate::phase::Phase::Drain));
        let mut every = interval(SUMMARY_EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        every.tick().await;
        loop {
            let last = tokio::select! {
                () = &mut closing => true,
                _ = every.tick() => false,
            };
            self.write_summaries();
            self.resolver.answered().sweep();
            if last {
                return;
            }
        }
    }

    /// Records the sum of each agent's queries since the last time.
    pub(super) fn write_summaries(&self) {
        self.agents.sweep(Instant::now(), |group, agent, counts| {
            let Ok(slot) = self.audit.reserve() else { return false };
            let agent = agent.map(AgentKey::text);
            DnsSummary {
                group,
                agent: agent.as_deref(),
                answered: counts.answered,
                refused: counts.refused,
                limited: counts.limited,
                unsent: counts.undelivered,
                reason: (counts.limited > 0).then_some(Reason::DnsRate),
            }
            .write(slot);
            true
        });
    }
}

/// Keeps the addresses to which there is a route. Where a protocol names no host, the gateway
/// accepts a connection before it has made its own, which goes to the very address that was
/// dialled. An agent that dials an address without a route gets a reset after its connect and does
/// not try the next. Such an address is told all the same where the group's agents could use no
/// other instead.
fn routed(group: &Group, found: Resolved, usable: impl Fn(IpAddr) -> bool) -> Resolved {
    let (with, without): (Vec<IpAddr>, Vec<IpAddr>) =
        found.addresses.iter().partition(|address| dial::has_route(**address));
    let in_place = |other: &IpAddr| group.has_family_of(*other) && usable(*other);
    if without.is_empty() || !with.iter().any(in_place) {
        return found;
    }
    Resolved { addresses: with.into(), ..found }
}

fn names_no_host(policy_snapshot: &PolicySnapshot, group: &Group, question: &DnsQuestion) -> bool {
    let mut tcp = policy_snapshot.policy.tcp.of(&group.name, question.host(), MeantBy::Name);
    tcp.next().is_some()
}

/// Time for a name to be resolved. glibc and musl wait five seconds.
const TIMEOUT: Duration = Duration::from_millis(4_500);
/// Interval at which an agent's queries are summed up in the audit.
const SUMMARY_EVERY: Duration = Duration::from_secs(10);
