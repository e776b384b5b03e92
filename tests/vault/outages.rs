//! A real Vault that is down, sealed, unwilling or not the right one: the gateway keeps its values
//! for `max_stale`, then answers 503, and recovers by itself.

use std::{
    fs,
    io::{Read, Write as _},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use lab::{
    Lab,
    audit::Record,
    client::{self, Tls},
    dns::Dns,
    gateway::{self, Gateway, OPENAI_SECRET, SECRETS, usual_config, with_absent_vault},
    net::{AGENT, AGENT2, ATTACKER, INTERNET, OPENAI, PYPI, VAULT},
    origin::Origin,
    pki::Authority,
    sandboxed,
    vault::Vault,
    wait,
};

use rustls::sign::SingleCertAndKey;

use crate::faults::{CHAT, ask, assert_unavailable, records, refusal};

/// Returns the output of `cloakroom status`.
fn status(lab: &Lab) -> serde_json::Value {
    let mut command = gateway::program();
    command.args(["status", "--json", "--control"]).arg(lab.dir.join("control/control.sock"));
    serde_json::from_str(&client::succeed(&mut command)).expect("it is JSON")
}

/// Waits until a request is refused because the secret is missing, and returns the time that took
/// and the cause.
fn until_refused(lab: &Lab, gateway: &Gateway) -> (Duration, String) {
    let begun = Instant::now();
    wait::expect("the secret is refused", || ask(lab, gateway, CHAT).status == 503);
    let waited = begun.elapsed();
    let refused = |record: &Record| record["reason"] == "secret_unavailable";
    // The record of the earlier request may be a moment late; either of the two will do.
    let before = records(gateway, "request").into_iter().filter(refused).count();
    assert_unavailable(&ask(lab, gateway, CHAT));
    let last = refusal(gateway, before, "secret_unavailable");
    (waited, last["cause"].as_str().unwrap_or_default().to_owned())
}

fn until_served(lab: &Lab, gateway: &Gateway) -> Duration {
    let begun = Instant::now();
    wait::expect("the secret is back", || ask(lab, gateway, CHAT).status == 200);
    begun.elapsed()
}

#[test]
fn an_outage_is_bridged_for_a_while_alone() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let mut vault = Vault::start(&lab);
        let gateway = Gateway::start(&lab, &vault.config());
        let served = |what: &str| {
            assert_eq!(ask(&lab, &gateway, CHAT).status, 200, "{what}");
        };
        served("the usual way");
        let first = &origin.log().wait_requests(1)[0];
        assert_eq!(first.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);

        vault.put("openai", "sk-lab-rotated-in-vault-01");
        wait::expect("the new version is at the origin", || {
            served("during a rotation");
            origin.log().holds("Bearer sk-lab-rotated-in-vault-01")
        });

        vault.forbid();
        let (after, cause) = until_refused(&lab, &gateway);
        println!("forbidden: 503 after {after:?}");
        assert_eq!(cause, "vault_denied");
        assert!(after < Duration::from_secs(4), "a 403 drops the value at once: {after:?}");
        vault.allow();
        println!("allowed: served after {:?}", until_served(&lab, &gateway));

        vault.seal();
        let begun = Instant::now();
        served("sealed a moment ago");
        let health_says = |cause: &str, left: bool| {
            let health = status(&lab)["health"].clone();
            let causes = health["causes"].as_array().cloned().unwrap_or_default();
            let is = |one: &serde_json::Value| {
                let in_time = one["left"].as_u64().map(|left| left <= 5);
                (&one["cause"], &one["why"], in_time)
                    == (&cause.into(), &"vault_sealed".into(), left.then_some(true))
            };
            health["state"] == "degraded" && causes.iter().any(is)
        };
        wait::expect("the time that is left is told", || health_says("secret_stale", true));
        let (_, cause) = until_refused(&lab, &gateway);
        let after = begun.elapsed();
        println!("sealed: 503 after {after:?} ({cause})");
        assert!(after > Duration::from_secs(2), "max_stale is five seconds: {after:?}");
        assert!(health_says("secret_unavailable", false), "{}", status(&lab));
        assert_eq!(cause, "vault_sealed");
        says(&gateway, "Vault is sealed: unseal it");
        vault.unseal();
        println!("unsealed: served after {:?}", until_served(&lab, &gateway));

        vault.stop();
        served("stopped a moment ago");
        let (after, cause) = until_refused(&lab, &gateway);
        println!("stopped: 503 after {after:?} ({cause})");
        assert!(after > Duration::from_secs(2), "max_stale is five seconds: {after:?}");
        assert_eq!(cause, "vault_unreachable");
        says(&gateway, "nothing listens at its address and port; is it running?");
        vault.resume();
        println!("resumed: served after {:?}", until_served(&lab, &gateway));

        assert_told_nothing(&lab, &gateway);
        let requests = origin.log().requests().len();
        wait::expect("as many requests at the origin as the audit says", || {
            let records = records(&gateway, "request");
            records.iter().filter(|record| record["decision"] == "intercept").count() == requests
        });
    });
}

