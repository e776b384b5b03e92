//! Agents that do not answer for their own addresses: the gateway's packets to them wait in the
//! kernel until it knows their card, and take nothing from other agents meanwhile.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use lab::{
    World,
    audit::Record,
    net::{AGENT, AGENT_V4, AGENT_V6, AGENT2, GATEWAY, GATEWAY_V4, GATEWAY_V6, OPENAI},
    sandboxed,
};

use crate::packets::bound_agents::{bound, share_the_wire};

#[test]
fn answers_waiting_for_one_agent_delay_no_other() {
    sandboxed(|| {
        let _world = bound();
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

#[test]
fn refusals_that_wait_for_one_agent_keep_none_from_another() {
    sandboxed(|| {
        let mut world = World::usual();
        fall_silent();
        // Root may have every address of the prefix.
        AGENT.shell("sysctl -qw net.ipv6.ip_nonlocal_bind=1");
        let own = (0..250).map(|last| IpAddr::from([0x2001, 0xdb8, 0xa, 0, 1, 0, 0, last]));
        let own: Vec<IpAddr> = own.chain([AGENT_V4.into()]).collect();
        let (end, over) = (Instant::now() + Duration::from_secs(15), AtomicBool::new(false));
        let refused = thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| AGENT.enter(|| be_refused_until(end, &over, &own)));
            }
            thread::sleep(Duration::from_secs(2));
            let refused = (0..10)
                .map(|_| {
                    // In IPv6 the kernel sends one host one refusal a second.
                    thread::sleep(Duration::from_millis(1_100));
                    [OPENAI.port(443), OPENAI.port6(443)].map(is_refused)
                })
                .collect::<Vec<_>>();
            over.store(true, Relaxed);
            refused
        });
        let counts = [0, 1].map(|family| refused.iter().filter(|each| each[family]).count());
        assert_eq!(counts, [10, 10], "{refused:?}");
        world.gateway.terminate(Duration::from_secs(10));
        let of_first =
            |it: &&Record| it["group"] == "research" && it["reason"] == "protocol_denied";
        let told = world.gateway.audit.records();
        let told = told.iter().filter(of_first).filter_map(|it| it["count"].as_u64());
        assert!(told.sum::<u64>() > 1_000, "no flood");
    });
}

/// Makes the first agent stop revealing the card of its addresses. It knows the gateway's.
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

/// Sends as many queries as an agent may, and reads no answer.
fn ask_until(end: Instant, from: IpAddr, server: SocketAddr) {
    let socket = UdpSocket::bind((from, 0)).expect("a socket");
    while Instant::now() < end {
        let _ = socket.send_to(QUERY, server);
        thread::sleep(Duration::from_micros(1_500));
    }
}

/// Sends packets that the gateway refuses, until the end or until it is over, from these addresses
/// in random order: each refusal that is allowed goes to another address.
fn be_refused_until(end: Instant, over: &AtomicBool, own: &[IpAddr]) {
    let bind = |from: &IpAddr| UdpSocket::bind((*from, 0)).expect("a socket");
    let sockets: Vec<UdpSocket> = own.iter().map(bind).collect();
    let mut state = 1_u32;
    while Instant::now() < end && !over.load(Relaxed) {
        for _ in 0..sockets.len() {
            // The generator of Numerical Recipes; its upper bits are the good ones.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let socket = &sockets[(state >> 16) as usize % sockets.len()];
            let v4 = socket.local_addr().expect("bound").is_ipv4();
            let to = if v4 { OPENAI.port(443) } else { OPENAI.port6(443) };
            // The refusal quotes as much of it as it can.
            let _ = socket.send_to(&[0; 1_200], to);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Returns whether the agent on the other interface learns that UDP is refused.
fn is_refused(to: SocketAddr) -> bool {
    AGENT2.enter(|| {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket");
        socket.connect(to).expect("a route");
        socket.send(b"initial").expect("sent");
        let refused = socket.recv(&mut [0; 512]).expect_err("nobody answers");
        refused.kind() != io::ErrorKind::WouldBlock
    })
}

/// Sends queries of the second agent, a hundred a second whatever comes back, and returns how many
/// were answered.
fn answered(from: IpAddr, server: SocketAddr, questions: usize) -> usize {
    AGENT2.enter(|| {
        let socket = UdpSocket::bind((from, 0)).expect("a socket");
        let mut answered = 0;
        let mut read = |timeout: Duration| {
            let end = Instant::now() + timeout;
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

/// The first agent's address, the second's, and the server that they ask.
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
/// Queries of the second agent over each family, for six seconds.
const QUESTIONS: usize = 600;
/// A query for the address of api.openai.example.
const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03api\x06openai\x07example\0\0\x01\0\x01";
