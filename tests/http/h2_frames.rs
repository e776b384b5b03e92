//! HTTP/2 as no library sends it. A header block is a list of fields and nothing else: no byte of a
//! name or a value becomes a line, a length or a second request upstream; and no number of frames
//! makes the gateway unavailable to other agents.

use std::time::Duration;

use lab::{
    gateway::OPENAI_SECRET,
    net::{AGENT, AGENT2, OPENAI},
    sandboxed, wait,
};

use crate::attack::{
    Ask, Scene,
    raw_h2::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, Outcome, PUSH_PROMISE,
        RST_STREAM, RawH2, SETTINGS, block, fields, frame,
    },
};

const KEY: (&str, &str) = ("authorization", "Bearer OPENAI_API_KEY");
const PROTOCOL_ERROR: u32 = 1;
const MALFORMED: Option<&str> = Some("http_malformed");
const TOO_LARGE: Option<&str> = Some("header_limit");

fn open(scene: &Scene) -> RawH2 {
    let hello = scene.hello2(OPENAI.name);
    RawH2::open(AGENT, OPENAI.port(443), &hello).expect("a connection")
}

fn request(path: &'static str) -> Vec<(&'static str, &'static str)> {
    fields("POST", OPENAI.name, path, &[KEY])
}

/// Checks that the other agent is served meanwhile.
#[track_caller]
fn others_are_served(scene: &Scene) {
    let mut h2 = scene.h2(AGENT2, OPENAI.port(443), OPENAI.name);
    let ask = Ask::to(OPENAI).field("authorization", "Bearer OPS_OPENAI_KEY").path("/status/200");
    let answer = h2.ask(ask.h2(), "").expect("the other agent is served");
    assert_eq!(answer.status, 200);
}

#[test]
fn a_byte_no_field_may_hold_is_malformed_in_h2() {
    sandboxed(|| {
        let scene = Scene::usual();
        for (name, value) in [
            ("x-a", "b\r\nauthorization: Bearer sk-attacker"),
            ("x-a", "b\nx: y"),
            ("x-a", "b\rx: y"),
            ("x-a", "b\0c"),
            ("x-a", "b\x7f"),
            ("x-a\r\nx-b", "c"),
            ("x-a: b\r\nx-c", "d"),
            ("x-a:", "b"),
            ("x a", "b"),
            ("x-a\0", "b"),
            ("", "b"),
            ("X-Upper", "b"),
            ("Authorization", "Bearer sk-attacker"),
            ("x-\u{e9}", "b"),
            ("content-length", "5"),
            ("content-length", "x"),
        ] {
            let what = format!("{}: {}", name.escape_debug(), value.escape_debug());
            let before = scene.before();
            let mut h2 = open(&scene);
            let me = h2.me;
            h2.request(1, &fields("GET", OPENAI.name, "/v1/x", &[KEY, (name, value)]))
                .expect("sent");
            let outcome = h2.outcome(1);
            drop(h2);
            let ended =
                [Outcome::Reset(PROTOCOL_ERROR), Outcome::ConnectionEnded(Some(PROTOCOL_ERROR))];
            assert!(ended.contains(&outcome), "{what}: {outcome:?}");
            scene.recorded(&what, me, &[MALFORMED]);
            scene.nothing_arrived(&what, before);
        }
        scene.ends_well();
    });
}

/// Names and values of fields.
type Fields = Vec<(&'static str, &'static str)>;

