//! Packets that are not an allowed connection: they are refused or dropped at the gateway, and
//! reach neither the networks beyond it nor its own services.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    str::FromStr as _,
    thread,
    time::{Duration, Instant},
};

use lab::{
    Lab,
    dns::Dns,
    gateway::{self, Gateway, forward},
    net::{
        AGENT, AGENT_V4, AGENT_V6, AGENT2, ATTACKER, GATEWAY, GATEWAY_V6, INTERNET, OPENAI, VAULT,
    },
    origin::Origin,
    sandboxed,
};

use crate::packets::agent_services::pings;

use crate::{
    faults::{CHAT, Trap, ask, connections},
    lifecycle::dead_daemon::assert_no_agent_outside,
};

#[test]
fn other_ports_and_protocols_are_refused_and_never_leave() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let dns = Dns::start();
        let gateway = Gateway::usual(&lab);
        let outside = lab.capture(INTERNET);
        let vault = Trap::set(INTERNET, &[SocketAddr::from((VAULT, 8200))]);
        let quic = INTERNET.enter(|| {
            [OPENAI.port(443), OPENAI.port6(443)].map(|at| UdpSocket::bind(at).expect("a port"))
        });

        let closed = [
            (AGENT, OPENAI.port(8443)),
            (AGENT, OPENAI.port6(8443)),
            (AGENT2, ATTACKER.port(22)),
            (AGENT2, ATTACKER.port6(853)),
            (AGENT, SocketAddr::from((VAULT, 8200))),
            (AGENT, SocketAddr::from((lab::net::DNS, 853))),
        ];
        for (agent, to) in closed {
            let begun = Instant::now();
            let error = agent.connect(to).map(drop).expect_err("closed");
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{to}: {error}");
            assert!(begun.elapsed() < Duration::from_secs(1), "{to}: {:?}", begun.elapsed());
        }
        for (any, to) in [
            ("0.0.0.0:0", OPENAI.port(443)),
            ("[::]:0", OPENAI.port6(443)),
            ("0.0.0.0:0", SocketAddr::from((lab::net::DNS, 123))),
        ] {
            let socket =
                AGENT.enter(|| UdpSocket::bind(any).and_then(|s| s.connect(to).map(|()| s)));
            let socket = socket.expect("a socket");
            socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket");
            let refused = socket.send(b"hello").and_then(|_| socket.recv(&mut [0; 9]));
            let error = refused.expect_err("refused");
            assert_ne!(error.kind(), io::ErrorKind::WouldBlock, "{to}: silence, not a refusal");
        }
        assert!(pings(AGENT_V4.into()) && pings(AGENT_V6.into()), "an agent hears itself");
        for to in [IpAddr::from(OPENAI.v4()), OPENAI.v6().into(), GATEWAY_V6.into()] {
            assert!(!pings(to), "{to} answers to ping");
        }

        for socket in quic {
            socket.set_nonblocking(true).expect("a socket");
            let nothing = socket.recv(&mut [0; 9]).expect_err("no datagram");
            assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
        }
        vault.assert_untouched();
        assert!(dns.asked().is_empty(), "{:?}", dns.asked());
        origin.log().assert_untouched();
        assert_no_agent_outside(&outside);
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
        connections(&gateway, 1);
    });
}

#[test]
fn each_of_forty_datagrams_gets_its_own_error() {
    sandboxed(|| {
        let lab = Lab::new();
        let gateway = Gateway::usual(&lab);
        let families =
            [("0.0.0.0:0", OPENAI.port(443), [3, 13]), ("[::]:0", OPENAI.port6(443), [1, 1])];
        for (any, to, prohibited) in families {
            let inside = lab.capture(AGENT);
            // On a busy machine a client may notice late. Then all of it is measured again; in the
            // attempt that counts, none of the forty is late.
            let mut slowest = vec![refusals(any, to)];
            while slowest.len() < 3 && slowest.last() > Some(&AT_ONCE) {
                // After this time an agent may be refused as many again.
                thread::sleep(Duration::from_secs(10));
                slowest.push(refusals(any, to));
            }
            assert!(slowest.last() <= Some(&AT_ONCE), "{to}: refused after {slowest:?}");
            let errors = inside.packets().into_iter().filter_map(|frame| icmp_error(&frame));
            let errors: Vec<_> = errors.collect();
            assert_eq!(errors, vec![prohibited; FORTY * slowest.len()], "{to}");
        }
        drop(gateway);
    });
}

