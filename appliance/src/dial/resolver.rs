//! The gateway's own resolution of names: it asks the configured resolvers and nobody else.
//!
//! Hosts files and search domains are never read. Only names that policy permitted get here, so
//! no query that an agent made up leaves the gateway.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hickory_resolver::{
    TokioResolver,
    config::{LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::runtime::TokioRuntimeProvider,
};
use tokio::runtime::Handle;

use crate::{policy::Host, reason::Reason};

/// Resolves names to addresses. Cheap to clone; all clones share one cache.
#[derive(Debug, Clone)]
pub struct Resolver(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    upstream: TokioResolver,
    /// The runtime whose tasks carry the queries, so that they outlive a single worker's flow.
    home: Handle,
    answers: Mutex<HashMap<Host, Answer>>,
}

#[derive(Debug, Clone)]
struct Answer {
    addresses: Arc<[IpAddr]>,
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
        Ok(Self(Arc::new(Inner { upstream, home, answers: Mutex::default() })))
    }

    /// Every address of the name, IPv4 and IPv6, as the resolvers answered. Not checked: that is
    /// done right before each is dialled.
    pub async fn resolve(&self, host: &Host) -> Result<Arc<[IpAddr]>, Reason> {
        if let Some(addresses) = self.remembered(host) {
            return Ok(addresses);
        }
        let inner = Arc::clone(&self.0);
        let name = format!("{host}.");
        let lookup = self.0.home.spawn(async move { inner.upstream.lookup_ip(name).await });
        let found = match lookup.await {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::debug!(%host, %error, "resolve");
                return Err(Reason::ResolveFailed);
            }
            Err(_) => return Err(Reason::ResolveFailed),
        };
        let addresses: Arc<[IpAddr]> = found.iter().take(MAX_ADDRESSES).collect();
        if addresses.is_empty() {
            return Err(Reason::ResolveFailed);
        }
        self.remember(host, Arc::clone(&addresses), found.valid_until());
        Ok(addresses)
    }

    fn remembered(&self, host: &Host) -> Option<Arc<[IpAddr]>> {
        let answers = self.0.answers.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = answers.get(host).filter(|answer| answer.until > Instant::now())?;
        Some(Arc::clone(&answer.addresses))
    }

    fn remember(&self, host: &Host, addresses: Arc<[IpAddr]>, until: Instant) {
        let mut answers = self.0.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MAX_NAMES {
            let now = Instant::now();
            answers.retain(|_, answer| answer.until > now);
        }
        if answers.len() < MAX_NAMES {
            answers.insert(host.clone(), Answer { addresses, until });
        }
    }
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

/// Names that are remembered at once.
const MAX_NAMES: usize = 4_096;
/// Addresses of one name that are kept.
const MAX_ADDRESSES: usize = 16;
/// Longest that an answer is believed, whatever its TTL says.
const MAX_TTL: Duration = Duration::from_secs(300);
/// Time for one resolver to answer once.
const QUERY_TIME: Duration = Duration::from_secs(2);
/// Tries beyond the first.
const ATTEMPTS: usize = 2;
