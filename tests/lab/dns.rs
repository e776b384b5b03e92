//! The resolver that the gateway asks: answers A and AAAA from a table that tests change as they
//! go, over UDP and TCP and on demand over TLS, and remembers every question.

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

/// One question that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The name, lower-cased, without the closing dot.
    pub name: String,
    /// `A`, `AAAA` and so on.
    pub kind: String,
}

/// One question that came in a datagram, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// The port that it came from.
    pub port: u16,
    /// Its number.
    pub number: u16,
    /// The name in its own letters, with the closing dot.
    pub name: String,
}

/// How the server, or whoever sends in its name, treats datagrams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Manner {
    /// One answer to each question.
    #[default]
    Plain,
    /// The same, with every name in small letters.
    SmallLetters,
    /// Before it comes another, which leads to [`crate::net::ATTACKER`] and differs in this.
    Forged(Forgery),
}

/// What somebody did not guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgery {
    /// The number of the question.
    Number,
    /// The name.
    Name,
    /// Which letters of the name are capitals.
    Capitals,
}

/// How the server behaves for one name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// These addresses, every time.
    Addresses(Vec<IpAddr>),
    /// One set after the other, from the start again after the last: rebinding. The first question
    /// of each record type gets the first set.
    Alternating(Vec<Vec<IpAddr>>),
    /// These addresses, of which a datagram says only that there are too many for it.
    Truncated(Vec<IpAddr>),
    /// An alias of each of these names in turn, the last of which has the addresses.
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
    /// Names in these zones get no answer.
    silent: Vec<String>,
    asked: Vec<Question>,
    datagrams: Vec<Datagram>,
    manner: Manner,
    /// Datagrams are answered so much later.
    late: Duration,
    /// Streams are closed as soon as they are opened.
    no_streams: bool,
    turns: BTreeMap<(String, String), usize>,
    /// Of every answer. 0, which nothing may remember, because tests change answers as they go.
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

    /// Where it listens.
    pub fn address() -> SocketAddr {
        SocketAddr::from((DNS, 53))
    }

    /// From now on `name` has these addresses.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        self.script(name, Answer::Addresses(addresses.to_vec()));
    }

    /// From now on `name` behaves like this.
    pub fn script(&self, name: &str, answer: Answer) {
        self.state().names.insert(name.to_owned(), answer);
    }

    /// From now on no name under `zone` gets an answer.
    pub fn silence(&self, zone: &str) {
        self.state().silent.push(format!(".{zone}"));
    }

    /// From now on answers may be remembered for so many seconds.
    pub fn set_ttl(&self, seconds: u32) {
        self.state().ttl = seconds;
    }

    /// Every question so far, except for what the gateway asks of its own accord: [`TRANSLATORS`].
    pub fn asked(&self) -> Vec<Question> {
        let state = self.state();
        let for_somebody = state.asked.iter().filter(|question| question.name != TRANSLATORS);
        for_somebody.cloned().collect()
    }

    /// From now on it treats datagrams like this.
    pub fn behave(&self, manner: Manner) {
        self.state().manner = manner;
    }

    /// From now on it answers datagrams after this time, each by itself.
    pub fn answer_after(&self, time: Duration) {
        self.state().late = time;
    }

    /// From now on it answers in datagrams alone.
    pub fn close_streams(&self) {
        self.state().no_streams = true;
    }

    /// Every question so far that came in a datagram.
    pub fn datagrams(&self) -> Vec<Datagram> {
        self.state().datagrams.clone()
    }

    /// Whether anybody asked for `name` so far.
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

    /// From now on it answers over TLS as well (RFC 7858), on port 853 and with this certificate.
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
            // Behind the header no byte but those of names looks like a letter.
            let rest = reply.as_mut().and_then(|reply| reply.get_mut(12..));
            if manner == Manner::SmallLetters
                && let Some(rest) = rest
            {
                rest.make_ascii_lowercase();
            }
            let (socket, replies) = (Arc::clone(&socket), forged.into_iter().chain(reply));
            let send = async move {
                for reply in replies {
                    // A client that went away is not the server's concern.
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

    /// `None`: say nothing.
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

/// An answer that leads to the attacker, to all of the query but what was not guessed.
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
