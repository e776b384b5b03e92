//! One agent floods; the other does not notice, and the gateway's memory stays bounded.
//!
//! The second agent takes its samples by turns while the first is quiet and while it floods, so
//! that both are measured on the same machine in the same minute. A sample is what an agent does
//! who starts from nothing: a DNS query, a connection, a handshake, a request and its answer. The
//! flood has a pace, many times what its agent is allowed, and the lowest priority: what is
//! measured is what it takes from the gateway, not what it takes from the machine.

use std::{
    collections::VecDeque,
    fs,
    io::{self, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use hickory_proto::rr::RecordType;
use lab::{
    client::{self, Hello, Tls},
    gateway::{Gateway, usual_config},
    net::{AGENT, AGENT2, GATEWAY_V4, OPENAI, OTHER},
    sandbox::sandboxed_for,
    sandboxed, wait,
};

use crate::{
    attack::raw_h2::{CONTINUATION, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, RawH2},
    attack::raw_h2::{block, fields, frame},
    dns::client::{ask_udp, query},
    world::World,
};

const KINDS: [Kind; 4] = [Kind::Connections, Kind::SlowHeads, Kind::Streams, Kind::Questions];

#[test]
fn the_flood_of_one_agent_is_not_noticed_by_another() {
    sandboxed_for(Duration::from_secs(300), || {
        let world = World::usual();
        let other = Other::new(&world);
        // Certificates are made, names are known.
        (0..20).for_each(|_| drop(other.sample()));
        for kind in KINDS {
            let flood = Flood::new(&world, kind);
            let (quiet, flooded) = thread::scope(|scope| {
                scope.spawn(|| AGENT.enter(|| flood.run()));
                let mut seen = (Seen::default(), Seen::default());
                for _ in 0..ROUNDS {
                    thread::sleep(SETTLE);
                    other.watch(WINDOW, &mut seen.0);
                    flood.on.store(true, Relaxed);
                    thread::sleep(SETTLE);
                    other.watch(WINDOW, &mut seen.1);
                    flood.on.store(false, Relaxed);
                }
                flood.over.store(true, Relaxed);
                seen
            });
            let (tried, refused) = (flood.tried.load(Relaxed), flood.refused.load(Relaxed));
            let memory = peak_memory_mib(&world.gateway);
            println!(
                "{kind:?}: {tried} tried, {refused} seen to fail; quiet {quiet}, flooded \
                 {flooded}; {memory} MiB at most"
            );
            let allowed = (quiet.p99() * 3).max(FLOOR);
            assert!(flooded.p99() <= allowed, "{kind:?}: quiet {quiet}, flooded {flooded}");
            assert!(flooded.success() >= 0.995, "{kind:?}: {flooded}");
            assert!(quiet.times.len() > 50 && flooded.times.len() > 50, "too few samples");
            assert!(tried > kind.enough(), "{kind:?}: {tried} are no flood");
            assert!(memory < 512, "{memory} MiB");
        }
        told(&world.gateway);
    });
}

/// What did not get a record of its own is in a sum, and the sums are the agent's.
#[track_caller]
fn told(gateway: &Gateway) {
    let sum = gateway.audit.wait_for(|record| record["record"] == "connections");
    assert_eq!(sum["reason"], "rate_limit");
    assert_eq!(sum["agent"], "192.0.2.10");
    assert_eq!(sum["group"], "research");
    for record in gateway.audit.records().iter().filter(|it| it["group"] == "operations") {
        let refused = record["decision"] == "refuse";
        assert!(!refused, "the other agent was refused: {record}");
    }
}

#[test]
fn without_the_limits_the_same_flood_reaches_further() {
    let raised = "\n[limits]\nconnections = 20000\nagent_connections = 10000\n\
        agent_new_connections = 1000000\ndns_rate = 100000\n";
    let [mut limited, mut unlimited] = [[0; 2]; 2];
    // Two sandboxes would be two tests: the gateway is stopped in between.
    sandboxed(|| {
        for (limits, counts) in [("", &mut limited), (raised, &mut unlimited)] {
            let mut world = World::with(&(usual_config() + limits));
            for (kind, count) in
                [Kind::Connections, Kind::Questions].into_iter().zip(counts.iter_mut())
            {
                let flood = Flood::new(&world, kind);
                flood.on.store(true, Relaxed);
                thread::scope(|scope| {
                    scope.spawn(|| AGENT.enter(|| flood.run()));
                    thread::sleep(Duration::from_secs(3));
                    flood.over.store(true, Relaxed);
                });
                *count = reached(&mut world.gateway, kind);
            }
            world.gateway.terminate(Duration::from_secs(60));
            let _ = fs::remove_file(world.lab.dir.join("audit.jsonl"));
        }
        println!("connections and questions: {limited:?} with limits, {unlimited:?} without");
        for (limited, unlimited) in limited.into_iter().zip(unlimited) {
            assert!(limited > 0 && unlimited > 2 * limited, "{limited} and {unlimited}");
        }
    });
}

/// How much of a flood the gateway looked at.
fn reached(gateway: &mut Gateway, kind: Kind) -> u64 {
    let of = |name: &str, field: &str| -> u64 {
        let records = gateway.audit.records();
        let of_kind = records.iter().filter(|it| it["record"] == name);
        of_kind.map(|it| if field.is_empty() { 1 } else { it[field].as_u64().unwrap_or(0) }).sum()
    };
    match kind {
        Kind::Questions => {
            wait::expect("a sum of questions", || of("dns_summary", "answered") > 0);
            of("dns_summary", "answered") + of("dns_summary", "refused")
        }
        _ => {
            thread::sleep(Duration::from_secs(1));
            of("connection", "")
        }
    }
}

/// What the first agent does too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
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
    /// What it has to have done to be a flood: several times what the limits let through.
    fn enough(self) -> u64 {
        match self {
            Self::Connections => 10_000,
            Self::SlowHeads => 1_000,
            Self::Streams => 10_000,
            Self::Questions => 20_000,
        }
    }
}

struct Flood {
    kind: Kind,
    on: AtomicBool,
    over: AtomicBool,
    tried: AtomicU64,
    refused: AtomicU64,
    h1: Hello,
    h2: Hello,
}

/// What a flood holds open.
#[derive(Default)]
struct Held {
    plain: VecDeque<TcpStream>,
    heads: VecDeque<Slow>,
    streams: Option<(RawH2, u32)>,
    socket: Option<UdpSocket>,
    ticks: u64,
}

/// A head on its way.
enum Slow {
    Hello(TcpStream),
    H1(Box<Tls>),
    H2(Box<RawH2>),
}

impl Flood {
    fn new(world: &World, kind: Kind) -> Self {
        let h1 = world.hello(OPENAI.name);
        let h2 = Hello { alpn: vec![b"h2"], ..world.hello(OPENAI.name) };
        let (on, over) = (AtomicBool::new(false), AtomicBool::new(false));
        let (tried, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { kind, on, over, tried, refused, h1, h2 }
    }

    /// Until it is over, on a thread that anybody else goes before.
    fn run(&self) {
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

    fn count<T>(&self, done: io::Result<T>) -> Option<T> {
        self.tried.fetch_add(1, Relaxed);
        self.refused.fetch_add(u64::from(done.is_err()), Relaxed);
        done.ok()
    }

    fn connect(&self, held: &mut Held) {
        let to = [OPENAI.port(443), OPENAI.port6(443), OTHER.port(443), OTHER.port(80)];
        let to = to[self.tried.load(Relaxed) as usize % to.len()];
        let patience = Duration::from_secs(1);
        if let Some(stream) = self.count(TcpStream::connect_timeout(&to, patience)) {
            held.plain.push_back(stream);
        }
        if held.plain.len() > 2_000 {
            held.plain.pop_front();
        }
    }

    fn trickle(&self, held: &mut Held) {
        let to = OPENAI.port(443);
        let fields = fields("GET", OPENAI.name, "/v1/x", &[]);
        let slow = match held.ticks % 4 {
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
        held.heads.extend(self.count(slow));
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
        if held.streams.is_none() {
            let opened = RawH2::open(AGENT, OPENAI.port(443), &self.h2);
            held.streams = opened.ok().map(|h2| (h2, 1));
        }
        let Some((h2, next)) = &mut held.streams else { return };
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
            self.refused.fetch_add(50, Relaxed);
            held.streams = None;
        }
    }

    fn ask(&self, held: &mut Held) {
        let socket = held.socket.get_or_insert_with(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket.connect((GATEWAY_V4, 53)).expect("a route");
            socket.set_nonblocking(true).expect("a socket");
            socket
        });
        for number in 0..40 {
            let name = match number % 2 {
                0 => OPENAI.name.to_owned(),
                _ => format!("n{}.attacker.example", self.tried.load(Relaxed)),
            };
            let message = query(&name, RecordType::A).to_vec().expect("a message");
            self.count(socket.send(&message));
        }
        while socket.recv(&mut [0; 512]).is_ok() {}
    }
}

/// The agent that does nothing out of the ordinary.
struct Other {
    hello: Hello,
    failures: Mutex<Vec<String>>,
}

impl Other {
    fn new(world: &World) -> Self {
        Self { hello: world.hello(OPENAI.name), failures: Mutex::default() }
    }

    fn watch(&self, window: Duration, seen: &mut Seen) {
        let end = Instant::now() + window;
        while Instant::now() < end {
            let begun = Instant::now();
            match self.sample() {
                Ok(()) => seen.times.push(begun.elapsed()),
                Err(error) => {
                    println!("failed: {error}");
                    self.failures.lock().expect("one thread").push(error.to_string());
                    seen.failures += 1;
                }
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn sample(&self) -> io::Result<()> {
        let resolver = SocketAddr::from((GATEWAY_V4, 53));
        let answer = ask_udp(AGENT2, resolver, &query(OPENAI.name, RecordType::A))?;
        assert_eq!(answer.answers.len(), 1, "{answer}");
        let mut tls = Tls::open(AGENT2, OPENAI.port(443), &self.hello)?;
        let answer = tls.ask(format!(
            "GET /status/200 HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer OPS_OPENAI_KEY\r\n\r\n",
            OPENAI.name
        ))?;
        assert_eq!(answer.status, 200, "{}", answer.text());
        Ok(())
    }
}

/// What the other agent saw.
#[derive(Debug, Default)]
struct Seen {
    times: Vec<Duration>,
    failures: usize,
}

impl Seen {
    fn quantile(&self, of: f64) -> Duration {
        let mut sorted = self.times.clone();
        sorted.sort_unstable();
        let at = (sorted.len() as f64 * of) as usize;
        sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    fn p99(&self) -> Duration {
        self.quantile(0.99)
    }

    fn success(&self) -> f64 {
        self.times.len() as f64 / (self.times.len() + self.failures) as f64
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (samples, failures) = (self.times.len(), self.failures);
        let (half, p99) = (self.quantile(0.5), self.p99());
        write!(f, "{samples} in {half:.1?} (p99 {p99:.1?}), {failures} failed")
    }
}

/// The most memory that the gateway ever held at once.
fn peak_memory_mib(gateway: &Gateway) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default();
    let kib: u64 = line.split_whitespace().nth(1).and_then(|it| it.parse().ok()).expect("a number");
    kib / 1024
}

/// Turns of quiet and flood for each kind.
const ROUNDS: usize = 3;
/// How long each of them is measured.
const WINDOW: Duration = Duration::from_secs(3);
/// How long each of them goes on before that.
const SETTLE: Duration = Duration::from_millis(800);
/// A flood's pace: what [`Flood::tick`] does is done a hundred times a second.
const TICK: Duration = Duration::from_millis(10);
/// A 99th percentile that is good however good the quiet one is: of a few hundred samples it is the
/// third worst, which on a shared machine is somebody else's doing.
const FLOOR: Duration = Duration::from_millis(50);
