//! Cloakroom beside HAProxy and nginx, in one run, at equal offered load.
//!
//! ```text
//!                    ┌ gateway: Cloakroom ┐
//!  agent (CPU 0) ────┤                    ├──── internet: origins (CPU 0)
//!                    └ rivals: HAProxy,   ┘
//!                      nginx      (CPU 1)
//! ```
//!
//! Everything runs in the lab's sandbox and is gone with it. Repetitions are interleaved, so that
//! other work of the machine affects all of them; only the ratios count.

mod client;
mod dns;
mod gateways;
mod load;
mod measure;
mod names;
mod origin;
mod table;

use std::{process::Command, time::Duration};

use lab::{
    Lab,
    net::{AGENT, CDN, OPENAI},
    sandbox,
};

use crate::{
    client::Agent,
    dns::{Answers, Question, Server},
    gateways::{Gateway, Gateways},
    load::{Load, Outcome},
    measure::Meter,
    table::{NAMES, Row, Samples},
};

fn main() {
    if !sandbox::inside() {
        let me = std::env::current_exe().expect("this program");
        let status = sandbox::command(&me).args(std::env::args_os().skip(1)).status();
        std::process::exit(status.expect("unshare starts").code().unwrap_or(1));
    }
    let options = Options::read();
    measure::pin_this(LOAD_CPU);
    let lab = Lab::new();
    gateways::network();
    names::start();
    let (direct_tls, direct_plain) = gateways::direct();
    let key = lab.public.issue(OPENAI.name).certified();
    origin::start(key, vec![OPENAI.port(443), direct_tls], vec![CDN.port(443), direct_plain]);
    let mut rows = Vec::new();
    rows.extend(idle(&lab, &options));
    let gateways = Gateways::start(&lab, GATEWAY_CPU);
    let bench = Bench { lab: &lab, options: &options, gateways: &gateways };
    rows.extend(WORK.iter().filter_map(|work| bench.costs(work)));
    rows.extend(bench.latency());
    let answers = bench.dns();
    gateways.stop();
    if !rows.is_empty() {
        println!();
        table::print(&rows);
    }
    if !answers.is_empty() {
        println!();
        dns::print(&answers);
    }
}

/// One kind of work whose cost is CPU time.
struct Work {
    name: &'static str,
    unit: &'static str,
    kind: Kind,
    rate: f64,
    aim: Option<(usize, f64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bulk,
    SplicedRequest,
    SplicedConnection,
    H1,
    H2,
    Connection,
    OwnConnection,
    PostQuantum,
}

struct Bench<'a> {
    lab: &'a Lab,
    options: &'a Options,
    gateways: &'a Gateways,
}

