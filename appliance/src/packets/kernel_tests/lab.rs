//! Three namespaces on two wires: the agent, the gateway, which is this process, and an origin.
//!
//! The gateway is as careless as possible: after `prepare`, forwarding is switched on, so that only
//! the rules stand between the agent and the origin.
#![allow(clippy::disallowed_methods, reason = "threads and no executor, so std's sleep is right")]

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, SocketAddrV6, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Socket, Type};

use super::{address, example, interface, load_base, only_in_a_namespace, sh};
use crate::packets::{Capture, InheritedListeners, Listener, apply, claim, prepare};

pub(super) const ORIGIN: [&str; 2] = ["203.0.113.5", "2001:db8:5::5"];
pub(super) const AGENT: [&str; 2] = ["10.20.0.2", "2001:db8:20::2"];
pub(super) const GATEWAY: [&str; 2] = ["10.20.0.1", "2001:db8:20::1"];

/// The outcome of a connection attempt of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectOutcome {
    /// Our listener answered, and saw the address that was dialled.
    Captured,
    /// Another server answered.
    Answered,
    /// A reset.
    Refused,
    /// An ICMP error.
    Unreachable,
    /// No answer.
    Silence,
}

/// Three namespaces; this process is the gateway.
pub(super) struct Lab {
    pub(super) capture: Capture,
    agent: Namespace,
    origin: Namespace,
    reached: Arc<AtomicUsize>,
}

impl Lab {
    pub(super) fn new(ipv6: bool) -> Self {
        only_in_a_namespace();
        load_base();
        let (agent, origin) = (Namespace::new(), Namespace::new());
        let capture = Capture {
            interfaces: vec![interface("agents0", &["10.20.0.0/24", "2001:db8:20::/64"])],
            ipv6,
            ..example()
        };
        sh("ip link set lo up");
        agent.wire("agents0", GATEWAY, AGENT);
        origin.wire("uplink", ["203.0.113.1", "2001:db8:5::1"], ORIGIN);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(prepare(&capture)).unwrap();
        sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        let lab = Self { capture, agent, origin, reached: Arc::default() };
        lab.serve_origin();
        lab
    }

    /// Starts the daemon's steps in their order. The listeners answer with the dialled address.
    pub(super) fn start(&self) -> Answering {
        let _claim = claim(&InheritedListeners::default(), &self.capture).unwrap();
        let listeners = [
            InheritedListeners::default().listen(&self.capture).unwrap(),
            InheritedListeners::default().listen(&self.capture).unwrap(),
        ];
        apply(&self.capture).unwrap();
        Answering::new(listeners.into_iter().flatten())
    }

    pub(super) fn dial(&self, to: &str, port: u16) -> ConnectOutcome {
        let from = if to.contains(':') { AGENT[1] } else { AGENT[0] };
        self.dial_from(from, to, port)
    }

    pub(super) fn dial_from(&self, from: &str, to: &str, port: u16) -> ConnectOutcome {
        let (from, to) = (address(from), SocketAddr::new(address(to), port));
        self.agent.run(move || dial(from, to))
    }

