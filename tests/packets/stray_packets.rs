//! Whatever an agent with root rights puts on the wire, the gateway's outside carries only packets
//! that the gateway itself sent for a decision that it took, no other agent gets any of it, and the
//! gateway goes on serving.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::Duration,
};

use lab::{
    client::{python, succeed},
    gateway::{self, Gateway},
    net::{AGENT, AGENT2, Capture, DNS, GATEWAY, GATEWAY_V6, INTERNET, Ns, OPENAI},
    sandbox::sandboxed_for,
    sandboxed, tools, wait,
};
use policy_builder::Config;

use crate::{
    packets::agent_services::pings,
    world::{TICKET, World, get},
};

macro_rules! batteries {
    ($($test:ident: $battery:literal, at least $frames:literal;)+) => {$(
        #[test]
        fn $test() {
            sandboxed(|| battery($battery, $frames));
        }
    )+};
}

batteries! {
    extension_headers_get_nothing_out: "extension_headers", at least 250;
    fragments_get_nothing_out: "fragments", at least 150;
    source_routes_get_nothing_out: "source_routes", at least 75;
    spoofed_sources_get_nothing_out: "spoofed_sources", at least 600;
    other_protocols_and_tunnels_get_nothing_out: "protocols", at least 600;
    odd_tcp_flags_get_nothing_out: "flags", at least 2_000;
    malformed_packets_get_nothing_out: "malformed", at least 80;
    tagged_frames_get_nothing_out: "tagged", at least 100;
}

fn battery(name: &str, at_least: usize) {
    let world = forwarding(&gateway::usual_config());
    let watched = Watched::begin(&world);
    let sent = send(&world, name);
    assert!(sent >= at_least, "{name}: {sent} frames were sent");
    watched.assert_nothing_strange(&world, name);
    let mut ipv6 = world.h1_from(AGENT, OPENAI.port6(443), OPENAI.name).expect("served over IPv6");
    assert_eq!(ipv6.ask(get(&[TICKET])).expect("served over IPv6").status, 200);
}

#[test]
fn odd_tcp_flags_to_every_port_get_nothing_out() {
    sandboxed_for(LIMIT, || {
        let world = forwarding(&gateway::usual_config());
        let watched = Watched::begin(&world);
        let arrived = count_tcp(GATEWAY, "agents0");
        let sent = send(&world, "every_port");
        assert_eq!(sent, EVERY_PORT);
        // The gateway must have seen each of them; otherwise their absence outside would show
        // nothing.
        wait::expect("each one arrives at the gateway", || arrived() >= sent);
        watched.assert_nothing_strange(&world, "every_port");
    });
}

#[test]
fn without_the_rules_the_same_packets_get_out() {
    sandboxed_for(LIMIT, || {
        let world = without_rules();
        let (outside, beyond) = (world.lab.capture(INTERNET), world.lab.capture(AGENT2));
        // Packets that the kernel itself keeps inside, by settings that the daemon checks: source
        // routes, IPv4 sources that do not belong where they come from, and most malformed ones.
        for battery in [
            "extension_headers",
            "fragments",
            "source_routes",
            "spoofed_sources",
            "protocols",
            "flags",
            "malformed",
            "tagged",
        ] {
            let before = outside.packets().len();
            send(&world, battery);
            let got_out = || {
                let packets = outside.packets().split_off(before);
                packets.iter().filter(|packet| is_marked(packet)).count()
            };
            wait::expect(&format!("{battery} proves something"), || got_out() > 3);
        }
        let hairpins = sent_by(&beyond, &mac(GATEWAY, "agents1"));
        assert!(hairpins.iter().any(|frame| is_marked(frame)), "the other agent hears of it");
    });
}

