//! Agents that do not answer for their own addresses: what the gateway says to them waits in the
//! kernel until it knows their card, and takes nothing from anybody else meanwhile.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use lab::{
    net::{AGENT, AGENT_V4, AGENT_V6, AGENT2, GATEWAY, GATEWAY_V4, GATEWAY_V6},
    sandboxed,
};

use crate::bound_agents::{bound, share_the_wire};

#[test]
fn answers_that_wait_for_one_agent_keep_none_from_another_on_its_interface() {
    sandboxed(|| {
        let _world = bound("");
        share_the_wire();
        let [v4, v6] = FAMILIES.map(|(_, other, server)| answered(other, server, 3));
        assert_eq!([v4, v6], [3, 3], "it is answered in peace");
        fall_silent();
        let end = Instant::now() + Duration::from_secs(10);
        let seen = thread::scope(|scope| {
            for (from, _, server) in FAMILIES {
                scope.spawn(move || AGENT.enter(|| ask_until(end, from, server)));
            }
            thread::sleep(Duration::from_secs(3));
            let watch =
                |(_, other, server)| scope.spawn(move || answered(other, server, QUESTIONS));
            FAMILIES.map(watch).map(|watching| watching.join().expect("it ends"))
        });
        for (from, ..) in FAMILIES {
            let known = GATEWAY.shell(&format!("ip neigh show {from} dev agents0"));
            assert!(!known.contains("lladdr"), "its card is known: {known}");
        }
        println!("{seen:?} of {QUESTIONS} each");
        let most = seen.iter().all(|answered| answered * 1_000 >= QUESTIONS * 995);
        assert!(most, "{seen:?} of {QUESTIONS} each were answered");
    });
}

/// Has the first agent say no more which card its addresses are at. It knows the gateway's.
fn fall_silent() {
    let mac = GATEWAY.shell("cat /sys/class/net/agents0/address");
    for gateway in [IpAddr::from(GATEWAY_V4), GATEWAY_V6.into()] {
        let entry = format!("{gateway} lladdr {} nud permanent dev eth0", mac.trim());
        AGENT.shell(&format!("ip neigh replace {entry}"));
    }
    AGENT.shell(
        "nft 'table arp silent { chain out { type filter hook output priority 0; policy drop; }; }; \
         table ip6 silent { chain out { type filter hook output priority 0; \
         icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } drop; }; }'",
    );
    GATEWAY.shell("ip neigh flush dev agents0; ip -6 neigh flush dev agents0");
}

/// Asks as often as an agent may, and reads no answer.
fn ask_until(end: Instant, from: IpAddr, server: SocketAddr) {
    let socket = UdpSocket::bind((from, 0)).expect("a socket");
    while Instant::now() < end {
        let _ = socket.send_to(QUERY, server);
        thread::sleep(Duration::from_millis(4));
    }
}

/// How many of so many questions of the second agent were answered. It asks a hundred a second,
/// whatever comes back.
fn answered(from: IpAddr, server: SocketAddr, questions: usize) -> usize {
    AGENT2.enter(|| {
        let socket = UdpSocket::bind((from, 0)).expect("a socket");
        let mut answered = 0;
        let mut read = |patience: Duration| {
            let end = Instant::now() + patience;
            while let left @ 1.. = end.saturating_duration_since(Instant::now()).as_millis() {
                let left = Duration::from_millis(left.try_into().expect("short"));
                socket.set_read_timeout(Some(left)).expect("a socket");
                answered += usize::from(socket.recv_from(&mut [0; 512]).is_ok());
            }
        };
        for _ in 0..questions {
            socket.send_to(QUERY, server).expect("sent");
            read(Duration::from_millis(10));
        }
        read(Duration::from_secs(1));
        answered
    })
}

/// The first agent's address, the second's, and whom they ask.
const FAMILIES: [(IpAddr, IpAddr, SocketAddr); 2] = [
    (
        IpAddr::V4(AGENT_V4),
        IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 11)),
        SocketAddr::new(IpAddr::V4(GATEWAY_V4), 53),
    ),
    (
        IpAddr::V6(AGENT_V6),
        IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0xa, 0, 0, 0, 0, 0x11)),
        SocketAddr::new(IpAddr::V6(GATEWAY_V6), 53),
    ),
];
/// Questions of the second agent over each family: six seconds of them.
const QUESTIONS: usize = 600;
/// A question for the address of api.openai.example.
const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03api\x06openai\x07example\0\0\x01\0\x01";
