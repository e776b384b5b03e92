//! The gateway's connection to Vault: as the configuration says, whatever the environment says; in
//! the clear only within its own machine; and with its namespace in each request.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
};

use lab::{
    Lab,
    dns::Dns,
    gateway::{self, Gateway, OPENAI_SECRET, OPS_SECRET, from_vault, usual_config},
    net::{AGENT2, ATTACKER, GATEWAY, INTERNET, OPENAI},
    origin::Origin,
    sandboxed,
    vault::Vault,
    wait,
};
use policy_builder::{Config, Table};

use crate::faults::{CHAT, Trap, ask, get, open};

#[test]
fn no_environment_variable_leads_gateway_or_token_elsewhere() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let vault = Vault::start(&lab);
        let config = vault.config();
        // A first, short run makes the certificates.
        Gateway::start(&lab, &config).kill();
        let config = gateway::install(&lab, &config);
        let at = [ATTACKER.port(3128)];
        let trap = Trap::set(INTERNET, &at).prove(GATEWAY, &at);
        let there = format!("http://{}", at[0]);
        let proxies = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];
        let proxies = proxies.into_iter().chain(["ALL_PROXY", "all_proxy", "VAULT_PROXY_ADDR"]);
        let addresses = proxies.chain(["VAULT_ADDR", "VAULT_AGENT_ADDR"]);
        let mut variables: Vec<(&str, &str)> = addresses.map(|name| (name, &*there)).collect();
        let other_ca = lab.dir.join("no-such-ca.pem").display().to_string();
        variables.extend([
            ("VAULT_TOKEN", "hvs.of-the-environment"),
            ("VAULT_SKIP_VERIFY", "true"),
            ("VAULT_NAMESPACE", "of-the-environment"),
            ("VAULT_CACERT", &other_ca),
            ("VAULT_ROLE_ID", "of-the-environment"),
        ]);
        let gateway = Gateway::run_among(&lab, &config, "info", &variables);
        let gateway = gateway.unwrap_or_else(|failed| panic!("{}", failed.stderr));
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
        let mut other = open(&lab, AGENT2, OPENAI).expect("a handshake");
        let request = get("/v1/models").replace("OPENAI_API_KEY", "OPS_OPENAI_KEY");
        assert_eq!(other.ask(request).expect("an answer").status, 200);
        // This includes later requests: a new login, and another read of a value.
        vault.revoke_gateway();
        wait::expect("a new login", || gateway.stderr().matches("logged in to Vault").count() == 2);
        vault.put("openai", ROTATED);
        wait::expect("the new value arrives", || {
            assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
            origin.log().holds(ROTATED)
        });
        trap.assert_untouched();
        for secret in [OPENAI_SECRET, OPS_SECRET] {
            assert!(origin.log().holds(&format!("Bearer {secret}")));
        }
    });
}

#[test]
fn plain_http_is_for_loopback_and_needs_its_word() {
    sandboxed(|| {
        let lab = Lab::new();
        let _origin = Origin::start(&lab);
        let _dns = Dns::start();
        lab.write("jwt", JWT);
        for (address, plain, says) in [
            ("http://127.0.0.1:8200", false, "plain_http = true"),
            ("http://203.0.113.200:8200", true, "no further than 127.0.0.1"),
        ] {
            let config = kubernetes(address).vault("plain_http", plain);
            let failed = Gateway::try_start(&lab, &config).err().expect("no start");
            assert!(failed.stderr.contains(says), "{address}: {}", failed.stderr);
        }
    });
}

/// Vault without a licence has no namespaces, and there is no Kubernetes here: a fake server checks
/// that the requests are right.
#[test]
fn a_kubernetes_login_in_a_namespace_gets_the_secrets() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        lab.write("jwt", JWT);
        let fake = Fake::start();
        let config = kubernetes("http://127.0.0.1:8200").vault("plain_http", true);
        let gateway = Gateway::start(&lab, &config);
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
        let request = &origin.log().wait_requests(1)[0];
        assert_eq!(request.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
        let asked = fake.asked();
        let login = &asked[0];
        assert!(login.starts_with("POST /v1/auth/kubernetes/login "), "{login}");
        assert!(login.contains(&format!(r#"{{"role":"gateway","jwt":"{JWT}"}}"#)), "{login}");
        for question in &asked {
            let fields = question.to_lowercase();
            assert!(fields.contains("\r\nx-vault-namespace: team/agents\r\n"), "{question}");
        }
        let read = "GET /v1/kv/data/agents/openai ";
        let read = asked.iter().find(|question| question.starts_with(read)).expect("a read");
        assert!(read.to_lowercase().contains("x-vault-token: hvs.of-a-group"), "{read}");
        let told = gateway.stderr() + &gateway.audit.text();
        for secret in [JWT, "hvs.", OPENAI_SECRET] {
            assert!(!told.contains(secret), "{secret} was told:\n{told}");
        }
    });
}

/// Returns a configuration of a Vault that admits the gateway by Kubernetes.
fn kubernetes(address: &str) -> Config {
    let login = Table::section("jwt")
        .set("mount", "kubernetes")
        .set("role", "gateway")
        .set("token_file", "{dir}/jwt");
    from_vault(usual_config())
        .vault("address", address)
        .vault("namespace", "team/agents")
        .login(login)
}

/// A server on the gateway's own loopback that answers as Vault does where all is well.
struct Fake(Arc<Mutex<Vec<String>>>);

impl Fake {
    fn start() -> Self {
        let listener = GATEWAY.enter(|| TcpListener::bind("127.0.0.1:8200")).expect("a free port");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        std::thread::spawn(move || {
            for client in listener.incoming().filter_map(Result::ok) {
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || serve(client, &seen));
            }
        });
        Self(asked)
    }

    fn asked(&self) -> Vec<String> {
        self.0.lock().expect("unpoisoned").clone()
    }
}

fn serve(client: TcpStream, seen: &Mutex<Vec<String>>) {
    let mut writer = client.try_clone().expect("a socket");
    let mut reader = BufReader::new(client);
    while let Some(question) = question(&mut reader) {
        let path = question.split(' ').nth(1).unwrap_or_default().to_owned();
        seen.lock().expect("unpoisoned").push(question);
        let body = answer(&path);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
        if writer.write_all((head + &body).as_bytes()).is_err() {
            return;
        }
    }
}

/// Reads a head and as much body as it announces.
fn question(reader: &mut BufReader<TcpStream>) -> Option<String> {
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let begin = head.len();
        reader.read_line(&mut head).ok().filter(|read| *read > 0)?;
        let line = head[begin..].to_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(head + &String::from_utf8_lossy(&body))
}

fn answer(path: &str) -> String {
    let auth = |token: &str, policy: &str| {
        format!(
            r#"{{"auth":{{"client_token":"hvs.{token}","accessor":"of-{token}","renewable":true,
                "lease_duration":3600,"policies":["{policy}"],"orphan":false,
                "token_type":"service"}}}}"#
        )
    };
    match path {
        "/v1/auth/kubernetes/login" => auth("of-the-gateway", "gateway"),
        path if path.starts_with("/v1/auth/token/create/") => auth("of-a-group", "agents"),
        "/v1/kv/data/agents/openai" => {
            format!(r#"{{"data":{{"data":{{"api_key":"{OPENAI_SECRET}"}}}}}}"#)
        }
        _ => "{}".to_owned(),
    }
}

const ROTATED: &str = "sk-lab-r0tated-5d2b8f10c6e7a934";

const JWT: &str = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJjbG9ha3Jvb20ifQ.bm90LWEtc2lnbmF0dXJl";
