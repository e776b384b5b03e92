//! gRPC, by Python's own server and client: calls of every kind, their ends, and what a server tells.

use std::{fs, path::PathBuf, process::Child};

use lab::{
    Lab, World,
    client::{agent, python, succeed},
    gateway::{self, OPENAI_SECRET, PUBLIC_CA, usual_config},
    net::{AGENT, INTERNET},
    sandboxed, tools, wait,
};
use policy_builder::{api, binding};

const NAME: &str = "grpc.example";
const ADDRESS: &str = "198.51.100.79";

/// A world with a gRPC server, and what that server has seen.
struct Calls {
    world: World,
    seen: PathBuf,
    server: Child,
}

impl Calls {
    fn start() -> Self {
        let key = binding("research", "GRPC_API_KEY", &[gateway::BEARER], "file:openai");
        let calls = api("calls", &[NAME]).set("methods", ["POST"]).set("paths", ["/lab.Calls/*"]);
        let config = usual_config().with(calls.set("upstream_ca", PUBLIC_CA).with(key));
        let mut server = None;
        let world = World::prepared(&config, |lab, dns| {
            let address = || vec![ADDRESS.parse().expect("an address")];
            dns.set(NAME, &address());
            lab.names(&[(NAME, address())]);
            server = Some(serve(lab));
        });
        let seen = world.lab.dir.join("seen");
        Self { world, seen, server: server.expect("it was started") }
    }

    /// Runs a part of the client, and returns its output.
    #[track_caller]
    fn run(&self, what: &str) -> String {
        let mut client = agent(&self.world.lab, AGENT, &python().display().to_string());
        client.arg(script("grpc_client.py")).args([NAME, what]);
        succeed(&mut client)
    }

    /// Returns a line for each call that arrived.
    fn seen(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.seen).unwrap_or_default();
        text.lines().filter(|line| *line != "ready").map(str::to_owned).collect()
    }

    /// Checks that each of these calls arrived with the secret, exactly once, and has one record.
    #[track_caller]
    fn ends_well(mut self, calls: usize) {
        let seen = self.seen();
        let once = seen.iter().filter(|line| line.ends_with(" once")).count();
        let others: Vec<_> = seen.iter().filter(|line| line.ends_with(" otherwise")).collect();
        assert!(others.is_empty() && once == calls, "{seen:?}");
        wait::expect("each call has one record", || self.world.requests().len() == calls);
        self.world.assert_secrets_untold();
        self.server.kill().expect("it runs");
        self.server.wait().expect("it ends");
    }
}

fn script(name: &str) -> PathBuf {
    tools::repository().join("tests/clients").join(name)
}

fn serve(lab: &Lab) -> Child {
    INTERNET.shell(&format!("ip addr add {ADDRESS}/32 dev lo"));
    let identity = lab.public.issue(NAME);
    let certificate = lab.write("grpc.pem", identity.certificate_pem());
    let key = lab.write("grpc-key.pem", identity.key_pem());
    let seen = lab.dir.join("seen");
    let mut server = INTERNET.command(python());
    server.arg(script("grpc_server.py")).arg(format!("{ADDRESS}:443"));
    server.args([certificate, key, seen.clone()]).arg(OPENAI_SECRET);
    let server = server.spawn().expect("python starts");
    wait::expect("the server listens", || fs::read_to_string(&seen).is_ok());
    server
}

#[test]
fn grpc_calls_of_every_kind_carry_the_secret_once() {
    sandboxed(|| {
        let calls = Calls::start();
        let made = calls.run("every").trim().parse().expect("a number");
        calls.ends_well(made);
    });
}

/// The server says its credential in metadata before and after the messages, in messages, in the
/// message of its status, and in binary metadata.
#[test]
fn a_grpc_server_that_tells_its_credential_is_masked() {
    sandboxed(|| {
        let calls = Calls::start();
        let told = calls.run("tell");
        let telling = OPENAI_SECRET.len() + "<Bearer >".len();
        for length in [telling, telling + 16_370, telling + 65_500] {
            assert!(told.lines().any(|line| line.starts_with(&format!("{length} b'<"))), "{told}");
        }
        assert!(told.contains("INVALID_ARGUMENT you sent "), "{told}");
        assert!(told.contains("illegal base64 encoding"), "{told}");
        assert!(!told.contains(OPENAI_SECRET), "{told}");
        calls.ends_well(2);
    });
}

#[test]
fn grpcs_deadlines_and_cancellations_reach_the_server() {
    sandboxed(|| {
        let calls = Calls::start();
        calls.run("cancel");
        let cancelled = || calls.seen().iter().filter(|line| *line == "cancelled").count() == 2;
        wait::expect("the server sees both", cancelled);
        calls.ends_well(2);
    });
}

#[test]
fn a_refused_grpc_call_has_a_status_and_arrives_nowhere() {
    sandboxed(|| {
        let calls = Calls::start();
        calls.run("refused");
        assert_eq!(calls.seen(), [""; 0]);
        let requests = calls.world.requests();
        assert!(requests.len() == 3 && requests.iter().all(|it| it["decision"] == "refuse"));
        calls.world.assert_secrets_untold();
    });
}
