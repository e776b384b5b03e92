//! One agent floods. The other notices nothing, neither in its times nor in what it may have on its
//! way, and the daemon's memory stays within its bound.
//!
//! The second agent takes its samples by turns while the first is quiet and while it floods, so
//! that both are measured on the same machine in the same minute. A sample is the work of an agent
//! that starts from nothing: a DNS query, a connection, a handshake, a request and its answer. The
//! flood has a pace, many times the rate that its agent is allowed, and a low priority: the test
//! measures what the flood takes from the gateway, not what it takes from the machine. The limits
//! are the defaults, and a flood that holds connections counts only once the gateway itself says
//! that it holds as many as one agent may have.
//!
//! The length of the measurement does not depend on its result: turns are added only where the
//! flood was not yet one, or the samples too few. A busy machine may affect one sort of turn more
//! than the other, which is not the gateway's doing. So a measurement in which the flood seems to
//! be noticed is repeated as a whole, at most [`MEASUREMENTS`] times; a flood that is noticed in
//! all of them fails. An agent that was not served, or memory beyond the bound, fails the first
//! time.

mod bodies;
mod flood;
mod most;
mod other;

use std::{
    collections::HashSet,
    fs,
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering::Relaxed,
    thread,
    time::Duration,
};

use lab::{
    World,
    audit::Record,
    gateway::{self, Gateway, usual_config},
    net::{AGENT, AGENT_V4, AGENT_V6},
    sandbox::sandboxed_for,
    sandboxed, wait,
};

use self::{
    flood::{Flood, Kind},
    most::memory_mib,
    other::{Other, Place, Seen},
};

#[test]
fn the_flood_of_one_agent_is_not_noticed_by_another() {
    sandboxed_for(LIMIT, || {
        let world = not_noticed(
            Place::AnotherInterface,
            &[Kind::Connections, Kind::SlowHeads, Kind::Streams, Kind::Questions],
        );
        told(&world.gateway);
    });
}

#[test]
fn an_agents_flood_is_unnoticed_by_its_neighbour() {
    sandboxed_for(LIMIT, || {
        let kinds = [Kind::Connections, Kind::SlowHeads, Kind::Questions];
        drop(not_noticed(Place::SameGroup, &kinds));
    });
}

#[test]
fn an_agents_http_2_flood_is_unnoticed_by_its_neighbour() {
    sandboxed_for(LIMIT, || {
        drop(not_noticed(Place::SameGroup, &[Kind::Requests, Kind::Streams, Kind::Frames]));
    });
}

#[test]
fn an_agents_flood_is_unnoticed_by_another_group() {
    sandboxed_for(LIMIT, || {
        drop(not_noticed(Place::AnotherGroup, &[Kind::Connections, Kind::Questions]));
    });
}

/// Floods in each of these ways, with an agent in this place that must not notice it.
fn not_noticed(place: Place, kinds: &[Kind]) -> World {
    let world = World::prepared(&place.config(), |_, _| place.prepare());
    let other = Other::new(&world, place);
    // This makes the certificates and resolves the names.
    (0..20).for_each(|number| drop(other.sample(number % 2 == 1)));
    for kind in kinds {
        let unnoticed = (0..MEASUREMENTS).any(|_| !is_noticed(&world, &other, *kind));
        assert!(unnoticed, "{kind:?}: noticed in each of {MEASUREMENTS} measurements");
    }
    let of_other = |it: &&Record| agent(it).is_some_and(|ip| other.addresses().contains(&ip));
    for record in world.gateway.audit.records().iter().filter(of_other) {
        assert_ne!(record["decision"], "refuse", "the other agent was refused: {record}");
    }
    world
}

/// Makes one whole measurement, and returns whether one in a hundred samples took three times as
/// long under the flood. There is no lower bound on the time.
fn is_noticed(world: &World, other: &Other, kind: Kind) -> bool {
    let flood = Flood::new(world, kind);
    let (quiet, flooded) = measured(world, other, &flood);
    let memory = memory_mib(&world.gateway, "VmHWM");
    let (tried, refused, held) = (flood.tried(), flood.refused(), flood.most_held());
    println!(
        "{kind:?}: {tried} tried, {refused:?} seen to fail, {held} held; {memory} MiB; quiet \
         {quiet}, flooded {flooded}"
    );
    assert!(flood.is_one(), "{kind:?}: no flood, or no limit was reached");
    assert!(quiet.count().min(flooded.count()) >= SAMPLES, "{kind:?}: too few samples");
    assert!(flooded.success() >= 0.995, "{kind:?}: {flooded}");
    assert!(memory < 512, "{kind:?}: {memory} MiB");
    wait::expect("to the end of a limit", || is_limited(&world.gateway, kind));
    flooded.p99() > quiet.p99() * 3
}

/// Returns the other agent's samples while it was quiet, and under the flood.
fn measured(world: &World, other: &Other, flood: &Flood) -> (Seen, Seen) {
    thread::scope(|scope| {
        scope.spawn(|| AGENT.enter(|| flood.run()));
        let (mut quiet, mut flooded) = (Seen::default(), Seen::default());
        for round in 0..MOST_ROUNDS {
            let enough = quiet.count().min(flooded.count()) >= SAMPLES;
            if round >= ROUNDS && enough && flood.is_one() && is_limited(&world.gateway, flood.kind)
            {
                break;
            }
            // The flood's connections are closed before the quiet turn.
            wait::until(wait::SOON, || (flood::held(world) == 0).then_some(()));
            thread::sleep(SETTLE);
            other.watch(WINDOW, &mut quiet);
            flood.on.store(true, Relaxed);
            other.watch(if flood.kind.fills() { FILLING } else { WINDOW }, &mut flooded);
            flood.look(world);
            flood.on.store(false, Relaxed);
        }
        flood.over.store(true, Relaxed);
        (quiet, flooded)
    })
}

