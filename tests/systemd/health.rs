//! The daemon's health, as the service manager's line, readiness and the watchdog show it, for each
//! possible fault.

use std::{
    fs,
    io::{Read as _, Write as _},
    thread,
    time::Duration,
};

use lab::{
    Lab,
    client::Tls,
    dns::Dns,
    gateway,
    net::{AGENT, AGENT2, ANTHROPIC, GATEWAY},
    origin::Origin,
    sandbox::sandboxed_for,
    vault::Vault,
    wait,
};

use crate::{
    assert_served,
    machine::{Machine, hello},
};

/// An address of the uplink, to which agents have a route.
const MANAGEMENT: &str = "203.0.113.2:9464";
/// Longest time of a reaction: the daemon checks everything once a second here.
const AT_ONCE: Duration = Duration::from_secs(4);

#[test]
fn anything_wrong_is_in_the_managers_line_at_once() {
    sandboxed_for(Duration::from_secs(180), || {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let vault = Vault::start(&lab);
        let machine = Machine::boot(&lab);
        start(&lab, &machine, &vault);
        assert_served(&lab, &origin);
        assert_healthy(&machine);
        for agent in [AGENT, AGENT2] {
            for to in [MANAGEMENT, "192.0.2.1:9464", "192.0.2.129:9464"] {
                agent.connect(to.parse().expect("an address")).map(drop).expect_err(to);
            }
        }

        machine.run("dd if=/dev/zero of=/var/log/cloakroom/filler bs=1M count=7 2>&1");
        assert_told(&machine, "closed: the audit cannot be written", 503);
        machine.run("rm /var/log/cloakroom/filler");
        assert_healthy(&machine);

        machine.run("nft flush ruleset");
        assert_told(&machine, "closed: the guard table inet cloakroom_base", 503);
        machine.run("systemctl reload cloakroom-guard");
        assert_healthy(&machine);

        machine.run("cloakroom quarantine research");
        assert_told(&machine, "degraded: research is quarantined", 200);
        machine.run("cloakroom release research");
        assert_healthy(&machine);

        let retype = |from: &str, to: &str| {
            let sed = format!("sed -i s/{from}/{to}/ /etc/cloakroom/cloakroom.toml");
            machine.run(&(sed + "; systemctl reload cloakroom"));
        };
        retype("openai#api_key", "openai#api_kye");
        let line = "degraded: research has no value at openai, vault:kv/agents/openai#api_kye: ";
        assert_told(&machine, line, 200);
        let line = machine.property("StatusText");
        assert!(line.contains("field"), "{line}");
        retype("openai#api_kye", "openai#api_key");
        assert_healthy(&machine);

        of_a_sealed_vault(&machine, &vault);
        of_old_cas(&lab, &machine);
        assert_served(&lab, &origin);

        assert_eq!(machine.property("NRestarts"), "0", "a cause is nothing to start again for");
        machine.run("kill -STOP $(pgrep -P $(systemctl show --value -p MainPID cloakroom))");
        machine.wait_until("started by the watchdog", || machine.property("NRestarts") == "1");
        machine.wait_until("ready", || machine.property("ActiveState") == "active");
        assert_served(&lab, &origin);
        assert_healthy(&machine);
    });
}

/// Starts a daemon with its secrets from Vault, a small disk for its audit and a short watchdog.
fn start(lab: &Lab, machine: &Machine, vault: &Vault) {
    let of_vault = format!("{}/vault/", lab.dir.display());
    let config = gateway::with_default_folders(vault.config())
        .moved(&of_vault, "/etc/cloakroom/vault-")
        // Long enough for a test to see it run out.
        .vault("max_stale", "9s")
        .gateway("metrics", MANAGEMENT)
        .gateway("assert_every", "1s")
        .gateway("audit_reserve", "2MiB");
    for name in ["ca.pem", "secret-id"] {
        let to = lab.dir.join("etc").join(format!("vault-{name}"));
        fs::copy(lab.dir.join("vault").join(name), to).expect("it was made");
    }
    machine.run("mkdir -p /var/log/cloakroom; mount -t tmpfs -o size=8m tmpfs /var/log/cloakroom");
    machine.run("faketime -f -100d cloakroom ca init --dir /root/cloakroom-root");
    machine.install(lab, &config);
    machine.run("cd /etc/cloakroom; chmod 0644 vault-ca.pem; chown cloakroom vault-secret-id");
    machine.drop_in("WatchdogSec=3");
    machine.run("systemctl start cloakroom");
}

