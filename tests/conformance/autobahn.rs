//! The cases of the Autobahn test suite, run by kosoku. As a client it fuzzes Python's `websockets`
//! behind the gateway, as a server that of an agent; each with the gateway in between and without
//! it.
//!
//! kosoku speaks in clear text, so a relay on its side adds TLS and, in a handshake, the API's name
//! and its placeholder. The same relay is there without the gateway.

use std::process::{Child, Command};

use lab::{
    World,
    client::python,
    gateway::{BEARER, OPENAI_SECRET, PUBLIC_CA, usual_config},
    net::{AGENT, INTERNET, Ns, OTHER},
    sandbox::sandboxed_for,
    tools, wait,
};
use policy_builder::{Config, api, binding};

use super::{Meant, Outcomes, compare, suite, whole};

/// The cases that take a minute in all; `make test-conformance` runs the rest.
const PART: &str = "1.*,2.*,3.*,4.1.*,4.2.*,5.*,6.2.*,6.4.*,7.1.*,7.3.*,9.1.1";
const WHOLE: &str = "1.*,2.*,3.*,4.*,5.*,6.*,7.*,9.*,10.*";

/// The cases about compression, which the gateway declines before any size matters: the smallest of
/// each way.
const COMPRESSED: &str = ",12.*.1,13.*.1";

/// How many cases run at once, and how often failed cases are run again, one by one: an answer has
/// a second to arrive, which a busy machine may miss.
const MANY: &str = "10";
const AGAIN: usize = 2;

/// Outcomes from the best to the worst: of messages, and of the end.
const BEST: [&str; 8] = [
    "OK / OK",
    "NON-STRICT / OK",
    "INFORMATIONAL / INFORMATIONAL",
    "UNIMPLEMENTED / OK",
    "OK / WRONG CODE",
    "OK / FAILED BY CLIENT",
    "OK / UNCLEAN",
    "OK / FAILED",
];

/// The cases that the gateway declines: a compressed frame would have to be decoded to be masked.
const SERVER_MEANT: [Meant; 2] = [declined("12.*"), declined("13.*")];

const fn declined(case: &'static str) -> Meant {
    let why = "permessage-deflate is offered to neither side";
    Meant { case, without: "OK / OK", through: "UNIMPLEMENTED / OK", why }
}

/// The case that differs for a client behind the gateway. Python's `websockets` takes a close frame
/// within a message for an error of the server's, which the suite does not.
const CLIENT_MEANT: [Meant; 1] = [Meant {
    case: "7.1.5",
    without: "FAILED / WRONG CODE",
    through: "OK / OK",
    why: "a fragment that waits to be masked is not sent ahead of the close frame behind it",
}];

/// A port at the API's address that is none of the lab's own servers'.
const PORT: u16 = 9443;

fn script(ns: Ns, python: &std::path::Path, arguments: &[&str]) -> Command {
    let mut command = ns.command(python);
    command.arg(tools::repository().join("tests/conformance/autobahn.py")).args(arguments);
    command
}

/// Starts a program that runs until the test ends, and waits until it is ready.
#[track_caller]
fn start(mut command: Command, world: &World, name: &str) -> Child {
    let log = world.lab.dir.join(name);
    let file = std::fs::File::create(&log).expect("a file");
    let again = file.try_clone().expect("a file");
    let child = command.stdout(file).stderr(again).spawn().expect("it starts");
    let ready = || std::fs::read_to_string(&log).is_ok_and(|it| it.contains("ready"));
    wait::expect(&format!("{name} is ready"), ready);
    child
}

fn config() -> Config {
    let measured = api("measured", &[OTHER.name])
        .set("port", PORT)
        .set("websocket", true)
        .set("upstream_ca", PUBLIC_CA)
        .with(binding("research", "MEASURED_API_KEY", &[BEARER], "file:openai"));
    usual_config().gateway("ports", [443, 80, PORT]).with(measured)
}

