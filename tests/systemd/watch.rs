//! `cloakroom watch` and the operator's other commands, on a machine that has the unit.

use lab::{
    Lab,
    client::Tls,
    dns::Dns,
    net::{AGENT, AGENT2, ATTACKER, OPENAI},
    origin::Origin,
    sandboxed, wait,
};

use crate::{
    assert_served,
    machine::{Machine, config, hello},
};

const OWN_KEY: &str = "GET /v1/models HTTP/1.1\r\nHost: api.openai.example\r\n\
    Authorization: Bearer sk-a-key-of-its-own\r\nConnection: close\r\n\r\n";

#[test]
fn watch_finds_refusals_by_agent_flow_and_reason() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let machine = Machine::boot(&lab);
        machine.install(&lab, &config());
        machine.run("systemctl start cloakroom");
        assert_served(&lab, &origin);
        let tls = Tls::open(AGENT, OPENAI.port(443), &hello(&lab, OPENAI.name));
        let answer = tls.expect("intercepted").ask(OWN_KEY).expect("an answer");
        assert_eq!(answer.reason().as_deref(), Some("foreign_credential"), "{}", answer.text());
        let text = answer.text();
        let (_, flow) = text.split_once("\"flow\":\"").expect("it is told its flow");
        let (flow, _) = flow.split_once('"').expect("its end");
        let unlisted = Tls::open(AGENT2, ATTACKER.port(443), &hello(&lab, ATTACKER.name));
        unlisted.map(drop).expect_err("it is not listed");

        let watched = |asked: &str| -> Vec<String> {
            let watch = format!("timeout 1 cloakroom watch --all {asked} || true");
            machine.run(&watch).lines().map(str::to_owned).collect()
        };
        wait::expect("both ends of its flow", || watched(&format!("--flow {flow}")).len() == 2);
        for line in watched(&format!("--flow {flow}")) {
            assert!(line.contains(flow) && line.contains("192.0.2.10"), "{line}");
        }
        let told = watched("--reason foreign_credential --agent 192.0.2.10 --refused");
        assert!(matches!(&told[..], [only] if only.contains(flow)), "{told:#?}");
        assert_eq!(watched("--reason foreign_credential --agent 192.0.2.140"), [""; 0]);
        let others = watched("--refused --agent 192.0.2.128/25");
        assert!(matches!(&others[..], [only] if only.contains(ATTACKER.name)), "{others:#?}");
        assert!(watched("--agent 192.0.2.10").len() >= 4, "those that were served, too");

        // Further commands that are used while a machine is set up.
        machine.run("cloakroom rules | nft -c -f -; cloakroom guard | nft -c -f -");
        let said = machine.command("cloakroom ca issue --dir /root/none 2>&1").output();
        let said = String::from_utf8_lossy(&said.expect("nsenter starts").stdout).into_owned();
        assert!(said.contains("cloakroom ca init --dir /root/none"), "{said}");
    });
}
