//! The pages that agents fetch at the gateway's own address to trust it, the script that installs
//! them, and that nothing else is open because of them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    time::Instant,
};

use lab::{
    audit::Record,
    client::{self, succeed},
    gateway,
    net::{AGENT, AGENT2, GATEWAY_V4, GATEWAY_V6, INTERNET},
    sandboxed, tools, wait,
};
use policy_builder::Config;

use crate::{
    attack::say,
    world::{TICKET, World, get},
};

#[test]
fn the_script_installs_for_a_user_and_undo_leaves_nothing() {
    sandboxed(|| {
        let world = onboarding();
        let home = world.lab.dir.join("person");
        fs::create_dir(&home).expect("made");
        fs::write(home.join(".bashrc"), "alias l=ls\n").expect("written");
        let before = tree(&home);
        let run = |arguments: &str| {
            let line = format!("curl -fsS http://{GATEWAY_V4}/install.sh | sh -s -- {arguments}");
            succeed(person(&home, "sh").args(["-c", &line]))
        };
        let said = run("--home");
        assert!(said.contains(&fingerprint(&world)), "{said}");
        assert!(said.contains("as trustworthy as the network"), "{said}");
        let installed = tree(&home);
        for client in clients() {
            let line = format!(". \"$HOME/.profile\"; {client}");
            let got = succeed(person(&home, "sh").args(["-c", &line]));
            assert!(got.contains("200"), "{client}: {got}");
        }
        let again = run("--home");
        assert!(!again.contains("wrote"), "{again}");
        assert_eq!(tree(&home), installed, "run again, it changes something");
        run("--home --undo");
        assert_eq!(tree(&home), before, "undo leaves something");
        run("--home --undo");
        let got = person(&home, "sh").args(["-c", CURL]).output().expect("it starts");
        assert!(!got.status.success(), "trusted without the CA");
    });
}

#[test]
fn the_script_installs_for_the_system_and_undo_leaves_nothing() {
    sandboxed(|| {
        let world = onboarding();
        let layers = world.lab.dir.join("layers");
        fs::create_dir(&layers).expect("made");
        let script = world.lab.write("system.sh", SYSTEM.replace("@GATEWAY@", "192.0.2.1"));
        let all = clients().join("\n");
        let asked = world.lab.write("clients.sh", format!("set -e\n{all}\n"));
        let home = world.lab.dir.join("person");
        fs::create_dir(&home).expect("made");
        let mut command = person(&home, "sh");
        let said = succeed(command.arg(&script).arg(&layers).arg(&asked));
        assert_eq!(said.matches("200").count(), clients().len() + 1, "{said}");
        assert!(said.contains("\nleft: \n"), "undo leaves something: {said}");
    });
}

#[test]
fn each_page_is_told_over_both_families_and_recorded() {
    sandboxed(|| {
        let world = onboarding();
        let root = fs::read_to_string(world.lab.dir.join("root/root.pem")).expect("made");
        for gateway in [GATEWAY_V4.into(), GATEWAY_V6.into()] {
            let to = SocketAddr::new(gateway, 80);
            for (path, begins) in [
                ("/ca.pem", root.as_str()),
                ("/bundle.pem", root.as_str()),
                ("/install.sh", "#!/bin/sh\n"),
            ] {
                let told = ask(to, &request("GET", path, to));
                let (head, body) = told.split_once("\r\n\r\n").expect("a head");
                assert!(head.starts_with("HTTP/1.1 200 ") && body.starts_with(begins), "{told}");
                assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
                assert!(!told.contains("PRIVATE"), "a key");
                let headed = ask(to, &request("HEAD", path, to));
                assert_eq!(headed, format!("{head}\r\n\r\n"));
                let here = |it: &Record| it["dialled"] == to.to_string() && it["path"] == path;
                wait::expect("both are recorded", || {
                    world.connections().iter().filter(|it| here(it)).count() == 2
                });
                let records: Vec<_> = world.connections().into_iter().filter(here).collect();
                assert!(records.iter().all(|it| it["decision"] == "onboard"), "{records:#?}");
                assert!(records.iter().all(|it| it["group"] == "research"), "{records:#?}");
            }
        }
        let bundle = ask(at(), &request("GET", "/bundle.pem", at()));
        let certificates = bundle.matches("BEGIN CERTIFICATE").count();
        assert!(certificates > 50, "{certificates} of the public CAs");
        world.origin.log().assert_untouched();
    });
}

