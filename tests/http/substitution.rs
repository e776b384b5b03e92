//! A placeholder in the right place arrives as the key, once, and the agent never sees the key.

use lab::{
    World,
    gateway::{OPENAI_SECRET, OPS_SECRET},
    net::{AGENT2, OPENAI},
    sandboxed,
    world::{TICKET, get},
};

#[test]
fn a_group_gets_its_own_key_and_never_another_groups() {
    sandboxed(|| {
        let world = World::usual();
        let ask = |placeholder: &str| {
            let mut tls =
                world.h1_from(AGENT2, OPENAI.port(443), OPENAI.name).expect("a connection");
            tls.ask(get(&[&format!("Authorization: Bearer {placeholder}")])).expect("an answer")
        };
        assert_eq!(ask("OPS_OPENAI_KEY").status, 200);
        let requests = world.origin.log().wait_requests(1);
        assert_eq!(requests[0].header("authorization"), [format!("Bearer {OPS_SECRET}")]);
        let refused = ask("OPENAI_API_KEY");
        assert_eq!(refused.status, 403);
        assert_eq!(refused.reason().as_deref(), Some("foreign_credential"));
        world.origin.log().wait_requests(1);
        assert!(!world.origin.log().holds(OPENAI_SECRET));
    });
}

#[test]
fn every_request_of_a_kept_connection_is_substituted() {
    sandboxed(|| {
        let world = World::usual();
        let mut tls = world.h1(OPENAI).expect("a connection");
        for _ in 0..3 {
            assert_eq!(tls.ask(get(&[TICKET])).expect("an answer").status, 200);
        }
        let refused = tls.ask(get(&["Authorization: Bearer mine"])).expect("an answer");
        assert_eq!(refused.reason().as_deref(), Some("foreign_credential"));
        assert_eq!(world.origin.log().wait_requests(3).len(), 3);
        drop(tls);
        world.gateway.audit.wait_reason("foreign_credential");
        assert_eq!(world.requests().len(), 4, "one record for each request");
    });
}

#[test]
fn a_credentials_scheme_is_compared_regardless_of_case() {
    sandboxed(|| {
        let world = World::usual();
        assert_eq!(world.ask(&get(&["authorization: bEARER OPENAI_API_KEY"])).status, 200);
        assert!(world.origin.log().holds(OPENAI_SECRET));
    });
}

#[test]
fn no_proxy_header_tells_the_api_that_we_are_here() {
    sandboxed(|| {
        let world = World::usual();
        world.ask(&get(&[TICKET]));
        let request = &world.origin.log().wait_requests(1)[0];
        for name in ["via", "forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip"] {
            assert!(request.header(name).is_empty(), "{name}");
        }
    });
}
