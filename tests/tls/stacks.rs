//! TLS libraries that read an issuing CA in their own way: wolfSSL, which requires one order of its
//! extensions, and mbed TLS and OCaml's x509 before 1.2, which do not support critical name
//! constraints.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lab::{
    client::agent,
    gateway::{self, GIT_SECRET, Gateway, OPENAI_SECRET},
    net::{AGENT, GIT, OPENAI},
    origin::Received,
    sandboxed, tools,
};

use crate::world::World;

/// Runs `stacks.py` as an agent would. Returns its output, or why it was refused.
fn client(world: &World, arguments: &[&str]) -> Result<String, String> {
    let output = agent(&world.lab, AGENT, "/usr/bin/python3")
        .arg(tools::repository().join("tests/tls/stacks.py"))
        .args(arguments)
        .arg(world.lab.dir.join("agents.pem"))
        .output()
        .expect("python3 starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output.status.success() {
        true => Ok(text(&output.stdout)),
        false => Err(text(&output.stderr)),
    }
}

/// Makes the constraints of this API noted only.
fn note_constraints(world: &mut World, api: &str) {
    world.gateway.kill();
    let config = gateway::usual_config().api(api, |it| it.set("constraints", "noted"));
    world.gateway = Gateway::start(&world.lab, &config);
}

/// Runs Semgrep's engine in this version, which reports its run to OpenAI's host by ocaml-tls.
/// Returns its output.
fn semgrep(world: &World, version: &str) -> String {
    let folder = tools::cache().join("semgrep").join(version).join("semgrep/bin");
    let engine = folder.join("semgrep-core");
    assert!(engine.is_file(), "{} is missing: run tests/semgrep/get", engine.display());
    let (rules, searched) = (world.lab.dir.join("rules.yaml"), world.lab.dir.join("searched.py"));
    std::fs::write(&rules, RULES).expect("rules are written");
    std::fs::write(&searched, "eval(1)\n").expect("a file is written");
    let output = agent(&world.lab, AGENT, &engine.to_string_lossy())
        .env("LD_LIBRARY_PATH", folder.join("libs"))
        .env("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer OPENAI_API_KEY")
        .env("OTEL_OCAML_DEBUG", "1")
        .args(["-lang", "python", "-trace", "-trace_endpoint"])
        .arg(format!("https://{}/v1/telemetry", OPENAI.name))
        .arg("-rules")
        .args([&rules, &searched])
        .output()
        .expect("the engine starts");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Requires that its report arrived with the secret in the placeholder's place.
fn assert_told(world: &World, said: &str) {
    let secret = format!("Bearer {OPENAI_SECRET}");
    let requests = world.origin.log().requests();
    let told = |request: &Received| request.header("authorization") == [secret.as_str()];
    assert!(requests.iter().any(told), "{said}\n{requests:#?}");
}

#[test]
fn wolfssl_takes_an_issuing_ca_of_ours() {
    sandboxed(|| {
        let world = World::usual();
        let answer = client(&world, &["wolfssl", OPENAI.name]).expect("it believes the leaf");
        assert!(answer.contains("placeholder_missing"), "{answer}");
    });
}

/// The client is Debian's libgit2, with which cargo and pygit2 fetch.
#[test]
fn mbed_tls_takes_an_issuing_ca_with_noted_limits() {
    sandboxed(|| {
        let mut world = World::usual();
        world.origin.repository("coat", "the coat behind the counter");
        let ask = ["pygit2", "https://git.example/coat.git"];
        let refused = client(&world, &ask).expect_err("it knows no critical constraints");
        assert!(refused.contains("refused"), "{refused}");
        world.origin.log().assert_no_request();
        let record = world.gateway.audit.wait_for(|record| record["sni"] == GIT.name);
        let said = (record["reason"].as_str(), record["alert"].as_str());
        assert_eq!(said, (Some("agent_tls_failed"), Some("bad_certificate")), "{record}");

        note_constraints(&mut world, "git");
        let heads = client(&world, &ask).expect("it passes them over");
        assert!(heads.contains("refs/heads/main"), "{heads}");
        let secret = format!("Basic {}", STANDARD.encode(format!("agent:{GIT_SECRET}")));
        let requests = world.origin.log().requests();
        let sent = |request: &Received| request.header("authorization") == [secret.as_str()];
        assert!(requests.iter().any(sent), "{requests:#?}");
    });
}

/// The client is x509 1.0.6, in ocaml-tls.
#[test]
fn ocamls_older_x509_takes_a_noted_limit_alone() {
    sandboxed(|| {
        let mut world = World::usual();
        let refused = semgrep(&world, "1.160.0");
        assert!(refused.contains("invalid certificate chain"), "{refused}");
        world.origin.log().assert_no_request();
        let record = world.gateway.audit.wait_for(|record| record["sni"] == OPENAI.name);
        let said = (record["reason"].as_str(), record["alert"].as_str());
        assert_eq!(said, (Some("agent_tls_failed"), Some("bad_certificate")), "{record}");

        note_constraints(&mut world, "openai");
        let said = semgrep(&world, "1.160.0");
        assert_told(&world, &said);
    });
}

/// The client is x509 1.2.0, in ocaml-tls.
#[test]
fn ocamls_newer_x509_takes_a_critical_limit() {
    sandboxed(|| {
        let world = World::usual();
        let said = semgrep(&world, "1.185.0");
        assert_told(&world, &said);
    });
}

const RULES: &str =
    "rules: [{id: eval, languages: [python], message: eval, severity: ERROR, pattern: eval(...)}]";
