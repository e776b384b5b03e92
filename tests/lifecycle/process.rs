//! The life of the process: it drains, is cut, and takes a new policy as a whole or not at all.

use std::{
    process::ExitStatus,
    thread,
    time::{Duration, Instant},
};

use lab::{
    Lab,
    audit::Record,
    client::{H2, Hello, Tls},
    dns::Dns,
    gateway::{self, ANTHROPIC_SECRET, GIT_SECRET, Gateway, usual_config},
    net::{AGENT, AGENT2, GATEWAY, Host, OPENAI, OTHER, PYPI},
    origin::Origin,
    sandboxed, wait,
};
use policy_builder::{Config, binding};

use crate::faults::{CHAT, ask, connections, get, open};
use crate::world::{World, first_event};

fn signal(gateway: &Gateway, name: &str) {
    GATEWAY.shell(&format!("kill -{name} {}", gateway.pid()));
}

/// Returns the usual policy, with so much time for a drain.
fn draining(time: &str) -> Config {
    usual_config().limit("drain_time", time)
}

/// Starts a stream of events and reads the first.
fn stream(lab: &Lab, events: usize, pause: usize) -> Tls {
    let tls = open(lab, AGENT, OPENAI).expect("a handshake");
    first_event(tls, &get(&format!("/sse?n={events}&ms={pause}")))
}

fn spliced(lab: &Lab) -> Tls {
    let mut tls = open(lab, AGENT, PYPI).expect("spliced");
    let answer = tls.ask("GET /a HTTP/1.1\r\nHost: pypi.example\r\n\r\n").expect("an answer");
    assert_eq!(answer.status, 200);
    tls
}

fn ended(gateway: &mut Gateway, limit: Duration) -> (ExitStatus, Duration) {
    let begun = Instant::now();
    (gateway.terminate(limit), begun.elapsed())
}

#[test]
fn a_drain_lets_an_answer_finish_and_takes_nothing_new() {
    sandboxed(|| {
        let World { lab, origin, dns: _dns, mut gateway } = World::with(&draining("15s"));
        let mut events = stream(&lab, 8, 250);
        let idle = open(&lab, AGENT, OPENAI).expect("a connection between two requests");
        wait::expect("both at the origin", || origin.log().connections().len() == 2);
        signal(&gateway, "TERM");
        wait::expect("new connections are refused", || AGENT.connect(OPENAI.port(443)).is_err());
        AGENT2.connect(OPENAI.port6(443)).map(drop).expect_err("in both families");
        assert!(gateway.is_alive(), "the stream is still under way");
        let rest = String::from_utf8_lossy(&events.read_to_end()).into_owned();
        assert!(rest.contains("event 7") && rest.ends_with("0\r\n\r\n"), "cut: {rest}");
        drop(idle);
        let (status, took) = ended(&mut gateway, Duration::from_secs(10));
        assert!(status.success(), "{status}: {}", gateway.stderr());
        assert!(took < Duration::from_secs(5), "the drain ends with the last flow: {took:?}");
        // A probe that came before the drain began may have a record, too.
        wait::expect("one record for each of the two", || {
            let records = crate::faults::records(&gateway, "connection");
            records.iter().filter(|record| record["decision"] == "intercept").count() == 2
        });
        let record = gateway.audit.wait_for(|record| record["path"] == "/sse");
        assert_eq!(record["complete"], true, "{record}");
        origin.log().clear();
        crate::faults::assert_closed(&origin);
    });
}

#[test]
fn a_drain_lets_an_answer_over_http_2_finish_too() {
    sandboxed(|| {
        let World { lab, origin, dns: _dns, mut gateway } = World::with(&draining("15s"));
        let hello = Hello { alpn: vec![b"h2"], ..crate::faults::hello(&lab, OPENAI) };
        let mut h2 = H2::open(AGENT, OPENAI.port(443), &hello).expect("a handshake");
        let request = http::Request::get("https://api.openai.example/sse?n=8&ms=250")
            .header("authorization", "Bearer OPENAI_API_KEY")
            .body(())
            .expect("a request");
        thread::scope(|scope| {
            let answer = scope.spawn(move || h2.ask(request, ""));
            origin.log().wait_requests(1);
            let (status, _) = ended(&mut gateway, Duration::from_secs(10));
            assert!(status.success(), "{status}: {}", gateway.stderr());
            let answer = answer.join().expect("no panic").expect("the whole answer");
            assert!(answer.text().contains("event 7"), "cut: {}", answer.text());
        });
        assert_eq!(connections(&gateway, 1)[0]["end"], "closed");
    });
}

