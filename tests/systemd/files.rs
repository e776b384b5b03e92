//! Files that the daemon reads under the shipped unit: their owners, the form of a file of secrets,
//! and the effect of a reload.

use lab::{
    Lab,
    client::Tls,
    dns::Dns,
    gateway::{ANTHROPIC_SECRET, OPENAI_SECRET, SECRETS},
    net::{AGENT, OPENAI},
    origin::Origin,
    sandboxed,
};

use crate::{
    CHAT, assert_served,
    machine::{Machine, config, hello},
};

#[test]
fn a_secrets_file_works_except_for_its_named_lines() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let machine = Machine::boot(&lab);
        machine.install(&lab, &config());
        let lines = format!(
            "\u{feff}openai = {OPENAI_SECRET}\r\nexport anthropic={ANTHROPIC_SECRET}\r\n\
             bad name = {}\r\nops = {}\r\n",
            SECRETS[2], SECRETS[3]
        );
        let file = "/etc/cloakroom/secrets.toml";
        std::fs::write(lab.dir.join("etc/secrets.toml"), lines).expect("writable");

        // Another user owns the file, so the daemon cannot trust it.
        machine.run(&format!("chown root {file}; systemctl start --no-block cloakroom"));
        let said = || machine.journal_of("-p err -u cloakroom");
        machine.wait_until("it says why", || said().contains("daemon's user's (chown)"));
        assert!(said().contains(file), "{}", said());
        machine.run(&format!("chown cloakroom {file}"));
        machine.wait_until("ready", || machine.property("ActiveState") == "active");

        assert_served(&lab, &origin);
        let line = machine.property("StatusText");
        assert!(line.contains("research has no value at anthropic"), "{line}");
        let said = machine.journal_of("-p warning -u cloakroom");
        for (line, why) in [(2, "without `export`"), (3, "the name is not")] {
            let told = said.lines().find(|it| it.contains(&format!("line={line}")));
            assert!(told.is_some_and(|it| it.contains(why)), "line {line}: {said}");
        }
        let all = machine.journal();
        assert!(SECRETS.iter().all(|secret| !all.contains(secret)), "{all}");
    });
}

#[test]
fn a_reload_reports_losses_new_cas_and_restarts() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let machine = Machine::boot(&lab);
        let by_system = config().api("openai", |it| it.without("upstream_ca"));
        machine.install(&lab, &by_system);
        machine.run("systemctl start cloakroom");
        let tls = Tls::open(AGENT, OPENAI.port(443), &hello(&lab, OPENAI.name));
        let answer = tls.expect("intercepted").ask(CHAT).expect("an answer");
        assert_eq!(answer.reason().as_deref(), Some("upstream_tls_invalid"), "{}", answer.text());
        machine.run(
            "cp /etc/cloakroom/public-ca.pem /usr/local/share/ca-certificates/lab.crt; \
             update-ca-certificates 2>&1; systemctl reload cloakroom",
        );
        assert_served(&lab, &origin);

        let config = "/etc/cloakroom/cloakroom.toml";
        machine.run("sed -i /anthropic/d /etc/cloakroom/secrets.toml; systemctl reload cloakroom");
        let said = machine.journal();
        let (_, said) = said.rsplit_once("have no value any more").expect("it was said");
        assert!(said.contains("research") && said.contains("file:anthropic"), "{said}");

        machine.run(&format!("sed -i 's/^\\[gateway\\]/&\\nworkers = 3/' {config}"));
        assert!(!machine.says("systemctl reload cloakroom"));
        let said = machine.journal_of("-p err -u cloakroom");
        assert!(said.contains("a reload cannot change workers; restart the daemon"), "{said}");
        assert_served(&lab, &origin);
        machine.run("systemctl restart cloakroom");
        assert_served(&lab, &origin);
    });
}
