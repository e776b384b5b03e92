//! The package in a Debian that is booted: an administrator's actions, from the first installation
//! to a purge, and that nothing is left behind.

use std::{process::Command, time::Duration};

use lab::{
    Lab,
    client::{Hello, Tls},
    dns::Dns,
    net::{AGENT, OPENAI},
    origin::Origin,
    sandbox::sandboxed_for,
};

use crate::{
    assert_served,
    machine::{Machine, config, told},
    stream,
};

#[test]
fn trixie_installs_upgrades_removes_and_purges_the_package() {
    sandboxed_for(LIMIT, || a_life(&told("CLOAKROOM_MACHINE")));
}

/// If this machine is newer than bookworm, programs built on it need a newer libc than bookworm
/// has.
#[test]
fn bookworm_installs_upgrades_removes_and_purges_the_package() {
    sandboxed_for(LIMIT, || a_life(&told("CLOAKROOM_BOOKWORM")));
}

#[test]
fn lintian_has_nothing_to_say_of_the_package() {
    let mut lintian = Command::new("lintian");
    lintian.args(["--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0"]);
    let output = lintian.arg(deb()).output().expect("tests/prerequisites installs lintian");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.trim().is_empty(), "{said}");
}

fn a_life(root: &str) {
    let lab = Lab::new();
    let origin = Origin::start(&lab);
    let _dns = Dns::start();
    let machine = Machine::with(&lab, root, (deb().as_ref(), "/mnt/one.deb"));
    machine.run(NEXT_ONES);
    let before = files(&machine);

    install(&machine, "/mnt/one.deb", "");
    assert_installed(&machine);
    assert_starts_closed(&machine, &lab, &origin);

    machine.install(&lab, &config());
    machine.run("systemctl restart cloakroom-guard; systemctl enable --now cloakroom-ca.timer");
    machine.wait_until("ready", || machine.property("ActiveState") == "active");
    assert_served(&lab, &origin);
    assert_keeps_on_through_an_upgrade(&machine, &lab, &origin);
    assert_keeps_its_configuration_where_the_package_has_another(&machine);

    machine.run("apt-get remove --yes -qq cloakroom");
    assert_removed_and_closed(&machine, &lab, &origin);
    machine.run("apt-get purge --yes -qq cloakroom");
    // The owner made these files, and the package knows nothing of them.
    machine
        .run("rm /etc/cloakroom/secrets.toml /etc/cloakroom/public-ca.pem; rmdir /etc/cloakroom");
    machine.run("rm -r /root/cloakroom-root");
    assert_eq!(added(&before, &files(&machine)), [""; 0]);
    // Debian keeps the users of packages: a reused number would give another user the old files.
    machine.run("getent passwd cloakroom");
}

fn install(machine: &Machine, deb: &str, options: &str) -> String {
    machine
        .run(&format!("DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq {options} {deb}"))
}

/// Checks that program, user, folders, modes, man pages and completions are there, and nothing
/// runs.
#[track_caller]
fn assert_installed(machine: &Machine) {
    assert!(machine.run("cloakroom --version").starts_with("cloakroom "));
    let user = machine.run("getent passwd cloakroom");
    assert!(user.trim_end().ends_with(":/nonexistent:/usr/sbin/nologin"), "{user}");
    assert!(machine.says("test $(id -u cloakroom) -lt 1000"), "{user}");
    let modes = machine.run(
        "stat -c '%n %U %a' /usr/bin/cloakroom /etc/cloakroom /etc/cloakroom/cloakroom.toml \
         /var/lib/cloakroom /var/lib/cloakroom/ca /var/log/cloakroom",
    );
    let expected = "/usr/bin/cloakroom root 755\n\
        /etc/cloakroom root 755\n\
        /etc/cloakroom/cloakroom.toml root 644\n\
        /var/lib/cloakroom cloakroom 700\n\
        /var/lib/cloakroom/ca cloakroom 700\n\
        /var/log/cloakroom cloakroom 700\n";
    assert_eq!(modes, expected);
    for unit in UNITS {
        assert_eq!(state(machine, "is-active", unit), "inactive", "{unit}");
    }
    for unit in ENABLED {
        assert_eq!(state(machine, "is-enabled", unit), "disabled", "{unit}");
    }
    machine.run("test -s /usr/lib/sysctl.d/99-cloakroom.conf");
    machine.run("test -s /usr/lib/systemd/networkd.conf.d/50-cloakroom.conf");
    machine.run("systemd-analyze verify --man=no cloakroom.service cloakroom-guard.service");
    for page in ["cloakroom", "cloakroom-run", "cloakroom-ca-issue", "cloakroom-vault-doctor"] {
        machine.run(&format!("zcat /usr/share/man/man1/{page}.1.gz | grep -q '^.TH {page} 1'"));
    }
    machine.run(
        "bash -c '. /usr/share/bash-completion/completions/cloakroom && complete -p cloakroom'",
    );
    machine.run("grep -q '^#compdef cloakroom' /usr/share/zsh/vendor-completions/_cloakroom");
    machine.run(
        "grep -q '^complete -c cloakroom' /usr/share/fish/vendor_completions.d/cloakroom.fish",
    );
    // The program accepts the example.
    machine.run("cloakroom check /etc/cloakroom/cloakroom.toml");
}

