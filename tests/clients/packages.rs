//! Package managers, unmodified, under the real names of their registries: with the rules that
//! `cloakroom suggest` prints after a run without any, and with the line of their client alone.
//!
//! The sites behind these names are made by `packages/sites.py`, one small package each.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::Ipv4Addr,
    process::{Command, Output},
};

use lab::{
    World,
    client::{succeed, tool},
    gateway::program,
    net::{AGENT, GATEWAY_V4, HOSTS},
    origin::Connection,
    sandboxed, tools, wait,
    world::Builder,
};
use policy_builder::{Config, Table, group};
use serde_json::Value;

use crate::lifecycle::control::tell;

/// A package manager, as its user calls it: a line of a shell, in an empty folder and with an empty
/// home.
struct Manager {
    line: &'static str,
    /// The hosts that it needs, each with its port.
    hosts: &'static [(&'static str, u16)],
    /// How often `suggest` has to be asked: a host that an answer names is known only then.
    rounds: usize,
}

const PIP: Manager = Manager {
    line: "$PYTHON -m pip install -q --retries 0 --target here coat && cat here/coat.py",
    hosts: &[("pypi.org", 443), ("files.pythonhosted.org", 443)],
    rounds: 2,
};

const NPM: Manager = Manager {
    line: "npm install --fetch-retries 0 coat && cat node_modules/coat/index.js",
    hosts: &[("registry.npmjs.org", 443)],
    rounds: 1,
};

const GIT: Manager = Manager {
    line: "git clone -q https://github.com/lab/plain.git && cat plain/README",
    hosts: &[("github.com", 443)],
    rounds: 1,
};

/// Where its storage is refused it would ask again for a minute.
const GIT_LFS: Manager = Manager {
    line: "git lfs install >&2 && git config --global lfs.transfer.maxretries 1 && \
           git clone -q https://github.com/lab/coat.git && grep 'a coat' coat/large",
    hosts: &[("github.com", 443), ("github-cloud.githubusercontent.com", 443)],
    rounds: 2,
};

const SKOPEO: Manager = Manager {
    line: "skopeo copy --insecure-policy docker://docker.io/library/coat dir:image && \
           for file in image/*; do tar -xzOf $file 2>/dev/null; done; test -f image/manifest.json",
    hosts: &[
        ("registry-1.docker.io", 443),
        ("auth.docker.io", 443),
        ("production.cloudflare.docker.com", 443),
    ],
    rounds: 3,
};

/// Everything that apt writes is in the folder. It says that it could not fetch a list, and
/// succeeds all the same, unless it is told otherwise.
const APT: Manager = Manager {
    line: "mkdir -p etc/sources.list.d etc/apt.conf.d etc/preferences.d lib/lists/partial \
           cache/archives/partial && touch status && \
           echo 'deb [trusted=yes] http://deb.debian.org/debian bookworm main' >etc/sources.list && \
           echo 'deb [trusted=yes] http://security.debian.org/debian-security bookworm-security main' \
           >>etc/sources.list && \
           printf 'Dir::Etc \"%s\";\\nDir::State \"%s\";\\nDir::State::status \"%s\";\\nDir::Cache \"%s\";\\n\
           APT::Sandbox::User \"root\";\\nAPT::Update::Error-Mode \"any\";\\n' \
           $PWD/etc $PWD/lib $PWD/status $PWD/cache >apt.conf && export APT_CONFIG=$PWD/apt.conf && \
           apt-get update >&2 && apt-get download coat-bookworm coat-bookworm-security >&2 && ls",
    hosts: &[("deb.debian.org", 80), ("security.debian.org", 80)],
    rounds: 1,
};

const UV: Manager = Manager {
    line: "$PACKAGES/python/bin/uv pip install --python $PYTHON --target here coat && \
           cat here/coat.py",
    hosts: PIP.hosts,
    rounds: 2,
};

const YARN: Manager = Manager {
    line: "echo '{\"name\": \"here\"}' >package.json && touch yarn.lock && \
           $NODE $PACKAGES/node_modules/@yarnpkg/cli-dist/bin/yarn.js add coat && cat yarn.lock",
    hosts: &[("registry.yarnpkg.com", 443)],
    rounds: 1,
};

