//! The issuing CAs come from a real Vault: agents that trust its root notice nothing, Vault signs
//! for the names in its policy and for nothing else, and without Vault the hosts are closed.
//!
//! `vault/pki.hcl` is the policy that the gateway itself would print for the rules here.

mod engine;
mod python;

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    thread,
    time::{Duration, Instant},
};

use lab::{
    Lab, World,
    client::{Tls, roots},
    gateway,
    net::{AGENT, ANTHROPIC, Host, OPENAI, OTHER},
    sandboxed,
    vault::Vault,
    wait,
    world::{TICKET, get},
};
use policy_builder::{Config, Table};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use crate::lifecycle::control::{causes, status};
use engine::{Engine, openssl_verify};

/// A world whose issuing CAs a real Vault signs, for 20 s each unless the test says otherwise.
struct Signed {
    world: World,
    engine: Engine,
    ttl: &'static str,
}

impl Signed {
    fn start() -> Self {
        Self::prepared(TWO_HOSTS, |_| {})
    }

    /// Starts one with these hosts of the first API, after changes to Vault.
    fn prepared(hosts: &[&str], prepare: impl FnOnce(&mut Engine)) -> Self {
        Self::lasting("20s", hosts, prepare)
    }

    /// Starts one where the gateway asks for this life of its CAs.
    fn lasting(ttl: &'static str, hosts: &[&str], prepare: impl FnOnce(&mut Engine)) -> Self {
        let builder = World::builder().log("debug");
        let mut engine = Engine::start(&builder.lab);
        prepare(&mut engine);
        gateway::guard();
        let lab = &builder.lab;
        let config = gateway::install(lab, &config(lab, &engine.vault, hosts, ttl));
        lab.write("agents.pem", [engine.root.as_str(), lab.public.pem()].concat());
        Self { world: builder.run(&config), engine, ttl }
    }

    /// Reloads a new policy with these hosts.
    fn reload(&self, hosts: &[&str]) {
        let config = config(&self.world.lab, &self.engine.vault, hosts, self.ttl);
        gateway::install(&self.world.lab, &config);
        self.world.gateway.reload();
    }

    fn is_open(&self, host: Host) -> bool {
        self.world.h1(host).is_ok()
    }

    /// Returns the chain that the gateway shows for the first API.
    #[track_caller]
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        let shown = self.world.h1(OPENAI).map(|tls| tls.chain());
        shown.unwrap_or_else(|error| panic!("{error}:\n{}", self.world.gateway.stderr()))
    }

    /// Asserts that neither a key nor a token nor a value is in the log, at the level debug, or in
    /// the audit.
    #[track_caller]
    fn assert_untold(&self) {
        let log = self.world.gateway.stderr();
        assert!(log.contains("DEBUG"), "the log is at the level debug: {log}");
        let told = log + &self.world.gateway.audit.text();
        let line = told.lines().find(|line| line.contains("PRIVATE KEY") || line.contains("hvs."));
        assert_eq!(line, None);
        self.world.assert_secrets_untold();
    }

    /// Waits for the record of a connection that was refused because a CA is missing, with this
    /// cause.
    #[track_caller]
    fn refused_because(&self, host: Host, cause: &str) {
        let error = self.world.h1(host).err().expect("there is no CA");
        assert!(error.to_string().contains("InternalError"), "a TLS alert: {error}");
        self.world.gateway.audit.wait_for(|record| {
            record.is("connection")
                && record["reason"] == "secret_unavailable"
                && record["cause"] == cause
                && record["sni"] == host.name
        });
    }
}

fn config(lab: &Lab, vault: &Vault, hosts: &[&str], ttl: &str) -> Config {
    let pki = Table::section("pki")
        .set("root_file", lab.dir.join("pki-root.pem").display().to_string())
        .set("ttl", ttl);
    let config = vault.config().without_gateway("ca_dir").below_vault(pki);
    config.api("openai", |it| it.set("hosts", hosts))
}

#[test]
fn leaves_chain_to_vaults_root_for_strict_clients() {
    python::announce();
    sandboxed(|| {
        let it = Signed::start();
        let answer = it.world.ask(&get(&[TICKET]));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let chain = it.chain();
        assert_eq!(chain.len(), 2, "leaf and issuing CA; agents have the root");
        assert_eq!(openssl_verify(&it.world.lab, &it.engine.root, &chain), Ok(()));
        let strict = python::get(&it.world.lab, OPENAI);
        assert!(strict.contains("OK"), "{strict}");
        println!("{strict}");
        assert!(!it.world.lab.dir.join("issuing").exists(), "no key on disk");
        it.assert_untold();
    });
}

