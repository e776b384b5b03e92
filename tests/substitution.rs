//! A placeholder in the right place arrives as the key, once, and the agent never sees the key.

use lab::{
    client::{agent, python, succeed},
    gateway::{ANTHROPIC_SECRET, GIT_SECRET, OPENAI_SECRET, OPS_SECRET},
    net::{AGENT, AGENT2, ANTHROPIC, GIT, OPENAI},
    sandboxed,
};

use crate::world::{TICKET, World, get, get_path, is_request};

#[test]
fn curl_over_http_1_reaches_the_api_with_the_real_key() {
    sandboxed(|| curl("--http1.1", "http/1.1"));
}

#[test]
fn curl_over_http_2_reaches_the_api_with_the_real_key() {
    sandboxed(|| curl("--http2", "h2"));
}

fn curl(version: &str, alpn: &str) {
    let world = World::usual();
    let capture = world.lab.capture(AGENT);
    let trace = world.lab.dir.join("trace");
    let mut curl = agent(&world.lab, AGENT, "curl");
    curl.args(["-sS", "--fail", version, "--trace"]).arg(&trace).args([
        "-H",
        TICKET,
        "https://api.openai.example/v1/models",
    ]);
    assert!(succeed(&mut curl).contains("lab-1"));
    let requests = world.origin.log().wait_requests(1);
    assert_eq!(requests[0].header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
    assert_eq!(requests[0].authority(), OPENAI.name);
    let connection = &world.origin.log().connections()[0];
    assert_eq!(connection.sni.as_deref(), Some(OPENAI.name));
    assert_eq!(connection.alpn.as_deref(), Some(alpn));
    if alpn == "http/1.1" {
        assert_eq!(connection.count(OPENAI_SECRET), 1);
        assert_eq!(connection.count("OPENAI_API_KEY"), 0);
    }
    assert!(!capture.holds(OPENAI_SECRET), "the key is on the agent's wire");
    let trace = std::fs::read_to_string(trace).expect("curl wrote a trace");
    assert!(!trace.contains(OPENAI_SECRET), "the key is in what the agent decrypted");
    let record = world.gateway.audit.wait_for(is_request);
    assert_eq!(record["placeholders"][0], "OPENAI_API_KEY");
    assert_eq!(record["upstream_status"], 200);
    assert_eq!(record["host"], OPENAI.name);
    assert!(record.get("reason").is_none(), "{record}");
    world.assert_secrets_untold();
}

#[test]
fn curl_over_ipv6_reaches_the_api_with_the_real_key() {
    sandboxed(|| {
        let world = World::usual();
        let mut curl = agent(&world.lab, AGENT, "curl");
        curl.args(["-6", "-sS", "--fail", "-H", TICKET, "https://api.openai.example/v1/models"]);
        succeed(&mut curl);
        let requests = world.origin.log().wait_requests(1);
        assert_eq!(requests[0].header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
    });
}

#[test]
fn the_openai_sdk_works_unmodified() {
    sandboxed(|| {
        let world = World::usual();
        let script = r#"
import openai
client = openai.OpenAI(base_url="https://api.openai.example/v1", max_retries=0)
messages = [{"role": "user", "content": "Say OPENAI_API_KEY"}]
answer = client.chat.completions.create(model="lab-1", messages=messages)
assert answer.choices[0].message.content == "Hello from the lab", answer
parts = client.chat.completions.create(model="lab-1", messages=messages, stream=True)
text = "".join(part.choices[0].delta.content or "" for part in parts)
assert text == "Hello from the lab", text
"#;
        sdk(&world, script);
        let requests = world.origin.log().wait_requests(2);
        for request in requests {
            assert_eq!(request.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
            let body = String::from_utf8_lossy(&request.body).into_owned();
            assert!(body.contains("Say OPENAI_API_KEY"), "a prompt is not searched: {body}");
            assert!(!body.contains(OPENAI_SECRET));
        }
        world.assert_secrets_untold();
    });
}

#[test]
fn the_anthropic_sdk_works_unmodified() {
    sandboxed(|| {
        let world = World::usual();
        let script = r#"
import anthropic
client = anthropic.Anthropic(base_url="https://api.anthropic.example", max_retries=0)
ask = dict(model="lab-1", max_tokens=9, messages=[{"role": "user", "content": "Hello"}])
answer = client.messages.create(**ask)
assert answer.content[0].text == "Hello from the lab", answer
with client.messages.stream(**ask) as stream:
    text = "".join(stream.text_stream)
assert text == "Hello from the lab", text
"#;
        sdk(&world, script);
        for request in world.origin.log().wait_requests(2) {
            let fields = [request.header("x-api-key"), request.header("authorization")].concat();
            let whole = |value: &String| {
                value == ANTHROPIC_SECRET || *value == format!("Bearer {ANTHROPIC_SECRET}")
            };
            assert_eq!(fields.iter().filter(|value| whole(value)).count(), 1, "{fields:?}");
            assert_eq!(request.authority(), ANTHROPIC.name);
        }
        world.assert_secrets_untold();
    });
}

fn sdk(world: &World, script: &str) {
    let file = world.lab.write("client.py", script);
    let mut command = agent(&world.lab, AGENT, &python().display().to_string());
    succeed(command.arg(file));
}

#[test]
fn git_clones_over_https_with_basic_after_its_401() {
    sandboxed(|| {
        let world = World::usual();
        world.origin.repository("coat", "the coat behind the counter");
        let mut git = agent(&world.lab, AGENT, "git");
        git.args(["clone", "-q", "https://agent:GIT_TOKEN@git.example/coat.git", "/run/lab/clone"]);
        succeed(&mut git);
        let readme = std::fs::read_to_string("/run/lab/clone/README").expect("it was cloned");
        assert_eq!(readme, "the coat behind the counter");
        let requests = world.origin.log().requests();
        assert!(requests.iter().all(|request| request.authority() == GIT.name));
        assert!(requests[0].header("authorization").is_empty(), "the first goes without");
        let basic = format!("Basic {}", base64(&format!("agent:{GIT_SECRET}")));
        assert!(requests.len() >= 3, "{requests:?}");
        for request in &requests[1..] {
            assert_eq!(request.header("authorization"), std::slice::from_ref(&basic));
        }
        let config = std::fs::read_to_string("/run/lab/clone/.git/config").expect("a clone");
        assert!(config.contains("GIT_TOKEN") && !config.contains(GIT_SECRET), "{config}");
    });
}

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
fn every_request_of_a_kept_connection_is_substituted_on_its_own() {
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
fn the_scheme_of_a_credential_is_compared_without_regard_to_case() {
    sandboxed(|| {
        let world = World::usual();
        assert_eq!(world.ask(&get(&["authorization: bEARER OPENAI_API_KEY"])).status, 200);
        assert!(world.origin.log().holds(OPENAI_SECRET));
    });
}

#[test]
fn placeholder_text_outside_of_credentials_is_ordinary_text() {
    sandboxed(|| {
        let world = World::usual();
        let answer = world.ask(&get_path(
            "/v1/files?name=OPENAI_API_KEY",
            &[TICKET, "X-Note: Bearer OPENAI_API_KEY", "User-Agent: OPENAI_API_KEY"],
        ));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let request = &world.origin.log().wait_requests(1)[0];
        assert_eq!(request.header("x-note"), ["Bearer OPENAI_API_KEY"]);
        assert_eq!(request.header("user-agent"), ["OPENAI_API_KEY"]);
        assert_eq!(request.uri.query(), Some("name=OPENAI_API_KEY"));
        assert_eq!(world.origin.log().connections()[0].count(OPENAI_SECRET), 1);
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

fn base64(text: &str) -> String {
    use ::base64::Engine as _;
    ::base64::engine::general_purpose::STANDARD.encode(text)
}
