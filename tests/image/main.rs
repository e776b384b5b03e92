//! The router image, booted with the lab around it: agents behind two VLANs, the
//! API and the resolver on its uplink. `make test-image` runs it; it needs root.

mod router;
mod story;
mod update;

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lab::{
    Lab,
    client::{Hello, Tls},
    dns::Dns,
    gateway,
    net::{AGENT, AGENT2, INTERNET, OPENAI, PYPI},
    origin::Origin,
    sandbox,
    vault::Vault,
    wait,
    wire::Wire,
};
use policy_builder::{Config, Table, group};
use serde_json::json;

use router::{Disk, Router, WAN_ADDRESS, files, patience, plug};

const CHAT: &str = "POST /v1/chat HTTP/1.1\r\nHost: api.openai.example\r\n\
    Authorization: Bearer OPENAI_API_KEY\r\nContent-Length: 0\r\n\r\n";

/// Returns the usual policy with the reference's defaults for all folders.
fn config() -> Config {
    gateway::with_default_folders(gateway::usual_config())
}

fn hello(lab: &Lab, router: &Router, name: &str) -> Hello {
    Hello::h1(name).trusting(&story::trust(lab, router))
}

#[test]
fn the_image_serves_two_vlans_from_power_on_to_off() {
    sandbox::sandboxed_for(4 * patience(), || {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let vault = Vault::start(&lab);
        let _switch = plug(&lab);
        let uplink = lab.capture(INTERNET);
        let wire = Wire::tap(&lab, AGENT);
        let disk = Disk::new(&lab);
        disk.configure(&story::told(&lab, &vault));
        let begun = Instant::now();
        let router = disk.boot();
        router.wait_ready();
        let start = begun.elapsed();
        println!("ready after {start:?}");
        story::trust(&lab, &router);
        story::tell(&lab, &router, &origin, &wire);
        is_bare(&router);
        reports(&lab, &router);
        let other = Tls::open(AGENT2, OPENAI.port(443), &hello(&lab, &router, OPENAI.name));
        let answer =
            other.expect("the second VLAN").ask(CHAT.replace("OPENAI_API_KEY", "OPS_OPENAI_KEY"));
        assert_eq!(answer.expect("an answer").status, 200);

        // The guard was loaded before any link was up, and the daemon was ready after that.
        let journal = router.run("journalctl --no-pager -b -o short-monotonic");
        let at = |text: &str| journal.lines().position(|line| line.contains(text));
        let guard = at("Finished cloakroom-guard.service").expect("it is in the journal");
        let link = at("Gained carrier").or_else(|| at("Link UP")).expect("it is in the journal");
        let ready = at("Started cloakroom.service").expect("it is in the journal");
        assert!(guard < link && link < ready, "{journal}");

        // After the daemon is killed, nothing gets out.
        router.run("systemctl kill --signal=KILL cloakroom; systemctl stop cloakroom");
        let before = origin.log().connections().len();
        let refused = || story::agent(&lab, &wire, "curl -sS --max-time 3 https://pypi.example/");
        assert!(refused().contains("curl: "));
        thread::sleep(wait::QUIET);
        assert_eq!(origin.log().connections().len(), before);

        // The router starts again while the agent goes on asking: it is closed, and then open
        // again.
        router.run("systemctl --no-block reboot");
        let again = wait::until(patience(), || {
            (router.boots() == 2).then_some(()).or_else(|| {
                assert!(refused().contains("curl: "));
                None
            })
        });
        again.expect("it starts anew");
        router.wait_ready();
        let open = || story::agent(&lab, &wire, story::SPLICED).contains("Lab public root");
        wait::until(patience(), || open().then_some(())).expect("it is the gateway again");
        router.cut();
        originated(&uplink.packets());
        assert!(start < BOOT, "ready after {start:?}, on a machine without other work?");
    });
}

