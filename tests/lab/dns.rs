//! The resolver that the gateway asks: it answers A and AAAA from a table that tests change as they
//! go, over UDP and TCP and on demand over TLS, and remembers every query.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::CNAME},
};
use rustls::sign::SingleCertAndKey;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
};
use tokio_rustls::TlsAcceptor;

use crate::{
    net::{ATTACKER, DNS, HOSTS, INTERNET},
    pki::Identity,
    wait,
};

/// The name by which a network's translators are found (RFC 7050).
pub const TRANSLATORS: &str = "ipv4only.arpa";

/// The server. A clone is the same server.
#[derive(Clone, Default)]
pub struct Dns {
    state: Arc<Mutex<State>>,
}

/// One query that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The name, lower-cased, without the closing dot.
    pub name: String,
    /// `A`, `AAAA` and so on.
    pub kind: String,
}

/// One query that was received in a datagram.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// The port that it came from.
    pub port: u16,
    /// Its number.
    pub number: u16,
    /// The name in its own letters, with the closing dot.
    pub name: String,
}

/// The way in which the server, or a forger of its address, answers datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Manner {
    /// One answer to each question.
    #[default]
    Plain,
    /// The same, with every name in small letters.
    SmallLetters,
    /// Before the answer comes another, which leads to [`crate::net::ATTACKER`] and differs in
    /// this.
    Forged(Forgery),
}

/// The part of the query that the forger did not guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgery {
    /// The number of the question.
    Number,
    /// The name.
    Name,
    /// The capitals in the name.
    Capitals,
}