#[test]
fn a_vault_down_at_the_start_is_503_and_heals() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let mut vault = Vault::start(&lab);
        vault.stop();
        let begun = Instant::now();
        let gateway = Gateway::start(&lab, &vault.config());
        println!("ready after {:?}", begun.elapsed());
        assert_unavailable(&ask(&lab, &gateway, CHAT));
        let record = refusal(&gateway, 0, "secret_unavailable");
        assert_eq!(record["cause"], "vault_unreachable", "{record}");
        origin.log().assert_no_request();
        let said = status(&lab)["secrets"].clone();
        let missing = said["missing"].as_array().expect("a list");
        assert!(said["available"].as_array().is_some_and(Vec::is_empty), "{said}");
        assert_eq!(missing.len(), 4, "{said}");
        assert!(missing.iter().all(|one| one["cause"] == "vault_unreachable"), "{said}");
        assert!(gateway.stderr().contains("no value yet"), "{}", gateway.stderr());
        // A connection that is not intercepted needs no secret.
        let mut pypi =
            Tls::open(AGENT, PYPI.port(443), &crate::faults::hello(&lab, PYPI)).expect("TLS");
        let through = format!("GET /simple/ HTTP/1.1\r\nHost: {}\r\n\r\n", PYPI.name);
        pypi.ask(through).expect("an answer");
        assert_eq!(origin.log().wait_requests(1)[0].uri.path(), "/simple/");
        vault.resume();
        let after = until_served(&lab, &gateway);
        println!("served after {after:?}");
        assert!(after < Duration::from_secs(5), "{after:?}");
        wait::expect("the status says so", || {
            let available = status(&lab)["secrets"]["available"].clone();
            available.as_array().is_some_and(|secrets| secrets.len() == 4)
        });
        assert_told_nothing(&lab, &gateway);
    });
}

#[test]
fn a_silent_vault_holds_up_neither_start_nor_end() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        INTERNET.shell("ip route add blackhole 198.51.100.250");
        lab.write("secret-id", "a-secret-id");
        let config = with_absent_vault(usual_config())
            .vault("address", "https://198.51.100.250:8200")
            .binding("OPENAI_API_KEY", |it| it.set("secret", "vault:kv/agents/openai#api_key"));
        let begun = Instant::now();
        let mut gateway = Gateway::start(&lab, &config);
        // One request to Vault is given up after ten seconds; the start does not wait for that.
        println!("ready after {:?}", begun.elapsed());
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        assert_unavailable(&ask(&lab, &gateway, CHAT));
        let mut other = crate::faults::open(&lab, AGENT2, OPENAI).expect("a handshake");
        let request = crate::faults::get("/v1/models").replace("OPENAI_API_KEY", "OPS_OPENAI_KEY");
        assert_eq!(other.ask(request).expect("an answer").status, 200, "the file serves");
        drop(other);
        assert_eq!(origin.log().wait_requests(1).len(), 1);
        let begun = Instant::now();
        assert!(gateway.terminate(Duration::from_secs(12)).success());
        println!("ended after {:?}", begun.elapsed());
    });
}

#[test]
fn a_vault_of_another_authority_gets_no_secret_id() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let vault = Vault::start(&lab);
        let other = lab.write("other-ca.pem", Authority::new("Another root").pem());
        let config = vault.config().vault("ca_file", other.display().to_string());
        let gateway = Gateway::start(&lab, &config);
        assert_unavailable(&ask(&lab, &gateway, CHAT));
        let record = refusal(&gateway, 0, "secret_unavailable");
        assert_eq!(record["cause"], "vault_unreachable", "{record}");
        origin.log().assert_no_request();
        assert_told_nothing(&lab, &gateway);
    });
}

