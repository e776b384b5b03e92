//! Places other than its way to the API where a value could be seen: logs, records, answers, and
//! the process as others see it.

use std::fs;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lab::{
    Lab,
    client::{H2, Hello, Tls},
    dns::Dns,
    gateway::{self, GIT_SECRET, Gateway, SECRETS},
    net::{AGENT, AGENT2, GATEWAY, GIT, OPENAI},
    origin::Origin,
    sandboxed, tools,
    vault::Vault,
    wait,
};

use crate::faults::{CHAT, ask, get, hello, open};

#[test]
fn no_value_or_token_is_logged_even_at_debug() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let mut vault = Vault::start(&lab);
        let config = vault.config();
        // A first, short run makes the certificates.
        Gateway::start(&lab, &config).kill();
        let path = gateway::install(&lab, &config);
        let gateway = Gateway::run_logging(&lab, &path, "debug")
            .unwrap_or_else(|failed| panic!("{}", failed.stderr));
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
        let h2 = Hello { alpn: vec![b"h2"], ..hello(&lab, OPENAI) };
        let mut h2 = H2::open(AGENT, OPENAI.port6(443), &h2).expect("a handshake");
        let request = http::Request::get("https://api.openai.example/v1/models")
            .header("authorization", "Bearer OPENAI_API_KEY")
            .body(())
            .expect("a request");
        assert_eq!(h2.ask(request, "").expect("an answer").status, 200);
        let basic = STANDARD.encode("agent:GIT_TOKEN");
        let mut git = open(&lab, AGENT, GIT).expect("a handshake");
        let request =
            format!("GET /a HTTP/1.1\r\nHost: git.example\r\nAuthorization: Basic {basic}\r\n\r\n");
        assert_eq!(git.ask(request).expect("an answer").status, 200);
        origin.log().wait_requests(3);

        // Every kind of answer of the gateway's own, and the answers that reflect.
        let mut told = String::new();
        for request in [
            get("/v1/models").replace("OPENAI_API_KEY", "sk-of-the-attackers-own"),
            get("/v1/models").replace("OPENAI_API_KEY", "ANTHROPIC_API_KEY"),
            get("/v1/models").replace("Bearer ", "Basic "),
            get("/nothing"),
            get("/v1/models").replace("GET", "DELETE"),
            get("/v1/models").replace("Host: api", "Host: ipa"),
            get("/reflect"),
            get("/redirect?to=https://attacker.example/"),
        ] {
            let answer = ask(&lab, &gateway, &request);
            told += &format!("{:?}\n{}\n", answer.headers, answer.text());
        }
        open(&lab, AGENT2, OPENAI)
            .and_then(|mut tls| tls.ask(CHAT))
            .map(|answer| told += &answer.text())
            .expect("an answer");
        let stranger = Tls::open(AGENT, OPENAI.port(443), &Hello::h1("attacker.example"));
        told += &stranger.map(drop).expect_err("not listed").to_string();

        // Vault is lost and found again, when its client logs most.
        vault.forbid();
        wait::expect("denied", || ask(&lab, &gateway, CHAT).status == 503);
        told += &ask(&lab, &gateway, CHAT).text();
        vault.allow();
        vault.stop();
        vault.resume();
        wait::expect("healed", || ask(&lab, &gateway, CHAT).status == 200);

        for file in ["cmdline", "environ"] {
            let path = format!("/proc/{}/{file}", gateway.pid());
            told += &String::from_utf8_lossy(&fs::read(path).expect("it runs"));
        }
        let log = gateway.stderr();
        assert!(log.contains("DEBUG"), "the log is at the level debug: {log}");
        told += &log;
        told += &gateway.audit.text();
        let id = fs::read_to_string(lab.dir.join("vault/secret-id")).expect("the SecretID");
        let coded = STANDARD.encode(format!("agent:{GIT_SECRET}"));
        let parts = SECRETS.iter().map(|secret| &secret[..14]);
        for secret in parts.chain([id.trim(), coded.as_str(), "hvs.", "sk-of-the-attackers-own"]) {
            let line = told.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "{secret} was told: {line:?}");
        }
    });
}

#[test]
fn the_daemons_memory_is_nobody_elses() {
    sandboxed(|| {
        let lab = Lab::new();
        let _origin = Origin::start(&lab);
        let _dns = Dns::start();
        let mut gateway = Gateway::usual(&lab);
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
        let pid = gateway.pid().to_string();
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
        let core = limits.lines().find(|line| line.starts_with("Max core file size"));
        let core: Vec<&str> = core.unwrap_or_default().split_whitespace().collect();
        assert_eq!(core.get(4..6), Some(&["0", "0"][..]), "{core:?}");

        // The same with neighbours of the same user and the same capabilities, none of which gives
        // them access by itself: only the process decides whether it allows it.
        gateway.kill();
        let neighbour = |program: &str| {
            let mut command = GATEWAY.command("setpriv");
            command.args([CAPABILITIES, "--inh-caps=-all", program]);
            command
        };
        let ready = lab.dir.join("ready");
        fs::remove_file(&ready).expect("it was ready before");
        let mut daemon = neighbour(&tools::cloakroom().display().to_string())
            .args(["run", "--ready-file"])
            .args([&ready, &lab.dir.join("cloakroom.toml")])
            .spawn()
            .expect("setpriv starts");
        wait::expect("the daemon is ready", || ready.exists());
        let mut other = neighbour("sleep").arg("60").spawn().expect("setpriv starts");
        let may_look_at = |pid: u32, file: &str| {
            let path = format!("if=/proc/{pid}/{file}");
            let output = neighbour("dd").args(["bs=1", "count=1", "status=none", &path]).output();
            output.expect("setpriv starts").stdout.len() == 1
        };
        wait::expect("the question is a fair one", || may_look_at(other.id(), "environ"));
        for file in ["environ", "auxv"] {
            assert!(!may_look_at(daemon.id(), file), "/proc/PID/{file} can be read");
        }
        let may_open = |pid: u32, file: &str| {
            let open = format!("exec 3</proc/{pid}/{file}");
            neighbour("sh").args(["-c", &open]).status().expect("setpriv starts").success()
        };
        for file in ["mem", "maps"] {
            assert!(may_open(other.id(), file), "the question is a fair one");
            assert!(!may_open(daemon.id(), file), "/proc/PID/{file} can be opened");
        }
        for child in [&mut daemon, &mut other] {
            child.kill().and_then(|()| child.wait()).expect("it ends");
        }
    });
}

/// Capabilities that tracing needs; the first also admits a namespace's owner.
const CAPABILITIES: &str = "--bounding-set=-sys_admin,-sys_ptrace,-perfmon";