/// Sends forty datagrams, each from a port of its own, and returns the time after which the last of
/// them was known to be refused.
fn refusals(any: &str, to: SocketAddr) -> Duration {
    let socket = || {
        let socket = UdpSocket::bind(any).and_then(|it| it.connect(to).map(|()| it));
        let socket = socket.expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket");
        socket
    };
    AGENT.enter(|| {
        let sockets: Vec<_> = (0..FORTY).map(|_| socket()).collect();
        let begun = Instant::now();
        for socket in &sockets {
            socket.send(b"initial").expect("sent");
        }
        for (number, socket) in sockets.iter().enumerate() {
            let error = socket.recv(&mut [0; 9]).expect_err("refused");
            let silent = error.kind() == io::ErrorKind::WouldBlock;
            assert!(!silent, "{to}: silence, not a refusal, for number {number}");
        }
        begun.elapsed()
    })
}

/// Returns type and code of a frame that is an ICMP error of either family.
fn icmp_error(frame: &[u8]) -> Option<[u8; 2]> {
    let at = match (frame.get(12..14)?, frame.get(23)?, frame.get(20)?) {
        ([0x08, 0x00], 1, _) => 14 + 20,
        ([0x86, 0xdd], _, 58) => 14 + 40,
        _ => return None,
    };
    let found = *frame.get(at..)?.first_chunk::<2>()?;
    // From 128 on, ICMPv6 messages are informational: neighbour discovery, for example (RFC 4443,
    // section 2.1).
    (found[0] < 128).then_some(found)
}

#[test]
fn a_spoofed_source_is_dropped_without_an_answer() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let gateway = Gateway::usual(&lab);
        // This teaches the agent its neighbour's card: with a spoofed address it would get no
        // answer.
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
        AGENT.connect(OPENAI.port6(443)).expect("captured");
        connections(&gateway, 2);
        origin.log().clear();
        // Another owner's public address, the other group's, and one of no group.
        let spoofed = ["198.51.100.77", "192.0.2.141", "10.1.2.3", "2001:db8:b::77"];
        for address in spoofed {
            let bits = if address.contains(':') { "128 dev eth0 nodad" } else { "32 dev eth0" };
            AGENT.shell(&format!("ip addr add {address}/{bits}"));
        }
        let answers = lab.capture(AGENT);
        thread::scope(|scope| {
            for address in spoofed {
                let family = if address.contains(':') { "-6" } else { "-4" };
                scope.spawn(move || {
                    let curl = ["curl", "-sk", family, "-m", "1", "--interface", address];
                    let output = AGENT
                        .command(curl[0])
                        .args(&curl[1..])
                        .arg("https://api.openai.example/v1/models")
                        .output()
                        .expect("curl is installed");
                    assert_eq!(
                        output.status.code(),
                        Some(28),
                        "{address}: not silence: {output:?}"
                    );
                });
            }
        });
        origin.log().assert_untouched();
        let frames = answers.bytes();
        for address in [[198, 51, 100, 77], [192, 0, 2, 141], [10, 1, 2, 3]] {
            assert!(frames.windows(4).any(|at| at == address), "{address:?} was not sent");
        }
        connections(&gateway, 2);
        let dropped =
            GATEWAY.shell("nft list chain inet cloakroom prerouting | grep spoofed_source");
        let counted = |line: &str| line.contains("counter") && !line.contains("packets 0 ");
        assert!(dropped.lines().any(counted), "{dropped}");
    });
}

