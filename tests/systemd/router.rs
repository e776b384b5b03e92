//! The router image's own units and scripts, in a Debian that is booted: the configuration comes in
//! systemd's credentials, the guard precedes all links, and SSH is on the management interface
//! alone. `make test-image` boots the image itself.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use lab::{
    Lab,
    client::succeed,
    dns::Dns,
    gateway::SECRETS,
    net::{AGENT, GATEWAY, INTERNET, OPENAI},
    origin::Origin,
    sandboxed, tools,
};

use crate::{
    assert_served,
    machine::{self, Machine, UNITS, config},
};

/// The network in systemd-networkd's files.
const NETWORK: [(&str, &str); 4] = [
    (
        "agents.network",
        "[Match]\nName=agents0\n[Network]\nIPv6AcceptRA=no\nAddress=192.0.2.1/25\nAddress=2001:db8:a::1/64\n",
    ),
    (
        "agents1.network",
        "[Match]\nName=agents1\n[Network]\nIPv6AcceptRA=no\nAddress=192.0.2.129/25\nAddress=2001:db8:b::1/64\n",
    ),
    (
        "wan.network",
        "[Match]\nName=wan0\n[Network]\nIPv6AcceptRA=no\nAddress=203.0.113.2/24\n\
         Address=2001:db8:f::2/64\nGateway=203.0.113.1\nGateway=2001:db8:f::1\n",
    ),
    ("mgmt.network", "[Match]\nName=mgmt0\n[Network]\nIPv6AcceptRA=no\nAddress=2001:db8:c::1/64\n"),
];
/// The router's address on the management network.
const MANAGEMENT: &str = "2001:db8:c::1";

#[test]
fn a_router_is_configured_by_credentials_and_guarded_before_links() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        unplug();
        let key = new_key(&lab);
        let machine = boot(&lab, &files(&lab, &config().to_string(), &key));
        machine.wait_until("ready", || machine.state("cloakroom") == "active");
        let root = machine.run("cat /var/lib/cloakroom-root/ca/root.pem");
        lab.write("agents.pem", [root, lab.public.pem().to_owned()].concat());
        assert_served(&lab, &origin);

        let at = |unit: &str, when: &str| -> u64 {
            let shown = machine.run(&format!("systemctl show --value -p {when} {unit}"));
            shown.trim().parse().unwrap_or_else(|error| panic!("{unit}: {shown}: {error}"))
        };
        let (setup, guard) = ("cloakroom-setup", "cloakroom-guard");
        let end = "ExecMainExitTimestampMonotonic";
        let begin = "ExecMainStartTimestampMonotonic";
        assert!(at(setup, end) <= at(guard, begin), "the guard reads the configuration");
        assert!(at(guard, end) <= at("systemd-networkd", begin), "a link may be up before it");
        let log = machine.journal_of("-b");
        assert!(!log.contains("ordering cycle"), "{log}");

        // Nobody else reads what is the daemon's alone.
        let modes = machine.run("cd /run/cloakroom-config; stat -c '%a %U %n' *");
        for line in ["600 cloakroom cloakroom.toml", "600 cloakroom secrets.toml"] {
            assert!(modes.contains(line), "{modes}");
        }

        // The report of the image is part of the status, and the login screen shows it.
        let fingerprint = machine.run(
            "openssl x509 -noout -fingerprint -sha256 -in /var/lib/cloakroom-root/ca/root.pem",
        );
        let (_, fingerprint) = fingerprint.trim().split_once('=').expect("a fingerprint");
        let screen = || machine.run("cat /run/issue.d/50-cloakroom.issue; cloakroom status");
        machine.wait_until("shown", || screen().matches(fingerprint).count() == 2);
        let screen = screen();
        assert_eq!(screen.matches("image         version 7.8.9 in slot ").count(), 2, "{screen}");
        assert!(!SECRETS.iter().any(|secret| screen.contains(secret)), "{screen}");

        only_the_key_and_only_on_management(&lab, &machine);
    });
}

