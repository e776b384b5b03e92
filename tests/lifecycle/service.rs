//! The systemd unit agrees with the reference of the configuration, and leaves the daemon all the
//! rights that it needs.

use std::{fs, os::unix::fs::MetadataExt as _, process::Command};

use lab::{Lab, World, gateway, net::GATEWAY, sandboxed, tools, wait};

/// A container's namespace lacks some of them.
#[test]
fn kernel_settings_load_by_the_documented_command() {
    sandboxed(|| {
        let _lab = Lab::new();
        let page = tools::repository().join("docs/operations.md");
        let page = fs::read_to_string(page).expect("docs/operations.md");
        let file = "image/99-cloakroom.conf";
        assert!(page.contains(&format!("`sysctl -e -p {file}`")));
        let mut load = GATEWAY.command("sysctl");
        load.args(["-q", "-e", "-p"]).arg(tools::repository().join(file));
        let loaded = load.output().expect("sysctl starts");
        let said = String::from_utf8_lossy(&loaded.stderr);
        assert!(loaded.status.success() && said.is_empty(), "{said}");
        assert_eq!(GATEWAY.shell("sysctl -n net.ipv4.tcp_mtu_probing").trim(), "1");
    });
}

#[test]
fn the_units_folders_are_the_references_defaults() {
    let reference = image("cloakroom.toml");
    let default = |key: &str| {
        let line = reference.lines().find_map(|line| line.strip_prefix(&format!("#{key} = \"")));
        line.unwrap_or_else(|| panic!("no {key}")).trim_end_matches('"').to_owned()
    };
    let folders = |key: &str, root: &str| -> Vec<String> {
        value(key).split(' ').map(|name| format!("{root}/{name}")).collect()
    };
    let state = folders("StateDirectory", "/var/lib");
    assert_eq!(state, [default("state_dir"), default("ca_dir")]);
    let file_in = |folder: &[String], path: String| {
        path.rsplit_once('/').is_some_and(|(parent, _)| folder == [parent])
    };
    assert!(file_in(&folders("LogsDirectory", "/var/log"), default("audit")));
    assert!(file_in(&folders("RuntimeDirectory", "/run"), default("control")));
    for key in ["State", "Logs", "Runtime"] {
        assert_eq!(value(&format!("{key}DirectoryMode")), "0700");
    }
    let page = tools::repository().join("docs/operations.md");
    let page = fs::read_to_string(page).expect("docs/operations.md");
    let kept = format!("FileDescriptorStoreMax={}", value("FileDescriptorStoreMax"));
    assert!(page.contains(&kept), "{kept}");
}

