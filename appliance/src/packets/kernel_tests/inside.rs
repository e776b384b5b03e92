//! The kernel's state after each step. Started by the tests of the same names in `mod.rs`.

use std::{
    fmt::Write,
    net::{TcpListener, UdpSocket},
};

use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
use socket2::{Domain, Socket, Type};

use super::{bound, example, interface, listing, load_base, net, only_in_a_namespace, sh};
use crate::packets::{
    Capture, CaptureInterface, InheritedListeners, PacketsError, apply, assert_settings, claim,
    prepare, render, require_guard, verify,
};

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn the_kernel_lists_what_the_golden_file_says() {
    only_in_a_namespace();
    sh("ip link add agents1 type veth peer name far1");
    apply(&example()).unwrap();
    let golden = include_str!("../../../../nft/golden.nft");
    let golden: Vec<&str> = golden.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(listing().lines().collect::<Vec<_>>(), golden, "{}", listing());
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn what_is_printed_is_what_is_installed() {
    only_in_a_namespace();
    sh("ip link add agents1 type veth peer name far1");
    for ipv6 in [true, false] {
        let capture = Capture { ipv6, ..example() };
        apply(&capture).unwrap();
        let installed = listing();
        sh(DELETE);
        let file = std::env::temp_dir().join(format!("cloakroom-{}.nft", std::process::id()));
        std::fs::write(&file, render(&capture)).unwrap();
        let name = file.to_string_lossy();
        sh(&format!("nft -c -f {name}; nft -f {name}; rm {name}"));
        assert_eq!(listing(), installed);
        verify(&capture).unwrap();
        sh(DELETE);
    }
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn applying_again_replaces_rules_and_keeps_chains() {
    only_in_a_namespace();
    let handles = || {
        let listing = sh("nft -a list table inet cloakroom");
        let inherited = |line: &&str| line.starts_with("\tset") || line.starts_with("\tchain");
        listing.lines().filter(inherited).map(str::to_owned).collect::<Vec<_>>()
    };
    apply(&example()).unwrap();
    let before = (listing(), handles());
    sh("nft insert rule inet cloakroom prerouting accept");
    sh("nft add element inet cloakroom ports '{ 22 }'");
    let other = Capture {
        interfaces: vec![CaptureInterface {
            narrow: vec![(1400, vec![net("10.20.0.0/16"), net("2001:db8:20::/64")])],
            onboarding: vec![net("10.20.0.0/16"), net("2001:db8:20::/64")],
            ..interface("agents9", &["10.20.0.0/16"])
        }],
        ports: vec![443, 8443],
        homes: Vec::new(),
        ..example()
    };
    apply(&other).unwrap();
    assert!(!listing().contains("agents0") && listing().contains("agents9"));
    assert!(!listing().contains("22,"));
    for _ in 0..20 {
        apply(&example()).unwrap();
    }
    assert_eq!((listing(), handles()), before);
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn a_policy_without_agents_or_ipv6_installs_too() {
    only_in_a_namespace();
    let empty = Capture {
        interfaces: Vec::new(),
        ports: Vec::new(),
        homes: Vec::new(),
        ipv6: false,
        ..example()
    };
    apply(&empty).unwrap();
    assert!(!listing().contains("tproxy ip6"));
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn many_prefixes_take_several_messages() {
    only_in_a_namespace();
    let mut capture = example();
    // Every second /24, so that none of them join.
    let nets = (0..1000u32).map(|n| net(&format!("100.{}.{}.0/24", 64 + n / 128, n % 128 * 2)));
    capture.interfaces[0].prefixes = nets.collect();
    capture.homes = capture.interfaces[0].prefixes.clone();
    // As many bound addresses as a configuration may have.
    sh("ip link add agents1 type veth peer name far1");
    let agents = (0..512).map(|n: u16| {
        let [high, low] = n.to_be_bytes();
        bound(&format!("02:00:00:00:{high:02x}:{low:02x}"), &[&format!("2001:db8:21::{n:x}")])
    });
    capture.interfaces[1].bound = agents.collect();
    apply(&capture).unwrap();
    apply(&capture).unwrap();
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn a_rule_that_somebody_added_is_noticed() {
    only_in_a_namespace();
    let noticed = |line: &str| {
        apply(&example()).unwrap();
        verify(&example()).unwrap();
        sh(line);
        let error = verify(&example()).unwrap_err();
        assert!(matches!(error, PacketsError::ReadBack { .. }), "{line}: {error}");
    };
    noticed("nft insert rule inet cloakroom prerouting accept");
    noticed("nft flush chain inet cloakroom prerouting");
    noticed("nft add element inet cloakroom ports '{ 22 }'");
    noticed("nft delete element inet cloakroom special_4 '{ 10.0.0.0/8 }'");
    noticed("nft add element inet cloakroom sources_4 '{ agents0 . 10.77.0.0/16 }'");
    noticed("nft add chain inet cloakroom forward '{ policy accept; }'");
    noticed("nft add chain inet cloakroom another");
    noticed("nft add set inet cloakroom more '{ type ipv4_addr; flags interval; }'");
    noticed("nft add rule inet cloakroom input iifname @agents accept");
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn a_constant_that_a_hand_has_changed_is_noticed() {
    only_in_a_namespace();
    sh("ip link add agents1 type veth peer name far1");
    let changed = |table: &str, from: &str, to: &str| {
        let listed = sh(&format!("nft -a list table {table} cloakroom"));
        let mut chain = "";
        for line in listed.lines() {
            chain = line.strip_prefix("\tchain ").map_or(chain, |it| it.split(' ').next().unwrap());
            let Some((rule, handle)) = line.split_once(" # handle ") else { continue };
            if chain.is_empty() || !rule.contains(from) {
                continue;
            }
            let rule = rule.trim().replacen(from, to, 1);
            let place = format!("{table} cloakroom {chain} handle {handle}");
            sh(&format!("nft -f - <<'END'\nreplace rule {place} {rule}\nEND"));
            return;
        }
        panic!("{from} is not in {listed}");
    };
    let cases = [
        ("inet", "tproxy ip to :8443", "tproxy ip to :8444"),
        ("inet", "tproxy ip to 192.0.0.8:53", "tproxy ip to 192.0.0.9:53"),
        ("inet", "tproxy ip6 to [100:0:0:1::35]:53", "tproxy ip6 to [100:0:0:1::35]:54"),
        ("inet", "meta mark set 0x0000c10a", "meta mark set 0x0000c10b"),
        ("inet", "udp dport 123", "udp dport 124"),
        ("inet", "ip6 hoplimit 255", "ip6 hoplimit 254"),
        (
            "inet",
            "{ nd-neighbor-solicit, nd-neighbor-advert }",
            "{ nd-neighbor-solicit, nd-redirect }",
        ),
        ("inet", "{ broadcast, multicast }", "{ broadcast, anycast }"),
        ("inet", "ip saddr @martian_4", "ip saddr != @martian_4"),
        ("inet", "ip daddr @special_4", "ip daddr @homes_4"),
        ("inet", "ip daddr @special_4", "ip daddr { 192.0.2.1 }"),
        ("inet", "goto destination_denied", "goto port_denied"),
        ("inet", "type != unicast", "type != local"),
        ("inet", "fib saddr type", "fib daddr type"),
        ("inet", "200/second burst 200", "200/second burst 300"),
        ("inet", "update @dns_4", "update @ntp_4"),
        ("inet", "& ffff:ffff:ffff:ffff::", "& ffff:ffff:ffff::"),
        ("inet", "counter name \"untold_dns_rate\"", "counter name \"untold_dns_denied\""),
        ("inet", "snaplen 128", "snaplen 64"),
        ("inet", " group 49418 snaplen 128", ""),
        ("inet", "socket wildcard 0", "socket wildcard 1"),
        ("inet", "icmpx admin-prohibited", "icmpx port-unreachable"),
        ("netdev", "priority set c10a:1", "priority set c10a:2"),
        ("netdev", "ether saddr != 02:00:00:00:00:01", "ether saddr != 02:00:00:00:00:02"),
    ];
    for (table, from, to) in cases {
        apply(&example()).unwrap();
        verify(&example()).unwrap();
        changed(table, from, to);
        let error = verify(&example()).err();
        assert!(matches!(error, Some(PacketsError::ReadBack { .. })), "{from} is now {to}");
    }
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn a_device_that_comes_back_is_bound_again() {
    only_in_a_namespace();
    let door = || listing().contains("hook ingress device \"agents1\"");
    // The device is missing, so it gets no chain, but prerouting asks for the proof all the same.
    apply(&example()).unwrap();
    assert!(!door() && listing().contains("iifname @bound meta priority != c10a:1"));
    sh("ip link add agents1 type veth peer name far1");
    assert!(verify(&example()).is_err(), "an unguarded device is noticed");
    apply(&example()).unwrap();
    assert!(door());
    // Kernels differ in what they do with the chain of a device that goes.
    sh("ip link del agents1");
    apply(&example()).unwrap();
    assert!(!door());
    sh("ip link add agents1 type veth peer name far1");
    assert!(verify(&example()).is_err(), "an unguarded device is noticed");
    apply(&example()).unwrap();
    assert!(door());
    // No agent is bound any more.
    let mut free = example();
    for interface in &mut free.interfaces {
        interface.bound.clear();
    }
    assert!(verify(&free).is_err());
    apply(&free).unwrap();
    assert!(!listing().contains("netdev"), "{}", listing());
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn a_hand_in_the_table_of_frames_is_noticed() {
    only_in_a_namespace();
    sh("ip link add agents1 type veth peer name far1");
    let noticed = |line: &str| {
        apply(&example()).unwrap();
        sh(line);
        let error = verify(&example()).unwrap_err();
        assert!(matches!(error, PacketsError::ReadBack { .. }), "{line}: {error}");
        apply(&example()).unwrap();
        verify(&example()).unwrap();
    };
    noticed("nft delete table netdev cloakroom");
    noticed("nft insert rule netdev cloakroom admit accept");
    noticed("nft flush chain netdev cloakroom on_agents1");
    noticed(
        "nft 'flush chain netdev cloakroom on_agents1; delete chain netdev cloakroom on_agents1'",
    );
    noticed(
        "nft add element netdev cloakroom bound_4 '{ agents1 . 02:00:00:00:00:09 . 10.23.0.9 }'",
    );
    noticed("nft add counter netdev cloakroom untold_more");
    noticed("nft add chain netdev cloakroom on_agents1 '{ policy accept; }'");
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn what_another_version_left_behind_is_removed() {
    only_in_a_namespace();
    sh("nft -f - <<'END'
table inet cloakroom {
    set old { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 }; }
    map names { type ipv4_addr : verdict; }
    chain before { type filter hook prerouting priority -200; ip saddr @old accept; jump helper; }
    chain helper { ip saddr vmap @names; ip saddr { 1.2.3.4, 1.2.3.5 } accept; }
    chain input { type filter hook input priority 0; jump helper; }
}
END");
    apply(&example()).unwrap();
    for leftover in ["old", "names", "before", "helper"] {
        let line = |kind: &str| format!("\t{kind} {leftover} {{");
        let found = ["set", "map", "chain"].iter().any(|kind| listing().contains(&line(kind)));
        assert!(!found, "{leftover}: {}", listing());
    }
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn nothing_starts_without_the_guard() {
    only_in_a_namespace();
    sh("ip link add agents0 type veth peer name agents1");
    let error = prepare_now(&example()).unwrap_err();
    assert!(matches!(error, PacketsError::NoBaseTable), "{error}");
    // A table of that name that does not drop is no guard either.
    sh(
        "nft 'table inet cloakroom_base { chain forward { type filter hook forward priority 0; }; }'",
    );
    assert!(matches!(prepare_now(&example()), Err(PacketsError::NoBaseTable)));
    sh("nft delete table inet cloakroom_base");
    load_base();
    assert!(matches!(prepare_now(&example()), Err(PacketsError::LoopbackDown)));
    sh("ip link set lo up");
    prepare_now(&example()).unwrap();
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn nothing_starts_where_the_guard_leaves_a_service_open() {
    only_in_a_namespace();
    sh("ip link set lo up; ip link add agents0 type veth peer name agents1");
    load_base();
    prepare_now(&example()).unwrap();
    let refused = |line: &str| {
        sh(line);
        let error = prepare_now(&example()).unwrap_err();
        let later = ground_now(&example()).unwrap_err();
        assert_eq!(later.to_string(), error.to_string(), "at the start and later");
        error
    };
    let set = "inet cloakroom_base agent_interfaces";
    let one = refused(&format!("nft delete element {set} '{{ \"agents1\" }}'"));
    assert!(matches!(&one, PacketsError::Unguarded(names) if names.len() == 1), "{one}");
    // A name that only resembles the interface's does not count.
    sh(&format!("nft add element {set} '{{ \"agents\", \"agents10\", \"agents100000000\" }}'"));
    assert_eq!(prepare_now(&example()).unwrap_err().to_string(), one.to_string());
    let both = refused(&format!("nft flush set {set}")).to_string();
    assert_eq!(both.split('`').nth(1), Some("cloakroom guard --load"));
    // That command sends this to the kernel (the lab runs it).
    sh("nft delete table inet cloakroom_base");
    load_base();
    prepare_now(&example()).unwrap();
    ground_now(&example()).unwrap();

    for name in ["output", "input"] {
        let chain = format!("inet cloakroom_base {name}");
        let open = [
            format!("nft flush chain {chain}"),
            format!("nft delete chain {chain}"),
            format!("nft add chain {chain}; nft add rule {chain} drop"),
        ];
        for line in open {
            let error = refused(&line);
            assert!(
                matches!(error, PacketsError::NoBaseChain(it) if it == name),
                "{line}: {error}"
            );
        }
        sh("nft delete table inet cloakroom_base");
        load_base();
    }
    let gone = "nft flush chain inet cloakroom_base output; \
                nft add rule inet cloakroom_base output accept; \
                nft flush chain inet cloakroom_base input; \
                nft delete set inet cloakroom_base agent_interfaces; nft delete chain inet \
                cloakroom_base input; nft add chain inet cloakroom_base input '{ type filter hook \
                input priority -500; }'; nft add rule inet cloakroom_base input accept";
    let error = refused(gone);
    assert!(matches!(&error, PacketsError::Unguarded(names) if names.len() == 2), "{error}");
    sh("nft delete table inet cloakroom_base");
    load_base();
    prepare_now(&example()).unwrap();
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn a_missing_interface_is_named() {
    only_in_a_namespace();
    load_base();
    let error = prepare_now(&example()).unwrap_err().to_string();
    assert!(error.starts_with("interface agents0 of an agent group does not exist"), "{error}");
    let error = InheritedListeners::default().listen(&example()).unwrap_err();
    assert!(matches!(error, PacketsError::NoInterface(_)), "{error}");
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn preparing_twice_leaves_one_rule_and_one_route() {
    only_in_a_namespace();
    load_base();
    sh("ip link add agents0 type veth peer name agents1; ip link set lo up");
    sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.src_valid_mark=1");
    prepare_now(&example()).unwrap();
    prepare_now(&example()).unwrap();
    for family in ["-4", "-6"] {
        let rules = sh(&format!("ip {family} rule"));
        assert_eq!(
            rules.matches("1000:\tfrom all fwmark 0xc10a lookup 4106").count(),
            1,
            "{rules}"
        );
        let routes = sh(&format!("ip {family} route show table 4106"));
        assert_eq!(routes.lines().count(), 1, "{routes}");
        assert!(routes.starts_with("local default dev lo"), "{routes}");
    }
    let mut wanted = String::new();
    for name in ["ip_forward", "conf.all.src_valid_mark", "conf.agents0.accept_redirects"] {
        let _ = writeln!(wanted, "{}", sh(&format!("sysctl -n net.ipv4.{name}")).trim());
    }
    assert_eq!(wanted, "0\n0\n0\n");
    // Small tables stand in the header as well.
    prepare_now(&Capture { route_table: 77, mark: 0x77, ..example() }).unwrap();
    assert!(sh("ip rule").contains("fwmark 0x77 lookup 77"));
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn every_listener_is_transparent_and_workers_share_the_port() {
    only_in_a_namespace();
    sh("ip link add agents0 type veth peer name agents1");
    let capture = example();
    let _claim = claim(&InheritedListeners::default(), &capture).unwrap();
    let workers = [
        InheritedListeners::default().listen(&capture).unwrap(),
        InheritedListeners::default().listen(&capture).unwrap(),
    ];
    for listener in workers.iter().flatten() {
        let socket = socket2::SockRef::from(&listener.socket);
        let v6 = listener.socket.local_addr().unwrap().is_ipv6();
        let transparent = if v6 { socket.ip_transparent_v6() } else { socket.ip_transparent_v4() };
        assert!(transparent.unwrap());
        assert!(!v6 || socket.only_v6().unwrap());
        assert_eq!(socket.device().unwrap().unwrap(), listener.interface.as_str().as_bytes());
    }
    assert_eq!(workers.map(|worker| worker.len()), [4, 4]);
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn a_second_daemon_and_a_sharing_stranger_are_found() {
    only_in_a_namespace();
    sh("ip link add agents0 type veth peer name agents1");
    let capture = example();
    let first = claim(&InheritedListeners::default(), &capture).unwrap();
    assert!(matches!(
        claim(&InheritedListeners::default(), &capture),
        Err(PacketsError::AlreadyRunning { port: 8443 })
    ));
    drop(first);

    let stranger = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    stranger.set_reuse_port(true).unwrap();
    stranger.bind(&"[::]:8443".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    stranger.listen(1).unwrap();
    assert!(matches!(
        claim(&InheritedListeners::default(), &capture),
        Err(PacketsError::PortInUse { port: 8443, .. })
    ));
    drop(stranger);

    let _plain = TcpListener::bind("0.0.0.0:8443").unwrap();
    let error = claim(&InheritedListeners::default(), &capture).unwrap_err().to_string();
    assert!(error.starts_with("proxy port 8443 is in use on agents0"), "{error}");
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn a_resolver_in_the_way_is_named() {
    only_in_a_namespace();
    sh("ip link set lo up; ip link add agents0 type veth peer name agents1");
    let capture = example();
    let sockets = InheritedListeners::default().dns(&capture).unwrap();
    assert_eq!(sockets.len(), 4, "two interfaces, two families");
    drop(sockets);
    // A server that is bound to addresses of its own is not in the way.
    for own in ["127.0.0.53:53", "[::1]:53"] {
        let (_udp, _tcp) = (UdpSocket::bind(own).unwrap(), TcpListener::bind(own).unwrap());
        assert_eq!(InheritedListeners::default().dns(&capture).unwrap().len(), 4, "{own}");
    }
    for other in ["0.0.0.0:53", "[::]:53"] {
        let udp = UdpSocket::bind(other).unwrap();
        let error = InheritedListeners::default().dns(&capture).unwrap_err().to_string();
        assert!(error.starts_with("port 53 is in use on agents0 by"), "{error}");
        drop(udp);
        let _tcp = TcpListener::bind(other).unwrap();
        let error = InheritedListeners::default().dns(&capture).unwrap_err().to_string();
        assert!(error.starts_with("port 53 is in use on agents0 by"), "{error}");
    }
    sh("sysctl -qw net.ipv4.ip_unprivileged_port_start=1024");
    let only = CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW;
    let sets = CapabilitySets { effective: only, permitted: only, inheritable: only };
    set_capabilities(None, sets).unwrap();
    let error = InheritedListeners::default().dns(&capture).unwrap_err().to_string();
    assert!(error.contains("CAP_NET_BIND_SERVICE"), "{error}");
}

#[test]
#[ignore = "started inside a namespace by its namesake"]
fn without_net_admin_each_step_says_so() {
    only_in_a_namespace();
    sh("ip link set lo up; ip link add agents0 type veth peer name agents1");
    load_base();
    // The capabilities of this thread only, which is the one that works.
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    set_capabilities(None, sets).unwrap();
    let capture = example();
    let errors = [
        prepare_now(&capture).unwrap_err(),
        claim(&InheritedListeners::default(), &capture).unwrap_err(),
        InheritedListeners::default().listen(&capture).unwrap_err(),
        apply(&capture).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, PacketsError::NoNetAdmin { .. }), "{error}");
        assert!(error.to_string().contains("CAP_NET_ADMIN"));
    }
}

/// Deletes everything that the daemon installs.
const DELETE: &str = "nft 'delete table inet cloakroom; delete table netdev cloakroom'";

fn ground_now(capture: &Capture) -> Result<(), PacketsError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    require_guard(capture)?;
    runtime.block_on(assert_settings(capture))
}

fn prepare_now(capture: &Capture) -> Result<(), PacketsError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(prepare(capture))
}