/// Checks who reaches the SSH server.
fn only_the_key_and_only_on_management(lab: &Lab, machine: &Machine) {
    machine.wait_until("SSH", || machine.state("ssh") == "active");
    assert!(ssh(lab, "publickey", "cloakroom status").contains("healthy"));
    let refused = ssh(lab, "password,keyboard-interactive", "cloakroom status");
    assert!(refused.contains("Permission denied (publickey)"), "{refused}");
    let forwarded = ssh(lab, "publickey -W 203.0.113.53:53", "");
    assert!(forwarded.contains("administratively prohibited"), "{forwarded}");
    for (from, to) in [
        (AGENT, "192.0.2.1:22"),
        (AGENT, "[2001:db8:a::1]:22"),
        (AGENT, "[2001:db8:c::1]:22"),
        (INTERNET, "203.0.113.2:22"),
        (INTERNET, "[2001:db8:f::2]:22"),
    ] {
        let socket = to.parse().expect("an address");
        assert!(from.connect(socket).is_err(), "{from:?} reaches {to}");
    }
}

#[test]
fn a_wrong_file_leaves_agents_links_down_and_says_where() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        unplug();
        let key = new_key(&lab);
        let wrong = format!("{}[[group\n", config());
        let line = wrong.lines().count();
        let mut given = files(&lab, &wrong, &key);
        let (_, text) = given.iter_mut().find(|it| it.0 == "mgmt.network").expect("there");
        text.push_str("Adress=2001:db8:c::2/64\n");
        given.push(("sp ace".into(), "x".into()));
        let machine = boot(&lab, &given);
        let screen = || machine.run("cat /run/issue.d/50-cloakroom.issue || true");
        machine.wait_until("said", || screen().contains("Adress"));
        let screen = screen();
        for said in [
            "closed: the gateway does not run",
            &format!("cloakroom.toml:{line}:"),
            "mgmt.network:6: Unknown key 'Adress'",
            "sp ace: a name is of letters, digits, dot, dash and underscore",
        ] {
            assert!(screen.contains(said), "no {said} in {screen}");
        }
        // The management is reached, and reads the same there.
        machine.wait_until("SSH", || machine.state("ssh") == "active");
        let status = ssh(&lab, "publickey", "cloakroom status");
        assert!(status.contains("image         version 7.8.9"), "{status}");
        assert!(status.contains("no gateway runs here"), "{status}");
        for link in ["agents0", "agents1", "wan0"] {
            let shown = GATEWAY.shell(&format!("ip -brief link show {link}"));
            assert!(!shown.contains("<BROADCAST,MULTICAST,UP"), "{shown}");
        }
        assert!(AGENT.connect(OPENAI.port(443)).is_err());
        assert!(origin.log().connections().is_empty());
    });
}

/// Takes the lab's gateway off its links, as a machine that is off, and gives it a card for the
/// management.
fn unplug() {
    GATEWAY.shell(
        "for it in agents0 agents1 wan0; do ip addr flush dev $it; ip link set $it down; done; \
         ip link add mgmt0 type veth peer name mgmt0 netns internet",
    );
    INTERNET.shell("ip addr add 2001:db8:c::2/64 dev mgmt0 nodad; ip link set mgmt0 up");
}

/// Makes the operator's key, and returns the line for `authorized_keys`.
fn new_key(lab: &Lab) -> String {
    let path = lab.dir.join("operator");
    succeed(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path));
    fs::read_to_string(path.with_extension("pub")).expect("it was made")
}

