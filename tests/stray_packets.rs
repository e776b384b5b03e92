//! Whatever an agent that is root puts on the wire, the gateway's outside carries only what the
//! gateway itself originated for a decision that it took, and the gateway goes on serving.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd as _,
    time::Duration,
};

use lab::{
    client::{python, succeed},
    net::{AGENT, Capture, GATEWAY, INTERNET},
    sandboxed, tools, wait,
};
use rustix::{
    event::{PollFd, PollFlags, poll},
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt::socket_error},
};

use crate::world::{TICKET, World, get};

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
    let world = World::usual();
    assert_eq!(world.ask(&get(&[TICKET])).status, 200);
    let outside = world.lab.capture(INTERNET);
    let before = descriptors(&world);
    let sent = send(&world, name);
    assert!(sent >= at_least, "{name}: {sent} frames were sent");
    std::thread::sleep(wait::QUIET);
    assert!(!outside.holds("STRAY-PACKET"), "{name}: a stray packet came through");
    assert_only_the_gateways_own(&outside);
    assert!(world.dns.asked().iter().all(|name| !format!("{name:?}").contains("STRAY")));
    assert_eq!(world.ask(&get(&[TICKET])).status, 200, "{name}: it goes on");
    let mut ipv6 = world
        .h1_from(AGENT, lab::net::OPENAI.port6(443), lab::net::OPENAI.name)
        .expect("served over IPv6");
    assert_eq!(ipv6.ask(get(&[TICKET])).expect("served over IPv6").status, 200);
    drop(ipv6);
    wait::expect("no descriptor is left behind", || descriptors(&world) <= before + 2);
}

#[test]
fn without_the_rules_the_same_packets_get_out() {
    sandboxed(|| {
        let world = World::usual();
        let outside = world.lab.capture(INTERNET);
        GATEWAY.shell("nft flush ruleset");
        for battery in ["extension_headers", "fragments", "protocols", "flags", "tagged"] {
            let before = outside.packets().len();
            send(&world, battery);
            let packets = outside.packets().split_off(before);
            let marked = |packet: &Vec<u8>| packet.windows(12).any(|at| at == b"STRAY-PACKET");
            let got_out = packets.iter().filter(|packet| marked(packet)).count();
            assert!(got_out > 3, "{battery} proves nothing: {got_out}");
        }
    });
}

/// Sends a battery as the first agent, and says how many frames that were.
fn send(world: &World, battery: &str) -> usize {
    let mac = GATEWAY.shell("cat /sys/class/net/agents0/address");
    let python = python().display().to_string();
    let script = tools::repository().join("tests/stray_packets.py");
    let mut command = lab::client::agent(&world.lab, AGENT, &python);
    let sent = succeed(command.arg(script).args([mac.trim(), battery]));
    sent.trim().parse().expect("a number of frames")
}

/// Every frame that the gateway sent outside is ARP, neighbour discovery or group membership, a
/// question to its resolver, or TCP to a port that policy lists, from its own address.
#[track_caller]
fn assert_only_the_gateways_own(outside: &Capture) {
    let mac = GATEWAY.shell("cat /sys/class/net/wan0/address");
    let mac: Vec<u8> = mac
        .trim()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16).expect("a MAC address"))
        .collect();
    let mut seen = 0;
    for frame in outside.packets().iter().filter(|frame| frame.get(6..12) == Some(&mac)) {
        assert!(is_the_gateways_own(frame), "{}", hex(frame));
        seen += 1;
    }
    assert!(seen < 1_000, "{seen} frames");
}

