//! Packet rules that another program changed are restored at once, and the gateway is closed until
//! its guard is back. In all of these tests the daemon checks the rules only once a minute, so an
//! earlier repair shows that the kernel reported the change.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant, SystemTime},
};

use lab::{
    audit::Record,
    datagrams::{SERVICE, Sending, Target},
    gateway,
    net::{AGENT, AGENT2, GATEWAY, GATEWAY_V4, GATEWAY_V6, INTERNET, OPENAI, OTHER, sysctl},
    sandboxed, wait,
};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    lifecycle::control::{causes, status, tell},
    world::{TICKET, World, get},
};

#[test]
fn flushed_rules_return_at_once_behind_the_guard() {
    sandboxed(|| {
        let world = World::usual();
        routes_nothing();
        let mut kept = world.h1(OPENAI).expect("served");
        let service = Target::of(GATEWAY, [GATEWAY_V4.into(), GATEWAY_V6.into()]);
        let origin = Target::of(INTERNET, [OTHER.v4().into(), OTHER.v6().into()]);
        let sending = Sending::to(&[&service, &origin]);
        let mut open = Vec::new();
        for turn in 1..=FLUSHES {
            thread::sleep(Duration::from_millis(200));
            assert!(service.reached().is_empty(), "before the rules were flushed");
            let closes = records(&world, "close").len();
            let begun = SystemTime::now();
            GATEWAY.shell("nft flush ruleset");
            let flushed = Instant::now();
            wait::expect("it is closed", || records(&world, "close").len() > closes);
            wait::expect("its rules are back", || GATEWAY.shell("nft list tables").contains(OURS));
            closed(&world);
            assert_eq!(kept.ask(get(&[TICKET])).expect("it goes on").status, 200);
            thread::sleep(Duration::from_millis(300));
            let reached = service.take();
            let late = reached.iter().filter(|at| **at > flushed + GENEROUS).count();
            assert_eq!(late, 0, "packets reached a service of the gateway's for too long");
            let (first, last) = (reached.iter().min(), reached.iter().max());
            open.extend(first.zip(last).map(|(first, last)| *last - *first));
            assert!(back(&world, begun) < GENEROUS, "by the record");

            gateway::guard();
            wait::expect("it is open", || records(&world, "open").len() == turn);
            assert_eq!(status(&world)["health"]["state"], "healthy");
            assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        }
        assert!(sending.ended() > 500, "the agent sent nothing");
        assert!(origin.reached().is_empty(), "packets reached the origin");
        // On a machine that does nothing else that holds for all of them; here it must hold for
        // most.
        eprintln!("a service of the gateway's was reached for {open:?}");
        open.sort();
        let median = open.get(open.len() / 2).expect("the rules were gone for a moment");
        assert!(*median < Duration::from_millis(100), "{open:?}");
        assert_eq!(records(&world, "repair").len(), FLUSHES);
        world.assert_secrets_untold();
    });
}

#[test]
fn changes_in_the_gateways_tables_are_undone_and_said() {
    sandboxed(|| {
        let world = World::usual();
        // Elements of meters come and go, and a chain that was created again stands at another
        // place.
        let listing = || {
            let rules = GATEWAY.shell("nft --stateless --terse list table inet cloakroom");
            let mut lines: Vec<_> = rules.lines().map(str::to_owned).collect();
            lines.sort();
            (lines, GATEWAY.shell("nft list set inet cloakroom ports"))
        };
        let before = listing();
        let drop_the_closing_rule = "nft delete rule inet cloakroom prerouting handle \
             $(nft -a list chain inet cloakroom prerouting | sed -n 's/.* handle //p' | tail -n 1)";
        let changes = [
            drop_the_closing_rule,
            "nft insert rule inet cloakroom prerouting accept",
            "nft delete element inet cloakroom ports '{ 443 }'",
            "nft flush chain inet cloakroom forward; nft delete chain inet cloakroom forward",
            "nft add chain inet cloakroom mine",
            "nft delete table inet cloakroom",
        ];
        for (turn, change) in changes.iter().enumerate() {
            GATEWAY.shell(change);
            wait::expect(change, || records(&world, "repair").len() > turn);
            assert_eq!(listing(), before, "after {change}");
            assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        }
        let said = world.gateway.stderr();
        assert!(said.contains("the packet rules are installed again"), "{said}");
        assert!(records(&world, "close").is_empty(), "the guard was there all the while");
        // The daemon's own changes are no reason to repair.
        let repairs = records(&world, "repair").len();
        for _ in 0..3 {
            tell(&world, &["reload"], 0);
        }
        thread::sleep(Duration::from_millis(500));
        assert_eq!(records(&world, "repair").len(), repairs);
    });
}