/// Returns heads in which a pseudo-field is missing, repeated, empty or behind the others, or does
/// not exist: each with a description and its reason.
fn pseudo_fields_gone_wrong() -> Vec<(String, Fields, &'static str)> {
    let good = request("/v1/x");
    let mut heads = Vec::new();
    for at in 0..4 {
        let (name, _) = good[at];
        let with = |change: &dyn Fn(&mut Fields)| {
            let mut fields = good.clone();
            change(&mut fields);
            fields
        };
        // The library leaves this check to the gateway.
        let missing = if name == ":authority" { "host_mismatch" } else { "http_malformed" };
        let empty = if name == ":scheme" { "host_mismatch" } else { "http_malformed" };
        heads.push((format!("no {name}"), with(&|it| _ = it.remove(at)), missing));
        heads.push((format!("{name} twice"), with(&|it| it.insert(at, it[at])), "http_malformed"));
        heads.push((format!("an empty {name}"), with(&|it| it[at].1 = ""), empty));
        let late = with(&|it| {
            let field = it.remove(at);
            it.push(field);
        });
        heads.push((format!("{name} behind a field"), late, "http_malformed"));
    }
    for (name, value, reason) in [
        (":status", "200", "http_malformed"),
        (":protocol", "websocket", "http_malformed"),
        (":unknown", "x", "http_malformed"),
        (":", "x", "http_malformed"),
        ("connection", "close", "http_malformed"),
        ("keep-alive", "5", "http_malformed"),
        ("proxy-connection", "close", "http_malformed"),
        ("transfer-encoding", "chunked", "http_malformed"),
        ("upgrade", "h2c", "http_malformed"),
        ("te", "gzip", "http_malformed"),
        ("content-length", "18446744073709551615", "http_malformed"),
        ("content-length", "18446744073709551616", "http_malformed"),
        ("content-length", "-1", "http_malformed"),
        ("content-length", "1, 1", "http_malformed"),
        ("content-length", "00", "http_malformed"),
    ] {
        let mut fields = good.clone();
        fields.insert(if name.starts_with(':') { 4 } else { 5 }, (name, value));
        heads.push((format!("{name}: {value}"), fields, reason));
    }
    for (what, method, path, reason) in [
        ("a method with a space", "GE T", "/v1/x", "http_malformed"),
        ("a path without a slash", "GET", "v1/x", "http_malformed"),
        ("a path with a space", "GET", "/v1 /x", "http_malformed"),
        ("a path of all", "GET", "*", "http_malformed"),
    ] {
        heads.push((what.to_owned(), fields(method, OPENAI.name, path, &[KEY]), reason));
    }
    let connect = |length| {
        let tunnel = [(":method", "CONNECT"), (":authority", OPENAI.name), KEY];
        tunnel.into_iter().chain(length).collect::<Vec<_>>()
    };
    heads.push(("CONNECT".to_owned(), connect(None), "connect_denied"));
    let length = Some(("content-length", "5"));
    heads.push(("CONNECT with a length".to_owned(), connect(length), "http_malformed"));
    heads
}

