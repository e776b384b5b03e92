//! The three witnesses of every attack: the origin, the audit, and only then the answer.
//!
//! Each of these assertions of a [`World`] looks at one connection of the attacker: what the
//! origins received meanwhile, at whichever of their addresses, and which records the audit has of
//! that connection. It errs to failure: one record too many fails too.

pub mod raw_h2;

use std::{io, net::SocketAddr};

use serde_json::Value;

use crate::{
    World,
    audit::Record,
    client::{H2, Response, Tls},
    gateway::SECRETS,
    net::{Host, Ns},
    origin::{Connection, Received},
    wait,
};

/// One request, to be said in HTTP/1.1 or in HTTP/2.
#[derive(Clone)]
pub struct Ask {
    /// GET, POST and so on.
    pub method: &'static str,
    /// Host, or `:authority`.
    pub authority: String,
    /// The path and the query.
    pub path: String,
    /// The other fields.
    pub fields: Vec<(String, String)>,
    /// The body.
    pub body: &'static str,
}

/// The requests and connections that were at the origins before an attack.
#[derive(Clone, Copy)]
pub struct Before {
    connections: usize,
    /// Requests.
    pub requests: usize,
}

impl Ask {
    /// A request that is in order except for its credential: there is none yet.
    pub fn to(host: Host) -> Self {
        Self {
            method: "POST",
            authority: host.name.to_owned(),
            path: "/v1/attack".to_owned(),
            fields: Vec::new(),
            body: "",
        }
    }

    /// The same with one more field.
    pub fn field(mut self, name: &str, value: impl Into<String>) -> Self {
        self.fields.push((name.to_owned(), value.into()));
        self
    }

    /// The same with the good placeholder of the first API.
    pub fn good(self) -> Self {
        self.field("authorization", "Bearer OPENAI_API_KEY")
    }

    /// The same with another method.
    pub fn method(self, method: &'static str) -> Self {
        Self { method, ..self }
    }

    /// The same with another path.
    pub fn path(self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self }
    }

    /// The same with another authority.
    pub fn authority(self, authority: &str) -> Self {
        Self { authority: authority.to_owned(), ..self }
    }

    /// The same with a body.
    pub fn body(self, body: &'static str) -> Self {
        Self { body, ..self }
    }

    /// As it stands on the wire in HTTP/1.1.
    pub fn h1(&self) -> String {
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
    pub fn h2(&self) -> http::Request<()> {
        let uri = format!("https://{}{}", self.authority, self.path);
        let mut request = http::Request::builder().method(self.method).uri(uri);
        for (name, value) in &self.fields {
            request = request.header(name.to_ascii_lowercase(), value);
        }
        request.body(()).expect("a request that HTTP/2 can say")
    }
}

impl World {
    /// An HTTP/1.1 connection that has to be opened.
    #[track_caller]
    pub fn must_h1(&self, from: Ns, to: SocketAddr, name: &str) -> Tls {
        self.h1_from(from, to, name).unwrap_or_else(|error| self.fail("handshake", error))
    }

    /// An HTTP/2 connection that has to be opened.
    #[track_caller]
    pub fn must_h2(&self, from: Ns, to: SocketAddr, name: &str) -> H2 {
        H2::open(from, to, &self.hello2(name)).unwrap_or_else(|error| self.fail("handshake", error))
    }

    /// Notes what the origins have received so far.
    pub fn before(&self) -> Before {
        let log = self.origin.log();
        Before { connections: log.connections().len(), requests: log.requests().len() }
    }

