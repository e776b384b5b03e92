//! Checks of the resolvers' datagrams, each of which may be forged (RFC 5452).
//!
//! A query has a port, a number and a mixture of capitals (draft-vixie-dnsext-dns0x20) that nobody
//! can guess, and hickory makes all three. Here an answer is compared with them. An answer that
//! differs in any is not believed, and the query is repeated over TCP, where nobody can answer in
//! the resolver's place. hickory itself only waits on after a wrong number or question, so that an
//! attacker could go on guessing.
//!
//! Some resolvers write every name in small letters. A resolver that has done so several times in a
//! row, with the right port and number, is believed without the capitals from then on, until it
//! keeps them again.

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hickory_resolver::net::runtime::{
    DnsUdpSocket, RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime,
};
use tokio::{io::ReadBuf, net::UdpSocket};

use crate::locks::lock;

/// The tokio runtime, with sockets that check what they receive.
#[derive(Clone)]
pub(super) struct Distrustful {
    tokio: TokioRuntimeProvider,
    servers: Arc<HashMap<SocketAddr, Arc<ResolverState>>>,
}

/// The state of one resolver.
#[derive(Default)]
pub(super) struct ResolverState {
    /// Answers in a row that did not keep the capitals.
    folded: AtomicU32,
    /// The time at which a forgery was last logged.
    last_logged: Mutex<Option<Instant>>,
}

/// A socket for one query.
pub(super) struct Socket {
    socket: UdpSocket,
    address: SocketAddr,
    server: Arc<ResolverState>,
    query: Mutex<Vec<u8>>,
}

/// The relation of a datagram to the query that was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DatagramMatch {
    /// It answers this very query.
    Exact,
    /// It answers the query, except for its capitals.
    Folded,
    /// It answers no query of ours.
    Forged,
}

impl Distrustful {
    /// Creates a runtime that asks these servers.
    pub(super) fn new(servers: impl Iterator<Item = SocketAddr>) -> Self {
        let servers = servers.map(|address| (address, Arc::default())).collect();
        Self { tokio: TokioRuntimeProvider::default(), servers: Arc::new(servers) }
    }
}

impl RuntimeProvider for Distrustful {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = Socket;
    type Tcp = <TokioRuntimeProvider as RuntimeProvider>::Tcp;

    fn create_handle(&self) -> Self::Handle {
        self.tokio.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        local: Option<SocketAddr>,
        timeout: Option<Duration>,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Tcp>>>> {
        self.tokio.connect_tcp(server, local, timeout)
    }

    fn bind_udp(
        &self,
        local: SocketAddr,
        address: SocketAddr,
    ) -> Pin<Box<dyn Send + Future<Output = io::Result<Self::Udp>>>> {
        let server = self.servers.get(&address).cloned().unwrap_or_default();
        Box::pin(async move {
            let socket = UdpSocket::bind(local).await?;
            Ok(Socket { socket, address, server, query: Mutex::default() })
        })
    }
}

impl DnsUdpSocket for Socket {
    type Time = TokioTime;

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        loop {
            let mut read = ReadBuf::new(buffer);
            let from = ready!(self.socket.poll_recv_from(cx, &mut read))?;
            let length = read.filled().len();
            // The sender did not even forge the resolver's address.
            if (from.ip().to_canonical(), from.port()) != (self.address.ip(), self.address.port()) {
                continue;
            }
            let query = lock(&self.query);
            return Poll::Ready(Ok((
                self.server.weigh(&query, buffer, length, self.address),
                from,
            )));
        }
    }

    fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        query: &[u8],
        to: SocketAddr,
    ) -> Poll<io::Result<usize>> {
        query.clone_into(&mut lock(&self.query));
        self.socket.poll_send_to(cx, query, to)
    }
}

