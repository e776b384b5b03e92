//! The conditions of the packet rules do not drift: a change is repaired, or the gateway closes and
//! reports the reason.

use std::{path::Path, time::Duration};

use lab::{
    gateway::{self, Gateway},
    net::{AGENT, AGENT2, GATEWAY, INTERNET, OPENAI, OTHER},
    sandboxed, tools, wait,
};
use policy_builder::Config;

use crate::{
    lifecycle::control::causes,
    world::{TICKET, World, get},
};

#[test]
fn settings_and_rules_that_somebody_changed_are_repaired() {
    sandboxed(|| {
        let world = World::with(&often_asserted());
        GATEWAY.shell(
            "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.agents0.accept_redirects=1 \
             net.ipv6.conf.agents0.accept_ra=2",
        );
        GATEWAY.shell(&format!(
            "sysctl -qw {}",
            UNRESOLVED.map(|it| format!("{it}=212992")).join(" ")
        ));
        GATEWAY.shell("nft flush chain inet cloakroom prerouting");
        GATEWAY.shell("ip rule del priority 1000; ip -6 rule del priority 1000");
        let repaired = wait::until(wait::SOON, || {
            let settings = GATEWAY.shell(
                "sysctl -n net.ipv4.ip_forward net.ipv4.conf.agents0.accept_redirects \
                 net.ipv6.conf.agents0.accept_ra",
            );
            let rules = GATEWAY.shell("nft list chain inet cloakroom prerouting");
            let unresolved = GATEWAY.shell(&format!("sysctl -n {}", UNRESOLVED.join(" ")));
            (settings == "0\n0\n0\n" && unresolved == "4096\n4096\n" && rules.contains("tproxy"))
                .then_some(())
        });
        assert!(repaired.is_some(), "not repaired: {}", world.gateway.stderr());
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        let said = world.gateway.stderr();
        assert!(said.contains("net.ipv4.ip_forward was 1; set to 0"), "{said}");
        assert!(said.contains("the packet rules are installed again"), "{said}");
    });
}

#[test]
fn each_setting_that_is_held_is_set_back() {
    sandboxed(|| {
        let world = World::with(&often_asserted());
        // These also set others in the kernel, so they come first and alone.
        let (switches, others) = held().into_iter().partition::<Vec<_>, _>(|it| it.is_switch());
        for settings in [switches, others] {
            settings.iter().for_each(|it| it.set(it.wrong));
            for it in &settings {
                wait::expect(&format!("{} is set back", it.name), || it.is() == it.right);
                let said = format!("{} was {}; set to {}", it.name, it.wrong, it.right);
                wait::expect(&said, || world.gateway.stderr().contains(&said));
            }
        }
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
    });
}

#[test]
fn a_setting_that_cannot_be_set_is_no_start() {
    sandboxed(|| {
        let mut world = World::usual();
        world.gateway.kill();
        let config = world.lab.dir.join("cloakroom.toml");
        // All others are right, so that at each start one setting is wrong.
        let all = held();
        all.iter().for_each(|it| it.set(it.right));
        let only_a_warning = |it: &&Setting| !it.name.contains("ratemask");
        for setting in all.iter().filter(only_a_warning).filter(|it| !it.is_switch()).step_by(4) {
            setting.set(setting.wrong);
            let ended = GATEWAY
                .command("sh")
                .args(["-c", READ_ONLY, tools::cloakroom().to_str().expect("a path")])
                .arg(&config)
                .output()
                .expect("sh starts");
            let said = String::from_utf8_lossy(&ended.stderr);
            assert_eq!(ended.status.code(), Some(1), "{}: {said}", setting.name);
            assert!(said.contains(&format!("{} is {}", setting.name, setting.wrong)), "{said}");
            setting.set(setting.right);
        }
    });
}

#[test]
fn an_irreparable_setting_closes_the_gateway_until_repaired() {
    sandboxed(|| {
        let world = World::with(&often_asserted());
        let mut kept = world.h1(OPENAI).expect("served");
        // This changes the daemon's own view of the file system only, so that only the daemon
        // cannot write.
        let of_the_daemon = |line: &str| {
            let pid = world.gateway.pid();
            GATEWAY.shell(&format!("nsenter --target {pid} --mount sh -ec '{line}'"));
        };
        of_the_daemon("mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys");
        GATEWAY.shell("sysctl -qw net.ipv4.ip_forward=1");
        said(&world, "closed to new connections: net.ipv4.ip_forward is 1", 1);
        std::thread::sleep(Duration::from_millis(300));
        let before = world.origin.log().connections().len();
        for to in [OPENAI.port(443), OPENAI.port6(443), OTHER.port(80)] {
            AGENT.connect(to).expect_err("closed");
        }
        assert_eq!(world.origin.log().connections().len(), before);
        assert_eq!(kept.ask(get(&[TICKET])).expect("it goes on").status, 200);
        // A reload does not open it.
        world.gateway.reload();
        said(&world, "reloaded", 1);
        AGENT.connect(OPENAI.port(443)).expect_err("closed");

        of_the_daemon("umount /proc/sys");
        said(&world, "open again", 1);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
    });
}

