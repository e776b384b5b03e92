//! The router image, booted under emulation with the lab around it: agents behind two VLANs, the API and
//! the resolver on its uplink. `make test-image` runs it; it needs root.

mod router;
mod update;

use std::{fs, thread};

use lab::{
    Lab,
    client::{Hello, Tls},
    dns::Dns,
    gateway::{self, OPENAI_SECRET},
    net::{AGENT, ATTACKER, INTERNET, OPENAI, PYPI, VAULT},
    origin::Origin,
    sandbox, wait,
};

use router::{BOOT, Disk, Router, files, plug};

const CHAT: &str = "POST /v1/chat HTTP/1.1\r\nHost: api.openai.example\r\n\
    Authorization: Bearer OPENAI_API_KEY\r\nContent-Length: 0\r\n\r\n";

/// The usual policy with the defaults of the reference for all folders.
fn config() -> String {
    shipped(&gateway::usual_config())
}

/// This configuration with those defaults.
fn shipped(config: &str) -> String {
    let usual = config.replace("{dir}/", "");
    let own = ["audit = ", "ca_dir = ", "state_dir = ", "control = "];
    let lines = usual.lines().filter(|line| !own.iter().any(|key| line.starts_with(key)));
    lines.map(|line| format!("{line}\n")).collect()
}

fn hello(lab: &Lab, router: &Router, name: &str) -> Hello {
    let root = router.run("cat /var/lib/cloakroom-root/ca/root.pem");
    let pem = [root, lab.public.pem().to_owned()].concat();
    fs::write(lab.dir.join("agents.pem"), &pem).expect("writable");
    Hello::h1(name).trusting(&pem)
}

#[test]
fn the_image_is_the_gateway_of_two_vlans_from_power_on_to_power_off() {
    sandbox::sandboxed_for(3 * BOOT, || {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let _switch = plug(&lab);
        let wan = lab.capture(INTERNET);
        let disk = Disk::new(&lab);
        disk.configure(&files(&lab, &config()));
        let begun = std::time::Instant::now();
        let router = disk.boot();
        router.wait_ready();
        println!("ready after {:?}", begun.elapsed());

        let hello = hello(&lab, &router, OPENAI.name);
        // Under emulation an address may come seconds after the daemon, and a handshake takes one.
        let mut tls = wait::until(BOOT, || Tls::open(AGENT, OPENAI.port(443), &hello).ok())
            .expect("intercepted");
        let answer = tls.ask(CHAT).expect("an answer");
        assert_eq!(answer.status, 200, "{}", answer.text());
        let requests = origin.log().requests();
        assert_eq!(requests[0].header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);

        // Let through, and refused.
        let public = Hello::h1(PYPI.name).trusting(lab.public.pem());
        wait::until(BOOT, || Tls::open(AGENT, PYPI.port(443), &public).ok()).expect("spliced");
        let attacker = Hello::h1(ATTACKER.name).trusting(lab.public.pem());
        assert!(Tls::open(AGENT, ATTACKER.port(443), &attacker).is_err());

        // The guard was there before any link was up.
        let journal = router.run("journalctl --no-pager -b -o short-monotonic");
        let at = |text: &str| journal.lines().position(|line| line.contains(text));
        let guard = at("Finished cloakroom-guard.service").expect("it is in the journal");
        let link = at("Gained carrier").or_else(|| at("Link UP")).expect("it is in the journal");
        assert!(guard < link, "{journal}");

        // Killed: nothing gets out.
        router.run("systemctl kill --signal=KILL cloakroom; systemctl stop cloakroom");
        let before = origin.log().connections().len();
        assert!(Tls::open(AGENT, PYPI.port(443), &public).is_err());
        thread::sleep(wait::QUIET);
        assert_eq!(origin.log().connections().len(), before);
        router.cut();
        // Of what crossed the uplink nothing had an agent's address.
        for packet in wan.packets() {
            let agents: [&[u8]; 2] = [&[192, 0, 2, 10], &[192, 0, 2, 140]];
            let carried = packet.get(26..30).filter(|_| packet.get(12..14) == Some(&[8, 0]));
            assert!(!agents.contains(&carried.unwrap_or_default()), "{packet:?}");
        }
    });
}

#[test]
fn a_wrong_or_missing_configuration_leaves_it_closed_and_said_on_the_console() {
    sandbox::sandboxed_for(3 * BOOT, || {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let _switch = plug(&lab);
        let disk = Disk::new(&lab);
        let router = disk.boot();
        router.wait_console("no configuration");
        router.cut();

        let wrong = config().replacen("[[group]]", "[[grup]]", 1);
        disk.configure(&files(&lab, &wrong));
        let router = disk.boot();
        router.wait_console("cloakroom.toml:");
        assert!(router.console().contains("grup"), "{}", router.console());
        assert!(Tls::open(AGENT, PYPI.port(443), &Hello::h1(PYPI.name)).is_err());
        assert!(origin.log().connections().is_empty());
    });
}

#[test]
fn a_missing_interface_and_a_vault_out_of_reach_leave_it_closed_and_said_on_the_console() {
    sandbox::sandboxed_for(3 * BOOT, || {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let _switch = plug(&lab);
        // Nothing answers at this address.
        let vault = format!(
            "[vault]\naddress = \"https://{VAULT}:8200\"\nca_file = \"public-ca.pem\"\n\
             [vault.approle]\nrole_id = \"gateway\"\nsecret_id_file = \"secret-id\"\n"
        );
        let third = "\n[[group]]\nname = \"third\"\ninterface = \"agents2\"\n\
            prefixes = [\"198.51.100.0/24\"]\n";
        let config = shipped(&gateway::vault_config(&vault)) + third;
        let mut given = files(&lab, &config);
        given.push(("secret-id".into(), "0b8ef6f1-35ac-4a0c-8c1c-6d1d1a0c1a55\n".into()));
        let disk = Disk::new(&lab);
        disk.configure(&given);
        let router = disk.boot();
        router.wait_console("interface agents2 of an agent group does not exist");
        router.wait_console("closed: the gateway does not run");
        let public = Hello::h1(PYPI.name).trusting(lab.public.pem());
        assert!(Tls::open(AGENT, PYPI.port(443), &public).is_err());
        assert!(origin.log().connections().is_empty());

        // The interface comes, and the rest is Vault.
        router.run(
            "ip link add agents2 type dummy && ip addr add 198.51.100.1/24 dev agents2 && \
             ip link set agents2 up",
        );
        router.wait_ready();
        router.wait_console("no connection to Vault");
        let hello = hello(&lab, &router, OPENAI.name);
        let mut tls = wait::until(BOOT, || Tls::open(AGENT, OPENAI.port(443), &hello).ok())
            .expect("intercepted");
        let answer = tls.ask(CHAT).expect("an answer");
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(origin.log().requests().is_empty());
    });
}
