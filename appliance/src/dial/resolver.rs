//! The gateway's own resolution of names: it asks the configured resolvers and nobody else.
//!
//! Hosts files and search domains are never read. Only names that policy lists get here, from
//! the agents' resolver and from flows alike, so no query that an agent made up leaves the
//! gateway. One cache serves both, and however many ask for a name at once, one query is under way.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{DnsError, NetError, NoRecords, runtime::TokioRuntimeProvider},
};
use tokio::runtime::Handle;

use super::answered::Answered;
use crate::policy::Host;

/// Resolves names to addresses. Cheap to clone; all clones share one cache.
#[derive(Debug, Clone)]
pub struct Resolver(Arc<Inner>);

/// What the resolvers said about a name.
#[derive(Debug, Clone)]
pub struct Found {
    /// Every address, IPv4 and IPv6, never none. Not checked: that is done right before each is
    /// dialled or given away.
    pub addresses: Arc<[IpAddr]>,
    /// How long they may be used.
    pub until: Instant,
}

/// Why there is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unresolved {
    /// There is no such name.
    NoName,
    /// The name has no address.
    NoAddress,
    /// No resolver said either, or too many names are being asked for.
    Failed,
}

#[derive(Debug)]
struct Inner {
    upstream: TokioResolver,
    /// The runtime whose tasks carry the queries, so that they outlive a single worker's flow.
    home: Handle,
    answers: Mutex<HashMap<Host, Answer>>,
    under_way: Mutex<HashMap<Host, Flight>>,
    answered: Answered,
}

type Outcome = Result<Found, Unresolved>;
type Flight = Shared<BoxFuture<'static, Outcome>>;

#[derive(Debug, Clone)]
struct Answer {
    outcome: Outcome,
    until: Instant,
}

impl Resolver {
    /// A resolver that asks `servers`. Its queries run on `home`.
    pub fn new(servers: &[SocketAddr], home: Handle) -> Result<Self, String> {
        let servers = servers.iter().map(|&server| name_server(server)).collect();
        let config = ResolverConfig::from_name_servers(servers);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options();
        let upstream = builder.build().map_err(|error| format!("resolver: {error}"))?;
        Ok(Self(Arc::new(Inner {
            upstream,
            home,
            answers: Mutex::default(),
            under_way: Mutex::default(),
            answered: Answered::default(),
        })))
    }

    /// Every address of the name, as the resolvers answered.
    pub async fn resolve(&self, host: &Host) -> Result<Found, Unresolved> {
        if let Some(outcome) = self.remembered(host) {
            return outcome;
        }
        match self.0.flight(host) {
            Some(flight) => flight.await,
            None => Err(Unresolved::Failed),
        }
    }

    /// What is known about the name without asking anybody.
    pub fn remembered(&self, host: &Host) -> Option<Result<Found, Unresolved>> {
        let answers = self.0.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = answers.get(host).filter(|answer| answer.until > Instant::now())?;
        Some(answer.outcome.clone())
    }

    /// What agents were given.
    pub fn answered(&self) -> &Answered {
        &self.0.answered
    }
}

impl Inner {
    /// The query that is under way for the name, or a new one; `None` where too many are.
    fn flight(self: &Arc<Self>, host: &Host) -> Option<Flight> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = under_way.get(host) {
            return Some(flight.clone());
        }
        if under_way.len() >= MAX_UNDER_WAY {
            return None;
        }
        // It takes itself off the list, for which it has to wait until it is on it.
        let landing = Landing { inner: Arc::clone(self), host: host.clone() };
        let query = self.home.spawn(async move {
            let outcome = landing.inner.ask(&landing.host).await;
            landing.inner.remember(&landing.host, &outcome);
            outcome.map(|(found, _)| found).map_err(|(why, _)| why)
        });
        let flight = query.map(|ended| ended.unwrap_or(Err(Unresolved::Failed))).boxed().shared();
        under_way.insert(host.clone(), flight.clone());
        Some(flight)
    }

    /// Asks the resolvers. Both outcomes come with the time that they hold.
    async fn ask(&self, host: &Host) -> Result<(Found, Instant), (Unresolved, Instant)> {
        let latest = |until: Instant, most| until.min(Instant::now() + most);
        let lookup = self.upstream.lookup_ip(format!("{host}.")).await;
        let found = lookup.map_err(|error| {
            tracing::debug!(%host, %error, "resolve");
            let (why, holds) = unresolved(&error);
            (why, latest(Instant::now() + holds, MAX_NEGATIVE_TTL))
        })?;
        let addresses: Arc<[IpAddr]> = found.iter().take(MAX_ADDRESSES).collect();
        let until = latest(found.valid_until(), MAX_TTL);
        if addresses.is_empty() {
            return Err((Unresolved::NoAddress, Instant::now()));
        }
        Ok((Found { addresses, until }, until))
    }

    fn remember(&self, host: &Host, outcome: &Result<(Found, Instant), (Unresolved, Instant)>) {
        let now = Instant::now();
        let (outcome, until) = match outcome {
            Ok((found, until)) => (Ok(found.clone()), *until),
            Err((why, until)) => (Err(*why), *until),
        };
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if until <= now {
            answers.remove(host);
            return;
        }
        if answers.len() >= MAX_NAMES && !answers.contains_key(host) {
            answers.retain(|_, answer| answer.until > now);
        }
        if answers.len() < MAX_NAMES || answers.contains_key(host) {
            answers.insert(host.clone(), Answer { outcome, until });
        }
    }
}

