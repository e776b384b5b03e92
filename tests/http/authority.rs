//! One connection is for one name and port: the upstream that was dialled, the certificate, and
//! every request on it name the same. The address that the agent chose does not matter.

use lab::{
    client::{Hello, Tls},
    gateway::{OPENAI_SECRET, usual_config},
    net::{AGENT, AGENT2, ANTHROPIC, ATTACKER, CDN, GATEWAY_V4, GATEWAY_V6, OPENAI, OTHER, PYPI},
    sandboxed,
};

use crate::attack::{
    Ask, Scene, local,
    raw_h2::{Outcome, RawH2},
};

const MISMATCH: (u16, &str) = (421, "host_mismatch");
const MALFORMED: (u16, &str) = (400, "http_malformed");

/// An error code of HTTP/2 (RFC 9113, section 7).
const PROTOCOL_ERROR: u32 = 1;

#[test]
fn a_host_that_is_not_the_server_name_is_refused() {
    sandboxed(|| {
        let scene = Scene::usual();
        for authority in [
            "attacker.example",
            "api.anthropic.example",
            "api.openai.example.attacker.example",
            "xapi.openai.example",
            "openai.example",
            "198.51.100.10",
            "[2001:db8:e::10]",
            "api.openai.example:8443",
            "api.openai.example:80",
            "api.openai.example:0443",
            "api.openai.example:",
            "attacker.example:443",
        ] {
            let ask = Ask::to(OPENAI).good().authority(authority);
            scene.refuses(authority, (AGENT, OPENAI), &ask, MISMATCH);
        }
        // Forms that an HTTP/2 library would not send.
        for authority in [
            "api.openai.example, attacker.example",
            "attacker.example api.openai.example",
            "user@api.openai.example",
            "attacker.example@api.openai.example",
            "api.openai.example@attacker.example",
            "api.openai.example#attacker.example",
            "api.openai.example/attacker.example",
            "api.openai.example\\attacker.example",
            "https://api.openai.example",
            "api.openai.example:443:8443",
            "api.openai.example:+443",
            "api.openai.example..",
            "",
        ] {
            let ask = Ask::to(OPENAI).good().authority(authority);
            scene.refuses_bytes(authority, (AGENT, OPENAI), ask.h1(), MISMATCH);
        }
        scene.ends_well();
    });
}

#[test]
fn equal_spellings_of_a_host_go_out_as_one() {
    sandboxed(|| {
        let scene = Scene::usual();
        for authority in ["API.OpenAI.example", "api.openai.example:443", "api.openai.example."] {
            let ask = Ask::to(OPENAI).good().authority(authority);
            for seen in scene.forwards(authority, (AGENT, OPENAI), &ask) {
                assert_eq!(seen.authority(), OPENAI.name);
            }
        }
        scene.ends_well();
    });
}

#[test]
fn host_must_be_there_once() {
    sandboxed(|| {
        let scene = Scene::usual();
        let head = |fields: &str| {
            format!(
                "GET /v1/attack HTTP/1.1\r\n{fields}Authorization: Bearer OPENAI_API_KEY\r\n\r\n"
            )
        };
        for fields in [
            "",
            "Host: api.openai.example\r\nHost: attacker.example\r\n",
            "Host: attacker.example\r\nHost: api.openai.example\r\n",
            "Host: api.openai.example\r\nhost: api.openai.example\r\n",
            "Host : api.openai.example\r\n",
            "Host: api.openai.example\r\nHost : attacker.example\r\n",
            " Host: api.openai.example\r\n",
            "Host: api.openai.example\r\n attacker.example\r\n",
        ] {
            scene.refuses_bytes(fields, (AGENT, OPENAI), head(fields), MALFORMED);
        }
        let old = head("").replace("HTTP/1.1", "HTTP/1.0");
        scene.refuses_bytes("HTTP/1.0 without Host", (AGENT, OPENAI), old, MALFORMED);
        scene.ends_well();
    });
}

#[test]
fn a_target_with_an_authority_of_its_own_is_refused() {
    sandboxed(|| {
        let scene = Scene::usual();
        for (target, expected) in [
            ("https://attacker.example/v1/attack", MISMATCH),
            ("https://api.openai.example/v1/attack", MISMATCH),
            ("http://api.openai.example/v1/attack", MISMATCH),
            ("HTTPS://attacker.example:443/v1/attack", MISMATCH),
            ("attacker.example:443", MISMATCH),
            ("attacker.example", MISMATCH),
            ("//attacker.example/v1/attack", (400, "path_ambiguous")),
            ("*", MALFORMED),
        ] {
            let ask = Ask::to(OPENAI).good().path(target);
            scene.refuses_bytes(target, (AGENT, OPENAI), ask.h1(), expected);
        }
        scene.ends_well();
    });
}

