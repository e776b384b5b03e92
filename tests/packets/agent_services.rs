//! The services other than DNS of the gateway's own address: those that `agent_services` names,
//! there and nowhere else, and none where it names none.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use lab::{
    client::{python, succeed},
    gateway,
    net::{AGENT, GATEWAY, GATEWAY_V4, GATEWAY_V6, INTERNET, OTHER},
    sandboxed, tools, wait,
};

use crate::world::{TICKET, World, get};

#[test]
fn ping_is_answered_where_it_is_configured() {
    sandboxed(|| {
        let world = with(&["ping"]);
        assert!(pings(GATEWAY_V4.into()) && pings(GATEWAY_V6.into()));
        assert_closed_elsewhere(&world);
        assert!(!udp_answers(123), "nothing else is open");
        assert!(!udp_answers(67), "nothing else is open");
    });
}

#[test]
fn a_flood_of_pings_is_bounded() {
    sandboxed(|| {
        let world = with(&["ping"]);
        let gateway = world.lab.capture(AGENT);
        let sent = script(&world, "flood");
        assert!(sent >= 600, "no flood: {sent}");
        let answers = echo_replies(&gateway.packets());
        // Ten a second and ten at once, for IPv4 and for IPv6.
        assert!((10..=200).contains(&answers), "{answers} answers to {sent}");
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
    });
}

#[test]
fn ntp_is_answered_at_the_gateways_own_address_only() {
    sandboxed(|| {
        let world = with(&["ntp"]);
        let _server = serve(123);
        assert!(udp_answers(123), "the time server answers");
        assert!(udp_answers_at((GATEWAY_V6, 123).into()), "the time server answers over IPv6");
        let outside = world.lab.capture(INTERNET);
        for to in [OTHER.port(123), OTHER.port6(123)].into_iter().chain(ELSEWHERE.map(other)) {
            assert!(!udp_answers_at(to), "{to}");
        }
        assert!(!outside.holds("what-is-the-time"), "a question got out");
        assert!(!pings(GATEWAY_V4.into()) && !udp_answers(67), "nothing else is open");
        assert!(!pings(GATEWAY_V6.into()), "nothing else is open");
        assert_closed_elsewhere(&world);
    });
}

#[test]
fn dhcp_is_answered_where_it_is_configured() {
    sandboxed(|| {
        let world = with(&["dhcp"]);
        let server = serve(67);
        assert!(udp_answers(67), "a client that renews");
        let sent = script(&world, "discover");
        assert!(sent > 0);
        wait::expect("an agent without an address is heard", || heard(&server) > 1);
        assert!(!pings(GATEWAY_V4.into()) && !udp_answers(123), "nothing else is open");
        assert_closed_elsewhere(&world);
    });
}

/// A DHCP server answers at the relay, or at the address, that a request names.
#[test]
fn dhcp_bound_elsewhere_reaches_no_server_and_returns_nothing() {
    sandboxed(|| {
        let world = with(&["dhcp"]);
        let outside = world.lab.capture(INTERNET);
        let say = |port: u16, words: &[u8]| {
            GATEWAY.enter(|| {
                let socket = UdpSocket::bind(("203.0.113.2", port)).expect("a socket");
                let _ = socket.send_to(words, "203.0.113.200:67");
            });
        };
        say(67, b"ANSWER-ELSEWHERE");
        say(6_767, b"ANOTHER-PORT");
        wait::expect("the way is there", || outside.holds("ANOTHER-PORT"));
        assert!(!outside.holds("ANSWER-ELSEWHERE"), "an answer left for the outside");

        let server = serve(67);
        assert_eq!(script(&world, "for_others"), 9);
        std::thread::sleep(wait::QUIET);
        assert_eq!(heard(&server), 0, "a question for somebody else was heard");
        script(&world, "discover");
        wait::expect("one for itself is", || heard(&server) > 1);
    });
}

#[test]
fn a_flood_of_questions_for_time_and_address_is_bounded() {
    sandboxed(|| {
        let world = with(&["ntp", "dhcp"]);
        let (time, addresses) = (serve(123), serve(67));
        let sent = script(&world, "services");
        assert!(sent >= 1_600, "no flood: {sent}");
        std::thread::sleep(wait::QUIET);
        // Ten a second and ten at once, for IPv4 and for IPv6.
        let heard_of_time = heard(&time);
        assert!((20..=200).contains(&heard_of_time), "{heard_of_time} of {sent}");
        // Ten a second and ten at once for the agent; for clients without an address, a hundred.
        let heard_of_addresses = heard(&addresses);
        assert!((110..=400).contains(&heard_of_addresses), "{heard_of_addresses} of {sent}");
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
    });
}

#[test]
fn addresses_without_number_get_no_more_than_their_interfaces_part() {
    sandboxed(|| {
        let wide = ["192.0.2.0/25", "2001:db8:a::/48"];
        let config = gateway::usual_config().gateway("agent_services", ["ntp"]);
        let world = World::with(&config.group("research", |it| it.set("prefixes", wide)));
        GATEWAY.shell("ip -6 route add 2001:db8:a::/48 via 2001:db8:a::10 dev agents0");
        let server = serve(123);
        let (begun, sent) = (Instant::now(), script(&world, "many"));
        let most = 4_096 * (2 + begun.elapsed().as_secs());
        let dropped = over_the_interfaces_part();
        assert!(dropped > 0 && sent <= dropped + most, "{dropped} of {sent} dropped");
        assert!(heard(&server) > 0, "none of them was let through");
        wait::expect("the agent is served again", || udp_answers_at((GATEWAY_V6, 123).into()));
    });
}

