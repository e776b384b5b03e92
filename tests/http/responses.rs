//! Responses: without the key, without delay, and otherwise as they were sent.

use lab::{
    gateway::{OPENAI_SECRET, SECRETS},
    net::{AGENT, OPENAI},
    sandboxed,
};

use crate::world::{TICKET, World, get, get_path};

/// Returns everything that the agent decrypts, as text.
fn raw(world: &World, request: &str) -> String {
    let mut tls = world.h1(OPENAI).expect("a connection");
    tls.send(request.replacen("\r\n", "\r\nConnection: close\r\n", 1)).expect("sent");
    String::from_utf8_lossy(&tls.read_to_end()).into_owned()
}

#[test]
fn a_repeated_key_is_masked_in_head_and_body() {
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
fn an_answer_that_is_cut_looks_cut() {
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

#[test]
fn a_refused_upload_gets_its_answer_and_not_a_reset() {
    sandboxed(|| {
        let world = World::usual();
        let body = vec![b'x'; 8 << 20];
        let head = format!(
            "POST /v1/files HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer sk-of-my-own-0000\r\n\
             Content-Length: {}\r\n\r\n",
            OPENAI.name,
            body.len()
        );
        let mut tls = world.h1(OPENAI).expect("a connection");
        tls.send([head.as_bytes(), &body].concat()).expect("all of it is taken");
        let answer = tls.response().expect("an answer");
        assert_eq!(answer.reason().as_deref(), Some("foreign_credential"));
        world.assert_nothing_forwarded();
    });
}
