//! From a refusal to the rule that undoes it: the output of `cloakroom explain` and `cloakroom
//! suggest` is written into the configuration, and then the request passes.

use std::{fs, path::PathBuf};

use lab::{
    audit::Record,
    client::succeed,
    gateway,
    net::{ATTACKER, Host, OTHER},
    sandboxed,
};
use serde_json::Value;

use crate::{
    lifecycle::control::tell,
    world::{TICKET, World, get_path},
};

fn config(world: &World) -> PathBuf {
    world.lab.dir.join("cloakroom.toml")
}

/// Returns the output of a command of the program for the configuration of this world.
#[track_caller]
fn printed(world: &World, arguments: &[&str]) -> String {
    let printed = succeed(gateway::program().args(arguments).arg(config(world)));
    for secret in gateway::SECRETS {
        assert!(!printed.contains(secret), "{printed}");
    }
    printed
}

/// Puts the text at the end of the configuration in force.
fn append(world: &World, text: &str) {
    let before = fs::read_to_string(config(world)).expect("it was written");
    fs::write(config(world), before + "\n" + text).expect("it is the lab's");
    tell(world, &["reload"], 0);
}

/// Returns the flow of the connection that was refused for this host.
fn refused(world: &World, host: Host) -> String {
    assert!(world.h1(host).is_err(), "it is refused");
    let is_it = |it: &Record| it["sni"] == host.name && it["decision"] == "refuse";
    let record = world.gateway.audit.wait_for(is_it);
    assert_eq!(record["reason"], "sni_denied");
    record["flow"].as_str().expect("a name").to_owned()
}

#[test]
fn what_explain_prints_lets_the_same_request_pass() {
    sandboxed(|| {
        let world = World::usual();
        let request = get_path("/files", &[TICKET]);
        let answer = world.ask(&request);
        assert_eq!(answer.reason().as_deref(), Some("path_denied"));
        let problem: Value = serde_json::from_slice(&answer.body).expect("it is JSON");
        let flow = problem["flow"].as_str().expect("a name");
        world.gateway.audit.wait_reason("path_denied");

        let printed = printed(&world, &["explain", flow]);
        assert!(printed.contains("# In [[api]] \"openai\", in place of the paths"), "{printed}");
        let mut lines = printed.lines().filter_map(|line| line.strip_prefix("# "));
        let line = lines.find(|line| line.starts_with("paths = ")).expect("a line");
        let text = fs::read_to_string(config(&world)).expect("it was written");
        let (before, after) = text.split_once("paths = [\"/v1/*\", \"/reflect\"").expect("paths");
        let (_, after) = after.split_once("]\n").expect("they end");
        fs::write(config(&world), format!("{before}{line}\n{after}")).expect("it is the lab's");
        tell(&world, &["reload"], 0);
        let answer = world.ask(&request);
        assert_eq!(answer.reason(), None, "{}", answer.text());
    });
}

#[test]
fn what_explain_prints_can_end_the_configuration() {
    sandboxed(|| {
        let world = World::usual();
        let flow = refused(&world, OTHER);
        append(&world, &printed(&world, &["explain", &flow]));
        assert!(world.h1(OTHER).is_ok(), "it passes");
        assert!(world.h1(ATTACKER).is_err(), "and no other does");
    });
}

#[test]
fn what_suggest_prints_lets_the_refused_hosts_pass() {
    sandboxed(|| {
        let world = World::usual();
        assert!(printed(&world, &["suggest"]).contains("Nothing that was refused"));
        refused(&world, OTHER);
        refused(&world, ATTACKER);
        let printed = printed(&world, &["suggest", "--since", "1h"]);
        for host in [OTHER, ATTACKER] {
            assert!(printed.contains(&format!("hosts = [\"{}\"]", host.name)), "{printed}");
        }
        assert!(!printed.contains('*'), "{printed}");
        append(&world, &printed);
        assert!(world.h1(OTHER).is_ok() && world.h1(ATTACKER).is_ok(), "both pass");
    });
}
