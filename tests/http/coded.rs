//! Compressed answers: they are decoded and masked on the way, and passed on plain.

mod bodiless;

use http::Request;
use lab::{
    audit::Record,
    client::{Response, python, succeed, tool},
    gateway::OPENAI_SECRET,
    net::{AGENT, OPENAI},
    origin::{TEXT, forms},
    sandboxed,
};

use crate::world::{TICKET, World, get_path};

fn ask_h1(world: &World, path: &str, accepted: &str) -> Response {
    world.ask(&get_path(path, &[TICKET, &format!("Accept-Encoding: {accepted}")]))
}

fn ask_h2(world: &World, path: &str, accepted: &str) -> Response {
    let request = Request::get(format!("https://{}{path}", OPENAI.name))
        .header("authorization", "Bearer OPENAI_API_KEY")
        .header("accept-encoding", accepted);
    let mut h2 = world.h2(OPENAI).expect("a connection");
    h2.ask(request.body(()).expect("a request"), "").expect("an answer")
}

/// Returns the `Accept-Encoding` of the origin's last request.
fn asked(world: &World) -> String {
    let requests = world.origin.log().requests();
    requests.last().expect("a request").header("accept-encoding").join(", ")
}

#[track_caller]
fn assert_plain(answer: &Response, about: &str) {
    assert_eq!(answer.status, 200, "{about}");
    let has = |name: &str| answer.headers.contains_key(name);
    assert!(!has("content-encoding") && !has("content-length"), "{about}: {:?}", answer.headers);
    assert_eq!(answer.headers["etag"], "W/\"of-the-text\"", "{about}");
    assert_eq!(answer.headers["vary"], "Accept-Encoding", "{about}");
}

#[track_caller]
fn assert_masked(answer: &Response, about: &str) {
    let text = answer.text();
    let expected: usize = forms(OPENAI_SECRET).iter().map(|form| form.len() + 1).sum();
    assert_eq!(text.len() + 1, expected, "{about}: {text}");
    for form in forms(OPENAI_SECRET) {
        // The outermost characters of base64 do not depend on the secret alone.
        let core = &form[4..form.len() - 6];
        assert!(!text.contains(core), "{about}: {form} in {text}");
    }
    assert!(text.starts_with("*****"), "{about}: {text}");
}

/// Tests one coding, when it is asked for and when it is not, whole and byte by byte, over both
/// versions; then with the secret in it, after which plain answers are asked for.
fn coding(name: &str, on_the_wire: &str, first: fn(&World, &str, &str) -> Response) {
    let world = World::usual();
    let versions = [("h1", ask_h1 as fn(&World, &str, &str) -> Response), ("h2", ask_h2)];
    for (version, ask) in versions {
        for more in ["", "&bytes=1", "&unasked=1"] {
            let about = format!("{name} {version} {more}");
            let accepted = if more == "&unasked=1" { "x, identity" } else { on_the_wire };
            let answer = ask(&world, &format!("/v1/coded?coding={name}{more}"), accepted);
            assert_plain(&answer, &about);
            assert_eq!(answer.text(), TEXT, "{about}");
            let expected = if more == "&unasked=1" { "identity" } else { on_the_wire };
            assert_eq!(asked(&world), expected, "{about}");
        }
    }
    let path = format!("/v1/coded?coding={name}&echo=1&bytes=1");
    let answer = first(&world, &path, on_the_wire);
    assert_plain(&answer, name);
    assert_masked(&answer, name);
    for (version, ask) in versions {
        let about = format!("{name} again, {version}");
        assert_masked(&ask(&world, &path, on_the_wire), &about);
        assert_eq!(asked(&world), "identity", "{about}");
        let answer = ask(&world, &format!("{path}&unasked=1"), on_the_wire);
        assert_eq!(answer.status, 502, "{about}");
        assert_eq!(answer.reason().as_deref(), Some("response_unscannable"), "{about}");
    }
    assert!(world.origin.log().holds(OPENAI_SECRET), "the origin did have it");
    world.gateway.audit.wait_for(|record| record["masked"].as_u64() > Some(0));
    world.assert_secrets_untold();
}

#[test]
fn gzip_is_decoded_and_masked() {
    sandboxed(|| coding("gzip", "gzip", ask_h1));
}

#[test]
fn deflate_is_decoded_and_masked() {
    sandboxed(|| coding("deflate", "deflate", ask_h2));
}