const CARGO: Manager = Manager {
    line: "mkdir src && touch src/lib.rs && \
           printf '[package]\\nname = \"here\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n\
           [dependencies]\\ncoat = \"1\"\\n' >Cargo.toml && \
           cargo fetch && cat Cargo.lock",
    hosts: &[("index.crates.io", 443), ("static.crates.io", 443)],
    rounds: 2,
};

/// The lab's database of checksums signs with a key of its own.
const GO: Manager = Manager {
    line: "export GOSUMDB=$(cat /run/lab/sumdb.key) && $GO mod init lab.example/here && \
           $GO get lab.example/coat@v1.0.0 && cat go.sum && $GO clean -modcache",
    hosts: &[("proxy.golang.org", 443), ("sum.golang.org", 443)],
    rounds: 2,
};

/// Returns a world with the registries, whose agents may nothing but what this group's table says.
fn world(change: impl FnOnce(Table) -> Table) -> World {
    let builder = World::builder();
    let Builder { lab, origin, dns, .. } = &builder;
    let sites = tools::repository().join("tests/clients/packages/sites.py");
    succeed(Command::new("/usr/bin/python3").arg(sites).arg(&lab.dir));
    let hosts = fs::read_dir(lab.dir.join("www")).expect("it was made").flatten();
    for (at, host) in hosts.enumerate() {
        let name = host.file_name().into_string().expect("a name");
        let address = HOSTS[at % HOSTS.len()];
        origin.identity(&name, lab.public.issue(&name).certified());
        dns.set(&name, &[address.v4().into(), address.v6().into()]);
    }
    // Agents ask a resolver for every name but their own, and the gateway answers.
    let own = fs::read_to_string("/proc/sys/kernel/hostname").expect("it has a name");
    lab.names(&[(own.trim(), vec![Ipv4Addr::new(127, 0, 1, 1).into()])]);
    lab.write("resolv.conf", format!("nameserver {GATEWAY_V4}\n"));
    let research = group("research", "agents0", &["192.0.2.0/25", "2001:db8:a::/64"]);
    let config = Config::new()
        .gateway("audit", "{dir}/audit.jsonl")
        .gateway("ca_dir", "{dir}/issuing")
        .gateway("state_dir", "{dir}/state")
        .gateway("control", "{dir}/control/control.sock")
        .gateway("resolvers", ["203.0.113.53"])
        .secrets("file", "{dir}/secrets.toml")
        .with(change(research));
    builder.start(&config)
}

/// Returns what a command of the program prints for the configuration of this world.
#[track_caller]
fn printed(world: &World, arguments: &[&str]) -> String {
    succeed(program().args(arguments).arg(world.config()))
}

/// Runs a package manager in the environment that `cloakroom env` prints, in a folder and a home
/// that are empty.
fn run(world: &World, manager: &Manager) -> Output {
    let bundle = world.lab.dir.join("agents.pem").display().to_string();
    let env = ["env", "research", "--format", "json", "--bundle", &bundle, "--ca", &bundle];
    let env: BTreeMap<String, Value> =
        serde_json::from_str(&printed(world, &env)).expect("it is JSON");
    let empty = world.lab.dir.join("agent");
    let _ = fs::remove_dir_all(&empty);
    let (home, here) = (empty.join("home"), empty.join("here"));
    for folder in [&home, &here] {
        fs::create_dir_all(folder).expect("the lab's folder is writable");
    }
    let (node, packages) = (tool("node"), tools::cache().join("packages"));
    let first = [node.parent().expect("a folder"), &rust()].map(|it| it.display().to_string());
    let path = std::env::var("PATH").expect("there is one");
    let mut command = AGENT.command("sh");
    command.args(["-c", &format!("cd '{}' && {}", here.display(), manager.line)]);
    command.env("HOME", home).env("PATH", [&first[..], &[path]].concat().join(":"));
    command.env("PYTHON", tool("python")).env("NODE", node);
    command.env("GO", packages.join("python/bin/go")).env("PACKAGES", packages);
    command.env("TMPDIR", &world.lab.dir);
    for (name, value) in env {
        command.env(name, value.as_str().expect("a text"));
    }
    command.output().expect("sh starts")
}