#[test]
fn without_the_words_nothing_is_answered() {
    sandboxed(|| {
        let world = World::usual();
        let servers = [serve(67), serve(123)];
        assert!(!pings(GATEWAY_V4.into()) && !pings(GATEWAY_V6.into()));
        assert!(!udp_answers(67) && !udp_answers(123));
        assert!(!udp_answers_at((GATEWAY_V6, 123).into()));
        script(&world, "discover");
        std::thread::sleep(wait::QUIET);
        assert!(servers.iter().all(|server| heard(server) == 0), "a service was reached");
    });
}

fn with(services: &[&str]) -> World {
    World::with(&gateway::usual_config().gateway("agent_services", services))
}

/// Returns how many requests for the time over IPv6 were dropped by the rule for all agents of an
/// interface.
fn over_the_interfaces_part() -> u64 {
    let rules = GATEWAY.shell("nft list chain inet cloakroom prerouting");
    let ours = |line: &&str| line.contains("ipv6 udp dport 123") && line.contains("@services");
    let rule = rules.lines().find(ours).expect("a rule");
    let counted = rule.split_once("counter packets ").expect("a counter").1;
    counted.split(' ').next().and_then(|it| it.parse().ok()).expect("a number")
}

/// Asserts that the gateway's other addresses and everything behind it are closed, also with the
/// guard's input chain alone.
fn assert_closed_elsewhere(world: &World) {
    let outside = world.lab.capture(INTERNET);
    for other in ["192.0.2.129", "203.0.113.2", "192.0.2.140", "198.51.100.20"] {
        assert!(!pings(other.parse().expect("an address")), "{other} answers");
    }
    for other in ["2001:db8:b::1", "2001:db8:f::2", "2001:db8:e::20"] {
        assert!(!pings(other.parse().expect("an address")), "{other} answers");
    }
    assert!(!outside.holds("STRAY-PACKET"), "a ping got out");
    for port in [22, 80, 443, 8200] {
        AGENT.connect((GATEWAY_V4, port).into()).expect_err("closed");
    }
}

/// Returns another address of the gateway, at the port of time.
fn other(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), 123)
}

/// Returns whether an echo request with a payload is answered with it.
pub fn pings(to: IpAddr) -> bool {
    AGENT.enter(|| {
        use rustix::net::{AddressFamily, Protocol, SocketType, ipproto, socket};
        let (family, protocol, kind): (_, Protocol, u8) = if to.is_ipv4() {
            (AddressFamily::INET, ipproto::ICMP, 8)
        } else {
            (AddressFamily::INET6, ipproto::ICMPV6, 128)
        };
        let socket = socket(family, SocketType::RAW, Some(protocol)).expect("a raw socket");
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a socket");
        let mut echo = [&[kind, 0, 0, 0, 0, 7, 0, 1][..], b"STRAY-PACKET"].concat();
        if to.is_ipv4() {
            let sum = echo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
            let sum: u32 = sum.sum();
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            echo[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        let _ = socket.send_to(&echo, SocketAddr::new(to, 0));
        let mut buffer = [0; 256];
        let end = std::time::Instant::now() + Duration::from_millis(400);
        while std::time::Instant::now() < end {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { break };
            let answer = &buffer[if to.is_ipv4() { 20 } else { 0 }..length];
            let reply = if to.is_ipv4() { 0 } else { 129 };
            if from.ip() == to && answer[0] == reply && answer.ends_with(b"STRAY-PACKET") {
                return true;
            }
        }
        false
    })
}

fn udp_answers(port: u16) -> bool {
    udp_answers_at(SocketAddr::from((GATEWAY_V4, port)))
}

fn udp_answers_at(to: SocketAddr) -> bool {
    AGENT.enter(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(400))).expect("a socket");
        let _ = socket.send_to(b"what-is-the-time", to);
        socket.recv_from(&mut [0; 64]).is_ok_and(|(_, from)| from == to)
    })
}

/// Starts a service on the gateway's machine that answers and counts every datagram, over IPv4 and
/// IPv6.
pub(crate) fn serve(port: u16) -> std::sync::Arc<std::sync::atomic::AtomicUsize> {
    let count = std::sync::Arc::<std::sync::atomic::AtomicUsize>::default();
    let counted = std::sync::Arc::clone(&count);
    let socket = GATEWAY.enter(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).expect("bound"));
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    count
}

pub(crate) fn heard(server: &std::sync::Arc<std::sync::atomic::AtomicUsize>) -> usize {
    server.load(std::sync::atomic::Ordering::Relaxed)
}

fn echo_replies(packets: &[Vec<u8>]) -> usize {
    let replies = packets.iter().filter(|frame| match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(23) == Some(&1) && frame.get(34) == Some(&0),
        Some([0x86, 0xdd]) => frame.get(20) == Some(&58) && frame.get(54) == Some(&129),
        _ => false,
    });
    replies.count()
}

/// Addresses of the gateway on other interfaces than the agent's.
const ELSEWHERE: [&str; 4] = ["203.0.113.2", "192.0.2.129", "2001:db8:f::2", "2001:db8:b::1"];

/// Sends a battery as the first agent, and returns the number of frames.
pub(crate) fn script(world: &World, battery: &str) -> u64 {
    let mac = GATEWAY.shell("cat /sys/class/net/agents0/address");
    let script = tools::repository().join("tests/packets/agent_services.py");
    let mut command = lab::client::agent(&world.lab, AGENT, &python().display().to_string());
    let sent = succeed(command.arg(script).args([mac.trim(), battery]));
    sent.trim().parse().expect("a number of frames")
}
