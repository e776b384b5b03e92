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

use std::{fs, process::Command, time::Duration};

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
    rows.extend(WORK.iter().flat_map(|work| bench.costs(work)));
    rows.extend(bench.latency());
    let answers = bench.dns();
    gateways.stop();
    if !rows.is_empty() {
        println!();
        table::print(&rows);
        options.keep(&rows);
    }
    if !answers.is_empty() {
        println!();
        dns::print(&answers);
    }
    options.check(&rows);
}

/// One kind of work whose cost is CPU time.
struct Work {
    name: &'static str,
    unit: &'static str,
    kind: Kind,
    rate: f64,
    aim: Option<(usize, f64)>,
    /// Whether the latency that one of a hundred exceeds has a row of its own, and its name.
    tail: Option<&'static str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bulk,
    InterceptedBulk,
    Events,
    SplicedRequest,
    SplicedConnection,
    H1,
    H2,
    Connection,
    OwnConnection,
    PostQuantum,
}

impl Kind {
    /// Returns whether a unit of this work is a GiB.
    const fn is_bulk(self) -> bool {
        matches!(self, Self::Bulk | Self::InterceptedBulk)
    }
}

struct Bench<'a> {
    lab: &'a Lab,
    options: &'a Options,
    gateways: &'a Gateways,
}

impl Bench<'_> {
    /// Returns the row of a kind of work, and that of its latencies.
    fn costs(&self, work: &Work) -> Vec<Row> {
        if !self.options.wants(work.name) {
            return Vec::new();
        }
        let mut samples: [Samples; 4] = Default::default();
        let mut tails: [Samples; 4] = Default::default();
        for _ in 0..self.options.repeat {
            for (index, gateway) in self.participants().into_iter().enumerate() {
                // OpenSSL 3.0 has no post-quantum key exchange.
                let absent = work.kind == Kind::PostQuantum && index > 0;
                if absent || !self.options.wants_gateway(index) {
                    continue;
                }
                let outcome = self.measure_well(work, index, gateway);
                let scale = if work.kind.is_bulk() { 1e-6 } else { 1.0 };
                samples[index].push(outcome.cost() * scale);
                tails[index].push(outcome.percentile(0.99));
            }
        }
        let rate = work.rate * self.options.times;
        let offered = match work.kind.is_bulk() {
            true => format!("{} MiB/s", rate * 1024.0),
            false => format!("{rate}/s"),
        };
        let tail = work.tail.map(|name| Row {
            work: name,
            is_latency: true,
            unit: "µs",
            offered: offered.clone(),
            samples: tails,
            aim: Some((NGINX, 1.0)),
        });
        let (unit, aim) = (work.unit, work.aim);
        let cost = Row { work: work.name, is_latency: false, unit, offered, samples, aim };
        [cost].into_iter().chain(tail).collect()
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
                Kind::Bulk => agent.bulk(gateway.splice, 16, load, meter).await,
                Kind::InterceptedBulk => agent.download(gateway.h1, 16, load, meter).await,
                Kind::Events => agent.events(gateway.h1, 64, load, meter).await,
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
            [(LATENCY, 0.9), ("latency of an h1 request, 99 %", 1.0)].map(|(work, aim)| Row {
                work,
                is_latency: true,
                unit: "µs",
                offered: format!("{QUIET_RATE}/s"),
                samples: Default::default(),
                aim: Some((NGINX, aim)),
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

/// Measures the memory of an idle connection of both kinds, in gateways that have done nothing else
/// yet.
fn idle(lab: &Lab, options: &Options) -> Vec<Row> {
    let kinds = [(IDLE, 24.0), (IDLE_SPLICED, 6.0)].into_iter();
    let row = |(work, aim)| {
        let samples = (0..options.restarts).map(|_| idle_once(lab, options, work));
        let samples = samples.fold(<[Samples; 4]>::default(), |mut all, once| {
            let found = all.iter_mut().zip(once).filter_map(|(all, one)| Some((all, one?)));
            found.for_each(|(all, one)| all.push(one));
            all
        });
        let offered = format!("{} connections", options.idle);
        Row { work, is_latency: false, unit: "KiB", offered, samples, aim: Some((0, aim)) }
    };
    kinds.filter(|(work, _)| options.wants(work)).map(row).collect()
}

/// Returns the KiB of each gateway, started for this.
fn idle_once(lab: &Lab, options: &Options, work: &str) -> [Option<f64>; 3] {
    let gateways = Gateways::start(lab, GATEWAY_CPU);
    let bench = Bench { lab, options, gateways: &gateways };
    let mut index = 0;
    let found = bench.participants().map(|gateway| {
        index += 1;
        let meter = gateway.meter.filter(|_| options.wants_gateway(index - 1))?;
        let agent = bench.agent(false);
        Some(inside(async {
            let growth = async |count| -> f64 {
                let before = meter.resident_kib();
                if work == IDLE_SPLICED {
                    let _kept = agent.idle_spliced(gateway.splice, count).await;
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    return meter.resident_kib().saturating_sub(before) as f64;
                }
                let _kept = agent.idle(gateway.h1, count).await;
                tokio::time::sleep(Duration::from_millis(300)).await;
                meter.resident_kib().saturating_sub(before) as f64
            };
            growth(20).await;
            growth(options.idle).await / options.idle as f64
        }))
    });
    gateways.stop();
    found
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
    write: Option<String>,
    check: Option<String>,
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
            write: None,
            check: None,
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
                "--write" => options.write = Some(value()),
                "--check" => options.check = Some(value()),
                _ => usage(),
            }
        }
        options
    }

    /// Writes the ratios down, where that is asked for.
    fn keep(&self, rows: &[Row]) {
        let Some(file) = &self.write else { return };
        let mut text = String::from(
            "# Cloakroom's cost as a part of a rival's; `benches/check` reads this.\n",
        );
        for (of, ratio) in table::ratios(rows) {
            text += &format!("{of}\t{ratio:.2}\n");
        }
        fs::write(file, text).expect("the file can be written");
    }

    /// Ends with 1 where a ratio is above what the file says.
    fn check(&self, rows: &[Row]) {
        let Some(file) = &self.check else { return };
        let written = table::read(&fs::read_to_string(file).expect("the file can be read"));
        let above = table::above(&table::ratios(rows), &written);
        for line in &above {
            eprintln!("{line}");
        }
        if !above.is_empty() {
            std::process::exit(1);
        }
        println!("No ratio is more than a tenth above what {file} says.");
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
         [--gateway Cloakroom|HAProxy|nginx] [--perf FILE] [--write RATIOS] [--check RATIOS]"
    );
    std::process::exit(64);
}

