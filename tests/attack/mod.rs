//! The three witnesses of every attack: the origin, the audit, and only then the answer.
//!
//! A [`Scene`] is a lab with a gateway in it. Each of its assertions looks at one connection of
//! the attacker: what the origins received meanwhile, at whichever of their addresses, and which
//! records the audit has of that connection. It errs to failure: one record too many fails too.

pub(crate) mod raw_h2;

use std::{fmt::Display, io, net::SocketAddr};

use lab::{
    Lab,
    audit::Record,
    client::{H2, Hello, Response, Tls},
    dns::Dns,
    gateway::{Gateway, SECRETS, usual_config},
    net::{Host, Ns},
    origin::{Connection, Origin, Received},
    wait,
};
use serde_json::Value;

/// A lab with the gateway running.
pub(crate) struct Scene {
    pub(crate) lab: Lab,
    pub(crate) origin: Origin,
    pub(crate) dns: Dns,
    pub(crate) gateway: Gateway,
    bundle: String,
}

/// One request, to be said in HTTP/1.1 or in HTTP/2.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) method: &'static str,
    pub(crate) authority: String,
    pub(crate) path: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: &'static str,
}

/// What was at the origins before an attack.
#[derive(Clone, Copy)]
pub(crate) struct Before {
    connections: usize,
    pub(crate) requests: usize,
}

impl Ask {
    /// A request that is in order except for its credential: there is none yet.
    pub(crate) fn to(host: Host) -> Self {
        Self {
            method: "POST",
            authority: host.name.to_owned(),
            path: "/v1/attack".to_owned(),
            fields: Vec::new(),
            body: "",
        }
    }

    /// The same with one more field.
    pub(crate) fn field(mut self, name: &str, value: impl Into<String>) -> Self {
        self.fields.push((name.to_owned(), value.into()));
        self
    }

    /// The same with the good placeholder of the first API.
    pub(crate) fn good(self) -> Self {
        self.field("authorization", "Bearer OPENAI_API_KEY")
    }

    pub(crate) fn method(self, method: &'static str) -> Self {
        Self { method, ..self }
    }

    pub(crate) fn path(self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    pub(crate) fn authority(self, authority: &str) -> Self {
        Self { authority: authority.to_owned(), ..self }
    }

    pub(crate) fn body(self, body: &'static str) -> Self {
        Self { body, ..self }
    }

    /// As it stands on the wire in HTTP/1.1.
    pub(crate) fn h1(&self) -> String {
        let Self { method, authority, path, fields, body } = self;
        let fields: String =
            fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let length = match (*method, body.len()) {
            ("GET", 0) => String::new(),
            (_, length) => format!("Content-Length: {length}\r\n"),
        };
        format!("{method} {path} HTTP/1.1\r\nHost: {authority}\r\n{fields}{length}\r\n{body}")
    }

    /// For the HTTP/2 client; a text that cannot be a field there is a mistake of the test.
    pub(crate) fn h2(&self) -> http::Request<()> {
        let uri = format!("https://{}{}", self.authority, self.path);
        let mut request = http::Request::builder().method(self.method).uri(uri);
        for (name, value) in &self.fields {
            request = request.header(name.to_ascii_lowercase(), value);
        }
        request.body(()).expect("a request that HTTP/2 can say")
    }
}

impl Scene {
    /// The lab's usual policy.
    pub(crate) fn usual() -> Self {
        Self::with(&usual_config())
    }

    /// Another policy.
    pub(crate) fn with(config: &dyn Display) -> Self {
        Self::with_files(config, &[])
    }

    /// Another policy, and files beside it by their names.
    pub(crate) fn with_files(config: &dyn Display, files: &[(&str, &str)]) -> Self {
        let lab = Lab::new();
        files.iter().for_each(|(name, text)| _ = lab.write(name, text));
        let (origin, dns) = (Origin::start(&lab), Dns::start());
        let gateway = Gateway::start(&lab, config);
        let bundle = std::fs::read_to_string(lab.dir.join("agents.pem")).expect("a bundle");
        Self { lab, origin, dns, gateway, bundle }
    }

    /// An HTTP/1.1 ClientHello for `name` of an agent that trusts what agents are told to trust.
    pub(crate) fn hello(&self, name: &str) -> Hello {
        Hello::h1(name).trusting(&self.bundle)
    }

    /// The same, for HTTP/2.
    pub(crate) fn hello2(&self, name: &str) -> Hello {
        Hello::h2(name).trusting(&self.bundle)
    }

    /// An HTTP/1.1 connection, up to the end of the handshake.
    #[track_caller]
    pub(crate) fn h1(&self, from: Ns, to: SocketAddr, name: &str) -> Tls {
        Tls::open(from, to, &self.hello(name)).unwrap_or_else(|error| self.fail("handshake", error))
    }

    /// An HTTP/2 connection, up to the end of the handshake.
    #[track_caller]
    pub(crate) fn h2(&self, from: Ns, to: SocketAddr, name: &str) -> H2 {
        H2::open(from, to, &self.hello2(name)).unwrap_or_else(|error| self.fail("handshake", error))
    }

