//! The packets that the kernel refuses are in the audit, summed up, with nothing missing from the
//! sums.

use std::{
    net::{Ipv4Addr, SocketAddrV6, UdpSocket},
    path::Path,
    time::{Duration, Instant},
};

use lab::{
    Lab,
    audit::Record,
    dns::Dns,
    gateway::{self, Gateway},
    net::{AGENT, AGENT_V4, AGENT2, GATEWAY, GATEWAY_V4, OPENAI, OTHER},
    sandboxed, wait,
};
use policy_builder::group;
use serde_json::Value;

use crate::world::{TICKET, World, get};

#[test]
fn refusals_before_a_connection_are_in_the_audit() {
    sandboxed(|| {
        let mut world = World::usual();
        AGENT.connect(OPENAI.port(22)).expect_err("closed");
        AGENT.connect(OPENAI.port6(22)).expect_err("closed");
        AGENT2.connect(OTHER.port(25)).expect_err("closed");
        AGENT.connect((GATEWAY_V4, 22).into()).expect_err("the gateway's own");
        AGENT.enter(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            for _ in 0..5 {
                let _ = socket.send_to(b"initial", OPENAI.port(443));
            }
        });
        AGENT.shell("ip addr add 10.1.2.3/32 dev eth0");
        AGENT.enter(|| {
            let socket = UdpSocket::bind("10.1.2.3:0").expect("a socket");
            let _ = socket.send_to(b"spoofed", OPENAI.port(443));
        });
        std::thread::sleep(Duration::from_millis(500));
        world.gateway.terminate(Duration::from_secs(10));
        let sums = sums(&world.gateway);
        // All refusals of an interval are one record; the interval may end between two packets.
        let one = |wanted: &[(&str, Value)]| {
            let matching = |sum: &&Record| wanted.iter().all(|(key, value)| sum[key] == *value);
            let found: Vec<_> = sums.iter().filter(matching).collect();
            assert!(found.len() == 1 || found.len() == 2, "{wanted:?} in {sums:#?}");
            let count: u64 = found.iter().filter_map(|sum| sum["count"].as_u64()).sum();
            found[0].clone().with("count", count)
        };
        let first = ("agent", Value::from("192.0.2.10"));
        let tcp = one(&[
            first.clone(),
            ("protocol", "tcp".into()),
            ("port", 22.into()),
            ("reason", "port_denied".into()),
        ]);
        assert_eq!((&tcp["group"], &tcp["interface"]), (&"research".into(), &"agents0".into()));
        assert_eq!(tcp["first_destination"], "198.51.100.10");
        let quic = one(&[first.clone(), ("protocol", "udp".into()), ("port", 443.into())]);
        assert_eq!((&quic["reason"], &quic["count"]), (&"protocol_denied".into(), &5.into()));
        let prefix = one(&[("agent", "2001:db8:a::/64".into()), ("port", 22.into())]);
        assert_eq!(prefix["first_source"], "2001:db8:a::10");
        let other = one(&[("agent", "192.0.2.140".into()), ("port", 25.into())]);
        assert_eq!(other["group"], "operations");
        one(&[first, ("reason", "self_destination".into()), ("port", 22.into())]);
        let spoofed = one(&[("reason", "spoofed_source".into()), ("protocol", "udp".into())]);
        assert_eq!(
            (&spoofed["agent"], &spoofed["first_source"]),
            (&Value::Null, &"10.1.2.3".into())
        );
    });
}

#[test]
fn records_come_every_interval_without_asking() {
    sandboxed(|| {
        let world = World::usual();
        AGENT.connect(OPENAI.port(22)).expect_err("closed");
        let end = Instant::now() + Duration::from_secs(15);
        while sums(&world.gateway).is_empty() {
            assert!(Instant::now() < end, "no record: {}", world.gateway.audit.text());
            std::thread::sleep(Duration::from_millis(200));
        }
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
    });
}

