//! SDKs of services, unmodified, under the real names of their APIs: with the environment that
//! `cloakroom env` prints, and with the line of their provider alone.
//!
//! Each prints what the service answered; every request that arrived has the key, once, in its place.

use std::{collections::BTreeMap, process::Output};

use lab::{
    World,
    gateway::{OPENAI_SECRET, PUBLIC_CA},
    net::AGENT,
    origin::Received,
    sandbox::sandboxed_for,
    tools,
};
use policy_builder::{Table, api, inspect};

use super::by_name;

/// An SDK, as a function of `sdks.py` or `sdks.mjs` uses it.
struct Sdk {
    line: &'static str,
    name: &'static str,
    api: fn() -> Table,
    /// The part of a request that has the key, and its text around that.
    place: Place,
    shows: &'static [&'static str],
}

/// The place of the key in each request.
enum Place {
    Field(&'static str, &'static str),
    /// As the password behind this user.
    Basic(&'static str),
    Query(&'static str),
}

const PYTHON: &str = "$SDKS/python/bin/python $SCRIPTS/sdks/sdks.py ";
const NODE: &str = "node $SCRIPTS/sdks/sdks.mjs ";
const BEARER: Place = Place::Field("authorization", "Bearer ");
const GEMINI: &str = "generativelanguage.googleapis.com";
const ANSWER: &str = "Hello from the lab";

fn run(world: &World, line: &str) -> Output {
    let sdks = tools::cache().join("sdks");
    assert!(sdks.join("made-of").is_file(), "{} is missing: run make test-clients", sdks.display());
    let mut command = by_name::command(world, AGENT, false, line);
    command.env("SDKS", sdks).output().expect("timeout starts")
}

fn shown(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

impl Sdk {
    #[track_caller]
    fn works(&self, what: &str) {
        let world = by_name::world(&[self.name], &[], [(self.api)()]);
        let output = run(&world, &[self.line, what].concat());
        let (shown, audit) = (shown(&output), world.gateway.audit.text());
        assert!(output.status.success(), "{shown}\n{audit}");
        for wanted in self.shows {
            assert!(shown.contains(wanted), "{wanted}: {shown}\n{audit}");
        }
        let requests = world.origin.log().requests();
        assert!(!requests.is_empty(), "{shown}");
        requests.iter().for_each(|request| self.place.assert_in(request));
        let refused = |it: &&lab::audit::Record| it["decision"] == "refuse";
        let records = world.requests();
        assert_eq!(records.iter().find(refused), None, "{audit}");
        world.assert_secrets_untold();
    }
}

impl Place {
    #[track_caller]
    fn assert_in(&self, request: &Received) {
        let plain = format!("{request:?}");
        match self {
            Self::Field(name, before) => {
                assert_eq!(request.header(name), [format!("{before}{OPENAI_SECRET}")], "{plain}");
            }
            Self::Basic(user) => {
                use base64::Engine as _;
                let pair = format!("{user}:{OPENAI_SECRET}");
                let pair = base64::engine::general_purpose::STANDARD.encode(pair);
                assert_eq!(request.header("authorization"), [format!("Basic {pair}")], "{plain}");
            }
            Self::Query(name) => {
                let query = request.uri.query().unwrap_or_default();
                assert_eq!(query, format!("{name}={OPENAI_SECRET}"), "{plain}");
            }
        }
        let times = plain.matches(OPENAI_SECRET).count();
        assert_eq!(times, usize::from(!matches!(self, Self::Basic(_))), "{plain}");
    }
}

fn gemini() -> Table {
    by_name::api("gemini")
}

fn openai() -> Table {
    by_name::api("openai")
}

const GEMINI_IN_PYTHON: Sdk = Sdk {
    line: PYTHON,
    name: GEMINI,
    api: gemini,
    place: Place::Field("x-goog-api-key", ""),
    shows: &[ANSWER],
};

const OPENAI_IN_PYTHON: Sdk = Sdk {
    line: PYTHON,
    name: "api.openai.com",
    api: openai,
    place: BEARER,
    shows: &[ANSWER, "coat.txt 1000000"],
};

const SLACK: Sdk = Sdk {
    line: PYTHON,
    name: "slack.com",
    api: || by_name::api("slack"),
    place: BEARER,
    shows: &[ANSWER],
};

const STRIPE: Sdk = Sdk {
    line: PYTHON,
    name: "api.stripe.com",
    api: || by_name::api("stripe"),
    place: BEARER,
    shows: &["cus_lab\n", "['cus_lab']"],
};

const TWILIO: Sdk = Sdk {
    line: PYTHON,
    name: "api.twilio.com",
    api: || {
        let binding = by_name::binding().set("basic_user", "AC00000000000000000000000000000000");
        Table::one_of("api").set("provider", "twilio").with(binding)
    },
    place: Place::Basic("AC00000000000000000000000000000000"),
    shows: &["SM00000000000000000000000000000001"],
};

const GITHUB: Sdk = Sdk {
    line: PYTHON,
    name: "api.github.com",
    api: || by_name::api("github"),
    place: Place::Field("authorization", "token "),
    shows: &["lab\n7\n"],
};

/// A cluster of one's own has no provider.
const KUBERNETES: Sdk = Sdk {
    line: PYTHON,
    name: "kube.example",
    api: || {
        let binding = by_name::binding()
            .set("placeholder", "KUBE_TOKEN")
            .set("places", ["header authorization bearer"]);
        api("kube", &["kube.example"]).set("upstream_ca", PUBLIC_CA).with(binding)
    },
    place: BEARER,
    shows: &["['coat']", "ADDED coat\nMODIFIED coat\nDELETED coat\n"],
};

const OPENAI_IN_NODE: Sdk = Sdk { line: NODE, shows: &[ANSWER], ..OPENAI_IN_PYTHON };

const ANTHROPIC_IN_NODE: Sdk = Sdk {
    line: NODE,
    name: "api.anthropic.com",
    api: || by_name::api("anthropic"),
    place: BEARER,
    shows: &[ANSWER],
};

const GEMINI_IN_NODE: Sdk = Sdk { line: NODE, ..GEMINI_IN_PYTHON };

/// Node's own class of WebSocket sets no field.
const GEMINI_LIVE_IN_NODE: Sdk = Sdk { place: Place::Query("key"), ..GEMINI_IN_NODE };

#[test]
#[ignore = "make test-clients"]
fn google_genai_works_in_python_by_its_provider() {
    sandboxed_for(by_name::LONGEST, || GEMINI_IN_PYTHON.works("gemini"));
}

#[test]
#[ignore = "make test-clients"]
fn google_genais_live_api_works_in_python() {
    sandboxed_for(by_name::LONGEST, || GEMINI_IN_PYTHON.works("gemini_live"));
}

#[test]
#[ignore = "make test-clients"]
fn google_genai_works_in_node_by_its_provider() {
    sandboxed_for(by_name::LONGEST, || GEMINI_IN_NODE.works("gemini"));
}

#[test]
#[ignore = "make test-clients"]
fn google_genais_live_api_works_in_node() {
    sandboxed_for(by_name::LONGEST, || GEMINI_LIVE_IN_NODE.works("gemini_live"));
}

#[test]
#[ignore = "make test-clients"]
fn openais_responses_and_files_work_in_python() {
    sandboxed_for(by_name::LONGEST, || OPENAI_IN_PYTHON.works("openai"));
}

#[test]
#[ignore = "make test-clients"]
fn openai_works_in_node_by_its_provider() {
    sandboxed_for(by_name::LONGEST, || OPENAI_IN_NODE.works("openai"));
}

#[test]
#[ignore = "make test-clients"]
fn anthropic_works_in_node_by_its_provider() {
    sandboxed_for(by_name::LONGEST, || ANTHROPIC_IN_NODE.works("anthropic"));
}

#[test]
#[ignore = "make test-clients"]
fn slack_sdk_works_by_its_provider() {
    sandboxed_for(by_name::LONGEST, || SLACK.works("slack"));
}

/// The host that an answer names for events has a ticket in its URL, and no key.
#[test]
#[ignore = "make test-clients"]
fn slacks_socket_mode_works_beside_one_more_rule() {
    const SOCKET: &str = "wss-primary.slack.com";
    sandboxed_for(by_name::LONGEST, || {
        let token = by_name::binding()
            .set("placeholder", "SLACK_APP_TOKEN")
            .set("variables", ["SLACK_APP_TOKEN"])
            .set("places", ["header authorization bearer"]);
        let events = inspect("slack-events", &["research"], &[SOCKET])
            .set("methods", ["GET"])
            .set("paths", ["/link/"])
            .set("websocket", true);
        let apis = [by_name::api("slack").with(token), events];
        let world = by_name::world(&[SLACK.name, SOCKET], &[], apis);
        let shown = shown(&run(&world, &[PYTHON, "slack_socket"].concat()));
        assert!(shown.contains(ANSWER), "{shown}\n{}", world.gateway.audit.text());
        let requests = world.origin.log().requests();
        let (sockets, asked): (Vec<_>, Vec<_>) =
            requests.iter().partition(|request| request.authority() == SOCKET);
        assert!(!sockets.is_empty() && !asked.is_empty(), "{requests:?}");
        asked.iter().for_each(|request| BEARER.assert_in(request));
        assert!(!format!("{sockets:?}").contains(OPENAI_SECRET), "{sockets:?}");
        world.assert_secrets_untold();
    });
}

#[test]
#[ignore = "make test-clients"]
fn stripe_works_by_its_provider() {
    sandboxed_for(by_name::LONGEST, || STRIPE.works("stripe"));
}

#[test]
#[ignore = "make test-clients"]
fn twilio_works_by_its_provider() {
    sandboxed_for(by_name::LONGEST, || TWILIO.works("twilio"));
}

#[test]
#[ignore = "make test-clients"]
fn pygithub_works_by_its_provider() {
    sandboxed_for(by_name::LONGEST, || GITHUB.works("github"));
}

#[test]
#[ignore = "make test-clients"]
fn kubernetes_lists_and_watches_with_a_bearer() {
    sandboxed_for(by_name::LONGEST, || KUBERNETES.works("kubernetes"));
}

/// With another credential nothing arrives.
#[test]
#[ignore = "make test-clients"]
fn sdks_print_the_reason_of_a_refusal() {
    sandboxed_for(by_name::LONGEST * 2, || {
        let sdks = [
            (OPENAI_IN_PYTHON, "openai", "OPENAI_API_KEY"),
            (OPENAI_IN_NODE, "openai", "OPENAI_API_KEY"),
            (GEMINI_IN_PYTHON, "gemini", "GOOGLE_API_KEY"),
            (GEMINI_IN_NODE, "gemini", "GEMINI_API_KEY"),
            (ANTHROPIC_IN_NODE, "anthropic", "ANTHROPIC_API_KEY"),
            (SLACK, "slack", "SLACK_BOT_TOKEN"),
            (STRIPE, "stripe", "STRIPE_API_KEY"),
            (TWILIO, "twilio", "TWILIO_AUTH_TOKEN"),
            (GITHUB, "github", "GITHUB_TOKEN"),
            (KUBERNETES, "kubernetes", "KUBE_TOKEN"),
        ];
        let apis: BTreeMap<&str, fn() -> Table> =
            sdks.iter().map(|(sdk, ..)| (sdk.name, sdk.api)).collect();
        let names: Vec<&str> = apis.keys().copied().collect();
        let world = by_name::world(&names, &[], apis.values().map(|api| api()));
        for (sdk, what, variable) in sdks {
            let line = format!("export {variable}=my-own; {}{what}", sdk.line);
            let shown = shown(&run(&world, &line));
            assert!(shown.contains("foreign_credential"), "{}: {shown}", sdk.line);
        }
        world.origin.log().assert_no_request();
        world.assert_secrets_untold();
    });
}
