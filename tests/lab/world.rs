//! The start of most properties: a lab with origins, a resolver and a gateway with the usual
//! policy; and the few questions they all ask.

use std::{fmt::Display, fs, io, net::SocketAddr, path::PathBuf};

use crate::{
    audit::Record,
    client::{H2, Hello, Response, Tls},
    dns::Dns,
    gateway::{self, Gateway, Options, SECRETS},
    net::{AGENT, Host, Lab, Ns, OPENAI},
    origin::Origin,
};

/// Everything, running. The assertions of attacks are in [`crate::attack`]; at its end every
/// [`Gateway`] is looked at once more.
pub struct World {
    /// The namespaces, the test's folder and the public CA.
    pub lab: Lab,
    /// The servers of the internet, the attacker's among them.
    pub origin: Origin,
    /// The resolver that the gateway asks.
    pub dns: Dns,
    /// The gateway.
    pub gateway: Gateway,
}

/// A world whose gateway is still to come: what is here can be changed before it starts.
pub struct Builder {
    /// The namespaces, the test's folder and the public CA.
    pub lab: Lab,
    /// The servers of the internet.
    pub origin: Origin,
    /// The resolver that the gateway will ask.
    pub dns: Dns,
    options: Options,
}

impl Builder {
    /// Writes a file into the lab's folder.
    #[must_use]
    pub fn file(self, name: &str, text: &str) -> Self {
        self.lab.write(name, text);
        self
    }

    /// Has the gateway log at this level.
    #[must_use]
    pub fn log(mut self, level: &'static str) -> Self {
        self.options.level = level;
        self
    }

    /// Adds environment variables to the gateway's own.
    #[must_use]
    pub fn variables(mut self, variables: &[(&str, &str)]) -> Self {
        let owned = variables.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        self.options.variables.extend(owned);
        self
    }

    /// Has the gateway's kernel forward all the while: behind a switch that is off, the packet
    /// rules would show nothing.
    #[must_use]
    pub fn forwarding(mut self) -> Self {
        self.options.forwarding = true;
        self
    }

    /// Starts the gateway with this configuration.
    ///
    /// # Panics
    /// When it does not become ready, with what it said.
    #[track_caller]
    pub fn start(self, config: &dyn Display) -> World {
        let config = Gateway::prepare(&self.lab, config).unwrap_or_else(|failed| failed.panic());
        self.run(&config)
    }

    /// Starts the daemon alone: the guard, the files and the certificates are there.
    ///
    /// # Panics
    /// When it does not become ready, with what it said.
    #[track_caller]
    pub fn run(self, config: &PathBuf) -> World {
        let Self { lab, origin, dns, options } = self;
        let gateway = Gateway::run_with(&lab, config, &options);
        World { gateway: gateway.unwrap_or_else(|failed| failed.panic()), lab, origin, dns }
    }
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
        Self::builder().start(config)
    }

    /// With another configuration, after changes to the lab.
    #[track_caller]
    pub fn prepared(config: &dyn Display, prepare: impl FnOnce(&Lab, &Dns)) -> Self {
        let builder = Self::builder();
        prepare(&builder.lab, &builder.dns);
        builder.start(config)
    }

    /// Origins and a resolver, before a gateway is among them.
    pub fn builder() -> Builder {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        Builder { lab, origin, dns: Dns::start(), options: Options::default() }
    }

    /// The operator's file.
    pub fn config(&self) -> PathBuf {
        self.lab.dir.join("cloakroom.toml")
    }

    /// Starts the daemon again as it was started, with the files that are there.
    ///
    /// # Panics
    /// When it does not become ready, with what it said.
    #[track_caller]
    pub fn restart(&mut self) {
        let again = Gateway::run_with(&self.lab, &self.config(), self.gateway.options());
        self.gateway = again.unwrap_or_else(|failed| failed.panic());
    }

    /// A client of `name` that believes what an agent believes.
    ///
    /// # Panics
    /// When no certificates were made.
    pub fn hello(&self, name: &str) -> Hello {
        let pem = fs::read_to_string(self.lab.dir.join("agents.pem")).expect("it was made");
        Hello::h1(name).trusting(&pem)
    }

    /// The same, for HTTP/2.
    pub fn hello2(&self, name: &str) -> Hello {
        Hello { alpn: vec![b"h2"], ..self.hello(name) }
    }

    /// An HTTP/1.1 connection of the first agent.
    ///
    /// # Errors
    /// The failure of the handshake.
    pub fn h1(&self, host: Host) -> io::Result<Tls> {
        self.open(AGENT, host)
    }

    /// An HTTP/1.1 connection of any agent.
    ///
    /// # Errors
    /// The failure of the handshake.
    pub fn open(&self, from: Ns, host: Host) -> io::Result<Tls> {
        self.h1_from(from, host.port(443), host.name)
    }

    /// An HTTP/1.1 connection of any agent, to any address, with any name.
    ///
    /// # Errors
    /// The failure of the handshake.
    pub fn h1_from(&self, from: Ns, to: SocketAddr, sni: &str) -> io::Result<Tls> {
        Tls::open(from, to, &self.hello(sni))
    }

    /// An HTTP/2 connection of the first agent.
    ///
    /// # Errors
    /// The failure of the handshake.
    pub fn h2(&self, host: Host) -> io::Result<H2> {
        H2::open(AGENT, host.port(443), &self.hello2(host.name))
    }

    /// Sends these bytes to the OpenAI host on a connection of their own, and returns its answer.
    ///
    /// # Panics
    /// When there is no answer.
    #[track_caller]
    pub fn ask(&self, bytes: &str) -> Response {
        let answer = self.h1(OPENAI).and_then(|mut tls| tls.ask(bytes));
        answer.unwrap_or_else(|error| self.fail(&format!("no answer to {bytes:?}"), error))
    }

    /// Requires this answer to these bytes, an audit record that says the same, and that no
    /// request arrives anywhere.
    ///
    /// # Panics
    /// When one of them is missing.
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
    ///
    /// # Panics
    /// When one did.
    #[track_caller]
    pub fn assert_nothing_forwarded(&self) {
        self.origin.log().assert_no_request();
        self.assert_secrets_stay();
    }

    /// No secret is at the origins, in the audit or in the daemon's log.
    ///
    /// # Panics
    /// When one is.
    #[track_caller]
    pub fn assert_secrets_stay(&self) {
        for secret in SECRETS {
            assert!(!self.origin.log().holds(secret), "a secret reached an origin");
        }
        self.assert_secrets_untold();
    }

    /// No secret is in the audit or in the daemon's log.
    ///
    /// # Panics
    /// When one is.
    #[track_caller]
    pub fn assert_secrets_untold(&self) {
        self.gateway.assert_secrets_untold();
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
///
/// # Panics
/// When none comes.
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