#[test]
fn a_readable_or_wrong_secret_id_is_said() {
    sandboxed(|| {
        use std::os::unix::fs::PermissionsExt as _;
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let vault = Vault::start(&lab);
        let config = vault.config();
        let file = lab.dir.join("vault/secret-id");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("a mode");
        let failed = Gateway::try_start(&lab, &config).err().expect("it is no secret any more");
        crate::faults::assert_one_line(&failed, &["secret-id"]);
        crate::faults::assert_closed(&origin);

        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("a mode");
        let good = fs::read_to_string(&file).expect("the SecretID");
        fs::write(&file, "00000000-0000-0000-0000-000000000000").expect("written");
        let gateway = Gateway::start(&lab, &config);
        assert_unavailable(&ask(&lab, &gateway, CHAT));
        let record = refusal(&gateway, 0, "secret_unavailable");
        assert_eq!(record["cause"], "vault_denied", "{record}");
        origin.log().assert_no_request();
        fs::write(&file, &good).expect("written");
        until_served(&lab, &gateway);
        assert_told_nothing(&lab, &gateway);
    });
}

#[test]
fn vaults_redirects_lead_to_its_peers_alone() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        lab.write("vault-secret-id", "a-secret-id-0123456789");
        let (here, there) = (VAULT.to_string(), ATTACKER.v4().to_string());
        let standby = node(&lab.public, &here, &format!("https://{there}:8200"));
        let other = node(&lab.public, &there, &format!("https://{there}:8200"));
        let config = with_absent_vault(gateway::from_vault(usual_config()))
            .vault("refresh", "1s")
            .vault("max_stale", "5s")
            .login_key("secret_id_file", "{dir}/vault-secret-id");
        let mut gateway = Gateway::start(&lab, &config);
        assert_unavailable(&ask(&lab, &gateway, CHAT));
        let record = refusal(&gateway, 0, "secret_unavailable");
        assert_eq!(record["cause"], "vault_unreachable", "{record}");
        wait::expect("several logins", || seen(&standby).len() >= 2);
        assert!(seen(&standby)[0].contains("a-secret-id-0123456789"), "it was really asked");
        assert_eq!(seen(&other), [""; 0], "nobody else is");
        assert!(gateway.stderr().contains("list the nodes in peers"), "{}", gateway.stderr());
        gateway.terminate(Duration::from_secs(12));

        let config = config.vault("peers", [format!("https://{there}:8200")]);
        let gateway = Gateway::start(&lab, &config);
        wait::expect("the peer is asked", || !seen(&other).is_empty());
        assert!(seen(&other)[0].contains("a-secret-id-0123456789"), "with the same question");
        assert_unavailable(&ask(&lab, &gateway, CHAT));
        origin.log().assert_no_request();
        assert!(!gateway.stderr().contains("a-secret-id"), "{}", gateway.stderr());
    });
}

#[test]
fn an_impostor_of_vault_gets_and_sends_no_token() {
    sandboxed(|| {
        let lab = Lab::new();
        let _origin = Origin::start(&lab);
        let _dns = Dns::start();
        let mut vault = Vault::start(&lab);
        let gateway = Gateway::start(&lab, &vault.config());
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
        let (here, there) = (VAULT.to_string(), ATTACKER.v4().to_string());
        let other = node(&lab.public, &there, &format!("https://{there}:8200"));

        // With a certificate of another authority not even a request arrives.
        vault.stop();
        let mut false_vault =
            node(&Authority::new("Another"), &here, &format!("https://{there}:8200"));
        let (after, cause) = until_refused(&lab, &gateway);
        println!("another certificate: 503 after {after:?} ({cause})");
        assert_eq!(cause, "vault_unreachable");
        says(&gateway, "Vault's certificate is of another CA: put the CA that signed it");
        assert_eq!(seen(&false_vault), [""; 0]);
        false_vault.end();

        // With one of the right authority for another name none arrives either.
        let to = format!("https://{there}:8200");
        let mut false_vault = node_named(&lab.public, OPENAI.name, &here, &to);
        says(&gateway, "Vault's certificate is for another name: write the name in it");
        assert_eq!(seen(&false_vault), [""; 0]);
        false_vault.end();

        // With the right certificate and a redirect, this node gets the token, and no other does.
        let mut standby = node(&lab.public, &here, &format!("https://{there}:8200"));
        wait::expect("the token is tried here", || {
            seen(&standby).iter().any(|question| question.contains("x-vault-token: "))
        });
        assert_unavailable(&ask(&lab, &gateway, CHAT));
        says(&gateway, "list the nodes in peers");
        std::thread::sleep(wait::QUIET);
        assert_eq!(seen(&other), [""; 0], "the redirect is not followed");
        standby.end();

        vault.resume();
        println!("resumed: served after {:?}", until_served(&lab, &gateway));
        assert_eq!(seen(&other), [""; 0]);
        assert_told_nothing(&lab, &gateway);
    });
}

