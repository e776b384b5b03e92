//! The fate of packets between an agent, the gateway and an origin, on the wires of [`super::lab`].
//!
//! Every test ends by asking the origin which packets reached it.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use socket2::{Domain, Socket, Type};

use super::{
    lab::{AGENT, ConnectOutcome, GATEWAY, Lab, ORIGIN, TIMEOUT, dropped_as_spoofed},
    load_base, sh,
};
use crate::packets::{Capture, InheritedListeners, apply};

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn an_agent_reaches_the_listener_and_nothing_else() {
    let lab = Lab::new(true);
    let _listeners = lab.start();
    for origin in ORIGIN {
        assert_eq!(lab.dial(origin, 443), ConnectOutcome::Captured, "{origin}");
        assert_eq!(lab.dial(origin, 80), ConnectOutcome::Captured, "{origin}");
        assert_eq!(lab.dial(origin, 8080), ConnectOutcome::Refused, "{origin}");
        assert_eq!(lab.dial(origin, 8443), ConnectOutcome::Refused, "{origin}");
        assert_eq!(lab.dial(origin, 53), ConnectOutcome::Refused, "{origin}");
        assert_eq!(lab.send_udp(origin, 53), ConnectOutcome::Unreachable, "{origin}");
        assert_eq!(lab.send_udp(origin, 443), ConnectOutcome::Unreachable, "{origin}");
    }
    for own in GATEWAY.into_iter().chain(["203.0.113.1", "2001:db8:5::1"]) {
        for port in [443, 8443, 22] {
            assert_eq!(lab.dial(own, port), ConnectOutcome::Silence, "{own}");
        }
    }
    for special in
        ["169.254.169.254", "192.168.1.1", "fd00::1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"]
    {
        assert_eq!(lab.dial(special, 443), ConnectOutcome::Refused, "{special}");
    }
    assert_eq!(lab.dial("10.99.0.7", 443), ConnectOutcome::Captured, "a home that policy lists");
    assert_eq!(lab.reached_origin(), 0);
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn a_dead_daemon_passes_nothing() {
    let lab = Lab::new(true);
    let listeners = lab.start();
    for origin in ORIGIN {
        assert_eq!(lab.dial(origin, 443), ConnectOutcome::Captured);
    }
    listeners.die();
    for origin in ORIGIN {
        assert_eq!(lab.dial(origin, 443), ConnectOutcome::Refused, "{origin}");
        assert_eq!(lab.dial(origin, 8080), ConnectOutcome::Refused, "{origin}");
        assert_eq!(lab.send_udp(origin, 443), ConnectOutcome::Unreachable, "{origin}");
    }
    // A listener without IP_TRANSPARENT is refused.
    let opaque = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    opaque.bind(&"0.0.0.0:8443".parse::<SocketAddr>().unwrap().into()).unwrap();
    opaque.listen(16).unwrap();
    assert_eq!(lab.dial(ORIGIN[0], 443), ConnectOutcome::Refused);
    assert_eq!(lab.reached_origin(), 0);
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn the_guard_alone_passes_nothing() {
    let lab = Lab::new(true);
    for origin in ORIGIN {
        assert_eq!(lab.dial(origin, 443), ConnectOutcome::Silence, "{origin}");
    }
    let services = TcpListener::bind("[::]:22").unwrap();
    sh("nft delete element inet cloakroom_base agent_interfaces '{ \"agents0\" }'");
    assert_ne!(lab.dial(GATEWAY[0], 22), ConnectOutcome::Silence, "the listener works");
    sh("nft add element inet cloakroom_base agent_interfaces '{ \"agents0\" }'");
    for own in GATEWAY {
        assert_eq!(lab.dial(own, 22), ConnectOutcome::Silence, "{own}");
    }
    drop(services);
    assert_eq!(lab.reached_origin(), 0);
    // The lab can fail: without the guard, and before the daemon, everything is open.
    sh("nft delete table inet cloakroom_base");
    for origin in ORIGIN {
        assert_eq!(lab.dial(origin, 443), ConnectOutcome::Answered, "{origin}");
    }
    load_base();
    // With the interface in the guard's set, the daemon's own captures still come through.
    let _listeners = lab.start();
    for origin in ORIGIN {
        assert_eq!(lab.dial(origin, 443), ConnectOutcome::Captured, "{origin}");
    }
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn without_ipv6_no_ipv6_passes() {
    let lab = Lab::new(false);
    let _listeners = lab.start();
    // Both ends get each other's address without discovery: its failure is no protection.
    let mac = |link: String| {
        link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned()
    };
    let (near, far) =
        (mac(sh("ip -o link show agents0")), mac(lab.in_agent("ip -o link show eth0")));
    lab.in_agent(&format!("ip neighbour replace {} lladdr {near} dev eth0", GATEWAY[1]));
    sh(&format!("ip neighbour replace {} lladdr {far} dev agents0", AGENT[1]));
    assert_eq!(lab.dial(ORIGIN[0], 443), ConnectOutcome::Captured);
    for destination in [ORIGIN[1], GATEWAY[1]] {
        for port in [443, 8080] {
            assert_eq!(lab.dial(destination, port), ConnectOutcome::Silence, "{destination}");
        }
    }
    assert_eq!(lab.reached_origin(), 0);
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn a_spoofed_source_is_never_answered() {
    let lab = Lab::new(true);
    let _listeners = lab.start();
    // Sources of another group, of a routable stranger, of the gateway's own far side, and
    // link-local.
    let spoofed = [
        "10.20.1.9",
        "2001:db8:20:1::9",
        "10.21.0.9",
        "198.51.100.9",
        "203.0.113.1",
        "169.254.7.7",
        "2001:db8:21::9",
        "fd00:99::9",
    ];
    // The way back to these leads through the agents' wire: only the group's prefixes refuse them.
    sh("ip route add 10.20.1.0/24 dev agents0; ip route add 2001:db8:20:1::/64 dev agents0");
    let before = lab.answers_sent();
    for source in spoofed {
        let length = if source.contains(':') { 128 } else { 32 };
        lab.in_agent(&format!("ip address add {source}/{length} dev eth0 nodad"));
        let origin = if source.contains(':') { ORIGIN[1] } else { ORIGIN[0] };
        for port in [443, 8080] {
            assert_eq!(lab.dial_from(source, origin, port), ConnectOutcome::Silence, "{source}");
        }
        lab.in_agent(&format!("ip address del {source}/{length} dev eth0"));
    }
    assert_eq!(lab.answers_sent(), before, "an answer to a spoofed source");
    assert!(dropped_as_spoofed() >= 2 * spoofed.len(), "they were dropped somewhere else");
    assert_eq!(lab.dial(ORIGIN[0], 443), ConnectOutcome::Captured);
    assert_eq!(lab.reached_origin(), 0);
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn neighbours_find_each_other_by_link_local_addresses() {
    let lab = Lab::new(true);
    let _listeners = lab.start();
    let addresses = sh("ip -6 -o address show dev agents0 scope link");
    let gateway = addresses.split("inet6 ").nth(1).unwrap().split('/').next().unwrap();
    let found = |line: &str| line.starts_with(gateway) && line.contains("lladdr");
    let (mut known, deadline) = (String::new(), Instant::now() + 5 * TIMEOUT);
    // While the agent's own address is tentative, it has no source to ask from.
    while !known.lines().any(found) && Instant::now() < deadline {
        lab.knock(gateway);
        known = lab.in_agent("sleep 0.2; ip -6 neighbour show");
    }
    assert!(known.lines().any(found), "{known}");
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn a_connection_outlives_the_listing_of_its_port() {
    let lab = Lab::new(true);
    let other = Capture { ports: vec![8080], ..lab.capture.clone() };
    let listeners = InheritedListeners::default().listen(&lab.capture).unwrap();
    for origin in ORIGIN {
        apply(&lab.capture).unwrap();
        let mut near = lab.connect(origin, 443);
        let far = listeners.iter().find_map(|each| each.socket.accept().ok());
        let (mut far, _) = far.expect("a connection that nobody accepted");
        apply(&other).unwrap();
        near.write_all(b"still there?").unwrap();
        far.set_nonblocking(false).unwrap();
        far.set_read_timeout(Some(TIMEOUT)).unwrap();
        far.read_exact(&mut [0; 12]).unwrap();
        assert_eq!(lab.dial(origin, 443), ConnectOutcome::Refused, "{origin}");
    }
    assert_eq!(lab.reached_origin(), 0);
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn reloading_under_traffic_leaks_nothing() {
    let lab = Lab::new(true);
    let _listeners = lab.start();
    // The daemon's own table must hold without the guard.
    sh("nft delete table inet cloakroom_base");
    let stop = Arc::new(AtomicBool::new(false));
    let flood = lab.flood(stop.clone());
    let dials = lab.dial_on(stop.clone());
    let other = Capture { ports: vec![443, 8080], ..lab.capture.clone() };
    for turn in 0..100 {
        apply(if turn % 2 == 0 { &other } else { &lab.capture }).unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let (sent, dialled) = (flood.join().unwrap(), dials.join().unwrap());
    assert!(sent > 1000 && dialled.len() > 20, "{sent} datagrams, {} connections", dialled.len());
    assert!(dialled.iter().all(|outcome| *outcome == ConnectOutcome::Captured), "{dialled:?}");
    assert_eq!(lab.reached_origin(), 0, "of {sent}");
}
