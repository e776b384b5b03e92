//! A credential that an API mints becomes a ticket: the agent never sees the credential, and the
//! one host that wants it gets it back, in its place, while the ticket is good.

use std::time::Duration;

use lab::{
    client::Response,
    gateway::usual_config,
    net::{AGENT, AGENT2, ANTHROPIC, Host, OPENAI},
    origin::{Received, Script, Step, forms},
    sandboxed,
};
use policy_builder::{Config, mint};
use serde_json::Value;

use crate::attack::{Ask, Scene};

/// The credential that the lab's API mints.
const MINTED: &str = "minted-7c1e5a90d2b84f63-and-more";

const ENDED: (u16, &str) = (401, "ticket_ended");
const UNREADABLE: (u16, &str) = (502, "response_unscannable");

/// Returns a policy in which OpenAI's host mints, and Anthropic's wants the credential.
fn config(life: &str) -> Config {
    let answers = [
        "json /token in /v1/scripted/*",
        "json /objects/*/header/Authorization scheme RemoteAuth in /v1/scripted/*",
        "header x-session bearer in /v1/scripted/*",
    ];
    let places = ["header x-session raw", "header authorization scheme RemoteAuth"];
    let session = mint("session", &answers, &[ANTHROPIC.name], &places, life);
    usual_config().api("openai", |it| it.with(session))
}

fn scene() -> Scene {
    Scene::with(&config("1h"))
}

fn script(body: impl Into<Vec<u8>>) -> Script {
    let steps = vec![Step { bytes: body.into().into(), pause: Duration::ZERO }];
    Script { kind: "application/json", with_length: true, steps, ..Script::default() }
}

fn with_field(mut script: Script, name: &str, value: &str) -> Script {
    script.fields.push((name.to_owned(), value.as_bytes().to_vec()));
    script
}

/// Checks that no form of the credential is in an answer.
#[track_caller]
fn is_untold(what: &str, answer: &Response) {
    let text = format!("{:?} {}", answer.headers, answer.text());
    assert!(forms(MINTED).iter().all(|form| !text.contains(form)), "{what}: {text}");
}

/// Returns the answers to a request for this script, in HTTP/1.1 and in HTTP/2.
#[track_caller]
fn asked(scene: &Scene, script: Script) -> [Response; 2] {
    let ask = Ask::to(OPENAI).good().path(&scene.origin.script(script));
    let one = scene.h1(AGENT, OPENAI.port(443), OPENAI.name).ask(ask.h1()).expect("an answer");
    let mut h2 = scene.h2(AGENT, OPENAI.port6(443), OPENAI.name);
    let answers = [one, h2.ask(ask.h2(), "").expect("an answer")];
    answers.iter().for_each(|answer| is_untold("an answer that mints", answer));
    answers
}

/// Returns how often a text stands in a request: in its target, its fields and its body.
pub(crate) fn times(request: &Received, text: &str) -> usize {
    let target = request.uri.to_string().into_bytes();
    let fields = request.headers.values().map(|value| value.as_bytes().to_vec());
    let all = [target, request.body.to_vec()].into_iter().chain(fields);
    all.map(|part| part.windows(text.len()).filter(|it| *it == text.as_bytes()).count()).sum()
}

/// Returns the answer in HTTP/1.1 alone.
#[track_caller]
fn asked_once(scene: &Scene, script: Script) -> Response {
    let ask = Ask::to(OPENAI).good().path(&scene.origin.script(script));
    let mut tls = scene.h1(AGENT, OPENAI.port(443), OPENAI.name);
    let answer = tls.ask(ask.h1()).expect("an answer");
    is_untold("an answer that mints", &answer);
    answer
}