/// An error quotes the agent's bytes and goes to the source that the agent claims. The kernel makes
/// some errors before any rule sees the packet, and others a while after it.
#[test]
fn an_error_goes_only_to_the_agent_behind_it() {
    sandboxed_for(LIMIT, || {
        let mut world = World::usual();
        let watched = Watched::begin(&world);
        hasten_errors();
        let asking = connected();
        assert!(send(&world, "errors") >= 100);
        thread::sleep(OVERDUE);
        watched.assert_nothing_strange(&world, "errors");
        let heard = asking.take_error().expect("a socket");
        assert!(heard.is_none(), "a connection of the gateway's own: {heard:?}");
        drop(asking);

        // Each of the two tables does it alone: before the daemon, and without the guard.
        for (alone, without) in [("the guard", "cloakroom"), ("the rules", "cloakroom_base")] {
            world.gateway.kill();
            GATEWAY.shell(&format!("nft delete table inet {without}"));
            assert_eq!(errors_beyond_the_agent(&world), 0, "{alone}");
            // Where there is no route, the kernel reports it before anything is forwarded.
            let way = GATEWAY.shell("ip -6 route show default");
            GATEWAY.shell("ip -6 route del default");
            assert_eq!(errors_beyond_the_agent(&world), 0, "{alone}, and no way on");
            GATEWAY.shell(&format!("ip -6 route add {}", way.trim()));
            gateway::guard();
            world.gateway = Gateway::start(&world.lab, &gateway::usual_config());
            hasten_errors();
        }
        world.gateway.kill();
        GATEWAY.shell("nft flush ruleset");
        let asking = connected();
        assert!(errors_beyond_the_agent(&world) > 20, "without both there are some");
        let heard = asking.take_error().expect("a socket");
        assert!(heard.is_some(), "and the gateway's own connection hears of them");
    });
}

/// Returns a connection of the gateway's own, to which the battery's forged packets seem to belong.
fn connected() -> UdpSocket {
    GATEWAY.enter(|| {
        let socket = UdpSocket::bind("[2001:db8:f::2]:4000").expect("a socket");
        socket.connect(OPENAI.port6(443)).expect("a way");
        socket
    })
}

/// A host outside claims the address of an agent, so that the answer goes to that agent.
#[test]
fn outside_packets_in_an_agents_name_answer_nobody() {
    sandboxed(|| {
        let mut world = World::usual();
        let inside = world.lab.capture(AGENT);
        let say = |source: &str| {
            let script = format!(
                "from scapy.all import *; send(IPv6(src='{source}', dst='2001:db8:f::2') / \
                 ICMPv6EchoRequest(data=b'STRAY-PACKET'), iface='wan0', verbose=0)"
            );
            let python = python().display().to_string();
            let mut command = lab::client::agent(&world.lab, INTERNET, &python);
            succeed(command.args(["-c", &script]));
        };
        let outside = world.lab.capture(INTERNET);
        say("2001:db8:f::53");
        let answers = || sent_by(&outside, &mac(GATEWAY, "wan0"));
        let answered = || answers().iter().any(|frame| is_marked(frame));
        wait::expect("a ping from outside has its answer", answered);
        say("2001:db8:a::10");
        thread::sleep(wait::QUIET);
        assert!(!inside.packets().iter().any(|frame| is_marked(frame)), "the agent hears of it");
        // The same packets without the rules, and without a daemon that would restore them.
        world.gateway.kill();
        GATEWAY.shell("nft flush chain inet cloakroom prerouting");
        say("2001:db8:a::10");
        let arrives = || inside.packets().iter().any(|frame| is_marked(frame));
        wait::expect("it is an answer that is missing", arrives);
    });
}

/// Removes the rates and waits of errors, and allows the loose check of the way back.
fn hasten_errors() {
    GATEWAY.shell(
        "sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0 net.ipv4.ipfrag_time=1 \
         net.ipv6.ip6frag_time=1 net.ipv4.conf.agents0.rp_filter=2; \
         sysctl -qw net.netfilter.nf_conntrack_frag6_timeout=1 || true",
    );
}

/// Returns how many packets that quote the agent's arrive outside or at the other agent.
fn errors_beyond_the_agent(world: &World) -> usize {
    let captures = [world.lab.capture(INTERNET), world.lab.capture(AGENT2)];
    send(world, "errors");
    thread::sleep(OVERDUE);
    let marked = captures.iter().flat_map(Capture::packets).filter(|frame| is_marked(frame));
    marked.count()
}

#[test]
fn without_rules_odd_tcp_flags_get_out() {
    sandboxed_for(LIMIT, || {
        let world = without_rules();
        let outside = count_tcp(INTERNET, "wan0");
        assert_eq!(send(&world, "every_port"), EVERY_PORT);
        wait::expect("nearly all get out", || outside() > EVERY_PORT / 10 * 9);
    });
}

/// Returns a gateway whose kernel forwards all the time: while forwarding is off, the rules would
/// show nothing.
fn forwarding(config: &Config) -> World {
    let mut world = World::with(config);
    world.gateway.kill();
    let config = world.lab.dir.join("cloakroom.toml");
    world.gateway = Gateway::run_forwarding(&world.lab, &config)
        .unwrap_or_else(|failed| panic!("{}", failed.stderr));
    world
}

