//! Networks that agents may be in, and other parts of the gateway's machine: a bridge, a narrower
//! hop, other programs' tables, a boot.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use lab::{
    Lab, World,
    dns::Dns,
    gateway::{self, usual_config},
    net::{AGENT, AGENT2, GATEWAY, OPENAI, PYPI},
    sandboxed, tools, wait,
    world::{TICKET, get},
};

use crate::{
    lifecycle::control::{causes, tell},
    packets::kernel_settings::{READ_ONLY, often_asserted},
};

#[test]
fn agents_behind_a_bridge_are_served_despite_br_netfilter() {
    sandboxed(|| {
        let mut world = World::prepared(&often_asserted(), |_, _| bridges());
        let Some(switches) = switches() else { return println!("this kernel has no br_netfilter") };
        assert_eq!(switches, "0\n0\n", "the daemon's start");
        let served = |world: &World| {
            for (from, to) in
                [(AGENT, OPENAI.port(443)), (AGENT, OPENAI.port6(443)), (AGENT2, OPENAI.port(443))]
            {
                let served = world.h1_from(from, to, OPENAI.name).map(drop);
                assert!(served.is_ok(), "{from:?} to {to}: {served:?}");
            }
            assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        };
        served(&world);
        for wrong in
            [ALL_ON, "ip link set agents0 type bridge nf_call_iptables 1 nf_call_ip6tables 1"]
        {
            world.gateway.freeze();
            GATEWAY.shell(wrong);
            AGENT.connect(OPENAI.port(443)).expect_err("it is what keeps them from the gateway");
            world.gateway.thaw();
            let is_off = || {
                let link = GATEWAY.shell("ip -d link show agents0");
                self::switches().as_deref() == Some("0\n0\n")
                    && link.contains("nf_call_iptables 0 ")
            };
            wait::expect("it is turned off", is_off);
            served(&world);
        }
        let said = world.gateway.stderr();
        assert!(said.contains("bridge agents0 took packets through the hooks of IP"), "{said}");

        world.gateway.kill();
        GATEWAY.shell(ALL_ON);
        let program = tools::cloakroom().display().to_string();
        let config = world.config();
        let mut start = GATEWAY.command("sh");
        let ended =
            start.args(["-c", READ_ONLY, &program]).arg(config).output().expect("sh starts");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(said.contains("net.bridge.bridge-nf-call-iptables is 1"), "{said}");
    });
}

/// Makes `agents0` a bridge with the agent's link as its port, and `agents1` the end of a veth pair
/// whose other end is the port of one.
fn bridges() {
    GATEWAY.shell(
        "set -e; for name in agents0 agents1; do ip link set $name down; done; \
         ip link set agents0 name port0; ip link set agents1 name port1; \
         ip addr flush dev port0; ip addr flush dev port1; \
         ip link add agents0 type bridge; ip link add br1 type bridge; \
         ip link add agents1 type veth peer name port2; \
         ip link set port0 master agents0; ip link set port1 master br1; ip link set port2 master br1; \
         for name in port0 port1 port2 br1 agents0 agents1; do ip link set $name up; done; \
         ip addr add 192.0.2.1/25 dev agents0; ip addr add 2001:db8:a::1/64 dev agents0 nodad; \
         ip addr add 192.0.2.129/25 dev agents1; ip addr add 2001:db8:b::1/64 dev agents1 nodad",
    );
}

fn switches() -> Option<String> {
    let read = "cd /proc/sys/net/bridge 2>/dev/null && cat bridge-nf-call-iptables bridge-nf-call-ip6tables || true";
    Some(GATEWAY.shell(read)).filter(|found| !found.is_empty())
}

const ALL_ON: &str =
    "sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1";