impl ResolverState {
    /// Replaces the datagram in the buffer by the answer to pass on, and returns its length: the
    /// datagram itself, or an answer that says to ask over TCP.
    fn weigh(&self, query: &[u8], buffer: &mut [u8], length: usize, address: SocketAddr) -> usize {
        match DatagramMatch::is(query, buffer.get(..length).unwrap_or_default()) {
            DatagramMatch::Exact => {
                self.folded.store(0, Relaxed);
                length
            }
            DatagramMatch::Folded if self.keeps_no_capitals(address) => {
                write(buffer, HEADER_BYTES, question(query));
                length
            }
            DatagramMatch::Folded => ask_over_tcp(query, buffer),
            DatagramMatch::Forged => {
                self.tell_forgery(address);
                ask_over_tcp(query, buffer)
            }
        }
    }

    /// Counts an answer without the capitals, and returns whether that is the resolver's habit.
    fn keeps_no_capitals(&self, address: SocketAddr) -> bool {
        let before = self.folded.fetch_update(Relaxed, Relaxed, |count| count.checked_add(1));
        let before = before.unwrap_or(u32::MAX);
        if before == FOLDS_BY_HABIT {
            tracing::info!(resolver = %address, "writes names in small letters; taken as it is");
        }
        before >= FOLDS_BY_HABIT
    }

    /// Logs, once in a while, that a sender who can use the resolver's address has found the port
    /// of a query.
    fn tell_forgery(&self, address: SocketAddr) {
        let mut last_logged = lock(&self.last_logged);
        if last_logged.is_none_or(|last| last.elapsed() >= TELL_EVERY) {
            *last_logged = Some(Instant::now());
            tracing::warn!(
                resolver = %address,
                "an answer to no question of ours came in its name; it is asked over TCP"
            );
        }
    }
}

impl DatagramMatch {
    fn is(query: &[u8], answer: &[u8]) -> Self {
        let asked = question(query);
        let to_us = answer.get(..NUMBER_BYTES) == query.get(..NUMBER_BYTES)
            && answer.get(2).is_some_and(|flags| flags & IS_ANSWER != 0)
            && answer.get(QUESTIONS) == Some(&ONE);
        match answer.get(HEADER_BYTES..).and_then(|rest| rest.get(..asked.len())) {
            Some(told) if to_us && told == asked => Self::Exact,
            Some(told) if to_us && told.eq_ignore_ascii_case(asked) => Self::Folded,
            _ => Self::Forged,
        }
    }
}

/// Returns the name, type and class that a query of ours asks for (RFC 1035, section 4.1.2).
fn question(query: &[u8]) -> &[u8] {
    let rest = query.get(HEADER_BYTES..).unwrap_or_default();
    let mut end = 0;
    while let Some(length @ 1..) = rest.get(end) {
        end += 1 + usize::from(*length);
    }
    rest.get(..end + ROOT_TYPE_CLASS_BYTES).unwrap_or_default()
}

/// Writes an answer to the query that says it does not fit a datagram, and returns its length.
fn ask_over_tcp(query: &[u8], buffer: &mut [u8]) -> usize {
    let asked = question(query);
    buffer.fill(0);
    write(buffer, 0, query.get(..NUMBER_BYTES).unwrap_or_default());
    write(buffer, NUMBER_BYTES, &[IS_ANSWER | IS_TRUNCATED]);
    write(buffer, QUESTIONS.start, &ONE);
    write(buffer, HEADER_BYTES, asked);
    HEADER_BYTES + asked.len()
}

fn write(buffer: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(room) = buffer.get_mut(at..at + bytes.len()) {
        room.copy_from_slice(bytes);
    }
}

/// Answers in small letters that are repeated over TCP before they count as the resolver's habit.
/// To forge one of them takes a lucky port and number, and to establish the habit takes all of them
/// in a row.
const FOLDS_BY_HABIT: u32 = 4;
/// Interval at which forged answers are logged.
const TELL_EVERY: Duration = Duration::from_secs(60);