fn is_the_gateways_own(frame: &[u8]) -> bool {
    let packet = &frame[14..];
    let (source, protocol, transport) = match frame[12..14] {
        [0x08, 0x06] => return true,
        [0x08, 0x00] => {
            let source = IpAddr::from(<[u8; 4]>::try_from(&packet[12..16]).expect("four"));
            (source, packet[9], &packet[usize::from(packet[0] & 15) * 4..])
        }
        [0x86, 0xdd] => {
            let source = IpAddr::from(<[u8; 16]>::try_from(&packet[8..24]).expect("sixteen"));
            (source, packet[6], &packet[40..])
        }
        _ => return false,
    };
    let own = ["203.0.113.2", "2001:db8:f::2"].map(|own| own.parse::<IpAddr>().expect("one"));
    let link_local = matches!(source, IpAddr::V6(source) if source.is_unicast_link_local());
    let port = || u16::from_be_bytes([transport[2], transport[3]]);
    match protocol {
        // Multicast listener reports stand behind a hop-by-hop header; they may come from `::`.
        0 => transport[0] == 58 && transport[8] == 143,
        6 => own.contains(&source) && [80, 443].contains(&port()),
        17 => own.contains(&source) && port() == 53,
        58 => (133..=136).contains(&transport[0]) && (link_local || own.contains(&source)),
        _ => false,
    }
}

#[test]
fn no_port_of_any_address_of_the_gateway_answers() {
    lab::sandbox::sandboxed_for(Duration::from_secs(180), || {
        let world = World::usual();
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        // Something is there to be found.
        let services: Vec<_> = GATEWAY.enter(|| {
            [22, 8200, 9090].map(|port| std::net::TcpListener::bind(("::", port))).into()
        });
        assert!(services.iter().all(Result::is_ok));
        let before = descriptors(&world);
        let own = ["192.0.2.1", "192.0.2.129", "203.0.113.2", "2001:db8:a::1", "2001:db8:f::2"];
        for address in own.map(|own| own.parse::<IpAddr>().expect("an address")) {
            let ports: Vec<u16> = (1..=u16::MAX).filter(|port| *port != DNS_PORT).collect();
            for ports in ports.chunks(BATCH) {
                let answered = AGENT.enter(|| tcp_answers(address, ports));
                assert!(answered.is_empty(), "{address} answers on {answered:?}");
            }
            let answered = AGENT.enter(|| udp_answer(address, &ports));
            assert!(answered.is_none(), "{address} answers from {answered:?}");
        }
        assert!(descriptors(&world) <= before + 2, "descriptors grow");
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
    });
}

/// The ports that accept or refuse a connection, instead of saying nothing.
fn tcp_answers(address: IpAddr, ports: &[u16]) -> Vec<u16> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let sockets: Vec<_> = ports
        .iter()
        .map(|port| {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(family, SocketType::STREAM, flags, None).expect("a socket");
            let begun = connect(&socket, &SocketAddr::new(address, *port));
            assert_eq!(begun, Err(rustix::io::Errno::INPROGRESS), "{address} port {port}");
            socket
        })
        .collect();
    std::thread::sleep(Duration::from_millis(100));
    let mut polled: Vec<PollFd<'_>> = sockets
        .iter()
        .map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::OUT))
        .collect();
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).expect("polled");
    let states = polled.iter().map(|polled| !polled.revents().is_empty()).collect::<Vec<_>>();
    let answered = ports.iter().zip(&sockets).zip(states).filter(|(_, answered)| *answered);
    answered
        .map(|((port, socket), _)| {
            let _ = socket_error(socket);
            *port
        })
        .collect()
}

/// Who answers a datagram to any of these ports.
fn udp_answer(address: IpAddr, ports: &[u16]) -> Option<SocketAddr> {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).expect("a socket");
    socket.set_read_timeout(Some(wait::QUIET)).expect("a socket");
    for port in ports {
        // A full queue on the way loses some; every port is asked once and no one is to answer.
        let _ = socket.send_to(b"anybody there?", SocketAddr::new(address, *port));
    }
    socket.recv_from(&mut [0; 64]).ok().map(|(_, from)| from)
}

fn descriptors(world: &World) -> usize {
    let listed = std::fs::read_dir(format!("/proc/{}/fd", world.gateway.pid()));
    listed.expect("the gateway runs").count()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

const DNS_PORT: u16 = 53;
/// Connections that are tried at once.
const BATCH: usize = 8_192;
