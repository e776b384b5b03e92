//! The most that agents can make the gateway hold: bodies that nobody reads at the other end, in
//! either direction, on HTTP/2 connections whose windows are full.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use bytes::Bytes;
use lab::{
    gateway::Gateway,
    load::{Ask, Load},
    net::{AGENT, AGENT_V6, AGENT2, Ns},
    sandbox::sandboxed_for,
};

use super::{
    bodies::{config, h2},
    other::{Other, Place},
};
use crate::world::World;

#[test]
fn all_agents_take_under_half_a_gibibyte_by_default() {
    sandboxed_for(Duration::from_secs(300), || {
        let world = World::with(&config());
        let other = Other::new(&world, Place::AnotherInterface);
        other.sample(false).expect("served");
        let before = memory_mib(&world.gateway, "VmRSS");
        let first = take_all(&world, AGENT);
        for ipv6 in [false, true] {
            other.sample(ipv6).expect("the other group is served");
        }
        let of_one = memory_mib(&world.gateway, "VmHWM");
        let second = take_all(&world, AGENT2);
        let most = memory_mib(&world.gateway, "VmHWM");
        println!("{before} MiB, {of_one} MiB with one group's load, {most} MiB with two");
        drop((first, second));
        assert!(most < 512, "{most} MiB");
    });
}

/// Takes what as many agents may have as a group's prefix has addresses, IPv4 and IPv6.
fn take_all(world: &World, ns: Ns) -> Load {
    let (lowest, own_v6, placeholder) = match ns {
        AGENT => (64, AGENT_V6, "OPENAI_API_KEY"),
        _ => (192, AGENT2_V6, "OPS_OPENAI_KEY"),
    };
    // Root may have every address of the prefix.
    ns.shell(&format!("ip route add local 192.0.2.{lowest}/26 dev lo"));
    let v4 = (0..AGENTS).map(|number| IpAddr::from(Ipv4Addr::new(192, 0, 2, lowest + number)));
    let body = Bytes::from(vec![b'x'; 2 << 20]);
    let asks: Vec<Ask> = v4
        .chain([own_v6.into()])
        .flat_map(|from| {
            let ask = |path, body| Ask { placeholder, ..Ask::of(from, path, body) };
            let back = Ask { streams: 100, ..ask("/big?bytes=4000000", Bytes::new()) };
            let out = Ask { streams: 4, ..ask("/tardy?ms=600000", body.clone()) };
            [vec![back; BACK], vec![out; OUT]].concat()
        })
        .collect();
    let begun = Instant::now();
    let load = Load::take(ns, &h2(world), &asks, SERVED).expect("a load");
    println!("{} of {} connections in {:?}", load.held(), asks.len(), begun.elapsed());
    assert!(load.held() > asks.len() / 2, "no load: {:?}", load.failures);
    load
}

/// Returns the kernel's figures of the gateway's memory: `VmRSS` for now, `VmHWM` for the most
/// ever.
pub(super) fn memory_mib(gateway: &Gateway, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(what)).unwrap_or_default();
    let kib: u64 = line.split_whitespace().nth(1).and_then(|it| it.parse().ok()).expect("a number");
    kib / 1024
}

const AGENT2_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xb, 0, 0, 0, 0, 0x10);
/// IPv4 addresses of a prefix that are used.
const AGENTS: u8 = 16;
/// Connections of each agent whose answers are not read, with as many streams as there may be:
/// these answers wait for the agent.
const BACK: usize = 3;
/// Connections of each agent whose requests are not read by the API: together with the others, all
/// that have large windows.
const OUT: usize = 13;
/// Time for which each connection is served before it stands still.
const SERVED: Duration = Duration::from_secs(3);
