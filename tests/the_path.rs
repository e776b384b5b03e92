//! The main job: a placeholder leaves the agent, the secret arrives at the API.

use lab::{
    Lab,
    client::{Hello, Tls},
    dns::Dns,
    gateway::{Gateway, OPENAI_SECRET},
    net::{AGENT, OPENAI},
    origin::Origin,
    sandboxed,
};

#[test]
fn a_placeholder_leaves_the_agent_and_the_secret_arrives_at_the_api() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let gateway = Gateway::usual(&lab);
        let hello = Hello::h1(OPENAI.name)
            .trusting(&std::fs::read_to_string(lab.dir.join("agents.pem")).unwrap());
        let mut tls = Tls::open(AGENT, OPENAI.port(443), &hello)
            .unwrap_or_else(|e| panic!("{e}\n{}\n{}", gateway.stderr(), gateway.audit.text()));
        let answer = tls.ask("POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.example\r\nAuthorization: Bearer OPENAI_API_KEY\r\nContent-Length: 2\r\n\r\n{}").unwrap_or_else(|e| panic!("{e}\n{}\n{}", gateway.stderr(), gateway.audit.text()));
        println!("{} {}", answer.status, answer.text());
        println!("{}", gateway.audit.text());
        let requests = origin.log().wait_requests(1);
        assert_eq!(requests[0].header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
    });
}
