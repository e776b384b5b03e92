//! An upstream that is not the expected one, or misbehaves: the agent gets one plain answer in
//! time, and such an upstream gets no byte of a request before the gateway has verified it.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use lab::{
    Lab,
    client::{H2, Hello, Tls},
    dns::Dns,
    gateway::{Gateway, SECRETS, usual_config},
    net::{AGENT, INTERNET, OPENAI, PYPI},
    origin::Origin,
    pki::Flaw,
    sandboxed,
};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::faults::{CHAT, ask, assert_refused, connections, hello, records};

#[test]
fn an_upstream_with_a_bad_certificate_gets_no_request() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let gateway = Gateway::usual(&lab);
        let flaws = [
            (Flaw::WrongName, "certificate_wrong_name", "not for this name"),
            (Flaw::Expired, "certificate_expired", "has expired"),
            (Flaw::NotYet, "certificate_not_yet_valid", "not valid yet"),
            (Flaw::SelfSigned, "certificate_self_signed", "signed by itself"),
            (Flaw::UnknownIssuer, "certificate_unknown_issuer", "no CA that the gateway trusts"),
            (Flaw::ForgedSignature, "bad_signature", "signature"),
        ];
        for (flaw, _, detail) in flaws {
            origin.flaw(&lab, OPENAI.name, flaw);
            let answer = ask(&lab, &gateway, CHAT);
            assert_refused(&answer, 502, "upstream_tls_invalid");
            assert!(answer.text().contains(detail), "{flaw:?}: {}", answer.text());
        }
        let log = gateway.stderr();
        let told = log.contains("cause=certificate_wrong_name") && log.contains(OPENAI.name);
        assert!(told, "the log says the first cause, and whose: {log}");
        let hello = Hello { alpn: vec![b"h2"], ..hello(&lab, OPENAI) };
        let mut h2 = H2::open(AGENT, OPENAI.port6(443), &hello).expect("a handshake to answer in");
        let request = http::Request::post("https://api.openai.example/v1/chat/completions")
            .header("authorization", "Bearer OPENAI_API_KEY")
            .body(())
            .expect("a request");
        let answer = h2.ask(request, "{}").expect("an answer");
        assert_refused(&answer, 502, "upstream_tls_invalid");
        drop(h2);
        origin.log().assert_no_request();
        for connection in origin.log().connections() {
            assert!(connection.bytes.is_empty(), "no byte of a request: {connection:?}");
        }
        let causes = || flaws.iter().chain(flaws.last()).map(|(_, cause, _)| *cause);
        for (record, cause) in connections(&gateway, flaws.len() + 1).iter().zip(causes()) {
            assert_eq!(record["reason"], "upstream_tls_invalid", "{record}");
            assert_eq!(record["decision"], "refuse", "{record}");
            assert_eq!(record["cause"], cause, "{record}");
        }
        for (record, cause) in records(&gateway, "request").iter().zip(causes()) {
            assert_eq!(record["reason"], "upstream_tls_invalid", "{record}");
            assert_eq!(record["cause"], cause, "{record}");
            assert_eq!(record["host"], OPENAI.name, "{record}");
        }
        assert_eq!(records(&gateway, "request").len(), flaws.len() + 1);

        origin.flaw(&lab, OPENAI.name, Flaw::None);
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200, "a good certificate again");
    });
}

#[test]
fn the_certificate_of_another_listed_host_does_not_do() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let gateway = Gateway::usual(&lab);
        origin.identity(OPENAI.name, lab.public.issue(PYPI.name).certified());
        assert_refused(&ask(&lab, &gateway, CHAT), 502, "upstream_tls_invalid");
        origin.log().assert_no_request();
    });
}

#[test]
fn a_failing_upstream_is_an_answer_and_no_hang() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let dns = Dns::start();
        let config = usual_config().limit("dial_time", "2s");
        let gateway = Gateway::start(&lab, &config);
        for (number, (name, act, reason)) in acts(&lab).into_iter().enumerate() {
            let address = Ipv4Addr::new(198, 51, 100, 100 + u8::try_from(number).expect("few"));
            act.perform(address);
            dns.set(OPENAI.name, &[address.into()]);
            let begun = Instant::now();
            let answer = ask(&lab, &gateway, CHAT);
            println!("{name}: {} {:?} in {:?}", answer.status, answer.reason(), begun.elapsed());
            assert_refused(&answer, 502, reason);
            assert!(begun.elapsed() < Duration::from_secs(6), "{name}: {:?}", begun.elapsed());
            let connection = &connections(&gateway, number + 1)[number];
            let record = &records(&gateway, "request")[number];
            assert_eq!(record["reason"], reason, "{name}: {record}");
            assert_eq!(record["host"], OPENAI.name, "{name}: {record}");
            let said = [&connection["cause"], &connection["alert"]].map(|word| word.as_str());
            let meant = match name {
                "speaks something else" => [Some("not_tls"), None],
                "ends the handshake" => [Some("alert_received"), Some("handshake_failure")],
                _ => [None, None],
            };
            assert_eq!(said, meant, "{name}: {connection}");
        }
        origin.log().assert_untouched();
        dns.set(OPENAI.name, &[OPENAI.v4().into()]);
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200, "nothing stays broken");
        let log = gateway.stderr() + &gateway.audit.text();
        assert!(SECRETS.iter().all(|secret| !log.contains(secret)));
    });
}

