//! A host that is spliced: the agent sees the host's own certificate, and each side receives the
//! other's bytes unchanged.

use lab::{
    client::{H2, Hello, Tls},
    gateway::SECRETS,
    net::{AGENT, PYPI},
    sandboxed,
};

use super::{Family, Scene};

/// Makes a hello trust the lab's public root, and not the gateway's.
fn public(scene: &Scene, hello: Hello) -> Hello {
    hello.trusting(scene.world.lab.public.pem())
}

fn http_1(family: Family) {
    let scene = Scene::new(family);
    let request = "PUT /echo HTTP/1.1\r\nhOsT: pypi.example\r\nX-Odd:   spaced\t\r\n\
        aUTHORIZATION: Bearer OPENAI_API_KEY\r\nContent-Length: 8\r\n\r\nbo\r\n\r\ndy";
    let hello = public(&scene, Hello::h1(PYPI.name));
    let mut tls = Tls::open(AGENT, family.https(PYPI), &hello).expect("its own certificate");
    let leaf = tls.leaf().expect("a certificate");
    let answer = tls.ask(request).expect("an answer");
    assert_eq!(answer.status, 200);
    drop(tls);
    let log = scene.world.origin.log();
    log.wait_all_closed();
    let connection = &log.connections()[0];
    assert_eq!(connection.bytes, request.as_bytes(), "no byte is touched");
    assert_eq!(connection.sni.as_deref(), Some(PYPI.name));
    told(&scene, &leaf);
}

fn http_2(family: Family) {
    let scene = Scene::new(family);
    let hello = public(&scene, Hello::h2(PYPI.name));
    let mut h2 = H2::open(AGENT, family.https(PYPI), &hello).expect("its own certificate");
    for path in ["/echo", "/trailers"] {
        let request = http::Request::post(format!("https://pypi.example{path}"))
            .header("authorization", "Bearer OPENAI_API_KEY")
            .body(())
            .expect("a request");
        let answer = h2.ask(request, "body").expect("an answer");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.trailers.contains_key("x-checksum"), path == "/trailers");
    }
    drop(h2);
    let requests = scene.world.origin.log().wait_requests(2);
    for request in requests {
        assert_eq!(
            request.header("authorization"),
            ["Bearer OPENAI_API_KEY"],
            "nothing is swapped"
        );
        assert_eq!(request.body, "body");
    }
    let (connections, _) = scene.records(1, 0);
    assert_eq!(connections[0]["alpn"], serde_json::json!(["h2"]));
    scene.world.assert_secrets_stay();
}

/// Checks that there is one record, of a spliced connection, that the leaf was the host's, and that
/// no key is anywhere.
fn told(scene: &Scene, leaf: &[u8]) {
    let (connections, _) = scene.records(1, 0);
    let record = &connections[0];
    assert_eq!(record["decision"], "splice", "{record}");
    assert_eq!(record["rule"], "pypi", "{record}");
    assert!(!record.has("reason"), "{record}");
    scene.assert_family(record, PYPI);
    let issuer = b"Lab public root";
    assert!(leaf.windows(issuer.len()).any(|at| at == issuer), "not the host's own certificate");
    scene.world.assert_secrets_stay();
}

#[test]
fn http_1_over_ipv4_is_untouched() {
    sandboxed(|| http_1(Family::V4));
}

#[test]
fn http_1_over_ipv6_is_untouched() {
    sandboxed(|| http_1(Family::V6));
}

#[test]
fn http_2_over_ipv4_is_untouched() {
    sandboxed(|| http_2(Family::V4));
}

#[test]
fn http_2_over_ipv6_is_untouched() {
    sandboxed(|| http_2(Family::V6));
}

/// The bytes on the wire are counted exactly: the sum of the packets' payloads. No key is among
/// them.
#[test]
fn an_unmodified_client_passes_and_the_audit_counts_it() {
    sandboxed(|| {
        let scene = Scene::new(Family::V4);
        for version in ["--http1.1", "--http2"] {
            let url = "https://pypi.example/pattern?bytes=300000";
            scene.curl(&[version, "-o", "/run/lab/got", url]);
            let got = std::fs::read("/run/lab/got").expect("curl wrote it");
            assert!(got == lab::origin::pattern(300_000), "{version}: {} bytes", got.len());
        }
        let (connections, _) = scene.records(2, 0);
        for record in connections {
            let bytes = record["bytes_to_agent"].as_u64().unwrap_or(0);
            // TLS adds a handshake and 22 bytes a record.
            assert!((300_000..310_000).contains(&bytes), "{record}");
        }
        scene.wire.assert_never(&SECRETS);
    });
}

/// This is the control of every other test here: a tap finds what an agent does send.
#[test]
fn a_tap_finds_a_value_in_every_clients_form() {
    sandboxed(|| {
        let scene = Scene::new(Family::V4);
        let forms = [
            ("--http1.1", "--header", "Authorization: Bearer "),
            ("--http2", "--header", "Authorization: Bearer "),
            ("--http2", "--header", "X-Api-Key: "),
            ("--http1.1", "--user", "agent:"),
            ("--http2", "--user", "agent:"),
            ("--http2", "--data", ""),
        ];
        for (index, (version, option, before)) in forms.iter().enumerate() {
            let value = format!("a-value-{index}-of-the-agents-own");
            let argument = format!("{before}{value}");
            scene.curl(&[version, option, &argument, "https://pypi.example/echo"]);
            let sessions = scene.wire.sessions();
            assert_eq!(sessions.len(), index + 1);
            let found = sessions.iter().filter(|session| session.sends(&value)).count();
            assert_eq!(found, 1, "{version} {option}");
        }
    });
}