/// Returns the folder of the Cargo that builds this: rustup's own looks for it in the home.
fn rust() -> std::path::PathBuf {
    let root = Command::new("rustc").args(["--print", "sysroot"]).output().expect("rustc starts");
    std::path::Path::new(String::from_utf8_lossy(&root.stdout).trim()).join("bin")
}

#[track_caller]
fn assert_works(output: &Output, world: &World) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    let audit = world.gateway.audit.text();
    assert!(output.status.success() && stdout.contains("coat"), "{stdout}\n{stderr}\n{audit}");
}

/// Returns the hosts that connections arrived for at the origins, each with its port.
fn reached(world: &World) -> BTreeSet<(String, u16)> {
    let host = |it: &Connection| match it.tls {
        true => it.sni.clone(),
        false => it.requests.first().map(|request| request.authority()),
    };
    let connections = world.origin.log().connections();
    connections.iter().filter_map(|it| Some((host(it)?, it.local.port()))).collect()
}

fn needed(manager: &Manager) -> BTreeSet<(String, u16)> {
    manager.hosts.iter().map(|(host, port)| ((*host).to_owned(), *port)).collect()
}

/// Without any rule the package manager fails and nothing of it arrives. The output of `suggest` is
/// put into the configuration as it is, until there is nothing to suggest: then it works, and has
/// rules for the hosts that it reached and no others.
#[track_caller]
fn suggested(manager: &Manager) {
    let world = world(|group| group);
    let output = run(&world, manager);
    assert!(!output.status.success(), "{output:?}");
    assert_eq!(reached(&world), BTreeSet::new());
    let mut rounds = 0;
    let mut rules = BTreeSet::new();
    loop {
        let printed = printed(&world, &["suggest"]);
        let lines: Vec<&str> = printed.lines().filter(|line| !line.starts_with('#')).collect();
        let added = of_rules(&lines);
        if added.is_empty() {
            assert!(printed.contains("# Nothing that was refused asks for a rule."), "{printed}");
            break;
        }
        rounds += 1;
        assert!(rounds <= manager.rounds, "{printed}\n{}", world.gateway.audit.text());
        rules.extend(added);
        let before = fs::read_to_string(world.config()).expect("it was written");
        fs::write(world.config(), before + "\n" + &printed).expect("it is the lab's");
        tell(&world, &["reload"], 0);
        let output = run(&world, manager);
        if rounds == manager.rounds {
            assert_works(&output, &world);
        }
    }
    assert_eq!(rounds, manager.rounds);
    assert_eq!(rules, needed(manager));
    assert_eq!(reached(&world), rules);
}

/// Reads rules that `suggest` printed: each is a splice of one host at one port.
#[track_caller]
fn of_rules(lines: &[&str]) -> Vec<(String, u16)> {
    let mut rules: Vec<(String, u16)> = Vec::new();
    for line in lines.iter().filter(|line| !line.is_empty()) {
        let value = |key: &str| {
            let value = line.strip_prefix(key)?.strip_prefix(" = [")?.strip_suffix(']')?;
            Some(value.trim_matches('"').to_owned())
        };
        if let Some(host) = value("hosts") {
            assert!(host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte)));
            rules.push((host, 443));
        } else if let Some(port) = value("ports") {
            rules.last_mut().expect("a host").1 = port.parse().expect("one port");
        } else {
            let usual = ["[[splice]]", "name = ", "groups = [\"research\"]"];
            assert!(usual.iter().any(|usual| line.starts_with(usual)), "{line}");
        }
    }
    rules
}