#[test]
fn a_storm_of_flushes_delays_nobody_beyond_its_end() {
    sandboxed(|| {
        let mut world = World::usual();
        routes_nothing();
        let mut kept = world.h1(OPENAI).expect("served");
        let storm = thread::spawn(|| {
            GATEWAY.shell("for turn in $(seq 150); do nft flush ruleset; done");
        });
        let mut asked = 0;
        while !storm.is_finished() {
            let answer = kept.ask(get(&[TICKET])).expect("it goes on");
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(status(&world)["phase"], "run");
            asked += 1;
        }
        storm.join().expect("it blew over");
        assert!(asked > 2, "the storm was over at once");
        assert!(world.gateway.is_alive());
        gateway::guard();
        wait::expect("it is open again", || status(&world)["health"]["state"] == "healthy");
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        let said = records(&world, "repair").len();
        assert!((1..=150).contains(&said), "{said} records of 150 flushes");
    });
}

/// Checks that new connections are reset, from every agent to everywhere, and that the reason is
/// reported.
#[track_caller]
fn closed(world: &World) {
    let why = "the guard table inet cloakroom_base is not loaded";
    assert_eq!(status(world)["health"]["state"], "closed", "by its status");
    assert!(causes(world, "packets_unsure").iter().any(|it| it.contains(why)), "by its status");
    assert!(world.gateway.stderr().contains(&format!("closed to new connections: {why}")));
    let record = records(world, "close").pop().expect("a record");
    assert!(record["cause"].as_str().is_some_and(|it| it.contains(why)), "{record}");
    let before = world.origin.log().connections().len();
    for (agent, to) in [
        (AGENT, OPENAI.port(443)),
        (AGENT2, OPENAI.port6(443)),
        (AGENT, OTHER.port(80)),
        (AGENT, SocketAddr::from((GATEWAY_V4, SERVICE))),
        (AGENT2, SocketAddr::from((GATEWAY_V6, SERVICE))),
    ] {
        agent.connect(to).expect_err("closed");
    }
    assert_eq!(world.origin.log().connections().len(), before);
}

fn records(world: &World, kind: &str) -> Vec<Record> {
    world.gateway.audit.of_kind(kind)
}

/// Returns how long after `begun` the rules were in force again, by the record of the repair.
fn back(world: &World, begun: SystemTime) -> Duration {
    let record = records(world, "repair").pop().expect("a record");
    let time = record["time"].as_str().expect("a time");
    let back: SystemTime = OffsetDateTime::parse(time, &Rfc3339).expect("a time").into();
    back.duration_since(begun).expect("after the flush")
}

/// Turns forwarding off, as it is on every gateway except the lab's: without any rule, nothing is
/// routed either.
fn routes_nothing() {
    GATEWAY.enter(|| {
        sysctl("ipv4/ip_forward", "0");
        sysctl("ipv6/conf/all/forwarding", "0");
    });
}

const OURS: &str = "table inet cloakroom\n";
const FLUSHES: usize = 5;
/// Longest time on a machine with much other work.
const GENEROUS: Duration = Duration::from_secs(2);
