//! What reaches the internet when it is not the daemon that carries it: nothing. The kernel
//! forwards in all of these, so the packet rules are alone.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use lab::{
    Lab,
    dns::Dns,
    gateway::{self, Gateway},
    net::{AGENT, AGENT2, GATEWAY, GATEWAY_V4, GATEWAY_V6, INTERNET, OPENAI, OTHER, PYPI},
    origin::Origin,
    sandboxed, wait,
};

use crate::world::{TICKET, World, get};

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
        // Under traffic: connections are tried all the while it dies and afterwards.
        let end = Instant::now() + Duration::from_secs(3);
        std::thread::scope(|scope| {
            for to in [OTHER.port(443), OTHER.port6(443), OTHER.port(80), OTHER.port6(8443)] {
                scope.spawn(move || {
                    while Instant::now() < end {
                        drop(AGENT.connect(to));
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
        let line = "ping -c1 -W1 198.51.100.20; ping -c1 -W1 2001:db8:e::20; true";
        if lab::tools::on_path(&["ping"]).is_some() {
            AGENT.shell(line);
        }
        // A protocol that nobody knows (253, RFC 3692), from a raw socket.
        AGENT.enter(|| {
            let socket = rustix::net::socket(
                rustix::net::AddressFamily::INET,
                rustix::net::SocketType::RAW,
                rustix::net::Protocol::from_raw(253.try_into().expect("not zero")).into(),
            )
            .expect("a raw socket");
            let to = SocketAddr::from((OTHER.v4(), 0));
            let _ = rustix::net::sendto(
                &socket,
                b"covert-channel",
                rustix::net::SendFlags::empty(),
                &to,
            );
        });
        assert!(!capture.holds("covert-channel"), "an unknown protocol came through");
    });
}

#[test]
fn the_gateways_own_services_are_out_of_reach() {
    sandboxed(|| {
        let _world = World::usual();
        // Something that listens on all of the gateway's addresses, as management would.
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
        let _world = World::usual();
        let _listener =
            AGENT2.enter(|| std::net::TcpListener::bind("0.0.0.0:8080")).expect("bound");
        AGENT.connect(SocketAddr::from(([192, 0, 2, 140], 8080))).expect_err("refused");
    });
}

#[test]
fn a_source_that_belongs_to_another_group_or_none_is_refused() {
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
        let config = gateway::usual_config().replace("ipv6 = true", "ipv6 = false");
        let world = World::with(&config);
        for to in [OPENAI.port6(443), OTHER.port6(80)] {
            AGENT.connect(to).expect_err("no IPv6");
        }
        world.origin.log().assert_untouched();
        assert_eq!(world.ask(&get(&[TICKET])).status, 200, "IPv4 still works");
    });
}

#[test]
fn what_is_refused_at_the_packet_level_is_refused_at_once() {
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
        // With everything that a configuration can ask for.
        let config = gateway::usual_config()
            .replace("ipv6 = true", "ipv6 = true\nagent_services = [\"ping\", \"ntp\", \"dhcp\"]")
            .replace(
                "prefixes = [\"192.0.2.0/25\", \"2001:db8:a::/64\"]",
                "prefixes = [\"192.0.2.0/25\", \"2001:db8:a::/64\"]\n[[group.agent]]\n\
                 mac = \"02:00:00:00:00:01\"\naddresses = [\"192.0.2.10\", \"2001:db8:a::10\"]",
            );
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
