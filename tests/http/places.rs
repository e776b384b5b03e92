//! Placeholders in cookies, in JSON and in forms: they are replaced in their one place, in HTTP/1.1
//! and HTTP/2, however the body is framed, and nowhere else.

mod pairs;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lab::{
    gateway::{BEARER, OPENAI_SECRET, usual_config},
    net::{AGENT, OPENAI},
    origin::Received,
    sandboxed,
};
use policy_builder::{Config, binding};

use crate::attack::{Ask, Scene, local};

const FOREIGN: (u16, &str) = (403, "foreign_credential");
const MISSING: (u16, &str) = (403, "placeholder_missing");
const WRONG_PLACE: (u16, &str) = (403, "placeholder_wrong_place");
const WRONG_HOST: (u16, &str) = (403, "placeholder_wrong_host");
const DUPLICATE: (u16, &str) = (400, "duplicate_credential");
const MALFORMED: (u16, &str) = (400, "credential_malformed");
const TOO_LARGE: (u16, &str) = (413, "body_limit");
const JSON: &str = "application/json";
const FORM: &str = "application/x-www-form-urlencoded";
const LOGIN: &str =
    "{\"note\": \"OPENAI_API_KEY\", \"auth\": {\"password\": \"OPENAI_API_KEY\"}}\n";

/// Returns the usual policy with these places of the first API's placeholder.
fn config(places: &[&str]) -> Config {
    usual_config().binding("OPENAI_API_KEY", |it| it.set("places", places))
}

fn bodies() -> Config {
    let json = "json /auth/password in POST /v1/login";
    config(&[json, "form client_secret in POST /v1/token", BEARER])
}

fn login(body: &'static str) -> Ask {
    Ask::to(OPENAI).path("/v1/login").field("content-type", JSON).body(body)
}

fn token(body: &'static str) -> Ask {
    Ask::to(OPENAI).path("/v1/token").field("content-type", FORM).body(body)
}

/// Returns the body of [`LOGIN`] with the secret in its place.
fn logged_in() -> String {
    let (before, after) = LOGIN.rsplit_once("OPENAI_API_KEY").expect("a placeholder");
    format!("{before}{OPENAI_SECRET}{after}")
}

#[track_caller]
fn is_framed(received: &Received, body: &str) {
    assert_eq!(received.body, body);
    assert_eq!(received.header("content-length"), [body.len().to_string()]);
    assert_eq!(received.header("transfer-encoding"), [""; 0]);
}

#[test]
fn a_placeholder_in_its_cookie_alone_is_swapped() {
    sandboxed(|| {
        let config = config(&["cookie session"]).api("openai", |it| it.set("keep_cookies", true));
        let scene = Scene::with(&config);
        let asked = |cookies: &str| Ask::to(OPENAI).field("cookie", cookies);
        let good = asked("a=OPENAI_API_KEY; session=OPENAI_API_KEY; b=\"c\"");
        for received in scene.forwards("a cookie", (AGENT, OPENAI), &good) {
            let expected = format!("a=OPENAI_API_KEY; session={OPENAI_SECRET}; b=\"c\"");
            assert_eq!(received.header("cookie"), [expected]);
        }
        let crumbs = asked("a=b").field("cookie", "session=OPENAI_API_KEY").field("cookie", "c=d");
        let mut h2 = scene.h2(AGENT, OPENAI.port6(443), OPENAI.name);
        assert_eq!(h2.ask(crumbs.h2(), "").expect("an answer").status, 200);
        drop(h2);
        let received = scene.origin.log().wait_requests(3).pop().expect("three requests");
        let all = received.header("cookie").join("; ");
        assert_eq!(all, format!("a=b; session={OPENAI_SECRET}; c=d"));
        for (cookies, expected) in [
            ("a=b", MISSING),
            ("session=mine", FOREIGN),
            ("session=GIT_TOKEN", WRONG_HOST),
            ("SESSION=OPENAI_API_KEY", WRONG_PLACE),
            ("session=OPENAI_API_KEY; session=mine", DUPLICATE),
            ("a=\"; session=OPENAI_API_KEY; b=\"", MALFORMED),
            ("a=b, session=OPENAI_API_KEY", MALFORMED),
        ] {
            scene.refuses(cookies, (AGENT, OPENAI), &asked(cookies), expected);
        }
        scene.refuses_bytes("two fields", (AGENT, OPENAI), crumbs.h1(), MALFORMED);
        scene.ends_well();
    });
}