/// Waits until the log has this text.
#[track_caller]
fn says(gateway: &Gateway, text: &str) {
    wait::expect(text, || gateway.stderr().contains(text));
}

/// Returns the requests that a node got.
fn seen(node: &Node) -> Vec<String> {
    node.seen.lock().expect("unpoisoned").clone()
}

/// A server that claims to be Vault.
struct Node {
    seen: Arc<Mutex<Vec<String>>>,
    ended: Arc<AtomicBool>,
    address: SocketAddr,
    listening: Option<JoinHandle<()>>,
}

impl Node {
    /// Stops listening.
    fn end(&mut self) {
        self.ended.store(true, SeqCst);
        // This last connection wakes it up.
        let _ = INTERNET.connect(self.address);
        self.listening.take().expect("once").join().expect("no panic");
    }
}

/// Returns a server at `address` that claims to be Vault, with a certificate of this authority, and
/// redirects every request to `to`.
fn node(authority: &Authority, address: &str, to: &str) -> Node {
    node_named(authority, address, address, to)
}

/// Returns the same, with a certificate for `name`.
fn node_named(authority: &Authority, name: &str, address: &str, to: &str) -> Node {
    let key = SingleCertAndKey::from(authority.issue(name).certified());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(key));
    let config = Arc::new(config);
    let listener = INTERNET.enter(|| TcpListener::bind((address, 8200))).expect("a free port");
    let address = listener.local_addr().expect("bound");
    let (seen, to) = (Arc::new(Mutex::new(Vec::new())), to.to_owned());
    let (asked, ended) = (Arc::clone(&seen), Arc::new(AtomicBool::new(false)));
    let ending = Arc::clone(&ended);
    let listening = std::thread::spawn(move || {
        for socket in listener.incoming().filter_map(Result::ok) {
            if ending.load(SeqCst) {
                return;
            }
            let _ = socket.set_read_timeout(Some(wait::SOON));
            let tls = rustls::ServerConnection::new(Arc::clone(&config)).expect("a session");
            let mut stream = rustls::StreamOwned::new(tls, socket);
            let Some(question) = question(&mut stream) else { continue };
            let path = question.split(' ').nth(1).unwrap_or_default().to_owned();
            asked.lock().expect("unpoisoned").push(question);
            let answer = format!(
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: {to}{path}\r\n\
                 Connection: close\r\nContent-Length: 0\r\n\r\n"
            );
            let _ = stream.write_all(answer.as_bytes());
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    Node { seen, ended, address, listening: Some(listening) }
}

/// Reads one request with its body; returns nothing where no whole head arrives.
fn question(stream: &mut impl Read) -> Option<String> {
    let (mut bytes, mut question) = ([0; 4_096], String::new());
    while question.len() < 65_536 {
        let whole = question.contains("\r\n\r\n");
        let body = question.to_lowercase().contains("content-length: ");
        if whole && (!body || question.contains('}')) {
            break;
        }
        match stream.read(&mut bytes) {
            Ok(length @ 1..) => question += &String::from_utf8_lossy(&bytes[..length]),
            _ => break,
        }
    }
    question.contains("\r\n\r\n").then_some(question)
}

/// Asserts that neither a value nor a token nor the SecretID is in the log or in the audit.
#[track_caller]
fn assert_told_nothing(lab: &Lab, gateway: &Gateway) {
    let told = gateway.stderr() + &gateway.audit.text();
    let secret_id = fs::read_to_string(lab.dir.join("vault/secret-id")).expect("the SecretID");
    for secret in SECRETS.into_iter().chain([secret_id.trim(), "hvs.", "sk-lab-rotated", "s.C"]) {
        assert!(!told.contains(secret), "{secret} was told:\n{told}");
    }
}
