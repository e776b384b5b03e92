//! Bad input: one clear line for each mistake, a non-zero exit, and a guard that stays closed.

use std::{fs, os::unix::fs::PermissionsExt as _, time::Duration};

use lab::{
    Lab,
    dns::Dns,
    gateway::{self, Failed, Gateway},
    net::{AGENT, GATEWAY, OPENAI, OTHER},
    origin::Origin,
    sandboxed,
};

use crate::world::{TICKET, World, get};

/// The daemon does not start, says this, and nothing gets through.
#[track_caller]
fn does_not_start(prepare: impl FnOnce(&Lab), config: &str, says: &str) -> Failed {
    let lab = Lab::new();
    let origin = Origin::start(&lab);
    let _dns = Dns::start();
    prepare(&lab);
    let Err(failed) = Gateway::try_start(&lab, config) else { panic!("it became ready") };
    assert!(failed.code().is_some_and(|code| code > 0), "{failed:?}");
    assert!(failed.stderr.contains(says), "{says:?} is not in {}", failed.stderr);
    assert!(!failed.stderr.contains("panicked"), "{}", failed.stderr);
    gateway::forward();
    for to in [OPENAI.port(443), OTHER.port6(443)] {
        AGENT.connect(to).expect_err("the guard is closed");
    }
    origin.log().assert_untouched();
    failed
}

#[test]
fn five_mistakes_give_five_errors_with_their_lines() {
    sandboxed(|| {
        let lab = Lab::new();
        let config = gateway::usual_config()
            .replace("ports = [443, 80]", "ports = [443, 70000]")
            .replace("ipv6 = true", "ipv6 = \"yes\"")
            .replace("resolvers = [\"203.0.113.53\"]", "resolvers = [\"not-an-address\"]")
            .replace("placeholder = \"GIT_TOKEN\"", "placeholdr = \"GIT_TOKEN\"")
            .replace("interface = \"agents1\"", "interface = \"a/b\"");
        let file = gateway::install(&lab, &config);
        let output = gateway::program().arg("check").arg(&file).output().expect("it starts");
        assert_eq!(output.status.code(), Some(64));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        for wrong in ["70000", "ipv6", "not-an-address", "placeholdr", "a/b"] {
            assert!(stderr.contains(wrong), "{wrong} is not in {stderr}");
        }
        let lines = stderr.lines().filter(|line| line.contains("cloakroom.toml:")).count();
        assert!(lines >= 5, "{stderr}");
    });
}

#[test]
fn check_says_in_plain_words_who_may_reach_what() {
    sandboxed(|| {
        let lab = Lab::new();
        let file = gateway::install(&lab, &gateway::usual_config());
        let output = gateway::program().arg("check").arg(&file).output().expect("it starts");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        for said in ["research", "api.openai.example", "OPENAI_API_KEY", "pypi.example", "agents0"]
        {
            assert!(stdout.contains(said), "{said} is not in {stdout}");
        }
    });
}

#[test]
fn a_missing_interface_is_one_clear_line() {
    sandboxed(|| {
        let config = gateway::usual_config().replace("agents1", "agents7");
        does_not_start(|_| {}, &config, "agents7");
    });
}

#[test]
fn an_occupied_port_is_one_clear_line() {
    sandboxed(|| {
        let occupy = |_: &Lab| {
            let taken = GATEWAY.enter(|| std::net::TcpListener::bind("0.0.0.0:15001"));
            std::mem::forget(taken.expect("the port is free"));
        };
        does_not_start(occupy, &gateway::usual_config(), "15001");
    });
}

#[test]
fn a_file_of_secrets_that_others_can_read_is_refused() {
    sandboxed(|| {
        let lab = Lab::new();
        let _dns = Dns::start();
        drop(Gateway::try_start(&lab, &gateway::usual_config()).map(|mut gateway| gateway.kill()));
        let secrets = lab.dir.join("secrets.toml");
        fs::set_permissions(&secrets, fs::Permissions::from_mode(0o644)).expect("ours");
        let failed = Gateway::run(&lab, &lab.dir.join("cloakroom.toml"));
        let Err(failed) = failed else { panic!("it became ready") };
        assert!(failed.stderr.contains("secrets.toml"), "{}", failed.stderr);
    });
}

