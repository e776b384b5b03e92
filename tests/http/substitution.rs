//! A placeholder in the right place arrives as the key, once, and the agent never sees the key.

use lab::{
    World,
    client::succeed,
    gateway::{self, OPENAI_SECRET, OPS_SECRET, SECRETS, usual_config},
    net::{AGENT2, OPENAI},
    sandboxed,
    world::{TICKET, get},
};
use serde_json::Value;

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

/// Returns the text that `cloakroom env --shape` has the group hold under this variable.
fn shaped(world: &World, group: &str, variable: &str) -> String {
    let config = world.lab.dir.join("cloakroom.toml");
    let arguments = ["env", "--shape", "--format", "json", group];
    let printed = succeed(gateway::program().args(arguments).arg(config));
    assert!(SECRETS.iter().all(|secret| !printed.contains(secret)), "{printed}");
    let environment: Value = serde_json::from_str(&printed).expect("it is JSON");
    environment[variable].as_str().expect("it is there").to_owned()
}

#[test]
fn a_placeholder_in_its_keys_shape_arrives_as_the_key() {
    sandboxed(|| {
        let shape = "sk-proj-[A-Za-z0-9_-]{48}";
        let with = |it: policy_builder::Table| it.set("shape", shape);
        let config = usual_config().binding("OPENAI_API_KEY", with).binding("OPS_OPENAI_KEY", with);
        let world = World::with(&config);
        let key = shaped(&world, "research", "OPENAI_API_KEY");
        assert!(key.starts_with("sk-proj-") && key.len() == 56, "{key}");
        assert_eq!(shaped(&world, "research", "OPENAI_API_KEY"), key);
        let ask = |text: &str| world.ask(&get(&[&format!("Authorization: Bearer {text}")]));
        for held in [&*key, "OPENAI_API_KEY"] {
            assert_eq!(ask(held).status, 200, "{held}");
        }
        for received in world.origin.log().wait_requests(2) {
            assert_eq!(received.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
        }
        let others = shaped(&world, "operations", "OPS_OPENAI_KEY");
        let altered = format!("{}{}", &key[..55], if key.ends_with('a') { 'b' } else { 'a' });
        for wrong in [&*others, &altered, &key[..55], &format!("{key}a"), &key.to_lowercase()] {
            assert_eq!(ask(wrong).reason().as_deref(), Some("foreign_credential"), "{wrong}");
        }
        assert_eq!(world.origin.log().wait_requests(2).len(), 2, "nothing of these is sent");
        let records = world.requests();
        let named = |it: &&lab::audit::Record| it["placeholders"][0] == "OPENAI_API_KEY";
        assert_eq!(records.iter().filter(named).count(), 2, "by the name: {records:?}");
        assert!(!world.gateway.audit.text().contains(&key));
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