/// Returns a ticket from the usual answer.
#[track_caller]
fn ticket(scene: &Scene) -> String {
    let [answer, _] = asked(scene, script(format!(r#"{{"token":"{MINTED}"}}"#)));
    token(&answer)
}

#[track_caller]
fn token(answer: &Response) -> String {
    let read: Value = serde_json::from_slice(&answer.body).expect("JSON");
    let token = read["token"].as_str().expect("a token").to_owned();
    assert!(token.starts_with("ticket_") && token.len() == 51, "{token}");
    token
}

fn there(ticket: &str) -> Ask {
    Ask::to(ANTHROPIC).field("x-session", ticket)
}

#[test]
fn a_minted_credential_becomes_a_ticket_and_is_swapped_back() {
    sandboxed(|| {
        let scene = scene();
        let text = format!(r#"{{"token":"{MINTED}","again":"{MINTED}","other":1}}"#);
        let answers = asked(&scene, with_field(script(text), "etag", "\"of-the-whole\""));
        for answer in &answers {
            let length = answer.headers["content-length"].to_str().unwrap();
            assert_eq!(length, answer.body.len().to_string());
            assert!(!answer.headers.contains_key("etag"));
            assert_eq!(answer.headers["cache-control"], "no-store");
            assert!(answer.text().contains(&format!(r#""again":"{}""#, "*".repeat(MINTED.len()))));
        }
        let [one, other] = [&answers[0], &answers[1]].map(token);
        assert_ne!(one, other, "two tickets for one credential do not tell that it is one");
        for ticket in [&one, &other] {
            for received in scene.forwards("redeemed", (AGENT, ANTHROPIC), &there(ticket)) {
                assert_eq!(received.header("x-session"), [MINTED]);
                assert_eq!(times(&received, MINTED), 1, "{received:?}");
            }
        }
        let auth = Ask::to(ANTHROPIC).field("authorization", format!("RemoteAuth {one}"));
        for received in scene.forwards("the other place", (AGENT, ANTHROPIC), &auth) {
            assert_eq!(received.header("authorization"), [format!("RemoteAuth {MINTED}")]);
        }
        let config = scene.lab.dir.join("cloakroom.toml");
        let status = lab::gateway::program().args(["status", "--json"]).arg(config).output();
        let status: Value = serde_json::from_slice(&status.expect("it runs").stdout).expect("JSON");
        assert_eq!(status["groups"][0]["tickets"], 2, "{status}");
        let audit = scene.gateway.audit.text();
        assert_eq!(audit.matches(r#""minted":["ticket:session"]"#).count(), 2, "{audit}");
        assert!(
            audit.contains("ticket:session") && !audit.contains(MINTED) && !audit.contains(&one)
        );
        assert!(!scene.gateway.stderr().contains(MINTED));
        scene.ends_well();
    });
}

#[test]
fn minted_credentials_are_masked_at_every_host_of_the_group() {
    sandboxed(|| {
        let scene = scene();
        let ticket = ticket(&scene);
        let mirror = there(&ticket).path("/v1/mirror");
        let answer = scene.h1(AGENT, ANTHROPIC.port(443), ANTHROPIC.name).ask(mirror.h1());
        let answer = answer.expect("an answer");
        assert!(answer.text().contains("x-session: ****"), "{}", answer.text());
        is_untold("an echo", &answer);
        for form in forms(MINTED) {
            let echo = Script { kind: "text/plain", ..script(form.clone()) };
            let path = scene.origin.script(echo);
            // A path that mints nothing.
            let ask = Ask::to(ANTHROPIC).field("x-api-key", "ANTHROPIC_API_KEY").path(&path);
            let mut tls = scene.h1(AGENT, ANTHROPIC.port(443), ANTHROPIC.name);
            is_untold(&form, &tls.ask(ask.h1()).expect("an answer"));
        }
    });
}

#[test]
fn a_ticket_is_for_its_places_host_and_group() {
    sandboxed(|| {
        let scene = scene();
        let ticket = ticket(&scene);
        let bearer =
            |host: Host, text: &str| Ask::to(host).field("authorization", format!("Bearer {text}"));
        let mut altered = ticket.clone();
        altered.replace_range(20..21, if &ticket[20..21] == "A" { "B" } else { "A" });
        let wrong_host = (403, "placeholder_wrong_host");
        let wrong_place = (403, "placeholder_wrong_place");
        let foreign = (403, "foreign_credential");
        for (what, from, host, ask, expected) in [
            ("another host", AGENT, OPENAI, bearer(OPENAI, &ticket), wrong_host),
            ("another group", AGENT2, OPENAI, bearer(OPENAI, &ticket), ENDED),
            ("another place", AGENT, ANTHROPIC, bearer(ANTHROPIC, &ticket), wrong_place),
            ("an altered one", AGENT, ANTHROPIC, there(&altered), ENDED),
            ("one in another case", AGENT, ANTHROPIC, there(&ticket.to_uppercase()), foreign),
            ("one in a text", AGENT, ANTHROPIC, there(&format!("{ticket}x")), foreign),
            ("what it stands for", AGENT, ANTHROPIC, there(MINTED), foreign),
        ] {
            scene.refuses(what, (from, host), &ask, expected);
        }
        let twice = there(&ticket).field("x-api-key", "mine");
        scene.refuses("beside another", (AGENT, ANTHROPIC), &twice, (400, "duplicate_credential"));
        scene.forwards("still good", (AGENT, ANTHROPIC), &there(&ticket));
        scene.ends_well();
    });
}

#[test]
fn a_ticket_ends_with_its_life_and_with_the_gateway() {
    sandboxed(|| {
        let mut scene = Scene::with(&config("8s"));
        let first = ticket(&scene);
        scene.forwards("in time", (AGENT, ANTHROPIC), &there(&first));
        std::thread::sleep(Duration::from_millis(8_100));
        scene.refuses("too late", (AGENT, ANTHROPIC), &there(&first), ENDED);
        let second = ticket(&scene);
        scene.gateway.terminate(Duration::from_secs(20));
        let config = scene.lab.dir.join("cloakroom.toml");
        scene.gateway = lab::gateway::Gateway::run(&scene.lab, &config).expect("it starts again");
        scene.refuses("after a restart", (AGENT, ANTHROPIC), &there(&second), ENDED);
    });
}

#[test]
fn an_unreadable_answer_is_refused_and_never_passed() {
    sandboxed(|| {
        let scene = scene();
        let whole = format!(r#"{{"token":"{MINTED}"}}"#);
        let utf16: Vec<u8> = whole.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let large = format!(r#"{{"token":"{MINTED}","pad":"{}"}}"#, "x".repeat(300 << 10));
        let broken = Script { with_length: false, ..script(&whole[..whole.len() - 1]) };
        for (what, script) in [
            ("cut off", broken),
            ("no JSON", script(format!("token={MINTED}"))),
            ("two documents", script(format!("{whole}{whole}"))),
            ("UTF-16", script(utf16)),
            ("too large", script(large.clone())),
            ("too large, without a length", Script { with_length: false, ..script(large) }),
            ("no string", script(format!(r#"{{"token":["{MINTED}"]}}"#))),
            ("a byte that no value has", script(format!(r#"{{"token":"{MINTED} x"}}"#))),
            ("too short", script(r#"{"token":"short"}"#)),
            (
                "another scheme",
                script(format!(
                    r#"{{"objects":[{{"header":{{"Authorization":"Digest {MINTED}"}}}}]}}"#
                )),
            ),
            ("a field of another scheme", with_field(script("{}"), "x-session", MINTED)),
            ("an unknown coding", with_field(script(whole.clone()), "content-encoding", "x-lab")),
            ("a part", Script { status: Some(206), ..script(whole.clone()) }),
        ] {
            for answer in asked(&scene, script) {
                scene.is_refusal(what, &answer, UNREADABLE);
            }
        }
    });
}

#[test]
fn every_spelling_of_what_is_minted_is_taken() {
    sandboxed(|| {
        let scene = scene();
        let whole = format!(r#"{{"token":"{MINTED}"}}"#);
        let bytes =
            whole.bytes().map(|byte| Step { bytes: vec![byte].into(), pause: Duration::ZERO });
        let split = Script { steps: bytes.collect(), with_length: false, ..script("") };
        let escaped: String =
            MINTED.chars().map(|char| format!("\\u{:04x}", char as u32)).collect();
        for (what, script) in [
            ("byte by byte", split),
            ("escaped", script(format!(r#"{{"token":"{escaped}"}}"#))),
            ("twice", script(format!(r#"{{"token":"{MINTED}","token":"{MINTED}"}}"#))),
            ("in another case", script(format!(r#"{{"Token":"{MINTED}","token":"{MINTED}"}}"#))),
            ("an error", Script { status: Some(403), ..script(whole.clone()) }),
        ] {
            for answer in asked(&scene, script) {
                assert_eq!(answer.reason(), None, "{what}: {}", answer.text());
                token(&answer);
            }
        }
        let [field, _] =
            asked(&scene, with_field(script("{}"), "x-session", &format!("Bearer {MINTED}")));
        let shown = field.headers["x-session"].to_str().unwrap();
        assert!(shown.starts_with("Bearer ticket_"), "{shown}");
        let denied = Script { status: Some(401), ..script(r#"{"message":"who are you?"}"#) };
        for answer in asked(&scene, denied) {
            assert_eq!((answer.status.as_u16(), answer.text().contains("who")), (401, true));
        }
        let page = format!("<html>{MINTED}</html>");
        for answer in asked(&scene, Script { status: Some(500), ..script(page) }) {
            assert_eq!((answer.status.as_u16(), answer.body.len()), (500, 0));
        }
    });
}

#[test]
fn a_request_resembling_one_that_mints_is_refused() {
    sandboxed(|| {
        let scene = scene();
        let path = scene.origin.script(script(format!(r#"{{"token":"{MINTED}"}}"#)));
        let ambiguous = (400, "path_ambiguous");
        for other in ["/v1/Scripted/0", "/v1//scripted/0", "/v1/%73cripted/0", "/v1/scripted;x/0"] {
            let ask = Ask::to(OPENAI).good().path(other);
            scene.refuses(other, (AGENT, OPENAI), &ask, ambiguous);
        }
        for field in ["X-Original-URL", "X-Rewrite-URL"] {
            let ask = Ask::to(OPENAI).good().path("/v1/models").field(field, &*path);
            scene.refuses(field, (AGENT, OPENAI), &ask, ambiguous);
        }
        let ask = Ask::to(OPENAI).good().path(&path).field("range", "bytes=10-");
        let ask = ask.field("if-none-match", "\"x\"").method("GET");
        for received in scene.forwards("a part", (AGENT, OPENAI), &ask) {
            assert!(
                received.header("range").is_empty() && received.header("if-none-match").is_empty()
            );
        }
        scene.ends_well();
    });
}

#[test]
fn an_agent_has_no_tickets_without_number() {
    sandboxed(|| {
        let scene = scene();
        let objects = |from: usize, count: usize| {
            let one = |number: usize| {
                format!(r#"{{"header":{{"Authorization":"RemoteAuth {MINTED}-{number:06}"}}}}"#)
            };
            let all: Vec<_> = (from..from + count).map(one).collect();
            script(format!(r#"{{"objects":[{}]}}"#, all.join(",")))
        };
        for _ in 0..2 {
            assert_eq!(asked_once(&scene, objects(0, 200)).reason(), None, "the same 200");
        }
        let answer = asked_once(&scene, objects(1_000, 100));
        scene.is_refusal("beyond the bound", &answer, (429, "ticket_limit"));
        let mut tls = scene.h1(AGENT, OPENAI.port(443), OPENAI.name);
        let path = scene.origin.script(script("{}"));
        let ask = Ask::to(OPENAI).good().path(&path).h1();
        let refused = (0..200).find_map(|_| tls.ask(&ask).expect("an answer").reason());
        assert_eq!(refused.as_deref(), Some("rate_limit"));
    });
}
