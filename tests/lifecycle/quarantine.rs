//! A group that is quarantined gets nothing through, from the order until its release.

use std::{
    io::{Read as _, Write as _},
    thread,
    time::{Duration, Instant},
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use lab::{
    audit::Record,
    client::{Response, Tls},
    gateway::{self, Gateway, OPS_SECRET},
    net::{AGENT, AGENT2, Host, OPENAI, PYPI},
    sandboxed, wait,
};

use crate::{
    dns::client::{anywhere, ask_tcp, ask_udp, code, query},
    lifecycle::control::{status, tell},
    world::{TICKET, World, first_event, get, get_path},
};

const OPS_TICKET: &str = "Authorization: Bearer OPS_OPENAI_KEY";

/// Time for which a group may go on after the order, including the start of the command: a few
/// milliseconds, and more on a busy machine. Undisturbed, each of these streams lasts 50 s.
const AT_ONCE: Duration = Duration::from_secs(2);

fn stream(tls: Tls, ticket: &str) -> Tls {
    first_event(tls, &get_path("/sse?n=1000&ms=50", &[ticket]))
}

fn operations(world: &World) -> Tls {
    world.h1_from(AGENT2, OPENAI.port(443), OPENAI.name).expect("the other group goes on")
}

fn ask_operations(world: &World) -> Response {
    operations(world).ask(get(&[OPS_TICKET])).expect("an answer")
}

/// Reads until the end, and returns when it came.
fn end_of(mut tls: Tls) -> Instant {
    let rest = tls.read_to_end();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "a cut stream is not passed off as whole");
    Instant::now()
}

/// Checks that the group's new connections are refused, in both families and whatever they are for.
#[track_caller]
fn assert_cut_off(world: &World, host: Host) {
    let reached = || (world.origin.log().connections().len(), world.origin.log().requests().len());
    let before = reached();
    for to in [host.port(443), host.port6(443)] {
        world.h1_from(AGENT, to, host.name).map(drop).expect_err("quarantined");
    }
    thread::sleep(wait::QUIET);
    assert_eq!(reached(), before, "nothing arrives at an origin");
}

#[test]
fn a_quarantine_cuts_off_its_group_alone() {
    sandboxed(|| {
        let world = World::usual();
        let events = stream(world.h1(OPENAI).expect("intercepted"), TICKET);
        let mut other = stream(operations(&world), OPS_TICKET);
        let mut h2 = world.h2(OPENAI).expect("intercepted");
        let spliced = world.h1(PYPI).expect("spliced");
        let mut early = AGENT.connect(OPENAI.port(443)).expect("accepted");
        early.write_all(&[0x16]).expect("sent");
        let request = http::Request::get("https://api.openai.example/sse?n=1000&ms=50")
            .header("authorization", "Bearer OPENAI_API_KEY")
            .body(())
            .expect("a request");
        thread::scope(|scope| {
            let asked = world.origin.log().requests().len();
            let over_h2 = scope.spawn(move || {
                h2.ask(request, "").map(drop).expect_err("cut");
                Instant::now()
            });
            wait::expect("the third stream", || world.origin.log().requests().len() > asked);
            let begun = Instant::now();
            tell(&world, &["quarantine", "research"], 0);
            let ends = [over_h2.join().expect("no panic"), end_of(events), end_of(spliced)];
            let cut = ends.map(|end| end.saturating_duration_since(begun));
            println!("cut after {cut:?}");
            assert!(cut.iter().all(|time| *time < AT_ONCE), "{cut:?}");
        });
        // A reset, or an end: the agent gets no byte.
        let mut byte = [0];
        assert!(!matches!(early.read(&mut byte), Ok(1)));
        let of_group =
            |record: &Record| record["reason"] == "quarantined" && record["group"] == "research";
        wait::expect("each of the four says why", || {
            world.connections().iter().filter(|record| of_group(record)).count() == 4
        });
        let before = world.connections().len();
        assert_cut_off(&world, OPENAI);
        assert_cut_off(&world, PYPI);
        wait::expect("and so does each that is refused", || {
            let records = world.connections();
            records.len() == before + 4 && records[before..].iter().all(of_group)
        });

        assert!(!other.read_some(4096).expect("more events").is_empty(), "the other group lives");
        assert_eq!(ask_operations(&world).status, 200);
        let authorization = format!("Bearer {OPS_SECRET}");
        let requests = world.origin.log().requests();
        let last = requests.last().expect("a request");
        assert_eq!(last.header("authorization"), [authorization]);

        let act = world.gateway.audit.wait_for(|record| record.is("quarantine"));
        assert_eq!((&act["group"], &act["uid"]), (&"research".into(), &0.into()), "{act}");
        let status = status(&world);
        assert_eq!(status["groups"][0]["quarantined"], true, "{status}");
        assert_eq!(status["groups"][0]["connections"], 0, "{status}");
        assert_eq!(status["groups"][1]["quarantined"], false, "{status}");
        let available = status["secrets"]["available"].as_array().expect("a list");
        assert_eq!(available.len(), 1, "the group's secrets are dropped: {status}");
        assert_eq!(available[0]["secret"], "file:ops", "{status}");
        world.assert_secrets_untold();
    });
}

