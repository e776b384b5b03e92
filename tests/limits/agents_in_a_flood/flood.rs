//! The agent that does too much, at a steady pace and in both families by turns.

use std::{
    collections::VecDeque,
    io::{self, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use hickory_proto::rr::RecordType;
use lab::{
    client::{self, Hello, Tls},
    net::{AGENT, GATEWAY_V4, GATEWAY_V6, OPENAI, OTHER},
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::Value;

use crate::{
    attack::{
        raw_h2::{CONTINUATION, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, RawH2},
        raw_h2::{SETTINGS, block, fields, frame},
    },
    dns::client::query,
    lifecycle::control::order,
    world::World,
};

/// The work of which the first agent does too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Connections that send nothing, and some that are dropped at once.
    Connections,
    /// ClientHellos, some of them long, HTTP/1.1 heads and HTTP/2 header blocks a byte at a time.
    SlowHeads,
    /// HTTP/2 requests that an API does not answer.
    Requests,
    /// HTTP/2 streams that are reset as soon as they are opened.
    Streams,
    /// HTTP/2 frames without a request that have to be read, some of them also answered.
    Frames,
    /// DNS queries, half of them for names that do not exist.
    Questions,
}

impl Kind {
    /// Returns the number of attempts that makes a flood, on a machine with other work: several
    /// times what the limits let through in the time.
    fn enough(self) -> u64 {
        match self {
            Self::Connections => 20_000,
            Self::SlowHeads => 8_000,
            Self::Requests => 5_000,
            Self::Streams => 10_000,
            Self::Frames => 50_000,
            Self::Questions => 15_000,
        }
    }

    /// Returns whether it takes all the connections that its agent may have.
    pub(super) fn takes_connections(self) -> bool {
        matches!(self, Self::Connections | Self::SlowHeads)
    }

    /// Returns whether it takes all that its agent may have of something, which needs time.
    pub(super) fn fills(self) -> bool {
        self.takes_connections() || self == Self::Requests
    }

    /// Returns the kind of record and the reason with which the audit reports that it reached a
    /// limit, if each refusal has a record.
    pub(super) fn refusal(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Connections | Self::SlowHeads => Some(("connection", "connection_limit")),
            Self::Requests => Some(("request", "rate_limit")),
            Self::Streams | Self::Frames | Self::Questions => None,
        }
    }
}

pub(super) struct Flood {
    pub(super) kind: Kind,
    /// Whether it goes on now.
    pub(super) on: AtomicBool,
    /// Whether it has come to its end.
    pub(super) over: AtomicBool,
    tried: AtomicU64,
    /// Refusals over IPv4 and over IPv6.
    refused: [AtomicU64; 2],
    /// The most connections that the gateway held when it was asked.
    most_held: AtomicU64,
    h1: Hello,
    h2: Hello,
    /// A ClientHello.
    greeting: Vec<u8>,
}

/// The open connections of a flood.
#[derive(Default)]
struct Held {
    /// Connections that were just opened; some of them are reset soon.
    young: VecDeque<(usize, TcpStream)>,
    plain: VecDeque<TcpStream>,
    heads: VecDeque<(usize, Slow)>,
    streams: [Option<(RawH2, u32)>; 2],
    requests: [VecDeque<(RawH2, u32)>; 2],
    sockets: [Option<UdpSocket>; 2],
    ticks: u64,
}

impl Held {
    /// Returns the family of this turn, 0 for IPv4 and 1 for IPv6, with an API's address in it.
    fn family(&self) -> (usize, SocketAddr) {
        [(0, OPENAI.port(443)), (1, OPENAI.port6(443))][self.ticks as usize % 2]
    }
}

/// A head that is being sent.
enum Slow {
    Hello(TcpStream),
    H1(Box<Tls>),
    H2(Box<RawH2>),
}

impl Flood {
    pub(super) fn new(world: &World, kind: Kind) -> Self {
        let h1 = world.hello(OPENAI.name);
        let h2 = Hello { alpn: vec![b"h2"], ..world.hello(OPENAI.name) };
        let (on, over) = (AtomicBool::new(false), AtomicBool::new(false));
        let (tried, refused, most_held) = Default::default();
        let greeting = client::client_hello(&h1);
        Self { kind, on, over, tried, refused, most_held, h1, h2, greeting }
    }

    /// Returns the number of attempts.
    pub(super) fn tried(&self) -> u64 {
        self.tried.load(Relaxed)
    }

    /// Returns how many attempts were refused over IPv4 and over IPv6.
    pub(super) fn refused(&self) -> [u64; 2] {
        self.refused.each_ref().map(|count| count.load(Relaxed))
    }

    /// Returns the most connections that the gateway held when it was asked.
    pub(super) fn most_held(&self) -> u64 {
        self.most_held.load(Relaxed)
    }

    /// Asks how many connections the gateway holds at this moment.
    pub(super) fn look(&self, world: &World) {
        self.most_held.fetch_max(held(world), Relaxed);
    }

    /// Returns whether it is a flood by now: it tried enough, the gateway held as many connections
    /// as two agents may have, one in each family, and a flood of streams was ended in both.
    pub(super) fn is_one(&self) -> bool {
        let full = !self.kind.takes_connections() || self.most_held() >= 2 * OF_ONE - ON_THEIR_WAY;
        let ended = self.kind != Kind::Streams || self.refused().iter().all(|count| *count > 0);
        self.tried() > self.kind.enough() && full && ended
    }

    /// Floods until it is over, on a thread of lower priority.
    pub(super) fn run(&self) {
        rustix::process::setpriority_process(None, NICE).expect("a thread may be nice");
        let most = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).expect("to the limit");
        let mut held = Held::default();
        while !self.over.load(Relaxed) {
            let begun = Instant::now();
            if self.on.load(Relaxed) {
                self.tick(&mut held);
            } else {
                held = Held::default();
            }
            thread::sleep(TICK.saturating_sub(begun.elapsed()));
        }
    }

    fn tick(&self, held: &mut Held) {
        held.ticks += 1;
        match self.kind {
            Kind::Connections => (0..20).for_each(|_| self.connect(held)),
            Kind::SlowHeads => self.trickle(held),
            Kind::Requests => self.request(held),
            Kind::Streams => self.reset_streams(held),
            Kind::Frames => self.send_frames(held),
            Kind::Questions => self.ask(held),
        }
    }

    fn count<T>(&self, family: usize, done: io::Result<T>) -> Option<T> {
        self.tried.fetch_add(1, Relaxed);
        self.refused[family].fetch_add(u64::from(done.is_err()), Relaxed);
        done.ok()
    }

    fn connect(&self, held: &mut Held) {
        let to = [OPENAI.port(443), OPENAI.port6(443), OTHER.port(80), OTHER.port6(443)];
        let at = self.tried.load(Relaxed) as usize;
        let family = at % 2;
        let opened = TcpStream::connect_timeout(&to[at % to.len()], Duration::from_secs(1));
        let dropped = at.is_multiple_of(19);
        held.young.extend(self.count(family, opened).filter(|_| !dropped).map(|it| (family, it)));
        let grown = self.grown(held);
        held.plain.extend(grown.map(|(_, stream)| stream));
        if held.plain.len() > 4 * OF_ONE as usize {
            held.plain.pop_front();
        }
    }

    /// Returns the oldest of the young connections, if it is old enough and still open.
    fn grown(&self, held: &mut Held) -> Option<(usize, TcpStream)> {
        if held.young.len() <= YOUNG {
            return None;
        }
        let (family, stream) = held.young.pop_front()?;
        if is_open(&stream) {
            return Some((family, stream));
        }
        self.refused[family].fetch_add(1, Relaxed);
        None
    }

    fn trickle(&self, held: &mut Held) {
        let (family, to) = held.family();
        match held.ticks / 2 % 10 {
            0 => self.begin(held, family, self.slow_h1(to)),
            1 => self.begin(held, family, self.slow_h2(to)),
            2 => self.hello(held, family, to, &long_hello()),
            _ => {}
        }
        (0..20).for_each(|_| self.hello(held, family, to, &self.greeting[..50]));
        for _ in 0..held.heads.len().min(10) {
            let Some((family, mut slow)) = held.heads.pop_front() else { break };
            let alive = match &mut slow {
                Slow::Hello(stream) => stream.write_all(&[0]),
                Slow::H1(tls) => tls.send("a"),
                Slow::H2(h2) => h2.send(frame(CONTINUATION, 0, 1, b"")),
            };
            match alive {
                Ok(()) => held.heads.push_back((family, slow)),
                Err(_) => drop(self.refused[family].fetch_add(1, Relaxed)),
            }
        }
    }

    fn begin(&self, held: &mut Held, family: usize, slow: io::Result<Slow>) {
        held.heads.extend(self.count(family, slow).map(|slow| (family, slow)));
    }

    fn hello(&self, held: &mut Held, family: usize, to: SocketAddr, beginning: &[u8]) {
        let opened = TcpStream::connect_timeout(&to, Duration::from_secs(1));
        let begun = opened.and_then(|mut stream| stream.write_all(beginning).map(|()| stream));
        held.young.extend(self.count(family, begun).map(|stream| (family, stream)));
        let grown = self.grown(held);
        held.heads.extend(grown.map(|(family, stream)| (family, Slow::Hello(stream))));
    }

    fn slow_h1(&self, to: SocketAddr) -> io::Result<Slow> {
        let mut tls = Tls::open(AGENT, to, &self.h1)?;
        tls.send("POST /v1/chat/completions HTTP/1.1\r\nX-Slow: ")?;
        Ok(Slow::H1(Box::new(tls)))
    }

    fn slow_h2(&self, to: SocketAddr) -> io::Result<Slow> {
        let fields = fields("GET", OPENAI.name, "/v1/x", &[]);
        let mut h2 = RawH2::open(AGENT, to, &self.h2)?;
        h2.send(frame(HEADERS, END_STREAM, 1, &block(&fields)[..10]))?;
        Ok(Slow::H2(Box::new(h2)))
    }

    fn request(&self, held: &mut Held) {
        let (family, to) = held.family();
        let open = &mut held.requests[family];
        if open.back().is_none_or(|(_, next)| *next > 2 * OF_A_CONNECTION) {
            let opened = RawH2::open(AGENT, to, &self.h2);
            open.extend(opened.ok().map(|h2| (h2, 1)));
        }
        // Refused requests are over, and the others are in the connections before.
        if open.len() > CONNECTIONS_WITH_REQUESTS {
            open.remove(CONNECTIONS_WITH_REQUESTS - 1);
        }
        let Some((h2, next)) = open.back_mut() else { return };
        let key = [("authorization", "Bearer OPENAI_API_KEY")];
        let head = block(&fields("GET", OPENAI.name, "/slow?ms=60000", &key));
        for _ in 0..10 {
            let sent = h2.send(frame(HEADERS, END_HEADERS | END_STREAM, *next, &head));
            *next += 2;
            self.count(family, sent);
        }
    }

    fn send_frames(&self, held: &mut Held) {
        let (family, to) = held.family();
        if held.streams[family].is_none() {
            held.streams[family] = RawH2::open(AGENT, to, &self.h2).ok().map(|h2| (h2, 1));
        }
        let Some((h2, _)) = &mut held.streams[family] else { return };
        let kinds =
            [frame(SETTINGS, 0, 0, b""), frame(UNKNOWN, 0, 0, b"x"), frame(PING, 0, 0, &[0; 8])];
        let frames = kinds.concat().repeat(30);
        self.tried.fetch_add(90, Relaxed);
        if h2.send(frames).is_err() {
            self.refused[family].fetch_add(90, Relaxed);
            held.streams[family] = None;
        }
    }

    fn reset_streams(&self, held: &mut Held) {
        let (family, to) = held.family();
        if held.streams[family].is_none() {
            let opened = RawH2::open(AGENT, to, &self.h2);
            held.streams[family] = opened.ok().map(|h2| (h2, 1));
        }
        let Some((h2, next)) = &mut held.streams[family] else { return };
        let ask = fields(
            "GET",
            OPENAI.name,
            "/slow?ms=50",
            &[("authorization", "Bearer OPENAI_API_KEY")],
        );
        let head = block(&ask);
        let mut frames = Vec::new();
        for _ in 0..50 {
            frames.extend(frame(HEADERS, END_HEADERS | END_STREAM, *next, &head));
            frames.extend(frame(RST_STREAM, 0, *next, &[0, 0, 0, 8]));
            *next += 2;
        }
        self.tried.fetch_add(50, Relaxed);
        if h2.send(frames).is_err() {
            self.refused[family].fetch_add(50, Relaxed);
            held.streams[family] = None;
        }
    }

    fn ask(&self, held: &mut Held) {
        let family = held.family().0;
        let socket = held.sockets[family].get_or_insert_with(|| {
            let from = ["0.0.0.0:0", "[::]:0"][family];
            let server = [SocketAddr::from((GATEWAY_V4, 53)), (GATEWAY_V6, 53).into()][family];
            let socket = UdpSocket::bind(from).expect("a socket");
            socket.connect(server).expect("a route");
            socket.set_nonblocking(true).expect("a socket");
            socket
        });
        for number in 0..40 {
            let name = match number % 2 {
                0 => OPENAI.name.to_owned(),
                _ => format!("n{}.attacker.example", self.tried.load(Relaxed)),
            };
            let message = query(&name, RecordType::A).to_vec().expect("a message");
            self.count(family, socket.send(&message));
        }
        while socket.recv(&mut [0; 512]).is_ok() {}
    }
}