#[test]
fn a_field_that_speaks_of_another_host_is_refused() {
    sandboxed(|| {
        let scene = Scene::usual();
        for (name, value) in [
            ("x-forwarded-host", "attacker.example"),
            ("x_forwarded_host", "attacker.example"),
            ("x-forwarded-host", "api.openai.example, attacker.example"),
            ("forwarded", "for=192.0.2.1;host=attacker.example"),
            ("x-original-host", "attacker.example"),
        ] {
            let ask = Ask::to(OPENAI).good().field(name, value);
            scene.refuses(&format!("{name}: {value}"), (AGENT, OPENAI), &ask, MISMATCH);
        }
        let ask = Ask::to(OPENAI)
            .good()
            .field("x-forwarded-host", OPENAI.name)
            .field("x-forwarded-proto", "http");
        for seen in scene.forwards("forwarded", (AGENT, OPENAI), &ask) {
            assert_eq!(seen.authority(), OPENAI.name);
            for added in ["via", "x-forwarded-for", "x-real-ip"] {
                assert!(seen.header(added).is_empty(), "{added} was added");
            }
        }
        for connection in scene.origin.log().connections() {
            assert!([OPENAI.port(443), OPENAI.port6(443)].contains(&connection.local));
        }
        scene.ends_well();
    });
}

#[test]
fn a_second_authority_on_one_h2_connection_is_refused() {
    sandboxed(|| {
        let scene = Scene::usual();
        let mut h2 = scene.h2(AGENT, OPENAI.port(443), OPENAI.name);
        let me = h2.local_addr();
        let good = Ask::to(OPENAI).good().path("/status/200");
        let bad = good.clone().authority("attacker.example").path("/v1/second-authority");
        assert_eq!(h2.ask(good.h2(), "").expect("an answer").status, 200);
        for _ in 0..2 {
            let answer = h2.ask(bad.h2(), "").expect("an answer");
            scene.is_refusal("second authority", &answer, MISMATCH);
        }
        let other = good.clone().authority(ANTHROPIC.name);
        scene.is_refusal("another API", &h2.ask(other.h2(), "").expect("an answer"), MISMATCH);
        assert_eq!(h2.ask(good.h2(), "").expect("an answer").status, 200);
        drop(h2);
        let words =
            [None, Some("host_mismatch"), Some("host_mismatch"), Some("host_mismatch"), None];
        scene.recorded("second authority", me, &words);
        scene.origin.log().wait_requests(2);
        assert!(!scene.origin.log().holds("second-authority"));
        scene.ends_well();
    });
}

#[test]
fn a_second_host_on_one_h1_connection_is_refused() {
    sandboxed(|| {
        let scene = Scene::usual();
        let mut tls = scene.h1(AGENT, OPENAI.port(443), OPENAI.name);
        let me = local(&tls);
        let good = Ask::to(OPENAI).good().path("/status/200");
        let bad = good.clone().authority("attacker.example").path("/v1/second-host");
        assert_eq!(tls.ask(good.h1()).expect("an answer").status, 200);
        scene.is_refusal("second host", &tls.ask(bad.h1()).expect("an answer"), MISMATCH);
        assert_eq!(tls.ask(good.h1()).expect("an answer").status, 200);
        drop(tls);
        scene.recorded("second host", me, &[None, Some("host_mismatch"), None]);
        scene.origin.log().wait_requests(2);
        assert!(!scene.origin.log().holds("second-host"));
        scene.ends_well();
    });
}