#[test]
fn a_malformed_head_has_one_record_and_one_reason() {
    sandboxed(|| {
        let scene = Scene::usual();
        let mut wrong = Vec::new();
        for (what, fields, reason) in pseudo_fields_gone_wrong() {
            let before = scene.before();
            let mut h2 = open(&scene);
            let me = h2.me;
            let flags = END_HEADERS | if what.ends_with("a length") { 0 } else { END_STREAM };
            h2.send(frame(HEADERS, flags, 1, &block(&fields))).expect("sent");
            let outcome = h2.outcome(1);
            drop(h2);
            // The agent learns of it: by an answer, or by an error of the stream or of the
            // connection.
            let told = match &outcome {
                Outcome::Answered(_) => outcome.reason().as_deref() == Some(reason),
                Outcome::Reset(code) => *code == PROTOCOL_ERROR,
                Outcome::ConnectionEnded(code) => *code == Some(PROTOCOL_ERROR),
            };
            let (_, requests) = scene.records(&what, me, 1);
            scene.nothing_arrived(&what, before);
            if !told || requests[0]["reason"] != reason || requests[0]["decision"] != "refuse" {
                wrong.push(format!("{what}: {outcome:?}: {}", requests[0]));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        scene.ends_well();
    });
}

#[test]
fn a_head_the_library_refuses_harms_no_other_request() {
    sandboxed(|| {
        let scene = Scene::usual();
        let mut h2 = open(&scene);
        let me = h2.me;
        let hop = fields("GET", OPENAI.name, "/v1/x", &[KEY, ("connection", "close")]);
        let good = fields("GET", OPENAI.name, "/status/200", &[KEY]);
        // All in one segment, so that the library gets them at once.
        let heads: Vec<u8> = [&good, &hop, &good, &hop, &hop, &good]
            .iter()
            .enumerate()
            .flat_map(|(at, fields)| {
                let stream = u32::try_from(at).expect("few") * 2 + 1;
                frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(fields))
            })
            .collect();
        h2.send(heads).expect("sent");
        let outcome = h2.outcome(11);
        assert!(matches!(outcome, Outcome::Answered(_)), "{outcome:?}");
        drop(h2);
        let (connection, requests) = scene.records("in between", me, 6);
        assert!(connection["reason"].is_null(), "{connection}");
        let refused = requests.iter().filter(|it| it["reason"] == "http_malformed").count();
        let passed = requests.iter().filter(|it| it["decision"] == "intercept").count();
        assert_eq!((refused, passed), (3, 3), "{requests:#?}");
        assert_eq!(scene.origin.log().wait_requests(3).len(), 3);
        scene.ends_well();
    });
}

#[test]
fn a_body_of_another_length_never_completes_upstream() {
    sandboxed(|| {
        let scene = Scene::usual();
        for (length, body) in [("5", "four"), ("3", "four"), ("0", "four")] {
            let before = scene.before();
            let mut h2 = open(&scene);
            let head = fields("POST", OPENAI.name, "/v1/x", &[KEY, ("content-length", length)]);
            h2.send(frame(HEADERS, END_HEADERS, 1, &block(&head))).expect("sent");
            h2.send(frame(DATA, END_STREAM, 1, body.as_bytes())).expect("sent");
            let outcome = h2.outcome(1);
            assert!(
                !matches!(&outcome, Outcome::Answered(body) if !body.contains("reason")),
                "{length}: {outcome:?}"
            );
            drop(h2);
            std::thread::sleep(wait::QUIET);
            for connection in scene.connections_since(before) {
                assert!(connection.requests.is_empty(), "{length}: {connection:#?}");
            }
        }
        scene.ends_well();
    });
}

#[test]
fn h2_trailers_carry_no_credential_and_no_second_head() {
    sandboxed(|| {
        let scene = Scene::usual();
        for (trailer, reason) in [
            (("authorization", "Bearer OPENAI_API_KEY"), Some("trailer_denied")),
            (("x-api-key", "sk-attacker"), Some("trailer_denied")),
            (("x_auth_token", "sk-attacker"), Some("trailer_denied")),
            ((":authority", "attacker.example"), None),
            ((":path", "/admin"), None),
            (("connection", "close"), None),
        ] {
            let what = format!("{trailer:?}");
            let before = scene.before();
            let mut h2 = open(&scene);
            let me = h2.me;
            h2.send(frame(HEADERS, END_HEADERS, 1, &block(&request("/v1/x")))).expect("sent");
            h2.send(frame(DATA, 0, 1, b"body")).expect("sent");
            h2.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[trailer]))).expect("sent");
            let outcome = h2.outcome(1);
            drop(h2);
            match reason {
                Some(reason) => {
                    assert_eq!(outcome.reason().as_deref(), Some(reason), "{what}: {outcome:?}");
                    scene.recorded(&what, me, &[Some(reason)]);
                }
                // The library drops some of these, and the rest of the request is in order.
                None => assert_ne!(outcome, Outcome::ConnectionEnded(None), "{what}"),
            }
            std::thread::sleep(Duration::from_millis(50));
            for seen in scene.connections_since(before).iter().flat_map(|it| &it.requests) {
                assert_eq!(reason, None, "{what}: {seen:#?}");
                assert_eq!((seen.authority(), seen.uri.path()), (OPENAI.name.to_owned(), "/v1/x"));
                assert!(seen.trailers.is_empty(), "{what}: {seen:#?}");
            }
        }
        assert!(!scene.origin.log().holds("sk-attacker"));
        scene.ends_well();
    });
}