    pub(super) fn send_udp(&self, to: &str, port: u16) -> ConnectOutcome {
        let to = SocketAddr::new(address(to), port);
        self.agent.run(move || {
            let any = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
            let socket = UdpSocket::bind(any).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(TIMEOUT)).unwrap();
            socket.send(b"through?").unwrap();
            outcome(socket.recv(&mut [0; 8]).unwrap_err())
        })
    }

    /// Sends datagrams to the origin until told to stop; returns how many.
    pub(super) fn flood(&self, stop: Arc<AtomicBool>) -> thread::JoinHandle<usize> {
        let namespace = self.agent.path();
        thread::spawn(move || {
            enter(&namespace);
            let sockets = ["0.0.0.0:0", "[::]:0"].map(|any| UdpSocket::bind(any).unwrap());
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                for (socket, origin) in sockets.iter().zip(ORIGIN) {
                    sent += usize::from(socket.send_to(b"through?", (origin, 443)).is_ok());
                }
            }
            sent
        })
    }

    /// Opens connections to a port that every policy here lists, until told to stop.
    pub(super) fn dial_on(&self, stop: Arc<AtomicBool>) -> thread::JoinHandle<Vec<ConnectOutcome>> {
        let namespace = self.agent.path();
        thread::spawn(move || {
            enter(&namespace);
            let mut outcomes = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                for (agent, origin) in AGENT.into_iter().zip(ORIGIN) {
                    let to = SocketAddr::new(address(origin), 443);
                    outcomes.push(dial(address(agent), to));
                }
            }
            outcomes
        })
    }

    /// Runs a command line in the agent's namespace and returns its output.
    pub(super) fn in_agent(&self, line: &str) -> String {
        sh(&format!("nsenter -t {} -n sh -c '{line}'", self.agent.holder.id()))
    }

    /// Sends a datagram to a link-local address on the agent's wire.
    pub(super) fn knock(&self, to: &str) {
        let link = self.in_agent("ip -o link show eth0");
        let index = link.split(':').next().unwrap().parse().unwrap();
        let to = SocketAddrV6::new(to.parse().unwrap(), 9, 0, index);
        let _ = self.agent.run(move || UdpSocket::bind("[::]:0").unwrap().send_to(b"knock", to));
    }

    /// Opens a connection of the agent that stays open.
    pub(super) fn connect(&self, to: &str, port: u16) -> TcpStream {
        let to = SocketAddr::new(address(to), port);
        self.agent.run(move || TcpStream::connect_timeout(&to, TIMEOUT).unwrap())
    }

    /// Returns the ICMP errors and resets that the gateway has sent so far.
    pub(super) fn answers_sent(&self) -> Vec<String> {
        let lines = sh("nstat -asz IcmpOutDestUnreachs Icmp6OutDestUnreachs TcpOutRsts");
        lines.lines().skip(1).map(|line| line.split_whitespace().take(2).collect()).collect()
    }

    /// Returns the number of connections and datagrams that the origin has seen, after a moment for
    /// late ones.
    pub(super) fn reached_origin(&self) -> usize {
        thread::sleep(Duration::from_millis(100));
        self.reached.load(Ordering::SeqCst)
    }

    fn serve_origin(&self) {
        for port in [80, 443, 8080] {
            let reached = self.reached.clone();
            let listener = self.origin.run(move || TcpListener::bind(("::", port)).unwrap());
            thread::spawn(move || {
                while listener.accept().is_ok() {
                    reached.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let reached = self.reached.clone();
        let socket = self.origin.run(|| UdpSocket::bind("[::]:443").unwrap());
        thread::spawn(move || {
            while socket.recv(&mut [0; 8]).is_ok() {
                reached.fetch_add(1, Ordering::SeqCst);
            }
        });
        // The origin can be reached from here.
        for origin in ORIGIN {
            TcpStream::connect((origin, 443)).unwrap();
        }
        while self.reached.load(Ordering::SeqCst) < 2 {
            thread::sleep(Duration::from_millis(10));
        }
        self.reached.store(0, Ordering::SeqCst);
    }
}

/// Listeners at work: each tells a connection the address that it dialled.
pub(super) struct Answering {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Answering {
    fn new(listeners: impl Iterator<Item = Listener>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = listeners
            .map(|listener| {
                let stop = stop.clone();
                thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        match listener.socket.accept() {
                            Ok((mut stream, _)) => {
                                let dialled = stream.local_addr().unwrap().to_string();
                                let _ = stream.write_all(dialled.as_bytes());
                            }
                            Err(_) => thread::sleep(Duration::from_millis(2)),
                        }
                    }
                })
            })
            .collect();
        Self { stop, threads }
    }

    /// Closes every listener, as the kernel does for a process that was killed.
    pub(super) fn die(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
    }
}

/// A network namespace, kept alive by a process that sleeps in it.
pub(super) struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Self {
        let holder = Command::new("unshare").args(["-n", "sleep", "600"]).spawn().unwrap();
        let namespace = Self { holder };
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while std::fs::read_link(namespace.path()).is_ok_and(|link| link == own) {
            assert!(Instant::now() < deadline, "no namespace");
            thread::sleep(Duration::from_millis(5));
        }
        namespace
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.holder.id())
    }

    /// Makes a cable from `near`, here, to `eth0`, there, with the default route back.
    fn wire(&self, near: &str, here: [&str; 2], there: [&str; 2]) {
        let holder = self.holder.id();
        sh(&format!(
            "ip link add {near} type veth peer name eth0 netns {holder}
             ip address add {here_4}/24 dev {near}
             ip address add {here_6}/64 dev {near} nodad
             ip link set {near} up
             nsenter -t {holder} -n ip link set lo up
             nsenter -t {holder} -n ip address add {there_4}/24 dev eth0
             nsenter -t {holder} -n ip address add {there_6}/64 dev eth0 nodad
             nsenter -t {holder} -n ip link set eth0 up
             nsenter -t {holder} -n ip route add default via {here_4}
             nsenter -t {holder} -n ip route add default via {here_6}",
            here_4 = here[0],
            here_6 = here[1],
            there_4 = there[0],
            there_6 = there[1],
        ));
    }

    /// Runs a function there, on a thread of its own.
    fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let path = self.path();
        let inside = move || {
            enter(&path);
            work()
        };
        thread::spawn(inside).join().unwrap()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Returns the packets that the rules with the reason `spoofed_source` have counted.
pub(super) fn dropped_as_spoofed() -> usize {
    let chain = sh("nft list chain inet cloakroom prerouting");
    let rules = chain.lines().filter(|line| line.contains("spoofed_source"));
    let counts = rules.filter_map(|line| line.split("packets ").nth(1)?.split(' ').next());
    counts.map(|count| count.parse::<usize>().unwrap()).sum()
}

fn enter(path: &str) {
    let namespace = std::fs::File::open(path).unwrap();
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

fn dial(from: IpAddr, to: SocketAddr) -> ConnectOutcome {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
    if let Err(error) = socket.connect_timeout(&to.into(), TIMEOUT) {
        return outcome(error);
    }
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    if answer == to.to_string() { ConnectOutcome::Captured } else { ConnectOutcome::Answered }
}

fn outcome(error: std::io::Error) -> ConnectOutcome {
    use std::io::ErrorKind::{
        ConnectionRefused, HostUnreachable, NetworkUnreachable, PermissionDenied, TimedOut,
        WouldBlock,
    };
    match error.kind() {
        TimedOut | WouldBlock => ConnectOutcome::Silence,
        ConnectionRefused => ConnectOutcome::Refused,
        HostUnreachable | NetworkUnreachable | PermissionDenied => ConnectOutcome::Unreachable,
        _ => panic!("{error}"),
    }
}

/// Long enough for a slow machine to answer, and short enough to wait out each silence.
pub(super) const TIMEOUT: Duration = Duration::from_millis(700);
