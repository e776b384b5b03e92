//! Floods of SYNs and datagrams while the packet rules are rewritten, and while the daemon dies and
//! comes back. The kernel would forward every packet, and counters on the far side of the WAN see
//! none.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::OwnedFd,
    sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use lab::{
    Lab,
    dns::Dns,
    gateway::{self, Gateway, usual_config},
    net::{AGENT, AGENT_V4, AGENT_V6, ATTACKER, GATEWAY, INTERNET, OTHER},
    origin::Origin,
    sandbox::sandboxed_for,
    wait,
};
use rustix::net::{AddressFamily, SendFlags, SocketType, ipproto, sendto, socket};

use crate::faults::{CHAT, ask};

#[test]
fn three_hundred_rewrites_under_a_flood_let_nothing_past() {
    sandboxed_for(LIMIT, || {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let mut gateway = start_forwarding(&lab);
        count_strangers();
        let flood = Flood::default();
        thread::scope(|scope| {
            let _end = flood.start(scope);
            let begun = Instant::now();
            for turn in 0..REWRITES {
                let with_more = turn % 2 == 0;
                let ports = if with_more { &[443, 80, 8443, 2222][..] } else { &[443, 80] };
                gateway::install(&lab, &usual_config().gateway("ports", ports));
                gateway.reload();
                let reloads = || gateway.stderr().matches(" reloaded\n").count();
                wait::expect("the rules are rewritten", || reloads() > turn);
                if turn % 50 < 2 {
                    let rules = GATEWAY.shell("nft --stateless list set inet cloakroom ports");
                    assert_eq!(rules.contains("8443"), with_more, "turn {turn}: {rules}");
                    assert_eq!(ask(&lab, &gateway, CHAT).status, 200, "turn {turn}");
                }
                // By the clock, so that a late turn does not delay those behind it.
                let due = EACH * (turn as u32 + 1);
                thread::sleep(due.saturating_sub(begun.elapsed()));
            }
            let rate = REWRITES as f64 / begun.elapsed().as_secs_f64();
            flood.assert_nothing_got_past(200_000);
            println!("{rate:.2} rewrites a second");
            assert!(rate >= LEAST_RATE, "{rate:.2} rewrites a second");
            gateway.kill();
            assert_they_would_count();
        });
        drop(origin);
    });
}

#[test]
fn a_hundred_deaths_under_a_flood_let_nothing_past() {
    sandboxed_for(LIMIT, || {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let mut gateway = start_forwarding(&lab);
        let config = lab.dir.join("cloakroom.toml");
        count_strangers();
        let flood = Flood::default();
        thread::scope(|scope| {
            let _end = flood.start(scope);
            for cycle in 0..100 {
                gateway.kill();
                // The daemon is dead for longer and longer, so that the flood meets every moment of
                // a start.
                thread::sleep(Duration::from_millis(cycle));
                gateway = Gateway::run_forwarding(&lab, &config)
                    .unwrap_or_else(|failed| panic!("cycle {cycle}: {}", failed.stderr));
                if cycle % 20 == 0 {
                    assert_eq!(ask(&lab, &gateway, CHAT).status, 200, "cycle {cycle}");
                }
            }
            assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
            flood.assert_nothing_got_past(50_000);
            gateway.kill();
            assert_they_would_count();
        });
        drop(origin);
    });
}

/// Starts a gateway with the usual policy whose kernel forwards, whatever the daemon wants. The
/// daemon sets its settings at the start and every minute: while forwarding is off, the rules would
/// show nothing.
fn start_forwarding(lab: &Lab) -> Gateway {
    Gateway::usual(lab).kill();
    let config = lab.dir.join("cloakroom.toml");
    Gateway::run_forwarding(lab, &config).unwrap_or_else(|failed| panic!("{}", failed.stderr))
}

/// SYNs and datagrams of the first agent to hosts that no policy names, in IPv4 and IPv6; and how
/// often the test saw that the kernel forwards meanwhile, and that it does not.
#[derive(Default)]
struct Flood {
    stop: AtomicBool,
    sent: AtomicUsize,
    forwarding: AtomicUsize,
    closed: AtomicUsize,
    port: AtomicU16,
}

/// Ends the flood even when an assertion fails; otherwise the scope would wait for it for ever.
struct EndOfFlood<'a>(&'a Flood);

impl Drop for EndOfFlood<'_> {
    fn drop(&mut self) {
        self.0.stop.store(true, Relaxed);
    }
}

impl Flood {
    fn start<'scope>(&'scope self, scope: &'scope thread::Scope<'scope, '_>) -> EndOfFlood<'scope> {
        let v4 = (AddressFamily::INET, AGENT_V4.into(), [OTHER.v4().into(), ATTACKER.v4().into()]);
        let v6 = (AddressFamily::INET6, AGENT_V6.into(), [OTHER.v6().into(), ATTACKER.v6().into()]);
        for (family, from, hosts) in [v4, v6] {
            let (raw, udp) = AGENT.enter(|| sockets(family, from));
            scope.spawn(move || self.run(&raw, &udp, from, hosts));
        }
        scope.spawn(|| self.watch_forwarding());
        EndOfFlood(self)
    }

