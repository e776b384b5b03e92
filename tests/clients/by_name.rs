//! APIs under their real names, which the gateway knows by their provider alone, and programs in an
//! empty home with the environment that `cloakroom env` prints.

use std::{collections::BTreeMap, fs, net::IpAddr, process::Command, time::Duration};

use lab::{
    World,
    client::{succeed, tool},
    gateway::program,
    net::{AGENT, DNS, GATEWAY_V4, HOSTS, Ns},
    tools,
    world::Builder,
};
use policy_builder::{Config, Table, group};
use serde_json::Value;

use super::agents::trust;

/// The longest time of one run.
pub(super) const LONGEST: Duration = Duration::from_secs(90);

/// Returns the API of a provider, with one binding, and what is to be bound.
pub(super) fn api(provider: &str) -> Table {
    Table::one_of("api").set("provider", provider).with(binding())
}

/// Returns the binding of an API's placeholder to the first of the lab's secrets.
pub(super) fn binding() -> Table {
    Table::one_of("binding").set("groups", ["research"]).set("secret", "file:openai")
}

/// Returns a world with these APIs, whose names each have an address of the lab, and whose agents
/// have these clients.
pub(super) fn world(
    names: &[&str],
    clients: &[&str],
    apis: impl IntoIterator<Item = Table>,
) -> World {
    let builder = World::builder();
    let Builder { lab, origin, dns, .. } = &builder;
    trust(lab);
    assert!(names.len() <= HOSTS.len(), "{names:?}");
    for (name, host) in names.iter().zip(HOSTS) {
        origin.identity(name, lab.public.issue(name).certified());
        dns.set(name, &[host.v4().into()]);
    }
    let own = fs::read_to_string("/proc/sys/kernel/hostname").expect("it has a name");
    let own = (own.trim(), vec![IpAddr::from([127, 0, 1, 1])]);
    lab.names(&[own]);
    let research = group("research", "agents0", &["192.0.2.0/25", "2001:db8:a::/64"]);
    let config = Config::new()
        .gateway("audit", "{dir}/audit.jsonl")
        .gateway("ca_dir", "{dir}/issuing")
        .gateway("state_dir", "{dir}/state")
        .gateway("control", "{dir}/control/control.sock")
        .gateway("resolvers", ["203.0.113.53"])
        .secrets("file", "{dir}/secrets.toml")
        .with(research.set("client", clients));
    builder.start(&apis.into_iter().fold(config, Config::with))
}

/// Returns a line of a shell, in an empty folder, with an empty home and the printed environment.
pub(super) fn command(world: &World, from: Ns, shaped: bool, line: &str) -> Command {
    let bundle = world.lab.dir.join("agents.pem").display().to_string();
    let mut env = program();
    env.args(["env", "research", "--format", "json", "--bundle", &bundle, "--ca", &bundle]);
    if shaped {
        env.arg("--shape");
    }
    let env: BTreeMap<String, Value> =
        serde_json::from_str(&succeed(env.arg(world.config()))).expect("it is JSON");
    let resolver = if from == AGENT { GATEWAY_V4 } else { DNS };
    world.lab.write("resolv.conf", format!("nameserver {resolver}\n"));
    let empty = world.lab.dir.join("agent");
    let _ = fs::remove_dir_all(&empty);
    let (home, here) = (empty.join("home"), empty.join("here"));
    for folder in [&home, &here] {
        fs::create_dir_all(folder).expect("the lab's folder is writable");
    }
    let node = tool("node");
    let first = node.parent().expect("a folder").display().to_string();
    let limit = LONGEST.as_secs().to_string();
    let mut command = from.command("timeout");
    let line = format!("cd '{}' && {line}", here.display());
    command.args(["-k", "5", &limit, "sh", "-c", &line]);
    command.env("HOME", home).env("PATH", format!("{first}:/usr/bin:/bin")).env("TMPDIR", empty);
    command.env("SCRIPTS", tools::repository().join("tests/clients"));
    for (name, value) in env {
        command.env(name, value.as_str().expect("a text"));
    }
    command
}