#[test]
fn a_placeholder_in_a_body_is_swapped_and_framed() {
    sandboxed(|| {
        let scene = Scene::with(&bodies());
        for received in scene.forwards("JSON", (AGENT, OPENAI), &login(LOGIN)) {
            is_framed(&received, &logged_in());
        }
        let form = token("a=OPENAI_API_KEY&client_secret=OPENAI_API_KEY&b=%20c");
        for received in scene.forwards("a form", (AGENT, OPENAI), &form) {
            is_framed(&received, &format!("a=OPENAI_API_KEY&client_secret={OPENAI_SECRET}&b=%20c"));
        }
        // In another place it is text.
        let elsewhere = login(LOGIN).path("/v1/other").good();
        for received in scene.forwards("another path", (AGENT, OPENAI), &elsewhere) {
            assert_eq!(received.body, LOGIN);
        }
        for received in scene.forwards("none", (AGENT, OPENAI), &login("{\"a\":1}").good()) {
            is_framed(&received, "{\"a\":1}");
        }
        for received in scene.forwards("empty", (AGENT, OPENAI), &login("").good()) {
            assert_eq!(received.body, "");
        }
        scene.ends_well();
    });
}

#[test]
fn a_chunked_or_pausing_body_is_read_whole() {
    sandboxed(|| {
        let scene = Scene::with(&bodies());
        let head = "POST /v1/login HTTP/1.1\r\nHost: api.openai.example\r\nContent-Type: application/json\r\n";
        let mut tls = scene.h1(AGENT, OPENAI.port(443), OPENAI.name);
        let chunks: String = LOGIN
            .as_bytes()
            .chunks(7)
            .map(|it| format!("{:x}\r\n{}\r\n", it.len(), String::from_utf8_lossy(it)))
            .collect();
        let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n{chunks}0\r\n\r\n");
        assert_eq!(tls.ask(chunked).expect("an answer").status, 200);
        let length = LOGIN.len();
        tls.send(format!("{head}Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n"))
            .expect("sent");
        let interim = tls.read_some(1024).expect("an interim answer");
        assert!(interim.starts_with(b"HTTP/1.1 100 "), "{}", interim.escape_ascii());
        assert_eq!(tls.ask(LOGIN).expect("an answer").status, 200);
        drop(tls);
        let mut h2 = scene.h2(AGENT, OPENAI.port6(443), OPENAI.name);
        let answer = h2.run(|mut requests| async move {
            let request = login(LOGIN).h2();
            let (answer, mut body) = requests.send_request(request, false)?;
            for piece in LOGIN.as_bytes().chunks(5) {
                body.send_data(piece.into(), false)?;
            }
            body.send_data(bytes::Bytes::new(), true)?;
            answer.await
        });
        assert_eq!(answer.expect("an answer").status(), 200);
        drop(h2);
        for received in scene.origin.log().wait_requests(3) {
            is_framed(&received, &logged_in());
        }
        scene.ends_well();
    });
}