impl Bench<'_> {
    fn costs(&self, work: &Work) -> Option<Row> {
        if !self.options.wants(work.name) {
            return None;
        }
        let mut samples: [Samples; 4] = Default::default();
        for _ in 0..self.options.repeat {
            for (index, gateway) in self.participants().into_iter().enumerate() {
                // OpenSSL 3.0 has no post-quantum key exchange.
                let absent = work.kind == Kind::PostQuantum && index > 0;
                if absent || !self.options.wants_gateway(index) {
                    continue;
                }
                let outcome = self.measure_well(work, index, gateway);
                let scale = if work.kind == Kind::Bulk { 1e-6 } else { 1.0 };
                samples[index].push(outcome.cost() * scale);
            }
        }
        let offered = match work.kind {
            Kind::Bulk => format!("{} MiB/s", work.rate * self.options.times * 1024.0),
            _ => format!("{}/s", work.rate * self.options.times),
        };
        Some(Row { work: work.name, unit: work.unit, offered, samples, aim: work.aim })
    }

    /// Measures, and repeats that where the load was not as intended.
    fn measure_well(&self, work: &Work, index: usize, gateway: Gateway) -> Outcome {
        let mut outcome = self.measure(work, gateway);
        for _ in 1..TRIES {
            report(work, index, &outcome);
            if outcome.is_good() {
                break;
            }
            outcome = self.measure(work, gateway);
        }
        outcome
    }

    fn measure(&self, work: &Work, gateway: Gateway) -> Outcome {
        self.gateways.forget_audit(self.lab);
        let agent = self.agent(work.kind == Kind::PostQuantum);
        let rate = work.rate * self.options.times;
        let load = Load { rate, warm: self.options.warm, span: self.options.span };
        let meter = gateway.meter;
        let _perf = self.options.perf(meter);
        inside(async {
            match work.kind {
                Kind::Bulk => agent.bulk(gateway.splice, 4, load, meter).await,
                Kind::SplicedRequest => {
                    agent.spliced_requests(gateway.splice, 16, load, meter).await
                }
                Kind::SplicedConnection => {
                    agent.spliced_connections(gateway.splice, load, meter).await
                }
                Kind::H1 => agent.requests(gateway.h1, 16, load, meter).await,
                Kind::H2 => agent.streams(gateway.h2, 4, load, meter).await,
                Kind::Connection | Kind::PostQuantum => {
                    agent.connections(gateway.h1, load, meter).await
                }
                Kind::OwnConnection => agent.connections(gateway.own, load, meter).await,
            }
        })
    }

    fn latency(&self) -> Vec<Row> {
        if !self.options.wants(LATENCY) {
            return Vec::new();
        }
        let load = Load { rate: QUIET_RATE, warm: self.options.warm, span: self.options.span };
        let participants = [self.participants().as_slice(), &[self.gateways.direct]].concat();
        let mut rows =
            [(LATENCY, 0.5), ("latency of an h1 request, 99 %", 0.99)].map(|(work, _)| Row {
                work,
                unit: "µs",
                offered: format!("{QUIET_RATE}/s"),
                samples: Default::default(),
                aim: None,
            });
        for _ in 0..self.options.repeat {
            for (index, gateway) in participants.iter().enumerate() {
                let agent = self.agent(false);
                let direct = gateway.meter.is_none();
                let agent = if direct { agent.with_the_key() } else { agent };
                let outcome = inside(agent.requests(gateway.h1, 2, load, None));
                for (row, share) in rows.iter_mut().zip([0.5, 0.99]) {
                    row.samples[index].push(outcome.percentile(share));
                }
            }
        }
        rows.into()
    }

    /// Measures the agents' resolver beside dnsmasq. The repetition with the median rate counts.
    fn dns(&self) -> Vec<(Question, Vec<(Server, Answers)>)> {
        if !self.options.wants(DNS) {
            return Vec::new();
        }
        let (mut rival, servers) = self.gateways.resolvers(self.lab, GATEWAY_CPU);
        let mut rows = Vec::new();
        for question in dns::QUESTIONS {
            let mut samples = servers.map(|server| (server, Vec::new()));
            for _ in 0..self.options.repeat {
                for (server, samples) in &mut samples {
                    self.gateways.forget_audit(self.lab);
                    let (warm, span) = (self.options.warm, self.options.span);
                    let answers = dns::ask(*server, question, warm, span);
                    eprintln!("{:<34} {:<10} {answers:?}", question.work, server.name);
                    samples.push(answers);
                }
            }
            let median = |(server, mut samples): (Server, Vec<Answers>)| {
                samples.sort_by(|one, other| one.rate.total_cmp(&other.rate));
                (server, samples[samples.len() / 2])
            };
            rows.push((question, samples.map(median).to_vec()));
        }
        lab::tools::signal(&rival, rustix::process::Signal::TERM);
        rival.wait().expect("dnsmasq ends");
        rows
    }

    fn agent(&self, post_quantum: bool) -> Agent {
        Agent::new(&self.lab.dir.join("agents.pem"), post_quantum)
    }

    fn participants(&self) -> [Gateway; 3] {
        [self.gateways.cloakroom, self.gateways.haproxy, self.gateways.nginx]
    }
}

/// Measures the memory of an idle connection, in gateways that have done nothing else yet.
fn idle(lab: &Lab, options: &Options) -> Option<Row> {
    if !options.wants(IDLE) {
        return None;
    }
    let mut samples: [Samples; 4] = Default::default();
    for _ in 0..options.restarts {
        let gateways = Gateways::start(lab, GATEWAY_CPU);
        let bench = Bench { lab, options, gateways: &gateways };
        for (index, gateway) in bench.participants().into_iter().enumerate() {
            let Some(meter) = gateway.meter.filter(|_| options.wants_gateway(index)) else {
                continue;
            };
            let agent = bench.agent(false);
            samples[index].push(inside(async {
                let _warm = agent.idle(gateway.h1, 20).await;
                let before = meter.resident_kib();
                let _kept = agent.idle(gateway.h1, options.idle).await;
                tokio::time::sleep(Duration::from_millis(300)).await;
                (meter.resident_kib() - before) as f64 / options.idle as f64
            }));
        }
        gateways.stop();
    }
    let offered = format!("{} connections", options.idle);
    Some(Row { work: IDLE, unit: "KiB", offered, samples, aim: Some((0, 70.0)) })
}

/// Runs on a thread inside the agent's namespace.
fn inside<T: Send>(work: impl Future<Output = T> + Send) -> T {
    AGENT.enter(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(work)
    })
}