#[test]
fn without_its_guard_the_gateway_closes() {
    sandboxed(|| {
        // The guard is checked once a minute; an earlier reaction shows that the kernel reported
        // the change.
        let world = World::usual();
        let mut kept = world.h1(OPENAI).expect("served");
        let ways = [
            (
                "nft delete element inet cloakroom_base agent_interfaces '{ \"agents1\" }'",
                "does not close this machine's services to \"agents1\"",
            ),
            ("nft flush chain inet cloakroom_base input", "is not whole: its chain input"),
            ("nft delete table inet cloakroom_base", "is not loaded"),
        ];
        for (turn, (open, words)) in ways.into_iter().enumerate() {
            GATEWAY.shell(open);
            said(
                &world,
                &format!("closed to new connections: the guard table inet cloakroom_base {words}"),
                1,
            );
            std::thread::sleep(Duration::from_millis(300));
            let before = world.origin.log().connections().len();
            for (agent, to) in
                [(AGENT, OPENAI.port(443)), (AGENT2, OPENAI.port6(443)), (AGENT, OTHER.port(80))]
            {
                agent.connect(to).expect_err("closed");
            }
            assert_eq!(world.origin.log().connections().len(), before);
            assert_eq!(kept.ask(get(&[TICKET])).expect("it goes on").status, 200);
            gateway::guard();
            said(&world, "open again", turn + 1);
            std::thread::sleep(Duration::from_millis(300));
            assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        }
    });
}

#[test]
fn a_recreated_interface_is_closed_and_reported() {
    sandboxed(|| {
        let mut world = World::with(&often_asserted());
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        let outside = world.lab.capture(INTERNET);
        GATEWAY.shell(
            "ip link del agents0; ip link add agents0 type veth peer name eth0 netns agent; \
             ip addr add 192.0.2.1/25 dev agents0; ip link set agents0 up; \
             ip addr add 2001:db8:a::1/64 dev agents0 nodad",
        );
        AGENT.shell(
            "ip addr add 192.0.2.10/25 dev eth0; ip link set eth0 up; \
             ip route add default via 192.0.2.1; \
             ip addr add 2001:db8:a::10/64 dev eth0 nodad; ip route add ::/0 via 2001:db8:a::1",
        );
        let closed = || {
            for to in [OPENAI.port(443), OPENAI.port6(443), OPENAI.port(53), OTHER.port6(80)] {
                AGENT.connect(to).expect_err("nobody listens there");
            }
            assert!(!outside.holds("STRAY-PACKET"), "it went through");
        };
        AGENT.enter(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("a socket");
            let _ = socket.send_to(b"STRAY-PACKET", OPENAI.port(53));
        });
        closed();
        let served = world.h1_from(AGENT2, OPENAI.port(443), OPENAI.name);
        served.map(drop).expect("the other interface is served");
        wait::expect("it is told", || world.gateway.stderr().contains("agents0 was made again"));
        closed();
        assert!(causes(&world, "interface_unserved")[0].starts_with("agents0 was made again"));
        world.gateway.terminate(Duration::from_secs(10));
        let config = world.lab.dir.join("cloakroom.toml");
        world.gateway = Gateway::run(&world.lab, &config).expect("it starts");
        assert!(causes(&world, "interface_unserved").is_empty());
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
    });
}

fn said(world: &World, words: &str, times: usize) {
    let found = wait::until(wait::SOON, || {
        (world.gateway.stderr().matches(words).count() >= times).then_some(())
    });
    assert!(found.is_some(), "{words}: {}", world.gateway.stderr());
}

#[test]
fn the_gateways_address_cannot_be_claimed_by_an_agent() {
    sandboxed(|| {
        let careless = || GATEWAY.shell("sysctl -qw net.ipv6.conf.agents0.accept_dad=1");
        let _world = World::prepared(&gateway::usual_config(), |_, _| drop(careless()));
        AGENT.shell("ip addr add 2001:db8:a::1/64 dev eth0 nodad");
        let usable = || {
            GATEWAY.shell("ip link set agents0 down; ip link set agents0 up");
            GATEWAY.shell("ip addr replace 2001:db8:a::1/64 dev agents0");
            let settled = || {
                let address = GATEWAY.shell("ip -6 addr show dev agents0 to 2001:db8:a::1");
                let tried = !address.contains("tentative") || address.contains("dadfailed");
                tried.then_some(address)
            };
            let address = wait::until(wait::SOON, settled).expect("it was tried");
            address.contains("2001:db8:a::1") && !address.contains("dadfailed")
        };
        assert!(usable(), "the link went down, and the address with it");
        careless();
        assert!(!usable(), "the claim proves nothing");
    });
}

