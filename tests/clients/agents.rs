//! Agents from npm: Claude Code and codex, unmodified, under the real names of their APIs.

use std::{fs, net::IpAddr, process::Command};

use lab::{
    Lab, World,
    client::{agent, python, succeed, tool},
    gateway::{self, ANTHROPIC_SECRET, OPENAI_SECRET, PUBLIC_CA},
    net::{AGENT, ANTHROPIC, Host, OPENAI, OTHER},
    sandboxed, tools, wait,
    world::Builder,
};
use policy_builder::{Config, Table, inspect};

/// Names that are built into Claude Code and codex, and their hosts in the lab.
const NAMES: [(&str, Host); 3] =
    [("api.anthropic.com", ANTHROPIC), ("platform.claude.com", OTHER), ("api.openai.com", OPENAI)];

/// Returns a world where these names are real.
fn world(inspected: Option<Table>) -> World {
    changed(|config| inspected.into_iter().fold(config, Config::with))
}

/// Returns the same where the group of the agents has these clients, and no other setting for them.
/// The upstreams are verified with the system's CAs.
fn world_of_clients(clients: &[&str]) -> World {
    changed(|config| config.group("research", |it| it.set("client", clients)))
}

/// Makes the system trust the lab's public CA, in this sandbox's own view of the file system.
pub(super) fn trust(lab: &Lab) {
    let trusted = "/etc/ssl/certs/ca-certificates.crt";
    let before = fs::read_to_string(trusted).expect("Debian's CAs");
    succeed(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/etc/ssl/certs"]));
    let public = fs::read_to_string(lab.public_ca()).expect("it was made");
    fs::write(trusted, before + &public).expect("a file in memory");
}

fn changed(change: impl FnOnce(Config) -> Config) -> World {
    let builder = World::builder();
    let Builder { lab, origin, dns, .. } = &builder;
    trust(lab);
    for (name, host) in NAMES {
        origin.identity(name, lab.public.issue(name).certified());
        dns.set(name, &[host.v4().into()]);
    }
    lab.names(&NAMES.map(|(name, host)| (name, vec![IpAddr::from(host.v4())])));
    let config = gateway::usual_config()
        .api("anthropic", |it| by_provider(it, "anthropic", "ANTHROPIC_API_KEY"))
        .api("openai", |it| by_provider(it, "openai", "OPENAI_API_KEY").set("websocket", false));
    builder.start(&change(config))
}

/// Changes an API so that only the provider's name says what it is, and where its placeholder
/// stands.
fn by_provider(api: Table, provider: &str, placeholder: &str) -> Table {
    ["name", "hosts", "methods", "paths"]
        .into_iter()
        .fold(api, Table::without)
        .set("provider", provider)
        .binding(placeholder, |it| it.without("places"))
}

/// Returns a command of `agents.py`, which runs the agent.
fn command(world: &World, arguments: &[&str]) -> Command {
    let mut command = agent(&world.lab, AGENT, &python().display().to_string());
    command.arg(tools::repository().join("tests/clients/agents.py")).args(arguments);
    command.env_remove("HOME").env("NODE_EXTRA_CA_CERTS", world.lab.dir.join("agents.pem"));
    command.env("LAB_HOME", world.lab.dir.join("home")).env("LAB_NODE", tool("node"));
    let agents = tools::cache().join("agents/node_modules");
    assert!(agents.is_dir(), "{} is missing: run tests/clients/get", agents.display());
    command.env("LAB_AGENTS", agents);
    command
}

/// The first question of Claude Code after its start.
const FIRST_QUESTION: &str = "Choose the text style";

/// Returns its rules in docs/configuration.md and image/cloakroom.toml.
fn hello() -> Table {
    inspect("claude-code", &["research"], &["platform.claude.com"])
        .set("methods", ["GET"])
        .set("paths", ["/v1/oauth/hello"])
        .set("upstream_ca", PUBLIC_CA)
}

/// At its start Claude Code checks without a credential that two hosts are there, and ends unless
/// both are.
#[test]
fn claude_code_starts_in_a_terminal_with_the_documented_rules() {
    sandboxed(|| starts_in_a_terminal(&world(Some(hello()))));
}

#[test]
fn claude_code_starts_in_a_terminal_as_a_groups_client() {
    sandboxed(|| starts_in_a_terminal(&world_of_clients(&["claude-code", "codex"])));
}

#[track_caller]
fn starts_in_a_terminal(world: &World) {
    let shown = succeed(&mut command(world, &["claude"]));
    assert!(shown.contains(FIRST_QUESTION), "{shown}");
    for (host, path) in
        [("api.anthropic.com", "/api/hello"), ("platform.claude.com", "/v1/oauth/hello")]
    {
        let asked = |request: &&lab::origin::Received| {
            request.authority() == host && request.uri.path() == path
        };
        let requests = world.origin.log().requests();
        let request = requests.iter().find(asked).unwrap_or_else(|| panic!("{path}: {shown}"));
        assert!(request.header("authorization").is_empty(), "{request:?}");
        assert!(request.header("x-api-key").is_empty(), "{request:?}");
    }
    world.assert_secrets_untold();
}

#[test]
fn claude_code_needs_both_of_its_hosts_in_a_terminal() {
    sandboxed(|| {
        let world = world(None);
        let shown = succeed(&mut command(&world, &["claude"]));
        assert!(shown.contains("Unable to connect") && !shown.contains(FIRST_QUESTION), "{shown}");
    });
}

#[test]
fn claude_code_works_with_a_placeholder() {
    sandboxed(|| {
        let world = world(Some(hello()));
        let shown = succeed(&mut command(&world, &["claude-print"]));
        assert!(shown.contains("Hello from the lab"), "{shown}");
        let requests = world.origin.log().requests();
        let sent = requests.iter().find(|request| request.uri.path() == "/v1/messages");
        assert_eq!(sent.expect("a message").header("x-api-key"), [ANTHROPIC_SECRET]);
        world.assert_secrets_untold();
    });
}

/// codex tries a WebSocket first. When that is refused, it asks over HTTP.
#[test]
fn codex_is_refused_its_websocket_once_and_asks_over_http() {
    sandboxed(|| {
        let world = world_of_clients(&["codex"]);
        let mut codex = command(&world, &["codex"]).spawn().expect("python starts");
        let over_http = || {
            let requests = world.origin.log().requests();
            requests.into_iter().find(|request| request.uri.path() == "/v1/responses")
        };
        let sent = wait::until(wait::SOON * 3, over_http).expect("it asks over HTTP");
        // The answer itself is not looked at.
        codex.kill().expect("it runs");
        codex.wait().expect("it ends");
        let upgrades = || {
            let requests = world.requests();
            requests.iter().filter(|record| record["reason"] == "upgrade_denied").count()
        };
        wait::expect("its WebSocket is refused", || upgrades() > 0);
        assert_eq!(upgrades(), 1);
        assert_eq!(sent.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
        world.assert_secrets_untold();
    });
}