/// Checks that the last value is used, and that its remaining time is shown.
fn of_a_sealed_vault(machine: &Machine, vault: &Vault) {
    vault.seal();
    assert_told(machine, "degraded: research has an old value", 200);
    let seconds = || {
        let line = machine.property("StatusText");
        assert!(!line.contains("old value") || line.contains("ealed"), "{line}");
        let (told, _) =
            line.split_once("s left)").filter(|_| line.contains(" has an old value "))?;
        told.rsplit_once('(')?.1.parse::<u32>().ok()
    };
    let first = wait::until(AT_ONCE, seconds).expect("a countdown");
    let lower = wait::until(AT_ONCE, || seconds().filter(|it| *it < first));
    assert!(lower.is_some(), "{first} s: {}", machine.property("StatusText"));
    wait::expect("its end", || machine.property("StatusText").contains(" has no value at "));
    assert_eq!(ready(), 200, "what needs no secret is carried");
    vault.unseal();
    assert_healthy(machine);
}

/// Checks that a CA near its end counts down, that one which has ended closes its rule and nothing
/// else, and that the timer's service mends both.
fn of_old_cas(lab: &Lab, machine: &Machine) {
    for (made, line) in [
        ("-75d", "degraded: the issuing CA of openai ends, and its hosts close with it"),
        ("-95d", "degraded: openai has no issuing CA, and its hosts are closed"),
    ] {
        // The clock is set back, so the lives of the other CAs have not begun: they are put back.
        machine.run(&format!(
            "cd /var/lib/cloakroom && cp -a ca /root/kept && rm ca/openai.* /root/kept/openai.* && \
             faketime -f {made} cloakroom ca issue --dir /root/cloakroom-root && \
             cp -a /root/kept/* ca && rm -r /root/kept && systemctl reload cloakroom"
        ));
        assert_told(machine, line, 200);
        let told = machine.property("StatusText");
        assert!(made != "-75d" || told.contains("(14d"), "{told}");
        // Neither prevents the start or closes another rule.
        machine.run("systemctl restart cloakroom");
        assert_told(machine, line, 200);
        let tls = Tls::open(AGENT, ANTHROPIC.port(443), &hello(lab, ANTHROPIC.name));
        let answer = tls.expect("intercepted").ask(MODELS).expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        machine.run("systemctl start cloakroom-ca.service");
        assert_healthy(machine);
    }
}

const MODELS: &str = "GET /v1/models HTTP/1.1\r\nHost: api.anthropic.example\r\n\
    X-Api-Key: ANTHROPIC_API_KEY\r\n\r\n";

#[track_caller]
fn assert_healthy(machine: &Machine) {
    assert_told(machine, "healthy", 200);
    assert!(machine.run("cloakroom status").starts_with("healthy"));
}

/// Checks that the line soon begins so, and that readiness is answered with this status.
#[track_caller]
fn assert_told(machine: &Machine, line: &str, status: u16) {
    let begun = std::time::Instant::now();
    let told = wait::until(LONG, || machine.property("StatusText").starts_with(line).then_some(()));
    let took = begun.elapsed();
    println!("{took:?} to {}", machine.property("StatusText"));
    assert!(told.is_some(), "not {line}: {}", machine.property("StatusText"));
    assert!(took < AT_ONCE, "{line} took {took:?}");
    wait::expect("readiness says the same", || ready() == status);
    assert_eq!(machine.property("ActiveState"), "active");
}

/// Returns the status of an answer at the management address.
fn ready() -> u16 {
    let Ok(mut stream) = GATEWAY.connect(MANAGEMENT.parse().expect("an address")) else { return 0 };
    let request = "GET /ready HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.unwrap_or_else(|| {
        thread::sleep(Duration::from_millis(20));
        0
    })
}

const LONG: Duration = Duration::from_secs(20);
