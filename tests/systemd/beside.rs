//! Machines with other parts, or without usual ones: a resolver of its own, a kernel without
//! Landlock, a filter that lets nobody take descriptors of another process.

use std::{net::UdpSocket, time::Duration};

use lab::{
    Lab,
    datagrams::{Sending, Target},
    dns::Dns,
    net::{AGENT, GATEWAY, GATEWAY_V4, GATEWAY_V6, INTERNET, OPENAI, OTHER},
    origin::Origin,
    sandboxed, tools,
};

use crate::{
    assert_served,
    load::lookup_once,
    machine::{Machine, config},
};

#[test]
fn without_landlock_it_serves_and_says_so_once() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let machine = Machine::boot(&lab);
        machine.install(&lab, &config());
        // Landlock is not built in, is not among those of lsm=, or a container around the unit
        // refuses it.
        for error in ["ENOSYS", "EOPNOTSUPP", "EPERM"] {
            machine.run("journalctl --rotate -q; journalctl --vacuum-time=1us -q");
            machine.drop_in(&format!(
                "SystemCallFilter=~landlock_create_ruleset\\nSystemCallErrorNumber={error}"
            ));
            machine.run("systemctl restart cloakroom");
            assert_served(&lab, &origin);
            let line = machine.property("StatusText");
            assert!(line.starts_with("degraded: the kernel has no Landlock"), "{error}: {line}");
            let log = machine.journal();
            let said: Vec<_> = log.lines().filter(|line| line.contains("Landlock")).collect();
            assert_eq!(said.len(), 1, "{error}: {log}");
            let warnings = machine.journal_of("-p warning -u cloakroom");
            assert!(warnings.contains(said[0]), "{error}: {warnings}");
            assert_eq!(machine.property("NRestarts"), "0", "{error}: {log}");
        }
    });
}

/// The stub of systemd-resolved is on the machine's loopback.
#[test]
fn systemd_resolved_lives_beside_it_or_is_named() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let machine = Machine::boot(&lab);
        machine.install(&lab, &config());
        machine.run("systemctl is-active systemd-resolved");
        machine.run("echo 192.0.2.99 printer.lan >> /etc/hosts; systemctl start cloakroom");
        assert_served(&lab, &origin);
        assert!(agents_are_answered());
        assert!(stub_answers(), "the machine has its resolver: {}", machine.journal_of(RESOLVED));
        machine.run("systemctl restart systemd-resolved cloakroom");
        assert!(agents_are_answered() && stub_answers());

        machine.run("systemctl stop cloakroom");
        machine.wait_until("nothing is left of it", || !machine.says("pgrep cloakroom"));
        machine.run("mkdir -p /run/systemd/resolved.conf.d");
        machine.run(
            "printf '[Resolve]\\nDNSStubListenerExtra=0.0.0.0\\n' \
             > /run/systemd/resolved.conf.d/extra.conf; systemctl restart systemd-resolved",
        );
        // The kept sockets are closed with the unit, which starts as after a boot.
        machine.run("systemctl clean --what=fdstore cloakroom || true");
        machine.run("systemctl start --no-block cloakroom");
        let said = || machine.journal_of("-p err -u cloakroom");
        machine.wait_until("it says why", || said().contains("port 53 is in use on agents0 by"));
        assert!(said().contains("systemd-resolve"), "{}", said());
        machine
            .run("rm /run/systemd/resolved.conf.d/extra.conf; systemctl restart systemd-resolved");
        machine.wait_until("ready", || machine.property("ActiveState") == "active");
        assert_served(&lab, &origin);
    });
}

const RESOLVED: &str = "-u systemd-resolved";

fn agents_are_answered() -> bool {
    lookup_once()
}

/// Returns whether the stub answers a program of the machine.
fn stub_answers() -> bool {
    GATEWAY.enter(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
        let header = [0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let question = b"\x07printer\x03lan\x00\x00\x01\x00\x01";
        let sent = socket.send_to(&[&header[..], question].concat(), "127.0.0.53:53");
        let mut answer = [0; 512];
        sent.is_ok()
            && socket
                .recv(&mut answer)
                .is_ok_and(|length| answer[..length].ends_with(&[192, 0, 2, 99]))
    })
}

/// The commands are those of the operations' page.
#[test]
fn firewalld_beside_it_is_named_until_it_lets_agents_in() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let machine = Machine::boot(&lab);
        machine.install(&lab, &config().gateway("assert_every", "1s"));
        machine.run("systemctl start cloakroom");
        assert_served(&lab, &origin);
        machine.run("systemctl start firewalld");
        let status = || machine.run("cloakroom status");
        for chain in ["filter_INPUT", "filter_PREROUTING"] {
            let named = format!("chain {chain} of table inet firewalld");
            let causes = || machine.run("cloakroom status --json");
            machine.wait_until("named", || causes().contains(&named));
        }
        assert!(AGENT.connect(OPENAI.port(443)).is_err(), "as it says, nothing works");

        for line in commands() {
            machine.run(&line);
            machine.run(&line.replace("agents0", "agents1"));
        }
        machine.wait_until("healthy", || status().starts_with("healthy"));
        let all_served = || {
            assert_served(&lab, &origin);
            AGENT.connect(OPENAI.port6(443)).expect("IPv6");
            assert!(agents_are_answered());
        };
        all_served();
        let service = Target::of(GATEWAY, [GATEWAY_V4.into(), GATEWAY_V6.into()]);
        let outside = Target::of(INTERNET, [OTHER.v4().into(), OTHER.v6().into()]);
        let sending = Sending::to(&[&service, &outside]);
        for order in [
            "firewall-cmd --reload",
            "systemctl restart firewalld",
            "firewall-cmd --complete-reload",
        ] {
            machine.run(order);
            all_served();
        }
        machine.run("systemctl stop firewalld");
        all_served();
        assert!(sending.ended() > 100, "the agent sent nothing");
        assert!(service.reached().is_empty(), "a service of the gateway was reached");
        assert!(outside.reached().is_empty(), "packets reached the internet");
        assert!(status().starts_with("healthy"), "{}", status());
    });
}

/// Returns the commands that the page gives for firewalld.
fn commands() -> Vec<String> {
    let page = tools::repository().join("docs/operations.md");
    let page = std::fs::read_to_string(page).expect("it is there");
    let (_, section) = page.split_once("### A firewall beside it").expect("the section");
    let (section, _) = section.split_once("\n## ").expect("another section follows");
    let lines = section.lines().filter_map(|line| line.strip_prefix("    "));
    let lines: Vec<_> =
        lines.map(|line| line.split(" #").next().unwrap_or_default().to_owned()).collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    lines
}
