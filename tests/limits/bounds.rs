//! Agents that take too much, send too little, stop reading or vanish: each costs a bounded amount
//! for a bounded time, nobody else notices, and nothing is left behind.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use lab::{
    Lab,
    audit::Record,
    client::{self, Tls},
    dns::Dns,
    gateway::{Gateway, usual_config},
    net::{AGENT, AGENT2, OPENAI, PYPI},
    origin::Origin,
    sandboxed, wait,
};
use policy_builder::{Config, inspect};

use crate::faults::{
    CHAT, ask, assert_refused, connections, descriptors, get, hello, open, records, reset,
};

fn limited() -> Config {
    // Plain HTTP to the spliced host lets a test hold both ends of the TCP connection.
    usual_config().splice("pypi", |it| it.set("ports", [443, 80]))
}

#[test]
fn one_agent_cannot_take_the_places_of_another() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let config = limited().limit("connections", 16).limit("agent_connections", 4);
        let gateway = Gateway::start(&lab, &config);
        AGENT.shell(&format!("ip addr add {NEIGHBOUR}/32 dev eth0"));
        let mut held: Vec<Tls> =
            (0..4).map(|_| open(&lab, AGENT, OPENAI).expect("within the limit")).collect();
        for _ in 0..8 {
            open(&lab, AGENT, OPENAI).map(drop).expect_err("one too many");
        }
        for record in connections(&gateway, 8) {
            assert_eq!(record["reason"], "connection_limit", "{record}");
        }
        assert_eq!(origin.log().connections().len(), 4, "what is too many is not dialled");
        let mut other = open(&lab, AGENT2, OPENAI).expect("the other agent is served");
        let request = get("/v1/models").replace("OPENAI_API_KEY", "OPS_OPENAI_KEY");
        assert_eq!(other.ask(request).expect("an answer").status, 200);
        let beside = AGENT.connect_from(NEIGHBOUR.into(), OPENAI.port(443));
        let mut beside = beside.expect("captured");
        let request = get("/v1/models");
        let answer = client::tls_over(&mut beside, &hello(&lab, OPENAI), request.as_bytes());
        assert_eq!(answer.expect("its neighbour in the group has the other half").status, 200);
        for tls in &mut held {
            assert_eq!(tls.ask(CHAT).expect("an answer").status, 200, "those inside are served");
        }
        // Another address of the same host is another agent, with its own share.
        AGENT.connect(OPENAI.port6(443)).expect("captured");
        held.clear();
        drop((other, beside));
        connections(&gateway, 8 + 4 + 3);
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200, "places are given back");
    });
}

#[test]
fn connections_beyond_the_rate_are_reset_and_summed() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let mut gateway = Gateway::start(&lab, &limited().limit("agent_new_connections", 5));
        let baseline = descriptors(&gateway);
        let begun = Instant::now();
        let opened = (0..60).filter(|_| open(&lab, AGENT, OPENAI).is_ok()).count();
        let took = begun.elapsed().as_secs();
        let most = 10 + 5 * (took as usize + 1);
        assert!((10..=most).contains(&opened), "{opened} of at most {most}");
        assert_eq!(origin.log().connections().len(), opened, "the others were not dialled");
        open(&lab, AGENT2, OPENAI).map(drop).expect("the other agent is served");
        // Another family is another agent, as a /64 is one.
        AGENT.connect(OPENAI.port6(443)).expect("captured");
        // There is one record for each ten seconds with refusals, whenever those begin.
        let sums = |gateway: &Gateway| {
            let sums = records(gateway, "connections");
            let refused: u64 = sums.iter().filter_map(|sum| sum["count"].as_u64()).sum();
            (sums, refused)
        };
        let all = 60 - opened as u64;
        wait::expect("the sum of those refused", || sums(&gateway).1 >= all);
        for sum in sums(&gateway).0 {
            assert_eq!(
                [&sum["agent"], &sum["group"], &sum["decision"], &sum["reason"]],
                ["192.0.2.10", "research", "refuse", "rate_limit"]
            );
        }
        connections(&gateway, opened + 2);
        open(&lab, AGENT, OPENAI).map(drop).expect("the rate comes back");
        left_clean(&gateway, baseline);
        gateway.terminate(Duration::from_secs(30));
        let (sums, refused) = sums(&gateway);
        assert_eq!(refused, all, "each counts once: {}", gateway.audit.text());
        assert!(sums.len() as u64 <= 2 + took / 10, "{sums:#?}");
    });
}