/// With the line of its client, and no other rule, the package manager works, and nothing of it is
/// refused but what the catalogue says that it does without.
#[track_caller]
fn as_client(client: &str, manager: &Manager) {
    let world = world(|group| group.set("client", [client]));
    assert_works(&run(&world, manager), &world);
    assert_eq!(reached(&world), needed(manager));
    let told = succeed(program().args(["clients", client]));
    let quiet = told.lines().find_map(|line| {
        line.strip_prefix("# It asks for these and does without: ")?.strip_suffix('.')
    });
    let quiet: Vec<&str> = quiet.into_iter().flat_map(|names| names.split(", ")).collect();
    std::thread::sleep(wait::QUIET);
    for record in world.gateway.audit.records() {
        let name = record.has("name").then(|| record["name"].as_str()).flatten();
        let name = name.unwrap_or_default().trim_end_matches('.');
        let is_refused = record.has("decision") && record["decision"] == "refuse";
        assert!(!is_refused || quiet.contains(&name), "{record}");
    }
    assert!(printed(&world, &["suggest"]).starts_with("# Nothing that was refused"));
}

/// The same for one whose version is pinned, which is the one that the catalogue names.
#[track_caller]
fn as_pinned_client(client: &str, manager: &Manager) {
    let packages = tools::cache().join("packages");
    assert!(packages.is_dir(), "{} is missing: run make test-clients", packages.display());
    as_client(client, manager);
}

#[test]
fn suggested_rules_let_pip_install() {
    sandboxed(|| suggested(&PIP));
}

#[test]
fn suggested_rules_let_npm_install() {
    sandboxed(|| suggested(&NPM));
}

#[test]
fn suggested_rules_let_git_clone_with_lfs() {
    sandboxed(|| suggested(&GIT_LFS));
}

#[test]
fn suggested_rules_let_an_image_be_pulled() {
    sandboxed(|| suggested(&SKOPEO));
}

/// apt looks the service up, and says so that it wants plain HTTP.
#[test]
fn suggested_rules_let_apt_update_on_port_80_alone() {
    sandboxed(|| suggested(&APT));
}

#[test]
fn git_clones_as_a_groups_client() {
    sandboxed(|| as_client("git", &GIT));
}

#[test]
fn git_lfs_fetches_as_a_groups_client() {
    sandboxed(|| as_client("git-lfs", &GIT_LFS));
}

#[test]
fn apt_updates_as_a_groups_client() {
    sandboxed(|| as_client("apt-debian", &APT));
}

#[test]
fn cargo_fetches_as_a_groups_client() {
    sandboxed(|| as_client("cargo", &CARGO));
}

#[test]
#[ignore = "make test-clients"]
fn the_newest_pip_installs_as_a_groups_client() {
    let line =
        "$PACKAGES/python/bin/python -m pip install -q --target here coat && cat here/coat.py";
    sandboxed(|| as_pinned_client("pip", &Manager { line, ..PIP }));
}

#[test]
#[ignore = "make test-clients"]
fn the_newest_npm_installs_as_a_groups_client() {
    let line = "$NODE $PACKAGES/node_modules/npm/bin/npm-cli.js install coat && \
                cat node_modules/coat/index.js";
    sandboxed(|| as_pinned_client("npm", &Manager { line, ..NPM }));
}

#[test]
#[ignore = "make test-clients"]
fn uv_installs_as_a_groups_client() {
    sandboxed(|| as_pinned_client("uv", &UV));
}

#[test]
#[ignore = "make test-clients"]
fn yarn_adds_as_a_groups_client() {
    sandboxed(|| as_pinned_client("yarn", &YARN));
}

#[test]
#[ignore = "make test-clients"]
fn go_gets_as_a_groups_client() {
    sandboxed(|| as_pinned_client("go", &GO));
}

#[test]
#[ignore = "make test-clients"]
fn suggested_rules_let_uv_install() {
    sandboxed(|| suggested(&UV));
}

#[test]
#[ignore = "make test-clients"]
fn suggested_rules_let_yarn_add() {
    sandboxed(|| suggested(&YARN));
}

#[test]
#[ignore = "make test-clients"]
fn suggested_rules_let_cargo_fetch() {
    sandboxed(|| suggested(&CARGO));
}

#[test]
#[ignore = "make test-clients"]
fn suggested_rules_let_go_get() {
    sandboxed(|| suggested(&GO));
}
