//! An agent tries every port of every address of the gateway and of Vault: only the agents'
//! resolver answers, and nothing reaches Vault.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpListener, UdpSocket},
    os::fd::{AsFd as _, OwnedFd},
    thread,
    time::Duration,
};

use hickory_proto::rr::RecordType;
use lab::{
    audit::Record,
    gateway,
    net::{AGENT, Capture, GATEWAY, GATEWAY_V4, GATEWAY_V6, INTERNET, Ns, PYPI, VAULT},
    sandbox::sandboxed_for,
    wait,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt::socket_error},
};

use crate::{
    clients::onboarding::onboarding,
    dns::client::{addresses as told_addresses, anywhere, ask},
    packets::stray_packets::{descriptors, mac},
    world::{TICKET, World, get},
};

#[test]
fn no_port_of_any_address_of_the_gateway_answers() {
    sandboxed_for(LIMIT, || only_answer(World::usual(), &[], &[]));
}

/// With onboarding one more port answers, at the two addresses of the agent's own interface and
/// nowhere else.
#[test]
fn onboarding_opens_one_port_of_one_interface() {
    let here = [IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)];
    sandboxed_for(LIMIT, || only_answer(onboarding(), &here, &[80]));
}

/// Checks that only the resolver answers at any address, and these ports at these addresses.
fn only_answer(mut world: World, open_at: &[IpAddr], open: &[u16]) {
    {
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        let _management = listen(GATEWAY, &MANAGEMENT.map(|port| ([0; 16], port).into()));
        let before = descriptors(&world);
        let arrived = count_knocks();
        let addresses: Vec<_> = OWN.map(|own| SocketAddr::new(parsed(own), 0)).into();
        let addresses = [addresses, link_local()].concat();
        for address in &addresses {
            for ports in (1..=u16::MAX).collect::<Vec<_>>().chunks(BATCH) {
                let (accepted, refused) = AGENT.enter(|| knock(*address, ports));
                let resolver = !is_link_local(address) && ports.contains(&53);
                let here: &[u16] = if open_at.contains(&address.ip()) { open } else { &[] };
                let expected = [if resolver { &[53][..] } else { &[] }, here].concat();
                let expected: Vec<u16> =
                    expected.into_iter().filter(|port| ports.contains(port)).collect();
                assert_eq!(accepted, expected, "{address}");
                assert!(refused.is_empty(), "{address} refuses {refused:?}, and so answers");
            }
            let answered = AGENT.enter(|| udp_answer(*address));
            assert!(answered.is_none(), "{address} answers from {answered:?}");
        }
        let all = addresses.len() * usize::from(u16::MAX);
        wait::expect("every port was asked", || arrived() >= [all, all - addresses.len()]);
        wait::expect("descriptors do not grow", || descriptors(&world) <= before + 2);
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);

        // Without the rules, the same attempts do find the listeners.
        world.gateway.kill();
        GATEWAY.shell("nft flush ruleset");
        let _echo = echo(GATEWAY);
        for address in addresses.iter().take(OWN.len() + 1) {
            let (accepted, _) = AGENT.enter(|| knock_alone(*address, &MANAGEMENT));
            assert_eq!(accepted, MANAGEMENT, "{address}");
            let answered = AGENT.enter(|| udp_answer(*address));
            assert_eq!(answered.map(|from| from.port()), Some(ECHO), "{address}");
        }
    }
}