#[test]
fn requests_beyond_the_rate_are_answered_and_summed() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let mut gateway = Gateway::start(&lab, &limited().limit("agent_new_requests", 5));
        let mut tls = open(&lab, AGENT, OPENAI).expect("served");
        let begun = Instant::now();
        // The gateway refuses every third request by itself.
        let bare = get("/v1/models").replace("Authorization: Bearer OPENAI_API_KEY\r\n", "");
        let statuses: Vec<u16> = (0..200)
            .map(|number| {
                let request = if number % 3 == 0 { bare.clone() } else { get("/v1/models") };
                let answer = tls.ask(request).expect("an answer");
                if answer.status == 429 {
                    assert_eq!(answer.reason().as_deref(), Some("rate_limit"));
                }
                answer.status.as_u16()
            })
            .collect();
        let most = 10 + 5 * (begun.elapsed().as_secs() as usize + 1);
        let served = statuses.iter().filter(|status| **status != 429).count();
        assert!((10..=most).contains(&served), "{served} of at most {most}");
        let forwarded = statuses.iter().filter(|status| **status == 200).count();
        assert_eq!(origin.log().requests().len(), forwarded, "the others went nowhere");
        let mut other = open(&lab, AGENT2, OPENAI).expect("the other agent is served");
        let request = get("/v1/models").replace("OPENAI_API_KEY", "OPS_OPENAI_KEY");
        assert_eq!(other.ask(request).expect("an answer").status, 200);
        thread::sleep(Duration::from_secs(1));
        assert_eq!(tls.ask(get("/v1/models")).expect("an answer").status, 200, "it comes back");
        drop((tls, other));
        gateway.terminate(Duration::from_secs(30));
        assert_eq!(records(&gateway, "request").len(), served + 2, "each has one record");
        let sums = records(&gateway, "requests");
        let count: u64 = sums.iter().filter_map(|sum| sum["count"].as_u64()).sum();
        assert_eq!(count, 200 - served as u64, "each counts once: {sums:#?}");
        for sum in &sums {
            let words = [&sum["agent"], &sum["group"], &sum["decision"], &sum["reason"]];
            assert_eq!(words, ["192.0.2.10", "research", "refuse", "rate_limit"]);
        }
    });
}

#[test]
fn names_without_number_cost_no_certificates_without_number() {
    sandboxed(|| {
        let inspected = inspect("looked-at", &["research"], &["*.attacker.example"]);
        let config = usual_config().limit("agent_leaves", 2).with(inspected);
        let lab = Lab::new();
        let _origin = Origin::start(&lab);
        let dns = Dns::start();
        let gateway = Gateway::start(&lab, &config);
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
        let begun = Instant::now();
        let shown = |number: &usize| {
            let name = format!("n{number}.attacker.example");
            dns.set(&name, &[OPENAI.v4().into()]);
            Tls::open(AGENT, OPENAI.port(443), &client::Hello::h1(&name)).is_ok()
        };
        let made = (0..40).filter(shown).count();
        let most = 4 + 2 * (begun.elapsed().as_secs() as usize + 1);
        assert!((3..=most).contains(&made), "{made} of at most {most}");
        let all = connections(&gateway, 41);
        let limited = all.iter().filter(|record| record["reason"] == "rate_limit").count();
        assert_eq!(limited, 40 - made, "{all:#?}");
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200, "what is made stays made");
    });
}

#[test]
fn long_hellos_share_a_bounded_room_of_their_agent() {
    sandboxed(|| {
        let lab = Lab::new();
        let _origin = Origin::start(&lab);
        let _dns = Dns::start();
        let gateway = Gateway::start(&lab, &limited().limit("agent_peeks", "256KiB"));
        // The head of a record and of a ClientHello that never ends.
        let beginning = [&[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3][..], &[0; 8_000]].concat();
        let mut held: Vec<_> = (0..8)
            .map(|_| {
                let mut stream = AGENT.connect(OPENAI.port(443)).expect("captured");
                let _ = stream.write_all(&beginning);
                stream
            })
            .collect();
        for record in connections(&gateway, 4) {
            assert_eq!(record["reason"], "connection_limit", "{record}");
        }
        let mut other = open(&lab, AGENT2, OPENAI).expect("the other agent has its own");
        let request = get("/v1/models").replace("OPENAI_API_KEY", "OPS_OPENAI_KEY");
        assert_eq!(other.ask(request).expect("an answer").status, 200);
        held.clear();
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200, "room comes back");
    });
}