#[test]
fn what_is_not_a_page_is_refused_and_recorded() {
    sandboxed(|| {
        let world = onboarding();
        let page = "GET /ca.pem HTTP/1.1\r\nHost: 192.0.2.1\r\n";
        let long = format!("{page}x: {}\r\n\r\n", "a".repeat(70_000));
        let many = format!("{page}{}\r\n", "x: y\r\n".repeat(200));
        let cases = [
            ("GET / HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n".into(), "403", "path_denied"),
            ("GET /ca.pem?x HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n".into(), "403", "path_denied"),
            ("GET /root.key HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n".into(), "403", "path_denied"),
            ("GET /%63a.pem HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n".into(), "403", "path_denied"),
            ("PUT /ca.pem HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n".into(), "403", "method_denied"),
            (format!("{page}\r\n{page}\r\n"), "400", "http_malformed"),
            (format!("{page}Content-Length: 3\r\n\r\nabc"), "400", "http_malformed"),
            (format!("{page}Host: 192.0.2.1\r\n\r\n"), "400", "http_malformed"),
            (format!("{page}x : y\r\n\r\n"), "400", "http_malformed"),
            ("GET /ca.pem HTTP/1.1\nHost: 192.0.2.1\n\n".into(), "400", "http_malformed"),
            ("GET /ca.pem HTTP/1.1\r\n\r\n".into(), "400", "http_malformed"),
            (
                "GET /ca.pem HTTP/1.1\r\nHost: api.openai.example\r\n\r\n".into(),
                "421",
                "host_mismatch",
            ),
            (long, "431", "header_limit"),
            (many, "431", "header_limit"),
            (
                "CONNECT 192.0.2.1:443 HTTP/1.1\r\nHost: 192.0.2.1\r\n\r\n".into(),
                "",
                "connect_denied",
            ),
            ("\x05\x01\0".into(), "", "protocol_denied"),
        ];
        for (bytes, status, reason) in &cases {
            let (told, me) = ask_from(at(), bytes);
            let shown = &bytes[..bytes.len().min(60)];
            if status.is_empty() {
                assert_eq!(told, "", "{shown:?}");
            } else {
                let line = format!("HTTP/1.1 {status} ");
                assert!(told.starts_with(&line) && told.contains(reason), "{shown:?}: {told}");
            }
            let mine = |it: &Record| it["agent"] == me.to_string();
            let record = world.gateway.audit.wait_for(mine);
            assert_eq!(record["reason"], *reason, "{shown:?}: {record}");
            assert_eq!(record["decision"], "refuse", "{record}");
        }
        let count = world.connections().len();
        assert_eq!(count, cases.len(), "one record for each");
        // Bytes after the request are no further request.
        let mut stream = AGENT.connect(at()).expect("captured");
        stream.write_all(request("GET", "/ca.pem", at()).as_bytes()).expect("sent");
        let mut first = [0; 64];
        stream.read_exact(&mut first).expect("an answer");
        let _ = stream.write_all(request("GET", "/install.sh", at()).as_bytes());
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(!String::from_utf8_lossy(&rest).contains("HTTP/1.1"), "a second answer");
        world.origin.log().assert_untouched();
    });
}

#[test]
fn nobody_else_gets_it() {
    sandboxed(|| {
        let world = onboarding();
        // Another group, at its own side of the gateway and at the side of the group with
        // onboarding.
        for gateway in ["192.0.2.129:80", "192.0.2.1:80", "[2001:db8:b::1]:80"] {
            let to: SocketAddr = gateway.parse().expect("an address");
            assert!(silent(AGENT2, to), "{to} answers another group");
        }
        // The group itself, anywhere except at the address that the gateway has on its interface.
        for gateway in ["192.0.2.129:80", "203.0.113.2:80", "[2001:db8:f::2]:80", "192.0.2.1:8080"]
        {
            let to: SocketAddr = gateway.parse().expect("an address");
            assert!(silent(AGENT, to), "{to} answers");
        }
        // A host outside, to which no port is open: nothing listens.
        for gateway in ["203.0.113.2:80", "192.0.2.1:80"] {
            let to: SocketAddr = gateway.parse().expect("an address");
            let outside = INTERNET.enter(|| TcpStream::connect_timeout(&to, wait::QUIET));
            outside.map(drop).expect_err("a stranger gets in");
        }
        assert_eq!(world.connections().len(), 0, "nobody was accepted");
        assert!(ask(at(), &request("HEAD", "/ca.pem", at())).contains("200"));
    });
}