#[test]
fn deflate_without_its_frame_is_decoded_and_masked() {
    sandboxed(|| coding("raw", "deflate", ask_h1));
}

#[test]
fn brotli_is_decoded_and_masked() {
    sandboxed(|| coding("br", "br", ask_h2));
}

#[test]
fn zstd_is_decoded_and_masked() {
    sandboxed(|| coding("zstd", "zstd", ask_h1));
}

#[test]
fn accepted_codings_are_cut_to_those_we_can_decode() {
    sandboxed(|| {
        let world = World::usual();
        for (accepted, expected) in [
            ("gzip, deflate, br, zstd", "gzip, deflate, br, zstd"),
            ("GZIP;q=0.5, dcb, compress, *;q=0.1", "gzip;q=0.5"),
            ("*", "identity"),
        ] {
            ask_h1(&world, "/v1/models", accepted);
            assert_eq!(asked(&world), expected, "{accepted}");
        }
        world.ask(&get_path("/v1/models", &[TICKET]));
        assert_eq!(asked(&world), "identity");
    });
}

#[test]
fn a_compressed_answer_cut_damaged_or_exploding_has_no_end() {
    sandboxed(|| {
        let world = World::usual();
        for name in ["gzip", "deflate", "br", "zstd"] {
            for more in ["cut=1", "more=1", "zeros=50000000"] {
                let path = format!("/v1/coded?coding={name}&unasked=1&{more}");
                let mut tls = world.h1(OPENAI).expect("a connection");
                assert!(tls.ask(get_path(&path, &[TICKET])).is_err(), "{path} came to an end");
                let records = world.gateway.audit.records();
                assert!(records.len() < 1000);
            }
        }
        let unscannable = |record: &Record| record["reason"] == "response_unscannable";
        world.gateway.audit.wait_for(|record| unscannable(record) && record["complete"] == false);
        world.assert_secrets_untold();
    });
}

#[test]
fn an_event_that_is_flushed_is_delivered_before_the_next() {
    sandboxed(|| {
        let world = World::usual();
        let mut tls = world.h1(OPENAI).expect("a connection");
        let path = "/v1/coded-events?n=3&ms=2000";
        tls.send(get_path(path, &[TICKET, "Accept-Encoding: gzip"])).expect("sent");
        let mut seen = String::new();
        for event in 0..3 {
            while !seen.contains(&format!("data: event {event}\n\n")) {
                let more = tls.read_some(4096).expect("an event");
                assert!(!more.is_empty(), "ended early: {seen}");
                seen.push_str(&String::from_utf8_lossy(&more));
            }
            assert!(!seen.contains(&format!("event {}", event + 1)), "it waited: {seen}");
        }
        assert!(!seen.to_ascii_lowercase().contains("content-encoding"), "{seen}");
    });
}

#[test]
fn clients_read_compressed_answers_as_they_come() {
    sandboxed(|| {
        let world = World::usual();
        let url = format!("https://{}/v1/coded?coding=", OPENAI.name);
        let pem = world.lab.dir.join("agents.pem");
        let agent = |program: &str| {
            let mut command = lab::client::agent(&world.lab, AGENT, program);
            command.env("SSL_CERT_FILE", &pem).env("NODE_EXTRA_CA_CERTS", &pem);
            command.env("CURL_CA_BUNDLE", &pem);
            command
        };
        let script = format!(
            "import httpx\n\
             with httpx.Client(headers={{'Authorization': 'Bearer OPENAI_API_KEY'}}) as client:\n\
             \x20   for name in ['gzip', 'deflate']:\n\
             \x20       assert client.get('{url}' + name).json()['a text'], name\n"
        );
        let file = world.lab.write("coded.py", &script);
        succeed(agent(&python().display().to_string()).arg(file));
        assert!(asked(&world).contains("gzip"), "{}", asked(&world));
        let script = format!(
            "const headers = {{ authorization: 'Bearer OPENAI_API_KEY' }};\n\
             fetch('{url}br', {{ headers }}).then(async (answer) => {{\n\
             \x20   if (!(await answer.json())['a text']) throw new Error('no text');\n\
             }});"
        );
        succeed(agent(&tool("node").display().to_string()).args(["-e", &script]));
        assert!(asked(&world).contains("br"), "{}", asked(&world));
        let seen = succeed(agent("curl").args([
            "--silent",
            "--fail",
            "--compressed",
            "--header",
            TICKET,
            &format!("{url}gzip"),
        ]));
        assert_eq!(seen, TEXT);
    });
}