#[test]
fn who_says_too_little_is_ended_in_time() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let gateway =
            Gateway::start(&lab, &limited().limit("peek_time", "1s").limit("head_time", "1s"));
        let baseline = descriptors(&gateway);
        let greeting = client::client_hello(&hello(&lab, OPENAI));
        let dribble: Vec<u8> = greeting.iter().copied().take(60).collect();
        let in_time = |what: &str, begun: Instant| {
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(4), "{what}: {took:?}");
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                let begun = Instant::now();
                let mut silent = AGENT.connect(OPENAI.port(443)).expect("captured");
                drained(&mut silent);
                in_time("silence", begun);
            });
            scope.spawn(|| {
                let begun = Instant::now();
                let mut slow = AGENT.connect(OPENAI.port6(443)).expect("captured");
                // No byte extends the deadline.
                for byte in dribble {
                    if slow.write_all(&[byte]).is_err() {
                        break;
                    }
                    thread::sleep(Duration::from_millis(50));
                }
                in_time("a dribbled hello", begun);
            });
            scope.spawn(|| {
                let begun = Instant::now();
                let mut half = AGENT.connect(OPENAI.port(443)).expect("captured");
                half.write_all(&greeting).expect("sent");
                drained(&mut half);
                in_time("half a handshake", begun);
            });
            scope.spawn(|| {
                let mut tls = open(&lab, AGENT, OPENAI).expect("a handshake");
                let begun = Instant::now();
                for byte in b"POST /v1/chat/completions HTTP/1.1\r\nHost: api.openai.example\r\n" {
                    if tls.send([*byte]).is_err() {
                        break;
                    }
                    thread::sleep(Duration::from_millis(50));
                    if begun.elapsed() > Duration::from_millis(1_500) {
                        break;
                    }
                }
                let answer = tls.response().expect("a last word");
                assert_refused(&answer, 408, "http_timeout");
                in_time("a dribbled head", begun);
            });
            scope.spawn(|| {
                let mut plain = AGENT.connect(PYPI.port(80)).expect("captured");
                let begun = Instant::now();
                plain.write_all(b"GET / HTTP/1.1\r\nHost: pypi.exa").expect("sent");
                drained(&mut plain);
                in_time("half a plain head", begun);
            });
        });
        let all = connections(&gateway, 5);
        let said: Vec<_> = all.iter().filter_map(|record| record["reason"].as_str()).collect();
        for (reason, times) in [("peek_timeout", 3), ("http_timeout", 1)] {
            assert_eq!(said.iter().filter(|word| **word == reason).count(), times, "{all:#?}");
        }
        origin.log().assert_no_request();
        origin.log().wait_all_closed();
        left_clean(&gateway, baseline);
    });
}

/// Reads to the end or to the reset, whichever comes first.
fn drained(stream: &mut TcpStream) {
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn who_stops_reading_costs_little_and_not_for_ever() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let gateway =
            Gateway::start(&lab, &limited().limit("idle_time", "10s").limit("head_time", "1s"));
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
        let before = memory_kib(&gateway);
        let baseline = settled(&gateway);
        let mut stuck = Vec::new();
        for _ in 0..4 {
            let mut tls = open(&lab, AGENT, OPENAI).expect("a handshake");
            tls.send(get("/big?bytes=500000000")).expect("sent");
            stuck.push(tls);
            let mut tls = open(&lab, AGENT, PYPI).expect("spliced");
            tls.send("GET /big?bytes=500000000 HTTP/1.1\r\nHost: pypi.example\r\n\r\n")
                .expect("sent");
            stuck.push(tls);
        }
        // An upstream that answers too late, and an agent that never asks.
        let mut hanging = open(&lab, AGENT, OPENAI).expect("a handshake");
        hanging.send(get("/slow?ms=30000")).expect("sent");
        stuck.push(hanging);
        stuck.push(open(&lab, AGENT, OPENAI).expect("a handshake"));
        thread::sleep(Duration::from_secs(1));
        let grown = memory_kib(&gateway).saturating_sub(before);
        println!("{grown} KiB for ten connections that stand still");
        assert!(grown < 24 * 1024, "{grown} KiB are held for eight that do not read");
        let begun = Instant::now();
        assert_eq!(ask(&lab, &gateway, CHAT).status, 200);
        assert!(begun.elapsed() < Duration::from_secs(3), "others wait: {:?}", begun.elapsed());
        // Checked once in each idle time, so they end within twice that time.
        let all_ended = || records(&gateway, "connection").len() == 12;
        assert!(
            wait::until(Duration::from_secs(30), || all_ended().then_some(())).is_some(),
            "{}",
            gateway.audit.text()
        );
        let idle = |record: &&Record| record["end"] == "idle";
        let ended = records(&gateway, "connection");
        assert_eq!(ended.iter().filter(idle).count(), 10, "{ended:#?}");
        origin.log().wait_all_closed();
        assert!(descriptors(&gateway) <= baseline + POOLED, "{}", descriptors(&gateway));
        // The kernel holds nothing either, though the agents are still there.
        left_clean(&gateway, baseline);
        drop(stuck);
    });
}

