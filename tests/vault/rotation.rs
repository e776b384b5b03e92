//! A key is replaced in Vault while agents work: no request fails, the new key arrives, and the old
//! one is still hidden from the agents. The agents' actions cost Vault nothing.

use std::{
    collections::HashMap,
    sync::{
        Barrier,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use lab::{
    Lab,
    dns::Dns,
    gateway::{self, ANTHROPIC_SECRET, Gateway, OPENAI_SECRET},
    net::OPENAI,
    origin::Origin,
    sandboxed,
    vault::Vault,
    wait,
};
use serde_json::Value;

use crate::{
    lifecycle::control::tell,
    world::{TICKET, World, get, get_path},
};

const ROTATED: &str = "sk-lab-r0tated-4e1f90b2c7d8a365";

/// So many agents that the others make up for a slow answer to one.
const AGENTS: usize = 16;

/// Pause between requests: 200 a second, of all agents together.
const BETWEEN: Duration = Duration::from_millis(5);

/// The lab's `refresh`.
const REFRESH: Duration = Duration::from_secs(1);

fn start() -> (World, Vault) {
    let lab = Lab::new();
    let origin = Origin::start(&lab);
    let dns = Dns::start();
    let vault = Vault::start(&lab);
    let gateway = Gateway::start(&lab, &vault.config());
    (World { lab, origin, dns, gateway }, vault)
}

/// A refusal by the API is the first sign that a key was replaced. An agent can cause as many
/// refusals as it likes, which cost Vault one read.
#[test]
fn a_key_an_api_refuses_is_read_again_once() {
    sandboxed(|| {
        let lab = Lab::new();
        let (origin, dns) = (Origin::start(&lab), Dns::start());
        let vault = Vault::start(&lab);
        let config = vault.config().vault("refresh", "10m").vault("max_stale", "1h");
        let gateway = Gateway::start(&lab, &config);
        let world = World { lab, origin, dns, gateway };
        let reads = || {
            let of_key = |record: &&Value| {
                record["type"] == "response" && record["request"]["path"] == "kv/data/agents/openai"
            };
            // Counts the gateway's own reads, and not those of the test, which put the key there.
            let read = |record: &&Value| record["request"]["operation"] == "read";
            vault.audit().iter().filter(of_key).filter(read).count()
        };
        let mut agent = world.h1(OPENAI).expect("a handshake");
        let mut ask = |path: &str| {
            let answer = agent.ask(get_path(path, &[TICKET])).expect("an answer");
            (answer.status.as_u16(), world.origin.log().requests().pop().expect("a request"))
        };
        assert_eq!((ask("/v1/models").0, reads()), (200, 1));
        vault.put("openai", ROTATED);
        assert_eq!(
            ask("/v1/models").1.header("authorization"),
            [format!("Bearer {OPENAI_SECRET}")]
        );
        assert_eq!(ask("/status/401").0, 401);
        wait::expect("the new key", || {
            ask("/v1/models").1.header("authorization") == [format!("Bearer {ROTATED}")]
        });
        assert_eq!(reads(), 2);
        // There is one more read after a change, and then none, whatever agents do.
        thread::sleep(Duration::from_secs(6));
        for _ in 0..100 {
            assert_eq!(ask("/status/401").0, 401);
        }
        thread::sleep(Duration::from_secs(1));
        assert_eq!(reads(), 3);
    });
}

#[test]
fn a_rotation_under_load_fails_no_request() {
    sandboxed(|| {
        let (world, vault) = start();
        let (stop, asked, failed) =
            (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        let open = Barrier::new(AGENTS + 1);
        let (rotated, loaded) = thread::scope(|scope| {
            for number in 0..AGENTS {
                let (world, stop, open) = (&world, &stop, &open);
                let (asked, failed) = (&asked, &failed);
                scope.spawn(move || {
                    let mut agent = world.h1(OPENAI).expect("the gateway shows a certificate");
                    open.wait();
                    // By the schedule, even after an answer that came late.
                    let mut next = Instant::now() + BETWEEN * number as u32;
                    while !stop.load(SeqCst) {
                        thread::sleep(next.saturating_duration_since(Instant::now()));
                        next += BETWEEN * AGENTS as u32;
                        let answer = agent.ask(get(&[TICKET]));
                        asked.fetch_add(1, SeqCst);
                        if !answer.is_ok_and(|answer| answer.status == 200) {
                            failed.fetch_add(1, SeqCst);
                        }
                    }
                });
            }
            open.wait();
            let begun = Instant::now();
            thread::sleep(2 * REFRESH);
            vault.put("openai", ROTATED);
            let rotated = Instant::now();
            wait::expect("the new key arrives", || world.origin.log().holds(ROTATED));
            let took = rotated.elapsed();
            thread::sleep(2 * REFRESH);
            let loaded = (asked.load(SeqCst), begun.elapsed());
            stop.store(true, SeqCst);
            (took, loaded)
        });
        // One refresh, some time for the read, and some for a machine with other work.
        assert!(rotated < REFRESH + Duration::from_secs(1), "{rotated:?}");
        assert_eq!(failed.load(SeqCst), 0, "of {} requests", asked.load(SeqCst));
        let rate = loaded.0 as f64 / loaded.1.as_secs_f64();
        println!("{loaded:?}: {rate} requests a second");
        assert!(rate >= 190.0, "only {rate} requests a second");

        let requests = world.origin.log().requests();
        let keys: Vec<String> =
            requests.iter().flat_map(|request| request.header("authorization")).collect();
        let (old, new) = (format!("Bearer {OPENAI_SECRET}"), format!("Bearer {ROTATED}"));
        assert!(keys.iter().all(|key| *key == old || *key == new));
        assert_eq!(keys.last(), Some(&new));

        let told = told_back(&world);
        for secret in [OPENAI_SECRET, ROTATED] {
            assert!(!told.contains(secret), "{told}");
        }
        world.assert_secrets_untold();
        assert!(!world.gateway.stderr().contains(ROTATED));
    });
}

#[test]
fn an_answer_begun_before_a_rotation_is_masked_too() {
    sandboxed(|| {
        let (world, vault) = start();
        let mut agent = world.h1(OPENAI).expect("the gateway shows a certificate");
        let head = get_path("/v1/duplex", &[TICKET, "Transfer-Encoding: chunked"]);
        agent.send(head.replacen("GET", "POST", 1)).expect("sent");
        let mut told_back = |said: &str, word: &str| {
            let said = format!("{said} {word}");
            agent.send(format!("{:x}\r\n{said}\r\n", said.len())).expect("sent");
            let mut told = String::new();
            while !told.contains(word) {
                let part = agent.read_some(4096).expect("it comes at once");
                assert!(!part.is_empty(), "{told}");
                told += &String::from_utf8_lossy(&part);
            }
            told
        };
        let told = told_back(OPENAI_SECRET, "one");
        assert!(!told.contains(OPENAI_SECRET), "{told}");
        vault.put("openai", ROTATED);
        wait::expect("the new key goes out", || {
            world.ask(&get(&[TICKET])).status == 200 && world.origin.log().holds(ROTATED)
        });
        for (secret, word) in [(ROTATED, "two"), (OPENAI_SECRET, "three")] {
            let told = told_back(secret, word);
            assert!(!told.contains(secret) && told.contains("****"), "{told}");
        }
    });
}

#[test]
fn a_key_whose_reference_left_the_policy_stays_masked() {
    sandboxed(|| {
        let world = World::usual();
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        let another = gateway::usual_config()
            .binding("OPENAI_API_KEY", |it| it.set("secret", "file:anthropic"));
        gateway::install(&world.lab, &another);
        tell(&world, &["reload"], 0);
        let told = told_back(&world);
        for secret in [OPENAI_SECRET, ANTHROPIC_SECRET] {
            assert!(!told.contains(secret), "{told}");
        }
    });
}

#[test]
fn twenty_thousand_requests_cost_two_reads_a_refresh() {
    sandboxed(|| {
        let (world, vault) = start();
        let reads = || {
            let mut reads: HashMap<String, usize> = HashMap::new();
            for record in vault.audit() {
                let path = record["request"]["path"].as_str().unwrap_or_default();
                if record["type"] == "request" && path.starts_with("kv/data/agents/") {
                    *reads.entry(path.to_owned()).or_default() += 1;
                }
            }
            reads
        };
        // Without the lab's own writes, and the reads of the start.
        let (before, begun) = (reads(), Instant::now());
        let failed = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..CONNECTIONS {
                scope.spawn(|| {
                    let mut agent = world.h1(OPENAI).expect("the gateway shows a certificate");
                    for _ in 0..REQUESTS / CONNECTIONS {
                        let answer = agent.ask(get(&[TICKET]));
                        if !answer.is_ok_and(|answer| answer.status == 200) {
                            failed.fetch_add(1, SeqCst);
                        }
                    }
                });
            }
        });
        let took = begun.elapsed();
        let (after, refreshes) = (reads(), took.as_secs_f64() / REFRESH.as_secs_f64());
        assert_eq!(failed.load(SeqCst), 0);
        println!("{REQUESTS} requests in {took:?}: {before:?}, then {after:?}");
        for name in ["openai", "anthropic", "git", "ops"] {
            let path = format!("kv/data/agents/{name}");
            let read = after[&path] - before[&path];
            assert!(read > 0, "{name} is read while agents work");
            assert!(read as f64 <= 2.0 * (refreshes + 1.0), "{name}: {read} in {refreshes}");
        }
    });
}

/// Returns an origin's answer that tells the agent every header it received, including the old key.
fn told_back(world: &World) -> String {
    let told = world.ask(&get_path("/v1/echo", &[TICKET, &format!("X-Old: {OPENAI_SECRET}")]));
    assert_eq!(told.status, 200);
    let told = told.text().to_owned();
    assert!(told.contains("x-old") && told.contains("authorization"), "{told}");
    told
}

const REQUESTS: usize = 20_000;
const CONNECTIONS: usize = 100;