/// The bounds on packets that wait for an agent whose card is not known.
const UNRESOLVED: [&str; 2] =
    ["net.ipv4.neigh.agents0.unres_qlen_bytes", "net.ipv6.neigh.agents0.unres_qlen_bytes"];

pub fn often_asserted() -> Config {
    gateway::usual_config().gateway("assert_every", "1s")
}

/// A kernel setting that the daemon sets.
struct Setting {
    /// Its name in sysctl(8)'s form.
    name: String,
    right: &'static str,
    wrong: &'static str,
}

impl Setting {
    fn set(&self, value: &str) {
        GATEWAY.shell(&format!("sysctl -qw '{}={value}'", self.name));
    }

    fn is(&self) -> String {
        GATEWAY.shell(&format!("sysctl -n '{}'", self.name)).trim().to_owned()
    }

    /// Returns whether the kernel changes other settings along with it.
    fn is_switch(&self) -> bool {
        self.name.ends_with(".ip_forward") || self.name.ends_with("all.forwarding")
    }
}

/// Returns all of these settings that this kernel has.
fn held() -> Vec<Setting> {
    let of_interfaces = ["agents0", "agents1"].into_iter().flat_map(|interface| {
        let v4 =
            INTERFACE_4.iter().map(move |it| (format!("net.ipv4.conf.{interface}.{}", it.0), it));
        let v6 =
            INTERFACE_6.iter().map(move |it| (format!("net.ipv6.conf.{interface}.{}", it.0), it));
        v4.chain(v6)
    });
    let of_machine = MACHINE.iter().map(|it| (it.0.to_owned(), it));
    let all = of_machine.chain(of_interfaces);
    let all = all.map(|(name, &(_, right, wrong))| Setting { name, right, wrong });
    // Present from Linux 6.17 on.
    let young = |it: &Setting| it.name.ends_with("force_forwarding");
    let is_there = |it: &Setting| {
        GATEWAY.enter(|| Path::new("/proc/sys").join(it.name.replace('.', "/")).exists())
    };
    all.filter(|it| !young(it) || is_there(it)).collect()
}

/// Runs the program where it cannot change a setting. If it starts all the same, it is ended.
pub(crate) const READ_ONLY: &str = "mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && \
    exec timeout 20 \"$0\" run \"$1\"";

/// The name, the required value, and another value.
const MACHINE: &[(&str, &str, &str)] = &[
    ("net.ipv4.ip_forward", "0", "1"),
    ("net.ipv6.conf.all.forwarding", "0", "1"),
    ("net.ipv4.conf.all.accept_redirects", "0", "1"),
    ("net.ipv4.conf.all.send_redirects", "0", "1"),
    ("net.ipv4.conf.all.route_localnet", "0", "1"),
    ("net.ipv4.conf.all.src_valid_mark", "0", "1"),
    ("net.ipv4.conf.all.proxy_arp", "0", "1"),
    ("net.ipv4.conf.all.proxy_arp_pvlan", "0", "1"),
    ("net.ipv6.conf.all.proxy_ndp", "0", "1"),
    ("net.ipv6.conf.all.accept_dad", "0", "1"),
    ("net.ipv4.tcp_fwmark_accept", "0", "1"),
    ("net.ipv4.fwmark_reflect", "0", "1"),
    ("net.ipv6.fwmark_reflect", "0", "1"),
    ("net.ipv4.icmp_ratemask", "6160", "6168"),
    ("net.ipv6.icmp.ratemask", "0,3-127", "0-1,3-127"),
];

const INTERFACE_4: &[(&str, &str, &str)] = &[
    ("forwarding", "0", "1"),
    ("accept_redirects", "0", "1"),
    ("send_redirects", "0", "1"),
    ("accept_source_route", "0", "1"),
    ("route_localnet", "0", "1"),
    ("src_valid_mark", "0", "1"),
    ("proxy_arp", "0", "1"),
    ("proxy_arp_pvlan", "0", "1"),
    ("arp_ignore", "1", "0"),
    ("arp_announce", "2", "0"),
    ("rp_filter", "1", "0"),
];

const INTERFACE_6: &[(&str, &str, &str)] = &[
    ("accept_ra", "0", "1"),
    ("accept_dad", "0", "1"),
    ("accept_redirects", "0", "1"),
    ("accept_source_route", "-1", "0"),
    ("suppress_frag_ndisc", "1", "0"),
    ("proxy_ndp", "0", "1"),
    ("force_forwarding", "0", "1"),
];