#[test]
fn under_a_flood_every_packet_is_in_a_sum() {
    sandboxed(|| {
        let mut world = World::usual();
        let flood = Instant::now() + Duration::from_secs(2);
        AGENT.enter(|| {
            let sockets = [443, 4433].map(|port| {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                (socket, OPENAI.port(port))
            });
            while Instant::now() < flood {
                for (socket, to) in &sockets {
                    let _ = socket.send_to(b"flood", to);
                }
            }
        });
        assert_eq!(world.ask(&get(&[TICKET])).status, 200, "the rest works meanwhile");
        // Another reason is reported in spite of the flood.
        AGENT.connect(OPENAI.port(22)).expect_err("closed");
        std::thread::sleep(Duration::from_millis(500));
        let counted = counter("protocol_denied");
        world.gateway.terminate(Duration::from_secs(10));
        let records = world.gateway.audit.records();
        let count = |record: &Record| record["count"].as_u64().unwrap_or_default();
        let of = |kind: &str, reason: &str| -> u64 {
            let wanted = |it: &&Record| it.is(kind) && it["reason"] == reason;
            records.iter().filter(wanted).map(count).sum()
        };
        let lost: u64 = records.iter().filter(|it| it["cause"] == "lost").map(count).sum();
        let (logged, unlogged) =
            (of("packets", "protocol_denied"), of("packets_unseen", "protocol_denied"));
        assert!(counted > 3_000, "no flood: {counted}");
        assert!(unlogged > 0, "the rate has a limit: {counted} counted, {logged} told");
        assert_eq!(logged + unlogged + lost, counted, "{logged} told, {unlogged} not, {lost} lost");
        assert!(of("packets", "port_denied") > 0);
    });
}

#[test]
fn one_agents_flood_hides_no_other_agents_packets() {
    sandboxed(|| {
        let mut world = World::usual();
        let flood = Instant::now() + Duration::from_secs(2);
        std::thread::scope(|scope| {
            scope.spawn(|| AGENT.enter(|| flood_until(flood)));
            std::thread::sleep(Duration::from_secs(1));
            AGENT2.enter(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
                for _ in 0..5 {
                    let _ = socket.send_to(b"initial", OPENAI.port(443));
                }
            });
        });
        std::thread::sleep(Duration::from_millis(500));
        world.gateway.terminate(Duration::from_secs(10));
        let sums = sums(&world.gateway);
        let of = |agent: &str| -> u64 {
            let its = sums.iter().filter(|it| it["agent"] == agent && it["port"] == 443);
            its.filter_map(|it| it["count"].as_u64()).sum()
        };
        assert_eq!(of("192.0.2.140"), 5, "{sums:#?}");
        let flooder = of("192.0.2.10");
        assert!((100..2_000).contains(&flooder), "the flooder has a bound: {flooder}");
        assert!(counter("protocol_denied") > 3_000, "no flood");
    });
}

#[test]
fn one_agents_many_addresses_hide_no_other_groups_packets() {
    sandboxed(|| {
        let second = group("second", "agents0", &["10.7.0.0/24"]);
        let config = gateway::usual_config().with(second);
        let mut world = World::with(&config);
        GATEWAY.shell("ip addr add 10.7.0.1/24 dev agents0");
        AGENT.shell("ip addr add 10.7.0.9/24 dev eth0");
        let many = (1..=100).map(|last| format!("2001:db8:a::1:{last:x}")).collect::<Vec<_>>();
        let add = |address: &String| format!("ip addr add {address}/64 dev eth0 nodad\n");
        AGENT.shell(&many.iter().map(add).collect::<String>());
        AGENT.enter(|| {
            for address in &many {
                let socket = UdpSocket::bind((address.as_str(), 0)).expect("a socket");
                let _ = socket.send_to(b"initial", OPENAI.port6(443));
            }
            let socket = UdpSocket::bind("10.7.0.9:0").expect("a socket");
            for _ in 0..5 {
                let _ = socket.send_to(b"initial", OPENAI.port(443));
            }
        });
        wait::expect("all are refused", || counter("protocol_denied") >= 105);
        std::thread::sleep(Duration::from_millis(500));
        world.gateway.terminate(Duration::from_secs(10));
        let sums = sums(&world.gateway);
        let of = |agent: &str, group: &str| -> u64 {
            let its = sums.iter().filter(|it| it["agent"] == agent && it["group"] == group);
            its.filter(|it| it["port"] == 443).filter_map(|it| it["count"].as_u64()).sum()
        };
        assert_eq!(of("10.7.0.9", "second"), 5, "{sums:#?}");
        assert_eq!(of("2001:db8:a::/64", "research"), 100, "{sums:#?}");
    });
}