/// Checks that the installed package runs, and refuses everything that agents do.
#[track_caller]
fn assert_starts_closed(machine: &Machine, lab: &Lab, origin: &Origin) {
    machine.run("systemctl enable --now cloakroom-guard cloakroom");
    for unit in ["cloakroom-guard.service", "cloakroom.service"] {
        assert_eq!(state(machine, "is-enabled", unit), "enabled", "{unit}");
        assert_eq!(state(machine, "is-active", unit), "active", "{unit}");
    }
    // One of these brings up the links, and not without the guard.
    for network in ["systemd-networkd", "NetworkManager", "networking"] {
        machine.run(&format!(
            "test -L /etc/systemd/system/{network}.service.requires/cloakroom-guard.service"
        ));
    }
    assert!(unanswered(lab, origin), "an agent got through before anything was listed");
}

#[track_caller]
fn assert_keeps_on_through_an_upgrade(machine: &Machine, lab: &Lab, origin: &Origin) {
    let (config, process) = (configuration(machine), machine.property("MainPID"));
    let mut flow = stream(lab);
    install(machine, "/tmp/two.deb", "");
    assert_eq!(machine.run("dpkg-query -W -f '${Version}' cloakroom"), "9.0-2");
    assert_eq!(configuration(machine), config);
    assert_ne!(machine.property("MainPID"), process, "the old program still runs");
    assert_eq!(machine.property("NRestarts"), "0", "{}", machine.journal());
    assert_eq!(state(machine, "is-enabled", "cloakroom.service"), "enabled");
    assert_eq!(state(machine, "is-active", "cloakroom-guard.service"), "active");
    assert_served(lab, origin);
    let more = flow.read_some(4096).expect("the daemon before the upgrade drains");
    assert!(!more.is_empty(), "a flow was cut by the upgrade");
}

/// Checks that an upgrade without questions leaves the owner's file, and the package's beside it.
#[track_caller]
fn assert_keeps_its_configuration_where_the_package_has_another(machine: &Machine) {
    let config = configuration(machine);
    let old = "-o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold";
    install(machine, "/tmp/three.deb", old);
    assert_eq!(machine.run("dpkg-query -W -f '${Version}' cloakroom"), "9.0-3");
    assert_eq!(configuration(machine), config);
    machine.run("grep -q 'of version three' /etc/cloakroom/cloakroom.toml.dpkg-dist");
    machine.wait_until("ready", || machine.property("ActiveState") == "active");
}

/// Checks that no process, no unit and no link to one are left, but configuration, state and the
/// guard's rules are.
#[track_caller]
fn assert_removed_and_closed(machine: &Machine, lab: &Lab, origin: &Origin) {
    machine.run("test ! -e /usr/bin/cloakroom; ! pgrep -x cloakroom");
    let links = machine.run("find /etc/systemd /run/systemd/generator -name '*cloakroom*'");
    assert_eq!(links, "", "links to units that are gone");
    machine.run("test -s /etc/cloakroom/cloakroom.toml; test -s /var/log/cloakroom/audit.jsonl");
    machine.run("nft list table inet cloakroom_base");
    assert!(unanswered(lab, origin), "an agent got through without the package");
}

/// Returns whether an agent's request gets no answer, and reaches nobody.
fn unanswered(lab: &Lab, origin: &Origin) -> bool {
    let before = origin.log().connections().len();
    let trusting = Hello::h1(OPENAI.name).trusting(lab.public.pem());
    let failed = Tls::open(AGENT, OPENAI.port(443), &trusting).is_err();
    failed && origin.log().connections().len() == before
}

fn configuration(machine: &Machine) -> String {
    machine.run("cat /etc/cloakroom/cloakroom.toml")
}

fn state(machine: &Machine, ask: &str, unit: &str) -> String {
    machine.run(&format!("systemctl {ask} {unit} || true")).trim().to_owned()
}

/// Returns every file, except those in which Debian records its actions.
fn files(machine: &Machine) -> Vec<String> {
    let listed = machine.run(
        "find / -xdev ! -path '/var/log/*' ! -path '/var/lib/dpkg/*-old' ! -path '/var/cache/*' \
         ! -path '/var/lib/apt/*' ! -path '/tmp/*' ! -path '/etc/*-' ! -path '/proc/*' \
         ! -path '/var/lib/systemd/timers/stamp-dpkg*' ! -path '/etc/.pwd.lock' | sort",
    );
    listed.lines().map(str::to_owned).collect()
}

fn added(before: &[String], after: &[String]) -> Vec<String> {
    after.iter().filter(|file| before.binary_search(file).is_err()).cloned().collect()
}

fn deb() -> String {
    told("CLOAKROOM_DEB")
}

/// Makes packages of higher versions; the last has another configuration.
const NEXT_ONES: &str = "cd /tmp && dpkg-deb -R /mnt/one.deb next && \
    sed -i 's/^Version: .*/Version: 9.0-2/' next/DEBIAN/control && \
    dpkg-deb -Zgzip -z1 -b next two.deb && \
    echo '# of version three' >>next/etc/cloakroom/cloakroom.toml && \
    sed -i 's/^Version: .*/Version: 9.0-3/' next/DEBIAN/control && \
    dpkg-deb -Zgzip -z1 -b next three.deb && rm -r next";
const UNITS: [&str; 4] =
    ["cloakroom.service", "cloakroom-guard.service", "cloakroom-ca.service", "cloakroom-ca.timer"];
/// The units that can be enabled.
const ENABLED: [&str; 3] = ["cloakroom.service", "cloakroom-guard.service", "cloakroom-ca.timer"];
/// Longest time of a boot, three installations and a removal.
const LIMIT: Duration = Duration::from_secs(240);
