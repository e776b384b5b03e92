//! Every placeholder, and one foreign credential, at every host, in every kind of place, by either
//! group, in HTTP/1.1, in HTTP/2 and in the handshake of a WebSocket: the secret arrives in the
//! cells in which the configuration says so, and in no others.
//!
//! [`expected`] computes the table of answers a second time, from the same [`BINDINGS`] that the
//! configuration is written from, and without the gateway's code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lab::{
    client::{H2, Response, Tls},
    gateway::{
        ANTHROPIC_SECRET, GIT_SECRET, OPENAI_SECRET, OPS_SECRET, PUBLIC_CA, SECRETS, usual_config,
    },
    net::{AGENT, AGENT2, ANTHROPIC, GIT, Host, Ns, OPENAI},
    origin::Received,
    sandboxed, wait,
};
use policy_builder::{Config, binding};

use crate::{
    attack::{Ask, Scene},
    http::places::forms,
};

/// An API of the configuration.
struct Api {
    host: Host,
    name: &'static str,
    keeps_cookies: bool,
    websocket: bool,
}

/// A binding of the configuration.
struct Binding {
    api: Host,
    group: &'static str,
    placeholder: &'static str,
    places: &'static [&'static str],
    secret: (&'static str, &'static str),
}

const APIS: [Api; 3] = [
    Api { host: OPENAI, name: "openai", keeps_cookies: false, websocket: true },
    Api { host: ANTHROPIC, name: "anthropic", keeps_cookies: true, websocket: false },
    Api { host: GIT, name: "git", keeps_cookies: true, websocket: true },
];

const BINDINGS: [Binding; 6] = [
    Binding {
        api: OPENAI,
        group: "research",
        placeholder: "OPENAI_API_KEY",
        places: &[
            "header authorization bearer",
            "query key",
            "websocket subprotocol openai-insecure-api-key.",
            "json /auth/password in POST /v1/login",
        ],
        secret: ("openai", OPENAI_SECRET),
    },
    Binding {
        api: OPENAI,
        group: "operations",
        placeholder: "OPS_OPENAI_KEY",
        places: &["header authorization bearer", "cookie session"],
        secret: ("ops", OPS_SECRET),
    },
    Binding {
        api: ANTHROPIC,
        group: "research",
        placeholder: "ANTHROPIC_API_KEY",
        places: &["header x-api-key raw", "cookie session", "form client_secret in POST /v1/token"],
        secret: ("anthropic", ANTHROPIC_SECRET),
    },
    Binding {
        api: GIT,
        group: "research",
        placeholder: "GIT_TOKEN",
        places: &["basic password", "path /v1/key{}/"],
        secret: ("git", GIT_SECRET),
    },
    Binding {
        api: GIT,
        group: "research",
        placeholder: "GIT_ACCOUNT",
        places: &["basic user"],
        secret: ("openai", OPENAI_SECRET),
    },
    Binding {
        api: GIT,
        group: "operations",
        placeholder: "OPS_GIT_TOKEN",
        places: &["header authorization token", "json /auth/password in POST /v1/login"],
        secret: ("ops", OPS_SECRET),
    },
];

const GROUPS: [(&str, Ns); 2] = [("research", AGENT), ("operations", AGENT2)];
const OWN_KEY: &str = "sk-the-attackers-own-key";

/// The protocol of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    H1,
    H2,
    /// The handshake of a WebSocket, which has no body.
    WebSocket,
}

/// The method and path of the request: listed ones, or another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Variant {
    Listed,
    OtherMethod,
    OtherPath,
}

/// One request.
#[derive(Debug, Clone, Copy)]
struct Cell {
    group: (&'static str, Ns),
    host: Host,
    placeholder: &'static str,
    place: &'static str,
    variant: Variant,
    by: Protocol,
}

/// The expected outcome of a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Secret(&'static str),
    Refused(u16, &'static str),
    /// The group may not use the host.
    NoHandshake,
}

fn api(host: Host) -> &'static Api {
    APIS.iter().find(|api| api.host == host).expect("a host of the configuration")
}