#[test]
fn a_dns_flood_is_cut_before_the_shared_socket() {
    sandboxed(|| {
        let mut world = World::usual();
        AGENT.shell("ip addr add 192.0.2.20/32 dev eth0");
        let flood = Instant::now() + Duration::from_secs(3);
        let answered = std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    AGENT.enter(|| {
                        let socket = UdpSocket::bind("192.0.2.10:0").expect("a socket");
                        while Instant::now() < flood {
                            let _ = socket.send_to(QUERY, (GATEWAY_V4, 53));
                        }
                    });
                });
            }
            std::thread::sleep(Duration::from_millis(500));
            AGENT.enter(|| {
                let socket = UdpSocket::bind("192.0.2.20:0").expect("a socket");
                socket.set_read_timeout(Some(Duration::from_secs(1))).expect("a socket");
                (0..10)
                    .filter(|_| {
                        socket.send_to(QUERY, (GATEWAY_V4, 53)).expect("sent");
                        socket.recv_from(&mut [0; 512]).is_ok()
                    })
                    .count()
            })
        });
        assert!(answered >= 9, "{answered} of 10 queries of another agent were answered");
        let cut = counter("dns_rate");
        assert!(cut > 1_000, "no flood: {cut}");
        world.gateway.terminate(Duration::from_secs(10));
        let sums = sums(&world.gateway);
        let logged =
            sums.iter().any(|it| it["reason"] == "dns_rate" && it["agent"] == "192.0.2.10");
        assert!(logged, "{sums:#?}");
    });
}

#[test]
fn unasked_packets_of_every_host_have_their_own_word() {
    sandboxed(|| {
        let logged = sums_of_what_hosts_say(World::usual());
        assert!(logged.iter().all(|it| it["reason"] != "spoofed_source"), "{logged:#?}");
    });
}

#[test]
fn what_a_bound_agent_says_unasked_has_that_word_too() {
    sandboxed(|| {
        let logged = sums_of_what_hosts_say(crate::packets::bound_agents::bound());
        assert!(logged.iter().all(|it| it["reason"] != "spoofed_source"), "{logged:#?}");
    });
}