#[test]
fn a_quarantined_group_gets_no_dns() {
    sandboxed(|| {
        let world = World::usual();
        tell(&world, &["quarantine", "research"], 0);
        let question = query(OPENAI.name, RecordType::A);
        for ask in [ask_udp, ask_tcp] {
            let answer = ask(AGENT, anywhere(), &question).expect("a refusal");
            assert_eq!((code(&answer), answer.answers.len()), (ResponseCode::Refused, 0));
            let answer = ask(AGENT2, anywhere(), &question).expect("an answer");
            assert_eq!(answer.answers.len(), 1, "the other group has its own");
        }
        let record = world.gateway.audit.wait_for(|record| record.is("dns"));
        assert_eq!(record["reason"], "quarantined", "{record}");
        assert_eq!(record["group"], "research", "{record}");
        tell(&world, &["release", "research"], 0);
        let answer = ask_udp(AGENT, anywhere(), &question).expect("an answer");
        assert_eq!(answer.answers.len(), 1);
    });
}

#[test]
fn a_quarantine_outlives_crash_and_reload_until_its_release() {
    sandboxed(|| {
        let mut world = World::usual();
        let config = world.lab.dir.join("cloakroom.toml");
        tell(&world, &["quarantine", "research"], 0);
        world.gateway.kill();
        world.gateway = Gateway::run(&world.lab, &config).expect("it starts again");
        assert_cut_off(&world, OPENAI);
        assert_eq!(ask_operations(&world).status, 200);

        tell(&world, &["reload"], 0);
        assert_cut_off(&world, OPENAI);

        // A group that was removed from the policy and added again is the same group.
        let usual = gateway::usual_config();
        let renamed = usual.clone().rename_group("research", "renamed");
        gateway::install(&world.lab, &renamed);
        tell(&world, &["reload"], 0);
        assert!(status(&world)["groups"].to_string().contains("research"), "it is still told of");
        gateway::install(&world.lab, &usual);
        tell(&world, &["reload"], 0);
        assert_cut_off(&world, OPENAI);

        let said = tell(&world, &["release", "research"], 0);
        assert!(said.contains("released"), "{said}");
        world.gateway.audit.wait_for(|record| record.is("release"));
        wait::expect("the secret is there again", || world.ask(&get(&[TICKET])).status == 200);
        world.gateway.kill();
        world.gateway = Gateway::run(&world.lab, &config).expect("it starts again");
        assert_eq!(world.ask(&get(&[TICKET])).status, 200, "a release lasts, too");
    });
}

#[test]
fn marks_that_cannot_be_trusted_are_no_start() {
    sandboxed(|| {
        let mut world = World::usual();
        world.gateway.kill();
        let marks = world.lab.dir.join("state/quarantine");
        let config = world.lab.dir.join("cloakroom.toml");
        let start = || Gateway::run(&world.lab, &config).map(drop).expect_err("no start");
        std::fs::write(marks.join("Research?"), "").expect("written");
        let failed = start();
        assert!(failed.stderr.contains("cannot tell which groups"), "{}", failed.stderr);
        std::fs::remove_dir_all(&marks).expect("removed");
        std::fs::write(&marks, "").expect("written");
        assert!(start().code().is_some_and(|code| code != 0));
        AGENT.connect(OPENAI.port(443)).map(drop).expect_err("the guard is closed");
    });
}

#[test]
fn a_typing_error_is_no_quarantine_and_no_release() {
    sandboxed(|| {
        let world = World::usual();
        let said = tell(&world, &["quarantine", "reserach"], 64);
        assert!(said.contains("no group reserach") && said.contains("research"), "{said}");
        tell(&world, &["quarantine", "../research"], 64);
        tell(&world, &["release", "reserach"], 64);
        let said = tell(&world, &["release", "research"], 0);
        assert!(said.contains("was not quarantined"), "{said}");
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        let acts = ["quarantine", "release"];
        let records = world.gateway.audit.records();
        assert!(!records.iter().any(|it| acts.iter().any(|act| it.is(act))));
    });
}

/// The command works under the very load for which it is needed.
#[test]
fn a_group_that_floods_is_cut_off_all_the_same() {
    sandboxed(|| {
        let world = World::usual();
        let to = OPENAI.port(443);
        let hello = world.hello(OPENAI.name);
        thread::scope(|scope| {
            let flood = || {
                while let Ok(mut tls) = Tls::open(AGENT, to, &hello) {
                    if tls.ask(get(&[TICKET])).is_err() {
                        break;
                    }
                }
            };
            let flooding: Vec<_> = (0..8).map(|_| scope.spawn(flood)).collect();
            wait::expect("a flood", || world.origin.log().requests().len() >= 20);
            let begun = Instant::now();
            tell(&world, &["quarantine", "research"], 0);
            for agent in flooding {
                agent.join().expect("no panic");
            }
            println!("cut after {:?}", begun.elapsed());
            assert!(begun.elapsed() < 2 * AT_ONCE, "{:?}", begun.elapsed());
        });
        assert_cut_off(&world, OPENAI);
    });
}