#[test]
fn a_groups_mtu_spares_it_waits_behind_narrow_hops() {
    sandboxed(|| {
        let mut world = World::prepared(&usual_config(), |_, _| narrow_hop());
        let taken = |world: &World| {
            let mut longest = Duration::ZERO;
            for (to, name) in [
                (OPENAI.port(443), OPENAI.name),
                (OPENAI.port6(443), OPENAI.name),
                (PYPI.port(443), PYPI.name),
            ] {
                let begun = Instant::now();
                let shaken = world.h1_from(AGENT, to, name).map(drop);
                println!("{to}: {:?} {shaken:?}", begun.elapsed());
                longest = longest.max(begun.elapsed());
            }
            longest
        };
        let before = taken(&world);
        assert!(before > NARROW, "the hop proves nothing: {before:?}");
        let narrow = usual_config().group("research", |it| it.set("mtu", 1300));
        gateway::install(&world.lab, &narrow);
        tell(&world, &["reload"], 0);
        let after = taken(&world);
        assert!(after < NARROW, "{before:?} became {after:?}");
        // The same for the agent's own packets.
        let body = "x".repeat(20_000);
        let ask = format!(
            "POST /v1/chat HTTP/1.1\r\nHost: {}\r\n{TICKET}\r\nContent-Length: {}\r\n\r\n{body}",
            OPENAI.name,
            body.len()
        );
        let begun = Instant::now();
        assert_eq!(world.ask(&ask).status, 200);
        assert!(begun.elapsed() < NARROW, "{:?}", begun.elapsed());
        world.gateway.terminate(Duration::from_secs(10));
    });
}

/// Puts a router between the gateway and the first agent. Its link to the agent takes 1300 bytes,
/// and the agent, whose own takes 1500, does not know.
fn narrow_hop() {
    let made = Command::new("sh").args(["-ec", NARROW_HOP]).output().expect("sh starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    GATEWAY.shell("sysctl -qw net.ipv4.tcp_mtu_probing=1");
}

const NARROW_HOP: &str = "\
ip netns add hop
ip -n gateway link del agents0
ip link add agents0 netns gateway type veth peer name hop0 netns hop
ip link add hop1 netns hop type veth peer name eth0 netns agent
ip -n gateway addr add 192.0.2.1/29 dev agents0
ip -n gateway addr add 2001:db8:a::1/124 dev agents0 nodad
ip -n gateway link set agents0 up
ip -n hop addr add 192.0.2.2/29 dev hop0
ip -n hop addr add 2001:db8:a::2/124 dev hop0 nodad
ip -n hop addr add 192.0.2.9/29 dev hop1
ip -n hop addr add 2001:db8:a::11/124 dev hop1 nodad
ip -n hop link set hop0 up
ip -n hop link set hop1 up
ip -n hop link set hop1 mtu 1300
ip netns exec hop sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip -n hop route add default via 192.0.2.1
ip -n hop route add ::/0 via 2001:db8:a::1
ip -n gateway route add 192.0.2.8/29 via 192.0.2.2
ip -n gateway route add 2001:db8:a::10/124 via 2001:db8:a::2
ip -n agent addr add 192.0.2.10/29 dev eth0
ip -n agent addr add 2001:db8:a::10/124 dev eth0 nodad
ip -n agent link set eth0 up
ip -n agent route add default via 192.0.2.9
ip -n agent route add ::/0 via 2001:db8:a::11
";
/// A time between that of a handshake on a busy machine and that of one which waits until the
/// kernel probes.
const NARROW: Duration = Duration::from_secs(3);

#[test]
fn a_filter_that_ends_captured_packets_is_named() {
    sandboxed(|| {
        let lets_in = |rule: &str| {
            format!(
                "flush table inet firewall; table inet firewall {{ chain rest {{ reject; }}; \
                 chain input {{ type filter hook input priority 0; iifname lo accept; \
                 ct state established,related accept; tcp dport 22 accept; {rule} jump rest; }}; }}"
            )
        };
        let load = |rule: &str| drop(GATEWAY.shell(&format!("nft '{}'", lets_in(rule))));
        let world = World::prepared(&often_asserted(), |_, _| {
            drop(GATEWAY.shell("nft 'table inet firewall { }'"));
        });
        let named = || causes(&world, "foreign_filter").join("\n");
        assert_eq!(named(), "");
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);

        load("");
        wait::expect("it is named", || named().contains("names agents0, agents1"));
        assert!(named().contains("chain input of table inet firewall refuses"), "{}", named());
        AGENT.connect(OPENAI.port(443)).expect_err("as it says, nothing works");
        load("iifname agents1 accept;");
        wait::expect("the other one is not", || named().contains("names agents0:"));
        for rule in
            ["iifname \"agents*\" accept;", "iifname != wan0 accept;", "meta mark 0xc10a accept;"]
        {
            load(rule);
            wait::expect("one that knows is not", || named().is_empty());
            assert_eq!(world.ask(&get(&[TICKET])).status, 200, "{rule}");
        }

        // By the mark of what is captured every address leads to this machine.
        load("iifname \"agents*\" accept;");
        GATEWAY.shell(
            "nft 'table inet firewall { chain back { type filter hook prerouting priority 10; \
             meta nfproto ipv6 fib saddr . mark . iif oif missing drop; }; }'",
        );
        wait::expect("it is named", || named().contains("chain back of table inet firewall"));
        AGENT.connect(OPENAI.port6(443)).expect_err("as it says, nothing works");
        let said = world.gateway.stderr();
        assert_eq!(said.matches("chain back of table").count(), 1, "{said}");
        GATEWAY.shell("nft delete table inet firewall");
        wait::expect("it is forgotten", || named().is_empty());
        AGENT.connect(OPENAI.port6(443)).expect("open again");
    });
}