/// Makes the first agent join groups by both versions of MLD and by IGMP, look for names by mDNS,
/// for an address by DHCP, and for a router as a host does whose link comes up. Requires that each
/// is in a sum of `multicast_denied`, and returns all sums.
fn sums_of_what_hosts_say(mut world: World) -> Vec<Record> {
    AGENT.shell(
        "sysctl -qw net.ipv6.conf.eth0.accept_ra=1 net.ipv6.conf.eth0.router_solicitation_delay=0",
    );
    let link = AGENT.shell("cat /sys/class/net/eth0/ifindex");
    let link: u32 = link.trim().parse().expect("a number");
    let join = |group: &str| {
        let group = group.parse().expect("a group");
        AGENT.enter(|| {
            let socket = UdpSocket::bind("[::]:0").expect("a socket");
            socket.join_multicast_v6(&group, link).expect("joined");
            std::thread::sleep(Duration::from_secs(1));
        });
    };
    join("ff02::1234:5678");
    AGENT.shell("sysctl -qw net.ipv6.conf.eth0.force_mld_version=1");
    join("ff02::1234:5679");
    AGENT.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
        socket.join_multicast_v4(&Ipv4Addr::new(239, 1, 2, 3), &AGENT_V4).expect("joined");
        let names = SocketAddrV6::new("ff02::fb".parse().expect("mDNS"), 5353, 0, link);
        UdpSocket::bind("[::]:0").expect("a socket").send_to(b"names", names).expect("sent");
        std::thread::sleep(Duration::from_secs(1));
    });
    AGENT.shell(&format!("python3 -c \"{DISCOVER}\""));
    AGENT.shell("ip link set eth0 down; ip link set eth0 up");
    let told = |protocol: &str, port: Option<u16>| -> u64 {
        let sums = sums(&world.gateway).into_iter();
        let ours = sums.filter(|it| it["reason"] == "multicast_denied");
        let ours = ours.filter(|it| it["protocol"] == protocol && it["port"] == Value::from(port));
        ours.filter_map(|it| it["count"].as_u64()).sum()
    };
    let all =
        [("icmpv6", None, 3), ("igmp", None, 1), ("udp", Some(5353), 1), ("udp", Some(67), 1)];
    for (protocol, port, least) in all {
        let enough = || (told(protocol, port) >= least).then_some(());
        let told = wait::until(Duration::from_secs(30), enough);
        assert!(told.is_some(), "{protocol} {port:?}: {:#?}", sums(&world.gateway));
    }
    world.gateway.terminate(Duration::from_secs(10));
    sums(&world.gateway)
}

/// Looks for a DHCP server as a host without an address does: UDP from 0.0.0.0 to 255.255.255.255
/// (RFC 2131, section 4.1), here with an empty payload.
const DISCOVER: &str = "import socket; \
    card = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); card.bind(('eth0', 0)); \
    card.send(bytes.fromhex('ff' * 6) + card.getsockname()[4] + bytes.fromhex('0800 \
    4500001c 00000000 40117ad2 00000000 ffffffff 0044004300080000'))";

/// A query for the address of api.openai.example.
const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x03api\x06openai\x07example\0\0\x01\0\x01";

#[test]
fn reloads_under_a_flood_lose_no_count() {
    sandboxed(|| {
        let mut world = World::usual();
        // A separate count of incoming packets, which no reload touches.
        GATEWAY.shell(
            "nft 'table inet witness { chain c { type filter hook prerouting priority -400; \
             iifname \"agents0\" udp dport 443 counter comment \"witness\"; }; }'",
        );
        let flood = Instant::now() + Duration::from_secs(3);
        std::thread::scope(|scope| {
            scope.spawn(|| AGENT.enter(|| flood_until(flood)));
            while Instant::now() < flood {
                world.gateway.reload();
                std::thread::sleep(Duration::from_millis(250));
            }
        });
        std::thread::sleep(Duration::from_millis(500));
        let witness = GATEWAY.shell("nft list table inet witness");
        let witness = packets_in(&witness, "witness");
        world.gateway.terminate(Duration::from_secs(10));
        let records = world.gateway.audit.records();
        let ours = |it: &&Record| it["reason"] == "protocol_denied" || it["cause"] == "lost";
        let sum: u64 = records.iter().filter(ours).filter_map(|it| it["count"].as_u64()).sum();
        assert!(witness > 3_000, "no flood: {witness}");
        assert_eq!(sum, witness);
    });
}

fn flood_until(end: Instant) {
    let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    while Instant::now() < end {
        let _ = socket.send_to(b"flood", OPENAI.port(443));
    }
}

