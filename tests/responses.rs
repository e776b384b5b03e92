//! What comes back: without the key, without delay, and as it was sent otherwise.

use std::time::{Duration, Instant};

use lab::{
    gateway::{OPENAI_SECRET, SECRETS},
    net::{AGENT, ATTACKER, OPENAI},
    sandboxed,
};

use crate::world::{TICKET, World, get, get_path};

/// Everything that the agent decrypts, as text.
fn raw(world: &World, request: &str) -> String {
    let mut tls = world.h1(OPENAI).expect("a connection");
    tls.send(request.replacen("\r\n", "\r\nConnection: close\r\n", 1)).expect("sent");
    String::from_utf8_lossy(&tls.read_to_end()).into_owned()
}

#[test]
fn a_key_that_the_api_repeats_is_masked_in_head_and_body() {
    sandboxed(|| {
        let world = World::usual();
        for path in ["/reflect", "/reflect-split", "/v1/echo"] {
            let seen = raw(&world, &get_path(path, &[TICKET]));
            assert!(seen.starts_with("HTTP/1.1 200"), "{path}: {seen}");
            assert!(!seen.contains(OPENAI_SECRET), "{path}: {seen}");
        }
        assert_eq!(world.origin.log().wait_requests(3).len(), 3);
        assert!(world.origin.log().holds(OPENAI_SECRET), "the origin did have it");
        world.gateway.audit.wait_for(|record| record["masked"].as_u64() > Some(0));
        world.assert_secrets_untold();
    });
}

#[test]
fn a_compressed_body_is_not_asked_for_and_not_passed_on() {
    sandboxed(|| {
        let world = World::usual();
        let answer = world.ask(&get_path("/gzip", &[TICKET, "Accept-Encoding: gzip, br"]));
        let request = &world.origin.log().wait_requests(1)[0];
        let asked = request.header("accept-encoding");
        assert!(asked.is_empty() || asked == ["identity"], "{asked:?}");
        assert_eq!(answer.status, 502, "what cannot be scrubbed is not passed on");
        assert_eq!(answer.reason().as_deref(), Some("response_unscannable"));
    });
}

#[test]
fn events_are_not_delayed() {
    sandboxed(|| {
        let world = World::usual();
        let mut tls = world.h1(OPENAI).expect("a connection");
        tls.send(get_path("/sse?n=3&ms=700", &[TICKET])).expect("sent");
        let begun = Instant::now();
        let mut seen = String::new();
        while !seen.contains("event 0\n\n") {
            seen += &String::from_utf8_lossy(&tls.read_some(4096).expect("events"));
        }
        assert!(begun.elapsed() < Duration::from_millis(650), "the first event was held back");
        assert!(!seen.contains("event 1"), "{seen}");
        while !seen.contains("event 2") {
            seen += &String::from_utf8_lossy(&tls.read_some(4096).expect("events"));
        }
    });
}

#[test]
fn a_large_answer_arrives_whole() {
    sandboxed(|| {
        let world = World::usual();
        let bytes = 20 << 20;
        let answer = world.ask(&get_path(&format!("/big?bytes={bytes}"), &[TICKET]));
        assert_eq!(answer.body.len(), bytes);
        assert!(answer.body.iter().all(|byte| *byte == b'x'));
    });
}

#[test]
fn a_redirect_is_passed_on_and_not_followed() {
    sandboxed(|| {
        let world = World::usual();
        let path = "/redirect?to=https://attacker.example/v1/models";
        let answer = world.ask(&get_path(path, &[TICKET]));
        assert_eq!(answer.status, 302);
        let requests = world.origin.log().wait_requests(1);
        assert_eq!(requests[0].authority(), OPENAI.name);
        assert!(!world.dns.was_asked(ATTACKER.name));
    });
}

#[test]
fn an_answer_that_is_cut_off_is_seen_as_cut_off() {
    sandboxed(|| {
        let world = World::usual();
        let mut tls = world.h1(OPENAI).expect("a connection");
        assert!(tls.ask(get_path("/cut", &[TICKET])).is_err(), "half an answer passed for a whole");
        world.gateway.audit.wait_for(|record| record["complete"] == false);
    });
}

#[test]
fn errors_of_the_api_reach_the_agent_as_they_are() {
    sandboxed(|| {
        let world = World::usual();
        for status in [400, 401, 404, 429, 500, 503] {
            let answer = world.ask(&get_path(&format!("/status/{status}"), &[TICKET]));
            assert_eq!(answer.status.as_u16(), status);
            assert_eq!(answer.text(), "as you asked");
        }
    });
}

#[test]
fn nothing_that_the_gateway_says_itself_holds_a_key() {
    sandboxed(|| {
        let world = World::usual();
        let capture = world.lab.capture(AGENT);
        for fields in [vec![], vec!["Authorization: Bearer nonsense-0123456789"], vec![TICKET]] {
            let seen = raw(&world, &get(&fields));
            for secret in SECRETS {
                assert!(!seen.contains(secret), "{seen}");
            }
        }
        for secret in SECRETS {
            assert!(!capture.holds(secret), "a key is on the agent's wire");
        }
    });
}
