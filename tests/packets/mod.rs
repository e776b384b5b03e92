//! Nothing reaches the internet that the daemon does not carry. The kernel forwards in all of these
//! tests, so only the packet rules prevent it.

mod agent_services;
mod bound_agents;
mod every_port;
mod flushed_rules;
mod kernel_settings;
mod neighbours;
mod not_allowed;
mod refused_packets;
mod sites;
mod stray_packets;
mod unanswered;

use std::{
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    time::{Duration, Instant},
};

use lab::{
    Lab,
    dns::Dns,
    gateway::{self, Gateway},
    net::{
        AGENT, AGENT_V4, AGENT_V6, AGENT2, GATEWAY, GATEWAY_V4, GATEWAY_V6, INTERNET, OPENAI,
        OTHER, PYPI,
    },
    origin::Origin,
    sandboxed, wait,
};
use policy_builder::agent;

use crate::{
    packets::{agent_services::pings, stray_packets::mac},
    world::{TICKET, World, get},
};

#[test]
fn before_the_daemon_starts_the_guard_passes_nothing() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        gateway::guard();
        gateway::forward();
        for to in [OPENAI.port(443), OPENAI.port6(443), OTHER.port(80), OTHER.port6(8443)] {
            AGENT.connect(to).expect_err("the guard is closed");
            AGENT2.connect(to).expect_err("the guard is closed");
        }
        origin.log().assert_untouched();
    });
}

#[test]
fn a_dead_daemon_passes_nothing() {
    sandboxed(|| {
        let mut world = World::usual();
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        world.origin.log().wait_requests(1);
        let before = world.origin.log().connections().len();
        // This happens under traffic: connections are tried all the time while the daemon dies, and
        // afterwards.
        let end = Instant::now() + Duration::from_secs(3);
        std::thread::scope(|scope| {
            for to in [OTHER.port(443), OTHER.port6(443), OTHER.port(80), OTHER.port6(8443)] {
                scope.spawn(move || {
                    while Instant::now() < end {
                        drop(AGENT.connect(to));
                        // A test has only so many ports, and a fast machine would use them all.
                        std::thread::sleep(Duration::from_millis(1));
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(500));
            world.gateway.kill();
        });
        for to in [OPENAI.port(443), OPENAI.port6(443), PYPI.port(443), PYPI.port6(443)] {
            AGENT.connect(to).expect_err("nobody listens, and nothing is forwarded");
        }
        std::thread::sleep(wait::QUIET);
        let after = world.origin.log().connections();
        assert_eq!(after.len(), before, "{:#?}", after.last());
    });
}

#[test]
fn a_daemon_that_starts_again_serves_again() {
    sandboxed(|| {
        let mut world = World::usual();
        world.gateway.kill();
        let config = world.lab.dir.join("cloakroom.toml");
        world.gateway = Gateway::run(&world.lab, &config).expect("it starts over its own remains");
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
    });
}

#[test]
fn udp_goes_nowhere() {
    sandboxed(|| {
        let world = World::usual();
        let received = INTERNET.enter(|| {
            let socket = UdpSocket::bind((OTHER.v4(), 443)).expect("a socket");
            socket.set_read_timeout(Some(Duration::from_millis(800))).expect("a socket");
            AGENT.enter(|| {
                let agent = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                for _ in 0..5 {
                    let _ = agent.send_to(b"initial", OTHER.port(443));
                }
            });
            socket.recv_from(&mut [0; 64])
        });
        assert!(received.is_err(), "a datagram came through");
        world.origin.log().assert_untouched();
    });
}

#[test]
fn pings_and_other_protocols_go_nowhere() {
    sandboxed(|| {
        let world = World::usual();
        let capture = world.lab.capture(INTERNET);
        assert!(pings(AGENT_V4.into()) && pings(AGENT_V6.into()), "an agent hears itself");
        assert!(!pings(OTHER.v4().into()) && !pings(OTHER.v6().into()));
        covert(OTHER.v4().into());
        covert(OTHER.v6().into());
        assert!(!capture.holds("STRAY-PACKET"), "a ping came through");
        assert!(!capture.holds("covert-channel"), "an unknown protocol came through");
    });
}

/// Sends a protocol that nobody knows (253, RFC 3692).
fn covert(to: IpAddr) {
    use rustix::net::{AddressFamily, Protocol, SendFlags, SocketType, sendto, socket};
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let unknown = Protocol::from_raw(253.try_into().expect("not zero"));
    AGENT.enter(|| {
        let socket = socket(family, SocketType::RAW, Some(unknown)).expect("a raw socket");
        let sent = sendto(&socket, b"covert-channel", SendFlags::empty(), &SocketAddr::new(to, 0));
        sent.expect("it leaves the agent");
    });
}

#[test]
fn the_gateways_own_services_are_out_of_reach() {
    sandboxed(|| {
        let _world = World::usual();
        // A service that listens on all of the gateway's addresses, as a management service would.
        let listeners =
            GATEWAY.enter(|| [8200, 22, 443].map(|port| std::net::TcpListener::bind(("::", port))));
        assert!(listeners.iter().any(Result::is_ok));
        let proxy = 15_001;
        for port in [8200, 22, 443, 80, proxy] {
            for to in [
                SocketAddr::from((GATEWAY_V4, port)),
                SocketAddr::from((GATEWAY_V6, port)),
                SocketAddr::from(([203, 0, 113, 2], port)),
                SocketAddr::from(([192, 0, 2, 129], port)),
                SocketAddr::from(([127, 0, 0, 1], port)),
            ] {
                if to.ip().is_loopback() {
                    continue;
                }
                AGENT.connect(to).expect_err("the gateway does not answer agents");
            }
        }
    });
}

#[test]
fn agents_do_not_reach_each_other() {
    sandboxed(|| {
        let mut world = World::usual();
        let ports = [443, 8080];
        let listeners =
            AGENT2.enter(|| ports.map(|port| TcpListener::bind(("::", port)).expect("bound")));
        let neighbour: [IpAddr; 2] =
            ["192.0.2.140", "2001:db8:b::10"].map(|it| it.parse().expect("an address"));
        let reached = || {
            listeners.iter().any(|listener| {
                listener.set_nonblocking(true).expect("a socket");
                listener.accept().is_ok()
            })
        };
        for address in neighbour {
            AGENT.connect(SocketAddr::new(address, 8080)).expect_err("refused");
            // The gateway shakes hands for captured connections, and dials the name's addresses.
            let to = SocketAddr::new(address, 443);
            AGENT.connect(to).expect("captured");
            for name in [OPENAI.name, OTHER.name] {
                let answer = world.h1_from(AGENT, to, name);
                drop(answer.and_then(|mut tls| tls.ask(get(&[TICKET]))));
            }
        }
        std::thread::sleep(wait::QUIET);
        assert!(!reached(), "the other agent was called");

        world.gateway.kill();
        GATEWAY.shell("nft flush ruleset");
        gateway::forward();
        for address in neighbour {
            for port in ports {
                AGENT.connect(SocketAddr::new(address, port)).expect("nothing stands before it");
                wait::expect("the other agent is called", reached);
            }
        }
    });
}

#[test]
fn a_source_of_another_group_or_none_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        AGENT.shell("ip addr add 192.0.2.141/32 dev eth0; ip addr add 203.0.113.99/32 dev eth0");
        for source in ["192.0.2.141", "203.0.113.99"] {
            let mut curl = lab::client::agent(&world.lab, AGENT, "curl");
            curl.args(["-sS", "-4", "--max-time", "3", "--interface", source, "-H", TICKET]);
            let output =
                curl.arg("https://api.openai.example/v1/models").output().expect("curl starts");
            assert!(!output.status.success(), "a spoofed source was served");
        }
        world.origin.log().assert_untouched();
    });
}

