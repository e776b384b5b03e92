//! Takes one query and returns an answer, a refusal, or a name to resolve. Pure.
//!
//! hickory-proto reads and writes the messages. The header is read first, so that a message that is
//! not a query is never answered, and one that cannot be read still gets its number back. A name is
//! echoed in the case in which it was asked (draft-vixie-dnsext-dns0x20).

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use hickory_resolver::proto::{
    op::{Edns, Message, OpCode, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordType, rdata::opt::EdnsOption},
    serialize::binary::{BinDecodable, BinDecoder},
};

use crate::{
    dial::{MAX_TTL, Resolved, Unresolved},
    policy::{Group, Host, Policy},
    reason::Reason,
};

/// The group that asks, and the policy that decides.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// The policy in force.
    pub policy: &'a Policy,
    /// The group that the query came from.
    pub group: &'a Group,
    /// Whether IPv6 is carried; where false, no name has an IPv6 address.
    pub ipv6: bool,
    /// Whether the query came in a datagram, whose answer may have to be cut short.
    pub datagram: bool,
}

/// The result of looking at a query.
#[derive(Debug)]
pub enum QueryVerdict {
    /// It is no query: nothing is sent back, because two servers could answer each other for ever.
    Silence,
    /// It is answered at once.
    Answered(DnsReply),
    /// It asks for a listed name, which is to be resolved; [`DnsQuestion::reply`] then makes the
    /// answer.
    Resolve(Box<DnsQuestion>),
}

/// The answer to one query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsReply {
    /// The message, without the length that precedes it in a stream.
    pub bytes: Vec<u8>,
    /// The reason why the agent did not get an answer.
    pub refused: Option<RefusedQuery>,
    /// The addresses in it.
    pub given: Vec<IpAddr>,
}

/// A refused query, and the reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedQuery {
    /// The reason.
    pub reason: Reason,
    /// The name and type that were asked for, where they could be read. The agent chose both.
    pub asked: Option<(String, String)>,
}

/// A query for the addresses of a listed name.
#[derive(Debug, Clone)]
pub struct DnsQuestion {
    query: Message,
    host: Host,
    most_bytes: usize,
}

/// Answers a query, or returns the name that has to be resolved for it.
pub fn answer(asker: Asker<'_>, query: &[u8]) -> QueryVerdict {
    consider(query, |message| judge(asker, message))
}

/// Refuses a query of a sender who gets no answers, whatever it asks for.
pub(super) fn refuse(query: &[u8], datagram: bool, reason: Reason) -> QueryVerdict {
    consider(query, |message| {
        let most_bytes = most_bytes(datagram, &message);
        let why = Some((PROHIBITED, reason));
        QueryVerdict::Answered(refusal(&message, ResponseCode::Refused, why, most_bytes))
    })
}

fn consider(query: &[u8], judge: impl FnOnce(Message) -> QueryVerdict) -> QueryVerdict {
    let Some(header) = RawHeader::of(query) else { return QueryVerdict::Silence };
    if header.is_response {
        return QueryVerdict::Silence;
    }
    if header.opcode != 0 {
        return QueryVerdict::Answered(header.error(ResponseCode::NotImp));
    }
    match read(&header, query) {
        Some(message) => judge(message),
        None => QueryVerdict::Answered(header.error(ResponseCode::FormErr)),
    }
}

impl DnsQuestion {
    /// Returns the name to resolve.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Returns the answer, once the name was resolved. Only addresses that are `usable` are told,
    /// each for 1 to 300 seconds.
    pub fn reply(
        &self,
        outcome: &Result<Resolved, Unresolved>,
        now: Instant,
        usable: impl Fn(IpAddr) -> bool,
    ) -> DnsReply {
        let found = match outcome {
            Ok(found) => found,
            Err(Unresolved::NoName) => return self.empty(ResponseCode::NXDomain, None),
            Err(Unresolved::NoAddress) => return self.empty(ResponseCode::NoError, None),
            Err(Unresolved::Failed) => {
                let why = Some((NO_REACHABLE_AUTHORITY, Reason::ResolveFailed));
                return self.empty(ResponseCode::ServFail, why);
            }
        };
        let kind = self.query.queries.first().map(|query| query.query_type());
        let of_kind = |address: &&IpAddr| match kind {
            Some(RecordType::A) => address.is_ipv4(),
            _ => address.is_ipv6(),
        };
        let (given, withheld): (Vec<IpAddr>, Vec<IpAddr>) =
            found.addresses.iter().filter(of_kind).partition(|address| usable(**address));
        if given.is_empty() && !withheld.is_empty() {
            return self.empty(ResponseCode::NoError, Some((BLOCKED, Reason::PrivateAddress)));
        }
        let ttl = found.until.saturating_duration_since(now).clamp(MIN_TTL, MAX_TTL);
        self.addresses(given, ttl)
    }

