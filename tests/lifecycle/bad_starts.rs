//! A start with a wrong setting: one clear line, a non-zero exit, and the guard stays closed.

use std::{collections::BTreeSet, process::Output, time::Duration};

use lab::{
    Lab,
    dns::Dns,
    gateway::{self, Failed, Gateway, usual_config},
    net::GATEWAY,
    origin::Origin,
    sandboxed,
    vault::Vault,
};
use policy_builder::Config;
use serde_json::Value;

use crate::faults::{CHAT, Trap, ask, assert_closed, assert_one_line};

fn refused(lab: &Lab, config: &Config) -> Failed {
    Gateway::try_start(lab, config).err().expect("the gateway did not start")
}

#[test]
fn what_the_machine_lacks_is_one_line_behind_the_guard() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let usual = usual_config();

        let missing = usual.clone().group("operations", |it| it.set("interface", "agents7"));
        assert_one_line(&refused(&lab, &missing), &["agents7", "does not exist"]);
        assert_closed(&origin);

        // Another program has the proxy port, in either family and on one interface or all.
        for address in ["0.0.0.0:15001", "192.0.2.1:15001", "[::]:15001"] {
            let other = Trap::set(GATEWAY, &[address.parse().expect("an address")]);
            assert_one_line(&refused(&lab, &usual), &["port 15001", "in use"]);
            assert_closed(&origin);
            drop(other);
        }

        GATEWAY.shell("ip link set lo down");
        assert_one_line(&refused(&lab, &usual), &["lo is down"]);
        GATEWAY.shell("ip link set lo up");
        assert_closed(&origin);

        std::fs::rename(lab.dir.join("issuing"), lab.dir.join("elsewhere")).expect("a folder");
        let failed = Gateway::run(&lab, &lab.dir.join("cloakroom.toml")).err().expect("no CA");
        assert_one_line(&failed, &["issuing"]);
        assert_closed(&origin);
        std::fs::rename(lab.dir.join("elsewhere"), lab.dir.join("issuing")).expect("a folder");

        lab.write("nowhere", "a file stands where a folder has to be made");
        let nowhere = usual.clone().gateway("audit", "{dir}/nowhere/audit.jsonl");
        assert_one_line(&refused(&lab, &nowhere), &["audit"]);
        assert_closed(&origin);

        // After all of it is corrected, the gateway starts.
        let gateway = Gateway::start(&lab, &usual);
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
        let second = Gateway::run(&lab, &lab.dir.join("cloakroom.toml")).err().expect("a second");
        assert_one_line(&second, &["control.sock", "another daemon uses it"]);
        let elsewhere = usual.gateway("control", "{dir}/control/second.sock");
        let second = gateway::install_as(&lab, "second.toml", &elsewhere);
        let second = Gateway::run(&lab, &second).err().expect("a second");
        assert_one_line(&second, &["another cloakroom"]);
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200, "the first one is not disturbed");
    });
}

#[test]
fn without_the_guard_or_the_capability_nothing_starts() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        gateway::guard();
        Gateway::start(&lab, &usual_config()).kill();
        GATEWAY.shell("nft delete table inet cloakroom");

        // IP_TRANSPARENT, routes and rules all need it; without it no listener is transparent.
        let output = run_with(&lab, "setpriv --bounding-set=-net_admin --inh-caps=-net_admin");
        assert_one_line(&failed(&output), &["CAP_NET_ADMIN"]);
        assert!(!lab.dir.join("ready").exists(), "it said it was ready");
        let tables = GATEWAY.shell("nft list tables");
        assert!(!tables.contains("inet cloakroom\n"), "{tables}");
        assert_closed(&origin);

        GATEWAY.shell("nft flush set inet cloakroom_base agent_interfaces");
        let output = run_with(&lab, "");
        let named = "\"agents0\", \"agents1\": run `cloakroom guard --load`";
        assert_one_line(&failed(&output), &["services", named]);
        assert!(!lab.dir.join("ready").exists(), "it said it was ready");

        GATEWAY.shell("nft delete table inet cloakroom_base");
        let output = run_with(&lab, "");
        assert_one_line(&failed(&output), &["cloakroom_base", "cloakroom guard --load"]);
        assert!(!lab.dir.join("ready").exists(), "it said it was ready");
    });
}