#[test]
fn authority_scheme_and_host_of_an_h2_request_agree() {
    sandboxed(|| {
        let scene = Scene::usual();
        let key = ("authorization", "Bearer OPENAI_API_KEY");
        let pseudo = |scheme, authority, path| {
            vec![
                (":method", "GET"),
                (":scheme", scheme),
                (":authority", authority),
                (":path", path),
            ]
        };
        let site = OPENAI.name;
        let with = |mut fields: Vec<(&'static str, &'static str)>,
                    more: &[(&'static str, &'static str)]| {
            fields.extend_from_slice(more);
            fields
        };
        let attacks = [
            ("scheme http", with(pseudo("http", site, "/v1/x"), &[key])),
            (
                "Host differs",
                with(pseudo("https", site, "/v1/x"), &[("host", "attacker.example"), key]),
            ),
            (
                "no authority",
                vec![
                    (":method", "GET"),
                    (":scheme", "https"),
                    (":path", "/v1/x"),
                    ("host", site),
                    key,
                ],
            ),
            (
                "user in authority",
                with(pseudo("https", "user@api.openai.example", "/v1/x"), &[key]),
            ),
            (
                "two Hosts",
                with(
                    pseudo("https", site, "/v1/x"),
                    &[("host", site), ("host", "attacker.example"), key],
                ),
            ),
            (
                "two authorities",
                with(pseudo("https", site, "/v1/x"), &[(":authority", "attacker.example"), key]),
            ),
            (
                "authority last",
                vec![
                    (":method", "GET"),
                    (":scheme", "https"),
                    (":path", "/v1/x"),
                    key,
                    (":authority", site),
                ],
            ),
            ("absolute path", with(pseudo("https", site, "https://attacker.example/v1/x"), &[key])),
            ("path without a slash", with(pseudo("https", site, "v1/x"), &[key])),
            ("empty path", with(pseudo("https", site, ""), &[key])),
            ("no path", vec![(":method", "GET"), (":scheme", "https"), (":authority", site), key]),
            ("path with a space", with(pseudo("https", site, "/v1/x HTTP/1.1"), &[key])),
            ("path with a line", with(pseudo("https", site, "/v1/x\r\nX: y"), &[key])),
            (
                "authority with a line",
                with(pseudo("https", "api.openai.example\r\nX: y", "/v1/x"), &[key]),
            ),
            (
                "unknown pseudo-field",
                with(pseudo("https", site, "/v1/x"), &[(":host", "attacker.example"), key]),
            ),
            (
                "status in a request",
                with(pseudo("https", site, "/v1/x"), &[(":status", "200"), key]),
            ),
        ];
        for (what, fields) in attacks {
            let before = scene.before();
            let hello = scene.hello2(OPENAI.name);
            let mut h2 = RawH2::open(AGENT, OPENAI.port(443), &hello).expect("a connection");
            h2.request(1, &fields).expect("sent");
            let outcome = h2.outcome(1);
            let me = h2.me;
            drop(h2);
            match outcome.reason() {
                // An invalid HTTP/2 request (RFC 9113, section 8.1.1) ends its stream.
                None => {
                    let error = [
                        Outcome::Reset(PROTOCOL_ERROR),
                        Outcome::ConnectionEnded(Some(PROTOCOL_ERROR)),
                    ];
                    assert!(error.contains(&outcome), "{what}: {outcome:?}");
                    scene.recorded(what, me, &[Some("http_malformed")]);
                }
                Some(reason) => {
                    assert!(
                        ["host_mismatch", "http_malformed"].contains(&&*reason),
                        "{what}: {reason}"
                    );
                    scene.recorded(what, me, &[Some(&reason)]);
                }
            }
            scene.nothing_arrived(what, before);
        }
        scene.ends_well();
    });
}

