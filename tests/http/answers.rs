//! An API that misbehaves, or an attacker who makes it echo: one request has one answer, nothing in
//! the answer leads the agent elsewhere or gives it a credential, and no form of it holds the
//! secret.

use std::{
    io::{Read as _, Write as _},
    net::TcpListener,
    sync::Arc,
};

use lab::{
    audit::Record,
    client::{Response, Tls},
    gateway::{BEARER, OPENAI_SECRET, PUBLIC_CA, usual_config},
    net::{AGENT, ATTACKER, INTERNET},
    sandboxed,
};
use policy_builder::{Table, api, binding};
use rustls::{
    ServerConfig, ServerConnection, StreamOwned, server::ResolvesServerCert, sign::CertifiedKey,
};

use crate::attack::{Before, Scene, local};

const NAME: &str = "raw.example";
const ADDRESS: &str = "198.51.100.77";

/// Returns one more API, of whose origin every byte is this test's.
fn raw_api() -> Table {
    api("raw", &[NAME]).set("upstream_ca", PUBLIC_CA).with(binding(
        "research",
        "RAW_API_KEY",
        &[BEARER],
        "file:openai",
    ))
}

#[derive(Debug)]
struct One(Arc<CertifiedKey>);

impl ResolvesServerCert for One {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

/// Returns a gateway, and an origin that sends `scripts[n]` in answer to a request for `/n`.
fn scene(scripts: Vec<Vec<u8>>) -> Scene {
    let scene = Scene::with(&usual_config().with(raw_api()));
    INTERNET.shell(&format!("ip addr add {ADDRESS}/32 dev lo"));
    scene.dns.set(NAME, &[ADDRESS.parse().expect("an address")]);
    let certificate = Arc::new(One(scene.lab.public.issue(NAME).certified()));
    let config = ServerConfig::builder().with_no_client_auth().with_cert_resolver(certificate);
    let config = Arc::new(config);
    let listener = INTERNET.enter(|| TcpListener::bind((ADDRESS, 443)).expect("a port"));
    std::thread::spawn(move || {
        for stream in listener.incoming().filter_map(Result::ok) {
            let session = ServerConnection::new(Arc::clone(&config)).expect("a session");
            let mut tls = StreamOwned::new(session, stream);
            while let Some(at) = asked(&mut tls) {
                if tls.write_all(&scripts[at]).and_then(|()| tls.flush()).is_err() {
                    break;
                }
                if !scripts[at].windows(6).any(|it| it == b"keep\r\n") {
                    tls.conn.send_close_notify();
                    let _ = tls.flush();
                    break;
                }
            }
        }
    });
    scene
}

fn asked(tls: &mut StreamOwned<ServerConnection, std::net::TcpStream>) -> Option<usize> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        tls.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    assert!(text.contains(OPENAI_SECRET), "the origin gets the secret, so it could say it: {text}");
    text.strip_prefix("GET /")?.split(' ').next()?.parse().ok()
}

fn request(at: usize) -> String {
    format!("GET /{at} HTTP/1.1\r\nHost: {NAME}\r\nAuthorization: Bearer RAW_API_KEY\r\n\r\n")
}

fn open(scene: &Scene) -> Tls {
    scene.h1(AGENT, format!("{ADDRESS}:443").parse().expect("an address"), NAME)
}

/// Returns every byte that the agent reads on a connection of its own, and the record.
fn raw(scene: &Scene, at: usize) -> (String, Record) {
    let before: Before = scene.before();
    let mut tls = open(scene);
    let me = local(&tls);
    tls.send(request(at).replacen("\r\n", "\r\nConnection: close\r\n", 1)).expect("sent");
    let text = String::from_utf8_lossy(&tls.read_to_end()).into_owned();
    drop(tls);
    let (_, requests) = scene.records(&format!("script {at}"), me, 1);
    scene.nobody_was_dialled("elsewhere", before);
    assert!(!text.contains(OPENAI_SECRET), "script {at}: the secret reached the agent: {text}");
    (text, requests[0].clone())
}

fn script(text: &str) -> Vec<u8> {
    text.replace("{secret}", OPENAI_SECRET).into_bytes()
}

#[test]
fn interim_answers_are_dropped_and_unasked_upgrades_refused() {
    sandboxed(|| {
        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
        let scene = scene(vec![
            script(&format!(
                "HTTP/1.1 103 Early Hints\r\nLink: <https://attacker.example/{{secret}}>\r\nSet-Cookie: a=b\r\n\r\n{ok}"
            )),
            script(&format!(
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nX: {{secret}}\r\n\r\n{ok}"
            )),
            script(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n{secret}",
            ),
        ]);
        for at in 0..2 {
            let (text, record) = raw(&scene, at);
            assert!(text.starts_with("HTTP/1.1 200"), "{text}");
            assert!(!text.contains("103") && !text.contains("attacker"), "{text}");
            assert_eq!(record["upstream_status"], 200);
        }
        let (text, record) = raw(&scene, 2);
        assert!(text.contains("\"reason\":\"upstream_unreachable\""), "{text}");
        assert_eq!(record["reason"], "upstream_unreachable");
        scene.ends_well();
    });
}

