//! The start of most properties: a lab with origins, a resolver and a gateway with the usual
//! policy; and the few questions they all ask.

use std::{fmt::Display, io, net::SocketAddr};

use lab::{
    Lab,
    audit::Record,
    client::{H2, Hello, Response, Tls},
    dns::Dns,
    gateway::{self, Gateway, SECRETS},
    net::{AGENT, Host, Ns, OPENAI},
    origin::Origin,
};

/// Everything, running.
pub struct World {
    pub lab: Lab,
    pub origin: Origin,
    pub dns: Dns,
    pub gateway: Gateway,
}

impl World {
    /// With the usual policy and the file of secrets.
    #[track_caller]
    pub fn usual() -> Self {
        Self::with(&gateway::usual_config())
    }

    /// With another configuration.
    #[track_caller]
    pub fn with(config: &dyn Display) -> Self {
        Self::prepared(config, |_, _| {})
    }

    /// With another configuration, after changes to the lab.
    #[track_caller]
    pub fn prepared(config: &dyn Display, prepare: impl FnOnce(&Lab, &Dns)) -> Self {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let dns = Dns::start();
        prepare(&lab, &dns);
        let gateway = Gateway::start(&lab, config);
        Self { lab, origin, dns, gateway }
    }

    /// A client of `name` that believes what an agent believes.
    pub fn hello(&self, name: &str) -> Hello {
        let pem = std::fs::read_to_string(self.lab.dir.join("agents.pem")).expect("it was made");
        Hello::h1(name).trusting(&pem)
    }

    /// An HTTP/1.1 connection of the first agent.
    pub fn h1(&self, host: Host) -> io::Result<Tls> {
        self.h1_from(AGENT, host.port(443), host.name)
    }

    /// An HTTP/1.1 connection of any agent, to any address, with any name.
    pub fn h1_from(&self, from: Ns, to: SocketAddr, sni: &str) -> io::Result<Tls> {
        Tls::open(from, to, &self.hello(sni))
    }

    /// An HTTP/2 connection of the first agent.
    pub fn h2(&self, host: Host) -> io::Result<H2> {
        let hello = Hello { alpn: vec![b"h2"], ..self.hello(host.name) };
        H2::open(AGENT, host.port(443), &hello)
    }

    /// What the OpenAI host answers to these bytes on a connection of their own.
    #[track_caller]
    pub fn ask(&self, bytes: &str) -> Response {
        let mut tls = self.h1(OPENAI).expect("the gateway shows a certificate");
        tls.ask(bytes).unwrap_or_else(|error| panic!("no answer to {bytes:?}: {error}"))
    }

    /// Requires this answer to these bytes, an audit record that says the same, and that no
    /// request arrives anywhere.
    #[track_caller]
    pub fn assert_refused(&self, bytes: &str, status: u16, reason: &str) {
        let answer = self.ask(bytes);
        assert_eq!(
            (answer.status.as_u16(), answer.reason().as_deref()),
            (status, Some(reason)),
            "{bytes:?}: {}",
            answer.text()
        );
        self.gateway.audit.wait_for(|record| record.is("request") && record["reason"] == reason);
        self.assert_nothing_forwarded();
    }

    /// No request, and nothing that looks like one, reached any origin.
    #[track_caller]
    pub fn assert_nothing_forwarded(&self) {
        self.origin.log().assert_no_request();
        self.assert_secrets_stay();
    }

    /// No secret is at the origins, in the audit or in the daemon's log.
    #[track_caller]
    pub fn assert_secrets_stay(&self) {
        for secret in SECRETS {
            assert!(!self.origin.log().holds(secret), "a secret reached an origin");
        }
        self.assert_secrets_untold();
    }

    /// No secret is in the audit or in the daemon's log.
    #[track_caller]
    pub fn assert_secrets_untold(&self) {
        let (audit, log) = (self.gateway.audit.text(), self.gateway.stderr());
        for secret in SECRETS {
            assert!(!audit.contains(secret), "a secret is in the audit: {audit}");
            assert!(!log.contains(secret), "a secret is in the log: {log}");
        }
    }

    /// Records of requests so far.
    pub fn requests(&self) -> Vec<Record> {
        self.gateway.audit.of_kind("request")
    }

    /// Records of connections so far.
    pub fn connections(&self) -> Vec<Record> {
        self.gateway.audit.of_kind("connection")
    }
}

/// A GET of `/v1/models` at the OpenAI host with these further header lines.
pub fn get(fields: &[&str]) -> String {
    get_path("/v1/models", fields)
}

/// Asks for a stream of events, and reads the first.
#[track_caller]
pub fn first_event(mut tls: Tls, request: &str) -> Tls {
    tls.send(request).expect("sent");
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("event 0") {
        let more = tls.read_some(4096).expect("the first event");
        assert!(!more.is_empty(), "ended early");
        seen.extend(more);
    }
    tls
}

/// A GET of `path` at the OpenAI host with these further header lines.
pub fn get_path(path: &str, fields: &[&str]) -> String {
    let mut head = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n", OPENAI.name);
    for field in fields {
        head.push_str(field);
        head.push_str("\r\n");
    }
    head + "\r\n"
}

/// The credential that the first agent may use at the OpenAI host.
pub const TICKET: &str = "Authorization: Bearer OPENAI_API_KEY";