    /// Returns the refusal of a query that could have been answered when it came.
    pub fn refused(&self, reason: Reason) -> DnsReply {
        self.empty(ResponseCode::Refused, Some((PROHIBITED, reason)))
    }

    fn addresses(&self, given: Vec<IpAddr>, ttl: Duration) -> DnsReply {
        let mut message = response(&self.query, ResponseCode::NoError);
        let ttl = u32::try_from(ttl.as_secs()).unwrap_or(1);
        if let Some(query) = self.query.queries.first() {
            let name = query.name();
            let records = given.iter().map(|address| record(name.clone(), ttl, *address));
            message.add_answers(records);
        }
        DnsReply { bytes: encode(&message, self.most_bytes), refused: None, given }
    }

    fn empty(&self, code: ResponseCode, why: Option<(u16, Reason)>) -> DnsReply {
        refusal(&self.query, code, why, self.most_bytes)
    }
}

/// The twelve bytes before anything else (RFC 1035, section 4.1.1).
struct RawHeader {
    id: [u8; 2],
    is_response: bool,
    opcode: u8,
    /// Opcode and "recursion desired", at their places in the third byte.
    echoed: u8,
    counts: [u16; 4],
}

impl RawHeader {
    fn of(message: &[u8]) -> Option<Self> {
        let &[i, d, flags, _, qd, qd2, an, an2, ns, ns2, ar, ar2] = message.first_chunk()?;
        let pair = |high, low| u16::from_be_bytes([high, low]);
        Some(Self {
            id: [i, d],
            is_response: flags & 0x80 != 0,
            opcode: flags >> 3 & 0xf,
            echoed: flags & 0x79,
            counts: [pair(qd, qd2), pair(an, an2), pair(ns, ns2), pair(ar, ar2)],
        })
    }

    /// Returns an answer to a query of which only the header is understood.
    fn error(&self, code: ResponseCode) -> DnsReply {
        let [i, d] = self.id;
        let mut bytes = vec![i, d, 0x80 | self.echoed, RECURSION_AVAILABLE | code.low()];
        bytes.resize(HEADER_BYTES, 0);
        let refused = Some(RefusedQuery { reason: Reason::DnsDenied, asked: None });
        DnsReply { bytes, refused, given: Vec::new() }
    }
}

/// Reads a message that has one question, no records except those beside it, and not a byte after
/// them.
fn read(header: &RawHeader, query: &[u8]) -> Option<Message> {
    let [1, 0, 0, additional] = header.counts else { return None };
    if additional > MAX_ADDITIONAL {
        return None;
    }
    let mut decoder = BinDecoder::new(query);
    // hickory warns about malformed messages, and agents could fill the log with such warnings.
    let quiet = tracing::Dispatch::none();
    let message = tracing::dispatcher::with_default(&quiet, || Message::read(&mut decoder)).ok()?;
    decoder.is_empty().then_some(message)
}

fn judge(asker: Asker<'_>, message: Message) -> QueryVerdict {
    let Some(query) = message.queries.first() else { return QueryVerdict::Silence };
    let (class, kind) = (query.query_class(), query.query_type());
    let most_bytes = most_bytes(asker.datagram, &message);
    let done = |code, why| QueryVerdict::Answered(refusal(&message, code, Some(why), most_bytes));
    if message.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
        return done(ResponseCode::BADVERS, (NOT_SUPPORTED, Reason::DnsDenied));
    }
    if class != DNSClass::IN || !is_answered(kind) {
        return done(ResponseCode::Refused, (NOT_SUPPORTED, Reason::DnsDenied));
    }
    let host = host(query.name()).filter(|host| asker.policy.names(asker.group, host));
    let Some(host) = host else {
        return done(ResponseCode::NXDomain, (BLOCKED, Reason::DnsDenied));
    };
    // No service parameters: they would lead to encrypted hellos and to HTTP/3.
    if !matches!(kind, RecordType::A | RecordType::AAAA)
        || (kind == RecordType::AAAA && !asker.ipv6)
    {
        let reply = refusal(&message, ResponseCode::NoError, None, most_bytes);
        return QueryVerdict::Answered(reply);
    }
    QueryVerdict::Resolve(Box::new(DnsQuestion { query: message, host, most_bytes }))
}