/// Returns how many open connections of the first agent's group the gateway reports.
pub(super) fn held(world: &World) -> u64 {
    let said = order(world, &["status", "--json"]).output().map(|it| it.stdout).unwrap_or_default();
    let status: Value = serde_json::from_slice(&said).unwrap_or_default();
    status["groups"][0]["connections"].as_u64().unwrap_or_default()
}

/// Returns the head of a record and of a ClientHello, and more of it than there is free room for.
fn long_hello() -> Vec<u8> {
    [&[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3][..], &[0; 8_000]].concat()
}

/// Returns whether it was neither reset nor closed, and nothing arrived.
fn is_open(stream: &TcpStream) -> bool {
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Connections of one agent by default; IPv4 and IPv6 are two.
const OF_ONE: u64 = 1_024;
/// Slots that may be free for the moment, because a connection has just ended.
const ON_THEIR_WAY: u64 = 64;
/// The niceness of the flood. With the lowest priority there would be no flood on a busy machine.
const NICE: i32 = 10;
/// Streams of one connection at once by default.
const OF_A_CONNECTION: u32 = 100;
/// Connections that have all requests of one agent, 1,024 by default, and one more.
const CONNECTIONS_WITH_REQUESTS: usize = 12;
/// Kinds of HTTP/2 frames.
const PING: u8 = 6;
const UNKNOWN: u8 = 0x42;
/// Connections that are checked only when so many were opened after them: a refused one is reset by
/// then.
const YOUNG: usize = 200;
/// Interval of [`Flood::tick`]: a hundred times a second.
const TICK: Duration = Duration::from_millis(10);