#[test]
fn without_the_guard_the_daemon_does_not_start() {
    sandboxed(|| {
        let lab = Lab::new();
        let _dns = Dns::start();
        drop(Gateway::try_start(&lab, &gateway::usual_config()).map(|mut gateway| gateway.kill()));
        GATEWAY.shell("nft delete table inet cloakroom_base");
        let failed = Gateway::run(&lab, &lab.dir.join("cloakroom.toml"));
        let Err(failed) = failed else { panic!("it became ready without a guard") };
        assert!(failed.stderr.contains("cloakroom_base"), "{}", failed.stderr);
    });
}

#[test]
fn without_the_right_to_set_packet_rules_there_is_one_clear_line() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        gateway::guard();
        let config = gateway::install(&lab, &gateway::usual_config());
        let root = lab.dir.join("root");
        for part in ["init", "issue"] {
            let mut ca = gateway::program();
            ca.args(["ca", part, "--dir"]).arg(&root);
            if part == "issue" {
                ca.arg(&config);
            }
            assert!(ca.status().is_ok_and(|status| status.success()));
        }
        let output = GATEWAY
            .command("setpriv")
            .args(["--bounding-set", "-net_admin", "--inh-caps", "-net_admin", "timeout", "20"])
            .arg(lab::tools::cloakroom())
            .arg("run")
            .arg(&config)
            .output()
            .expect("setpriv starts");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code().is_some_and(|code| code != 0 && code != 124), "{output:?}");
        assert!(stderr.to_lowercase().contains("permi") || stderr.contains("CAP_NET_ADMIN"));
        assert!(!stderr.contains("panicked"), "{stderr}");
        gateway::forward();
        AGENT.connect(OPENAI.port(443)).expect_err("the guard is closed");
        origin.log().assert_untouched();
    });
}

#[test]
fn a_secret_written_into_the_configuration_is_not_repeated_in_the_error() {
    sandboxed(|| {
        let lab = Lab::new();
        let key = "sk-live-0123456789abcdef";
        let config = gateway::usual_config().replace("file:openai", key);
        let file = gateway::install(&lab, &config);
        let output = gateway::program().arg("check").arg(&file).output().expect("it starts");
        assert_eq!(output.status.code(), Some(64));
        assert!(!String::from_utf8_lossy(&output.stderr).contains(key), "{output:?}");
    });
}

#[test]
fn sigterm_lets_a_running_answer_finish_and_then_ends() {
    sandboxed(|| {
        let mut world = World::usual();
        let mut tls = world.h1(OPENAI).expect("a connection");
        tls.send(crate::world::get_path("/slow?ms=1500", &[TICKET])).expect("sent");
        world.origin.log().wait_requests(1);
        std::thread::scope(|scope| {
            let answer = scope.spawn(|| tls.response());
            let status = world.gateway.terminate(Duration::from_secs(40));
            assert!(status.success(), "{status:?}: {}", world.gateway.stderr());
            let answer = answer.join().expect("no panic").expect("the whole answer");
            assert_eq!(answer.text(), "slow");
        });
        AGENT.connect(OPENAI.port(443)).expect_err("nobody listens any more");
    });
}

#[test]
fn the_daemon_cannot_be_traced_and_leaves_no_core() {
    sandboxed(|| {
        let world = World::usual();
        world.ask(&get(&[TICKET]));
        let of = |file: &str| {
            let path = format!("/proc/{}/{file}", world.gateway.pid());
            fs::read_to_string(path).unwrap_or_default()
        };
        let limits = of("limits");
        let core = limits.lines().find(|line| line.starts_with("Max core")).unwrap_or_default();
        assert!(core.split_whitespace().nth(4) == Some("0"), "{core}");
        let environment = of("environ");
        assert!(!environment.contains(lab::gateway::OPENAI_SECRET));
    });
}
