//! The shipped unit under systemd as the first process of a machine: Debian 13 in systemd-nspawn, whose
//! network is the lab's gateway. `make test-systemd` runs it; it needs root.

mod machine;

use lab::{
    Lab,
    client::Tls,
    dns::Dns,
    gateway::OPENAI_SECRET,
    net::{AGENT, OPENAI},
    origin::Origin,
    sandboxed,
};

use machine::{Machine, config, hello};

const CHAT: &str = "POST /v1/chat HTTP/1.1\r\nHost: api.openai.example\r\n\
    Authorization: Bearer OPENAI_API_KEY\r\nContent-Length: 0\r\n\r\n";

/// Asks the API, and requires that the origin was sent the secret.
#[track_caller]
fn assert_served(lab: &Lab, origin: &Origin) {
    let before = origin.log().requests().len();
    let tls = Tls::open(AGENT, OPENAI.port(443), &hello(lab, OPENAI.name));
    let answer = tls.expect("intercepted").ask(CHAT).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.text());
    let requests = origin.log().requests();
    assert_eq!(requests[before].header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
}

#[test]
fn the_shipped_unit_serves_confined_and_again_after_a_restart() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let machine = Machine::boot(&lab);
        machine.install(&lab, &config());
        machine.run("systemctl start cloakroom");
        assert_served(&lab, &origin);

        // Exactly these: CAP_NET_BIND_SERVICE is bit 10, CAP_NET_ADMIN bit 12 (capabilities(7)).
        let status = machine.run("cat /proc/$(systemctl show --value -p MainPID cloakroom)/status");
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(&format!("{name}:\t")));
            line.unwrap_or_else(|| panic!("no {name}: {status}")).to_owned()
        };
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(field(set), "0000000000001400", "{set}");
        }
        assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".into(), "2".into()));
        assert_ne!(field("Uid").split('\t').next(), Some("0"));

        let security = machine.run("systemd-analyze security --no-pager cloakroom");
        let exposure = security.lines().find_map(|line| line.split_once("cloakroom.service: "));
        let exposure: f64 = exposure
            .and_then(|(_, figure)| figure.split(' ').next()?.parse().ok())
            .unwrap_or_else(|| panic!("no figure: {security}"));
        println!("exposure {exposure}");
        assert!(exposure <= 2.0, "{security}");

        let status = machine.run("cloakroom status");
        assert!(
            status.contains("landlock") && !status.contains("\"landlock\": \"not\""),
            "{status}"
        );
        machine.run("systemctl reload cloakroom");
        machine.run("systemctl restart cloakroom");
        assert_served(&lab, &origin);
        assert_eq!(machine.property("NRestarts"), "0", "{}", machine.journal());
        let log = machine.journal();
        let (_, again) = log.rsplit_once("Starting cloakroom").expect("it was restarted");
        assert!(!again.contains("WARN") && !again.contains("ERROR"), "{again}");
    });
}