#[test]
fn no_port_of_vault_is_reached() {
    sandboxed_for(LIMIT, || {
        let config = gateway::with_absent_vault(gateway::usual_config());
        let mut world = World::prepared(&config, |lab, _| {
            lab.write("secret-id", "lab-secret-id-that-nobody-asks-for");
        });
        INTERNET.shell(&format!("ip addr add {VAULT_V6}/64 dev wan0 nodad"));
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        let addresses = [SocketAddr::from((VAULT, 0)), SocketAddr::new(parsed(VAULT_V6), 0)];
        let listening = addresses.map(|mut address| {
            address.set_port(8200);
            address
        });
        let _vault = listen(INTERNET, &listening);
        let outside = world.lab.capture(INTERNET);
        let before = descriptors(&world);
        for address in addresses {
            for ports in (1..=u16::MAX).collect::<Vec<_>>().chunks(BATCH) {
                let (accepted, refused) = AGENT.enter(|| knock(address, ports));
                // These are captured wherever they lead: the gateway itself shakes hands, and the
                // test requires that it dials nobody.
                let captured = [53, 80, 443].into_iter().filter(|port| ports.contains(port));
                assert_eq!(accepted, captured.collect::<Vec<_>>(), "{address}");
                assert!(!refused.is_empty(), "{address}: silence, not a refusal");
            }
            let answered = AGENT.enter(|| udp_answer(address));
            assert!(answered.is_none(), "{address} answers from {answered:?}");
        }
        for mut address in addresses {
            for port in [80, 443] {
                address.set_port(port);
                let mut stream = AGENT.connect(address).expect("the gateway shakes hands");
                let request = format!("GET /v1/sys/health HTTP/1.1\r\nHost: {address}\r\n\r\n");
                std::io::Write::write_all(&mut stream, request.as_bytes()).expect("sent");
                let to_vault = |it: &Record| it["dialled"] == address.to_string();
                let audit = &world.gateway.audit;
                audit.wait_for(|it| to_vault(it) && it["decision"] == "refuse");
                let records = audit.records().into_iter().filter(to_vault);
                // A connection without any bytes was closed before there was anything to decide.
                let decided = records.filter(|it| it["decision"] != "none");
                assert!(decided.into_iter().all(|it| it["decision"] == "refuse"));
            }
        }
        // The owner of a listed name can point it anywhere, also at Vault.
        world.dns.set(PYPI.name, &[VAULT.into()]);
        let told = ask(anywhere(), PYPI.name, RecordType::A);
        assert!(told_addresses(&told).is_empty(), "Vault's address is told: {told}");
        let at_vault = SocketAddr::from((VAULT, 443));
        world.h1_from(AGENT, at_vault, PYPI.name).map(drop).expect_err("Vault is no upstream");
        assert_eq!(to(&outside, &addresses), 0, "frames to Vault that are not the gateway's own");
        wait::expect("descriptors do not grow", || descriptors(&world) <= before + 2);
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);

        // Without the rules, the same attempts do find Vault.
        world.gateway.kill();
        GATEWAY.shell("nft flush ruleset");
        gateway::forward();
        for address in addresses {
            let (accepted, refused) = AGENT.enter(|| knock_alone(address, &[8200, 8201]));
            assert_eq!((accepted, refused), (vec![8200], vec![8201]), "{address}");
        }
        assert!(to(&outside, &addresses) > 0, "a capture that sees nothing");
    });
}

/// Returns the ports that accept a connection and those that refuse one, instead of staying silent.
/// The gateway answers the last attempt, so earlier ones had enough time by then.
fn knock(address: SocketAddr, ports: &[u16]) -> (Vec<u16>, Vec<u16>) {
    let mut asked = Vec::with_capacity(ports.len());
    for some in ports.chunks(256) {
        asked.extend(some.iter().map(|port| begin(address, *port)));
        // Only as many at once as the queues on the way hold.
        thread::sleep(Duration::from_millis(1));
    }
    let resolver = [begin(SocketAddr::from((GATEWAY_V4, 0)), 53)];
    wait::expect("the gateway's resolver answers", || ready(&resolver)[0]);
    thread::sleep(GRACE);
    answers(ports, &asked)
}

/// Does the same where no port is known to answer; all attempts must end.
fn knock_alone(address: SocketAddr, ports: &[u16]) -> (Vec<u16>, Vec<u16>) {
    let asked: Vec<_> = ports.iter().map(|port| begin(address, *port)).collect();
    wait::expect("answers", || ready(&asked).iter().all(|ready| *ready));
    answers(ports, &asked)
}

fn begin(mut address: SocketAddr, port: u16) -> OwnedFd {
    address.set_port(port);
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::STREAM, flags, None).expect("a socket");
    assert_eq!(connect(&socket, &address), Err(Errno::INPROGRESS), "{address}");
    socket
}

fn ready(sockets: &[OwnedFd]) -> Vec<bool> {
    let wanted = |socket| PollFd::from_borrowed_fd(socket, PollFlags::OUT);
    let mut polled: Vec<_> = sockets.iter().map(|socket| wanted(socket.as_fd())).collect();
    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("polled");
    polled.iter().map(|polled| !polled.revents().is_empty()).collect()
}

fn answers(ports: &[u16], asked: &[OwnedFd]) -> (Vec<u16>, Vec<u16>) {
    let answered = ports.iter().zip(asked).zip(ready(asked)).filter(|(_, ready)| *ready);
    let accepts = |socket| matches!(socket_error(socket), Ok(Ok(())));
    let answered = answered.map(|((port, socket), _)| (*port, accepts(socket)));
    let (accepted, refused): (Vec<_>, Vec<_>) = answered.partition(|(_, accepts)| *accepts);
    let ports = |answers: Vec<(u16, bool)>| answers.into_iter().map(|(port, _)| port).collect();
    (ports(accepted), ports(refused))
}

