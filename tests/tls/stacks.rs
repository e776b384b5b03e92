//! TLS libraries that read an issuing CA in their own way: wolfSSL, which wants its extensions in
//! one order, and mbed TLS, which knows no critical name constraints.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lab::{
    client::agent,
    gateway::{self, GIT_SECRET, Gateway},
    net::{AGENT, GIT, OPENAI},
    origin::Received,
    sandboxed, tools,
};

use crate::world::World;

/// Runs `stacks.py` as an agent would. What it printed, or why it was refused.
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

#[test]
fn wolfssl_takes_an_issuing_ca_of_ours() {
    sandboxed(|| {
        let world = World::usual();
        let answer = client(&world, &["wolfssl", OPENAI.name]).expect("it believes the leaf");
        assert!(answer.contains("placeholder_missing"), "{answer}");
    });
}

/// Debian's libgit2, with which cargo and pygit2 fetch.
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

        world.gateway.kill();
        let config = gateway::usual_config().api("git", |it| it.set("constraints", "noted"));
        world.gateway = Gateway::start(&world.lab, &config);
        let heads = client(&world, &ask).expect("it passes them over");
        assert!(heads.contains("refs/heads/main"), "{heads}");
        let secret = format!("Basic {}", STANDARD.encode(format!("agent:{GIT_SECRET}")));
        let requests = world.origin.log().requests();
        let sent = |request: &Received| request.header("authorization") == [secret.as_str()];
        assert!(requests.iter().any(sent), "{requests:#?}");
    });
}
