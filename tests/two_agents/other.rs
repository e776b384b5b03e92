//! The agent that does nothing out of the ordinary, and what it sees.

use std::{
    io,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use hickory_proto::rr::RecordType;
use lab::{
    client::{Hello, Tls},
    net::{AGENT2, GATEWAY_V4, GATEWAY_V6, OPENAI},
};

use crate::{
    dns::client::{ask_udp, query},
    world::World,
};

/// The agent that does nothing out of the ordinary.
pub(super) struct Other(Hello);

impl Other {
    pub(super) fn new(world: &World) -> Self {
        Self(world.hello(OPENAI.name))
    }

    /// Takes samples for so long, over IPv4 and IPv6 by turns.
    pub(super) fn watch(&self, window: Duration, seen: &mut Seen) {
        let end = Instant::now() + window;
        while Instant::now() < end {
            let begun = Instant::now();
            match self.sample(seen.count() % 2 == 1) {
                Ok(()) => seen.times.push(begun.elapsed()),
                Err(error) => {
                    println!("failed: {error}");
                    seen.failures += 1;
                }
            }
            thread::sleep(PAUSE);
        }
    }

    /// A query, a connection, a handshake, a request and its answer.
    pub(super) fn sample(&self, ipv6: bool) -> io::Result<()> {
        let (server, kind, to) = match ipv6 {
            false => (SocketAddr::from((GATEWAY_V4, 53)), RecordType::A, OPENAI.port(443)),
            true => (SocketAddr::from((GATEWAY_V6, 53)), RecordType::AAAA, OPENAI.port6(443)),
        };
        let answer = ask_udp(AGENT2, server, &query(OPENAI.name, kind))?;
        if answer.answers.len() != 1 {
            return Err(io::Error::other(answer.to_string()));
        }
        let mut tls = Tls::open(AGENT2, to, &self.0)?;
        let answer = tls.ask(format!(
            "GET /status/200 HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer OPS_OPENAI_KEY\r\n\r\n",
            OPENAI.name
        ))?;
        if answer.status != 200 {
            return Err(io::Error::other(answer.text()));
        }
        Ok(())
    }
}

/// What the other agent saw.
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

    /// How often it tried.
    pub(super) fn count(&self) -> usize {
        self.times.len() + self.failures
    }

    /// The time that 99 of 100 that were served did not need.
    pub(super) fn p99(&self) -> Duration {
        self.quantile(0.99)
    }

    /// The share of those that were served.
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

/// Between two samples.
const PAUSE: Duration = Duration::from_millis(2);