/// The server's behaviour for one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These addresses, every time.
    Addresses(Vec<IpAddr>),
    /// One set of addresses after the other, and from the start again after the last: rebinding.
    /// The first query of each record type gets the first set.
    Alternating(Vec<Vec<IpAddr>>),
    /// These addresses; an answer in a datagram says only that they do not fit.
    Truncated(Vec<IpAddr>),
    /// An alias to each of these names in turn; the last name has the addresses.
    Alias(Vec<&'static str>, Vec<IpAddr>),
    /// These addresses, and silence for this record type.
    SilentFor(&'static str, Vec<IpAddr>),
    /// SERVFAIL.
    Fails,
    /// Nothing is sent back.
    Silent,
}

#[derive(Default)]
struct State {
    names: BTreeMap<String, Answer>,
    /// Zones whose names get no answer.
    silent: Vec<String>,
    asked: Vec<Question>,
    datagrams: Vec<Datagram>,
    manner: Manner,
    /// The delay of answers in datagrams.
    late: Duration,
    /// Whether streams are closed as soon as they are opened.
    no_streams: bool,
    turns: BTreeMap<(String, String), usize>,
    /// The TTL of every answer. 0 by default, so that nothing caches it, because tests change
    /// answers.
    ttl: u32,
}

impl Dns {
    /// Starts with the lab's hosts in the table.
    ///
    /// # Panics
    /// When port 53 cannot be bound.
    pub fn start() -> Self {
        let dns = Self::default();
        for host in HOSTS {
            dns.set(host.name, &[host.v4().into(), host.v6().into()]);
        }
        let (udp, tcp) = INTERNET.enter(|| {
            let udp = std::net::UdpSocket::bind((DNS, 53)).expect("port 53");
            let tcp = std::net::TcpListener::bind((DNS, 53)).expect("port 53");
            (udp, tcp)
        });
        udp.set_nonblocking(true).expect("a socket");
        tcp.set_nonblocking(true).expect("a socket");
        let server = dns.clone();
        INTERNET.spawn(|| async move {
            let udp = UdpSocket::from_std(udp).expect("a runtime");
            let tcp = TcpListener::from_std(tcp).expect("a runtime");
            tokio::join!(server.serve_udp(udp), server.serve_tcp(tcp));
        });
        dns
    }

    /// Returns the address on which it listens.
    pub fn address() -> SocketAddr {
        SocketAddr::from((DNS, 53))
    }

    /// Gives `name` these addresses from now on.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        self.script(name, Answer::Addresses(addresses.to_vec()));
    }

    /// Makes `name` behave like this from now on.
    pub fn script(&self, name: &str, answer: Answer) {
        self.state().names.insert(name.to_owned(), answer);
    }

    /// Makes all names under `zone` get no answer from now on.
    pub fn silence(&self, zone: &str) {
        self.state().silent.push(format!(".{zone}"));
    }

    /// Lets answers be cached for so many seconds from now on.
    pub fn set_ttl(&self, seconds: u32) {
        self.state().ttl = seconds;
    }

    /// Returns every query so far, without those that the gateway sends of its own accord:
    /// [`TRANSLATORS`].
    pub fn asked(&self) -> Vec<Question> {
        let state = self.state();
        let for_somebody = state.asked.iter().filter(|question| question.name != TRANSLATORS);
        for_somebody.cloned().collect()
    }

    /// Answers datagrams in this way from now on.
    pub fn behave(&self, manner: Manner) {
        self.state().manner = manner;
    }

    /// Answers each datagram after this time from now on.
    pub fn answer_after(&self, time: Duration) {
        self.state().late = time;
    }

    /// Answers only datagrams from now on.
    pub fn close_streams(&self) {
        self.state().no_streams = true;
    }

    /// Returns every query so far that was received in a datagram.
    pub fn datagrams(&self) -> Vec<Datagram> {
        self.state().datagrams.clone()
    }

    /// Returns whether anybody has asked for `name` so far.
    pub fn was_asked(&self, name: &str) -> bool {
        self.state().asked.iter().any(|question| question.name == name)
    }

    /// Waits until somebody asks for `name`.
    ///
    /// # Panics
    /// When nobody does.
    pub fn wait_asked(&self, name: &str) {
        wait::expect(&format!("a question for {name}"), || self.was_asked(name));
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers over TLS as well from now on (RFC 7858), on port 853 and with this certificate.
    ///
    /// # Panics
    /// When the port cannot be bound, or the default TLS provider is missing.
    pub fn start_tls(&self, identity: &Identity) {
        let certificate = Arc::new(SingleCertAndKey::from(identity.certified()));
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let acceptor = TlsAcceptor::from(Arc::new(config.with_cert_resolver(certificate)));
        let listener = INTERNET.enter(|| std::net::TcpListener::bind((DNS, 853)));
        let listener = listener.expect("port 853");
        listener.set_nonblocking(true).expect("a socket");
        let server = self.clone();
        INTERNET.spawn(|| async move {
            let listener = TcpListener::from_std(listener).expect("a runtime");
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (server, acceptor) = (server.clone(), acceptor.clone());
                tokio::spawn(async move { server.talk(acceptor.accept(stream).await.ok()?).await });
            }
        });
    }

    async fn serve_udp(&self, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut buffer = [0; 4096];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
            let query = &buffer[..length];
            self.note(query, from.port());
            let manner = self.state().manner;
            let late = self.state().late;
            let forged = match manner {
                Manner::Forged(forgery) => forged(query, forgery),
                _ => None,
            };
            let mut reply = self.reply(query, true);
            // After the header, only bytes of names look like letters.
            let rest = reply.as_mut().and_then(|reply| reply.get_mut(12..));
            if manner == Manner::SmallLetters
                && let Some(rest) = rest
            {
                rest.make_ascii_lowercase();
            }
            let (socket, replies) = (Arc::clone(&socket), forged.into_iter().chain(reply));
            let send = async move {
                for reply in replies {
                    // A client that has gone away needs no answer.
                    let _ = socket.send_to(&reply, from).await;
                }
            };
            match late.is_zero() {
                true => send.await,
                false => drop(tokio::spawn(async move {
                    tokio::time::sleep(late).await;
                    send.await;
                })),
            }
        }
    }

    fn note(&self, query: &[u8], port: u16) {
        let Ok(message) = Message::from_vec(query) else { return };
        let name = message.queries.first().map(|question| question.name.to_ascii());
        let number = message.metadata.id;
        let name = name.unwrap_or_default();
        self.state().datagrams.push(Datagram { port, number, name });
    }

    async fn serve_tcp(&self, listener: TcpListener) {
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            if self.state().no_streams {
                continue;
            }
            let server = self.clone();
            tokio::spawn(async move { server.talk(stream).await });
        }
    }

    async fn talk(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> Option<()> {
        loop {
            let length = stream.read_u16().await.ok()?;
            let mut query = vec![0; usize::from(length)];
            stream.read_exact(&mut query).await.ok()?;
            let Some(reply) = self.reply(&query, false) else { continue };
            stream.write_u16(u16::try_from(reply.len()).ok()?).await.ok()?;
            stream.write_all(&reply).await.ok()?;
        }
    }

    fn reply(&self, query: &[u8], datagram: bool) -> Option<Vec<u8>> {
        let mut message = Message::from_vec(query).ok()?;
        let question = message.queries.first()?.clone();
        let name = question.name.to_string().trim_end_matches('.').to_ascii_lowercase();
        let kind = question.query_type;
        let answer = self.answer(&name, kind)?;
        message.metadata.message_type = MessageType::Response;
        message.metadata.recursion_available = true;
        message.metadata.response_code = answer.as_ref().err().copied().unwrap_or_default();
        message.additionals.clear();
        if datagram && matches!(self.state().names.get(&name), Some(Answer::Truncated(_))) {
            message.metadata.truncation = true;
            return message.to_vec().ok();
        }
        let ttl = self.state().ttl;
        let mut owner = question.name.clone();
        for alias in self.aliases(&name) {
            let target = Name::from_ascii(format!("{alias}.")).ok()?;
            let data = RData::CNAME(CNAME(target.clone()));
            message.add_answer(Record::from_rdata(owner, ttl, data));
            owner = target;
        }
        for address in answer.unwrap_or_default() {
            let data = match (address, kind) {
                (IpAddr::V4(v4), RecordType::A) => RData::A(v4.into()),
                (IpAddr::V6(v6), RecordType::AAAA) => RData::AAAA(v6.into()),
                _ => continue,
            };
            message.add_answer(Record::from_rdata(owner.clone(), ttl, data));
        }
        message.to_vec().ok()
    }

    fn aliases(&self, name: &str) -> Vec<&'static str> {
        match self.state().names.get(name) {
            Some(Answer::Alias(aliases, _)) => aliases.clone(),
            _ => Vec::new(),
        }
    }

    /// Returns the answer; `None` where nothing is sent.
    fn answer(&self, name: &str, kind: RecordType) -> Option<Result<Vec<IpAddr>, ResponseCode>> {
        let mut state = self.state();
        state.asked.push(Question { name: name.to_owned(), kind: kind.to_string() });
        let turn = state.turns.entry((name.to_owned(), kind.to_string())).or_default();
        let now = std::mem::replace(turn, turn.wrapping_add(1));
        if state.silent.iter().any(|zone| name.ends_with(zone)) {
            return None;
        }
        match state.names.get(name) {
            None => Some(Err(ResponseCode::NXDomain)),
            Some(
                Answer::Addresses(addresses)
                | Answer::Truncated(addresses)
                | Answer::Alias(_, addresses),
            ) => Some(Ok(addresses.clone())),
            Some(Answer::SilentFor(silent, addresses)) => {
                (kind.to_string() != *silent).then(|| Ok(addresses.clone()))
            }
            Some(Answer::Alternating(sets)) => {
                Some(Ok(sets.get(now % sets.len().max(1)).cloned().unwrap_or_default()))
            }
            Some(Answer::Fails) => Some(Err(ResponseCode::ServFail)),
            Some(Answer::Silent) => None,
        }
    }
}

/// Returns an answer that leads to the attacker, and that fits the query except for the part that
/// was not guessed.
fn forged(query: &[u8], forgery: Forgery) -> Option<Vec<u8>> {
    let mut message = Message::from_vec(query).ok()?;
    let question = message.queries.first_mut()?;
    let name = question.name.to_ascii();
    match forgery {
        Forgery::Number => message.metadata.id ^= 1,
        Forgery::Name => question.name = Name::from_ascii(format!("x{name}")).ok()?,
        Forgery::Capitals => {
            let other = |letter: char| match letter {
                small if small.is_ascii_lowercase() => small.to_ascii_uppercase(),
                other => other.to_ascii_lowercase(),
            };
            question.name = Name::from_ascii(name.chars().map(other).collect::<String>()).ok()?;
        }
    }
    let owner = question.name.clone();
    let data = match question.query_type {
        RecordType::A => RData::A(ATTACKER.v4().into()),
        _ => RData::AAAA(ATTACKER.v6().into()),
    };
    message.metadata.message_type = MessageType::Response;
    message.additionals.clear();
    message.add_answer(Record::from_rdata(owner, 300, data));
    message.to_vec().ok()
}