/// Returns the address that answers a datagram to any port except that of DNS.
fn udp_answer(mut address: SocketAddr) -> Option<SocketAddr> {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).expect("a socket");
    socket.set_read_timeout(Some(wait::QUIET)).expect("a socket");
    for port in (1..=u16::MAX).filter(|port| *port != 53) {
        address.set_port(port);
        let ask = || socket.send_to(b"anybody there?", address);
        // The first result may be the refusal of an earlier datagram.
        ask().or_else(|_| ask()).expect("sent");
        if port % 64 == 0 {
            // Only as many at once as the queues on the way hold.
            thread::sleep(Duration::from_millis(1));
        }
    }
    socket.recv_from(&mut [0; 64]).ok().map(|(_, from)| from)
}

/// Counts the SYNs and the datagrams that come from the agent.
fn count_knocks() -> impl Fn() -> [usize; 2] {
    GATEWAY.shell(
        "nft 'table inet witness { chain c { type filter hook prerouting priority -400; \
         iifname \"agents0\" tcp flags & (syn | ack) == syn counter; \
         iifname \"agents0\" meta l4proto udp counter; }; }'",
    );
    || {
        let listed = GATEWAY.shell("nft list table inet witness");
        let counts = listed.split("counter packets ").skip(1);
        let counts = counts.filter_map(|rest| rest.split(' ').next()?.parse().ok());
        counts.collect::<Vec<_>>().try_into().expect("two counters")
    }
}

fn listen(ns: Ns, addresses: &[SocketAddr]) -> Vec<TcpListener> {
    let bind = |address| TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    ns.enter(|| addresses.iter().map(bind).collect())
}

/// Starts a service that answers datagrams.
fn echo(ns: Ns) -> thread::JoinHandle<()> {
    let socket = ns.enter(|| UdpSocket::bind(("::", ECHO)).expect("bound"));
    thread::spawn(move || {
        while let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
            let _ = socket.send_to(b"here", from);
        }
    })
}

/// Returns the gateway's link-local addresses, first that of the agent's own link. The agent sends
/// to all of them there.
fn link_local() -> Vec<SocketAddr> {
    let scope = AGENT.shell("cat /sys/class/net/eth0/ifindex").trim().parse().expect("a number");
    let mac = mac(GATEWAY, "agents0");
    let address = |link| {
        let listed = GATEWAY.shell(&format!("ip -6 -o addr show dev {link} scope link"));
        let address = listed.split_whitespace().nth(3).and_then(|it| it.split('/').next());
        let address: Ipv6Addr = address.expect("one").parse().expect("an address");
        AGENT.shell(&format!("ip neigh replace {address} lladdr {mac} dev eth0 nud permanent"));
        SocketAddrV6::new(address, 0, 0, scope).into()
    };
    ["agents0", "agents1", "wan0"].map(address).into()
}

fn is_link_local(address: &SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(v6) if v6.is_unicast_link_local())
}

/// Returns how many TCP packets went to one of these, except those to Vault's API, to which the
/// gateway itself talks: that an agent's connection there is refused shows in its end.
fn to(outside: &Capture, addresses: &[SocketAddr]) -> usize {
    let api = 8200_u16.to_be_bytes();
    let to = |frame: &Vec<u8>| match [frame[12], frame[13]] {
        [0x08, 0x00] => {
            addresses.iter().any(|it| it.ip() == octets::<4>(frame, 30)) && frame[36..38] != api
        }
        [0x86, 0xdd] => {
            addresses.iter().any(|it| it.ip() == octets::<16>(frame, 38)) && frame[56..58] != api
        }
        _ => false,
    };
    outside.packets().iter().filter(|frame| to(frame)).count()
}

fn octets<const N: usize>(frame: &[u8], at: usize) -> IpAddr
where
    IpAddr: From<[u8; N]>,
{
    IpAddr::from(<[u8; N]>::try_from(&frame[at..at + N]).expect("a whole header"))
}

fn parsed(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

/// The gateway's addresses, without those of its links.
const OWN: [&str; 6] =
    ["192.0.2.1", "192.0.2.129", "203.0.113.2", "2001:db8:a::1", "2001:db8:b::1", "2001:db8:f::2"];
/// Vault's address in IPv6, for these tests only.
const VAULT_V6: &str = "2001:db8:f::200";
/// Ports on which services listen on all of the gateway's addresses.
const MANAGEMENT: [u16; 3] = [22, 8200, 9090];
/// The port of a service that answers datagrams.
const ECHO: u16 = 40_000;
/// Connections that are tried at once; a process may have some 20,000 descriptors.
const BATCH: usize = 8_192;
/// Time for an answer after a later attempt has had its own.
const GRACE: Duration = Duration::from_millis(200);
/// Longest time of one of these tests, on a machine with other work.
const LIMIT: Duration = Duration::from_secs(240);
