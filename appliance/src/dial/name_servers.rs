//! A query to the configured resolvers, and the addresses in its answer.
//!
//! No answer leads to another query, so the owner of a listed zone cannot make the gateway ask for
//! a name of its choice. Resolvers follow aliases themselves; an alias without the addresses that
//! it leads to gives no address. Only those records of an answer count to which the asked name
//! leads, alias by alias, in whatever order they stand. Over UDP names are asked for in a mixture
//! of capitals, and [`distrust`](super::distrust) decides which answers count.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures_util::future::{Either, select};
use hickory_resolver::{
    NameServerPool, PoolContext, TlsConfig,
    config::{NameServerConfig, ResolverOpts},
    net::{
        DnsError, NetError, NoRecords,
        xfer::{DnsHandle, FirstAnswer, RetryDnsHandle},
    },
    proto::{
        op::{DnsRequestOptions, DnsResponse, Query},
        rr::{Name, RData, Record, RecordType},
    },
};
use rustls::ClientConfig;
use tokio::time::timeout;

use super::distrust::Distrustful;

/// The servers that are asked.
pub(super) struct NameServers {
    servers: RetryDnsHandle<NameServerPool<Distrustful>>,
    options: DnsRequestOptions,
}

/// The addresses of a name, at least one, and the time for which they are valid.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ResolvedAddresses {
    pub(super) addresses: Vec<IpAddr>,
    pub(super) ttl: Duration,
}

impl NameServers {
    /// Creates a client of these servers. Those over TLS are asked with the settings in `tls`.
    ///
    /// # Errors
    ///
    /// TLS settings are not given and there is no default.
    pub(super) fn new(
        servers: Vec<NameServerConfig>,
        options: ResolverOpts,
        tls: Option<ClientConfig>,
    ) -> Result<Self, NetError> {
        let mut each = DnsRequestOptions::default();
        each.recursion_desired = true;
        each.case_randomization = options.case_randomization;
        each.use_edns = options.edns0;
        each.edns_payload_len = options.edns_payload_len;
        let tls = tls.map_or_else(TlsConfig::new, |config| Ok(TlsConfig { config }))?;
        let attempts = options.attempts;
        let context = Arc::new(PoolContext::new(options, tls));
        let port = |server: &NameServerConfig| server.connections.first().map(|it| it.port);
        let addresses = servers.iter().filter_map(|it| Some(SocketAddr::new(it.ip, port(it)?)));
        let sockets = Distrustful::new(addresses);
        let pool = NameServerPool::from_config(servers, context, sockets);
        Ok(Self { servers: RetryDnsHandle::new(pool, attempts), options: each })
    }

    /// Returns every address of the name, which ends with a dot: IPv4 before IPv6. Where only one
    /// family has an answer, returns that. Once one family has addresses, the other has a moment
    /// left: a server that never answers for it (RFC 8305, section 3; RFC 4074, section 4.1) costs
    /// no more than that.
    ///
    /// # Errors
    ///
    /// No server answers; [`DnsError::NoRecordsFound`] where one says that there is no address.
    pub(super) async fn addresses(&self, name: &str) -> Result<ResolvedAddresses, NetError> {
        let name = Name::from_ascii(name)?;
        let v4 = pin!(self.family(Query::query(name.clone(), RecordType::A)));
        let v6 = pin!(self.family(Query::query(name.clone(), RecordType::AAAA)));
        let (v4, v6) = match select(v4, v6).await {
            Either::Left((v4, rest)) => {
                let v6 = beside(&v4, rest).await;
                (v4, v6)
            }
            Either::Right((v6, rest)) => (beside(&v6, rest).await, v6),
        };
        match (v4, v6) {
            (Ok(v4), Ok(v6)) => Ok(v4.and(v6)),
            (Ok(one), Err(NetError::Dns(DnsError::NoRecordsFound(_))))
            | (Err(NetError::Dns(DnsError::NoRecordsFound(_))), Ok(one)) => Ok(one),
            // No server said that the other family has none.
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one.for_now()),
            // Where no server answered for one family, that says more than the absence of addresses
            // in the other.
            (Err(NetError::Dns(DnsError::NoRecordsFound(_))), Err(error))
            | (Err(error), Err(_)) => Err(error),
        }
    }

    /// Returns the IPv6 addresses that a translator makes up for a name which has none, and the
    /// time for which they are valid.
    ///
    /// # Errors
    ///
    /// No server answers.
    pub(super) async fn made_up(&self, name: &str) -> Result<(Vec<Ipv6Addr>, Duration), NetError> {
        let query = Query::query(Name::from_ascii(name)?, RecordType::AAAA);
        match self.family(query).await {
            Ok(ResolvedAddresses { addresses, ttl }) => {
                let v6 = addresses.into_iter().filter_map(|address| match address {
                    IpAddr::V6(v6) => Some(v6),
                    IpAddr::V4(_) => None,
                });
                Ok((v6.collect(), ttl))
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
                Ok((Vec::new(), Duration::from_secs(none.negative_ttl.unwrap_or_default().into())))
            }
            Err(error) => Err(error),
        }
    }

    async fn family(&self, query: Query) -> Result<ResolvedAddresses, NetError> {
        let answer = self.servers.lookup(query.clone(), self.options).first_answer().await?;
        let answer = DnsError::from_response(answer)?;
        // On a stream hickory compares only the number.
        if *answer.queries != [query.clone()] {
            return Err("an answer to another question".into());
        }
        led_to(&query, &answer.answers).ok_or_else(|| none(query, &answer))
    }
}