fn config() -> Config {
    let apis = APIS.iter().map(|it| {
        let api = policy_builder::api(it.name, &[it.host.name])
            .set("methods", ["GET", "POST"])
            .set("paths", ["/v1/*"])
            .set("keep_cookies", it.keeps_cookies)
            .set("websocket", it.websocket)
            .set("upstream_ca", PUBLIC_CA);
        BINDINGS.iter().filter(|binding| binding.api == it.host).fold(api, |api, it| {
            let secret = format!("file:{}", it.secret.0);
            api.with(binding(it.group, it.placeholder, it.places, &secret))
        })
    });
    apis.fold(usual_config().without("api").without("splice"), Config::with)
}

/// Returns all cells: the places are those of all bindings, each tried with everything else.
fn cells() -> Vec<Cell> {
    let places: BTreeSet<_> =
        BINDINGS.iter().flat_map(|binding| binding.places.iter().copied()).collect();
    let texts: Vec<_> = BINDINGS.iter().map(|it| it.placeholder).chain([OWN_KEY]).collect();
    let mut cells = Vec::new();
    for group in GROUPS {
        for Api { host, .. } in APIS {
            for by in [Protocol::H1, Protocol::H2, Protocol::WebSocket] {
                for &place in places.iter().filter(|it| by.has(it)) {
                    for &placeholder in &texts {
                        let variant = Variant::Listed;
                        let cell = Cell { group, host, placeholder, place, variant, by };
                        cells.push(cell);
                        // In other cells the credential is refused, whatever is asked for.
                        if matches!(expected(&cell), Outcome::Secret(_)) {
                            let others = [Variant::OtherMethod, Variant::OtherPath];
                            cells.extend(others.map(|variant| Cell { variant, ..cell }));
                        }
                    }
                }
            }
        }
    }
    cells
}

impl Protocol {
    /// Returns whether there is such a place.
    fn has(self, place: &str) -> bool {
        let in_body = place.starts_with("json ") || place.starts_with("form ");
        self != Self::WebSocket || !in_body
    }
}

/// Returns the expected outcome by the table of answers.
fn expected(cell: &Cell) -> Outcome {
    let here = || BINDINGS.iter().filter(|binding| binding.api == cell.host);
    let own = || here().filter(|binding| binding.group == cell.group.0);
    if own().next().is_none() {
        return Outcome::NoHandshake;
    }
    if cell.by == Protocol::WebSocket {
        if !api(cell.host).websocket {
            return Outcome::Refused(426, "upgrade_denied");
        }
        if cell.variant == Variant::OtherMethod {
            return Outcome::Refused(400, "http_malformed");
        }
    }
    if !counts(cell) {
        return Outcome::Refused(403, "placeholder_missing");
    }
    let mut holders = own().filter(|binding| binding.placeholder == cell.placeholder);
    let Some(holder) = holders.next() else {
        let held = BINDINGS.iter().any(|binding| {
            binding.group == cell.group.0 && binding.placeholder == cell.placeholder
        });
        let word = if held { "placeholder_wrong_host" } else { "foreign_credential" };
        return Outcome::Refused(403, word);
    };
    let offered = cell.place.starts_with("websocket ");
    if !holder.places.contains(&cell.place) || offered && cell.by != Protocol::WebSocket {
        return Outcome::Refused(403, "placeholder_wrong_place");
    }
    match cell.variant {
        Variant::Listed => Outcome::Secret(holder.secret.1),
        Variant::OtherMethod => Outcome::Refused(403, "method_denied"),
        Variant::OtherPath => Outcome::Refused(403, "path_denied"),
    }
}

