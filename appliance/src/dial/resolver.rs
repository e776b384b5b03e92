//! The gateway's own resolution of names: it asks the configured resolvers and nobody else.
//!
//! Hosts files and search domains are never read. Only names that policy lists get here, from the
//! agents' resolver and from flows alike, and no answer leads to a query for another name. Where a
//! rule begins with `*.`, agents choose the labels in the star's place, and these leave in a query.
//! One cache serves both, with answers of its own for each group, and however many agents of a
//! group ask for a name at once, one query is under way. Agents and groups share by
//! [`FairSemaphore`] how many names are resolved at once, so that names without an answer take no
//! other group's turn.
//! no other group's turn.

use std::{
    collections::HashMap,
    future::ready,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use hickory_resolver::proto::rr::Name;
use hickory_resolver::{
    config::{NameServerConfig, ResolverOpts},
    net::{DnsError, NetError, NoRecords},
};
use rustls::{ClientConfig, RootCertStore};
use tokio::{
    runtime::Handle,
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    answered::Answered,
    answers::{Answers, LookupKey},
    control_plane::ControlPlane,
    found::{LookupOutcome, Resolved, Unresolved},
    hosts_file,
    name_servers::{NameServers, ResolvedAddresses},
    off_limits::OffLimits,
    translators,
};
use crate::{
    config::{NameServer, Settings},
    identity::AgentKey,
    limits::{FairSemaphore, FairSlot},
    locks::lock,
    policy::{GroupName, Host, Site},
    tls,
};

/// Resolves names to addresses. Cheap to clone; all clones share the answers.
#[derive(Debug, Clone)]
pub struct Resolver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    upstream: Arc<NameServers>,
    /// Slots for names; a name holds one while the servers are asked for it.
    places: FairSemaphore,
    /// The runtime whose tasks carry the queries, so that they outlive a single worker's flow.
    home: Handle,
    answers: Mutex<Answers>,
    under_way: Mutex<HashMap<LookupKey, Flight>>,
    answered: Answered,
    off_limits: OffLimits,
    /// The time at which a failure to resolve was last logged.
    last_logged: Mutex<Option<Instant>>,
}

/// An outcome, and the time until which it holds.
type TimedOutcome = Result<(Resolved, Instant), (Unresolved, Instant)>;
type Flight = Shared<BoxFuture<'static, LookupOutcome>>;

impl Resolver {
    /// Opens a resolver that asks the servers of the settings. Servers over TLS are verified with
    /// the settings' `resolver_ca`, or with `system_roots` where there is none. The queries run on
    /// this runtime.
    ///
    /// # Errors There is no CA to verify a server over TLS with, or hickory does not accept a
    /// server.
    pub fn open(
        settings: &Settings,
        site: &Site,
        system_roots: &Arc<RootCertStore>,
    ) -> Result<Self, String> {
        let over_tls = settings.resolvers.iter().any(|server| server.tls_name.is_some());
        let tls = || tls::resolver_client(settings.resolver_ca.as_deref(), system_roots);
        let tls = over_tls.then(tls).transpose()?;
        Self::new(&settings.resolvers, tls, site.clone(), Handle::current())
    }

    /// Creates a resolver that asks `servers`, those over TLS by the settings in `tls`. Its queries
    /// run on `home`. Where `site` does not state which translators there are, it sends a query of
    /// its own now and then.
    ///
    /// # Errors A server over TLS has no settings, or hickory does not accept a server.
    pub fn new(
        servers: &[NameServer],
        tls: Option<ClientConfig>,
        site: Site,
        home: Handle,
    ) -> Result<Self, String> {
        if tls.is_none() && servers.iter().any(|server| server.tls_name.is_some()) {
            return Err("resolver: a server over TLS needs CAs that vouch for it".into());
        }
        let places = if tls.is_some() { MAX_OVER_TLS } else { MAX_UNDER_WAY };
        let control_plane = ControlPlane::new(servers.iter().map(|server| server.address.ip()));
        let servers = servers.iter().map(name_server).collect();
        let upstream = NameServers::new(servers, options(), tls);
        let upstream = Arc::new(upstream.map_err(|error| format!("resolver: {error}"))?);
        let off_limits = OffLimits::new(control_plane, site);
        home.spawn(translators::follow(Arc::downgrade(&upstream), off_limits.clone()));
        Ok(Self(Arc::new(Inner {
            upstream,
            places: FairSemaphore::new(places),
            home,
            answers: Mutex::new(Answers::new(MAX_NAMES)),
            under_way: Mutex::default(),
            answered: Answered::default(),
            off_limits,
            last_logged: Mutex::default(),
        })))
    }