    /// Sends the bytes on a connection of their own, and shows that they are refused: the answer,
    /// the audit, and no byte of them at any origin.
    #[track_caller]
    pub fn refuses_bytes(
        &self,
        what: &str,
        (from, to): (Ns, Host),
        bytes: impl AsRef<[u8]>,
        (status, reason): (u16, &str),
    ) {
        let before = self.before();
        let mut tls = self.must_h1(from, to.port(443), to.name);
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
    pub fn refuses(&self, what: &str, (from, to): (Ns, Host), ask: &Ask, expected: (u16, &str)) {
        self.refuses_bytes(what, (from, to), ask.h1(), expected);
        self.refuses_h2(&format!("{what}, HTTP/2"), (from, to), ask, expected);
    }

    /// Sends the request in HTTP/2 on a connection of its own, and shows that it is refused.
    #[track_caller]
    fn refuses_h2(&self, what: &str, (from, to): (Ns, Host), ask: &Ask, expected: (u16, &str)) {
        let before = self.before();
        let mut h2 = self.must_h2(from, to.port6(443), to.name);
        let me = h2.local_addr();
        let answer = h2.ask(ask.h2(), ask.body).unwrap_or_else(|error| self.fail(what, error));
        self.is_refusal(what, &answer, expected);
        drop(h2);
        self.recorded(what, me, &[Some(expected.1)]);
        self.nothing_arrived(what, before);
    }

    /// Sends the request in HTTP/1.1 and in HTTP/2, and gives what the origin received of each.
    #[track_caller]
    pub fn forwards(&self, what: &str, (from, to): (Ns, Host), ask: &Ask) -> [Received; 2] {
        let before = self.before();
        let mut tls = self.must_h1(from, to.port(443), to.name);
        let me = local(&tls);
        let answer = tls.ask(ask.h1()).unwrap_or_else(|error| self.fail(what, error));
        assert_eq!(answer.reason(), None, "{what}: {}", answer.text());
        drop(tls);
        self.forwarded(what, me);
        let mut h2 = self.must_h2(from, to.port6(443), to.name);
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
    pub fn is_refusal(&self, what: &str, answer: &Response, (status, reason): (u16, &str)) {
        let got = (answer.status.as_u16(), answer.reason());
        assert_eq!(got, (status, Some(reason.to_owned())), "{what}: {}", answer.text());
        for secret in SECRETS {
            assert!(!answer.text().contains(secret), "{what}: a secret in an answer");
        }
    }

    /// Waits until the connection from `me` has ended, and shows that the audit has exactly one
    /// record of it and one for each of its requests, with these reasons.
    #[track_caller]
    pub fn recorded(&self, what: &str, me: SocketAddr, reasons: &[Option<&str>]) -> Record {
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
    pub fn connection_refused(&self, what: &str, me: SocketAddr, reason: &str) -> Record {
        let connection = self.recorded(what, me, &[]);
        assert_eq!(connection["decision"], "refuse", "{what}: {connection}");
        assert_eq!(connection["reason"], reason, "{what}: {connection}");
        connection
    }

    /// The records of the connection from `me`, once it has ended and `count` requests are there.
    #[track_caller]
    pub fn records(&self, what: &str, me: SocketAddr, count: usize) -> (Record, Vec<Record>) {
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
    pub fn nothing_arrived(&self, what: &str, before: Before) {
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
    pub fn nobody_was_dialled(&self, what: &str, before: Before) {
        let new = self.connections_since(before);
        assert!(new.is_empty(), "{what}: dialled: {new:#?}");
    }

    /// Returns the connections that reached the origins since `before`.
    pub fn connections_since(&self, before: Before) -> Vec<Connection> {
        self.origin.log().connections().split_off(before.connections)
    }

    #[track_caller]
    fn no_secret_beyond(&self, what: &str, requests: usize) {
        let now = self.origin.log().requests().len();
        assert_eq!(now, requests, "{what}: more requests at the origins than before");
    }

    /// A last look: nothing late at an origin, and the gateway is alive. Its output is looked at
    /// when any [`crate::gateway::Gateway`] goes.
    #[track_caller]
    pub fn ends_well(mut self) {
        let before = self.before();
        std::thread::sleep(wait::QUIET);
        self.nothing_arrived("late", before);
        assert!(self.gateway.is_alive(), "the gateway ended: {}", self.gateway.stderr());
    }

    /// Fails the test, with what the gateway wrote.
    #[track_caller]
    pub fn fail(&self, what: &str, error: io::Error) -> ! {
        let (log, audit) = (self.gateway.stderr(), self.gateway.audit.text());
        panic!("{what}: {error}\n{log}\n{}", tail(&audit))
    }
}

/// The agent's address and port, which is how the audit knows the connection.
pub fn local(tls: &Tls) -> SocketAddr {
    tls.socket().local_addr().expect("a connected socket")
}

/// Every way to write `text` differently by one byte changed, as far as a field may hold it.
pub fn one_byte_off(text: &str) -> Vec<String> {
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
pub fn say(mut stream: std::net::TcpStream, bytes: &[u8]) -> Vec<u8> {
    use std::io::{Read as _, Write as _};
    let mut answer = Vec::new();
    // A reset, early or late, is an answer too; what came before it counts.
    let _ = stream.write_all(bytes);
    let _ = stream.read_to_end(&mut answer);
    answer
}
