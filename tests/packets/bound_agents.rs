//! Agents that are bound to their network cards: a frame from another card, with another address,
//! or in a tag is dropped, and the gateway believes nothing that it says.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use lab::{
    World,
    client::{python, succeed},
    gateway,
    net::{AGENT, AGENT2, GATEWAY, GATEWAY_V6, INTERNET, OPENAI},
    sandboxed, tools, wait,
    world::{TICKET, get},
};
use policy_builder::{Config, agent, group};

use crate::packets::{
    agent_services::{heard, script, serve},
    neighbours::Flood,
};

#[test]
fn a_bound_agent_is_served() {
    sandboxed(|| assert_served(&bound()));
}

#[test]
fn another_card_or_another_address_is_dropped() {
    sandboxed(|| nothing_of("addresses", 100));
}

#[test]
fn a_tagged_frame_is_dropped() {
    sandboxed(|| nothing_of("tagged", 250));
}

#[test]
fn nobody_is_believed_about_anothers_address() {
    sandboxed(|| nothing_of("claims", 90));
}

#[test]
fn an_advertisement_in_pieces_is_not_believed() {
    sandboxed(|| {
        let allow = || GATEWAY.shell("sysctl -qw net.ipv6.conf.agents0.suppress_frag_ndisc=0");
        let world = bound_after(config(), || drop(allow()));
        let believed = || {
            for (address, mac) in NEIGHBOURS {
                let entry = format!("{address} lladdr {mac} nud stale dev agents0");
                GATEWAY.shell(&format!("ip neigh replace {entry}"));
            }
            assert!(send(&world, "pieces") >= 48);
            let known = GATEWAY.shell("ip neigh show 2001:db8:a::11 dev agents0");
            known.contains(MINE)
        };
        assert!(!believed(), "an advertisement in pieces is believed");
        allow();
        assert!(believed(), "the battery proves nothing");
        assert_served(&world);
    });
}

/// Checks that every frame of the battery is dropped where it comes in, nothing gets out, and the
/// gateway's neighbours stay the same.
fn nothing_of(battery: &str, at_least: u64) {
    let world = bound();
    assert_served(&world);
    for (address, mac) in NEIGHBOURS {
        GATEWAY
            .shell(&format!("ip neigh replace {address} lladdr {mac} nud reachable dev agents0"));
    }
    let outside = world.lab.capture(INTERNET);
    let before = dropped();
    let sent = send(&world, battery);
    assert!(sent >= at_least, "{battery}: {sent} frames");
    wait::expect("every frame is dropped", || dropped() >= before + sent);
    for (address, mac) in NEIGHBOURS {
        let known = GATEWAY.shell(&format!("ip neigh show {address} dev agents0"));
        assert!(known.contains(mac), "{address} is now {known}");
    }
    let strangers = GATEWAY.shell("ip neigh show dev agents0");
    assert!(!strangers.contains("192.0.2.12"), "{strangers}");
    assert!(!outside.holds("STRAY-PACKET"), "{battery}: a frame came through");
    assert!(world.dns.asked().iter().all(|name| !format!("{name:?}").contains("STRAY")));
    assert_served(&world);
    let mut world = world;
    world.gateway.terminate(Duration::from_secs(10));
    let records = world.gateway.audit.records();
    let told = records.iter().filter(|it| it["reason"] == "spoofed_source");
    let told: u64 = told.filter_map(|it| it["count"].as_u64()).sum();
    assert!(told >= sent, "{told} of {sent} are in the audit: {records:#?}");
}

#[test]
fn without_the_rules_the_same_claims_are_believed() {
    sandboxed(|| {
        let mut world = bound();
        for (address, mac) in NEIGHBOURS {
            GATEWAY
                .shell(&format!("ip neigh replace {address} lladdr {mac} nud stale dev agents0"));
        }
        world.gateway.kill();
        GATEWAY.shell("nft flush ruleset");
        send(&world, "claims");
        let known = GATEWAY.shell("ip neigh show dev agents0");
        let stolen = |address: &str| {
            known.lines().any(|line| line.starts_with(address) && !line.contains("00:00:11"))
        };
        assert!(stolen("192.0.2.11") || stolen("2001:db8:a::11"), "it proves nothing: {known}");
    });
}

#[test]
fn without_the_chain_nothing_passes_until_it_is_back() {
    sandboxed(|| {
        let world = bound();
        assert_served(&world);
        // Otherwise it would restore the chain at once. The kernel still shakes hands for its
        // listeners.
        world.gateway.freeze();
        AGENT.connect(OPENAI.port(443)).expect("the kernel shakes hands");
        GATEWAY.shell("nft delete table netdev cloakroom");
        AGENT.connect(OPENAI.port(443)).expect_err("no proof, no service");
        AGENT.connect(OPENAI.port6(443)).expect_err("no proof, no service");
        world.gateway.thaw();
        wait::expect("the chain is back", || {
            GATEWAY.shell("nft list tables").contains("table netdev cloakroom")
        });
        assert_served(&world);
    });
}