#[test]
fn fields_that_mint_credentials_or_move_the_agent_are_removed() {
    sandboxed(|| {
        let scene = scene(vec![script(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nSet-Cookie: session={secret}; Path=/\r\n\
             set-cookie: plain=1\r\nAlt-Svc: h3=\":443\"\r\nAccept-Ranges: bytes\r\n\
             Digest: sha-256=x\r\nContent-Digest: sha-256=:x:\r\nRepr-Digest: sha-256=:x:\r\n\
             Proxy-Authenticate: Basic\r\nX-Kept: yes\r\n\r\nok",
        )]);
        let (text, _) = raw(&scene, 0);
        let lower = text.to_ascii_lowercase();
        for field in ["set-cookie", "alt-svc", "accept-ranges", "digest", "proxy-authenticate"] {
            assert!(!lower.contains(field), "{field} arrived: {text}");
        }
        assert!(lower.contains("x-kept: yes"), "{text}");
        scene.ends_well();
    });
}

#[test]
fn a_redirect_passes_without_the_secret_and_unfollowed() {
    sandboxed(|| {
        let statuses =
            ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"];
        let scene = scene(
            statuses
                .iter()
                .map(|status| {
                    script(&format!(
                        "HTTP/1.1 {status}\r\nLocation: https://attacker.example/?key={{secret}}\r\nContent-Length: 0\r\n\r\n"
                    ))
                })
                .collect(),
        );
        for (at, status) in statuses.iter().enumerate() {
            let (text, _) = raw(&scene, at);
            assert!(text.starts_with(&format!("HTTP/1.1 {}", &status[..3])), "{text}");
            assert!(text.contains("location: https://attacker.example/?key=****"), "{text}");
        }
        let attacker = [ATTACKER.port(443), ATTACKER.port6(443)];
        assert!(scene.origin.log().connections().iter().all(|it| !attacker.contains(&it.local)));
        assert!(!scene.dns.was_asked(ATTACKER.name));
        scene.ends_well();
    });
}

#[test]
fn the_secret_is_masked_wherever_an_answer_can_hold_it() {
    sandboxed(|| {
        let scene = scene(vec![
            script("HTTP/1.1 200 {secret}\r\nContent-Length: 2\r\n\r\nok"),
            script("HTTP/1.1 200 OK\r\nX-{secret}: a\r\nContent-Length: 2\r\n\r\nok"),
            script(
                "HTTP/1.1 200 OK\r\nX-A: Bearer {secret}{secret}\r\nContent-Length: 2\r\n\r\nok",
            ),
            script("HTTP/1.1 200 OK\r\nContent-Length: 62\r\n\r\n{secret}, {secret}"),
            script("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end: {secret}"),
            script(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-a\r\n\r\n2\r\nok\r\n0\r\nX-A: {secret}\r\n\r\n",
            ),
            script(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a={secret}\r\nok\r\n0\r\n\r\n",
            ),
            script("HTTP/1.1 500 Oops\r\nContent-Length: 30\r\n\r\n{secret}"),
        ]);
        for at in 0..8 {
            // `raw` asserts that the secret is in none of it.
            let (text, record) = raw(&scene, at);
            assert!(text.starts_with("HTTP/1.1 "), "{at}: {text}");
            assert_eq!(record["decision"], "intercept", "{at}: {record}");
        }
        scene.ends_well();
    });
}

#[test]
fn an_answer_that_cannot_be_read_is_refused() {
    sandboxed(|| {
        let scene = scene(vec![
            script("HTTP/1.1 200 OK\r\nContent-Encoding: compress\r\nContent-Length: 2\r\n\r\nok"),
            script("HTTP/1.1 200 OK\r\nContent-Encoding: gzip, br\r\nContent-Length: 2\r\n\r\nok"),
            script(
                "HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-1/9\r\nContent-Length: 2\r\n\r\nok",
            ),
            script("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nok"),
            script(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            ),
            script(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: br\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
            ),
            script("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok"),
            script("HTTP/1.1 200 OK\r\nContent-Length: 2, 3\r\n\r\nok"),
            script("HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok"),
            script("HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nok"),
            script("{secret}\r\n\r\n"),
            script(""),
            script(&format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(500))),
            script(&format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "y".repeat(600_000))),
        ]);
        for at in 0..14 {
            let (text, record) = raw(&scene, at);
            let reason = record["reason"].as_str().unwrap_or("none").to_owned();
            assert!(text.starts_with("HTTP/1.1 502"), "{at}: {text}");
            assert_eq!(
                reason,
                if at < 6 { "response_unscannable" } else { "upstream_unreachable" },
                "{at}"
            );
            assert!(text.contains(&reason), "{at}: {text}");
        }
        scene.ends_well();
    });
}

#[test]
fn an_answer_too_many_never_answers_the_next_request() {
    sandboxed(|| {
        let poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison";
        let good = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX: keep\r\n\r\ngood";
        let scene = scene(vec![
            script(&format!("{good}{poison}")),
            script(&format!(
                "HTTP/1.1 304 Not Modified\r\nX: keep\r\nContent-Length: 45\r\n\r\n{poison}"
            )),
            script(&format!("HTTP/1.1 204 No Content\r\nX: keep\r\n\r\n{poison}")),
            script(&format!(
                "HTTP/1.1 200 OK\r\nX: keep\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{poison}"
            )),
            script(good),
        ]);
        for at in 0..4 {
            let mut tls = open(&scene);
            // The outcome of the first answer does not matter here.
            let _ = tls.ask(request(at));
            std::thread::sleep(std::time::Duration::from_millis(100));
            let second = tls.ask(request(4));
            let text = second.as_ref().map(Response::text).unwrap_or_default();
            assert!(!text.contains("poison"), "script {at}: the next request got {text}");
        }
        scene.ends_well();
    });
}