/// Returns whether the text in the place is a credential at that host.
fn counts(cell: &Cell) -> bool {
    let bound = BINDINGS
        .iter()
        .any(|binding| binding.api == cell.host && binding.places.contains(&cell.place));
    match cell.place.split(' ').next() {
        Some("cookie") => bound || !api(cell.host).keeps_cookies,
        // The place is in its path, whatever the method.
        Some("path") => bound && cell.variant != Variant::OtherPath,
        // The place belongs to one method and one path.
        Some("json" | "form") => bound && cell.variant == Variant::Listed,
        _ => true,
    }
}

fn request(nth: usize, cell: &Cell) -> Ask {
    let (text, folder) = match cell.variant {
        Variant::OtherPath => (cell.placeholder, "/v2"),
        _ => (cell.placeholder, "/v1"),
    };
    let method = match (cell.variant, cell.by) {
        (Variant::OtherMethod, _) => "DELETE",
        (_, Protocol::WebSocket) => "GET",
        _ => "POST",
    };
    let mut ask = Ask::to(cell.host).method(method).field("x-cell", nth.to_string());
    if cell.by == Protocol::WebSocket {
        ask = HANDSHAKE.iter().fold(ask, |ask, (name, value)| ask.field(name, *value));
    }
    let at = |path: &str| ask.clone().path(&format!("{folder}{path}"));
    let basic = |pair: String| format!("Basic {}", STANDARD.encode(pair));
    let words: Vec<_> = cell.place.split(' ').collect();
    match *words {
        ["header", name, "raw"] => at("/attack").field(name, text),
        ["header", name, "bearer"] => at("/attack").field(name, format!("Bearer {text}")),
        ["header", name, word] => at("/attack").field(name, format!("{word} {text}")),
        ["basic", "user"] => at("/attack").field("authorization", basic(format!("{text}:"))),
        ["basic", _] => at("/attack").field("authorization", basic(format!(":{text}"))),
        ["query", name] => at(&format!("/attack?a=b&{name}={text}")),
        ["cookie", name] => at("/attack").field("cookie", format!("{name}={text}")),
        ["websocket", _, prefix] => {
            at("/attack").field("sec-websocket-protocol", format!("realtime, {prefix}{text}"))
        }
        ["path", _] => at(&format!("/key{text}/send")),
        ["json", ..] => at("/login")
            .field("content-type", "application/json")
            .body(format!("{{\"note\": 1, \"auth\": {{\"password\": \"{text}\"}}}}").leak()),
        ["form", ..] => at("/token")
            .field("content-type", "application/x-www-form-urlencoded")
            .body(format!("grant_type=x&client_secret={text}").leak()),
        _ => panic!("no request for {}", cell.place),
    }
}

/// The fields that make a request a handshake (RFC 6455, section 4.1).
const HANDSHAKE: [(&str, &str); 4] = [
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-version", "13"),
    ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
];

/// A connection that is used until it ends.
enum Kept {
    H1(Box<Tls>),
    H2(H2),
}

impl Kept {
    fn open(scene: &Scene, cell: &Cell) -> io::Result<Self> {
        let Cell { group: (_, from), host, .. } = *cell;
        Ok(match cell.by {
            Protocol::H1 | Protocol::WebSocket => {
                Self::H1(Tls::open(from, host.port(443), &scene.hello(host.name))?.into())
            }
            Protocol::H2 => Self::H2(H2::open(from, host.port6(443), &scene.hello2(host.name))?),
        })
    }

    fn ask(&mut self, ask: &Ask) -> io::Result<Response> {
        match self {
            Self::H1(tls) => tls.ask(ask.h1()),
            Self::H2(h2) => h2.ask(ask.h2(), ask.body),
        }
    }
}

/// Asks on the connection of the earlier cells, or on a new one if that has ended.
fn answer(scene: &Scene, kept: &mut Option<Kept>, cell: &Cell, ask: &Ask) -> io::Result<Response> {
    if let Some(connection) = kept
        && let Ok(answer) = connection.ask(ask)
    {
        return Ok(answer);
    }
    kept.insert(Kept::open(scene, cell)?).ask(ask)
}