/// Returns the output of a command that the operator runs by SSH, with this method of log-in and
/// these options.
fn ssh(lab: &Lab, method: &str, command: &str) -> String {
    let line = format!(
        "ssh -F /dev/null -i {}/operator -o IdentitiesOnly=yes -o StrictHostKeyChecking=no \
         -o UserKnownHostsFile=/dev/null -o ConnectTimeout=10 -o NumberOfPasswordPrompts=0 \
         -o PreferredAuthentications={method} root@{MANAGEMENT} {command} </dev/null 2>&1",
        lab.dir.display()
    );
    let output = INTERNET.command("sh").args(["-c", &line]).output().expect("sh starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Returns the files of a configuration, each by its name.
fn files(lab: &Lab, config: &str, key: &str) -> Vec<(String, String)> {
    let secrets = ["openai", "anthropic", "git", "ops"].iter().zip(SECRETS);
    let secrets: String = secrets.map(|(name, value)| format!("{name} = {value}\n")).collect();
    let own = [
        ("cloakroom.toml", config.to_owned()),
        ("secrets.toml", secrets),
        ("public-ca.pem", lab.public.pem().to_owned()),
        ("authorized_keys", key.to_owned()),
    ];
    let network = NETWORK.map(|(name, text)| (name, text.to_owned()));
    own.into_iter().chain(network).map(|(name, text)| (name.to_owned(), text)).collect()
}

/// Boots a Debian with the units and scripts of the image, which gets these files as credentials.
fn boot(lab: &Lab, given: &[(String, String)]) -> Machine {
    let credentials = lab.dir.join("credentials");
    fs::create_dir_all(&credentials).expect("writable");
    let load = given.iter().map(|(name, text)| {
        let path = credentials.join(name);
        fs::write(&path, text).expect("writable");
        format!("--load-credential=cloakroom.{name}:{}", path.display())
    });
    Machine::as_router(lab, &image(lab), load)
}

/// Returns the image's own files, each with its place there.
fn image(lab: &Lab) -> Vec<(PathBuf, String)> {
    let repository = tools::repository().join("image");
    let extra = repository.join("router/mkosi.extra");
    let staged = lab.dir.join("router");
    let units = staged.join("etc/systemd/system");
    fs::create_dir_all(&units).expect("writable");
    for name in UNITS {
        fs::copy(repository.join(name), units.join(name)).expect("writable");
    }
    let vendors = extra.join("usr/lib/systemd/system");
    for name in OWN {
        copy(&vendors.join(name), &units.join(name));
    }
    for (name, lines) in BEFORE {
        let folder = units.join(format!("{name}.d"));
        fs::create_dir_all(&folder).expect("writable");
        fs::write(folder.join("test.conf"), lines).expect("writable");
    }
    let mut enable = Command::new("systemctl");
    enable.arg(format!("--root={}", staged.display())).arg("enable").args(ENABLED);
    let debians = staged.join("usr/lib/systemd/system");
    for name in ["systemd-networkd.service", "ssh.service"] {
        let from = Path::new(&machine::told("CLOAKROOM_MACHINE")).join("usr/lib/systemd/system");
        copy(&from.join(name), &debians.join(name));
    }
    succeed(&mut enable);
    let etc = fs::read_dir(&units).expect("a folder").map(|entry| entry.expect("an entry").path());
    // Names that units have beside their own are links.
    let mut files: Vec<(PathBuf, String)> = etc
        .filter(|path| !path.is_symlink())
        .map(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).expect("ASCII");
            let there = format!("/etc/systemd/system/{name}");
            (path, there)
        })
        .collect();
    let release = Path::new(&machine::told("CLOAKROOM_MACHINE")).join("usr/lib/os-release");
    let release = fs::read_to_string(release).expect("Debian's") + "IMAGE_VERSION=7.8.9\n";
    let ssh = "etc/ssh/sshd_config.d/cloakroom.conf";
    files.extend([
        (extra.join("usr/lib/cloakroom"), "/usr/lib/cloakroom".into()),
        (extra.join(ssh), format!("/{ssh}")),
        (lab.write("os-release", release), "/usr/lib/os-release".into()),
    ]);
    for (path, _) in &files {
        open(path);
    }
    files
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().expect("it has one")).expect("writable");
    succeed(Command::new("cp").arg("-r").args([from, to]));
}

/// Makes a file of the lab's readable for everybody, as in an image.
fn open(path: &Path) {
    if path.is_file() && path.starts_with("/run/lab") {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("ours");
    }
}

/// The image's additions to units of the package and of Debian.
const OWN: [&str; 6] = [
    "cloakroom-setup.service",
    "cloakroom-console.service",
    "cloakroom-guard.service.d",
    "cloakroom-ca.service.d",
    "cloakroom.service.d",
    "ssh.service.d",
];

const ENABLED: [&str; 7] = [
    "cloakroom-setup.service",
    "cloakroom-guard.service",
    "cloakroom.service",
    "cloakroom-ca.timer",
    "cloakroom-console.service",
    "systemd-networkd.service",
    "ssh.service",
];

/// The image is built with the user and the link to the configuration.
const BEFORE: [(&str, &str); 1] = [(
    "cloakroom-setup.service",
    "[Unit]\nAfter=systemd-sysusers.service\n\
     [Service]\nExecStartPre=/bin/ln -sfn /run/cloakroom-config /etc/cloakroom\n",
)];