#[test]
fn a_body_with_two_readings_is_refused() {
    sandboxed(|| {
        let scene = Scene::with(&bodies());
        for (body, expected) in [
            ("{\"auth\":{\"password\":\"mine\"}}", FOREIGN),
            ("{\"auth\":{\"password\":\"OPS_OPENAI_KEY\"}}", FOREIGN),
            ("{\"auth\":{\"password\":\"GIT_TOKEN\"}}", WRONG_HOST),
            ("{\"auth\":{\"Password\":\"OPENAI_API_KEY\"}}", WRONG_PLACE),
            ("{\"auth\":{\"p\\u0061ssword\":\"OPENAI_API_KEY\"}}", WRONG_PLACE),
            ("{\"password\":\"OPENAI_API_KEY\"}", MISSING),
            ("{\"auth\":{\"password\":\"OPENAI_API_KEY\",\"password\":\"mine\"}}", DUPLICATE),
            ("{\"auth\":{\"password\":\"OPENAI_API_KEY\"}} x", MALFORMED),
            ("\u{feff}{\"auth\":{\"password\":\"OPENAI_API_KEY\"}}", MALFORMED),
            ("client_secret=OPENAI_API_KEY", MALFORMED),
        ] {
            scene.refuses(body, (AGENT, OPENAI), &login(body), expected);
        }
        for (body, expected) in [
            ("a=b", MISSING),
            ("client_secret=mine", FOREIGN),
            ("client_secret=OPENAI_API_KEY&client_secret=mine", DUPLICATE),
            ("clientSecret=OPENAI_API_KEY", WRONG_PLACE),
            ("client_secret=OPENAI_API_KEY;a=b", WRONG_PLACE),
        ] {
            scene.refuses(body, (AGENT, OPENAI), &token(body), expected);
        }
        let beside = login("{\"auth\":{\"password\":\"mine\"}}").good();
        scene.refuses("a second credential", (AGENT, OPENAI), &beside, DUPLICATE);
        let gzip = login(LOGIN).field("content-encoding", "gzip");
        scene.refuses("a coding", (AGENT, OPENAI), &gzip, MALFORMED);
        let overridden = login(LOGIN).field("x-http-method-override", "PUT");
        scene.refuses("another method", (AGENT, OPENAI), &overridden, (403, "method_denied"));
        let overridden = login(LOGIN).path("/v1/login?_method=PATCH");
        scene.refuses("another method", (AGENT, OPENAI), &overridden, (403, "method_denied"));
        let elsewhere = login(LOGIN).field("x-original-url", "/v1/notes");
        scene.refuses("another path", (AGENT, OPENAI), &elsewhere, (400, "path_ambiguous"));
        let spelt = login("{\"auth\":{\"password\":\"mine\"}}").path("/v1/log%69n").good();
        scene.refuses("another spelling", (AGENT, OPENAI), &spelt, (400, "path_ambiguous"));
        let mut kind = login(LOGIN);
        kind.fields = vec![("content-type".into(), "text/plain".into())];
        scene.refuses("another type", (AGENT, OPENAI), &kind, MALFORMED);
        scene.ends_well();
    });
}

#[test]
fn a_body_too_large_slow_or_with_trailers_is_refused() {
    sandboxed(|| {
        let config = bodies().limit("head_time", "2s");
        let scene = Scene::with(&config);
        let large = format!("{{\"a\":\"{}\"}}", "x".repeat(64 << 10)).leak();
        scene.refuses("too large", (AGENT, OPENAI), &login(large), TOO_LARGE);
        let head = "POST /v1/login HTTP/1.1\r\nHost: api.openai.example\r\nContent-Type: application/json\r\n";
        let chunked = format!(
            "{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{large}\r\n0\r\n\r\n",
            large.len()
        );
        scene.refuses_bytes("too large in chunks", (AGENT, OPENAI), chunked, TOO_LARGE);
        let before = scene.before();
        let mut tls = scene.h1(AGENT, OPENAI.port(443), OPENAI.name);
        let me = local(&tls);
        let answer = tls.ask(format!("{head}Content-Length: 100\r\n\r\n{{")).expect("an answer");
        scene.is_refusal("too slow", &answer, (408, "http_timeout"));
        drop(tls);
        scene.recorded("too slow", me, &[Some("http_timeout")]);
        scene.nothing_arrived("too slow", before);
        let trailers = format!(
            "{head}Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{LOGIN}\r\n0\r\nX-Note: a\r\n\r\n",
            LOGIN.len()
        );
        scene.refuses_bytes("trailers", (AGENT, OPENAI), trailers, (400, "trailer_denied"));
        scene.ends_well();
    });
}

#[test]
fn two_leading_slashes_pass_where_a_rule_has_them() {
    sandboxed(|| {
        let config = config(&["query key"]).api("openai", |it| it.more("paths", &["//ws/*"]));
        let scene = Scene::with(&config);
        let path = "//ws/google.ai.generativelanguage.v1beta.GenerativeService.BidiGenerateContent";
        let ask = Ask::to(OPENAI).path(&format!("{path}?key=OPENAI_API_KEY"));
        for received in scene.forwards("two slashes", (AGENT, OPENAI), &ask) {
            let target = received.uri.path_and_query().expect("a target").as_str();
            assert_eq!(target, format!("{path}?key={OPENAI_SECRET}"));
        }
        for (path, expected) in [
            ("//v1/attack?key=OPENAI_API_KEY", (403, "path_denied")),
            ("/ws/x?key=OPENAI_API_KEY", (403, "path_denied")),
            ("///ws/x?key=OPENAI_API_KEY", (400, "path_ambiguous")),
            ("//ws//x?key=OPENAI_API_KEY", (400, "path_ambiguous")),
            ("//ws/../v1/x?key=OPENAI_API_KEY", (400, "path_ambiguous")),
        ] {
            scene.refuses(path, (AGENT, OPENAI), &Ask::to(OPENAI).path(path), expected);
        }
        scene.ends_well();
    });
}

