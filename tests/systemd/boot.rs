//! A machine that is switched on with the units enabled, with systemd-networkd and an uplink that
//! has no carrier.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use lab::{
    Lab,
    client::succeed,
    dns::Dns,
    net::{GATEWAY, INTERNET},
    origin::Origin,
    sandboxed, tools,
};

use crate::{
    assert_served,
    machine::{self, Machine, UNITS, config},
};

/// The units that the operator enables.
const ENABLED: [&str; 5] = [
    "cloakroom-guard.service",
    "cloakroom.service",
    "systemd-networkd.service",
    "systemd-networkd-wait-online.service",
    "waits.service",
];

/// A unit that wants the network, as nearly every machine has one.
const WAITS: &str = "[Unit]\nWants=network-online.target\nAfter=network-online.target\n\
    [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=true\n\
    [Install]\nWantedBy=multi-user.target\n";

const UPLINK: &str = "[Match]\nName=wan0\n[Network]\nIPv6AcceptRA=no\nAddress=203.0.113.2/24\n\
    Address=2001:db8:f::2/64\nGateway=203.0.113.1\nGateway=2001:db8:f::1\n";

#[test]
fn the_guard_precedes_links_and_no_carrier_delays_nothing() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        machine::put(&lab, &config());
        INTERNET.shell("ip link set wan0 down");
        GATEWAY.shell("ip link set wan0 down");
        let begun = Instant::now();
        let machine = Machine::switch_on(&lab, &enabled(&lab));
        machine.wait_until("the daemon's user", || machine.says("id cloakroom"));
        // The daemon tries each second, until everything that it needs is there.
        machine.install(&lab, &config());
        machine.wait_until("up without its uplink", || {
            machine.state("cloakroom") == "active"
                && machine.state("systemd-networkd-wait-online") == "activating"
        });
        println!("up in {:?}", begun.elapsed());
        assert_ne!(machine.state("network-online.target"), "active", "nobody waited for it");
        assert_ne!(machine.state("waits"), "active");
        let at = |unit: &str, when: &str| -> u64 {
            let shown = machine.run(&format!("systemctl show --value -p {when} {unit}"));
            shown.trim().parse().unwrap_or_else(|error| panic!("{unit}: {shown}: {error}"))
        };
        let guard = at("cloakroom-guard", "ExecMainExitTimestampMonotonic");
        for (unit, when) in [
            ("network-pre.target", "ActiveEnterTimestampMonotonic"),
            ("systemd-networkd", "ExecMainStartTimestampMonotonic"),
            ("cloakroom", "ExecMainStartTimestampMonotonic"),
        ] {
            assert!(guard > 0 && guard <= at(unit, when), "{unit} was before the guard");
        }
        let guarded = "nft list set inet cloakroom_base agent_interfaces | grep agents0";
        machine.wait_until("guarded", || machine.says(guarded));
        let log = machine.journal_of("-b");
        assert!(!log.contains("ordering cycle"), "{log}");

        INTERNET.shell("ip link set wan0 up");
        machine.wait_until("online", || machine.state("waits") == "active");
        assert_served(&lab, &origin);

        // If the guard cannot be loaded, the links stay down.
        machine.run("systemctl stop systemd-networkd.socket systemd-networkd cloakroom");
        machine
            .run("systemctl stop cloakroom-guard; echo '[[group' >> /etc/cloakroom/cloakroom.toml");
        assert!(!machine.says("systemctl start systemd-networkd"), "links would come up");
        assert_ne!(machine.state("systemd-networkd"), "active");
        let said = machine.journal_of("-p err -u cloakroom-guard");
        assert!(said.contains("cloakroom.toml"), "{said}");
    });
}

/// Returns what `systemctl enable` makes of the units' own `[Install]`, and the settings of the
/// uplink: each file here, and its place in the machine.
fn enabled(lab: &Lab) -> Vec<(PathBuf, String)> {
    let units = lab.dir.join("enabled/etc/systemd/system");
    let vendors = lab.dir.join("enabled/usr/lib/systemd/system");
    for folder in [&units, &vendors] {
        fs::create_dir_all(folder).expect("writable");
    }
    for name in UNITS {
        fs::copy(tools::repository().join("image").join(name), units.join(name)).expect("writable");
    }
    for name in ENABLED.iter().filter(|name| name.starts_with("systemd-")) {
        let from = Path::new(&machine::told("CLOAKROOM_MACHINE"))
            .join("usr/lib/systemd/system")
            .join(name);
        fs::copy(from, vendors.join(name)).expect("Debian's unit");
    }
    fs::write(units.join("waits.service"), WAITS).expect("writable");
    let mut enable = Command::new("systemctl");
    enable.arg(format!("--root={}", lab.dir.join("enabled").display())).arg("enable");
    succeed(enable.args(ENABLED));
    let links = fs::read_dir(&units).expect("a folder").map(|entry| entry.expect("an entry"));
    let links = links.filter(|entry| entry.path().is_dir()).map(|entry| {
        let name = entry.file_name().into_string().expect("ASCII");
        (entry.path(), format!("/etc/systemd/system/{name}"))
    });
    let mut files: Vec<_> = links.collect();
    files.push((units.join("waits.service"), "/etc/systemd/system/waits.service".into()));
    let uplink = lab.write("wan0.network", UPLINK);
    fs::set_permissions(&uplink, std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .expect("ours");
    files.push((uplink, "/etc/systemd/network/wan0.network".into()));
    files
}