#[test]
fn the_address_that_an_agent_dials_counts_for_nothing() {
    sandboxed(|| {
        let scene = Scene::usual();
        let ask = Ask::to(OPENAI).good().path("/v1/to-the-attacker");
        for (count, to) in
            [ATTACKER.port(443), ATTACKER.port6(443), OTHER.port(443)].into_iter().enumerate()
        {
            let mut tls = scene.h1(AGENT, to, OPENAI.name);
            assert_eq!(tls.ask(ask.h1()).expect("an answer").status, 200, "{to}");
            let seen = &scene.origin.log().wait_requests(count + 1)[count];
            assert_eq!(seen.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
        }
        for connection in scene.origin.log().connections() {
            assert_eq!(connection.local.port(), 443);
            let real = [OPENAI.v4().to_string(), OPENAI.v6().to_string()];
            assert!(real.contains(&connection.local.ip().to_string()), "{}", connection.local);
            assert_eq!(connection.sni.as_deref(), Some(OPENAI.name));
        }
        scene.ends_well();
    });
}

#[test]
fn a_spliced_name_is_dialled_where_it_lives() {
    sandboxed(|| {
        // Without this setting the gateway refuses it: tests/dns.
        let config = usual_config().splice("pypi", |it| it.set("dialled", "any"));
        let scene = Scene::with(&config);
        for (name, real, to) in [
            (PYPI.name, PYPI, ATTACKER.port(443)),
            (PYPI.name, PYPI, ATTACKER.port6(443)),
            (CDN.name, CDN, ATTACKER.port(443)),
        ] {
            let before = scene.before();
            let mut tls = scene.h1(AGENT, to, name);
            let me = local(&tls);
            let answer = tls.ask(format!("GET /v1/spliced HTTP/1.1\r\nHost: {name}\r\nAuthorization: Bearer OPENAI_API_KEY\r\n\r\n"));
            assert_eq!(answer.expect("an answer").status, 200);
            drop(tls);
            let record = scene.recorded("spliced", me, &[]);
            assert_eq!(record["decision"], "splice");
            for connection in scene.connections_since(before) {
                assert!(
                    [real.port(443), real.port6(443)].contains(&connection.local),
                    "{}",
                    connection.local
                );
                let seen = &connection.requests[0];
                assert_eq!(
                    seen.header("authorization"),
                    ["Bearer OPENAI_API_KEY"],
                    "text, not a secret"
                );
            }
        }
        scene.ends_well();
    });
}

#[test]
fn unlisted_names_and_ports_are_refused_before_a_dial() {
    sandboxed(|| {
        let scene = Scene::usual();
        for (from, name, to) in [
            (AGENT, ATTACKER.name, ATTACKER.port(443)),
            (AGENT, ATTACKER.name, ATTACKER.port6(443)),
            (AGENT, OTHER.name, OPENAI.port(443)),
            (AGENT, "cdn.example", CDN.port(443)),
            (AGENT, "evilcdn.example", CDN.port(443)),
            (AGENT, "pypi.example.attacker.example", PYPI.port(443)),
            (AGENT, "x.pypi.example", PYPI.port(443)),
            (AGENT, "x.api.openai.example", OPENAI.port(443)),
            (AGENT2, ANTHROPIC.name, ANTHROPIC.port(443)),
            (AGENT2, PYPI.name, PYPI.port6(443)),
        ] {
            let before = scene.before();
            let asked = scene.dns.asked().len();
            let stream = from.connect(to).expect("the gateway accepts");
            let me = stream.local_addr().expect("a socket");
            let alert = crate::attack::say(stream, &lab::client::client_hello(&Hello::h1(name)));
            assert_eq!(alert, [0x15, 3, 3, 0, 2, 2, 112], "{name} at {to}");
            let record = scene.connection_refused(name, me, "sni_denied");
            assert_eq!(record["sni"], name);
            scene.nobody_was_dialled(name, before);
            assert_eq!(scene.dns.asked().len(), asked, "{name}: a refused name was resolved");
        }
        for to in [OPENAI.port(8443), OPENAI.port6(8443), ATTACKER.port(8443)] {
            Tls::open(AGENT, to, &scene.hello(OPENAI.name))
                .err()
                .expect("not captured, not passed");
        }
        scene.origin.log().assert_untouched();
        scene.ends_well();
    });
}

#[test]
fn a_tls_only_name_is_refused_on_other_ports() {
    sandboxed(|| {
        let scene = Scene::usual();
        // Port 80 is captured; this is TLS on it for a host that is listed for 443.
        for to in [OPENAI.port(80), PYPI.port6(80), ATTACKER.port(80)] {
            let before = scene.before();
            let stream = AGENT.connect(to).expect("the gateway accepts");
            let me = stream.local_addr().expect("a socket");
            crate::attack::say(stream, &lab::client::client_hello(&Hello::h1(OPENAI.name)));
            scene.connection_refused("TLS on port 80", me, "sni_denied");
            scene.nobody_was_dialled("TLS on port 80", before);
        }
        scene.ends_well();
    });
}

#[test]
fn the_gateway_itself_is_no_destination() {
    sandboxed(|| {
        let scene = Scene::usual();
        let hello = lab::client::client_hello(&scene.hello(OPENAI.name));
        let attack = &|to: std::net::SocketAddr| {
            let Ok(stream) = AGENT.connect(to) else { return };
            let answer = crate::attack::say(stream, &hello);
            assert!(answer.is_empty(), "{to} answered {answer:?}");
        };
        // Most of these wait for an answer that never comes, so they run at once.
        std::thread::scope(|scope| {
            for address in [std::net::IpAddr::from(GATEWAY_V4), GATEWAY_V6.into()] {
                for port in [443, 80, 15001, 22] {
                    scope.spawn(move || attack((address, port).into()));
                }
            }
        });
        scene.origin.log().assert_untouched();
        scene.ends_well();
    });
}
