//! curl, over HTTP/1.1 and HTTP/2.

use lab::{
    gateway::{ANTHROPIC_SECRET, OPENAI_SECRET, OPS_SECRET},
    net::{ANTHROPIC, OPENAI},
    sandboxed,
};

use super::{Family, Scene, Swap};

const MODELS: &str = "https://api.openai.example/v1/models";

/// Asks in a shell's way: the key comes from the environment.
fn ask(family: Family, version: &str, alpn: &str) {
    let scene = Scene::new(family);
    let script = format!(
        "exec curl -sS --fail {version} -H \"Authorization: Bearer $OPENAI_API_KEY\" {MODELS}"
    );
    let seen = lab::client::succeed(scene.agent("sh").args(["-c", &script]));
    assert!(seen.contains("lab-1"), "{seen}");
    let swap = Swap::bearer(OPENAI, "OPENAI_API_KEY", OPENAI_SECRET);
    scene.assert_swapped(&swap, 1);
    let connections = scene.world.origin.log().connections();
    assert_eq!(connections.len(), 1);
    assert_eq!(connections[0].sni.as_deref(), Some(OPENAI.name));
    assert_eq!(connections[0].alpn.as_deref(), Some(alpn));
    if alpn == "http/1.1" {
        assert_eq!(connections[0].count(OPENAI_SECRET), 1, "in the bytes as they arrived");
        assert_eq!(connections[0].count("OPENAI_API_KEY"), 0, "in the bytes as they arrived");
    }
}

#[test]
fn works_over_http_1_and_ipv4() {
    sandboxed(|| ask(Family::V4, "--http1.1", "http/1.1"));
}

#[test]
fn works_over_http_1_and_ipv6() {
    sandboxed(|| ask(Family::V6, "--http1.1", "http/1.1"));
}

#[test]
fn works_over_http_2_and_ipv4() {
    sandboxed(|| ask(Family::V4, "--http2", "h2"));
}

#[test]
fn works_over_http_2_and_ipv6() {
    sandboxed(|| ask(Family::V6, "--http2", "h2"));
}

#[test]
fn works_with_a_field_of_the_apis_own() {
    sandboxed(|| {
        let scene = Scene::new(Family::V4);
        let url = "https://api.anthropic.example/v1/models";
        for version in ["--http1.1", "--http2"] {
            scene.curl(&[version, "-H", "X-Api-Key: ANTHROPIC_API_KEY", url]);
        }
        let swap = Swap::field(ANTHROPIC, "ANTHROPIC_API_KEY", ANTHROPIC_SECRET, "x-api-key");
        let requests = scene.assert_swapped(&swap, 2);
        assert!(requests.iter().all(|request| request.header("authorization").is_empty()));
    });
}

/// Sends several requests on one connection: each has its placeholder replaced by itself, and its
/// own record.
fn kept(version: &str) {
    let scene = Scene::new(Family::V6);
    let authorization = "Authorization: Bearer OPENAI_API_KEY";
    scene.curl(&[version, "-H", authorization, MODELS, MODELS, MODELS]);
    scene.assert_swapped(&Swap::bearer(OPENAI, "OPENAI_API_KEY", OPENAI_SECRET), 3);
    let connections = scene.world.origin.log().connections();
    assert_eq!(connections.len(), 1, "one upstream connection for one of the agent's");
    if version == "--http1.1" {
        assert_eq!(connections[0].count(OPENAI_SECRET), 3, "once for each request");
    }
}

#[test]
fn keeps_its_connection_over_http_1() {
    sandboxed(|| kept("--http1.1"));
}

#[test]
fn keeps_its_connection_over_http_2() {
    sandboxed(|| kept("--http2"));
}

#[test]
fn a_prompt_that_names_the_placeholder_stays_as_it_is() {
    sandboxed(|| {
        let scene = Scene::new(Family::V4);
        let prompt = "my key is OPENAI_API_KEY, or OPS_OPENAI_KEY; which is it?";
        let authorization = "Authorization: Bearer OPENAI_API_KEY";
        for version in ["--http1.1", "--http2"] {
            let url = "https://api.openai.example/v1/echo";
            scene.curl(&[version, "-H", authorization, "--data-raw", prompt, url]);
        }
        for request in scene.world.origin.log().wait_requests(2) {
            assert_eq!(request.body, prompt);
            assert_eq!(request.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
            assert!(!super::everything(&request).contains(OPS_SECRET));
        }
        let (_, requests) = scene.records(2, 2);
        for record in requests {
            assert_eq!(record["request_bytes"], prompt.len(), "{record}");
        }
    });
}

#[test]
fn works_with_nothing_newer_than_tls_1_2() {
    sandboxed(|| {
        let scene = Scene::new(Family::V4);
        let authorization = "Authorization: Bearer OPENAI_API_KEY";
        let version = ["--tls-max", "1.2", "-H", authorization, "-v", "--stderr", "-"];
        let seen = scene.curl(&[&version[..], &[MODELS]].concat());
        assert!(seen.contains("SSL connection using TLSv1.2"), "{seen}");
        let requests = scene.world.origin.log().wait_requests(1);
        Swap::bearer(OPENAI, "OPENAI_API_KEY", OPENAI_SECRET).assert_in(&requests[0]);
        assert!(!seen.contains(OPENAI_SECRET));
    });
}