#[test]
fn without_ipv6_in_the_policy_every_ipv6_packet_is_dropped() {
    sandboxed(|| {
        let config = gateway::usual_config().gateway("ipv6", false);
        let world = World::with(&config);
        // The gateway does not reveal its card either: without this entry the agent would send
        // nothing.
        let mac = mac(GATEWAY, "agents0");
        AGENT.shell(&format!("ip neigh replace {GATEWAY_V6} lladdr {mac} dev eth0 nud permanent"));
        for to in [OPENAI.port6(443), OTHER.port6(80)] {
            AGENT.connect(to).expect_err("no IPv6");
        }
        world.origin.log().assert_untouched();
        assert_eq!(world.ask(&get(&[TICKET])).status, 200, "IPv4 still works");
    });
}

#[test]
fn refusals_at_the_packet_level_come_at_once() {
    sandboxed(|| {
        let _world = World::usual();
        for to in [OPENAI.port(22), OPENAI.port6(22)] {
            let begun = Instant::now();
            AGENT.connect(to).expect_err("closed");
            assert!(begun.elapsed() < Duration::from_secs(1), "{to} timed out instead of a reset");
        }
    });
}

#[test]
fn nft_can_load_the_tables_that_it_lists() {
    sandboxed(|| {
        let lab = Lab::new();
        let _dns = Dns::start();
        // The configuration has every service that can be asked for.
        let config = gateway::usual_config()
            .gateway("agent_services", ["ping", "ntp", "dhcp"])
            .group("research", |it| {
                it.with(agent("02:00:00:00:00:01", &["192.0.2.10", "2001:db8:a::10"]))
            });
        let gateway = Gateway::start(&lab, &config);
        AGENT.connect(OPENAI.port(22)).expect_err("closed, and in a meter");
        AGENT2.connect(OPENAI.port(22)).expect_err("closed, and in a meter");
        let listed = GATEWAY.shell("nft list ruleset");
        for word in ["tproxy", "hook ingress", "limit rate over", "expires"] {
            assert!(listed.contains(word), "no {word}: {listed}");
        }
        let reload = lab.write("listed.nft", format!("flush ruleset\n{listed}"));
        GATEWAY.shell(&format!("nft --check --file {}", reload.display()));
        drop(gateway);
    });
}
