//! The agent that does nothing out of the ordinary: its place, and its samples.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use hickory_proto::rr::RecordType;
use lab::{
    client::{Hello, tls_over},
    gateway::usual_config,
    net::{AGENT, AGENT2, GATEWAY, GATEWAY_V4, GATEWAY_V6, Ns, OPENAI},
};
use policy_builder::Config;

use crate::{
    dns::client::{ask_udp_of, query},
    world::World,
};

/// The place of the other agent, seen from the one that floods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// Behind another interface, in another group: only the daemon is shared.
    AnotherInterface,
    /// On the same wire, in another group: with the same listeners and sockets.
    AnotherGroup,
    /// On the same wire, in the same group: with the same part of everything, too.
    SameGroup,
}

impl Place {
    /// Returns the usual policy, with a group for an agent in this place.
    pub(super) fn config(self) -> Config {
        let usual = usual_config();
        let first = |prefixes: [&str; 2]| {
            usual.clone().group("research", |it| it.set("prefixes", prefixes))
        };
        match self {
            Self::AnotherInterface => usual,
            Self::AnotherGroup => {
                first(["192.0.2.0/28", "2001:db8:a::/64"]).group("operations", |it| {
                    let prefixes = ["192.0.2.16/28", "2001:db8:a:1::/64"];
                    it.set("interface", "agents0").set("prefixes", prefixes)
                })
            }
            Self::SameGroup => first(["192.0.2.0/25", "2001:db8:a::/63"]),
        }
    }

    /// Gives the lab an agent in this place.
    pub(super) fn prepare(self) {
        if self != Self::AnotherInterface {
            AGENT.shell(&format!("ip addr add {NEIGHBOUR_V4}/32 dev eth0"));
            // Deprecated, so that only a program that asks for it gets it as a source.
            let deprecated = format!("{NEIGHBOUR_V6}/128 dev eth0 nodad preferred_lft 0");
            AGENT.shell(&format!("ip addr add {deprecated}"));
            GATEWAY.shell("ip route add 2001:db8:a:1::/64 dev agents0");
        }
    }
}

/// The agent that does nothing out of the ordinary.
pub(super) struct Other {
    ns: Ns,
    /// Its addresses in IPv4 and IPv6.
    own: [IpAddr; 2],
    placeholder: &'static str,
    hello: Hello,
}

impl Other {
    pub(super) fn new(world: &World, place: Place) -> Self {
        let hello = world.hello(OPENAI.name);
        let (ns, own) = match place {
            Place::AnotherInterface => (AGENT2, [AGENT2_V4.into(), AGENT2_V6.into()]),
            Place::AnotherGroup | Place::SameGroup => {
                (AGENT, [NEIGHBOUR_V4.into(), NEIGHBOUR_V6.into()])
            }
        };
        let placeholder = match place {
            Place::AnotherInterface | Place::AnotherGroup => "OPS_OPENAI_KEY",
            Place::SameGroup => "OPENAI_API_KEY",
        };
        Self { ns, own, placeholder, hello }
    }

    /// Returns its addresses in IPv4 and IPv6.
    pub(super) fn addresses(&self) -> [IpAddr; 2] {
        self.own
    }

    /// Takes samples for so long, over IPv4 and IPv6 by turns.
    pub(super) fn watch(&self, window: Duration, seen: &mut Seen) {
        let end = Instant::now() + window;
        while Instant::now() < end {
            let begun = Instant::now();
            match self.sample(seen.count() % 2 == 1) {
                Ok(()) => seen.times.push(begun.elapsed()),
                Err(error) => {
                    if seen.failures < TOLD {
                        println!("failed: {error}");
                    }
                    seen.failures += 1;
                }
            }
            thread::sleep(PAUSE);
        }
    }

    /// Takes a sample: a query, a connection, a handshake, a request and its answer.
    pub(super) fn sample(&self, ipv6: bool) -> io::Result<()> {
        let (server, kind, to) = match ipv6 {
            false => (SocketAddr::from((GATEWAY_V4, 53)), RecordType::A, OPENAI.port(443)),
            true => (SocketAddr::from((GATEWAY_V6, 53)), RecordType::AAAA, OPENAI.port6(443)),
        };
        let own = self.own[usize::from(ipv6)];
        let answer = ask_udp_of(self.ns, own, server, &query(OPENAI.name, kind))?;
        if answer.answers.len() != 1 {
            return Err(io::Error::other(answer.to_string()));
        }
        let request = format!(
            "GET /status/200 HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\r\n",
            OPENAI.name, self.placeholder
        );
        let mut stream = self.ns.connect_from(own, to)?;
        let answer = tls_over(&mut stream, &self.hello, request.as_bytes())?;
        if answer.status != 200 {
            return Err(io::Error::other(answer.text()));
        }
        Ok(())
    }
}

/// The other agent's samples.
#[derive(Debug, Default)]
pub(super) struct Seen {
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

    /// Returns the number of attempts.
    pub(super) fn count(&self) -> usize {
        self.times.len() + self.failures
    }

    /// Returns the time within which 99 of 100 served samples ended.
    pub(super) fn p99(&self) -> Duration {
        self.quantile(0.99)
    }

    /// Returns the share of samples that were served.
    pub(super) fn success(&self) -> f64 {
        self.times.len() as f64 / self.count() as f64
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (samples, failures) = (self.times.len(), self.failures);
        let (half, p99) = (self.quantile(0.5), self.p99());
        write!(f, "{samples} in {half:.1?} (p99 {p99:.1?}), {failures} failed")
    }
}

/// Pause between two samples, so that they take little from the machine themselves.
const PAUSE: Duration = Duration::from_millis(10);
/// Failures that are printed.
const TOLD: usize = 10;
/// The second agent of the lab.
const AGENT2_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 140);
const AGENT2_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 0x10);
/// An agent beside the first one; another /64, because one /64 is one agent.
const NEIGHBOUR_V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);
const NEIGHBOUR_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xa, 1, 0, 0, 0, 0x10);
