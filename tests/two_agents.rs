//! One agent floods; the other does not notice, in its time or in what it may have on its way.
//!
//! The second agent takes its samples by turns while the first is quiet and while it floods, so
//! that both are measured on the same machine in the same minute. A sample is what an agent does
//! who starts from nothing: a DNS query, a connection, a handshake, a request and its answer. The
//! flood has a pace, many times what its agent is allowed, and the lowest priority: what is
//! measured is what it takes from the gateway, not what it takes from the machine.

mod bodies;
mod flood;
mod most;
mod other;

use std::{fs, sync::atomic::Ordering::Relaxed, thread, time::Duration};

use lab::{
    gateway::{self, Gateway, usual_config},
    net::AGENT,
    sandbox::sandboxed_for,
    sandboxed, wait,
};
use serde_json::Value;

use self::{
    flood::{Flood, Kind},
    other::{Other, Seen},
};
use crate::world::World;

const KINDS: [Kind; 4] = [Kind::Connections, Kind::SlowHeads, Kind::Streams, Kind::Questions];

#[test]
fn the_flood_of_one_agent_is_not_noticed_by_another() {
    sandboxed_for(Duration::from_secs(400), || {
        // Fewer than by default, so that slow heads come to the end of them on a busy machine too.
        let world = World::with(&(usual_config() + "\n[limits]\nagent_connections = 12\n"));
        let other = Other::new(&world);
        // Certificates are made, names are known.
        (0..20).for_each(|number| drop(other.sample(number % 2 == 1)));
        for kind in KINDS {
            let flood = Flood::new(&world, kind);
            let (quiet, flooded) = thread::scope(|scope| {
                scope.spawn(|| AGENT.enter(|| flood.run()));
                let mut seen = (Seen::default(), Seen::default());
                for round in 0..MOST_ROUNDS {
                    if round >= ROUNDS && flood.is_one() && !noticed(&seen.0, &seen.1) {
                        break;
                    }
                    thread::sleep(SETTLE);
                    other.watch(WINDOW, &mut seen.0);
                    flood.on.store(true, Relaxed);
                    thread::sleep(SETTLE);
                    other.watch(WINDOW, &mut seen.1);
                    flood.on.store(false, Relaxed);
                }
                flood.over.store(true, Relaxed);
                seen
            });
            let (tried, refused) = (flood.tried(), flood.refused());
            println!(
                "{kind:?}: {tried} tried, {refused:?} seen to fail; quiet {quiet}, flooded \
                 {flooded}"
            );
            assert!(!noticed(&quiet, &flooded), "{kind:?}: quiet {quiet}, flooded {flooded}");
            assert!(flooded.success() >= 0.995, "{kind:?}: {flooded}");
            assert!(quiet.count().min(flooded.count()) > 100, "too few samples");
            assert!(flood.is_one(), "{kind:?}: no flood, or no limit was reached");
        }
        told(&world.gateway);
    });
}

/// Whether one in a hundred samples took three times as long under the flood. There is no floor.
fn noticed(quiet: &Seen, flooded: &Seen) -> bool {
    flooded.p99() > quiet.p99() * 3
}

/// What did not get a record of its own is in a sum, and the sums are the agent's.
#[track_caller]
fn told(gateway: &Gateway) {
    for agent in ["192.0.2.10", "2001:db8:a::/64"] {
        let of_agent = |it: &Value| it["record"] == "connections" && it["agent"] == agent;
        let sum = gateway.audit.wait_for(of_agent);
        assert_eq!([&sum["reason"], &sum["group"]], ["rate_limit", "research"], "{sum}");
        let questions = gateway.audit.wait_for(|it| {
            it["record"] == "dns_summary" && it["agent"] == agent && it["limited"] != 0
        });
        assert_eq!(questions["reason"], "dns_rate", "{questions}");
    }
    for record in gateway.audit.records().iter().filter(|it| it["group"] == "operations") {
        let refused = record["decision"] == "refuse";
        assert!(!refused, "the other agent was refused: {record}");
    }
}

#[test]
fn without_the_limits_the_same_flood_reaches_further() {
    let raised = "\n[limits]\nconnections = 20000\nagent_connections = 10000\n\
        agent_new_connections = 1000000\ndns_rate = 100000\n";
    sandboxed(|| {
        let mut world = World::usual();
        let limited = [Kind::Connections, Kind::Questions].map(|kind| reached(&world, kind));
        world.gateway.terminate(Duration::from_secs(60));
        fs::remove_file(world.lab.dir.join("audit.jsonl")).expect("it was written");
        let config = gateway::install(&world.lab, &(usual_config() + raised));
        world.gateway = Gateway::run(&world.lab, &config).expect("it starts");
        let unlimited = [Kind::Connections, Kind::Questions].map(|kind| reached(&world, kind));
        println!("connections and questions: {limited:?} with limits, {unlimited:?} without");
        for (limited, unlimited) in limited.into_iter().zip(unlimited) {
            assert!(limited > 0 && unlimited > 2 * limited, "{limited} and {unlimited}");
        }
    });
}

/// How much of three seconds of a flood the gateway looked at.
fn reached(world: &World, kind: Kind) -> u64 {
    let flood = Flood::new(world, kind);
    flood.on.store(true, Relaxed);
    thread::scope(|scope| {
        scope.spawn(|| AGENT.enter(|| flood.run()));
        thread::sleep(Duration::from_secs(3));
        flood.over.store(true, Relaxed);
    });
    let sum = |name: &str, count: fn(&Value) -> u64| -> u64 {
        let records = world.gateway.audit.records();
        records.iter().filter(|it| it["record"] == name).map(count).sum()
    };
    let answered = |it: &Value| {
        let [answered, refused] = ["answered", "refused"].map(|key| it[key].as_u64());
        answered.unwrap_or(0) + refused.unwrap_or(0)
    };
    match kind {
        Kind::Questions => {
            let told = || sum("dns_summary", answered) > 0;
            wait::expect("a sum of questions", told);
            // One that was under way when the flood ended may have told a part of it.
            thread::sleep(Duration::from_secs(11));
            sum("dns_summary", answered)
        }
        _ => {
            thread::sleep(Duration::from_secs(1));
            sum("connection", |_| 1)
        }
    }
}

/// Turns of quiet and flood for each kind: short ones, so that what else the machine does falls on
/// both alike.
const ROUNDS: usize = 5;
/// The most of them: they go on where a busy machine keeps the flood from being one, or was busier
/// in a few windows of the one sort than in the other. All that was seen counts.
const MOST_ROUNDS: usize = 15;
/// How long each of them is measured.
const WINDOW: Duration = Duration::from_millis(1500);
/// How long each of them goes on before that.
const SETTLE: Duration = Duration::from_millis(500);
