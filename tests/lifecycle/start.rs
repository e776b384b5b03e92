//! Wrong input: one clear line for each mistake, a non-zero exit, and a guard that stays closed.

use std::{fs, time::Duration};

use lab::{
    Lab,
    gateway::{self},
    net::{AGENT, GATEWAY, OPENAI},
    origin::Origin,
    sandboxed,
};

use crate::world::{TICKET, World, get};

#[test]
fn missing_rights_to_packet_rules_are_one_clear_line() {
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
fn a_secret_in_the_configuration_is_in_no_error() {
    sandboxed(|| {
        let lab = Lab::new();
        let key = "sk-live-0123456789abcdef";
        let config = gateway::usual_config().binding("OPENAI_API_KEY", |it| it.set("secret", key));
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
