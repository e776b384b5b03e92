//! An attacker's text stands in the audit as text: it starts no line, ends no field, and is cut
//! where it would fill the disk. And no agent's request travels in another agent's connection.

use lab::{
    client::Hello,
    net::{AGENT, AGENT2, OPENAI, OTHER},
    sandboxed,
};

use crate::attack::{Ask, Scene, local, say};

/// The text of a record that would begin here, if it could.
const FORGED: &str = r#"","record":"connection","decision":"splice","reason":null,"x":""#;

#[test]
fn an_attackers_path_or_method_stays_one_field() {
    sandboxed(|| {
        let scene = Scene::usual();
        let long = format!("/v1/{}", "a".repeat(20_000));
        for path in [format!("/v1/{FORGED}"), long, "/v1/{\"record\":\"request\"}".to_owned()] {
            let mut tls = scene.h1(AGENT, OPENAI.port(443), OPENAI.name);
            let me = local(&tls);
            let ask = Ask::to(OPENAI).path(&path).method("DELETE");
            let answer = tls.ask(ask.h1()).expect("an answer");
            assert_eq!(answer.reason().as_deref(), Some("placeholder_missing"), "{path}");
            drop(tls);
            let (_, requests) = scene.records(&path, me, 1);
            let seen = requests[0]["path"].as_str().expect("a path");
            assert!(path.starts_with(seen) && seen.len() <= 512, "{path}: {seen}");
        }
        let method = "M".repeat(3_000);
        let mut tls = scene.h1(AGENT, OPENAI.port(443), OPENAI.name);
        let me = local(&tls);
        let head = Ask::to(OPENAI).h1().replacen("POST", &method, 1);
        tls.ask(head).expect("an answer");
        drop(tls);
        let (_, requests) = scene.records("a long method", me, 1);
        assert!(requests[0]["method"].as_str().is_some_and(|method| method.len() <= 32));
        scene.ends_well();
    });
}

#[test]
fn protocol_names_and_hosts_of_the_attackers_making_stay_text() {
    sandboxed(|| {
        let scene = Scene::usual();
        let alpn: Vec<&'static [u8]> =
            vec![b"\n{\"record\":\"connection\"}\n", b"\xff\x00\"\\", &[b'a'; 255], b"http/1.0"];
        let hello = Hello { alpn, ..Hello::h1(OPENAI.name) };
        let stream = AGENT.connect(OPENAI.port(443)).expect("the gateway accepts");
        let me = stream.local_addr().expect("a socket");
        say(stream, &lab::client::client_hello(&hello));
        let record = scene.connection_refused("ALPN", me, "alpn_denied");
        let names = record["alpn"].as_array().expect("names");
        assert!(
            names
                .iter()
                .all(|name| name.as_str().is_some_and(|name| name.is_ascii() && name.len() <= 128))
        );
        for host in ["a\"b.example", "a\\nb.example", "{\"record\":1}"] {
            let stream = AGENT.connect(OTHER.port(80)).expect("the gateway accepts");
            let me = stream.local_addr().expect("a socket");
            say(stream, format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
            let record = scene.connection_refused(host, me, "http_malformed");
            assert!(!record.has("host"), "{record}");
        }
        scene.ends_well();
    });
}

#[test]
fn a_credential_of_the_attackers_own_is_not_written_down() {
    sandboxed(|| {
        let scene = Scene::usual();
        let key = "sk-attacker-7d1f0c5b9a3e4826";
        let foreign = (403, "foreign_credential");
        let field = Ask::to(OPENAI).field("authorization", format!("Bearer {key}"));
        scene.refuses("in a field", (AGENT, OPENAI), &field, foreign);
        let query = Ask::to(OPENAI).path("/v1/x?api_key=query-7d1f0c5b");
        scene.refuses("in the query", (AGENT, OPENAI), &query, foreign);
        let written = scene.gateway.audit.text() + &scene.gateway.stderr();
        for place in ["header authorization", "query apikey"] {
            assert!(written.contains(place), "{place}: {written}");
        }
        assert!(!written.contains(key) && !written.contains("query-7d1f0c5b"), "{written}");
        scene.ends_well();
    });
}

#[test]
fn no_agents_in_a_flood_share_an_upstream_connection() {
    sandboxed(|| {
        let scene = Scene::usual();
        let ask = |placeholder: &str| {
            Ask::to(OPENAI)
                .field("authorization", format!("Bearer {placeholder}"))
                .path("/status/200")
        };
        let mut first = scene.h2(AGENT, OPENAI.port(443), OPENAI.name);
        let mut second = scene.h2(AGENT2, OPENAI.port(443), OPENAI.name);
        let mut third = scene.h2(AGENT, OPENAI.port(443), OPENAI.name);
        for _ in 0..2 {
            assert_eq!(first.ask(ask("OPENAI_API_KEY").h2(), "").expect("an answer").status, 200);
            assert_eq!(second.ask(ask("OPS_OPENAI_KEY").h2(), "").expect("an answer").status, 200);
            assert_eq!(third.ask(ask("OPENAI_API_KEY").h2(), "").expect("an answer").status, 200);
        }
        let connections = scene.origin.log().connections();
        assert_eq!(connections.len(), 3);
        for connection in connections {
            let keys: std::collections::BTreeSet<_> = connection
                .requests
                .iter()
                .flat_map(|request| request.header("authorization"))
                .collect();
            assert_eq!((connection.requests.len(), keys.len()), (2, 1));
        }
        scene.ends_well();
    });
}

#[test]
fn names_of_an_agents_flows_tell_nothing_of_other_agents() {
    sandboxed(|| {
        let scene = Scene::usual();
        let flow = |from: lab::net::Ns| -> u64 {
            let stream = from.connect(OPENAI.port(80)).expect("the gateway accepts");
            let answer = say(stream, b"GET / HTTP/1.1\r\nHost: api.openai.example\r\n\r\n");
            let answer = String::from_utf8_lossy(&answer).into_owned();
            let (_, rest) = answer.split_once("\"flow\":\"").expect("a refusal with its flow");
            u64::from_str_radix(&rest[..16], 16).expect("hexadecimal")
        };
        let mut own = Vec::new();
        for others in [0, 0, 1, 5, 0, 20, 0, 1] {
            own.push(flow(AGENT));
            (0..others).for_each(|_| _ = flow(AGENT2));
        }
        // Unrelated numbers are as close as this once in a million runs.
        let near =
            |one: u64, other: u64| one.wrapping_sub(other).min(other.wrapping_sub(one)) < 1 << 38;
        for (at, one) in own.iter().enumerate() {
            let close: Vec<_> = own[..at].iter().filter(|other| near(*one, **other)).collect();
            assert!(close.is_empty(), "{one:016x} and {close:x?}");
        }
        scene.ends_well();
    });
}