fn is_answered(kind: RecordType) -> bool {
    use RecordType as R;
    matches!(kind, R::A | R::AAAA | R::HTTPS | R::SVCB)
}

/// Returns the name in policy's form. Labels may hold any byte, even a dot, so each is checked.
fn host(name: &Name) -> Option<Host> {
    let mut text = String::with_capacity(name.len());
    for label in name.iter() {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !label.iter().all(plain) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.push_str(std::str::from_utf8(label).ok()?);
    }
    Host::parse(&text).ok()
}

/// Returns the bytes that fit into a datagram which no path between the two has to fragment, and
/// which the agent says it accepts (RFC 6891, section 6.2.5).
fn most_bytes(datagram: bool, message: &Message) -> usize {
    if datagram {
        usize::from(message.max_payload().clamp(PLAIN_BYTES, DATAGRAM_BYTES))
    } else {
        usize::from(u16::MAX)
    }
}

/// Returns an answer without a record. It carries no SOA, so that nobody caches it (RFC 2308,
/// section 5): some stubs that have cached the absence of `openai.example` deny
/// `api.openai.example` as well (RFC 8020), and a new rule that lists a name would have to wait for
/// them.
fn refusal(
    query: &Message,
    code: ResponseCode,
    why: Option<(u16, Reason)>,
    most_bytes: usize,
) -> DnsReply {
    let mut message = response(query, code);
    if let (Some(edns), Some((info, reason))) = (message.edns.as_mut(), why) {
        let text = [info.to_be_bytes().as_slice(), reason.as_str().as_bytes()].concat();
        edns.options_mut().insert(EdnsOption::Unknown(EXTENDED_ERROR, text));
    }
    let refused = why.map(|(_, reason)| RefusedQuery { reason, asked: asked(query) });
    DnsReply { bytes: encode(&message, most_bytes), refused, given: Vec::new() }
}

fn asked(query: &Message) -> Option<(String, String)> {
    let query = query.queries.first()?;
    Some((query.name().to_ascii(), query.query_type().to_string()))
}

fn response(query: &Message, code: ResponseCode) -> Message {
    let mut message = Message::response(query.metadata.id, OpCode::Query);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.checking_disabled = query.metadata.checking_disabled;
    message.metadata.response_code = code;
    message.add_queries(query.queries.iter().cloned());
    if let Some(asked) = &query.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(DATAGRAM_BYTES).set_dnssec_ok(asked.flags().dnssec_ok);
        message.set_edns(edns);
    }
    message
}

fn record(name: Name, ttl: u32, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(v4) => RData::A(v4.into()),
        IpAddr::V6(v6) => RData::AAAA(v6.into()),
    };
    Record::from_rdata(name, ttl, data)
}

/// Encodes an answer. One that is too long is cut, so that the agent asks again over TCP (RFC 2181,
/// section 9).
fn encode(message: &Message, most_bytes: usize) -> Vec<u8> {
    let whole = message.to_vec().ok().filter(|bytes| bytes.len() <= most_bytes);
    whole.or_else(|| message.truncate().to_vec().ok()).unwrap_or_default()
}

/// Option and codes of RFC 8914, sections 2 and 5.2.
const EXTENDED_ERROR: u16 = 15;
const BLOCKED: u16 = 15;
const PROHIBITED: u16 = 18;
const NOT_SUPPORTED: u16 = 21;
const NO_REACHABLE_AUTHORITY: u16 = 22;

const HEADER_BYTES: usize = 12;
const RECURSION_AVAILABLE: u8 = 0x80;
/// Longest datagram to a client that says nothing about its size (RFC 1035, section 2.3.4).
const PLAIN_BYTES: u16 = 512;
/// Longest datagram that is sent (the value of DNS flag day 2020).
const DATAGRAM_BYTES: u16 = 1_232;
/// Most records beside a question: one for EDNS, and a few that are skipped.
const MAX_ADDITIONAL: u16 = 4;
/// Shortest lifetime of an answer. An answer without any makes some clients ask for every
/// connection.
const MIN_TTL: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests;
