//! Two placeholders in one request, in each pair of kinds of place that one request can have: both
//! are replaced, each in its own place.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lab::{
    gateway::{OPENAI_SECRET, OPS_SECRET, usual_config},
    net::{AGENT, OPENAI},
    origin::Received,
    sandboxed,
};
use policy_builder::{Config, binding};

use super::{FORM, JSON};
use crate::attack::{Ask, Scene};

/// The fields of a handshake (RFC 6455, section 1.3).
const HANDSHAKE: [(&str, &str); 4] = [
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// Every kind of place; the two halves of Basic count as one.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Header,
    Basic,
    Query,
    Path,
    Cookie,
    Json,
    Form,
    Subprotocol,
}

use Kind::{Basic, Cookie, Form, Header, Json, Path, Query, Subprotocol};

const KINDS: [Kind; 8] = [Header, Basic, Query, Path, Cookie, Json, Form, Subprotocol];

/// Returns whether no request can have both: two paths, or another path, format or method beside
/// one. One offer of subprotocols with two keys is refused, too.
fn exclude_each_other(pair: [Kind; 2]) -> bool {
    let has = |kind| pair.contains(&kind);
    let body = has(Json) || has(Form);
    let twice = pair == [Path, Path] || pair == [Subprotocol, Subprotocol];
    twice || has(Json) && has(Form) || body && (has(Path) || has(Subprotocol))
}

/// Returns a first API that has a place of each kind for each of two placeholders.
fn config() -> Config {
    let places = |name: &str, half: &str| {
        [
            format!("header x-{name} raw"),
            format!("basic {half}"),
            format!("query {name}"),
            format!("path /{name}{{}}/"),
            format!("cookie {name}"),
            format!("json /{name} in POST /v1/login"),
            format!("form {name} in POST /v1/token"),
            format!("websocket subprotocol {name}."),
        ]
    };
    let second = binding("research", "SECOND_API_KEY", &[], "file:ops")
        .set("places", places("second", "password"));
    usual_config().binding("OPENAI_API_KEY", |it| it.set("places", places("first", "user"))).api(
        "openai",
        |it| {
            it.with(second)
                .more("paths", &["/firstOPENAI_API_KEY/*", "/secondSECOND_API_KEY/*"])
                .set("websocket", true)
        },
    )
}

/// Returns a request with these two texts, each in a place of its kind.
fn ask([first, second]: [(Kind, &str); 2]) -> Ask {
    let both = [("first", first.0, first.1), ("second", second.0, second.1)];
    let of = |kind: Kind| {
        both.into_iter().filter(move |it| it.1 == kind).map(|(name, _, text)| (name, text))
    };
    let joined = |kind, between: &str| {
        let each: Vec<_> = of(kind).map(|(name, text)| format!("{name}={text}")).collect();
        each.join(between)
    };
    let has = |kind| of(kind).next().is_some();
    let mut ask = Ask::to(OPENAI);
    for (name, text) in of(Header) {
        ask = ask.field(&format!("x-{name}"), text);
    }
    if has(Basic) {
        let half = |wanted| of(Basic).find(|(name, _)| *name == wanted).map_or("", |it| it.1);
        let halves = format!("{}:{}", half("first"), half("second"));
        ask = ask.field("authorization", format!("Basic {}", STANDARD.encode(halves)));
    }
    if has(Cookie) {
        ask = ask.field("cookie", joined(Cookie, "; "));
    }
    if has(Json) {
        let each: Vec<_> = of(Json).map(|(name, text)| format!("\"{name}\": \"{text}\"")).collect();
        let body = format!("{{{}}}", each.join(", "));
        ask = ask.path("/v1/login").field("content-type", JSON).body(body.leak());
    }
    if has(Form) {
        ask = ask.path("/v1/token").field("content-type", FORM).body(joined(Form, "&").leak());
    }
    if let Some((name, text)) = of(Path).next() {
        ask = ask.path(&format!("/{name}{text}/v1"));
    }
    if has(Subprotocol) {
        let offers: Vec<_> = of(Subprotocol).map(|(name, text)| format!("{name}.{text}")).collect();
        ask = ask.method("GET").field("sec-websocket-protocol", offers.join(", "));
        for (name, value) in HANDSHAKE {
            ask = ask.field(name, value);
        }
    }
    let path = ask.path.clone();
    if has(Query) { ask.path(&format!("{path}?{}", joined(Query, "&"))) } else { ask }
}

/// Checks that the received request is the expected one, in target, places and body.
#[track_caller]
fn is(received: &Received, expected: &Ask) {
    let target = received.uri.path_and_query().map(|it| it.as_str());
    assert_eq!(target, Some(expected.path.as_str()));
    assert_eq!(received.body, expected.body);
    for name in ["x-first", "x-second", "authorization", "cookie", "sec-websocket-protocol"] {
        let sent = expected.fields.iter().filter(|it| it.0 == name).map(|it| it.1.as_str());
        // HTTP/2 may split cookies (RFC 9113, section 8.2.3).
        assert_eq!(received.header(name).join("; "), sent.collect::<Vec<_>>().join("; "), "{name}");
    }
}

#[test]
fn placeholders_in_each_pair_of_places_are_swapped() {
    sandboxed(|| {
        let scene = Scene::with(&config());
        let pairs = KINDS.into_iter().flat_map(|first| KINDS.map(|second| [first, second]));
        let pairs: Vec<_> = pairs.filter(|pair| !exclude_each_other(*pair)).collect();
        assert_eq!(pairs.len(), 64 - 12);
        for [first, second] in pairs {
            let what = format!("{first:?} and {second:?}");
            let with = |texts: [&'static str; 2]| ask([(first, texts[0]), (second, texts[1])]);
            let asked = with(["OPENAI_API_KEY", "SECOND_API_KEY"]);
            let expected = with([OPENAI_SECRET, OPS_SECRET]);
            if [first, second].contains(&Subprotocol) {
                let before = scene.before();
                let mut tls = scene.h1(AGENT, OPENAI.port(443), OPENAI.name);
                tls.ask(asked.h1()).unwrap_or_else(|error| panic!("{what}: {error}"));
                let requests = scene.origin.log().wait_requests(before.requests + 1);
                is(&requests[before.requests], &expected);
                continue;
            }
            for received in scene.forwards(&what, (AGENT, OPENAI), &asked) {
                is(&received, &expected);
            }
        }
        scene.ends_well();
    });
}