    /// Notes what the origins have received so far.
    pub(crate) fn before(&self) -> Before {
        let log = self.origin.log();
        Before { connections: log.connections().len(), requests: log.requests().len() }
    }

    /// Sends the bytes on a connection of their own, and shows that they are refused: the answer,
    /// the audit, and no byte of them at any origin.
    #[track_caller]
    pub(crate) fn refuses_bytes(
        &self,
        what: &str,
        (from, to): (Ns, Host),
        bytes: impl AsRef<[u8]>,
        (status, reason): (u16, &str),
    ) {
        let before = self.before();
        let mut tls = self.h1(from, to.port(443), to.name);
        let me = local(&tls);
        let answer = tls.ask(bytes).unwrap_or_else(|error| self.fail(what, error));
        self.is_refusal(what, &answer, (status, reason));
        drop(tls);
        self.recorded(what, me, &[Some(reason)]);
        self.nothing_arrived(what, before);
    }

    /// Sends the request in HTTP/1.1 and in HTTP/2, each on a connection of its own, and shows
    /// that both are refused.
    #[track_caller]
    pub(crate) fn refuses(
        &self,
        what: &str,
        (from, to): (Ns, Host),
        ask: &Ask,
        expected: (u16, &str),
    ) {
        self.refuses_bytes(what, (from, to), ask.h1(), expected);
        self.refuses_h2(&format!("{what}, HTTP/2"), (from, to), ask, expected);
    }

    /// Sends the request in HTTP/2 on a connection of its own, and shows that it is refused.
    #[track_caller]
    pub(crate) fn refuses_h2(
        &self,
        what: &str,
        (from, to): (Ns, Host),
        ask: &Ask,
        expected: (u16, &str),
    ) {
        let before = self.before();
        let mut h2 = self.h2(from, to.port6(443), to.name);
        let me = h2.local_addr();
        let answer = h2.ask(ask.h2(), ask.body).unwrap_or_else(|error| self.fail(what, error));
        self.is_refusal(what, &answer, expected);
        drop(h2);
        self.recorded(what, me, &[Some(expected.1)]);
        self.nothing_arrived(what, before);
    }

    /// Sends the request in HTTP/1.1 and in HTTP/2, and gives what the origin received of each.
    #[track_caller]
    pub(crate) fn forwards(&self, what: &str, (from, to): (Ns, Host), ask: &Ask) -> [Received; 2] {
        let before = self.before();
        let mut tls = self.h1(from, to.port(443), to.name);
        let me = local(&tls);
        let answer = tls.ask(ask.h1()).unwrap_or_else(|error| self.fail(what, error));
        assert_eq!(answer.reason(), None, "{what}: {}", answer.text());
        drop(tls);
        self.forwarded(what, me);
        let mut h2 = self.h2(from, to.port6(443), to.name);
        let me = h2.local_addr();
        let answer = h2.ask(ask.h2(), ask.body).unwrap_or_else(|error| self.fail(what, error));
        assert_eq!(answer.reason(), None, "{what}, HTTP/2: {}", answer.text());
        drop(h2);
        self.forwarded(what, me);
        let requests = self.origin.log().wait_requests(before.requests + 2);
        let mut new = requests.into_iter().skip(before.requests);
        [new.next().expect("two requests"), new.next().expect("two requests")]
    }

    #[track_caller]
    fn forwarded(&self, what: &str, me: SocketAddr) {
        let (_, requests) = self.records(what, me, 1);
        assert_eq!(requests[0]["decision"], "intercept", "{what}: {}", requests[0]);
    }

    /// Shows that an answer is the gateway's own, with this status and reason.
    #[track_caller]
    pub(crate) fn is_refusal(&self, what: &str, answer: &Response, (status, reason): (u16, &str)) {
        let got = (answer.status.as_u16(), answer.reason());
        assert_eq!(got, (status, Some(reason.to_owned())), "{what}: {}", answer.text());
        for secret in SECRETS {
            assert!(!answer.text().contains(secret), "{what}: a secret in an answer");
        }
    }

    /// Waits until the connection from `me` has ended, and shows that the audit has exactly one
    /// record of it and one for each of its requests, with these reasons.
    #[track_caller]
    pub(crate) fn recorded(&self, what: &str, me: SocketAddr, reasons: &[Option<&str>]) -> Record {
        let (connection, requests) = self.records(what, me, reasons.len());
        let words: Vec<_> = requests.iter().map(|record| record["reason"].as_str()).collect();
        assert_eq!(words, reasons, "{what}: {requests:#?}");
        for (record, reason) in requests.iter().zip(reasons) {
            let refused = record["decision"] == "refuse";
            assert_eq!(
                refused,
                reason.is_some_and(|it| it != "response_masked"),
                "{what}: {record}"
            );
        }
        connection
    }

    /// Waits until the connection from `me` has ended, and shows that it was refused as a whole:
    /// exactly one record, none of a request.
    #[track_caller]
    pub(crate) fn connection_refused(&self, what: &str, me: SocketAddr, reason: &str) -> Record {
        let connection = self.recorded(what, me, &[]);
        assert_eq!(connection["decision"], "refuse", "{what}: {connection}");
        assert_eq!(connection["reason"], reason, "{what}: {connection}");
        connection
    }