// RFC 1035, section 4.1.1.
const HEADER_BYTES: usize = 12;
const NUMBER_BYTES: usize = 2;
const IS_ANSWER: u8 = 0x80;
const IS_TRUNCATED: u8 = 0x02;
/// The place of the number of questions.
const QUESTIONS: std::ops::Range<usize> = 4..6;
const ONE: [u8; 2] = [0, 1];
/// The byte that ends a name, and the two numbers after it.
const ROOT_TYPE_CLASS_BYTES: usize = 1 + 2 + 2;

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::{
        op::{DnsRequest, DnsRequestOptions, Message, MessageType, Query},
        rr::{Name, RecordType},
    };

    use super::*;

    const ADDRESS: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 53);

    fn query() -> Vec<u8> {
        let name = Name::from_ascii("aPi.OpenAI.example.").unwrap();
        let mut options = DnsRequestOptions::default();
        options.use_edns = true;
        let query = Query::query(name, RecordType::AAAA);
        DnsRequest::from_query(query, options).to_vec().unwrap()
    }

    fn answer(query: &[u8]) -> Vec<u8> {
        let mut answer = query.to_vec();
        answer[2] |= IS_ANSWER;
        answer
    }

    /// Returns the answer that is passed on.
    fn weighed(server: &ResolverState, query: &[u8], answer: &[u8]) -> Message {
        let mut buffer = vec![0xff; 1_232];
        buffer[..answer.len()].copy_from_slice(answer);
        let length = server.weigh(query, &mut buffer, answer.len(), ADDRESS);
        Message::from_vec(&buffer[..length]).unwrap()
    }

    #[test]
    fn an_answer_wrong_in_any_bit_is_retried_over_tcp() {
        let query = query();
        let asked = HEADER_BYTES..HEADER_BYTES + question(&query).len();
        assert_eq!(asked.len(), "3api6openai7example0".len() + 4);
        let good = answer(&query);
        assert_eq!(DatagramMatch::is(&query, &good), DatagramMatch::Exact);
        for byte in (0..2).chain(4..6).chain(asked) {
            for bit in 0..8 {
                let mut changed = good.clone();
                changed[byte] ^= 1 << bit;
                let found = DatagramMatch::is(&query, &changed);
                let case = changed.eq_ignore_ascii_case(&good) && byte >= HEADER_BYTES;
                let wanted = if case { DatagramMatch::Folded } else { DatagramMatch::Forged };
                assert_eq!(found, wanted, "byte {byte}, bit {bit}");
                let made = weighed(&ResolverState::default(), &query, &changed);
                assert!(made.metadata.truncation && made.answers.is_empty());
                assert_eq!(made.metadata.message_type, MessageType::Response);
                let original = Message::from_vec(&query).unwrap();
                assert_eq!(made.metadata.id, original.metadata.id);
                assert!(made.queries[0].name().eq_case(original.queries[0].name()));
            }
        }
        for length in 0..HEADER_BYTES + question(&query).len() {
            assert_eq!(
                DatagramMatch::is(&query, &good[..length]),
                DatagramMatch::Forged,
                "{length}"
            );
        }
        assert_eq!(
            DatagramMatch::is(&query, &query),
            DatagramMatch::Forged,
            "a query is no answer"
        );
    }

    #[test]
    fn a_resolver_of_small_letters_is_taken_as_it_is() {
        let (server, query) = (ResolverState::default(), query());
        let good = answer(&query);
        let mut small = good.clone();
        small[HEADER_BYTES..].make_ascii_lowercase();
        let truncated = |answer: &[u8]| weighed(&server, &query, answer).metadata.truncation;
        for _ in 0..3 {
            for _ in 0..FOLDS_BY_HABIT {
                assert!(truncated(&small));
            }
            for _ in 0..10 {
                let taken = weighed(&server, &query, &small);
                assert!(!taken.metadata.truncation);
                assert_eq!(taken.queries[0].name().to_ascii(), "aPi.OpenAI.example.");
            }
            assert!(!truncated(&good));
        }
    }
}