fn everything(request: &Received) -> String {
    let mut all = format!("{}\n", request.uri);
    for (name, value) in &request.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let pair = value.strip_prefix("Basic ").and_then(|pair| STANDARD.decode(pair).ok());
        let pair = String::from_utf8(pair.unwrap_or_default()).unwrap_or_default();
        let _ = writeln!(all, "{name}: {value} {pair}");
    }
    all + &String::from_utf8_lossy(&request.body)
}

/// Checks that the secret is there once, and neither another secret nor a placeholder.
#[track_caller]
fn holds_once(cell: &Cell, secret: &str, request: &Received) {
    let all = everything(request);
    for other in SECRETS {
        assert_eq!(all.matches(other).count(), usize::from(other == secret), "{cell:?}: {all}");
    }
    assert!(!all.contains(cell.placeholder), "{cell:?}: {all}");
}

#[test]
fn the_secret_arrives_in_the_configured_cells_alone() {
    sandboxed(|| {
        let scene = Scene::with(&config());
        let cells = cells();
        let mut kept = None;
        let mut last = None;
        let mut words: BTreeMap<String, usize> = BTreeMap::new();
        for (nth, cell) in cells.iter().enumerate() {
            let connection = (cell.group.0, cell.host.name, cell.by);
            if last.replace(connection) != Some(connection) {
                kept = None;
            }
            let answered = answer(&scene, &mut kept, cell, &request(nth, cell));
            match (expected(cell), answered) {
                (Outcome::Secret(secret), Ok(answer)) => {
                    assert_eq!(answer.reason(), None, "{cell:?}: {}", answer.text());
                    assert_eq!(answer.status, 200, "{cell:?}");
                    let text = answer.text();
                    assert!(text.contains("x-cell"), "{cell:?}: nothing is echoed: {text}");
                    let told = forms(secret).into_iter().find(|form| text.contains(&**form));
                    assert_eq!(told, None, "{cell:?}: {text}");
                    *words.entry("response_masked".into()).or_default() += 1;
                }
                (Outcome::Refused(status, reason), Ok(answer)) => {
                    scene.is_refusal(&format!("{cell:?}"), &answer, (status, reason));
                    *words.entry(reason.into()).or_default() += 1;
                }
                (Outcome::NoHandshake, Err(error)) => {
                    assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{cell:?}: {error}");
                }
                (outcome, answer) => panic!("{cell:?}: {answer:?} instead of {outcome:?}"),
            }
        }
        drop(kept);
        let wanted: BTreeMap<usize, &'static str> = cells
            .iter()
            .enumerate()
            .filter_map(|(nth, cell)| match expected(cell) {
                Outcome::Secret(secret) => Some((nth, secret)),
                _ => None,
            })
            .collect();
        let received = scene.origin.log().wait_requests(wanted.len());
        let mut seen = BTreeSet::new();
        for request in &received {
            let nth: usize = request.header("x-cell")[0].parse().expect("the number of a cell");
            let secret = wanted.get(&nth).unwrap_or_else(|| panic!("{:?} arrived", cells[nth]));
            holds_once(&cells[nth], secret, request);
            assert!(seen.insert(nth), "{:?} arrived twice", cells[nth]);
        }
        assert!(seen.iter().eq(wanted.keys()), "the cells in which a secret arrived");
        assert!(wanted.len() >= 2 * BINDINGS.iter().map(|it| it.places.len()).sum::<usize>());
        let told = || {
            let mut told: BTreeMap<String, usize> = BTreeMap::new();
            for record in scene.gateway.audit.records() {
                if record.is("request") {
                    let word = record["reason"].as_str().unwrap_or("none").to_owned();
                    *told.entry(word).or_default() += 1;
                }
            }
            told
        };
        wait::until(wait::SOON, || (told() == words).then_some(()));
        assert_eq!(told(), words, "one record for each request");
        scene.ends_well();
    });
}