/// The group may use the address, so only the way back shows the difference.
#[test]
fn a_source_with_another_way_back_is_dropped() {
    sandboxed(|| {
        let config = gateway::usual_config()
            .group("research", |it| it.set("prefixes", ["192.0.2.0/24", "2001:db8:a::/47"]))
            .group("operations", |it| it.set("prefixes", ["10.9.0.0/24"]));
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let dns = Dns::start();
        let mut gateway = Gateway::start(&lab, &config);
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
        AGENT.connect(OPENAI.port6(443)).map(drop).expect("captured");
        origin.log().clear();
        let asked = dns.asked();
        AGENT.shell(
            "ip addr add 192.0.2.141/32 dev eth0; ip addr add 2001:db8:b::77/128 dev eth0 nodad",
        );
        let outside = lab.capture(INTERNET);
        for (from, to) in
            [("192.0.2.141", OPENAI.v4().into()), ("2001:db8:b::77", OPENAI.v6().into())]
        {
            let source = IpAddr::from_str(from).expect("an address");
            AGENT.enter(|| {
                let socket = UdpSocket::bind((source, 0)).expect("a socket");
                for port in [53, 9] {
                    socket.send_to(b"STRAY-PACKET", SocketAddr::new(to, port)).expect("sent");
                }
            });
            let family = if source.is_ipv4() { "-4" } else { "-6" };
            let curl = AGENT
                .command("curl")
                .args(["-sk", family, "-m", "1", "--interface", from])
                .arg("https://api.openai.example/v1/models")
                .output()
                .expect("curl is installed");
            assert_eq!(curl.status.code(), Some(28), "{from}: not silence: {curl:?}");
        }
        assert!(!outside.holds("STRAY-PACKET"), "it went through");
        assert_no_agent_outside(&outside);
        origin.log().assert_untouched();
        assert_eq!(dns.asked(), asked);
        let rules =
            GATEWAY.shell("nft list chain inet cloakroom prerouting | grep 'fib saddr . iif'");
        assert!(rules.contains("spoofed_source") && !rules.contains("packets 0 "), "{rules}");
        gateway.terminate(Duration::from_secs(10));
        let records = gateway.audit.records();
        // Two datagrams and one or more SYNs of each family.
        let dropped = records.iter().filter(|it| it["reason"] == "spoofed_source");
        assert!(dropped.filter_map(|it| it["count"].as_u64()).sum::<u64>() >= 6, "{records:#?}");
    });
}

#[test]
fn the_gateways_own_services_are_out_of_agents_reach() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let management = ["[::]:22", "[::]:9090", "[::]:80"].map(|at| at.parse().expect("a port"));
        let reachable = ["203.0.113.2:22", "203.0.113.2:9090", "[2001:db8:f::2]:22"]
            .map(|at| at.parse().expect("a port"));
        let services = Trap::set(GATEWAY, &management).prove(INTERNET, &reachable);
        let mut gateway = Gateway::usual(&lab);
        let knock = || {
            let addresses =
                ["192.0.2.1", "203.0.113.2", "192.0.2.129", "2001:db8:a::1", "2001:db8:f::2"];
            thread::scope(|scope| {
                for address in addresses {
                    for port in [22, 80, 9090] {
                        let to = SocketAddr::new(address.parse().expect("an address"), port);
                        scope.spawn(move || {
                            AGENT.connect(to).map(drop).expect_err(&to.to_string());
                        });
                    }
                }
            });
            services.assert_untouched();
        };
        knock();
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200, "the rest works meanwhile");
        gateway.kill();
        forward();
        knock();
        origin.log().wait_requests(1);
    });
}

/// Datagrams that are sent at once.
const FORTY: usize = 40;
/// Time within which a client must learn that it is refused, so that it tries TCP at once.
const AT_ONCE: Duration = Duration::from_millis(300);
