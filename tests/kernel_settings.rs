//! What the packet rules lean on does not drift: it is repaired, or the gateway closes and says why.

use std::time::Duration;

use lab::{
    gateway::{self, Gateway},
    net::{AGENT, AGENT2, GATEWAY, INTERNET, OPENAI, OTHER},
    sandboxed, wait,
};

use crate::{
    control::status,
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
        assert!(said.contains("installing the packet rules again"), "{said}");
    });
}

#[test]
fn where_a_setting_cannot_be_repaired_the_gateway_closes_and_opens_again() {
    sandboxed(|| {
        let world = World::with(&often_asserted());
        let mut kept = world.h1(OPENAI).expect("served");
        // In the daemon's own view of the file system, so that only it cannot write.
        let of_the_daemon = |line: &str| {
            let pid = world.gateway.pid();
            GATEWAY.shell(&format!("nsenter --target {pid} --mount sh -ec '{line}'"));
        };
        of_the_daemon("mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys");
        GATEWAY.shell("sysctl -qw net.ipv4.ip_forward=1");
        let said = |words: &str| {
            let found =
                wait::until(wait::SOON, || world.gateway.stderr().contains(words).then_some(()));
            assert!(found.is_some(), "{words}: {}", world.gateway.stderr());
        };
        said("closed to new connections: net.ipv4.ip_forward is 1");
        std::thread::sleep(Duration::from_millis(300));
        let before = world.origin.log().connections().len();
        for to in [OPENAI.port(443), OPENAI.port6(443), OTHER.port(80)] {
            AGENT.connect(to).expect_err("closed");
        }
        assert_eq!(world.origin.log().connections().len(), before);
        assert_eq!(kept.ask(get(&[TICKET])).expect("it goes on").status, 200);
        // A reload does not open it.
        world.gateway.reload();
        said("reloaded");
        AGENT.connect(OPENAI.port(443)).expect_err("closed");

        of_the_daemon("umount /proc/sys");
        said("open again");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
    });
}

#[test]
fn an_interface_that_was_made_again_is_closed_and_told_until_the_daemon_is() {
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
        assert_eq!(status(&world)["unserved"], serde_json::json!(["agents0"]));
        world.gateway.terminate(Duration::from_secs(10));
        let config = world.lab.dir.join("cloakroom.toml");
        world.gateway = Gateway::run(&world.lab, &config).expect("it starts");
        assert_eq!(status(&world)["unserved"], serde_json::json!([]));
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
    });
}

#[test]
fn an_agent_that_claims_the_gateways_address_takes_it_from_nobody() {
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

/// What may wait for an agent whose card is not known.
const UNRESOLVED: [&str; 2] =
    ["net.ipv4.neigh.agents0.unres_qlen_bytes", "net.ipv6.neigh.agents0.unres_qlen_bytes"];

fn often_asserted() -> String {
    gateway::usual_config().replace("ipv6 = true", "ipv6 = true\nassert_every = \"1s\"")
}
