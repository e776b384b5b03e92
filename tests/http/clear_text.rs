//! On a port without TLS no placeholder is replaced, and a placeholder in a credential field is a
//! mistake that its owner should learn of, whatever host it was for.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lab::{
    client::read_response,
    gateway::{SECRETS, usual_config},
    net::{AGENT, AGENT2, ATTACKER, OPENAI, OTHER, PYPI},
    sandboxed,
};
use policy_builder::Config;

use crate::attack::{Scene, say};

fn policy_with_port_80() -> Config {
    usual_config().splice("pypi", |it| it.set("ports", [443, 80]))
}

#[test]
fn a_placeholder_in_the_clear_is_refused_for_any_host() {
    sandboxed(|| {
        let scene = Scene::with(&policy_with_port_80());
        let basic = format!("Basic {}", STANDARD.encode("agent:GIT_TOKEN"));
        for to in [OPENAI, PYPI, OTHER, ATTACKER] {
            for (name, value) in [
                ("Authorization", "Bearer OPENAI_API_KEY"),
                ("authorization", "OPENAI_API_KEY"),
                ("Authorization", "bearer   OPENAI_API_KEY  "),
                ("Authorization", basic.as_str()),
                ("X-Api-Key", "ANTHROPIC_API_KEY"),
                ("Proxy-Authorization", "Bearer OPENAI_API_KEY"),
                ("Private-Token", "GIT_TOKEN"),
            ] {
                let what = format!("{name}: {value} to {}", to.name);
                let before = scene.before();
                for dialled in [to.port(80), ATTACKER.port6(80)] {
                    let mut stream = AGENT.connect(dialled).expect("the gateway accepts");
                    let me = stream.local_addr().expect("a socket");
                    let head = format!(
                        "GET /v1/x HTTP/1.1\r\nHost: {}\r\n{name}: {value}\r\n\r\n",
                        to.name
                    );
                    std::io::Write::write_all(&mut stream, head.as_bytes()).expect("sent");
                    let answer = read_response(&mut stream).expect("an answer");
                    scene.is_refusal(&what, &answer, (403, "plaintext_placeholder"));
                    drop(stream);
                    scene.connection_refused(&what, me, "plaintext_placeholder");
                }
                scene.nobody_was_dialled(&what, before);
            }
        }
        scene.ends_well();
    });
}

#[test]
fn plain_http_goes_nowhere_unless_policy_names_host_and_port() {
    sandboxed(|| {
        let scene = Scene::with(&policy_with_port_80());
        for (what, from, to, head, reason) in [
            (
                "a listed API",
                AGENT,
                OPENAI.port(80),
                "GET /v1/x HTTP/1.1\r\nHost: api.openai.example\r\n\r\n",
                "not_tls",
            ),
            (
                "an unlisted host",
                AGENT,
                OTHER.port6(80),
                "GET / HTTP/1.1\r\nHost: other.example\r\n\r\n",
                "destination_denied",
            ),
            (
                "another group's host",
                AGENT2,
                PYPI.port(80),
                "GET / HTTP/1.1\r\nHost: pypi.example\r\n\r\n",
                "destination_denied",
            ),
            (
                "an address",
                AGENT,
                ATTACKER.port(80),
                "GET / HTTP/1.1\r\nHost: 198.51.100.66\r\n\r\n",
                "http_malformed",
            ),
            ("no Host", AGENT, PYPI.port(80), "GET / HTTP/1.1\r\n\r\n", "http_malformed"),
            (
                "two Hosts",
                AGENT,
                PYPI.port(80),
                "GET / HTTP/1.1\r\nHost: pypi.example\r\nHost: attacker.example\r\n\r\n",
                "http_malformed",
            ),
            (
                "a port in Host",
                AGENT,
                PYPI.port(80),
                "GET / HTTP/1.1\r\nHost: pypi.example:8080\r\n\r\n",
                "host_mismatch",
            ),
            (
                "absolute-form",
                AGENT,
                PYPI.port(80),
                "GET http://attacker.example/ HTTP/1.1\r\nHost: pypi.example\r\n\r\n",
                "http_malformed",
            ),
            (
                "CONNECT",
                AGENT,
                PYPI.port(80),
                "CONNECT attacker.example:443 HTTP/1.1\r\nHost: pypi.example\r\n\r\n",
                "connect_denied",
            ),
            (
                "bare LF",
                AGENT,
                PYPI.port(80),
                "GET / HTTP/1.1\nHost: pypi.example\n\n",
                "http_malformed",
            ),
            (
                "h2 in the clear",
                AGENT,
                PYPI.port(80),
                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                "http_malformed",
            ),
            (
                "another protocol",
                AGENT,
                PYPI.port(80),
                "SSH-2.0-OpenSSH_9.2\r\n",
                "protocol_denied",
            ),
            ("SMTP on 443", AGENT, PYPI.port(443), "EHLO attacker.example\r\n", "protocol_denied"),
            (
                "HTTP on 443",
                AGENT,
                PYPI.port(443),
                "GET / HTTP/1.1\r\nHost: pypi.example\r\n\r\n",
                "host_mismatch",
            ),
            (
                "HTTP on 443, port named",
                AGENT,
                OPENAI.port(443),
                "GET / HTTP/1.1\r\nHost: api.openai.example:443\r\n\r\n",
                "not_tls",
            ),
        ] {
            let before = scene.before();
            let stream = from.connect(to).expect("the gateway accepts");
            let me = stream.local_addr().expect("a socket");
            stream.shutdown(std::net::Shutdown::Read).ok();
            say(stream, head.as_bytes());
            scene.connection_refused(what, me, reason);
            scene.nobody_was_dialled(what, before);
        }
        scene.ends_well();
    });
}

#[test]
fn text_on_a_spliced_plain_connection_stays_text() {
    sandboxed(|| {
        let any = policy_with_port_80().splice("pypi", |it| it.set("dialled", "any"));
        let scene = Scene::with(&any);
        let mut stream = AGENT.connect(ATTACKER.port(80)).expect("the gateway accepts");
        let first = "GET /status/200 HTTP/1.1\r\nHost: pypi.example\r\n\r\n";
        let second = "GET /v1/x HTTP/1.1\r\nHost: pypi.example\r\nAuthorization: Bearer OPENAI_API_KEY\r\n\r\n";
        std::io::Write::write_all(&mut stream, [first, second].concat().as_bytes()).expect("sent");
        read_response(&mut stream).expect("an answer");
        let requests = scene.origin.log().wait_requests(2);
        assert_eq!(requests[1].header("authorization"), ["Bearer OPENAI_API_KEY"]);
        let connections = scene.origin.log().connections();
        assert!(
            [PYPI.port(80), PYPI.port6(80)].contains(&connections[0].local),
            "not the attacker's"
        );
        for secret in SECRETS {
            assert!(!scene.origin.log().holds(secret));
        }
        drop(stream);
        scene.ends_well();
    });
}
