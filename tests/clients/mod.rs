//! Unmodified clients with a placeholder for a key: each works, and its request arrives with the
//! real key, once, in that client's place. A listener on the agent's side never sees the key, with
//! or without the keys of the agent's own TLS library.
//!
//! Each property holds over IPv4 and IPv6; a test without a packet of its family fails.

mod agents;
mod by_name;
mod curl;
mod git;
mod grpc;
mod minted;
mod more;
pub(crate) mod onboarding;
mod packages;
mod quic;
mod sdk;
mod sdks;
mod spliced;

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
};

use ::base64::Engine as _;
use lab::{
    World,
    audit::Record,
    client::{agent, succeed},
    gateway::{self, SECRETS},
    net::{AGENT, HOSTS, Host},
    origin::Received,
    wait,
    wire::Wire,
};
use policy_builder::Config;

/// The one family of addresses that names have, for agents and for the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// A world with a tap on the agent's link, in which each name has one address.
struct Tapped {
    world: World,
    wire: Wire,
    family: Family,
}

/// The key and the place that an API must receive instead of a placeholder.
struct Swap {
    host: Host,
    placeholder: &'static str,
    secret: &'static str,
    field: &'static str,
    value: String,
}

impl Family {
    fn address(self, host: Host) -> IpAddr {
        match self {
            Self::V4 => host.v4().into(),
            Self::V6 => host.v6().into(),
        }
    }

    fn https(self, host: Host) -> SocketAddr {
        (self.address(host), 443).into()
    }
}

impl Tapped {
    fn new(family: Family) -> Self {
        Self::with(family, &gateway::usual_config())
    }

    fn with(family: Family, config: &Config) -> Self {
        let world = World::with(config);
        let names = HOSTS.map(|host| (host.name, vec![family.address(host)]));
        world.lab.names(&names);
        for (name, addresses) in &names {
            world.dns.set(name, addresses);
        }
        let wire = Wire::tap(&world.lab, AGENT);
        Self { world, wire, family }
    }

    /// Returns a command for an agent's program, which writes down the keys of its TLS connections.
    fn agent(&self, program: &str) -> Command {
        let mut command = agent(&self.world.lab, AGENT, program);
        command.env("SSLKEYLOGFILE", self.wire.keys());
        command
    }

    /// Runs curl as an agent would and returns its output.
    #[track_caller]
    fn curl(&self, arguments: &[&str]) -> String {
        succeed(self.agent("curl").args(["-sS", "--fail", "--max-time", "30"]).args(arguments))
    }

    /// Waits for this many records of connections and requests, and checks that no more come.
    #[track_caller]
    fn records(&self, connections: usize, requests: usize) -> (Vec<Record>, Vec<Record>) {
        let count = || (self.world.connections().len(), self.world.requests().len());
        wait::until(wait::SOON, || (count() == (connections, requests)).then_some(()));
        std::thread::sleep(wait::QUIET);
        let audit = self.world.gateway.audit.text();
        assert_eq!(count(), (connections, requests), "one record each; there are:\n{audit}");
        (self.world.connections(), self.world.requests())
    }

    /// Requires that these requests, all of them, arrived with the key, and that the audit has one
    /// record for each of them and for each connection that was on the wire.
    #[track_caller]
    fn assert_swapped(&self, swap: &Swap, requests: usize) -> Vec<Received> {
        let sessions = self.wire.sessions();
        let (connected, recorded) = self.records(sessions.len(), requests);
        let received = self.world.origin.log().wait_requests(requests);
        for request in &received {
            swap.assert_in(request);
        }
        for record in &recorded {
            swap.assert_told(record);
        }
        for record in &connected {
            assert_eq!(record["decision"], "intercept", "{record}");
            assert_eq!(record["group"], "research", "{record}");
            assert_eq!(record["sni"], swap.host.name, "{record}");
            assert!(!record.has("reason"), "{record}");
            self.assert_family(record, swap.host);
        }
        self.assert_untold(swap);
        received
    }

    /// Asserts that the agent dialled this family, and so did the gateway.
    #[track_caller]
    fn assert_family(&self, record: &Record, host: Host) {
        assert_eq!(record["dialled"], self.family.https(host).to_string(), "{record}");
        assert_eq!(record["upstream"], self.family.address(host).to_string(), "{record}");
    }

    /// Asserts that the agent's side sent the placeholder and never held a key, and that audit and
    /// log do not either.
    #[track_caller]
    fn assert_untold(&self, swap: &Swap) {
        let sessions = self.wire.sessions();
        assert!(!sessions.is_empty(), "the tap saw no TLS");
        assert!(
            sessions.iter().any(|session| session.sends(swap.placeholder)),
            "the placeholder was not found where it is known to be: the search is broken"
        );
        self.wire.assert_never(&SECRETS);
        self.world.assert_secrets_untold();
    }
}

impl Swap {
    /// The key is in `Authorization: Bearer`.
    fn bearer(host: Host, placeholder: &'static str, secret: &'static str) -> Self {
        Self {
            host,
            placeholder,
            secret,
            field: "authorization",
            value: format!("Bearer {secret}"),
        }
    }

    /// The key is the value of a field of the API's own.
    fn field(
        host: Host,
        placeholder: &'static str,
        secret: &'static str,
        field: &'static str,
    ) -> Self {
        Self { host, placeholder, secret, field, value: secret.to_owned() }
    }

    /// The key is a password.
    fn basic(host: Host, placeholder: &'static str, secret: &'static str, user: &str) -> Self {
        let value = format!("Basic {}", base64(&format!("{user}:{secret}")));
        Self { host, placeholder, secret, field: "authorization", value }
    }

    /// Asserts that the key is in its place, once, and nothing of the placeholder is left anywhere.
    #[track_caller]
    fn assert_in(&self, request: &Received) {
        assert_eq!(request.authority(), self.host.name);
        assert_eq!(request.header(self.field), std::slice::from_ref(&self.value), "{request:?}");
        let everything = everything(request);
        let once = self.value.rsplit(' ').next().unwrap_or_default();
        assert_eq!(everything.matches(once).count(), 1, "{request:?}");
        if once != self.secret {
            assert!(!everything.contains(self.secret), "{request:?}");
        }
        assert_no_trace(&everything, self.placeholder);
    }

    /// Asserts that the audit names the placeholder and the result.
    #[track_caller]
    fn assert_told(&self, record: &Record) {
        assert!(record.is("request"), "{record}");
        assert_eq!(record["decision"], "intercept", "{record}");
        assert_eq!(record["placeholders"], serde_json::json!([self.placeholder]), "{record}");
        assert_eq!(record["upstream_status"], 200, "{record}");
        assert_eq!(record["host"], self.host.name, "{record}");
        assert_eq!(record["complete"], true, "{record}");
        assert!(!record.has("reason"), "{record}");
    }
}

/// Returns every field, name and byte of a request, as text.
fn everything(request: &Received) -> String {
    let fields = request.headers.iter().chain(&request.trailers);
    let mut all = format!("{} {}\n", request.method, request.uri);
    for (name, value) in fields {
        all += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
    }
    all + &String::from_utf8_lossy(&request.body)
}

/// Asserts that neither the placeholder nor its base64 is in the text, at any alignment.
#[track_caller]
fn assert_no_trace(text: &str, placeholder: &str) {
    for form in lab::wire::forms(placeholder) {
        let found = text.as_bytes().windows(form.len()).any(|at| at == form);
        assert!(!found, "the placeholder is still in {text}");
    }
}

fn base64(text: &str) -> String {
    ::base64::engine::general_purpose::STANDARD.encode(text)
}