    /// The records of the connection from `me`, once it has ended and `count` requests are there.
    #[track_caller]
    pub(crate) fn records(
        &self,
        what: &str,
        me: SocketAddr,
        count: usize,
    ) -> (Record, Vec<Record>) {
        let me = me.to_string();
        let audit = &self.gateway.audit;
        let of = |flow: &Value| -> Vec<Record> {
            audit.of_kind("request").into_iter().filter(|it| it["flow"] == *flow).collect()
        };
        let ended =
            || audit.of_kind("connection").into_iter().find(|it| it["agent"] == me.as_str());
        let connection = wait::until(wait::SOON, || {
            ended().filter(|connection| of(&connection["flow"]).len() >= count)
        });
        let connection = connection.unwrap_or_else(|| {
            let log = audit.text();
            panic!("{what}: not recorded; {}\n{}", tail(&log), self.gateway.stderr())
        });
        let mut same = audit.of_kind("connection");
        same.retain(|it| it["flow"] == connection["flow"]);
        assert_eq!(same.len(), 1, "{what}: one connection, one record: {same:#?}");
        let requests = of(&connection["flow"]);
        assert_eq!(requests.len(), count, "{what}: {requests:#?}");
        let own = requests.iter().all(|request| request["agent"] == me.as_str());
        assert!(own, "{what}: each request names its agent: {requests:#?}");
        (connection, requests)
    }

    /// Shows that since `before` not one request reached any origin, nor one byte of HTTP/1.
    #[track_caller]
    pub(crate) fn nothing_arrived(&self, what: &str, before: Before) {
        for connection in self.connections_since(before) {
            assert!(connection.requests.is_empty(), "{what}: arrived: {connection:#?}");
            let h2 = connection.alpn.as_deref() == Some("h2");
            let text = String::from_utf8_lossy(&connection.bytes).into_owned();
            assert!(h2 || text.is_empty(), "{what}: arrived at {}: {text}", connection.local);
        }
        self.no_secret_beyond(what, before.requests);
    }

    /// Shows that since `before` no origin was so much as dialled.
    #[track_caller]
    pub(crate) fn nobody_was_dialled(&self, what: &str, before: Before) {
        let new = self.connections_since(before);
        assert!(new.is_empty(), "{what}: dialled: {new:#?}");
    }

    /// What reached the origins since `before`.
    pub(crate) fn connections_since(&self, before: Before) -> Vec<Connection> {
        self.origin.log().connections().split_off(before.connections)
    }

    #[track_caller]
    fn no_secret_beyond(&self, what: &str, requests: usize) {
        let now = self.origin.log().requests().len();
        assert_eq!(now, requests, "{what}: more requests at the origins than before");
    }

    /// A last look: nothing late at an origin, no secret in anything the gateway wrote, and the
    /// gateway is alive and not complaining.
    #[track_caller]
    pub(crate) fn ends_well(mut self) {
        let before = self.before();
        std::thread::sleep(wait::QUIET);
        self.nothing_arrived("late", before);
        assert!(self.gateway.is_alive(), "the gateway ended: {}", self.gateway.stderr());
        let written = self.gateway.audit.text() + &self.gateway.stderr();
        for secret in SECRETS {
            assert!(!written.contains(secret), "a secret in the audit or the log");
        }
        assert!(!written.contains("internal_error"), "the gateway failed:\n{written}");
        assert!(!written.contains("panicked"), "the gateway panicked:\n{written}");
    }

    #[track_caller]
    pub(crate) fn fail(&self, what: &str, error: io::Error) -> ! {
        let (log, audit) = (self.gateway.stderr(), self.gateway.audit.text());
        panic!("{what}: {error}\n{log}\n{}", tail(&audit))
    }
}

/// The agent's address and port, which is how the audit knows the connection.
pub(crate) fn local(tls: &Tls) -> SocketAddr {
    tls.socket().local_addr().expect("a connected socket")
}

/// Every way to write `text` differently by one byte changed, as far as a field may hold it.
pub(crate) fn one_byte_off(text: &str) -> Vec<String> {
    let bytes = text.as_bytes();
    (0..bytes.len())
        .flat_map(|at| {
            let flipped = [bytes[at] ^ 0x20, bytes[at] ^ 1, b'*'];
            flipped
                .into_iter()
                .filter(move |byte| byte.is_ascii_graphic() && *byte != bytes[at])
                .map(move |byte| {
                    let mut changed = bytes.to_vec();
                    changed[at] = byte;
                    String::from_utf8_lossy(&changed).into_owned()
                })
        })
        .collect()
}

fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(6)..].join("\n")
}

/// Sends bytes on a plain connection and reads what comes until the other side ends or resets.
pub(crate) fn say(mut stream: std::net::TcpStream, bytes: &[u8]) -> Vec<u8> {
    use std::io::{Read as _, Write as _};
    let mut answer = Vec::new();
    // A reset, early or late, is an answer too; what came before it counts.
    let _ = stream.write_all(bytes);
    let _ = stream.read_to_end(&mut answer);
    answer
}