#[test]
fn watch_shows_refused_packets_as_they_are_recorded() {
    sandboxed(|| {
        let mut world = World::usual();
        let file = world.lab.dir.join("audit.jsonl");
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        wait::expect("something is in the audit", || !world.gateway.audit.records().is_empty());
        let mut watch = std::process::Command::new(lab::tools::cloakroom())
            .args(["watch", "--refused", "--group", "research"])
            .arg(world.lab.dir.join("cloakroom.toml"))
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("watch starts");
        wait::expect("watch is at the file's end", || position(watch.id(), &file) > Some(0));
        AGENT2.connect(OTHER.port(25)).expect_err("closed");
        AGENT.connect(OPENAI.port(22)).expect_err("closed");
        let output = std::io::BufReader::new(watch.stdout.take().expect("piped"));
        let (tell, logged) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            std::io::BufRead::lines(output).map_while(|line| tell.send(line).ok()).count()
        });
        // The daemon writes it at the end of the interval, and goes on.
        let line = logged.recv_timeout(INTERVAL + wait::SOON).expect("in time").expect("a line");
        let words = ["research", "192.0.2.10", "refuse", "port_denied", "tcp port 22"];
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
        assert!(world.gateway.is_alive());
        watch.kill().expect("it runs");
        let _ = watch.wait();
    });
}

/// Interval at which the daemon writes its sums.
const INTERVAL: Duration = Duration::from_secs(10);

/// Returns the position of a process in a file that it has open.
fn position(pid: u32, file: &Path) -> Option<u64> {
    let opened = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
    let ours = opened.flatten().find(|fd| std::fs::read_link(fd.path()).is_ok_and(|it| it == file));
    let number = ours?.file_name();
    let info = std::fs::read_to_string(Path::new(&format!("/proc/{pid}/fdinfo")).join(number));
    info.ok()?.lines().find_map(|line| line.strip_prefix("pos:"))?.trim().parse().ok()
}

#[test]
fn a_taken_log_group_is_fatal_at_start() {
    sandboxed(|| {
        let lab = Lab::new();
        let _dns = Dns::start();
        let _first = Gateway::usual(&lab);
        let config = gateway::usual_config()
            .gateway("nflog_group", 7)
            .gateway("proxy_port", 15_002)
            .gateway("control", "{dir}/control/second.sock");
        let file = gateway::install_as(&lab, "second.toml", &config);
        let _holder = GATEWAY.enter(|| hold_group(7));
        let failed = Gateway::run(&lab, &file).err().expect("the group is taken");
        assert_eq!(failed.code(), Some(1), "{}", failed.stderr);
        assert!(failed.stderr.contains("NFLOG group 7"), "{}", failed.stderr);
    });
}

/// Takes an NFLOG group as another program would: with a socket that is bound to it.
fn hold_group(group: u16) -> rustix::fd::OwnedFd {
    use rustix::net::{AddressFamily, SendFlags, SocketType, netlink, recv, send, socket};
    let socket = socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::NETFILTER))
        .expect("a netlink socket");
    let [high, low] = group.to_be_bytes();
    // The message: nlmsghdr (28 bytes, ULOG config, request and acknowledge), nfgenmsg, the command
    // to bind.
    let mut message = 28_u32.to_ne_bytes().to_vec();
    message.extend(0x0401_u16.to_ne_bytes());
    message.extend(5_u16.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([0, 0, high, low]);
    message.extend(5_u16.to_ne_bytes());
    message.extend(1_u16.to_ne_bytes());
    message.extend([1, 0, 0, 0]);
    send(&socket, &message, SendFlags::empty()).expect("sent");
    let mut answer = [0; 64];
    recv(&socket, &mut answer[..], rustix::net::RecvFlags::empty()).expect("answered");
    assert_eq!(answer[16..20], [0; 4], "the group is ours");
    socket
}

fn sums(gateway: &Gateway) -> Vec<Record> {
    let records = gateway.audit.records().into_iter();
    records.filter(|it| it.is("packets")).collect()
}

/// Returns the packets that the rules with this reason have counted.
fn counter(reason: &str) -> u64 {
    packets_in(&GATEWAY.shell("nft list chain inet cloakroom prerouting"), reason)
}

/// Returns the packets that the rules with this comment have counted.
fn packets_in(listed: &str, comment: &str) -> u64 {
    let ours = listed.lines().filter(|line| line.contains(&format!("comment \"{comment}\"")));
    ours.filter_map(|line| {
        line.split("counter packets ").nth(1)?.split(' ').next()?.parse::<u64>().ok()
    })
    .sum::<u64>()
}