fn report(work: &Work, index: usize, outcome: &Outcome) {
    let unmet = if outcome.is_good() { "" } else { "; not good" };
    eprintln!(
        "{:<34} {:<10} {:>9.2} µs each; {:.2} CPU-s, {} failed, p50 {:.0} µs, p99 {:.0} µs, \
         lag {:.0} ms, {:.0} % of the offered load{unmet}",
        work.name,
        NAMES[index],
        outcome.cost(),
        outcome.cpu.as_secs_f64(),
        outcome.failed,
        outcome.percentile(0.5),
        outcome.percentile(0.99),
        outcome.lag.as_secs_f64() * 1e3,
        outcome.kept_up * 100.0,
    );
}

struct Options {
    repeat: usize,
    restarts: usize,
    warm: Duration,
    span: Duration,
    idle: usize,
    only: Option<String>,
    gateway: Option<String>,
    perf: Option<String>,
    times: f64,
}

impl Options {
    fn read() -> Self {
        let mut options = Self {
            repeat: 7,
            restarts: 3,
            warm: Duration::from_millis(700),
            span: Duration::from_secs(4),
            idle: 1000,
            only: None,
            gateway: None,
            perf: None,
            times: 1.0,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| usage());
            match argument.as_str() {
                "--quick" => {
                    options.repeat = 3;
                    options.restarts = 1;
                    options.warm = Duration::from_millis(300);
                    options.span = Duration::from_millis(1000);
                }
                "--repeat" => options.repeat = value().parse().unwrap_or_else(|_| usage()),
                "--seconds" => {
                    let seconds = value().parse().unwrap_or_else(|_| usage());
                    options.span = Duration::from_secs_f64(seconds);
                }
                "--only" => options.only = Some(value()),
                "--gateway" => options.gateway = Some(value()),
                "--times" => options.times = value().parse().unwrap_or_else(|_| usage()),
                "--perf" => options.perf = Some(value()),
                _ => usage(),
            }
        }
        options
    }

    fn wants(&self, work: &str) -> bool {
        self.only.as_ref().is_none_or(|only| work.contains(only.as_str()))
    }

    fn wants_gateway(&self, index: usize) -> bool {
        self.gateway.as_ref().is_none_or(|name| name == NAMES[index])
    }

    /// Records a profile of the gateway until it is dropped.
    fn perf(&self, meter: Option<Meter>) -> Option<Perf> {
        let (file, pid) = (self.perf.as_ref()?, meter?.pid().to_string());
        let perf = Command::new("perf")
            .args(["record", "-q", "-g", "-F", "4999", "-e", "cpu-clock", "-p", &pid, "-o", file])
            .spawn();
        Some(Perf(perf.expect("perf starts")))
    }
}

struct Perf(std::process::Child);

impl Drop for Perf {
    fn drop(&mut self) {
        lab::tools::signal(&self.0, rustix::process::Signal::INT);
        let _ = self.0.wait();
    }
}

fn usage() -> ! {
    eprintln!(
        "side-by-side [--quick] [--repeat N] [--seconds S] [--only PART-OF-A-ROW] [--times LOAD] \
         [--gateway Cloakroom|HAProxy|nginx] [--perf FILE]"
    );
    std::process::exit(64);
}

const IDLE: &str = "idle intercepted connection";
const DNS: &str = "DNS";
const LATENCY: &str = "latency of an h1 request, median";
/// Most measurements of one kind, after which the last is taken as it is.
const TRIES: usize = 4;
const QUIET_RATE: f64 = 200.0;
/// The CPU of load and origins; the gateways have the other.
const LOAD_CPU: usize = 0;
const GATEWAY_CPU: usize = 1;

const WORK: [Work; 8] = [
    Work { name: "spliced bulk", unit: "s/GiB", kind: Kind::Bulk, rate: 0.5, aim: Some((1, 0.9)) },
    Work {
        name: "spliced request",
        unit: "µs",
        kind: Kind::SplicedRequest,
        rate: 16_000.0,
        aim: None,
    },
    Work {
        name: "new spliced connection",
        unit: "µs",
        kind: Kind::SplicedConnection,
        rate: 1600.0,
        aim: None,
    },
    Work {
        name: "intercepted h1 request",
        unit: "µs",
        kind: Kind::H1,
        rate: 16_000.0,
        aim: Some((2, 0.95)),
    },
    Work {
        name: "intercepted h2 request",
        unit: "µs",
        kind: Kind::H2,
        rate: 16_000.0,
        aim: Some((1, 1.0)),
    },
    Work {
        name: "new intercepted connection, rivals share upstreams",
        unit: "µs",
        kind: Kind::Connection,
        rate: 600.0,
        aim: None,
    },
    Work {
        name: "new intercepted connection, own upstream",
        unit: "µs",
        kind: Kind::OwnConnection,
        rate: 600.0,
        aim: Some((1, 0.6)),
    },
    Work {
        name: "the same with X25519MLKEM768",
        unit: "µs",
        kind: Kind::PostQuantum,
        rate: 600.0,
        aim: None,
    },
];