/// Checks that the image has no package manager and no compiler, that nobody has a password, and
/// that no SSH server runs where nobody may log in.
fn is_bare(router: &Router) {
    let found = router.run(&format!(
        "for it in {TOOLS}; do command -v $it; done; \
         find / -xdev -name 'dpkg*' -type f -perm /111"
    ));
    assert_eq!(found, "");
    let passwords = router.run("cut -d: -f1,2 /etc/shadow");
    assert!(passwords.lines().count() > 3, "{passwords}");
    let locked = |line: &str| line.split_once(':').is_some_and(|it| it.1.starts_with(['*', '!']));
    assert!(passwords.lines().all(locked), "{passwords}");
    assert_eq!(router.run("systemctl is-active ssh").trim(), "inactive");
    let root = router.run("grep ' / ' /proc/mounts; touch /usr/x 2>&1");
    assert!(root.contains(" erofs ro") && root.contains("Read-only file system"), "{root}");
}

/// Checks that status and console report the version, the slot and the root of the agents' CA.
fn reports(lab: &Lab, router: &Router) {
    let status = router.run("cloakroom status --json");
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let image = &status["image"];
    assert_eq!(image["version"], json!(update::running(router)), "{image}");
    assert_eq!((&image["slot"], &image["others"]), (&json!("A"), &json!([])), "{image}");
    assert_eq!(image["state_partition"], json!("not encrypted"), "{image}");
    fs::write(lab.dir.join("root.pem"), router.run("cat /var/lib/cloakroom-root/ca/root.pem"))
        .expect("writable");
    let mut openssl = Command::new("openssl");
    openssl
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(lab.dir.join("root.pem"));
    let printed = String::from_utf8(openssl.output().expect("openssl starts").stdout);
    let printed = printed.expect("UTF-8");
    let (_, fingerprint) = printed.trim().split_once('=').expect("a fingerprint");
    assert_eq!(image["agents_ca"], json!(fingerprint), "{image}");
    let version = image["version"].as_str().expect("text");
    router.wait_console(&format!("version {version} in slot A"));
    router.wait_console(&format!("agents' CA    {fingerprint}"));
}

/// Programs that would serve an intruder.
const TOOLS: &str =
    "apt apt-get dpkg dpkg-deb rpm snap pip gcc cc c++ ld as make curl wget python3";

/// Longest time from power on until the daemon is ready, also under emulation.
const BOOT: Duration = Duration::from_secs(300);

#[test]
fn with_a_tpm_the_state_is_encrypted() {
    sandbox::sandboxed_for(4 * patience(), || {
        let lab = Lab::new();
        let _parts = (Origin::start(&lab), Dns::start(), plug(&lab));
        let disk = Disk::new(&lab);
        disk.configure(&files(&lab, &config()));
        disk.new_tpm();
        let router = disk.boot();
        router.wait_ready();
        let on = "findmnt --noheadings --output SOURCE /var; \
            blkid --probe --match-tag TYPE --output value /dev/disk/by-partlabel/cloakroom-state";
        assert_eq!(router.run(on), "/dev/mapper/cloakroom-state\ncrypto_LUKS\n");
        router.wait_console("the state partition is encrypted");

        // The next boot opens it by itself, and the daemon goes on with what it kept.
        let note = "a note of the router";
        router.run(&format!("echo '{note}' >/var/lib/note; sync; systemctl --no-block reboot"));
        router.wait_boots(2);
        router.wait_ready();
        assert_eq!(router.run("cat /var/lib/note").trim(), note);
        router.run("sync");
        router.cut();
        assert!(disk.holds("IMAGE_VERSION="), "the kernel's partition is not encrypted");
        assert!(!disk.holds(note));

        // In another machine nothing opens it.
        disk.new_tpm();
        let router = disk.boot();
        router.wait_console("closed: the state partition is encrypted");
        assert!(Tls::open(AGENT, PYPI.port(443), &Hello::h1(PYPI.name)).is_err());
        router.cut();
    });
}