#[test]
fn a_rebound_placeholder_never_sends_the_old_secret_again() {
    sandboxed(|| {
        let config = usual_config();
        let World { lab, origin, dns: _dns, gateway } = World::with(&config);
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
        let other = config.binding("OPENAI_API_KEY", |it| it.set("secret", "file:git"));
        gateway::install(&lab, &other);
        gateway.reload();
        wait::expect("it says so", || gateway.stderr().contains("reloaded"));
        let before = origin.log().requests().len();
        wait::expect("the other value is there", || match ask(&lab, &gateway, CHAT) {
            answer if answer.status == 200 => true,
            answer => {
                crate::faults::assert_refused(&answer, 503, "secret_unavailable");
                false
            }
        });
        for request in &origin.log().requests()[before..] {
            assert_eq!(request.header("authorization"), [format!("Bearer {GIT_SECRET}")]);
        }
    });
}

#[test]
fn a_drain_ends_at_its_deadline_or_second_signal() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        for (run, (drain_time, twice)) in [("1s", false), ("60s", true)].into_iter().enumerate() {
            let config = draining(drain_time);
            let mut gateway = Gateway::start(&lab, &config);
            let mut events = stream(&lab, 1000, 100);
            let opaque = spliced(&lab);
            if twice {
                signal(&gateway, "TERM");
                wait::expect("it drains", || gateway.stderr().contains("draining"));
            }
            let (status, took) = ended(&mut gateway, Duration::from_secs(10));
            println!("{drain_time}, twice {twice}: ended after {took:?}");
            assert!(status.success(), "{status}: {}", gateway.stderr());
            assert!(took < Duration::from_secs(5), "{took:?}");
            assert!(twice || took > Duration::from_millis(800), "{took:?}");
            let rest = String::from_utf8_lossy(&events.read_to_end()).into_owned();
            assert!(
                !rest.ends_with("0\r\n\r\n"),
                "a cut stream is not passed off as whole: {rest}"
            );
            drop(opaque);
            let records = connections(&gateway, 2 * (run + 1));
            for record in &records[2 * run..] {
                assert_eq!(record["reason"], "shutting_down", "{record}");
            }
            origin.log().clear();
        }
    });
}

#[test]
fn a_new_policy_is_atomic_and_cuts_what_it_forbids() {
    sandboxed(|| {
        let config = usual_config();
        let World { lab, origin, dns: _dns, gateway } = World::with(&config);
        let mut opaque = spliced(&lab);
        let mut kept = open(&lab, AGENT, OPENAI).expect("intercepted");
        assert_eq!(kept.ask(CHAT).expect("an answer").status, 200);
        open(&lab, AGENT, OTHER).map(drop).expect_err("not listed yet");

        let new = config.splice("pypi", |it| it.set("hosts", [OTHER.name]));
        gateway::install(&lab, &new);
        let begun = Instant::now();
        gateway.reload();
        wait::expect("it says so", || gateway.stderr().contains("reloaded"));
        // A cut connection ends with an end or a reset.
        let cut = opaque.read_to_end();
        assert!(cut.is_empty());
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        let record = gateway.audit.wait_reason("policy_revoked");
        assert_eq!(record["sni"], PYPI.name, "{record}");
        open(&lab, AGENT, PYPI).map(drop).expect_err("not listed any more");
        served(&lab, OTHER);
        assert_eq!(kept.ask(CHAT).expect("an answer").status, 200, "what is still allowed lives");

        // An API that loses the group loses its connections, too.
        let less = new.binding("OPENAI_API_KEY", |it| {
            it.set("groups", ["operations"]).set("placeholder", "ANOTHER_OPENAI_KEY")
        });
        gateway::install(&lab, &less);
        gateway.reload();
        wait::expect("the live flow is cut", || kept.ask(CHAT).is_err());
        let revoked =
            |record: &Record| record["reason"] == "policy_revoked" && record["sni"] == OPENAI.name;
        gateway.audit.wait_for(revoked);
        let before = origin.log().requests().len();
        open(&lab, AGENT, OPENAI).map(drop).expect_err("the group has no binding there");
        assert_eq!(origin.log().requests().len(), before);
    });
}