/// Returns whether the agent reached its limit over IPv4 and over IPv6, if the audit has a record
/// of each refusal. A request belongs to an agent by the record of its connection.
fn is_limited(gateway: &Gateway, kind: Kind) -> bool {
    let Some((record, reason)) = kind.refusal() else { return true };
    let records = gateway.audit.records();
    let of_limit = records.iter().filter(|it| it.is(record) && it["reason"] == reason);
    let refused: HashSet<&str> = of_limit.filter_map(|it| it["flow"].as_str()).collect();
    [IpAddr::from(AGENT_V4), AGENT_V6.into()].into_iter().all(|own| {
        let its = records.iter().filter(|it| agent(it) == Some(own));
        its.filter_map(|it| it["flow"].as_str()).any(|flow| refused.contains(flow))
    })
}

/// Returns the agent of a record, if it is one of a connection.
fn agent(record: &Record) -> Option<IpAddr> {
    let agent: SocketAddr = record["agent"].as_str()?.parse().ok()?;
    Some(agent.ip())
}

/// Checks that refusals without a record of their own are in a sum, and that the sums name the
/// agent.
#[track_caller]
fn told(gateway: &Gateway) {
    for agent in ["192.0.2.10", "2001:db8:a::/64"] {
        let of_agent = |it: &Record| it.is("connections") && it["agent"] == agent;
        let sum = gateway.audit.wait_for(of_agent);
        assert_eq!([&sum["reason"], &sum["group"]], ["rate_limit", "research"], "{sum}");
        let questions = gateway
            .audit
            .wait_for(|it| it.is("dns_summary") && it["agent"] == agent && it["limited"] != 0);
        assert_eq!(questions["reason"], "dns_rate", "{questions}");
    }
}

#[test]
fn without_the_limits_the_same_flood_reaches_further() {
    // The limits are so low that even a busy machine makes a flood of twice as much.
    let lowered = usual_config().limit("agent_new_connections", 50).limit("dns_rate", 50);
    let raised = usual_config()
        .limit("connections", 20_000)
        .limit("agent_connections", 10_000)
        .limit("agent_new_connections", 1_000_000)
        .limit("dns_rate", 100_000);
    sandboxed(move || {
        let mut world = World::with(&lowered);
        let limited = [Kind::Connections, Kind::Questions].map(|kind| reached(&world, kind));
        world.gateway.terminate(Duration::from_secs(60));
        world.gateway.assert_secrets_untold();
        fs::remove_file(world.lab.dir.join("audit.jsonl")).expect("it was written");
        gateway::install(&world.lab, &raised);
        world.restart();
        let unlimited = [Kind::Connections, Kind::Questions].map(|kind| reached(&world, kind));
        println!("connections and questions: {limited:?} with limits, {unlimited:?} without");
        for (limited, unlimited) in limited.into_iter().zip(unlimited) {
            assert!(limited > 0 && unlimited > 2 * limited, "{limited} and {unlimited}");
        }
    });
}

/// Returns how much of three seconds of a flood the gateway processed.
fn reached(world: &World, kind: Kind) -> u64 {
    let flood = Flood::new(world, kind);
    flood.on.store(true, Relaxed);
    thread::scope(|scope| {
        scope.spawn(|| AGENT.enter(|| flood.run()));
        thread::sleep(Duration::from_secs(3));
        flood.over.store(true, Relaxed);
    });
    let sum = |name: &str, count: fn(&Record) -> u64| -> u64 {
        let records = world.gateway.audit.records();
        records.iter().filter(|it| it.is(name)).map(count).sum()
    };
    let answered = |it: &Record| {
        let [answered, refused] = ["answered", "refused"].map(|key| it[key].as_u64());
        answered.unwrap_or(0) + refused.unwrap_or(0)
    };
    match kind {
        Kind::Questions => {
            let told = || sum("dns_summary", answered) > 0;
            wait::expect("a sum of questions", told);
            // A sum that was under way when the flood ended may hold only a part of it. Where that
            // one held all, no other comes.
            thread::sleep(Duration::from_secs(1));
            let sums = || world.gateway.audit.of_kind("dns_summary").len();
            let before = sums();
            wait::until(Duration::from_secs(10), || (sums() > before).then_some(()));
            sum("dns_summary", answered)
        }
        _ => {
            thread::sleep(Duration::from_secs(1));
            sum("connection", |_| 1)
        }
    }
}

/// Turns of quiet and flood for each kind. They are short, so that other work of the machine
/// affects both alike.
const ROUNDS: usize = 5;
/// Most turns, where a busy machine weakens the flood or allows few samples. All samples count.
const MOST_ROUNDS: usize = 15;
/// Fewest samples of each sort, so that the slowest hundredth is not a single one.
const SAMPLES: usize = 400;
/// Most measurements of one kind.
const MEASUREMENTS: usize = 2;
/// Length of the measurement in each turn.
const WINDOW: Duration = Duration::from_secs(2);
/// The same, where the flood takes all that its agent may have of something: it has all connections
/// after three seconds, by its allowed rate.
const FILLING: Duration = Duration::from_secs(5);
/// Quiet time before that is measured.
const SETTLE: Duration = Duration::from_millis(500);
/// Longest time of one test, if each measurement is made twice with all its turns.
const LIMIT: Duration = Duration::from_secs(900);