/// Checks that the router itself sent all packets on the uplink: none has the address of an agent,
/// and those that its card sent have its address.
fn originated(packets: &[Vec<u8>]) {
    let agents: [&[u8]; 2] = [&[192, 0, 2, 10], &[192, 0, 2, 140]];
    let networks: [&[u8]; 2] = [&[0x20, 1, 0xd, 0xb8, 0, 0xa], &[0x20, 1, 0xd, 0xb8, 0, 0xb]];
    let mut sent = 0;
    for packet in packets {
        let kind = packet.get(12..14).unwrap_or_default();
        let from = match kind {
            [8, 0] => packet.get(26..30),
            [8, 6] => packet.get(28..32),
            [0x86, 0xdd] => packet.get(22..38),
            _ => None,
        };
        let from = from.unwrap_or_default();
        assert!(!agents.contains(&from), "{packet:?}");
        assert!(!networks.iter().any(|it| from.starts_with(it)), "{packet:?}");
        if packet.get(6..12) == Some(&WAN_ADDRESS) {
            sent += 1;
            let own: [&[u8]; 4] =
                [&[203, 0, 113, 2], &[0x20, 1, 0xd, 0xb8, 0, 0xf], &[0xfe, 0x80], &[0, 0]];
            assert!(own.iter().any(|it| from.starts_with(it)), "{packet:?}");
        }
    }
    assert!(sent > 0);
}

#[test]
fn a_wrong_or_missing_configuration_is_said_on_the_console() {
    sandbox::sandboxed_for(3 * patience(), || {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let _switch = plug(&lab);
        let disk = Disk::new(&lab);
        let router = disk.boot();
        router.wait_console("no configuration");
        router.cut();

        let wrong = config().with(Table::one_of("grup"));
        // This time as cloud-init's disk, in the form that tools for it write.
        disk.configure_as("CIDATA", &files(&lab, &wrong));
        let router = disk.boot();
        let line =
            1 + wrong.to_string().lines().position(|it| it == "[[grup]]").expect("it is there");
        router.wait_console(&format!("cloakroom.toml:{line}:3"));
        assert!(router.console().contains("grup"), "{}", router.console());
        assert!(Tls::open(AGENT, PYPI.port(443), &Hello::h1(PYPI.name)).is_err());
        assert!(origin.log().connections().is_empty());
    });
}

#[test]
fn a_missing_interface_or_vault_is_said_on_the_console() {
    sandbox::sandboxed_for(3 * patience(), || {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let _switch = plug(&lab);
        // No Vault answers at this address.
        let config = gateway::with_absent_vault(gateway::from_vault(gateway::usual_config()))
            .with(group("third", "agents2", &["198.51.100.0/24"]));
        let config = gateway::with_default_folders(config);
        let mut given = files(&lab, &config);
        given.push(("secret-id".into(), "0b8ef6f1-35ac-4a0c-8c1c-6d1d1a0c1a55\n".into()));
        let disk = Disk::new(&lab);
        disk.configure(&given);
        let router = disk.boot();
        router.wait_console("interface agents2 of an agent group does not exist");
        router.wait_console("closed: the gateway does not run");
        let public = Hello::h1(PYPI.name).trusting(lab.public.pem());
        assert!(Tls::open(AGENT, PYPI.port(443), &public).is_err());
        assert!(origin.log().connections().is_empty());

        // The interface appears, and only Vault is missing.
        router.run(
            "ip link add link trunk0 name agents2 type vlan id 30 && \
             ip addr add 198.51.100.1/24 dev agents2 && ip link set agents2 up",
        );
        router.wait_ready();
        router.wait_console("no connection to Vault");
        let hello = hello(&lab, &router, OPENAI.name);
        // Right after a start its resolver may not have found the API yet.
        let mut last = String::new();
        let told = wait::until(patience(), || {
            let answer = Tls::open(AGENT, OPENAI.port(443), &hello).ok()?.ask(CHAT).ok()?;
            last = answer.text();
            (answer.status == 503).then_some(())
        });
        assert!(told.is_some(), "{last}");
        assert!(origin.log().requests().is_empty());
    });
}
