//! Answers with the head of a compressed one and no body: to HEAD, and with 204 or 304.

use http::{HeaderMap, Method, Request, StatusCode};
use lab::{
    client::{Response, Tls},
    net::OPENAI,
    origin::TEXT,
    sandboxed,
};
use policy_builder::Config;

use crate::world::{TICKET, World, get_path};

/// The reasons for an answer without a body: the method, and further parts of the target.
const WAYS: [(&str, &str, StatusCode); 3] = [
    ("HEAD", "", StatusCode::OK),
    ("GET", "&status=204", StatusCode::NO_CONTENT),
    ("GET", "&status=304", StatusCode::NOT_MODIFIED),
];
const CODINGS: [&str; 4] = ["gzip", "deflate", "br", "zstd"];

/// Whether the coding is asked for: the API then sends it, or sends it unasked.
const NEGOTIATED: [(&str, bool); 2] = [("", true), ("&unasked=1", false)];

fn config() -> Config {
    lab::gateway::usual_config().api("openai", |it| it.more("methods", &["HEAD"]))
}

/// Returns the head of the answer to a request on this connection; bytes after it stay unread.
#[track_caller]
fn head_h1(tls: &mut Tls, request: &str) -> Response {
    tls.send(request).expect("sent");
    let mut bytes = vec![];
    while !bytes.ends_with(b"\r\n\r\n") {
        let byte = tls.read_some(1).expect("a head");
        assert!(!byte.is_empty(), "ended within {}", bytes.escape_ascii());
        bytes.extend(byte);
    }
    // This head states that nothing follows.
    let text = String::from_utf8(bytes).expect("text");
    let status = text.get(9..12).and_then(|it| it.parse().ok()).expect("a status");
    let mut headers = HeaderMap::new();
    for line in text.lines().skip(1).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(": ").expect("a field");
        let name: http::HeaderName = name.parse().expect("a name");
        headers.append(name, value.parse().expect("a value"));
    }
    Response { status, headers, body: vec![].into(), trailers: HeaderMap::new() }
}

#[track_caller]
fn assert_head(answer: &Response, status: StatusCode, about: &str) {
    assert_eq!(answer.status, status, "{about}");
    assert!(answer.body.is_empty(), "{about}: {}", answer.text());
    for name in ["content-encoding", "content-length"] {
        assert!(!answer.headers.contains_key(name), "{about}: {:?}", answer.headers);
    }
    assert_eq!(answer.headers["etag"], "W/\"of-the-text\"", "{about}");
    assert_eq!(answer.headers["vary"], "Accept-Encoding", "{about}");
}

fn cases(mut one: impl FnMut(&str, &str, &str, StatusCode)) {
    for coding in CODINGS {
        for (method, more, status) in WAYS {
            for (unasked, asked) in NEGOTIATED {
                let accepted = if asked { coding } else { "identity" };
                one(method, &format!("/v1/coded?coding={coding}{more}{unasked}"), accepted, status);
            }
        }
    }
}

#[test]
fn after_a_bodiless_compressed_answer_the_next_is_whole() {
    sandboxed(|| {
        let world = World::with(&config());
        let mut tls = world.h1(OPENAI).expect("a connection");
        cases(|method, path, accepted, status| {
            let about = format!("{method} {path}, {accepted}");
            let fields = [TICKET, &format!("Accept-Encoding: {accepted}")];
            let request = get_path(path, &fields).replacen("GET", method, 1);
            let answer = head_h1(&mut tls, &request);
            assert_head(&answer, status, &about);
            let next = tls.ask(get_path("/v1/coded?coding=gzip", &[TICKET])).expect("an answer");
            assert_eq!((next.status, next.text()), (StatusCode::OK, TEXT.to_owned()), "{about}");
        });
        drop(tls);
        every_answer_is_complete(&world);
    });
}

#[test]
fn a_bodiless_compressed_answer_ends_its_stream_in_http_2() {
    sandboxed(|| {
        let world = World::with(&config());
        let mut h2 = world.h2(OPENAI).expect("a connection");
        cases(|method, path, accepted, status| {
            let request = Request::builder()
                .method(method.parse::<Method>().expect("a method"))
                .uri(format!("https://{}{path}", OPENAI.name))
                .header("authorization", "Bearer OPENAI_API_KEY")
                .header("accept-encoding", accepted);
            let answer = h2.ask(request.body(()).expect("a request"), "").expect("an answer");
            assert_head(&answer, status, &format!("{method} {path}, {accepted}"));
        });
        drop(h2);
        every_answer_is_complete(&world);
    });
}

#[test]
fn head_and_get_of_a_compressed_answer_agree() {
    sandboxed(|| {
        let world = World::with(&config());
        let ask = |method: &str| {
            let fields = [TICKET, "Accept-Encoding: br", "Connection: close"];
            let request = get_path("/v1/coded?coding=br", &fields).replacen("GET", method, 1);
            let mut tls = world.h1(OPENAI).expect("a connection");
            let answer = head_h1(&mut tls, &request);
            let mut headers = answer.headers;
            // Statements about the bytes to come, of which there are none.
            headers.remove("date");
            headers.remove("transfer-encoding");
            headers
        };
        assert_eq!(ask("HEAD"), ask("GET"));
    });
}

/// Checks that each answer has one record, which says that all of it was passed on.
#[track_caller]
fn every_answer_is_complete(world: &World) {
    world.gateway.audit.wait_for(|record| record.is("connection"));
    let requests = world.requests();
    assert!(requests.len() >= CODINGS.len() * WAYS.len() * NEGOTIATED.len());
    for record in requests {
        assert_eq!(record["reason"], serde_json::Value::Null, "{record}");
        assert_eq!(record["complete"], true, "{record}");
    }
    world.assert_secrets_untold();
}