#[test]
fn unbound_groups_of_the_interface_go_on() {
    sandboxed(|| {
        let bound = group("bound", "agents0", &["192.0.2.64/26"])
            .with(agent("02:00:00:00:00:99", &["192.0.2.70"]));
        let config = gateway::usual_config()
            .group("research", |it| it.set("prefixes", ["192.0.2.0/26", "2001:db8:a::/65"]))
            .with(bound);
        let world = World::with(&config);
        assert_served(&world);
        // An address of the bound group from a card that is not bound, and the other way round.
        AGENT.shell("ip addr add 192.0.2.70/32 dev eth0");
        let from_bound = "--interface 192.0.2.70";
        assert!(!curl_succeeds(&world, from_bound), "another card took a bound address");
        AGENT.shell("ip link set eth0 address 02:00:00:00:00:99");
        AGENT.connect(OPENAI.port(443)).expect_err("a bound card has its own addresses only");
    });
}

#[test]
fn two_in_one_64_take_nothing_from_each_other() {
    sandboxed(|| {
        let mut world = World::prepared(&config().limit("dns_rate", 20), |_, _| mine());
        share_the_wire();
        assert_eq!(answered(1), 1, "it is answered in peace");
        let flood = Instant::now() + Duration::from_secs(6);
        let answered = std::thread::scope(|scope| {
            for (payload, to) in [(QUERY, (GATEWAY_V6, 53).into()), (b"flood", OPENAI.port6(443))] {
                scope.spawn(move || AGENT.enter(|| flood_until(flood, payload, to)));
            }
            std::thread::sleep(Duration::from_millis(500));
            let answered = answered(5);
            AGENT2.enter(|| {
                let socket = UdpSocket::bind(BESIDE).expect("a socket");
                for _ in 0..5 {
                    let _ = socket.send_to(b"initial", OPENAI.port6(443));
                }
            });
            answered
        });
        std::thread::sleep(Duration::from_millis(500));
        world.gateway.terminate(Duration::from_secs(10));
        let records = world.gateway.audit.records();
        let of = |agent: &str, reason: &str| -> u64 {
            let its = records.iter().filter(|it| it["agent"] == agent && it["reason"] == reason);
            its.filter_map(|it| it["count"].as_u64()).sum()
        };
        assert!(of("2001:db8:a::10", "dns_rate") > 0, "no flood: {records:#?}");
        assert!(of("2001:db8:a::10", "protocol_denied") > 100, "no flood: {records:#?}");
        assert!(answered >= 4, "{answered} of 5 queries of another agent were answered");
        assert_eq!(of("2001:db8:a::11", "protocol_denied"), 5, "hidden: {records:#?}");
    });
}

#[test]
fn whoever_floods_the_wire_with_solicitations_takes_nobody_elses() {
    sandboxed(|| {
        let world = bound();
        share_the_wire();
        assert_eq!((answered(1), known_again()), (1, true), "it is found in peace");
        let flood = Flood::solicitations(&world, 12);
        let found = (0..5).filter(|_| {
            AGENT2.shell("ip -6 neigh flush dev card");
            answered(1) == 1
        });
        let (found, again) = (found.count(), known_again());
        assert!(flood.sent() > 3_000, "no flood");
        assert_eq!((found, again), (5, true), "the gateway is found by address and link-local");
        assert_served(&world);
    });
}

#[test]
fn a_card_without_address_asks_at_its_own_rate() {
    sandboxed(|| {
        let world = bound_after(config().gateway("agent_services", ["dhcp"]), || {});
        let server = serve(67);
        let sent = script(&world, "discovers");
        assert!(sent >= 400, "no flood: {sent}");
        std::thread::sleep(wait::QUIET);
        // Ten a second and ten at once, of the hundred that the interface has.
        let heard = heard(&server);
        assert!((10..=90).contains(&heard), "{heard} of {sent}");
    });
}

/// Returns whether the second bound agent's solicitation for the gateway's card, from its
/// link-local address, is answered within three attempts.
fn known_again() -> bool {
    let mac = GATEWAY.shell("cat /sys/class/net/agents0/address");
    let entry = format!("{GATEWAY_V6} lladdr {} nud probe dev card", mac.trim());
    AGENT2.shell(&format!("ip -6 neigh replace {entry}"));
    let show = format!("ip -6 neigh show {GATEWAY_V6} dev card");
    (0..40).any(|_| {
        std::thread::sleep(Duration::from_millis(100));
        AGENT2.shell(&show).contains("REACHABLE")
    })
}