#[test]
fn a_start_that_fails_leaves_no_token_in_vault() {
    sandboxed(|| {
        let lab = Lab::new();
        let _origin = Origin::start(&lab);
        let _dns = Dns::start();
        let vault = Vault::start(&lab);
        let config = vault.config();
        Gateway::start(&lab, &config).terminate(Duration::from_secs(20));
        let tokens = || BTreeSet::from_iter(vault.accessors());
        let logins = || vault.audit().iter().filter(|it| is_login(it)).count();
        let (before, logged_in) = (tokens(), logins());

        // This comes before the gateway asks Vault for anything.
        let other = Trap::set(GATEWAY, &["0.0.0.0:15001".parse().expect("an address")]);
        assert_one_line(&refused(&lab, &config), &["port 15001", "in use"]);
        assert_eq!(tokens(), before);
        assert_eq!(logins(), logged_in, "it logged in before it knew that it can start");
        drop(other);

        // The last step of a start, when the daemon has its tokens and the values.
        let output = run_until(&lab, "", "nowhere/ready");
        assert_one_line(&failed(&output), &["nowhere/ready"]);
        assert!(logins() > logged_in, "it never logged in");
        assert_eq!(tokens(), before);
    });
}

fn is_login(record: &Value) -> bool {
    record["type"] == "response" && record["request"]["path"] == "auth/approle/login"
}

/// Runs the daemon through `with`, to its end.
fn run_with(lab: &Lab, with: &str) -> Output {
    run_until(lab, with, "ready")
}

/// Does the same with another ready file.
fn run_until(lab: &Lab, with: &str, ready: &str) -> Output {
    let _ = std::fs::remove_file(lab.dir.join(ready));
    let line = format!(
        "exec timeout 15 {with} '{}' run --ready-file '{dir}/{ready}' '{dir}/cloakroom.toml'",
        lab::tools::cloakroom().display(),
        dir = lab.dir.display()
    );
    GATEWAY.command("sh").args(["-c", &line]).output().expect("sh starts")
}

fn failed(output: &Output) -> Failed {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Failed { status: Some(output.status), stderr }
}

#[test]
fn five_mistakes_are_five_errors_with_their_lines() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        gateway::guard();
        let wrong = usual_config()
            .gateway("ipv6", "yes")
            .gateway("ports", [443, 80, 70_000])
            .group("operations", |it| it.set("prefixes", ["192.0.2.300/25", "2001:db8:b::/64"]))
            .binding("OPENAI_API_KEY", |it| it.set("secret", "sk-live-in-the-configuration"))
            .binding("GIT_TOKEN", |it| it.without("places").set("placse", ["basic password"]));
        let path = gateway::install(&lab, &wrong);
        let text = std::fs::read_to_string(&path).expect("the configuration");
        let line_of = |part: &str| {
            1 + text
                .lines()
                .position(|line| line.contains(part))
                .unwrap_or_else(|| panic!("{part}"))
        };
        let lines = ["ipv6 = ", "70000", "192.0.2.300", "sk-live", "placse"].map(line_of);
        for command in [vec!["check"], vec!["run"], vec!["rules"]] {
            let output = gateway::program().args(&command).arg(&path).output().expect("it starts");
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            println!("{stderr}");
            assert_eq!(output.status.code(), Some(64), "{command:?}: {stderr}");
            assert!(output.stdout.is_empty(), "{command:?}");
            for line in lines {
                assert!(stderr.contains(&format!("cloakroom.toml:{line}:")), "{line}: {stderr}");
            }
            let errors = stderr
                .lines()
                .filter(|line| line.contains("cloakroom.toml:") && !line.ends_with("errors"))
                .count();
            assert_eq!(errors, 5, "{stderr}");
            assert!(stderr.contains("5 errors"), "{stderr}");
            assert!(!stderr.contains("in-the-configuration"), "a key was repeated: {stderr}");
        }
        assert_closed(&origin);
    });
}

#[test]
fn check_explains_the_policy_and_rules_suit_nft() {
    sandboxed(|| {
        let lab = Lab::new();
        let path = gateway::install(&lab, &usual_config());
        let output = gateway::program().arg("check").arg(&path).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        for part in [
            "research",
            "operations",
            "agents0",
            "192.0.2.0/25",
            "2001:db8:b::/64",
            "openai",
            "api.openai.example",
            "OPENAI_API_KEY",
            "OPS_OPENAI_KEY",
            "api.anthropic.example",
            "git.example",
            "pypi.example",
            "*.cdn.example",
        ] {
            assert!(said.contains(part), "{part} is not in:\n{said}");
        }
        let program = lab::tools::cloakroom();
        GATEWAY.shell(&format!(
            "'{}' rules '{}' > {}/rules.nft",
            program.display(),
            path.display(),
            lab.dir.display()
        ));
        GATEWAY.shell(&format!("nft -c -f {}/rules.nft", lab.dir.display()));
        let rules = std::fs::read_to_string(lab.dir.join("rules.nft")).expect("rules");
        assert!(rules.contains("tproxy ip to :15001"), "{rules}");
    });
}
