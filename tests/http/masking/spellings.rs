//! A key that an API returns in another character set, or escaped in any way that encoders are
//! known for, or in a mixture of these: none of it reaches the agent.

use std::time::Duration;

use lab::{
    client::Hello,
    gateway::usual_config,
    net::{AGENT, OPENAI},
    origin::{Script, Step},
    sandboxed,
};

use super::{
    guesses::{Chance, SPELLINGS, escaped, seed},
    seen::Question,
};
use crate::world::{World, get};

/// A key with letters that some encoders escape, and about which Java, .NET and RFC 3986 disagree.
const KEY: &str = "Az~0.9_-Q8x/R+s=T&u<V>w'Y\"k";

#[test]
fn a_key_in_another_encoding_never_reaches_the_agent() {
    sandboxed(|| {
        let seed = seed();
        let mut chance = Chance::of(seed);
        let config = usual_config().secrets("file", "{dir}/keys.toml");
        let world = World::prepared(&config, |lab, _| {
            let names = ["openai", "anthropic", "git", "ops"];
            let lines = names.map(|name| format!("{name} = {KEY}\n"));
            lab.write("keys.toml", lines.concat());
        });
        let about = format!("CLOAKROOM_SEED={seed}");
        assert_bodies_masked(&world, &bodies(&mut chance), &about);
        assert_fields_masked(&world, &fields(&mut chance), &about);
        let record = world.gateway.audit.wait_for(|record| record["masked"].as_u64() > Some(0));
        assert!(record.is("request"));
        for text in [world.gateway.audit.text(), world.gateway.stderr()] {
            assert!(!text.contains(KEY), "{text}");
        }
    });
}

#[test]
fn an_agent_does_not_choose_an_answers_character_set() {
    sandboxed(|| {
        let world = World::usual();
        let fields =
            [crate::world::TICKET, "Accept-Charset: utf-16", "accept-charset: utf-7;q=0.5"];
        assert_eq!(world.ask(&get(&fields)).status, 200);
        let mut h2 = world.h2(OPENAI).expect("a connection");
        let request = http::Request::get(format!("https://{}/v1/models", OPENAI.name))
            .header("authorization", "Bearer OPENAI_API_KEY")
            .header("accept-charset", "utf-16");
        let answer = h2.ask(request.body(()).expect("a request"), "").expect("an answer");
        assert_eq!(answer.status, 200);
        let requests = world.origin.log().wait_requests(2);
        assert!(requests.iter().all(|request| request.header("accept-charset").is_empty()));
    });
}

/// Checks that these bodies are masked, one after the other in one answer: as one piece, and in
/// many.
#[track_caller]
fn assert_bodies_masked(world: &World, bodies: &[Body], about: &str) {
    let all: Vec<u8> = bodies.iter().flat_map(|body| [&body.sent[..], b"\n"].concat()).collect();
    for piece in [all.len(), 1_000, 7] {
        let steps = all.chunks(piece).map(step).collect();
        let script = Script { kind: "text/plain", steps, ..Script::default() };
        let path = world.origin.script(script);
        let question = |alpn| Question {
            from: AGENT,
            to: OPENAI.port(443),
            hello: Hello { alpn: vec![alpn], ..world.hello(OPENAI.name) },
            path: &path,
            placeholder: "OPENAI_API_KEY",
        };
        for seen in [question(&b"http/1.1"[..]).h1(), question(b"h2").h2()] {
            let mut rest = &seen.expect("an answer").body[..];
            for body in bodies {
                let (found, after) = rest.split_at(body.sent.len());
                let [found, expected] = [found, &body.expected].map(<[u8]>::escape_ascii);
                assert_eq!(found.to_string(), expected.to_string(), "{} {about}", body.name);
                rest = &after[1..];
            }
        }
    }
}

