//! The kernel knows the neighbours of all interfaces in one table, and an agent that solicits the
//! gateway from ever new addresses takes no other agent's place in it. No agent becomes a router.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, ChildStdout, Stdio},
    thread,
    time::Duration,
};

use lab::{
    Lab,
    client::{self, python, succeed},
    net::{AGENT, AGENT2, GATEWAY, GATEWAY_V6, OPENAI},
    sandboxed, tools,
};

use crate::world::World;

#[test]
fn ever_new_neighbours_take_nobodys_place() {
    sandboxed(|| {
        let world = World::usual();
        let flood = Flood::solicitations(&world, 4);
        for _ in 0..10 {
            GATEWAY.shell("ip -6 neigh flush dev agents1");
            let served = world.h1_from(AGENT2, OPENAI.port6(443), OPENAI.name);
            served.map(drop).expect("an agent on another interface is served");
            thread::sleep(Duration::from_millis(200));
        }
        let sent = flood.sent();
        let known = GATEWAY.shell("ip -6 neigh show dev agents0").lines().count();
        println!("{sent} solicitations, {known} neighbours");
        assert!(sent > 3_000 && known < 1_000, "{sent} solicitations, {known} neighbours");
        world.h1_from(AGENT, OPENAI.port6(443), OPENAI.name).expect("and so is the agent itself");
    });
}

#[test]
fn nobody_becomes_the_gateways_router() {
    sandboxed(|| {
        let mut world = World::usual();
        GATEWAY.shell("sysctl -qw net.ipv6.conf.all.forwarding=0");
        // The redirect claims to come from the router of this route, and leads elsewhere.
        GATEWAY.shell("ip -6 route add 2001:db8:77::/64 via fe80::bad dev agents0");
        let unchanged = |careless: bool| {
            for (name, value) in [("accept_ra", 2), ("accept_redirects", 1), ("autoconf", 1)] {
                let value = if careless { value } else { 0 };
                GATEWAY.shell(&format!("sysctl -qw net.ipv6.conf.agents0.{name}={value}"));
            }
            let before = ways();
            advertise(&world.lab);
            (before == ways(), before)
        };
        let (held, ways_before) = unchanged(false);
        assert!(held, "{ways_before} became {}", ways());
        assert!(unchanged(true).0, "the rules alone let it in: {}", ways());
        world.gateway.kill();
        GATEWAY.shell("nft flush ruleset");
        assert!(unchanged(false).0, "the settings alone let it in: {}", ways());
        assert!(!unchanged(true).0, "the battery proves nothing");
        let after = ways();
        let believed =
            ["default via fe80::bad", "inet6 2001:db8:dead:", "via fe80::66", "mtu 1300"];
        for each in believed {
            assert!(after.contains(each), "{each:?} proves nothing: {after}");
        }
    });
}

/// Advertises the first agent as a router in every way.
fn advertise(lab: &Lab) {
    let mac = GATEWAY.shell("cat /sys/class/net/agents0/address");
    let script = tools::repository().join("tests/packets/routers.py");
    let mut command = client::agent(lab, AGENT, &python().display().to_string());
    let sent: usize =
        succeed(command.arg(script).arg(mac.trim())).trim().parse().expect("a number");
    assert!(sent >= 10, "{sent} frames");
    thread::sleep(Duration::from_millis(500));
}

/// Returns the gateway's IPv6 routes and source addresses, without values that count down.
fn ways() -> String {
    let ways = GATEWAY.shell(
        "ip -6 route show table all; ip -6 addr; ip -6 route get 2001:db8:77::7; \
         cd /proc/sys/net/ipv6/conf/agents0; echo mtu $(cat mtu) hop_limit $(cat hop_limit)",
    );
    ways.split_whitespace().filter(|word| !word.ends_with("sec")).collect::<Vec<_>>().join(" ")
}

/// Neighbour solicitations of the first agent, from ever new link-local addresses.
pub struct Flood {
    process: Child,
    told: BufReader<ChildStdout>,
}

impl Flood {
    /// Begins to send for so many seconds; one second of it is over when this returns.
    pub fn solicitations(world: &World, seconds: u32) -> Self {
        let mac = GATEWAY.shell("cat /sys/class/net/agents0/address");
        let script = tools::repository().join("tests/packets/neighbours.py");
        let mut command = lab::client::agent(&world.lab, AGENT, &python().display().to_string());
        command.arg(script).args([mac.trim(), &GATEWAY_V6.to_string(), &seconds.to_string()]);
        let mut process = command.stdout(Stdio::piped()).spawn().expect("python starts");
        let mut told = BufReader::new(process.stdout.take().expect("it is piped"));
        told.read_line(&mut String::new()).expect("it is ready");
        thread::sleep(Duration::from_secs(1));
        Self { process, told }
    }

    /// Waits for the end, and returns how many were sent.
    pub fn sent(mut self) -> usize {
        let mut sent = String::new();
        self.told.read_to_string(&mut sent).expect("how many were sent");
        assert!(self.process.wait().expect("it ends").success());
        sent.trim().parse().expect("a number")
    }
}
