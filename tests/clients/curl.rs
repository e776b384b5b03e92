//! curl, over HTTP/1.1 and HTTP/2.

use std::time::Duration;

use lab::{
    World,
    client::{agent, succeed},
    gateway::{ANTHROPIC_SECRET, OPENAI_SECRET, OPS_SECRET, usual_config},
    net::{AGENT, ANTHROPIC, OPENAI},
    sandbox::sandboxed_for,
    sandboxed,
    world::TICKET,
};

use super::{Family, Swap, Tapped};

const MODELS: &str = "https://api.openai.example/v1/models";

/// Asks in a shell's way: the key comes from the environment.
fn ask(family: Family, version: &str, alpn: &str) {
    let tapped = Tapped::new(family);
    let script = format!(
        "exec curl -sS --fail {version} -H \"Authorization: Bearer $OPENAI_API_KEY\" {MODELS}"
    );
    let seen = succeed(tapped.agent("sh").args(["-c", &script]));
    assert!(seen.contains("lab-1"), "{seen}");
    let swap = Swap::bearer(OPENAI, "OPENAI_API_KEY", OPENAI_SECRET);
    tapped.assert_swapped(&swap, 1);
    let connections = tapped.world.origin.log().connections();
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
        let tapped = Tapped::new(Family::V4);
        let url = "https://api.anthropic.example/v1/models";
        for version in ["--http1.1", "--http2"] {
            tapped.curl(&[version, "-H", "X-Api-Key: ANTHROPIC_API_KEY", url]);
        }
        let swap = Swap::field(ANTHROPIC, "ANTHROPIC_API_KEY", ANTHROPIC_SECRET, "x-api-key");
        let requests = tapped.assert_swapped(&swap, 2);
        assert!(requests.iter().all(|request| request.header("authorization").is_empty()));
    });
}

/// Sends several requests on one connection: each has its placeholder replaced by itself, and its
/// own record.
fn kept(version: &str) {
    let tapped = Tapped::new(Family::V6);
    let authorization = "Authorization: Bearer OPENAI_API_KEY";
    tapped.curl(&[version, "-H", authorization, MODELS, MODELS, MODELS]);
    tapped.assert_swapped(&Swap::bearer(OPENAI, "OPENAI_API_KEY", OPENAI_SECRET), 3);
    let connections = tapped.world.origin.log().connections();
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
        let tapped = Tapped::new(Family::V4);
        let prompt = "my key is OPENAI_API_KEY, or OPS_OPENAI_KEY; which is it?";
        let authorization = "Authorization: Bearer OPENAI_API_KEY";
        for version in ["--http1.1", "--http2"] {
            let url = "https://api.openai.example/v1/echo";
            tapped.curl(&[version, "-H", authorization, "--data-raw", prompt, url]);
        }
        for request in tapped.world.origin.log().wait_requests(2) {
            assert_eq!(request.body, prompt);
            assert_eq!(request.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
            assert!(!super::everything(&request).contains(OPS_SECRET));
        }
        let (_, requests) = tapped.records(2, 2);
        for record in requests {
            assert_eq!(record["request_bytes"], prompt.len(), "{record}");
        }
    });
}

#[test]
fn works_with_nothing_newer_than_tls_1_2() {
    sandboxed(|| {
        let tapped = Tapped::new(Family::V4);
        let authorization = "Authorization: Bearer OPENAI_API_KEY";
        let version = ["--tls-max", "1.2", "-H", authorization, "-v", "--stderr", "-"];
        let seen = tapped.curl(&[&version[..], &[MODELS]].concat());
        assert!(seen.contains("SSL connection using TLSv1.2"), "{seen}");
        let requests = tapped.world.origin.log().wait_requests(1);
        Swap::bearer(OPENAI, "OPENAI_API_KEY", OPENAI_SECRET).assert_in(&requests[0]);
        assert!(!seen.contains(OPENAI_SECRET));
    });
}

/// More than a counter of 32 bits holds.
const FOUR_GIB: u64 = (4 << 30) + 1;

/// The most by which the gateway's memory may grow meanwhile.
const MAX_GROWTH_KIB: u64 = 16 << 10;

/// Runs curl for such a body, and returns its output.
#[track_caller]
fn carry(world: &World, script: &str) -> String {
    let mut sh = agent(&world.lab, AGENT, "sh");
    sh.env("TICKET", TICKET).env("BYTES", FOUR_GIB.to_string());
    let curl = "curl -sS --fail --max-time 1200 -H \"$TICKET\"";
    let url = "https://api.openai.example";
    succeed(sh.args(["-c", &script.replace("CURL", curl).replace("URL", url)]))
}

#[test]
#[ignore = "make test-clients"]
fn four_gib_pass_each_way_in_bounded_memory() {
    sandboxed_for(Duration::from_secs(2400), || {
        let paths = ["/big", "/tardy"];
        let world = World::with(&usual_config().api("openai", |it| it.more("paths", &paths)));
        let before = crate::http::streaming::peak_kib(&world);
        for version in ["--http1.1", "--http2"] {
            let down = "CURL VERSION -o /dev/null -w '%{size_download}' URL/big?bytes=$BYTES";
            assert_eq!(carry(&world, &down.replace("VERSION", version)), FOUR_GIB.to_string());
            let up =
                "head -c $BYTES /dev/zero | CURL VERSION -X POST -H Expect: -T - URL/tardy?ms=0";
            let said = carry(&world, &up.replace("VERSION", version));
            assert_eq!(said, format!("{FOUR_GIB} bytes"));
            world.origin.log().clear();
        }
        let grown = crate::http::streaming::peak_kib(&world).saturating_sub(before);
        assert!(grown < MAX_GROWTH_KIB, "it grew by {grown} KiB, from {before}");
        let bytes =
            |field: &str| world.requests().iter().filter(|it| it[field] == FOUR_GIB).count();
        assert_eq!((bytes("response_bytes"), bytes("request_bytes")), (2, 2));
    });
}
