//! A real Vault that is slow, and values that cannot be used: the agent's answer each time.

use std::time::{Duration, Instant};

use lab::{
    Lab,
    audit::Record,
    client::Response,
    dns::Dns,
    gateway::{Gateway, OPENAI_SECRET, OPS_SECRET},
    net::{AGENT, AGENT2, GIT, Host, Ns, OPENAI, VAULT},
    origin::Origin,
    sandboxed,
    slow::Slow,
    vault::Vault,
    wait,
};

use crate::faults::{CHAT, ask, assert_unavailable, open, refusal};

/// Returns the answer to a request with this credential, and the time that it took.
fn timed(lab: &Lab, ns: Ns, host: Host, credential: &str) -> (Response, Duration) {
    let begun = Instant::now();
    let request = format!(
        "GET /v1/models HTTP/1.1\r\nHost: {}\r\nAuthorization: {credential}\r\n\r\n",
        host.name
    );
    let answer = open(lab, ns, host).and_then(|mut tls| tls.ask(request));
    (answer.expect("an answer"), begun.elapsed())
}

#[test]
fn a_vault_that_takes_half_a_minute_slows_nobody_down() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let vault = Vault::start(&lab);
        let relay = Slow::start((VAULT, 8300).into(), (VAULT, 8200).into());
        let config = vault
            .config()
            .vault("address", format!("https://{VAULT}:8300"))
            .binding("GIT_TOKEN", |it| it.set("secret", "file:git"))
            .secrets("file", "{dir}/secrets.toml");
        let gateway = Gateway::start(&lab, &config);
        // "agent:GIT_TOKEN"
        let of_file = || timed(&lab, AGENT, GIT, "Basic YWdlbnQ6R0lUX1RPS0VO");
        let of_vault = || timed(&lab, AGENT, OPENAI, "Bearer OPENAI_API_KEY");
        let of_others = || timed(&lab, AGENT2, OPENAI, "Bearer OPS_OPENAI_KEY");
        for (answer, _) in [of_file(), of_vault(), of_others()] {
            assert_eq!(answer.status, 200, "{}", answer.text());
        }

        relay.answers_after(Duration::from_secs(30));
        let (begun, mut longest) = (Instant::now(), Duration::ZERO);
        let mut closed: Option<Duration> = None;
        // The first slow request to Vault is given up after ten seconds.
        while begun.elapsed() < Duration::from_secs(15) {
            // An agent may open 250 connections a second.
            std::thread::sleep(Duration::from_millis(20));
            let (answer, took) = of_file();
            assert_eq!(answer.status, 200, "a file is no part of Vault");
            longest = longest.max(took);
            for (answer, took) in [of_vault(), of_others()] {
                longest = longest.max(took);
                if answer.status != 200 {
                    assert_unavailable(&answer);
                    closed.get_or_insert(begun.elapsed());
                }
            }
        }
        let closed = closed.expect("what Vault has ends after max_stale");
        println!("closed after {closed:?}, the longest answer took {longest:?}");
        assert!(closed > Duration::from_secs(2), "max_stale is five seconds: {closed:?}");
        assert!(longest < Duration::from_secs(2), "{longest:?}");
        for (answer, _) in [of_vault(), of_others()] {
            assert_unavailable(&answer);
        }
        // Until the first request is given up, nothing more is known than that the time is over.
        let first = refusal(&gateway, 0, "secret_unavailable");
        let cause = first["cause"].as_str().unwrap_or_default();
        assert!(["vault_unreachable", "lease_ended"].contains(&cause), "{first}");
        let unreachable = |record: &Record| record["cause"] == "vault_unreachable";
        wait::until(Duration::from_secs(30), || {
            let (answer, _) = of_vault();
            assert_unavailable(&answer);
            gateway.audit.records().iter().any(unreachable).then_some(())
        })
        .expect("the question is given up, and the cause is known");
        let told = gateway.stderr();
        assert!(told.contains("Vault did not answer in time"), "{told}");

        relay.answers_after(Duration::ZERO);
        let begun = Instant::now();
        // A request that is under way is waited for, and the next one for its back-off.
        wait::until(Duration::from_secs(30), || {
            let open = [of_vault(), of_others()].iter().all(|(answer, _)| answer.status == 200);
            open.then_some(())
        })
        .expect("both are open again");
        println!("open again after {:?}", begun.elapsed());
        for secret in [OPENAI_SECRET, OPS_SECRET] {
            assert!(origin.log().holds(secret) && !gateway.stderr().contains(secret));
        }
    });
}

#[test]
fn short_or_broken_values_are_unused_and_line_ends_dropped() {
    const SHORT: &str = "8-bytes!";
    const NEXT: &str = "sk-lab-n3xt-6b1e8d40f7a2c953";
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let vault = Vault::start(&lab);
        let config = vault.config().binding("OPS_OPENAI_KEY", |it| it.set("min_value_bytes", 8));
        let gateway = Gateway::start(&lab, &config);
        let of_others = || timed(&lab, AGENT2, OPENAI, "Bearer OPS_OPENAI_KEY").0;
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
        for (number, value) in [
            "sk-lab-0penai-b7f3\r\nX-Admin: 1",
            "sk-lab-0penai-b7f3c1d95e8a4426\r\n\r\n",
            "sk-lab-0penai\nb7f3c1d95e8a4426",
            "sk-lab-0penai-b7f3c1d95e8a4426\u{1}",
            SHORT,
            "",
        ]
        .into_iter()
        .enumerate()
        {
            vault.put("openai", value);
            wait::expect(value, || ask(&lab, &gateway, CHAT).status == 503);
            let before = origin.log().requests().len();
            let (count, answer) =
                (crate::faults::records(&gateway, "request").len(), ask(&lab, &gateway, CHAT));
            assert_unavailable(&answer);
            assert_eq!(origin.log().requests().len(), before, "{value:?}");
            wait::expect("its record", || {
                crate::faults::records(&gateway, "request").len() > count
            });
            let records = crate::faults::records(&gateway, "request");
            assert_eq!(records[count]["cause"], "value_invalid", "{number}: {}", records[count]);
            // An editor leaves one line end after a value.
            vault.put("openai", &format!("{NEXT}-{number}\n"));
            wait::expect("open again", || ask(&lab, &gateway, CHAT).status == 200);
            let last = origin.log().requests().pop().expect("a request");
            assert_eq!(last.header("authorization"), [format!("Bearer {NEXT}-{number}")]);
        }
        assert!(!origin.log().holds("X-Admin"));

        // An equally short value, where the policy allows it.
        vault.put("ops", SHORT);
        wait::expect("the short value", || {
            assert_eq!(of_others().status, 200);
            origin.log().holds(&format!("Bearer {SHORT}"))
        });
        vault.put("ops", &SHORT[1..]);
        wait::expect("shorter than that", || of_others().status == 503);
        assert_unavailable(&of_others());
        let told = gateway.stderr() + &gateway.audit.text();
        for secret in [SHORT, NEXT, OPENAI_SECRET, "X-Admin"] {
            assert!(!told.contains(secret), "{secret} was told:\n{told}");
        }
    });
}