/// Puts a second bound agent on the first one's wire. It is in the second agent's namespace, and
/// sends from 192.0.2.11 and from [`BESIDE`].
pub fn share_the_wire() {
    AGENT.shell(&format!(
        "ip link add link eth0 name card address {OTHER} type macvlan mode private; \
         ip link set card netns agent2"
    ));
    AGENT2.shell(
        "ip link set card up; ip addr add 2001:db8:a::11/64 dev card nodad; \
         ip -6 route add default via 2001:db8:a::1 dev card table 5; \
         ip -6 rule add from 2001:db8:a::11 table 5 prio 5; \
         ip addr add 192.0.2.11/32 dev card; \
         ip route add default via 192.0.2.1 dev card onlink table 5; \
         ip rule add from 192.0.2.11 table 5 prio 5",
    );
}

/// Sends that agent's queries and returns how many are answered.
fn answered(queries: usize) -> usize {
    AGENT2.enter(|| {
        let socket = UdpSocket::bind(BESIDE).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket");
        let asked = (0..queries).filter(|_| {
            let sent = socket.send_to(QUERY, (GATEWAY_V6, 53)).is_ok();
            sent && socket.recv_from(&mut [0; 512]).is_ok()
        });
        asked.count()
    })
}

fn flood_until(end: Instant, payload: &[u8], to: SocketAddr) {
    let socket = UdpSocket::bind("[2001:db8:a::10]:0").expect("a socket");
    while Instant::now() < end {
        let _ = socket.send_to(payload, to);
    }
}

fn curl_succeeds(world: &World, arguments: &str) -> bool {
    let mut curl = lab::client::agent(&world.lab, AGENT, "curl");
    curl.args(["-sS", "-4", "--max-time", "3", "-H", TICKET]).args(arguments.split(' '));
    let output = curl.arg("https://api.openai.example/v1/models").output().expect("curl starts");
    output.status.success()
}

/// Returns a world with the first agent and another one, both bound on `agents0`.
pub fn bound() -> World {
    bound_after(config(), || {})
}

/// Returns the same, with `prepare` run on the gateway first.
fn bound_after(config: Config, prepare: impl FnOnce()) -> World {
    World::prepared(&config, |_, _| {
        mine();
        prepare();
    })
}

/// Gives the first agent its card.
fn mine() {
    AGENT.shell(&format!("ip link set eth0 address {MINE}"));
}

/// Returns the usual policy with both agents bound.
fn config() -> Config {
    let bound = |mac: &str, last: &str| {
        agent(mac, &[&format!("192.0.2.{last}"), &format!("2001:db8:a::{last}")])
    };
    gateway::usual_config()
        .group("research", |it| it.with(bound(MINE, "10")).with(bound(OTHER, "11")))
}

#[track_caller]
fn assert_served(world: &World) {
    assert_eq!(world.ask(&get(&[TICKET])).status, 200);
    let mut ipv6 = world.h1_from(AGENT, OPENAI.port6(443), OPENAI.name).expect("served over IPv6");
    assert_eq!(ipv6.ask(get(&[TICKET])).expect("served over IPv6").status, 200);
}

fn send(world: &World, battery: &str) -> u64 {
    let mac = GATEWAY.shell("cat /sys/class/net/agents0/address");
    let script = tools::repository().join("tests/packets/bound_agents.py");
    let mut command = lab::client::agent(&world.lab, AGENT, &python().display().to_string());
    let sent = succeed(command.arg(script).args([mac.trim(), battery]));
    std::thread::sleep(Duration::from_millis(200));
    sent.trim().parse().expect("a number of frames")
}

/// Returns how many frames the table of frames has dropped with a reason.
fn dropped() -> u64 {
    let listed = GATEWAY.shell("nft list table netdev cloakroom");
    let rules = listed.lines().filter(|line| line.contains("comment \"spoofed_source\""));
    rules
        .filter_map(|line| {
            line.split("counter packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok()
        })
        .sum()
}

const MINE: &str = "02:00:00:00:00:10";
const OTHER: &str = "02:00:00:00:00:11";
/// The second bound agent's address, with any port.
const BESIDE: &str = "[2001:db8:a::11]:0";
/// A query for the address of api.openai.example.
const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03api\x06openai\x07example\0\0\x01\0\x01";
const NEIGHBOURS: [(&str, &str); 4] = [
    ("192.0.2.10", MINE),
    ("192.0.2.11", OTHER),
    ("2001:db8:a::10", MINE),
    ("2001:db8:a::11", OTHER),
];