/// `systemd-analyze security` adds up many directives: without one of them its figure is still
/// good.
#[test]
fn each_unit_with_keys_has_every_hardening_directive() {
    for unit in ["cloakroom.service", "cloakroom-ca.service"] {
        let text = image(unit);
        let says = |directive: &&&str| {
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(**directive));
            lines.any(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        let missing: Vec<&&str> = HARDENING.iter().filter(|it| !says(it)).collect();
        assert!(missing.is_empty(), "{unit} lacks {missing:?}");
    }
    assert!(image("cloakroom.service").contains("\nSystemCallFilter=~@privileged @resources "));
    assert!(image("cloakroom-ca.service").contains("\nPrivateNetwork=yes\n"));
}

const HARDENING: [&str; 24] = [
    "UMask=0077",
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
    "PrivateTmp=yes",
    "PrivateDevices=yes",
    "ProtectClock=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectControlGroups=yes",
    "ProtectProc=invisible",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "RemoveIPC=yes",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "MemorySwapMax=0",
    "LimitCORE=0",
    "KeyringMode=private",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
];

#[test]
fn systemd_takes_the_units() {
    sandboxed(|| {
        if tools::on_path(&["systemd-analyze"]).is_none() {
            return println!("no systemd here");
        }
        let lab = Lab::new();
        let program = tools::cloakroom().display().to_string();
        let units = [
            "cloakroom-guard.service",
            "cloakroom.service",
            "cloakroom-ca.service",
            "cloakroom-ca.timer",
        ];
        let path = |name| {
            let unit = image(name).replace("/usr/bin/cloakroom", &program);
            lab.write(name, unit)
        };
        // The pages belong to the package, which need not be on this machine.
        let output = Command::new("systemd-analyze")
            .args(["verify", "--man=no"])
            .args(units.map(path))
            .output();
        let output = output.expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        let of_ours: Vec<&str> =
            said.lines().filter(|line| units.iter().any(|unit| line.contains(unit))).collect();
        assert!(output.status.success() && of_ours.is_empty(), "{said}");
    });
}

#[test]
fn the_capabilities_of_the_unit_are_enough() {
    sandboxed(|| {
        // This run makes the certificates, and shows that the configuration works.
        let mut world = World::usual();
        world.gateway.kill();
        GATEWAY.shell("nft delete table inet cloakroom; sysctl -qw net.ipv4.ip_forward=1");
        let _ = fs::remove_file(world.lab.dir.join("ready"));
        assert_eq!(value("AmbientCapabilities"), value("CapabilityBoundingSet"));
        let only = value("CapabilityBoundingSet").to_lowercase().replace("cap_", "+");
        let only = format!("-all,{}", only.replace(' ', ","));
        let mut daemon = GATEWAY
            .command("setpriv")
            .args(["--no-new-privs", "--bounding-set", &only, "--inh-caps", &only])
            .arg(tools::cloakroom())
            .arg("run")
            .arg("--ready-file")
            .arg(world.lab.dir.join("ready"))
            .arg(world.config())
            .spawn()
            .expect("setpriv starts");
        wait::expect("it is ready", || world.lab.dir.join("ready").exists());
        assert_eq!(GATEWAY.shell("sysctl -n net.ipv4.ip_forward"), "0\n");
        let rules = GATEWAY.shell("nft list table inet cloakroom");
        assert!(rules.contains("tproxy"), "{rules}");
        world.origin.log().assert_untouched();
        daemon.kill().expect("it ends");
        daemon.wait().expect("it ended");
        gateway::guard();
    });
}

#[test]
fn journal_lines_have_a_priority_and_no_time() {
    sandboxed(|| {
        let mut world = World::usual();
        world.gateway.kill();
        let config = world.config();
        let logged = |is_journal: bool| {
            let log = fs::File::create(world.lab.dir.join("stderr")).expect("writable");
            let meta = log.metadata().expect("its number");
            let inode = if is_journal { meta.ino() } else { meta.ino() + 1 };
            let _ = fs::remove_file(world.lab.dir.join("ready"));
            let mut daemon = GATEWAY
                .command(tools::cloakroom())
                .args(["run", "--ready-file"])
                .args([&world.lab.dir.join("ready"), &config])
                .env("JOURNAL_STREAM", format!("{}:{inode}", meta.dev()))
                .stderr(log)
                .spawn()
                .expect("it starts");
            let ended = wait::until(wait::SOON, || {
                let ready = world.lab.dir.join("ready").exists();
                (ready || daemon.try_wait().is_ok_and(|status| status.is_some())).then_some(())
            });
            ended.expect("it is ready, or has ended");
            let _ = daemon.kill();
            daemon.wait().expect("it ended");
            fs::read_to_string(world.lab.dir.join("stderr")).expect("it was written")
        };
        let to_journal = logged(true);
        let year = |line: &str| line.starts_with("20");
        assert!(to_journal.lines().count() > 1, "{to_journal}");
        for line in to_journal.lines() {
            let text = line.strip_prefix("<6>").or_else(|| line.strip_prefix("<4>"));
            assert!(text.is_some_and(|text| !year(text.trim_start())), "{to_journal}");
        }
        let to_file = logged(false);
        assert!(to_file.lines().count() > 1 && to_file.lines().all(year), "{to_file}");

        fs::write(&config, "[gateway]\nresolvers = 1\n").expect("writable");
        let failed = logged(true);
        assert!(failed.lines().count() > 1, "{failed}");
        assert!(failed.lines().all(|line| line.starts_with("<3>")), "{failed}");
    });
}

/// Returns the unit's value for this key, which is there once.
fn value(key: &str) -> String {
    let unit = image("cloakroom.service");
    let mut values = unit.lines().filter_map(|line| line.strip_prefix(&format!("{key}=")));
    let value = values.next().unwrap_or_else(|| panic!("no {key}")).to_owned();
    assert_eq!(values.next(), None, "{key} is there twice");
    value
}

fn image(name: &str) -> String {
    fs::read_to_string(tools::repository().join("image").join(name)).expect("readable")
}
