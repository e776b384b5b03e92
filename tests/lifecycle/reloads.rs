//! A reload while agents work: the old policy is in force, with all its values, until the new one
//! is.

use std::{
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    thread,
    time::Duration,
};

use lab::{
    Lab,
    dns::Dns,
    gateway::{self, Gateway, OPENAI_SECRET},
    net::{OPENAI, VAULT},
    origin::Origin,
    sandboxed,
    slow::Slow,
    vault::Vault,
    wait,
};

use crate::{
    lifecycle::control::{status, tell},
    world::{TICKET, World, get},
};

/// The value at the new place of the reference.
const MOVED: &str = "sk-lab-m0ved-7c1e44d09b2fa863";

#[test]
fn a_reference_that_moves_costs_no_answer() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let dns = Dns::start();
        let vault = Vault::start(&lab);
        vault.put("moved", MOVED);
        let relay = Slow::start((VAULT, 8300).into(), (VAULT, 8200).into());
        // Nothing except the reload asks for anything here.
        let config = vault
            .config()
            .vault("address", format!("https://{VAULT}:8300"))
            .vault("refresh", "60s")
            .vault("max_stale", "300s");
        let gateway = Gateway::start(&lab, &config);
        let world = World { lab, origin, dns, gateway };
        let stop = AtomicBool::new(false);
        let refused = thread::scope(|scope| {
            let agent = scope.spawn(|| {
                let mut refused = vec![];
                while !stop.load(SeqCst) {
                    thread::sleep(Duration::from_millis(20));
                    // A connection of the old policy is cut when the new one comes.
                    let answer = world.h1(OPENAI).and_then(|mut tls| tls.ask(get(&[TICKET])));
                    let reason = answer.ok().and_then(|answer| answer.reason());
                    refused.extend(reason);
                }
                refused
            });
            thread::sleep(Duration::from_millis(500));
            relay.answers_after(Duration::from_millis(400));
            let moved = config
                .binding("OPENAI_API_KEY", |it| it.set("secret", "vault:kv/agents/moved#api_key"));
            gateway::install(&world.lab, &moved);
            tell(&world, &["reload"], 0);
            thread::sleep(Duration::from_millis(500));
            stop.store(true, SeqCst);
            agent.join().expect("no panic")
        });
        assert_eq!(refused, [""; 0]);
        let requests = world.origin.log().requests();
        let keys: Vec<_> = requests.iter().flat_map(|it| it.header("authorization")).collect();
        assert!(keys.contains(&format!("Bearer {OPENAI_SECRET}")));
        assert_eq!(keys.last(), Some(&format!("Bearer {MOVED}")));
        world.assert_secrets_untold();
    });
}

#[test]
fn a_ca_the_system_trusts_counts_after_a_reload() {
    sandboxed(|| {
        let trusted = "/etc/ssl/certs/ca-certificates.crt";
        let before = std::fs::read_to_string(trusted).expect("Debian's CAs");
        // This changes this sandbox's own view of the file system.
        let tmpfs = ["-t", "tmpfs", "tmpfs", "/etc/ssl/certs"];
        lab::client::succeed(std::process::Command::new("mount").args(tmpfs));
        std::fs::write(trusted, &before).expect("a file in memory");
        let by_system = gateway::usual_config().each_api(|it| it.without("upstream_ca"));
        let world = World::with(&by_system);
        let answer = world.ask(&get(&[TICKET]));
        assert_eq!(answer.reason().as_deref(), Some("upstream_tls_invalid"), "{}", answer.text());
        let public = std::fs::read_to_string(world.lab.public_ca()).expect("it was made");
        std::fs::write(trusted, [&before, public.as_str()].concat()).expect("a file in memory");
        tell(&world, &["reload"], 0);
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);

        // Once the CA is no longer trusted, upstreams that it verified are left.
        let mut open = world.h1(OPENAI).expect("intercepted");
        assert_eq!(open.ask(get(&[TICKET])).expect("an answer").status, 200);
        std::fs::write(trusted, &before).expect("a file in memory");
        tell(&world, &["reload"], 0);
        wait::expect("it is cut", || {
            world.connections().iter().any(|it| it["reason"] == "policy_revoked")
        });
        assert!(open.ask(get(&[TICKET])).is_err());
        let answer = world.ask(&get(&[TICKET]));
        assert_eq!(answer.reason().as_deref(), Some("upstream_tls_invalid"), "{}", answer.text());
    });
}

/// Landlock: even as root the daemon reads nothing outside of the folders that it named at its
/// start.
#[test]
fn a_file_in_another_folder_takes_a_restart() {
    sandboxed(|| {
        let mut world = World::usual();
        assert_ne!(status(&world)["landlock"], "not");
        std::fs::create_dir("/run/elsewhere").expect("a folder");
        std::fs::copy(world.lab.public_ca(), "/run/elsewhere/ca.pem").expect("a file");
        let moved = gateway::usual_config()
            .api("openai", |it| it.set("upstream_ca", "/run/elsewhere/ca.pem"));
        let path = gateway::install(&world.lab, &moved);
        let told = tell(&world, &["reload"], 64);
        assert!(told.contains("/run/elsewhere (Landlock)") && told.contains("restart"), "{told}");
        assert_eq!(world.ask(&get(&[TICKET])).status, 200, "the old policy serves");
        world.gateway.kill();
        world.gateway = Gateway::run(&world.lab, &path).expect("it starts");
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
    });
}