const IDLE: &str = "idle intercepted connection";
const IDLE_SPLICED: &str = "idle spliced connection";
const DNS: &str = "DNS";
const LATENCY: &str = "latency of an h1 request, median";
/// Most measurements of one kind, after which the last is taken as it is.
const TRIES: usize = 4;
const QUIET_RATE: f64 = 200.0;
/// The CPU of load and origins; the gateways have the other.
const LOAD_CPU: usize = 0;
const GATEWAY_CPU: usize = 1;

const HAPROXY: usize = 1;
const NGINX: usize = 2;

/// Returns work whose unit is a microsecond of CPU.
const fn work(name: &'static str, kind: Kind, rate: f64, aim: Option<(usize, f64)>) -> Work {
    Work { name, unit: "µs", kind, rate, aim, tail: None }
}

/// Returns work whose unit is a second of CPU for a GiB.
const fn bulk(name: &'static str, kind: Kind, rate: f64, aim: (usize, f64)) -> Work {
    Work { name, unit: "s/GiB", kind, rate, aim: Some(aim), tail: None }
}

const WORK: [Work; 13] = [
    bulk("spliced bulk", Kind::Bulk, 0.5, (HAPROXY, 0.75)),
    work("spliced request", Kind::SplicedRequest, 12_000.0, Some((NGINX, 0.95))),
    work("spliced request", Kind::SplicedRequest, 3_000.0, Some((NGINX, 0.95))),
    Work {
        tail: Some("new spliced connection, 99 %"),
        ..work("new spliced connection", Kind::SplicedConnection, 600.0, Some((NGINX, 0.95)))
    },
    bulk("intercepted bulk", Kind::InterceptedBulk, 0.25, (NGINX, 0.6)),
    work("intercepted event (SSE)", Kind::Events, 4_000.0, None),
    work("intercepted h1 request", Kind::H1, 12_000.0, Some((NGINX, 0.8))),
    work("intercepted h1 request", Kind::H1, 3_000.0, Some((NGINX, 0.8))),
    work("intercepted h2 request", Kind::H2, 12_000.0, Some((HAPROXY, 0.85))),
    work("intercepted h2 request", Kind::H2, 3_000.0, Some((HAPROXY, 0.85))),
    work("new intercepted connection, rivals share upstreams", Kind::Connection, 600.0, None),
    Work {
        tail: Some("new intercepted connection, own upstream, 99 %"),
        ..work(
            "new intercepted connection, own upstream",
            Kind::OwnConnection,
            600.0,
            Some((HAPROXY, 0.4)),
        )
    },
    work("the same with X25519MLKEM768", Kind::PostQuantum, 600.0, None),
];