    /// Returns every address of the name, as the resolvers answered. The query is for this agent,
    /// which waits for its turn no longer than a query takes.
    pub async fn resolve(&self, host: &Host, agent: &AgentKey) -> Result<Resolved, Unresolved> {
        let group = agent.group();
        if let Some(known) = self.known(host, group) {
            return known.await;
        }
        let place = timeout(LOOKUP_TIME, self.0.places.take(agent)).await;
        let place = place.ok().flatten().ok_or(Unresolved::Failed)?;
        // Another agent's query may have been answered, or be under way, by now.
        match self.known(host, group) {
            Some(known) => {
                drop(place);
                known.await
            }
            None => self.0.flight((host.clone(), group.clone()), place).await,
        }
    }

    /// Returns every address of a machine that the gateway itself depends on: those that
    /// `/etc/hosts` has for the name, or else those that the resolvers give. They join the control
    /// plane. No agent's query is waited for, and nothing is remembered.
    ///
    /// # Errors There is no such name, it has no address, or no resolver answers.
    pub async fn own(&self, name: &str) -> Result<Vec<IpAddr>, Unresolved> {
        let absolute = format!("{}.", name.trim_end_matches('.'));
        let parsed = Name::from_ascii(&absolute).map_err(|_| Unresolved::NoName)?;
        let mut found = hosts_file::addresses(&parsed).await;
        if found.is_empty() {
            let asked = timeout(LOOKUP_TIME, self.0.upstream.addresses(&absolute)).await;
            let asked = asked.unwrap_or(Err(NetError::Timeout));
            found = asked.map_err(|error| unresolved(&error).0)?.addresses;
        }
        self.0.off_limits.control_plane().learn(found.iter().copied());
        Ok(found)
    }

    /// Resolves the names of such machines at once and then every minute, whether or not anybody
    /// connects to them, until the returned set is dropped. Without that, a machine that the
    /// gateway has not needed yet could be dialled for an agent.
    pub fn keep_learning(&self, names: Vec<String>) -> JoinSet<()> {
        let (resolver, mut learning) = (self.clone(), JoinSet::new());
        let learn = async move {
            loop {
                for name in &names {
                    // The part that connects to it reports the fault.
                    let _ = resolver.own(name).await;
                }
                sleep(LEARN_EVERY).await;
            }
        };
        learning.spawn_on(learn, &self.0.home);
        learning
    }

    /// Returns the group's remembered answer about the name, without a query.
    pub fn remembered(
        &self,
        host: &Host,
        group: &GroupName,
    ) -> Option<Result<Resolved, Unresolved>> {
        let answers = lock(&self.0.answers);
        answers.get(host, group, Instant::now())
    }

    /// Returns an answer that needs no new query: a remembered one, or that of a query under way.
    fn known(&self, host: &Host, group: &GroupName) -> Option<Flight> {
        if let Some(outcome) = self.remembered(host, group) {
            return Some(ready(outcome).boxed().shared());
        }
        let under_way = lock(&self.0.under_way);
        under_way.get(&(host.clone(), group.clone())).cloned()
    }

    /// Returns the addresses that agents were given.
    pub fn answered(&self) -> &Answered {
        &self.0.answered
    }

    /// Returns the addresses to which no name may lead an agent.
    pub fn off_limits(&self) -> &OffLimits {
        &self.0.off_limits
    }
}

impl Inner {
    /// Returns the query that is under way for the name, or a new one, which keeps the slot.
    fn flight(self: &Arc<Self>, key: LookupKey, place: FairSlot) -> Flight {
        let mut under_way = lock(&self.under_way);
        if let Some(flight) = under_way.get(&key) {
            return flight.clone();
        }
        // The query removes itself from the list. It waits for the list's lock, so it is on the
        // list by then.
        let landing = Landing { inner: Arc::clone(self), key: key.clone() };
        let query = self.home.spawn(async move {
            let outcome = landing.inner.ask(&landing.key.0).await;
            let outcome = landing.inner.remember(&landing.key, outcome);
            drop(place);
            outcome
        });
        let flight = query.map(|ended| ended.unwrap_or(Err(Unresolved::Failed))).boxed().shared();
        under_way.insert(key, flight.clone());
        flight
    }