#[test]
fn whoever_else_writes_packet_marks_is_named() {
    sandboxed(|| {
        let harmless = "table ip early { chain before { type filter hook prerouting priority -151; meta mark set 0x7; }; \
             chain after { type filter hook output priority -150; meta mark set 0x7; }; }";
        let world = World::prepared(&often_asserted(), |_, _| {
            drop(GATEWAY.shell(&format!("nft '{harmless}'")))
        });
        assert!(causes(&world, "foreign_marks").is_empty());
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        let meddler = "table inet meddler { chain marks { meta mark set 0x7; }; \
             chain enters { type filter hook prerouting priority -149; iifname agents0 jump marks; }; }";
        GATEWAY.shell(&format!("nft '{meddler}'"));
        let named = || {
            let marks = causes(&world, "foreign_marks").join("\n");
            ["chain marks of table inet meddler", "chain enters", "-149"]
                .iter()
                .all(|it| marks.contains(it))
        };
        wait::expect("it is named by status", named);
        let said = world.gateway.stderr();
        assert_eq!(said.matches("table inet meddler").count(), 1, "{said}");
        AGENT.connect(OPENAI.port(443)).expect_err("as it says, nothing works");
        GATEWAY.shell("nft delete table inet meddler");
        wait::expect("it is forgotten", || causes(&world, "foreign_marks").is_empty());
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
    });
}

#[test]
fn the_guard_loads_from_a_broken_configurations_interfaces() {
    sandboxed(|| {
        let lab = Lab::new();
        let _dns = Dns::start();
        let guard = |arguments: &[&str], text: &str| {
            let config = lab.write("guard.toml", text);
            let mut command = gateway::program();
            let output =
                command.arg("guard").args(arguments).arg(config).output().expect("it starts");
            let said = [output.stdout, output.stderr].concat();
            (output.status.code(), String::from_utf8_lossy(&said).into_owned())
        };
        let broken = "[[group]]\ninterface = \"agents1\"\n[[group]]\ninterface = \"agents0\"\n[[api]]\nnonsense = 1\n";
        let (_, printed) = guard(&[], broken);
        let file = lab.write("guard.nft", printed);
        // At boot nothing is loaded yet, and no file maps the names of protocols.
        GATEWAY
            .shell(&format!("mount --bind /dev/null /etc/protocols; nft -c -f {}", file.display()));
        for _ in 0..2 {
            assert_eq!(guard(&["--load"], broken), (Some(0), String::new()));
            let listed = GATEWAY.shell("nft list table inet cloakroom_base");
            assert!(listed.contains("\"agents0\"") && listed.contains("\"agents1\""), "{listed}");
            AGENT.connect(OPENAI.port(443)).expect_err("closed");
        }
        gateway::Gateway::start(&lab, &usual_config()).kill();

        GATEWAY.shell("nft flush ruleset");
        for (text, word) in [
            ("", "no [[group]]"),
            ("[[group]]\nname = \"a\"\n", "has no interface"),
            ("[[group]]\ninterface = \"\\\"; accept\"\n", "interface"),
            ("[[group]\n", "guard.toml"),
        ] {
            let (code, said) = guard(&["--load"], text);
            assert_eq!(code, Some(64), "{said}");
            assert!(said.contains(word), "{word}: {said}");
            assert_eq!(GATEWAY.shell("nft list ruleset"), "", "{text:?}");
        }
    });
}