/// A secret with bytes that each format writes in another way; no cookie has a quote or a comma.
const ODD: &str = "sk-lab-r\"f\\l/e+c&t=e%d;7d1c5a9e";
const ODD_COOKIE: &str = "sk-lab-r'f!l/e+c&t=e%d:2b8e4f6a";

/// Returns the forms in which answers are masked.
pub(crate) fn forms(secret: &str) -> Vec<String> {
    let percent = |upper: bool| -> String {
        let byte = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ if upper => format!("%{byte:02X}"),
            _ => format!("%{byte:02x}"),
        };
        secret.bytes().map(byte).collect()
    };
    let json = serde_json::to_string(secret).expect("a text");
    let hex = |byte: u8| format!("{byte:02x}");
    let mut forms = vec![
        secret.to_owned(),
        percent(true),
        percent(false),
        json.trim_matches('"').to_owned(),
        secret.bytes().map(hex).collect(),
    ];
    for before in 0..3 {
        let encoded = STANDARD.encode(["\0".repeat(before).as_bytes(), secret.as_bytes()].concat());
        forms.push(encoded[4..encoded.len() - 4].to_owned());
    }
    forms
}

#[test]
fn an_echoing_api_tells_nothing_of_swapped_places() {
    sandboxed(|| {
        let (json, form) = ("json /password in POST /v1/mirror", "form password in PUT /v1/mirror");
        let cookie = binding("research", "SESSION_COOKIE", &["cookie session"], "file:cookie");
        let config = config(&[json, form, "query key", BEARER])
            .api("openai", |it| it.more("methods", &["PUT"]).with(cookie))
            .secrets("file", "{dir}/odd.toml");
        let secrets = format!(
            "openai = {ODD}\ncookie = {ODD_COOKIE}\nanthropic = {ODD}1\ngit = {ODD}2\nops = {ODD}3\n"
        );
        let scene = Scene::with_files(&config, &[("odd.toml", &secrets)]);
        let json = login("{\"password\":\"OPENAI_API_KEY\"}").path("/v1/mirror");
        let form = token("password=OPENAI_API_KEY").path("/v1/mirror").method("PUT");
        let head = Ask::to(OPENAI).good();
        let asks = [
            json.clone(),
            form,
            json.path("/v1/mirror?key=OPENAI_API_KEY").field("cookie", "session=SESSION_COOKIE"),
            head.clone().path("/v1/mirror?key=OPENAI_API_KEY"),
            head.path("/v1/echo").field("cookie", "session=SESSION_COOKIE"),
        ];
        let odd: Vec<_> = [ODD, ODD_COOKIE].into_iter().flat_map(forms).collect();
        let mut h1 = scene.h1(AGENT, OPENAI.port(443), OPENAI.name);
        let mut h2 = scene.h2(AGENT, OPENAI.port6(443), OPENAI.name);
        for ask in &asks {
            let answers = [h1.ask(ask.h1()), h2.ask(ask.h2(), ask.body)];
            for answer in answers.map(|answer| answer.expect("an answer")) {
                let text = answer.text();
                assert_eq!(answer.status, 200, "{}: {text}", ask.path);
                assert!(text.contains("/v1/"), "nothing is echoed: {text}");
                let told: Vec<_> = odd.iter().filter(|form| text.contains(&***form)).collect();
                assert!(told.is_empty(), "{}: {told:?} in {text}", ask.path);
            }
        }
        drop((h1, h2));
        let received = scene.origin.log().wait_requests(2 * asks.len());
        let json = format!("{{\"password\":{}}}", serde_json::to_string(ODD).expect("a text"));
        assert_eq!(received.iter().filter(|it| it.body == json.as_bytes()).count(), 4);
        let form = format!("password={}", forms(ODD)[1]);
        assert_eq!(received.iter().filter(|it| it.body == form.as_bytes()).count(), 2);
        let cookie = format!("session={ODD_COOKIE}");
        assert_eq!(
            received.iter().filter(|it| it.header("cookie") == [cookie.as_str()]).count(),
            4
        );
        let written = scene.gateway.audit.text() + &scene.gateway.stderr();
        assert!(
            odd.iter().all(|form| !written.contains(&**form)),
            "a value in the audit or the log"
        );
        scene.ends_well();
    });
}