/// Waits for the other family's answer: only a moment if the first one has addresses.
async fn beside(
    one: &Result<ResolvedAddresses, NetError>,
    other: impl Future<Output = Result<ResolvedAddresses, NetError>>,
) -> Result<ResolvedAddresses, NetError> {
    match one {
        Ok(_) => timeout(MOMENT, other).await.unwrap_or(Err(NetError::Timeout)),
        Err(_) => other.await,
    }
}

impl ResolvedAddresses {
    /// Shortens the time of an answer without a family that may have addresses, too: it is asked
    /// for again soon.
    fn for_now(self) -> Self {
        Self { ttl: self.ttl.min(SOON), ..self }
    }

    fn and(mut self, other: Self) -> Self {
        self.addresses.extend(other.addresses);
        Self { addresses: self.addresses, ttl: self.ttl.min(other.ttl) }
    }
}

impl std::fmt::Debug for NameServers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream").finish_non_exhaustive()
    }
}

/// Returns the addresses of the asked kind to which the asked name leads within these records.
fn led_to(query: &Query, records: &[Record]) -> Option<ResolvedAddresses> {
    let (mut name, mut ttl) = (query.name(), u32::MAX);
    for _ in 0..=MAX_ALIASES {
        let of_name = || records.iter().filter(|record| record.name == *name);
        let wanted = of_name().filter(|record| record.record_type() == query.query_type());
        let wanted = wanted.filter_map(|record| Some((record.data.ip_addr()?, record.ttl)));
        let (addresses, ttls): (Vec<_>, Vec<_>) = wanted.unzip();
        if let Some(least) = ttls.into_iter().min() {
            return Some(ResolvedAddresses {
                addresses,
                ttl: Duration::from_secs(ttl.min(least).into()),
            });
        }
        let alias = of_name().find_map(|record| match &record.data {
            RData::CNAME(target) => Some((&target.0, record.ttl)),
            _ => None,
        });
        let (target, alias_ttl) = alias?;
        (name, ttl) = (target, ttl.min(alias_ttl));
    }
    None
}

/// Returns the error of a name without addresses, valid for as long as the answer says (RFC 2308,
/// section 5).
fn none(query: Query, answer: &DnsResponse) -> NetError {
    let mut none = NoRecords::new(query, answer.response_code);
    none.negative_ttl = answer.negative_ttl();
    none.into()
}

/// Time that one family has for its answer once the other has addresses. It is longer than the 50
/// ms of RFC 8305, after which a client begins with the addresses that it has, because later
/// answers are not used here.
const MOMENT: Duration = Duration::from_millis(500);
/// Longest time for which the addresses of one family count as all addresses.
const SOON: Duration = Duration::from_secs(10);
/// Most aliases from the asked name to its address.
const MAX_ALIASES: usize = 16;

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn alias(from: &str, to: &str, ttl: u32) -> Record {
        Record::from_rdata(name(from), ttl, RData::CNAME(CNAME(name(to))))
    }

    fn address(of: &str, last: u8, ttl: u32) -> Record {
        Record::from_rdata(name(of), ttl, RData::A(A::new(198, 51, 100, last)))
    }

    fn asked(records: &[Record]) -> Option<ResolvedAddresses> {
        led_to(&Query::query(name("a.example."), RecordType::A), records)
    }

    fn found(last: &[u8], ttl: u64) -> Option<ResolvedAddresses> {
        let addresses = last.iter().map(|last| IpAddr::from([198, 51, 100, *last])).collect();
        Some(ResolvedAddresses { addresses, ttl: Duration::from_secs(ttl) })
    }

    #[test]
    fn aliases_lead_to_addresses_in_whatever_order_they_come() {
        assert_eq!(asked(&[address("A.Example.", 1, 60)]), found(&[1], 60));
        let mut chain = vec![
            alias("a.example.", "b.example.", 50),
            alias("b.example.", "c.cdn.example.", 20),
            address("c.cdn.example.", 1, 60),
            address("c.cdn.example.", 2, 30),
        ];
        assert_eq!(asked(&chain), found(&[1, 2], 20));
        chain.reverse();
        assert_eq!(asked(&chain), found(&[2, 1], 20));
    }

    #[test]
    fn an_address_that_no_alias_leads_to_is_none() {
        let v6 = RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
        for records in [
            vec![],
            vec![alias("a.example.", "b.example.", 60)],
            vec![address("b.example.", 1, 60)],
            vec![alias("a.example.", "b.example.", 60), address("c.example.", 1, 60)],
            vec![alias("x.example.", "b.example.", 60), address("b.example.", 1, 60)],
            vec![Record::from_rdata(name("a.example."), 60, v6)],
        ] {
            assert_eq!(asked(&records), None, "{records:?}");
        }
        let own = vec![alias("x.example.", "b.example.", 60), address("b.example.", 1, 60)];
        let own = [own, vec![address("a.example.", 2, 60)]].concat();
        assert_eq!(asked(&own), found(&[2], 60));
    }

    #[test]
    fn aliases_without_end_lead_nowhere() {
        let circle = [alias("a.example.", "b.example.", 60), alias("b.example.", "a.example.", 60)];
        assert_eq!(asked(&circle), None);
        let long = |steps: usize| {
            let step = |it: usize| match it {
                0 => "a.example.".to_owned(),
                it => format!("n{it}.example."),
            };
            let mut records: Vec<_> =
                (0..steps).map(|it| alias(&step(it), &step(it + 1), 60)).collect();
            records.push(address(&step(steps), 1, 60));
            asked(&records)
        };
        assert_eq!(long(MAX_ALIASES), found(&[1], 60));
        assert_eq!(long(MAX_ALIASES + 1), None);
    }
}