/// Returns a gateway without its rules whose kernel forwards. The daemon has ended, because after a
/// minute it would turn forwarding off.
fn without_rules() -> World {
    let mut world = World::usual();
    world.gateway.kill();
    GATEWAY.shell("nft flush ruleset");
    gateway::forward();
    world
}

#[test]
fn without_ipv6_in_the_policy_none_of_it_passes() {
    sandboxed_for(LIMIT, || {
        let config = gateway::usual_config().gateway("ipv6", false);
        let mut world = forwarding(&config);
        let watched = Watched::begin(&world);
        let inside = world.lab.capture(AGENT);
        // The gateway must not reveal its card either; an agent that knows it asks nobody.
        AGENT.connect(OPENAI.port6(443)).expect_err("nobody says who the gateway is");
        let mac = mac(GATEWAY, "agents0");
        AGENT.shell(&format!("ip neigh replace {GATEWAY_V6} lladdr {mac} dev eth0 nud permanent"));
        for battery in
            ["extension_headers", "fragments", "protocols", "flags", "spoofed_sources", "tagged"]
        {
            send(&world, battery);
        }
        assert_eq!(answers_over_ipv6(), [""; 0]);
        for frame in sent_by(&inside, &mac).iter().filter(|frame| frame[12..14] == IPV6) {
            let advertises = (frame[20], frame[54]) == (58, 136);
            assert!(is_neighbourhood(frame) && !advertises, "an answer: {}", hex(frame));
        }
        watched.assert_nothing_strange(&world, "without IPv6");

        // With IPv6 on, the same packets do have answers.
        world.gateway.terminate(Duration::from_secs(10));
        let config = gateway::usual_config().gateway("agent_services", ["ping"]);
        world.gateway = Gateway::start(&world.lab, &config);
        let all = ["DNS", "ping of the gateway", "TCP 443", "TCP 22", "UDP 443"];
        assert_eq!(answers_over_ipv6(), all);
    });
}

/// Returns the gateway's answers to an agent over IPv6, refusals or others.
fn answers_over_ipv6() -> Vec<&'static str> {
    let udp = |to: SocketAddr, bytes: &[u8]| {
        let socket = UdpSocket::bind("[::]:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket");
        socket.connect(to).expect("a socket");
        let answer = socket.send(bytes).and_then(|_| socket.recv(&mut [0; 512]));
        !answer.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    let tcp = |port| {
        let answer = AGENT.connect(OPENAI.port6(port));
        !answer.is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
    };
    let answered = AGENT.enter(|| {
        [
            ("DNS", udp(OPENAI.port6(53), QUERY)),
            ("ping of the gateway", pings(GATEWAY_V6.into())),
            ("ping", pings(OPENAI.v6().into())),
            ("TCP 443", tcp(443)),
            ("TCP 22", tcp(22)),
            ("UDP 443", udp(OPENAI.port6(443), b"initial")),
        ]
    });
    answered.into_iter().filter_map(|(what, answered)| answered.then_some(what)).collect()
}

/// Everything that is watched while strange packets come: the outside, the other agent, the daemon.
struct Watched {
    outside: Capture,
    beyond: Capture,
    descriptors: usize,
}

impl Watched {
    fn begin(world: &World) -> Self {
        let (outside, beyond) = (world.lab.capture(INTERNET), world.lab.capture(AGENT2));
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        Self { outside, beyond, descriptors: descriptors(world) }
    }

    #[track_caller]
    fn assert_nothing_strange(&self, world: &World, name: &str) {
        let outside = sent_by(&self.outside, &mac(GATEWAY, "wan0"));
        // The request that was served is among them.
        assert!((5..1_000).contains(&outside.len()), "{name}: {} frames", outside.len());
        for frame in outside {
            assert!(!is_marked(&frame), "{name}: a stray packet came through: {}", hex(&frame));
            assert!(is_the_gateways_own(&frame), "{name}: {}", hex(&frame));
        }
        for frame in sent_by(&self.beyond, &mac(GATEWAY, "agents1")) {
            assert!(!is_marked(&frame), "{name}: to the other agent: {}", hex(&frame));
            assert!(is_neighbourhood(&frame), "{name}: to the other agent: {}", hex(&frame));
        }
        assert!(world.dns.asked().iter().all(|name| !format!("{name:?}").contains("STRAY")));
        assert_eq!(world.ask(&get(&[TICKET])).status, 200, "{name}: it goes on");
        assert!(gateway::forwards(), "{name}: a switch that is off hides holes in the rules");
        wait::expect("no descriptor is left behind", || descriptors(world) <= self.descriptors + 2);
    }
}