    /// Asks the resolvers.
    async fn ask(&self, host: &Host) -> TimedOutcome {
        let latest = |until: Instant, most| until.min(Instant::now() + most);
        let name = format!("{host}.");
        let lookup = timeout(LOOKUP_TIME, self.upstream.addresses(&name));
        let lookup = lookup.await.unwrap_or(Err(NetError::Timeout));
        let ResolvedAddresses { addresses, ttl } = lookup.map_err(|error| {
            tracing::debug!(%host, %error, "resolve");
            let (why, holds) = unresolved(&error);
            if why == Unresolved::Failed {
                self.tell_failure(&error);
            }
            (why, latest(Instant::now() + holds, MAX_NEGATIVE_TTL))
        })?;
        let (addresses, ttl) = self.judgeable(addresses, ttl).await;
        if addresses.is_empty() {
            return Err((Unresolved::Failed, Instant::now()));
        }
        let addresses: Arc<[IpAddr]> = addresses.into_iter().take(MAX_ADDRESSES).collect();
        let until = latest(Instant::now() + ttl, MAX_TTL);
        Ok((Resolved { addresses, until }, until))
    }

    /// Drops the IPv6 addresses, and makes the answer not be remembered, while it is not known
    /// which of them stand for IPv4 addresses.
    async fn judgeable(
        &self,
        mut addresses: Vec<IpAddr>,
        ttl: Duration,
    ) -> (Vec<IpAddr>, Duration) {
        let any_v6 = addresses.iter().any(IpAddr::is_ipv6);
        if !any_v6 || translators::are_known(&self.off_limits).await {
            return (addresses, ttl);
        }
        addresses.retain(IpAddr::is_ipv4);
        (addresses, Duration::ZERO)
    }

    /// Logs a failure that the operator has to mend, such as a wrong certificate or a server that
    /// is gone. Logged once in a while, however many queries fail.
    fn tell_failure(&self, error: &NetError) {
        let now = Instant::now();
        let mut last_logged = lock(&self.last_logged);
        if last_logged.is_none_or(|last| now.duration_since(last) >= TELL_EVERY) {
            *last_logged = Some(now);
            tracing::warn!(
                %error,
                "no resolver answers, or none over TLS has a certificate that verifies; names do \
                 not resolve"
            );
        }
    }

    fn remember(&self, key: &LookupKey, outcome: TimedOutcome) -> LookupOutcome {
        let (outcome, until) = match outcome {
            Ok((found, until)) => (Ok(found), until),
            Err((why, until)) => (Err(why), until),
        };
        let mut answers = lock(&self.answers);
        answers.put(key, outcome.clone(), until, Instant::now());
        outcome
    }
}

/// Removes a query from the list of those under way, however it ends.
struct Landing {
    inner: Arc<Inner>,
    key: LookupKey,
}

impl Drop for Landing {
    fn drop(&mut self) {
        lock(&self.inner.under_way).remove(&self.key);
    }
}

/// Returns what an error means for the name, and for how long that is valid (RFC 2308, section 5):
/// for no time where no resolver said it.
fn unresolved(error: &NetError) -> (Unresolved, Duration) {
    let NetError::Dns(DnsError::NoRecordsFound(NoRecords { negative_ttl, .. })) = error else {
        return (Unresolved::Failed, Duration::ZERO);
    };
    let why = if error.is_nx_domain() { Unresolved::NoName } else { Unresolved::NoAddress };
    (why, Duration::from_secs(negative_ttl.unwrap_or_default().into()))
}

/// Returns the one way to ask a server. Over TLS it is the only connection, so that hickory cannot
/// fall back to another.
fn name_server(server: &NameServer) -> NameServerConfig {
    let address = server.address;
    let mut config = match &server.tls_name {
        Some(name) => NameServerConfig::tls(address.ip(), name.as_str().into()),
        None => NameServerConfig::udp_and_tcp(address.ip()),
    };
    for connection in &mut config.connections {
        connection.port = address.port();
    }
    config
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.timeout = QUERY_TIME;
    options.attempts = ATTEMPTS;
    // Each query also has a port of its own, which the system does not choose.
    options.case_randomization = true;
    // Most queries on one connection over TCP or TLS; the queries under way have a bound of their
    // own, above.
    options.max_active_requests = 2 * MAX_UNDER_WAY;
    options
}