#[test]
fn half_closers_and_resetters_leave_nothing_behind() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let gateway = Gateway::start(
            &lab,
            &limited().limit("head_time", "5s").limit("agent_buffers", "1MiB"),
        );
        let baseline = descriptors(&gateway);
        let request = "GET /big?bytes=3000000 HTTP/1.1\r\nHost: pypi.example\r\n\
            Connection: close\r\n\r\n";
        for round in 0..12 {
            // This agent sends all it has to send, closes its half, and gets every byte of the
            // answer.
            let mut half = AGENT.connect(PYPI.port(80)).expect("captured");
            half.write_all(request.as_bytes()).expect("sent");
            half.shutdown(Shutdown::Write).expect("a socket");
            let mut answer = Vec::new();
            half.read_to_end(&mut answer).expect("the whole answer");
            let body = answer.len() - head_length(&answer);
            assert_eq!(body, 3_000_000, "round {round}: bytes were lost");

            let mut plain = AGENT.connect(PYPI.port6(80)).expect("captured");
            plain.write_all(request.replace("3000000", "50000000").as_bytes()).expect("sent");
            plain.read_exact(&mut [0; 1000]).expect("a beginning");
            reset(plain);

            let mut tls = open(&lab, AGENT, OPENAI).expect("a handshake");
            tls.send(get("/big?bytes=50000000")).expect("sent");
            tls.read_some(100).expect("a beginning");
            reset(tls.socket().try_clone().expect("a socket"));

            // This half is closed without a close_notify, in the middle of a stream.
            let mut tls = open(&lab, AGENT2, OPENAI).expect("a handshake");
            let request = get("/sse?n=3&ms=10").replace("OPENAI_API_KEY", "OPS_OPENAI_KEY");
            tls.send(request).expect("sent");
            tls.socket().shutdown(Shutdown::Write).expect("a socket");
            tls.read_to_end();
        }
        // The bytes that were on their way to the agents that left are no longer counted.
        let mut tls = open(&lab, AGENT, OPENAI).expect("a handshake");
        let answer = tls.ask(get("/big?bytes=3000000")).expect("the whole answer");
        assert_eq!(answer.body.len(), 3_000_000);
        drop(tls);
        let all = connections(&gateway, 49);
        let count = |end: &str| all.iter().filter(|record| record["end"] == end).count();
        assert_eq!(count("reset_by_agent"), 12, "{all:#?}");
        assert!(count("closed") >= 12, "{all:#?}");
        origin.log().wait_all_closed();
        left_clean(&gateway, baseline);
    });
}

#[test]
fn an_upstream_that_resets_or_half_closes_leaves_nothing_behind() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let gateway = Gateway::usual(&lab);
        let baseline = descriptors(&gateway);
        for _ in 0..5 {
            let mut tls = open(&lab, AGENT, OPENAI).expect("a handshake");
            tls.ask(get("/cut")).map(drop).expect_err("half of it");
            let mut tls = open(&lab, AGENT, PYPI).expect("spliced");
            tls.ask("GET /cut HTTP/1.1\r\nHost: pypi.example\r\n\r\n")
                .map(drop)
                .expect_err("half of it");
        }
        connections(&gateway, 10);
        origin.log().wait_all_closed();
        left_clean(&gateway, baseline);
    });
}

/// Waits until nothing is open and counts the descriptors.
fn settled(gateway: &Gateway) -> usize {
    let open = || gateway.sockets().iter().any(|state| state == "ESTAB");
    wait::expect("no connection is open", || !open());
    descriptors(gateway)
}

/// Another agent on the first one's wire, in its group.
const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 20);

/// Two ends for each of a few pipes that are kept for the next large transfer.
const POOLED: usize = 16;

/// Checks that no connection is left in any state that a program holds, and every descriptor is
/// back.
#[track_caller]
fn left_clean(gateway: &Gateway, baseline: usize) {
    let held = |state: &String| !["LISTEN", "TIME-WAIT"].contains(&state.as_str());
    let clean = || !gateway.sockets().iter().any(held) && descriptors(gateway) <= baseline + POOLED;
    let left = || {
        format!("{:?}, {} descriptors, {baseline} before", gateway.sockets(), descriptors(gateway))
    };
    assert!(wait::until(wait::SOON, || clean().then_some(())).is_some(), "left behind: {}", left());
}

fn head_length(answer: &[u8]) -> usize {
    let end = answer.windows(4).position(|at| at == b"\r\n\r\n");
    end.map_or(0, |end| end + 4)
}

fn memory_kib(gateway: &Gateway) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}