#[test]
fn frames_that_are_out_of_order_end_the_connection() {
    sandboxed(|| {
        let scene = Scene::usual();
        let head = block(&request("/v1/x"));
        for (what, frames, heads) in [
            (
                "DATA in a header block",
                [frame(HEADERS, 0, 1, &head), frame(DATA, END_STREAM, 1, b"x")].concat(),
                1,
            ),
            (
                "another stream in a header block",
                [frame(HEADERS, 0, 1, &head), frame(CONTINUATION, END_HEADERS, 3, b"")].concat(),
                1,
            ),
            ("CONTINUATION without HEADERS", frame(CONTINUATION, END_HEADERS, 1, &head), 0),
            ("HEADERS on stream 0", frame(HEADERS, END_HEADERS | END_STREAM, 0, &head), 0),
            ("an even stream", frame(HEADERS, END_HEADERS | END_STREAM, 2, &head), 1),
            (
                "PUSH_PROMISE from a client",
                frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2], &head[..]].concat()),
                0,
            ),
            ("DATA on an idle stream", frame(DATA, END_STREAM, 1, b"x"), 0),
            ("RST_STREAM on an idle stream", frame(RST_STREAM, 0, 1, &[0, 0, 0, 8]), 0),
            ("a frame beyond the bound", frame(DATA, 0, 1, &[b'x'; 20_000]), 0),
            (
                "a block that is no HPACK",
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff; 40]),
                1,
            ),
            ("an index that is not there", frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xfe]), 1),
            (
                "a table beyond the bound",
                frame(
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    1,
                    &[&[0x3f, 0xe1, 0xff, 0x7f], &head[..]].concat(),
                ),
                1,
            ),
            (
                "a padding beyond the frame",
                frame(HEADERS, END_HEADERS | END_STREAM | 8, 1, &[&[255], &head[..20]].concat()),
                1,
            ),
        ] {
            let before = scene.before();
            let mut h2 = open(&scene);
            let me = h2.me;
            h2.send(frames).expect("sent");
            let outcome = h2.outcome(1);
            drop(h2);
            assert!(matches!(outcome, Outcome::ConnectionEnded(_)), "{what}: {outcome:?}");
            let connection = scene.recorded(what, me, &vec![MALFORMED; heads]);
            assert_eq!(connection["reason"].as_str(), MALFORMED, "{what}: {connection}");
            scene.nothing_arrived(what, before);
        }
        scene.ends_well();
    });
}

#[test]
fn a_header_block_beyond_the_bounds_reaches_nobody() {
    sandboxed(|| {
        let scene = Scene::usual();
        // One field of 4,000 bytes goes into the dynamic table and is then named 4,000 times.
        let mut bomb = block(&request("/v1/x"));
        bomb.extend([0x40, 3, b'x', b'-', b'a', 0x7f, 0xa1, 0x1e]);
        bomb.extend([b'a'; 4000]);
        bomb.extend([0xbe; 4000]);
        let long = "a".repeat(15_000);
        let large = block(&[("x-a", long.as_str())]);
        let before = scene.before();
        for (what, frames, reasons) in [
            ("a bomb", frame(HEADERS, END_HEADERS | END_STREAM, 1, &bomb), [TOO_LARGE]),
            (
                "a list of 75 KB",
                [
                    frame(HEADERS, END_STREAM, 1, &block(&request("/v1/x"))),
                    frame(CONTINUATION, 0, 1, &large).repeat(4),
                    frame(CONTINUATION, END_HEADERS, 1, &large),
                ]
                .concat(),
                [TOO_LARGE],
            ),
            (
                "a flood of CONTINUATION",
                [
                    frame(HEADERS, END_STREAM, 1, &block(&request("/v1/x"))),
                    frame(CONTINUATION, 0, 1, &large).repeat(400),
                ]
                .concat(),
                [TOO_LARGE],
            ),
            (
                "a flood of empty CONTINUATION",
                [
                    frame(HEADERS, END_STREAM, 1, &block(&request("/v1/x"))),
                    frame(CONTINUATION, 0, 1, b"").repeat(20_000),
                ]
                .concat(),
                [TOO_LARGE],
            ),
        ] {
            let mut h2 = open(&scene);
            let me = h2.me;
            // The gateway may end the connection while these are still being sent.
            let _ = h2.send(frames);
            let outcome = h2.outcome(1);
            assert!(
                !matches!(&outcome, Outcome::Answered(body) if !body.is_empty() && !body.contains("reason")),
                "{what}: {outcome:?}"
            );
            drop(h2);
            scene.recorded(what, me, &reasons);
            scene.nothing_arrived(what, before);
        }
        others_are_served(&scene);
        scene.ends_well();
    });
}

