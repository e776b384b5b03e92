//! Streams: whole, in order, without delay, and never collected in the gateway.
//!
//! Each property is tested on every way through the gateway: intercepted and spliced, over HTTP/1.1
//! and HTTP/2. The clients are unmodified wherever they can show it.

mod ends;
mod exchanges;

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::Stdio,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use lab::{
    World,
    client::{agent, succeed},
    gateway::usual_config,
    net::{AGENT, Host, OPENAI, PYPI},
    origin::pattern,
    sandboxed,
    world::TICKET,
};

/// A way through the gateway.
#[derive(Debug, Clone, Copy)]
struct Way {
    host: Host,
    version: &'static str,
}

const INTERCEPTED: [Way; 2] =
    [Way { host: OPENAI, version: "--http1.1" }, Way { host: OPENAI, version: "--http2" }];
const SPLICED: [Way; 2] =
    [Way { host: PYPI, version: "--http1.1" }, Way { host: PYPI, version: "--http2" }];

impl Way {
    fn all() -> impl Iterator<Item = Self> {
        INTERCEPTED.into_iter().chain(SPLICED)
    }

    fn url(self, path: &str) -> String {
        format!("https://{}{path}", self.host.name)
    }
}

/// Returns the usual policy, with the settings of the first API that these properties need.
fn world() -> World {
    let config = usual_config().api("openai", |it| {
        it.more("methods", &["HEAD", "PUT"])
            .more("paths", &["/gated", "/pattern", "/early", "/duplex", "/tardy"])
    });
    World::with(&config)
}

/// Runs curl on this way, with the placeholder.
#[track_caller]
fn curl(world: &World, way: Way, arguments: &[&str], path: &str) -> String {
    let mut curl = agent(&world.lab, AGENT, "curl");
    curl.args(["-sS", "--fail", "--max-time", "60", way.version, "-H", TICKET]);
    succeed(curl.args(arguments).arg(way.url(path)))
}

/// Returns the most memory that the daemon ever had in use, in KiB.
pub(crate) fn peak_kib(world: &World) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", world.gateway.pid()));
    let status = status.expect("the daemon runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.expect("the kernel says so")
}

#[test]
fn an_event_arrives_before_the_next_one_is_sent() {
    sandboxed(|| {
        let world = world();
        for way in Way::all() {
            let mut curl = agent(&world.lab, AGENT, "curl");
            curl.args(["-sS", "-N", "--max-time", "60", way.version, "-H", TICKET]);
            let mut curl =
                curl.arg(way.url("/gated?n=5")).stdout(Stdio::piped()).spawn().expect("curl");
            let (lines, arrived) = mpsc::channel();
            let stdout = BufReader::new(curl.stdout.take().expect("it was piped"));
            thread::spawn(move || {
                stdout.lines().map_while(Result::ok).try_for_each(|line| lines.send(line))
            });
            let mut fastest = Duration::MAX;
            for event in 0..5 {
                // Nothing else is under way, so bytes that are held back now are held back for
                // ever.
                world.origin.release();
                let sent = Instant::now();
                let line = arrived.recv_timeout(Duration::from_secs(10));
                assert_eq!(line.as_deref(), Ok(&*format!("data: event {event}")), "{way:?}");
                assert_eq!(arrived.recv_timeout(Duration::from_secs(10)).as_deref(), Ok(""));
                fastest = fastest.min(sent.elapsed());
            }
            assert!(curl.wait().expect("curl ends").success());
            assert!(fastest < Duration::from_millis(40), "{way:?}: a delay of {fastest:?}");
        }
    });
}

#[test]
fn a_large_upload_arrives_whole_and_is_not_gathered() {
    sandboxed(|| {
        let (world, body) = (world(), pattern(LARGE));
        let file = world.lab.write("upload", &body).display().to_string();
        let before = peak_kib(&world);
        for way in Way::all() {
            curl(&world, way, &["-T", &file], "/status/200");
            let requests = world.origin.log().wait_requests(1);
            assert!(requests[0].body == body, "{way:?}: {} bytes arrived", requests[0].body.len());
            drop(requests);
            world.origin.log().clear();
        }
        bounded(&world, before);
        for record in world.requests() {
            assert_eq!(record["request_bytes"], LARGE, "{record}");
        }
    });
}

#[test]
fn a_large_download_arrives_whole_and_is_not_gathered() {
    sandboxed(|| {
        let (world, expected) = (world(), pattern(LARGE));
        let before = peak_kib(&world);
        for way in Way::all() {
            curl(&world, way, &["-o", "/run/lab/got"], &format!("/pattern?bytes={LARGE}"));
            let got = fs::read("/run/lab/got").expect("curl wrote it");
            assert!(got == expected, "{way:?}: {} bytes arrived", got.len());
        }
        bounded(&world, before);
        for record in world.requests() {
            assert_eq!(record["response_bytes"], LARGE, "{record}");
        }
    });
}

#[test]
fn a_slow_reader_gets_everything_and_the_gateway_waits() {
    sandboxed(|| {
        let (world, expected) = (world(), pattern(LARGE / 2));
        let before = peak_kib(&world);
        for way in Way::all() {
            let begun = Instant::now();
            let path = format!("/pattern?bytes={}", LARGE / 2);
            curl(&world, way, &["--limit-rate", "12M", "-o", "/run/lab/got"], &path);
            assert!(begun.elapsed() > Duration::from_secs(1), "{way:?}: not slow at all");
            assert!(fs::read("/run/lab/got").expect("curl wrote it") == expected, "{way:?}");
        }
        bounded(&world, before);
    });
}

#[test]
fn a_slow_api_slows_the_upload_and_nothing_is_gathered() {
    sandboxed(|| {
        let (world, body) = (world(), pattern(LARGE));
        let file = world.lab.write("upload", body).display().to_string();
        let before = peak_kib(&world);
        for way in Way::all() {
            let said = curl(&world, way, &["-T", &file], "/tardy?ms=1500");
            assert_eq!(said, format!("{LARGE} bytes"), "{way:?}");
            world.origin.log().clear();
        }
        bounded(&world, before);
    });
}

#[test]
fn an_answer_that_comes_before_the_body_is_through_arrives() {
    sandboxed(|| {
        let (world, body) = (world(), pattern(LARGE));
        let file = world.lab.write("upload", body).display().to_string();
        for way in Way::all() {
            let mut curl = agent(&world.lab, AGENT, "curl");
            curl.args(["-sS", "--max-time", "30", way.version, "-H", TICKET, "-H", "Expect:"]);
            let output = curl.args(["-w", " %{http_code}", "-T", &file]).arg(way.url("/early"));
            let output = output.output().expect("curl starts");
            assert_eq!(String::from_utf8_lossy(&output.stdout), "too large 413", "{way:?}");
        }
    });
}

/// Requires that the daemon's memory grew by less than one body.
#[track_caller]
fn bounded(world: &World, before: u64) {
    let grown = peak_kib(world).saturating_sub(before);
    assert!(grown < MAX_GROWTH_KIB, "the daemon's memory grew by {grown} KiB, from {before}");
}

const LARGE: u64 = 64 << 20;
/// A bound far below one large body, and far above the buffers of a connection.
const MAX_GROWTH_KIB: u64 = 16 << 10;
