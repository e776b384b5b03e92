//! systemd-networkd with the files of `image/examples/two-vlans` beside the running gateway: a
//! client of each family gets an address, a route and a resolver from it.

use std::{fs, net::Ipv6Addr};

use lab::{
    Lab,
    dns::Dns,
    net::{AGENT, GATEWAY},
    origin::Origin,
    sandboxed, tools, wait,
};

use crate::{
    assert_served,
    machine::{Machine, config},
};

#[test]
fn networkd_gives_agents_what_they_need_beside_the_gateway() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let machine = Machine::boot(&lab);
        let config = config().gateway("agent_services", ["dhcp"]);
        machine.install(&lab, &config);
        let into = |folder: &str, file: &str| {
            let file = tools::repository().join("image").join(file);
            let text = fs::read_to_string(&file).expect("the file is there");
            let name = file.file_name().expect("a name").display();
            machine
                .run(&format!("mkdir -p {folder}; cat > {folder}/{name} <<'END'\n{text}\nEND\n"));
        };
        into("/run/systemd/network", "examples/two-vlans/30-agents0.network");
        into("/run/systemd/network", "examples/two-vlans/30-agents1.network");
        into("/run/systemd/networkd.conf.d", "networkd.conf.d/50-cloakroom.conf");
        machine.run("systemctl start cloakroom");
        let frames = lab.capture(AGENT);
        // The agent forgets the addresses that the lab has given it.
        AGENT.shell("ip addr flush dev eth0 scope global; ip route flush default || :");
        AGENT.shell("ip -6 route flush default || :");
        AGENT.shell("sysctl -qw net.ipv6.conf.eth0.accept_ra=1 net.ipv6.conf.eth0.autoconf=1");
        machine.run("systemctl start systemd-networkd");
        machine.run("/usr/lib/systemd/systemd-networkd-wait-online -i agents0 --timeout=30");
        let script = lab.write("lease.sh", LEASE);
        AGENT.shell(&format!("chmod 0755 {}", script.display()));
        let lease = AGENT.shell(&format!(
            "busybox udhcpc -f -q -n -t 5 -T 2 -i eth0 -s {} 2>&1",
            script.display()
        ));
        let said = |name: &str| {
            let line = lease.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
            line.unwrap_or_else(|| panic!("no {name}: {lease}")).to_owned()
        };
        assert!(said("ip").starts_with("192.0.2."), "{lease}");
        assert_eq!(said("subnet"), "255.255.255.128");
        assert_eq!(said("router"), "192.0.2.1");
        assert_eq!(said("dns"), "192.0.2.1");

        wait::expect("an address by its advertisement", || {
            let addresses = AGENT.shell("ip -6 -o addr show dev eth0 scope global");
            addresses.contains("2001:db8:a:") && !addresses.contains("tentative")
        });
        wait::expect("a way out by its advertisement", || {
            AGENT.shell("ip -6 route show default").contains("proto ra")
        });
        let resolver = "2001:db8:a::1".parse::<Ipv6Addr>().expect("an address").octets();
        let advert = frames.packets().into_iter().find(|frame| {
            frame.get(12..14) == Some(&[0x86, 0xdd][..]) && frame.get(54) == Some(&134)
        });
        let advert = advert.expect("an advertisement");
        // Its flags, and the router's lifetime (RFC 4861, section 4.2).
        assert_eq!(advert[59] & 0xc0, 0, "neither managed nor other");
        assert_eq!(advert[60..62], 1800_u16.to_be_bytes());
        // RDNSS (RFC 8106, section 5.1): one resolver.
        let rdnss = advert[70..].windows(24).find(|at| at[..2] == [25, 3]);
        assert_eq!(rdnss.expect("a resolver")[8..], resolver);

        // The agent uses these settings, and networkd has left the daemon's own routes alone.
        assert_served(&lab, &origin);
        machine.run("systemctl restart systemd-networkd");
        assert_served(&lab, &origin);
        assert!(GATEWAY.shell("ip rule").contains("fwmark"));
        let status = machine.run("cloakroom status");
        assert!(!status.contains("closed"), "{status}");
    });
}

/// The script that udhcpc calls once it has a lease.
const LEASE: &str = r#"#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
ip route add default via "$router"
for name in ip subnet router dns; do
    eval "echo $name=\$$name"
done
"#;