/// Takes a query off the list of those under way, however it ends.
struct Landing {
    inner: Arc<Inner>,
    host: Host,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let under_way = &self.inner.under_way;
        under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.host);
    }
}

/// What an error says about the name, and for how long it holds (RFC 2308, section 5): not at all
/// where no resolver said so.
fn unresolved(error: &NetError) -> (Unresolved, Duration) {
    let NetError::Dns(DnsError::NoRecordsFound(NoRecords { negative_ttl, .. })) = error else {
        return (Unresolved::Failed, Duration::ZERO);
    };
    let why = if error.is_nx_domain() { Unresolved::NoName } else { Unresolved::NoAddress };
    (why, Duration::from_secs(negative_ttl.unwrap_or_default().into()))
}

fn name_server(server: SocketAddr) -> NameServerConfig {
    let mut config = NameServerConfig::udp_and_tcp(server.ip());
    for connection in &mut config.connections {
        connection.port = server.port();
    }
    config
}

fn options() -> ResolverOpts {
    let mut options = ResolverOpts::default();
    options.use_hosts_file = ResolveHosts::Never;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.timeout = QUERY_TIME;
    options.attempts = ATTEMPTS;
    // Answers are kept in the one cache above, under its own bound.
    options.cache_size = 0;
    options.positive_max_ttl = Some(MAX_TTL);
    options
}

/// Longest that an answer is believed, whatever its TTL says.
pub(crate) const MAX_TTL: Duration = Duration::from_secs(300);
/// Longest that the absence of a name is believed.
const MAX_NEGATIVE_TTL: Duration = Duration::from_secs(30);
/// Names that are remembered at once.
const MAX_NAMES: usize = 4_096;
/// Names that are asked for at once.
const MAX_UNDER_WAY: usize = 1_024;
/// Addresses of one name that are kept.
const MAX_ADDRESSES: usize = 16;
/// Time for one resolver to answer once.
const QUERY_TIME: Duration = Duration::from_secs(2);
/// Tries beyond the first.
const ATTEMPTS: usize = 2;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use hickory_resolver::proto::{
        op::{Message, MessageType, ResponseCode},
        rr::{RData, Record, RecordType, rdata::A},
    };
    use tokio::net::UdpSocket;

    use super::*;

    /// A server that takes its time, knows one name and counts the questions.
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
                if query.name().to_ascii() != "a.example." {
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

    #[tokio::test]
    async fn however_many_ask_for_a_name_one_question_is_under_way() {
        let (address, asked) = server(0).await;
        let resolver = Resolver::new(&[address], Handle::current()).unwrap();
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..50 {
            let resolver = resolver.clone();
            all.spawn(async move { resolver.resolve(&host("a.example")).await });
        }
        for found in all.join_all().await {
            assert_eq!(*found.unwrap().addresses, [IpAddr::from([198, 51, 100, 1])]);
        }
        assert_eq!(asked.load(Relaxed), 2, "A and AAAA");
        assert!(resolver.0.under_way.lock().unwrap().is_empty());
        assert!(resolver.remembered(&host("a.example")).is_none(), "its time is 0");
        resolver.resolve(&host("a.example")).await.unwrap();
        assert_eq!(asked.load(Relaxed), 4);
    }

    #[tokio::test]
    async fn an_answer_is_remembered_for_its_time_and_no_longer_than_five_minutes() {
        let (address, asked) = server(86_400).await;
        let resolver = Resolver::new(&[address], Handle::current()).unwrap();
        for _ in 0..10 {
            let found = resolver.resolve(&host("a.example")).await.unwrap();
            assert!(found.until <= Instant::now() + MAX_TTL);
        }
        assert_eq!(asked.load(Relaxed), 2, "A and AAAA");
        let missing = resolver.resolve(&host("b.example")).await;
        assert_eq!(missing.map(|found| found.addresses).err(), Some(Unresolved::NoName));
    }
}
