//! A connection stays as it was decided: no tunnel, no upgrade, no other protocol in it.

use lab::{
    client::{Hello, Tls},
    net::{AGENT, OPENAI},
    sandboxed,
};

use crate::attack::{
    Ask, Scene, local,
    raw_h2::{Outcome, RawH2},
};

const UPGRADE: (u16, &str) = (426, "upgrade_denied");

#[test]
fn connect_inside_an_intercepted_connection_is_refused() {
    sandboxed(|| {
        let scene = Scene::usual();
        for target in ["attacker.example:443", "api.openai.example:443", "127.0.0.1:80", "/v1/x"] {
            for host in [OPENAI.name, "attacker.example:443"] {
                let bytes = format!(
                    "CONNECT {target} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer OPENAI_API_KEY\r\n\r\n\
                     GET /v1/inner HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
                );
                let before = scene.before();
                let mut tls = scene.h1(AGENT, OPENAI.port(443), OPENAI.name);
                tls.send(bytes).expect("sent");
                let answers = String::from_utf8_lossy(&tls.read_to_end()).into_owned();
                assert!(answers.starts_with("HTTP/1.1 403"), "{target}: {answers}");
                assert!(answers.contains("connect_denied"), "{target}: {answers}");
                // The bytes after it are a request of their own, without a credential or with
                // another Host.
                let words = ["placeholder_missing", "host_mismatch"];
                assert!(words.iter().any(|word| answers.contains(word)), "{target}: {answers}");
                drop(tls);
                scene.nothing_arrived(target, before);
            }
        }
        scene.ends_well();
    });
}

#[test]
fn connect_and_extended_connect_on_h2_are_refused() {
    sandboxed(|| {
        let scene = Scene::usual();
        let key = ("authorization", "Bearer OPENAI_API_KEY");
        let pseudo = [(":scheme", "https"), (":authority", OPENAI.name), (":path", "/v1/x")];
        let extended = |protocol| {
            let mut fields = vec![(":method", "CONNECT"), (":protocol", protocol)];
            fields.extend(pseudo);
            fields.push(key);
            fields
        };
        for (what, fields, word) in [
            (
                "CONNECT",
                vec![(":method", "CONNECT"), (":authority", "attacker.example:443"), key],
                true,
            ),
            (
                "CONNECT here",
                vec![(":method", "CONNECT"), (":authority", "api.openai.example:443"), key],
                true,
            ),
            ("websocket", extended("websocket"), false),
            ("connect-udp", extended("connect-udp"), false),
            ("connect-ip", extended("connect-ip"), false),
        ] {
            let before = scene.before();
            let mut h2 = RawH2::open(AGENT, OPENAI.port6(443), &scene.hello2(OPENAI.name))
                .expect("a connection");
            let me = h2.me;
            h2.request(1, &fields).expect("sent");
            let outcome = h2.outcome(1);
            drop(h2);
            if word {
                assert_eq!(
                    outcome.reason().as_deref(),
                    Some("connect_denied"),
                    "{what}: {outcome:?}"
                );
                scene.recorded(what, me, &[Some("connect_denied")]);
            } else {
                // Extended CONNECT was not announced (RFC 8441, section 3), so it is malformed.
                assert_eq!(outcome, Outcome::Reset(1), "{what}");
                scene.recorded(what, me, &[Some("http_malformed")]);
            }
            scene.nothing_arrived(what, before);
        }
        scene.ends_well();
    });
}

#[test]
fn upgrades_are_refused() {
    sandboxed(|| {
        let scene = Scene::usual();
        for (what, fields) in [
            (
                "h2c",
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
            ),
            ("h2c, Connection alone", "Connection: Upgrade\r\n"),
            ("h2c, Upgrade alone", "Upgrade: h2c\r\n"),
            (
                "websocket",
                "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                 Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
            ),
            ("two", "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n"),
            ("TLS", "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n"),
            ("hidden", "Connection: keep-alive, upgrade\r\nUpgrade: foo/2\r\n"),
        ] {
            let bytes = format!(
                "GET /v1/attack HTTP/1.1\r\nHost: api.openai.example\r\n\
                 Authorization: Bearer OPENAI_API_KEY\r\n{fields}\r\n"
            );
            scene.refuses_bytes(what, (AGENT, OPENAI), bytes, UPGRADE);
        }
        scene.ends_well();
    });
}

#[test]
fn connection_fields_make_an_h2_request_malformed() {
    sandboxed(|| {
        let scene = Scene::usual();
        for (name, value) in [
            ("connection", "authorization"),
            ("connection", "close"),
            ("upgrade", "h2c"),
            ("transfer-encoding", "chunked"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "close"),
            ("te", "gzip"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
        ] {
            let before = scene.before();
            let mut h2 = RawH2::open(AGENT, OPENAI.port(443), &scene.hello2(OPENAI.name))
                .expect("a connection");
            let fields = crate::attack::raw_h2::fields(
                "GET",
                OPENAI.name,
                "/status/200",
                &[("authorization", "Bearer OPENAI_API_KEY"), (name, value)],
            );
            h2.request(1, &fields).expect("sent");
            let outcome = h2.outcome(1);
            drop(h2);
            if name == "http2-settings" {
                // The field belongs to the upgrade of HTTP/1.1 only; here it is text.
                assert_eq!(outcome, Outcome::Answered("as you asked".into()));
                continue;
            }
            assert_eq!(outcome, Outcome::Reset(1), "{name}: {value}");
            scene.nothing_arrived(name, before);
        }
        scene.ends_well();
    });
}

#[test]
fn the_other_protocol_on_an_agreed_connection_is_refused() {
    sandboxed(|| {
        let scene = Scene::usual();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
        scene.refuses_bytes(
            "h2 where http/1.1 was agreed",
            (AGENT, OPENAI),
            preface,
            (400, "http_malformed"),
        );

        let before = scene.before();
        let none = Hello { alpn: Vec::new(), ..scene.hello(OPENAI.name) };
        let mut tls = Tls::open(AGENT, OPENAI.port(443), &none).expect("a connection");
        let me = local(&tls);
        let answer = tls.ask(preface).expect("an answer");
        scene.is_refusal("h2 where nothing was agreed", &answer, (400, "http_malformed"));
        drop(tls);
        scene.recorded("h2 where nothing was agreed", me, &[Some("http_malformed")]);
        scene.nothing_arrived("h2 where nothing was agreed", before);

        let before = scene.before();
        let mut tls =
            Tls::open(AGENT, OPENAI.port(443), &scene.hello2(OPENAI.name)).expect("a connection");
        let me = local(&tls);
        tls.send(Ask::to(OPENAI).good().h1()).expect("sent");
        let answer = String::from_utf8_lossy(&tls.read_to_end()).into_owned();
        assert!(!answer.contains("HTTP/1.1"), "{answer}");
        drop(tls);
        scene.recorded("http/1.1 where h2 was agreed", me, &[]);
        scene.nothing_arrived("http/1.1 where h2 was agreed", before);
        scene.ends_well();
    });
}