#[test]
fn a_ca_signed_by_vault_is_for_its_names_alone() {
    sandboxed(|| {
        let lab = Lab::new();
        let engine = Engine::start(&lab);
        let ca = engine.issuing("Cloakroom openai", OPENAI_NAMES);
        for (name, good) in [
            (OPENAI.name, true),
            (OTHER.name, true),
            ("attacker.example", false),
            ("openai.example", false),
            ("xapi.openai.example", false),
            ("198.51.100.10", false),
            ("2001:db8:c::1", false),
        ] {
            let leaf = ca.leaf(name);
            let openssl = openssl_verify(&lab, &engine.root, &leaf.chain);
            assert_eq!(openssl.is_ok(), good, "{name}: {openssl:?}");
            let python = python::handshake(&lab, &engine.root, name, &leaf);
            assert_eq!(python.contains("OK"), good, "{name}: {python}");
            if !good {
                let said = openssl.unwrap_err() + &python;
                assert!(said.matches("subtree violation").count() == 2, "{name}: {said}");
            }
        }
    });
}

#[test]
fn rotation_under_load_fails_no_handshake() {
    sandboxed(|| {
        let it = Signed::start();
        let (done, begun) = (AtomicBool::new(false), Instant::now());
        let (handshakes, rotated_twice) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let hello = it.world.hello(OPENAI.name);
        roots(&it.engine.root).expect("a root");
        let agent = || {
            let mut shown: Vec<(Duration, CertificateDer<'static>)> = Vec::new();
            let mut count = 0;
            while !done.load(SeqCst) {
                let mut tls = Tls::open(AGENT, OPENAI.port(443), &hello)
                    .unwrap_or_else(|error| panic!("after {:?}: {error}", begun.elapsed()));
                let issuing = tls.chain().swap_remove(1);
                let answer = tls.ask(get(&[TICKET])).expect("an answer");
                assert_eq!(answer.status, 200, "{}", answer.text());
                if shown.last().is_none_or(|(_, last)| *last != issuing) {
                    shown.push((begun.elapsed(), issuing));
                    rotated_twice.fetch_add(usize::from(shown.len() == 3), SeqCst);
                }
                count += 1;
                handshakes.fetch_add(1, SeqCst);
                // All of them are one agent, which may open 250 connections a second.
                thread::sleep(Duration::from_millis(25));
            }
            (count, shown)
        };
        let seen = thread::scope(|scope| {
            let agents = [(); 4].map(|()| scope.spawn(agent));
            let is_seen = || rotated_twice.load(SeqCst) == 4 && handshakes.load(SeqCst) >= 500;
            wait::until(Duration::from_secs(27), || is_seen().then_some(()));
            // The last rotation is under load, too.
            thread::sleep(Duration::from_secs(1));
            done.store(true, SeqCst);
            agents.map(|agent| agent.join().expect("no handshake failed"))
        });
        for (count, shown) in &seen {
            let times: Vec<_> = shown.iter().map(|(when, _)| *when).collect();
            println!("{count} handshakes, new issuing CAs at {times:?}");
            assert!(shown.len() >= 3, "two rotations in 27 s: {times:?}");
            // The first was signed before anybody asked for it.
            let ages = times.windows(2).map(|pair| pair[1] - pair[0]);
            assert!(
                ages.clone().all(|age| age < LIFE * 2 / 3),
                "before a third is left: {times:?}"
            );
            let mut serials: Vec<_> = shown.iter().map(|(_, ca)| engine::serial(ca)).collect();
            serials.sort();
            serials.dedup();
            assert_eq!(serials.len(), shown.len(), "each is another");
        }
        let handshakes = handshakes.into_inner();
        assert!(handshakes >= 500, "{handshakes} handshakes are no load");
        let issued = it.world.gateway.stderr().matches("Vault signed a new issuing CA").count();
        assert!(issued <= 3 * 4, "three rules, each replaced at half its life: {issued}");
        it.assert_untold();
    });
}

#[test]
fn with_the_gateways_token_vault_signs_nothing_else() {
    sandboxed(|| {
        let lab = Lab::new();
        let engine = Engine::start(&lab);
        let good = engine.question("Cloakroom openai", OPENAI_NAMES);
        assert!(engine.sign(&good).is_ok(), "what the gateway asks for");
        let names = "permitted_dns_domains";
        let absent = Value::Null;
        let others = [
            (names, json!(["attacker.example"])),
            (names, json!(["api.openai.example", "other.example", "attacker.example"])),
            (names, json!(["api.openai.example"])),
            (names, json!(["api.anthropic.example", "git.example"])),
            (names, json!(["other.example", "api.openai.example"])),
            (names, json!("api.anthropic.example,git.example")),
            (names, json!("api.anthropic.example")),
            (names, json!("attacker.example")),
            (names, json!(["git.example,attacker.example"])),
            (names, json!(["example"])),
            (names, json!("*")),
            // No names mean all names.
            (names, json!([])),
            (names, json!("")),
            (names, json!([""])),
            (names, json!(",")),
            (names, absent.clone()),
            ("excluded_ip_ranges", json!("")),
            ("excluded_ip_ranges", json!([])),
            ("excluded_ip_ranges", json!("0.0.0.0/0")),
            ("excluded_ip_ranges", absent.clone()),
            ("max_path_length", json!("1")),
            ("max_path_length", json!(1)),
            ("max_path_length", json!("-1")),
            ("max_path_length", json!("")),
            ("max_path_length", absent),
            ("use_csr_values", json!(true)),
            ("ttl", json!("8760h")),
            ("ttl", json!("")),
            ("not_after", json!("2099-01-01T00:00:00Z")),
            // The engine would make a host name here a name of the certificate itself.
            ("common_name", json!("attacker.example")),
            ("common_name", json!("")),
            ("alt_names", json!("attacker.example")),
            ("PERMITTED_DNS_DOMAINS", json!(["attacker.example"])),
        ];
        for (key, value) in others {
            let mut asked = good.clone();
            match value {
                Value::Null => drop(asked.remove(key)),
                value => drop(asked.insert(key.to_owned(), value)),
            }
            let said = engine.sign(&asked).err().unwrap_or_else(|| panic!("{key}: {asked:?}"));
            assert!(said.contains("permission denied"), "{key}: {said}");
        }
        for path in ["pki/issuer/default/sign-intermediate", "pki/root/sign-self-issued"] {
            let said = engine.sign_at(path, &good).expect_err(path);
            assert!(said.contains("permission denied"), "{path}: {said}");
        }
    });
}

#[test]
fn without_vault_hosts_are_closed_until_it_returns() {
    sandboxed(|| {
        let mut it = Signed::prepared(TWO_HOSTS, |engine| engine.vault.stop());
        it.refused_because(OPENAI, "vault_unreachable");
        it.world.origin.log().assert_untouched();
        let log = it.world.gateway.stderr();
        assert!(
            log.contains("its hosts are closed until there is one: Vault signs another"),
            "{log}"
        );
        let cas = || status(&it.world)["issuing_cas"].take();
        let missing = json!({"rule": "openai", "cause": "vault_unreachable"});
        let told = cas();
        assert!(told["missing"].as_array().is_some_and(|it| it.contains(&missing)), "{told}");
        assert_eq!(told["available"], json!([]), "{told}");
        it.engine.vault.resume();
        wait::expect("the host is open", || it.is_open(OPENAI));
        wait::expect("none is missing", || cas()["missing"] == json!([]));
        let told = cas();
        assert!(told["available"].as_array().is_some_and(|it| it.contains(&json!("openai"))));

        let begun = Instant::now();
        it.engine.vault.stop();
        assert!(it.is_open(OPENAI), "a CA that is there serves on");
        let told = |cause: &str| causes(&it.world, cause).iter().any(|it| it.contains("openai"));
        let mut counts_down = false;
        wait::until(Duration::from_secs(25), || {
            counts_down |= told("ca_ending");
            (!it.is_open(OPENAI)).then_some(())
        })
        .expect("not beyond its end");
        assert!(counts_down && told("ca_missing"), "{}", status(&it.world));
        println!("closed {:?} after Vault had gone", begun.elapsed());
        assert!(begun.elapsed() > Duration::from_secs(5), "as long as it lives");
        it.refused_because(OPENAI, "lease_ended");
        it.engine.vault.resume();
        wait::until(Duration::from_secs(40), || it.is_open(OPENAI).then_some(()))
            .expect("open again");
    });
}

#[test]
fn vault_and_not_the_configuration_decides_for_which_names() {
    sandboxed(|| {
        // The life is in seconds, as the gateway sends it, and so long that no CA is replaced
        // meanwhile.
        let it = Signed::lasting("3600s", ONE_HOST, |engine| engine.sign_for("3600s"));
        // Vault's policy has two names, and the configuration one.
        it.refused_because(OPENAI, "vault_denied");
        wait::expect("other rules are open", || it.is_open(ANTHROPIC));
        let before = it.world.h1(ANTHROPIC).expect("a handshake").chain().swap_remove(1);
        it.reload(TWO_HOSTS);
        wait::expect("the reload is taken", || it.is_open(OPENAI) && it.is_open(OTHER));
        let after = it.world.h1(ANTHROPIC).expect("a handshake").chain().swap_remove(1);
        assert!(before == after, "the rule that stayed has kept its CA");
        it.reload(&["api.openai.example", "other.example", "attacker.example"]);
        wait::expect("closed", || !it.is_open(OPENAI));
        it.refused_because(OPENAI, "vault_denied");
        assert!(it.is_open(ANTHROPIC));
        it.assert_untold();
    });
}

#[test]
fn an_engine_below_a_root_elsewhere_is_as_good() {
    sandboxed(|| {
        let it = Signed::prepared(TWO_HOSTS, Engine::move_below_another_root);
        let chain = it.chain();
        assert_eq!(chain.len(), 3, "leaf, issuing CA and the engine's CA");
        assert_eq!(openssl_verify(&it.world.lab, &it.engine.root, &chain), Ok(()));
        let strict = python::get(&it.world.lab, OPENAI);
        assert!(strict.contains("OK"), "{strict}");
    });
}

/// The life of an issuing CA, unless a test says otherwise.
const LIFE: Duration = Duration::from_secs(20);

const ONE_HOST: &[&str] = &["api.openai.example"];
const TWO_HOSTS: &[&str] = &["other.example", "api.openai.example"];
const OPENAI_NAMES: [&str; 2] = ["api.openai.example", "other.example"];