#[test]
fn it_is_off_until_a_reload_turns_it_on() {
    sandboxed(|| {
        let world = prepared(&gateway::usual_config());
        assert!(silent(AGENT, at()), "on without having been switched on");
        let set = |config: &Config| {
            gateway::install(&world.lab, config);
            world.gateway.reload();
        };
        set(&with_onboarding());
        wait::expect("it is on", || !silent(AGENT, at()));
        assert!(ask(at(), &request("HEAD", "/ca.pem", at())).contains("200"));
        set(&gateway::usual_config());
        wait::expect("it is off", || silent(AGENT, at()));
    });
}

#[test]
fn a_flood_of_it_takes_no_place_from_others() {
    sandboxed(|| {
        let config = with_onboarding()
            .limit("agent_connections", 64)
            .limit("connections", 512)
            .limit("peek_time", "2s");
        let mut world = prepared(&config);
        // The agent opens more than it may have at once, each with a head that never ends.
        let begun = Instant::now();
        let mut slow: Vec<TcpStream> = (0..200).filter_map(|_| AGENT.connect(at()).ok()).collect();
        for stream in &mut slow {
            let _ = stream.write_all(b"GET /ca.pem HTTP/1.1\r\n");
        }
        // Meanwhile another agent gets all that it needs.
        let other = world.h1_from(AGENT2, lab::net::OPENAI.port(443), lab::net::OPENAI.name);
        let chat = "GET /v1/models HTTP/1.1\r\nHost: api.openai.example\r\n\
                    Authorization: Bearer OPS_OPENAI_KEY\r\n\r\n";
        assert_eq!(other.expect("a place").ask(chat).expect("an answer").status, 200);
        for stream in &mut slow {
            // The connection ends, cut or answered.
            let _ = stream.set_read_timeout(Some(wait::SOON));
            let _ = stream.read_to_end(&mut Vec::new());
        }
        assert!(begun.elapsed() < wait::SOON, "slow heads stay");
        let told = |reason: &str| world.connections().iter().any(|it| it["reason"] == reason);
        wait::expect("refused for its slowness", || told("peek_timeout"));
        wait::expect("refused for its share", || told("connection_limit"));
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        assert!(world.gateway.is_alive());
    });
}