fn world() -> World {
    let world = World::with(&config());
    let identity = world.lab.public.issue(OTHER.name);
    world.lab.write("measured.pem", identity.certificate_pem());
    world.lab.write("measured.key", identity.key_pem());
    world
}

/// Returns the best outcome of each case in a few attempts.
#[track_caller]
fn outcomes(more: &str, mut run: impl FnMut(&str, &str) -> String) -> Outcomes {
    let cases = if whole() { WHOLE } else { PART };
    let mut all = read(&run(MANY, &format!("{cases}{more}")));
    assert!(all.len() >= if whole() { 290 } else { 80 }, "{} cases", all.len());
    for _ in 0..AGAIN {
        let unsettled = |outcome: &str| !BEST[..4].contains(&outcome);
        let again: Vec<_> =
            all.iter().filter(|(_, it)| unsettled(it)).map(|(case, _)| case.clone()).collect();
        if again.is_empty() {
            break;
        }
        for (case, outcome) in read(&run("1", &again.join(","))) {
            if rank(&outcome) < rank(&all[&case]) {
                all.insert(case, outcome);
            }
        }
    }
    all
}

/// Asserts that nearly all outcomes are good.
#[track_caller]
fn assert_good(all: &Outcomes) {
    let good = all.values().filter(|it| rank(it) < 4).count();
    assert!(good * 20 >= all.len() * 19, "{good} of {}: {all:#?}", all.len());
}

fn rank(outcome: &str) -> usize {
    BEST.iter().position(|it| *it == outcome).unwrap_or(BEST.len())
}

#[track_caller]
fn read(said: &str) -> Outcomes {
    let last = said.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {said}"))
}

#[test]
#[ignore = "make test-conformance"]
fn a_server_behaves_the_same_behind_the_gateway() {
    sandboxed_for(super::LIMIT, || {
        let world = world();
        let dir = world.lab.dir.display().to_string();
        let at = format!("{}:{PORT}", OTHER.v4());
        // It ends with the sandbox.
        #[expect(clippy::zombie_processes, reason = "the sandbox ends, and with it all in there")]
        let _server = start(script(INTERNET, &python(), &["echo", &at, &dir]), &world, "echo");
        let run = |from: Ns, key: &str| {
            outcomes(COMPRESSED, |many, cases| {
                let to = format!("{}:{PORT}", OTHER.name);
                let arguments = ["fuzz-server", &to, &dir, key, many, cases];
                super::output(&mut script(from, &suite("python/bin/python"), &arguments))
            })
        };
        let without = run(INTERNET, OPENAI_SECRET);
        let through = run(AGENT, "MEASURED_API_KEY");
        assert_good(&without);
        let requests = world.gateway.audit.records();
        let requests = requests.iter().filter(|it| it.is("request")).count();
        assert!(requests >= through.len(), "it went somewhere else");
        compare(&without, &through, &SERVER_MEANT);
        world.ends_well();
    });
}

#[test]
fn a_client_behaves_the_same_behind_the_gateway() {
    sandboxed_for(super::LIMIT, || {
        let world = world();
        let dir = world.lab.dir.display().to_string();
        let at = format!("{}:{PORT}", OTHER.v4());
        let run = |from: Ns, key: &str| {
            outcomes("", |many, cases| {
                let arguments = ["fuzz-client", &at, &dir, cases];
                let fuzzer = script(INTERNET, &suite("python/bin/python"), &arguments);
                let mut fuzzer = start(fuzzer, &world, "fuzzer");
                let arguments = ["client", &format!("{}:{PORT}", OTHER.name), &dir, key, many];
                super::output(&mut script(from, &python(), &arguments));
                fuzzer.wait().expect("it ends");
                std::fs::read_to_string(world.lab.dir.join("fuzzer")).expect("its output")
            })
        };
        let without = run(INTERNET, OPENAI_SECRET);
        let through = run(AGENT, "MEASURED_API_KEY");
        assert_good(&without);
        compare(&without, &through, &CLIENT_MEANT);
        world.ends_well();
    });
}