#[test]
fn a_flood_of_streams_and_resets_takes_nothing_from_others() {
    sandboxed(|| {
        let scene = Scene::usual();
        let mut h2 = open(&scene);
        let me = h2.me;
        let head = block(&request("/slow?ms=50"));
        let mut sent = 0;
        for chunk in 0..40_u32 {
            let mut frames = Vec::new();
            for stream in 0..100 {
                let id = (chunk * 100 + stream) * 2 + 1;
                frames.extend(frame(HEADERS, END_HEADERS | END_STREAM, id, &head));
                frames.extend(frame(RST_STREAM, 0, id, &[0, 0, 0, 8]));
            }
            if h2.send(frames).is_err() {
                break;
            }
            sent += 100;
        }
        others_are_served(&scene);
        drop(h2);
        let connection =
            scene.gateway.audit.wait_for(|record| record["agent"] == me.to_string().as_str());
        let recorded = scene.gateway.audit.records();
        let recorded =
            recorded.iter().filter(|it| it.is("request") && it["flow"] == connection["flow"]);
        let (recorded, arrived) = (recorded.count(), scene.origin.log().requests().len());
        assert!(arrived <= recorded + 1, "{arrived} arrived of {sent}, {recorded} recorded");
        others_are_served(&scene);
        std::thread::sleep(wait::QUIET);
        scene.ends_well();
    });
}

#[test]
fn more_streams_than_allowed_are_refused_and_the_others_answered() {
    sandboxed(|| {
        let scene = Scene::usual();
        let mut h2 = open(&scene);
        let head = block(&request("/slow?ms=400"));
        let frames: Vec<u8> = (0..150)
            .flat_map(|at| frame(HEADERS, END_HEADERS | END_STREAM, at * 2 + 1, &head))
            .collect();
        h2.send(frames).expect("sent");
        // REFUSED_STREAM: safe to retry (RFC 9113, section 8.7).
        assert_eq!(h2.outcome(299), Outcome::Reset(7));
        drop(h2);
        std::thread::sleep(wait::QUIET);
        assert!(scene.origin.log().requests().len() <= 100);
        others_are_served(&scene);
        scene.ends_well();
    });
}

#[test]
fn floods_of_settings_and_unknown_frames_hurt_nobody_else() {
    sandboxed(|| {
        let scene = Scene::usual();
        let mut h2 = open(&scene);
        for flood in [
            frame(SETTINGS, 0, 0, b"").repeat(20_000),
            frame(0x42, 0, 0, b"x").repeat(20_000),
            frame(6, 0, 0, &[0; 8]).repeat(20_000),
        ] {
            let _ = h2.send(flood);
        }
        others_are_served(&scene);
        drop(h2);
        scene.ends_well();
    });
}

#[test]
fn a_request_after_goaway_is_a_request_like_any_other() {
    sandboxed(|| {
        let scene = Scene::usual();
        let before = scene.before();
        let mut h2 = open(&scene);
        let none = fields("GET", OPENAI.name, "/v1/after-goaway", &[]);
        h2.send(frame(GOAWAY, 0, 0, &[0; 8])).expect("sent");
        let _ = h2.request(1, &none);
        let outcome = h2.outcome(1);
        let word = outcome.reason();
        assert!(word.is_none() || word.as_deref() == Some("placeholder_missing"), "{outcome:?}");
        drop(h2);
        scene.nothing_arrived("after GOAWAY", before);
        scene.ends_well();
    });
}

#[test]
fn a_secret_is_never_indexed_on_the_way_upstream() {
    sandboxed(|| {
        let scene = Scene::usual();
        let mut h2 = open(&scene);
        // A never-indexed literal from the agent, and one to be indexed.
        for (stream, first) in [(1, 0x10), (3, 0x40)] {
            let mut head = block(&fields("POST", OPENAI.name, "/v1/x", &[]));
            let mut key = block(&[KEY]);
            key[0] = first;
            head.extend(key);
            h2.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, &head)).expect("sent");
            assert!(matches!(h2.outcome(stream), Outcome::Answered(_)));
        }
        drop(h2);
        let requests = scene.origin.log().wait_requests(2);
        for request in &requests {
            assert_eq!(request.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
        }
        // A literal that is never indexed, of name 23 in the static table (RFC 7541, section
        // 6.2.3).
        let bytes = &scene.origin.log().connections()[0].bytes;
        assert_eq!(bytes.windows(2).filter(|pair| *pair == [0x1f, 0x08]).count(), 2);
        scene.ends_well();
    });
}
