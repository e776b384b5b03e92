//! Helpers of the tests of faults. Each test checks three places: the agent's answer, the origins
//! (which got nothing, or only what was allowed), and the audit record.

use std::{fs, io, net::SocketAddr};

use lab::{
    Lab,
    audit::Record,
    client::{Hello, Response, Tls},
    gateway::{self, Failed, Gateway},
    net::{AGENT, AGENT2, Host, Ns, OPENAI, OTHER},
    origin::Origin,
};

/// A request that the usual policy allows, with the placeholder in its place.
pub(crate) const CHAT: &str = "POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.example\r\n\
    Authorization: Bearer OPENAI_API_KEY\r\nContent-Length: 2\r\n\r\n{}";

/// Returns the same as a GET of any path.
pub(crate) fn get(path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: api.openai.example\r\n\
         Authorization: Bearer OPENAI_API_KEY\r\n\r\n"
    )
}

/// Returns an HTTP/1.1 client of `host` that trusts the CAs that agents trust.
pub(crate) fn hello(lab: &Lab, host: Host) -> Hello {
    let bundle = fs::read_to_string(lab.dir.join("agents.pem")).expect("the gateway's root");
    Hello::h1(host.name).trusting(&bundle)
}

/// Opens a TLS connection to `host` as an agent in `ns` does.
pub(crate) fn open(lab: &Lab, ns: Ns, host: Host) -> io::Result<Tls> {
    Tls::open(ns, host.port(443), &hello(lab, host))
}

/// Sends one request on a connection of its own, from the first agent to the first API.
#[track_caller]
pub(crate) fn ask(lab: &Lab, gateway: &Gateway, request: &str) -> Response {
    let answer = open(lab, AGENT, OPENAI).and_then(|mut tls| tls.ask(request));
    answer.unwrap_or_else(|error| panic!("{error}\n{}\n{}", gateway.stderr(), gateway.audit.text()))
}

/// Asserts that the answer is the gateway's own with this status and reason.
#[track_caller]
pub(crate) fn assert_refused(answer: &Response, status: u16, reason: &str) {
    let text = answer.text();
    assert_eq!(
        (answer.status.as_u16(), answer.reason().as_deref()),
        (status, Some(reason)),
        "{text}"
    );
}

/// Asserts that the answer is, to the letter, the one for a value that is not available now.
#[track_caller]
pub(crate) fn assert_unavailable(answer: &Response) {
    assert_refused(answer, 503, "secret_unavailable");
    for (name, value) in [
        ("retry-after", "5"),
        ("content-type", "application/problem+json"),
        ("cache-control", "no-store"),
    ] {
        assert_eq!(answer.headers[name], value, "{name}");
    }
    let text = answer.text().to_lowercase();
    assert!(!text.contains("vault"), "the cause is for the operator alone: {text}");
}

/// Returns the audit's records of this kind: `connection` or `request`.
pub(crate) fn records(gateway: &Gateway, kind: &str) -> Vec<Record> {
    gateway.audit.of_kind(kind)
}

/// Waits for the record of a request with this reason, beyond the first `from` such records.
#[track_caller]
pub(crate) fn refusal(gateway: &Gateway, from: usize, reason: &str) -> Record {
    let nth = || {
        let mut requests = records(gateway, "request").into_iter();
        requests.by_ref().filter(|record| record["reason"] == reason).nth(from)
    };
    lab::wait::until(lab::wait::SOON, nth)
        .unwrap_or_else(|| panic!("no record {from} of {reason}:\n{}", gateway.audit.text()))
}

/// Waits until the audit holds exactly `count` records of connections, and returns them.
#[track_caller]
pub(crate) fn connections(gateway: &Gateway, count: usize) -> Vec<Record> {
    lab::wait::expect(&format!("{count} records of connections"), || {
        records(gateway, "connection").len() >= count
    });
    let records = records(gateway, "connection");
    assert_eq!(records.len(), count, "one record for each connection: {records:#?}");
    records
}

/// Asserts that a start failed with exit 1 and one line on standard error that holds all of `says`.
#[track_caller]
pub(crate) fn assert_one_line(failed: &Failed, says: &[&str]) {
    assert_eq!(failed.code(), Some(1), "{}", failed.stderr);
    let complaints: Vec<&str> =
        failed.stderr.lines().filter(|line| line.starts_with("cloakroom: ")).collect();
    let others = failed.stderr.lines().filter(|line| line.contains("panicked")).count();
    assert_eq!((complaints.len(), others), (1, 0), "one clear line:\n{}", failed.stderr);
    for part in says {
        assert!(complaints[0].contains(part), "{part:?} is not in: {}", failed.stderr);
    }
}

/// Asserts that agents get nothing through a gateway whose kernel would forward.
#[track_caller]
pub(crate) fn assert_closed(origin: &Origin) {
    gateway::forward();
    let ways = [
        (AGENT, OPENAI.port(443)),
        (AGENT, OPENAI.port6(443)),
        (AGENT2, OTHER.port(80)),
        (AGENT2, OTHER.port6(8443)),
    ];
    std::thread::scope(|scope| {
        for (agent, to) in ways {
            scope.spawn(move || agent.connect(to).map(drop).expect_err(&to.to_string()));
        }
    });
    origin.log().assert_untouched();
}

/// Returns the number of the gateway's open descriptors.
pub(crate) fn descriptors(gateway: &Gateway) -> usize {
    fs::read_dir(format!("/proc/{}/fd", gateway.pid())).expect("the gateway runs").count()
}

/// A listener in `ns` to which nobody may connect, on each of these addresses.
pub(crate) struct Trap(Vec<std::net::TcpListener>);

impl Trap {
    pub(crate) fn set(ns: Ns, addresses: &[SocketAddr]) -> Self {
        Self(ns.enter(|| {
            let bind = |address| {
                let listener = std::net::TcpListener::bind(address)
                    .unwrap_or_else(|error| panic!("{address}: {error}"));
                listener.set_nonblocking(true).expect("a socket");
                listener
            };
            addresses.iter().map(bind).collect()
        }))
    }

    /// Shows that the trap would notice a connection: from `ns` each of these addresses leads into
    /// it.
    pub(crate) fn prove(self, ns: Ns, addresses: &[SocketAddr]) -> Self {
        for address in addresses {
            ns.connect(*address).unwrap_or_else(|error| panic!("{address}: {error}"));
            let accepted = || self.0.iter().find_map(|listener| listener.accept().ok());
            assert!(lab::wait::until(lab::wait::SOON, accepted).is_some(), "{address} is no trap");
        }
        self
    }

    /// Asserts that nobody has connected so far.
    #[track_caller]
    pub(crate) fn assert_untouched(&self) {
        for listener in &self.0 {
            if let Ok((stream, peer)) = listener.accept() {
                panic!("{peer} connected to {:?}", stream.local_addr());
            }
        }
    }
}

/// Closes a connection with a reset.
pub(crate) fn reset(stream: std::net::TcpStream) {
    let now = Some(std::time::Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(&stream, now).expect("a socket");
    drop(stream);
}