#[test]
fn the_script_is_plain_posix_shell() {
    let script = tools::repository().join("appliance/src/onboarding/install.sh");
    let checked = Command::new("shellcheck").args(["-s", "sh"]).arg(&script).output();
    let checked = checked.expect("shellcheck is there: tests/prerequisites");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

/// Returns the usual policy, in which one of the two groups has onboarding.
pub fn with_onboarding() -> Config {
    let root = "{dir}/root/root.pem";
    gateway::usual_config().group("research", |it| it.set("onboarding", root))
}

/// Returns a gateway with that policy.
pub fn onboarding() -> World {
    prepared(&with_onboarding())
}

/// Makes the root first, because the configuration names it.
fn prepared(config: &Config) -> World {
    let world = World::prepared(config, |lab, _| {
        succeed(gateway::program().args(["ca", "init", "--dir"]).arg(lab.dir.join("root")));
    });
    world.origin.repository("coat", "a coat\n");
    world
}

fn at() -> SocketAddr {
    (GATEWAY_V4, 80).into()
}

fn request(method: &str, path: &str, to: SocketAddr) -> String {
    let host = to.to_string();
    let host = host.strip_suffix(":80").expect("port 80");
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

fn ask(to: SocketAddr, bytes: &str) -> String {
    ask_from(to, bytes).0
}

/// Returns the answer, and the agent's address.
fn ask_from(to: SocketAddr, bytes: &str) -> (String, SocketAddr) {
    let stream = AGENT.connect(to).expect("captured");
    let me = stream.local_addr().expect("connected");
    (String::from_utf8_lossy(&say(stream, bytes.as_bytes())).into_owned(), me)
}

/// Returns whether an attempt to connect gets no answer at all, as at the gateway's own addresses.
fn silent(from: lab::net::Ns, to: SocketAddr) -> bool {
    let refused = from.enter(|| TcpStream::connect_timeout(&to, wait::QUIET));
    refused.is_err_and(|error| error.kind() == std::io::ErrorKind::TimedOut)
}

/// Returns openssl's fingerprint of the root.
fn fingerprint(world: &World) -> String {
    let root = world.lab.dir.join("root/root.pem");
    let mut openssl = Command::new("openssl");
    let said =
        succeed(openssl.args(["x509", "-noout", "-fingerprint", "-sha256", "-in"]).arg(root));
    said.trim().split_once('=').expect("a fingerprint").1.to_owned()
}

/// Returns a program in an agent's namespace with nothing in its environment but placeholders.
fn person(home: &Path, program: &str) -> Command {
    let mut command = AGENT.command(program);
    command.env("HOME", home);
    for placeholder in ["OPENAI_API_KEY", "GIT_TOKEN"] {
        command.env(placeholder, placeholder);
    }
    command
}

/// Returns a call of an intercepted API by each client, which prints the status.
fn clients() -> [String; 4] {
    let python = client::python();
    let requests = "import requests; print(requests.get('https://api.openai.example/v1/models', \
                    headers={'Authorization': 'Bearer OPENAI_API_KEY'}).status_code)";
    let fetch = "fetch('https://api.openai.example/v1/models', {headers: {authorization: \
                 'Bearer OPENAI_API_KEY'}}).then(r => console.log(r.status))";
    let node = client::tool("node");
    [
        CURL.to_owned(),
        format!("{} -c \"{requests}\"", python.display()),
        format!("{} -e \"{fetch}\"", node.display()),
        "git ls-remote https://agent:$GIT_TOKEN@git.example/coat.git >/dev/null && echo 200".into(),
    ]
}

/// Returns every file below a folder, with its content.
fn tree(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        found.push((path.display().to_string(), fs::read(&path).unwrap_or_default()));
        if path.is_dir() {
            found.extend(tree(&path));
        }
    }
    found.sort();
    found
}

const CURL: &str = "curl -fsS -o /dev/null -w '%{http_code}\\n' https://api.openai.example/v1/models \
                    -H 'Authorization: Bearer OPENAI_API_KEY'";

/// Makes the script root of a machine of its own, as far as it can tell: its writes go to layers
/// above the real folders, and the files that are left after undo are printed.
const SYSTEM: &str = r#"
set -eu
mount -t tmpfs tmpfs "$1"
for folder in etc usr/local; do
    name=$(echo "$folder" | tr / -)
    mkdir "$1/$name" "$1/$name.work"
    mount -t overlay overlay -o "lowerdir=/$folder,upperdir=$1/$name,workdir=$1/$name.work" "/$folder"
done
cp -a /etc/environment /etc/environment.before 2>/dev/null || : > /etc/environment
cp -a /etc/environment "$1/environment"
cp /etc/ssl/certs/ca-certificates.crt "$1/store"
curl -fsS http://@GATEWAY@/install.sh | sh
curl -fsS http://@GATEWAY@/install.sh | sh | grep -c wrote && exit 1
# Without a variable too, where the client reads the system's store.
curl -fsS -o /dev/null -w '%{http_code}\n' https://api.openai.example/v1/models \
    -H 'Authorization: Bearer OPENAI_API_KEY'
( . /etc/profile.d/cloakroom.sh; sh "$2" )
curl -fsS http://@GATEWAY@/install.sh | sh -s -- --undo
cmp "$1/environment" /etc/environment
cmp "$1/store" /etc/ssl/certs/ca-certificates.crt
echo "left: $(find /etc /usr/local -name '*cloakroom*')"
"#;