/// Sends a battery as the first agent, and returns the number of frames.
fn send(world: &World, battery: &str) -> usize {
    let python = python().display().to_string();
    let script = tools::repository().join("tests/packets/stray_packets.py");
    let mut command = lab::client::agent(&world.lab, AGENT, &python);
    let sent = succeed(command.arg(script).args([&mac(GATEWAY, "agents0"), battery]));
    sent.trim().parse().expect("a number of frames")
}

/// Counts the TCP packets that come in on `link` from now on. Unlike a capture, it has room for
/// all.
fn count_tcp(ns: Ns, link: &str) -> impl Fn() -> usize {
    let hook = format!("type filter hook ingress device {link} priority -510;");
    ns.shell(&format!(
        "nft 'table netdev witness {{ chain c {{ {hook} ip protocol tcp counter; \
         ip6 nexthdr tcp counter; }}; }}'"
    ));
    move || {
        let listed = ns.shell("nft list table netdev witness");
        let counts = listed.split("counter packets ").skip(1);
        let counts = counts.map(|rest| rest.split(' ').next().map(str::parse::<usize>));
        counts.map(|count| count.expect("a word").expect("a number")).sum()
    }
}

/// Returns the frames that the owner of this MAC address sent.
fn sent_by(capture: &Capture, mac: &str) -> Vec<Vec<u8>> {
    let byte = |byte| u8::from_str_radix(byte, 16).expect("a MAC address");
    let mac: Vec<u8> = mac.split(':').map(byte).collect();
    let frames = capture.packets().into_iter();
    frames.filter(|frame| frame.get(6..12) == Some(&mac)).collect()
}

pub fn mac(ns: Ns, link: &str) -> String {
    ns.shell(&format!("cat /sys/class/net/{link}/address")).trim().to_owned()
}

fn is_marked(frame: &[u8]) -> bool {
    frame.windows(12).any(|at| at == b"STRAY-PACKET")
}

/// Returns whether the gateway may send a frame outside from its own address: a query to its
/// resolver, TCP to the one host that these tests ask for, and every host's packets to its
/// neighbours.
fn is_the_gateways_own(frame: &[u8]) -> bool {
    let (source, destination, protocol, transport) = match [frame[12], frame[13]] {
        IPV4 => {
            let packet = &frame[14..];
            let address =
                |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).expect("four"));
            (address(12), address(16), packet[9], &packet[usize::from(packet[0] & 15) * 4..])
        }
        IPV6 => {
            let packet = &frame[14..];
            let address = |at: usize| {
                IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).expect("sixteen"))
            };
            (address(8), address(24), packet[6], &packet[40..])
        }
        _ => return is_neighbourhood(frame),
    };
    let own = ["203.0.113.2", "2001:db8:f::2"].map(|own| own.parse::<IpAddr>().expect("one"));
    let port = || u16::from_be_bytes([transport[2], transport[3]]);
    let to = || SocketAddr::new(destination, port());
    match protocol {
        6 => own.contains(&source) && [OPENAI.port(443), OPENAI.port6(443)].contains(&to()),
        17 => own.contains(&source) && to() == SocketAddr::from((DNS, 53)),
        _ => is_neighbourhood(frame),
    }
}

/// Returns whether a frame is ARP, neighbour discovery (RFC 4861) or group membership (RFC 3810),
/// whose reports stand behind a hop-by-hop header. None of these comes from or goes to another
/// link.
fn is_neighbourhood(frame: &[u8]) -> bool {
    match [frame[12], frame[13]] {
        [0x08, 0x06] => true,
        IPV6 => match (frame[20], frame[21]) {
            (0, 1) => frame[54] == 58 && frame[62] == 143,
            (58, 255) => (133..=136).contains(&frame[54]),
            _ => false,
        },
        _ => false,
    }
}

pub fn descriptors(world: &World) -> usize {
    let listed = std::fs::read_dir(format!("/proc/{}/fd", world.gateway.pid()));
    listed.expect("the gateway runs").count()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
/// A query for the address of api.openai.example.
const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03api\x06openai\x07example\0\0\x01\0\x01";
/// Four combinations of flags to each port except 0, over IPv4 and IPv6.
const EVERY_PORT: usize = 65_535 * 4 * 2;
/// Time after which the rest of a packet is overdue, and the sender of its beginning has been told.
const OVERDUE: Duration = Duration::from_secs(3);
/// Longest time of the longer tests, on a machine with other work.
const LIMIT: Duration = Duration::from_secs(240);