/// Checks the same in fields of a head and of trailers.
#[track_caller]
fn assert_fields_masked(world: &World, values: &[(String, Vec<u8>)], about: &str) {
    for some in values.chunks(8) {
        let numbered = |begin: &str| {
            let field = |(number, (_, value)): (usize, &(String, Vec<u8>))| {
                (format!("x-{begin}-{number}"), value.clone())
            };
            some.iter().enumerate().map(field).collect::<Vec<_>>()
        };
        let path = world.origin.script(Script {
            status: None,
            kind: "text/plain",
            fields: numbered("head"),
            with_length: false,
            steps: vec![step(b"x")],
            trailers: numbered("trailer"),
        });
        let request = http::Request::get(format!("https://{}{path}", OPENAI.name))
            .header("authorization", "Bearer OPENAI_API_KEY")
            .header("te", "trailers");
        let mut h2 = world.h2(OPENAI).expect("a connection");
        let answer = h2.ask(request.body(()).expect("a request"), "").expect("an answer");
        for (number, (name, value)) in some.iter().enumerate() {
            let stars = "*".repeat(value.len());
            for found in [
                &answer.headers[&format!("x-head-{number}")],
                &answer.trailers[&format!("x-trailer-{number}")],
            ] {
                assert_eq!(found, &stars, "{name} {about}");
            }
        }
    }
}

/// A body with the key in it in some encoding, and the expected body.
struct Body {
    name: String,
    sent: Vec<u8>,
    expected: Vec<u8>,
}

fn bodies(chance: &mut Chance) -> Vec<Body> {
    let mut all = Vec::new();
    for (name, mark, encode) in CHARACTER_SETS {
        for mark in [mark, b""] {
            let encoded = |text: &str| text.bytes().flat_map(encode).collect::<Vec<_>>();
            let text = format!("key: {KEY}, and so on");
            let masked = text.replace(KEY, &"*".repeat(KEY.len()));
            let [sent, expected] = [text, masked].map(|text| [mark, &encoded(&text)].concat());
            all.push(Body { name: format!("{name}, mark {mark:?}"), sent, expected });
        }
    }
    let lines = KEY.bytes().flat_map(|byte| [&escaped(byte, 6)[..], b"=\r\n"].concat()).collect();
    let soft = ("lines that are parted".to_owned(), lines);
    for (name, spelled) in fields(chance).into_iter().chain([soft]) {
        // An empty line end after the last byte is no part of the key.
        let end = spelled.strip_suffix(b"=\r\n").unwrap_or(&spelled).len();
        let (key, rest) = spelled.split_at(end);
        let around = |key: &[u8]| [b"key: ", key, rest, b", and so on"].concat();
        let expected = around(&b"*".repeat(key.len()));
        all.push(Body { name, sent: around(key), expected });
    }
    all
}

/// Returns the key in one line, in encoders' forms and in forms of no encoder.
fn fields(chance: &mut Chance) -> Vec<(String, Vec<u8>)> {
    let each = |spelling: usize| KEY.bytes().flat_map(|byte| escaped(byte, spelling)).collect();
    let mut all: Vec<(String, Vec<u8>)> =
        (0..SPELLINGS).map(|spelling| (format!("spelling {spelling}"), each(spelling))).collect();
    let some = |name: &str, from: &str, to: &str| (name.to_owned(), KEY.replace(from, to).into());
    all.push(some("a tilde as Java writes it", "~", "%7E"));
    all.push(some("a tilde as nobody writes it", "~", "%7e"));
    all.push(some("one letter in JSON", "A", "\\u0041"));
    all.push(some("a slash in JSON", "/", "\\/"));
    all.push(some("a quote in JSON", "\"", "\\\""));
    all.push(some("long entities", "Q", "&#x00051;"));
    let xml = KEY.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    all.push(("XML".into(), xml.replace('"', "&quot;").replace('\'', "&apos;").into()));
    for _ in 0..MIXTURES {
        let spelled = KEY.bytes().flat_map(|byte| escaped(byte, chance.below(SPELLINGS)));
        all.push(("a mixture".into(), spelled.collect()));
    }
    all
}

fn step(bytes: &[u8]) -> Step {
    Step { bytes: bytes.to_vec().into(), pause: Duration::ZERO }
}

type CharacterSet = (&'static str, &'static [u8], fn(u8) -> Vec<u8>);

const CHARACTER_SETS: [CharacterSet; 5] = [
    ("UTF-16LE", b"\xff\xfe", |byte| vec![byte, 0]),
    ("UTF-16BE", b"\xfe\xff", |byte| vec![0, byte]),
    ("UTF-32LE", b"\xff\xfe\0\0", |byte| vec![byte, 0, 0, 0]),
    ("UTF-32BE", b"\0\0\xfe\xff", |byte| vec![0, 0, 0, byte]),
    ("UTF-8", b"\xef\xbb\xbf", |byte| vec![byte]),
];
const MIXTURES: usize = 12;