    fn watch_forwarding(&self) {
        while !self.stop.load(Relaxed) {
            let seen = if gateway::forwards() { &self.forwarding } else { &self.closed };
            seen.fetch_add(1, Relaxed);
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asserts that nothing arrived outside, of at least so many packets, and that each could have.
    #[track_caller]
    fn assert_nothing_got_past(&self, at_least: usize) {
        let [sent, forwarding, closed] =
            [&self.sent, &self.forwarding, &self.closed].map(|count| count.load(Relaxed));
        println!("{sent} packets; the kernel was seen forwarding {forwarding} times");
        assert_eq!(strangers(), 0, "packets that the gateway did not send");
        assert!(sent > at_least, "no flood: {sent}");
        assert!(forwarding > 1_000 && closed == 0, "forwarding {forwarding}, closed {closed}");
    }

    /// Sends some ten thousand packets a second. More would only take time from the other tests.
    fn run(&self, raw: &OwnedFd, udp: &UdpSocket, from: IpAddr, hosts: [IpAddr; 2]) {
        while !self.stop.load(Relaxed) {
            for number in 0..8 {
                let port = self.next_port(number);
                for to in hosts {
                    let syn = syn(from, to, port);
                    let raw_to = SocketAddr::new(to, 0);
                    let sent = [
                        sendto(raw, &syn, SendFlags::DONTWAIT, &raw_to).is_ok(),
                        udp.send_to(b"flood", SocketAddr::new(to, port)).is_ok(),
                    ];
                    self.sent.fetch_add(sent.iter().filter(|sent| **sent).count(), Relaxed);
                }
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Returns the next port: those for which rules come and go, those that are always captured,
    /// and all others.
    fn next_port(&self, number: usize) -> u16 {
        let known = [443, 8443, 2222, 80, 53];
        let next = || self.port.fetch_add(1, Relaxed).max(1);
        known.get(number).copied().unwrap_or_else(next)
    }
}

fn sockets(family: AddressFamily, from: IpAddr) -> (OwnedFd, UdpSocket) {
    let raw = socket(family, SocketType::RAW, Some(ipproto::TCP)).expect("a raw socket");
    (raw, UdpSocket::bind((from, 0)).expect("a socket"))
}

/// Returns a SYN (RFC 9293, section 3.1) without options.
fn syn(from: IpAddr, to: IpAddr, port: u16) -> [u8; 20] {
    let mut segment = [0; 20];
    segment[..2].copy_from_slice(&(20_000 ^ port).max(1).to_be_bytes());
    segment[2..4].copy_from_slice(&port.to_be_bytes());
    segment[12..16].copy_from_slice(&[0x50, 0x02, 0xff, 0xff]);
    let bytes = |address| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    // The pseudo-header's protocol and length are one-byte values, at whatever place in it.
    let summed = [&bytes(from)[..], &bytes(to), &[0, 6, 0, 20], &segment].concat();
    let words = summed.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    segment
}

/// Counts, where packets arrive from the WAN, those that the gateway did not send itself, and those
/// to the flooded hosts, which it never dials.
fn count_strangers() {
    let hosts = format!("{{ {}, {} }}", OTHER.v4(), ATTACKER.v4());
    let hosts6 = format!("{{ {}, {} }}", OTHER.v6(), ATTACKER.v6());
    let rules = [
        "ip saddr != 203.0.113.2 counter".to_owned(),
        "ip6 saddr != { 2001:db8:f::2, fe80::/10 } counter".to_owned(),
        format!("ip daddr {hosts} counter"),
        format!("ip6 daddr {hosts6} counter"),
    ];
    INTERNET.shell("nft add table netdev strangers");
    let chain = "{ type filter hook ingress device wan0 priority 0; }";
    INTERNET.shell(&format!("nft 'add chain netdev strangers wan {chain}'"));
    for rule in rules {
        INTERNET.shell(&format!("nft 'add rule netdev strangers wan {rule}'"));
    }
    assert_eq!(strangers(), 0);
}

fn strangers() -> u64 {
    counters().iter().sum()
}

fn counters() -> Vec<u64> {
    let listed = INTERNET.shell("nft list table netdev strangers");
    let counts = listed.split("counter packets ").skip(1);
    let counts: Vec<u64> = counts.filter_map(|rest| rest.split(' ').next()?.parse().ok()).collect();
    assert_eq!(counts.len(), 4, "{listed}");
    counts
}

/// Removes the rules: the flood, which goes on, must reach every counter at once, because otherwise
/// none of them has shown anything.
fn assert_they_would_count() {
    GATEWAY.shell("nft delete table inet cloakroom; nft delete table inet cloakroom_base");
    wait::expect("the flood gets past a gateway without rules", || {
        counters().iter().all(|count| *count > 100)
    });
}

const REWRITES: usize = 300;
/// Time of one rewrite on a machine that does nothing else: there are five a second.
const EACH: Duration = Duration::from_millis(190);
/// Rewrites a second that are dense enough for a flood to find a gap between two of them, on a
/// machine that does other work.
const LEAST_RATE: f64 = 2.5;
/// Longest time of one of these tests, on a machine with other work. They take about a minute.
const LIMIT: Duration = Duration::from_secs(240);