#[test]
fn an_answer_that_is_cut_does_not_look_whole() {
    sandboxed(|| {
        let lab = Lab::new();
        let _origin = Origin::start(&lab);
        let _dns = Dns::start();
        let gateway = Gateway::usual(&lab);
        let mut tls = Tls::open(AGENT, OPENAI.port(443), &hello(&lab, OPENAI)).expect("open");
        let cut = tls.ask(crate::faults::get("/cut"));
        assert!(cut.is_err(), "half a body was passed off as a whole one: {cut:?}");
        let record = gateway.audit.wait_for(|record| record["path"] == "/cut");
        assert_eq!(record["complete"], false, "{record}");
    });
}

/// The host at an address.
enum Act {
    /// There is no host, and the network reports it.
    Nowhere,
    /// A host that never answers a SYN.
    Hole,
    /// A host without a listener.
    Refuses,
    /// A server, on a thread for each connection.
    Serves(fn(TcpStream, &Arc<ServerConfig>), Arc<ServerConfig>),
}

impl Act {
    fn perform(self, address: Ipv4Addr) {
        let here = || INTERNET.shell(&format!("ip addr add {address}/32 dev lo"));
        match self {
            Self::Nowhere => {}
            Self::Hole => {
                INTERNET.shell(&format!("ip route add blackhole {address}"));
            }
            Self::Refuses => {
                here();
            }
            Self::Serves(serve, config) => {
                here();
                let at = SocketAddr::from((address, 443));
                let listener = INTERNET.enter(|| TcpListener::bind(at).expect("an address"));
                thread::spawn(move || {
                    for stream in listener.incoming().flatten() {
                        let config = Arc::clone(&config);
                        thread::spawn(move || serve(stream, &config));
                    }
                });
            }
        }
    }
}

fn acts(lab: &Lab) -> Vec<(&'static str, Act, &'static str)> {
    let serves = |serve| Act::Serves(serve, tls_config(lab));
    vec![
        ("refuses", Act::Refuses, "upstream_unreachable"),
        ("is nowhere", Act::Nowhere, "upstream_unreachable"),
        ("never answers", Act::Hole, "upstream_unreachable"),
        ("closes at once", serves(|stream, _| drop(stream)), "upstream_unreachable"),
        ("never speaks", serves(|stream, _| hold(stream)), "upstream_unreachable"),
        ("speaks something else", serves(banner), "upstream_tls_invalid"),
        ("ends the handshake", serves(alert), "upstream_tls_invalid"),
        ("closes after the handshake", serves(|s, c| answer(s, c, b"")), "upstream_unreachable"),
        (
            "answers garbage",
            serves(|s, c| answer(s, c, b"\0\x01garbage\r\n\r\n")),
            "upstream_unreachable",
        ),
        (
            "ends within the head",
            serves(|s, c| answer(s, c, b"HTTP/1.1 200 OK\r\nX: ")),
            "upstream_unreachable",
        ),
        ("never ends its head", serves(endless_head), "upstream_unreachable"),
    ]
}

fn hold(mut stream: TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}

fn banner(mut stream: TcpStream, _: &Arc<ServerConfig>) {
    let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2p1 Debian\r\n");
    hold(stream);
}

/// Reads the beginning of a hello and answers with the alert `handshake_failure`.
fn alert(mut stream: TcpStream, _: &Arc<ServerConfig>) {
    let _ = stream.read(&mut [0; 64]);
    let _ = stream.write_all(&[21, 3, 3, 0, 2, 2, 40]);
    hold(stream);
}

/// Completes the handshake, reads a request, answers with these bytes and closes.
fn answer(stream: TcpStream, config: &Arc<ServerConfig>, bytes: &[u8]) {
    let Some(mut tls) = request_read(stream, config) else { return };
    let _ = tls.write_all(bytes).and_then(|()| tls.flush());
    tls.conn.send_close_notify();
    let _ = tls.flush();
}

fn endless_head(stream: TcpStream, config: &Arc<ServerConfig>) {
    let Some(mut tls) = request_read(stream, config) else { return };
    let mut field = b"HTTP/1.1 200 OK\r\nX: ".to_vec();
    while tls.write_all(&field).is_ok() {
        field = vec![b'x'; 16 * 1024];
    }
}

fn request_read(
    stream: TcpStream,
    config: &Arc<ServerConfig>,
) -> Option<StreamOwned<ServerConnection, TcpStream>> {
    let connection = ServerConnection::new(Arc::clone(config)).ok()?;
    let mut tls = StreamOwned::new(connection, stream);
    let length = tls.read(&mut [0; 4096]).ok()?;
    (length > 0).then_some(tls)
}

fn tls_config(lab: &Lab) -> Arc<ServerConfig> {
    let identity = lab.public.issue(OPENAI.name).certified();
    let resolver = rustls::sign::SingleCertAndKey::from(identity);
    let mut config =
        ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}