/// Longest time for which an answer is believed, whatever its TTL.
pub(crate) const MAX_TTL: Duration = Duration::from_secs(300);
/// Longest time for which the absence of a name is believed.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(30);
/// Most names that are remembered at once.
const MAX_NAMES: usize = 4_096;
/// Most names that are resolved at once.
const MAX_UNDER_WAY: usize = 1_024;
/// Most names that are resolved at once over TLS. Each may open two connections while there is none
/// to share, and a server keeps those for a while.
const MAX_OVER_TLS: usize = 128;
/// Most addresses of one name that are kept.
const MAX_ADDRESSES: usize = 16;
/// Interval at which failures to resolve are logged.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// Time for one resolver to answer once.
const QUERY_TIME: Duration = Duration::from_secs(2);
/// Time for all tries together, handshakes included.
const LOOKUP_TIME: Duration = Duration::from_secs(6);
/// Interval at which the names of machines that the gateway depends on are resolved.
const LEARN_EVERY: Duration = Duration::from_secs(60);
/// Tries beyond the first.
const ATTEMPTS: usize = 2;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use std::net::SocketAddr;

    use hickory_resolver::config::ProtocolConfig;
    use hickory_resolver::proto::{
        op::{Message, MessageType, ResponseCode},
        rr::{RData, Record, RecordType, rdata::A},
    };
    use tokio::net::UdpSocket;

    use super::*;

    /// Starts a server that answers slowly, knows one name and counts the queries.
    async fn server(ttl: u32) -> (SocketAddr, Arc<AtomicUsize>) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        tokio::spawn(async move {
            let mut buffer = [0; 1_500];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                count.fetch_add(1, Relaxed);
                tokio::time::sleep(Duration::from_millis(50)).await;
                let mut message = Message::from_vec(&buffer[..length]).unwrap();
                let query = message.queries[0].clone();
                message.metadata.message_type = MessageType::Response;
                if query.name().to_lowercase().to_ascii() != "a.example." {
                    message.metadata.response_code = ResponseCode::NXDomain;
                } else if query.query_type() == RecordType::A {
                    let data = RData::A(A::new(198, 51, 100, 1));
                    message.add_answer(Record::from_rdata(query.name().clone(), ttl, data));
                }
                socket.send_to(&message.to_vec().unwrap(), from).await.unwrap();
            }
        });
        (address, asked)
    }

    fn host(name: &str) -> Host {
        Host::parse(name).unwrap()
    }

    fn agent() -> AgentKey {
        AgentKey::new(&GroupName("red".into()), IpAddr::from([192, 0, 2, 1]))
    }

    /// Returns a site that states its translators, so that no query for them is needed.
    fn stated() -> Site {
        Site { nat64_prefixes: Some(Vec::new()), ..Site::default() }
    }

    fn plain(address: SocketAddr) -> NameServer {
        NameServer { address, tls_name: None }
    }

    #[tokio::test]
    async fn a_server_over_tls_is_asked_in_no_other_way() {
        let address = SocketAddr::from(([192, 0, 2, 53], 853));
        let server = NameServer { address, tls_name: Some(host("dns.example")) };
        let config = name_server(&server);
        let [only] = &config.connections[..] else { panic!("{config:?}") };
        let name = "dns.example".into();
        assert_eq!((only.port, &only.protocol), (853, &ProtocolConfig::Tls { server_name: name }));
        let error = Resolver::new(&[server], None, stated(), Handle::current()).unwrap_err();
        assert!(error.contains("vouch"), "{error}");
    }

    #[tokio::test]
    async fn many_who_ask_for_one_name_make_one_query() {
        let (address, asked) = server(0).await;
        let resolver = Resolver::new(&[plain(address)], None, stated(), Handle::current()).unwrap();
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let resolver = resolver.clone();
            all.spawn(async move { resolver.resolve(&host("a.example"), &agent()).await });
        }
        for found in all.join_all().await {
            assert_eq!(*found.unwrap().addresses, [IpAddr::from([198, 51, 100, 1])]);
        }
        assert_eq!(asked.load(Relaxed), 2, "A and AAAA");
        assert!(resolver.0.under_way.lock().unwrap().is_empty());
        assert!(
            resolver.remembered(&host("a.example"), agent().group()).is_none(),
            "its time is 0"
        );
        resolver.resolve(&host("a.example"), &agent()).await.unwrap();
        assert_eq!(asked.load(Relaxed), 4);
    }

    #[tokio::test]
    async fn an_answer_is_remembered_five_minutes_at_most() {
        let (address, asked) = server(86_400).await;
        let resolver = Resolver::new(&[plain(address)], None, stated(), Handle::current()).unwrap();
        for _ in 0..10 {
            let found = resolver.resolve(&host("a.example"), &agent()).await.unwrap();
            assert!(found.until <= Instant::now() + MAX_TTL);
        }
        assert_eq!(asked.load(Relaxed), 2, "A and AAAA");
        let missing = resolver.resolve(&host("b.example"), &agent()).await;
        assert_eq!(missing.map(|found| found.addresses).err(), Some(Unresolved::NoName));
    }
}