#[test]
fn a_secret_of_a_new_binding_is_masked_at_once() {
    sandboxed(|| {
        let config = usual_config();
        let World { lab, origin: _origin, dns: _dns, gateway } = World::with(&config);
        // This request makes the gateway compile masks for this group and API.
        assert_eq!(ask(&lab, &gateway, &get("/reflect")).status, 200);

        // The secret is not new to the group, because another API has it already.
        let second = binding("research", "SECOND_KEY", &["header x-api-key raw"], "file:anthropic");
        gateway::install(&lab, &config.api("openai", |it| it.with(second)));
        gateway.reload();
        wait::expect("it says so", || gateway.stderr().contains("reloaded"));
        let request = get("/reflect")
            .replace("Authorization: Bearer OPENAI_API_KEY", "X-Api-Key: SECOND_KEY");
        let answer = ask(&lab, &gateway, &request);
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(!answer.text().contains(ANTHROPIC_SECRET), "{}", answer.text());
        assert!(answer.text().contains("****"), "{}", answer.text());
    });
}

fn served(lab: &Lab, host: Host) {
    let mut tls = open(lab, AGENT, host).expect("listed now");
    let request = format!("GET /a HTTP/1.1\r\nHost: {}\r\n\r\n", host.name);
    assert_eq!(tls.ask(request).expect("an answer").status, 200);
}

#[test]
fn a_policy_that_is_wrong_or_fixed_keeps_the_old() {
    sandboxed(|| {
        let config = usual_config();
        let World { lab, origin: _origin, dns: _dns, mut gateway } = World::with(&config);
        let mut opaque = spliced(&lab);
        let broken = config.clone().splice("pypi", |it| it.set("hosts", ["pypi..example"]));
        let broken = broken.to_string();
        let line =
            1 + broken.lines().position(|line| line.contains("pypi..")).expect("it is there");
        let other_port = config.clone().gateway("proxy_port", 15_002);
        let fewer = config.clone().group("operations", |it| it.set("interface", "agents9"));
        let new_api = config.clone().api("git", |it| it.more("hosts", &["git2.example"]));
        for (bad, says) in [
            (broken, format!("cloakroom.toml:{line}:")),
            ("this is not TOML".to_owned(), "cloakroom.toml:1:".to_owned()),
            (other_port.to_string(), "restart".to_owned()),
            (fewer.to_string(), "restart".to_owned()),
            // Its issuing CA is made for the names of the old policy.
            (new_api.to_string(), "ca issue".to_owned()),
        ] {
            let before = gateway.stderr().len();
            gateway::install(&lab, &bad);
            gateway.reload();
            wait::expect(&says, || {
                gateway.stderr().get(before..).unwrap_or_default().contains(&says)
            });
            println!("{}", gateway.stderr().get(before..).unwrap_or_default());
            assert!(gateway.is_alive());
            assert_eq!(ask(&lab, &gateway, CHAT).status, 200, "the old policy serves");
            let again = opaque.ask("GET /b HTTP/1.1\r\nHost: pypi.example\r\n\r\n");
            assert_eq!(again.expect("the flow lives").status, 200);
        }
        gateway::install(&lab, &config);
        let before = gateway.stderr().len();
        gateway.reload();
        wait::expect("a good one is taken again", || {
            gateway.stderr().get(before..).unwrap_or_default().contains("reloaded")
        });
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
    });
}

#[test]
fn reloads_under_traffic_disturb_nobody() {
    sandboxed(|| {
        let World { lab, origin, dns: _dns, gateway } = World::usual();
        let outside = lab.capture(lab::net::INTERNET);
        thread::scope(|scope| {
            let asking = scope.spawn(|| {
                for _ in 0..60 {
                    assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
                }
            });
            while !asking.is_finished() {
                gateway.reload();
                thread::sleep(Duration::from_millis(20));
            }
        });
        assert_eq!(origin.log().wait_requests(60).len(), 60);
        connections(&gateway, 60);
        crate::lifecycle::dead_daemon::assert_no_agent_outside(&outside);
    });
}

#[test]
fn a_connection_in_its_first_bytes_is_cut_too() {
    sandboxed(|| {
        let lab = Lab::new();
        let _origin = Origin::start(&lab);
        let mut gateway = Gateway::start(&lab, &draining("0s").limit("peek_time", "60s"));
        let mut stream = AGENT.connect(OPENAI.port(443)).expect("accepted");
        std::io::Write::write_all(&mut stream, &[0x16]).expect("sent");
        thread::sleep(Duration::from_millis(300));
        let (status, time) = ended(&mut gateway, Duration::from_secs(20));
        assert!(status.success() && time < Duration::from_secs(4), "{status} after {time:?}");
        gateway.audit.wait_reason("shutting_down");
    });
}
