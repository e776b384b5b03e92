//! However many names one group has asked for, and whoever keeps silent about them, another group's
//! resolve.

use std::{
    io::{Read as _, Write as _},
    net::{TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use hickory_proto::{op::ResponseCode, rr::RecordType};
use lab::{
    client::{Hello, client_hello},
    gateway,
    net::{AGENT, AGENT2, CDN},
    sandboxed, wait,
};

use super::client::{anywhere, ask_udp, code, query};
use crate::{dns_over_tls, world::World};

/// Whoever has the names below it says nothing.
const SILENT: &str = "dark.cdn.example";

/// Both groups may reach any name of the CDN, and one agent may connect fast.
fn shared(config: &str) -> String {
    let rule = "groups = [\"research\"]\nhosts = [\"pypi.example\"";
    assert!(config.contains(rule));
    let both = rule.replace("[\"research\"]", "[\"research\", \"operations\"]");
    let limits = "[limits]\nagent_connections = 4096\nagent_new_connections = 10000\n";
    format!("{}\n{limits}", config.replace(rule, &both))
}

/// Opens connections to ever new names in the silent zone and keeps them, as many a second as the
/// gateway could hold lookups of, until it is told to stop.
fn flood(names: &AtomicUsize, stop: &AtomicBool) {
    let mut held: Vec<(Instant, TcpStream)> = Vec::new();
    while !stop.load(Relaxed) {
        held.retain(|(since, _)| since.elapsed() < Duration::from_secs(8));
        for _ in 0..20 {
            let name = format!("n{}.{SILENT}", names.fetch_add(1, Relaxed));
            let hello = client_hello(&Hello::h1(&name));
            let opened = AGENT.connect(CDN.port(443));
            let Ok(mut stream) = opened else { continue };
            if stream.write_all(&hello).is_ok() {
                held.push((Instant::now(), stream));
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// While one group's agent has `enough` names under way that nobody answers, the other group's new
/// names are answered, each of them and soon.
fn assert_the_other_group_resolves(world: &World, enough: usize) {
    world.dns.silence(SILENT);
    let (names, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| flood(&names, &stop));
        wait::expect("a flood", || names.load(Relaxed) > enough);
        let mut unanswered = Vec::new();
        for number in 0..40 {
            let fresh = format!("fresh{number}.cdn.example");
            let begun = Instant::now();
            let answer = ask_udp(AGENT2, anywhere(), &query(&fresh, RecordType::A));
            let told = answer.map(|answer| code(&answer)).ok();
            if told != Some(ResponseCode::NXDomain) || begun.elapsed() > Duration::from_secs(3) {
                unanswered.push((fresh, told, begun.elapsed()));
            }
        }
        stop.store(true, Relaxed);
        assert!(unanswered.is_empty(), "{unanswered:?}");
    });
    assert!(world.dns.asked().iter().any(|question| question.name.ends_with(SILENT)));
}

#[test]
fn names_that_nobody_answers_keep_no_other_groups_names_from_resolving() {
    sandboxed(|| {
        let world = World::with(&shared(&gateway::usual_config()));
        assert_the_other_group_resolves(&world, 1_500);
    });
}

#[test]
fn over_tls_they_do_not_either() {
    sandboxed(|| {
        let world = World::prepared(&shared(&dns_over_tls::over_tls()), |lab, dns| {
            dns.start_tls(&lab.public.issue(dns_over_tls::NAME));
        });
        assert_the_other_group_resolves(&world, 400);
    });
}

/// An agent has 64 lookups and 16 connections at once; what is beyond is dropped, and counted.
#[test]
fn queries_and_connections_beyond_an_agents_share_are_in_the_sum() {
    sandboxed(|| {
        let mut world = World::with(&super::config(10_000));
        world.dns.silence(SILENT);
        let socket = AGENT.enter(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
        for number in 0..64 + 9 {
            let name = format!("n{number}.{SILENT}");
            let query = query(&name, RecordType::A).to_vec().expect("a query");
            AGENT.enter(|| socket.send_to(&query, anywhere())).expect("sent");
        }
        let held: Vec<_> = (0..16 + 4).map(|_| AGENT.connect(anywhere())).collect();
        let closed = |stream: &std::io::Result<TcpStream>| match stream {
            Ok(stream) => {
                stream.set_read_timeout(Some(Duration::from_millis(20))).expect("a socket");
                let read = (&*stream).read(&mut [0]);
                !read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
            }
            Err(_) => true,
        };
        wait::expect("four are closed", || held.iter().filter(|it| closed(it)).count() == 4);
        world.gateway.terminate(Duration::from_secs(10));
        let records = world.gateway.audit.records();
        let sums = records.iter().filter(|it| it["record"] == "dns_summary");
        let ours = sums.filter(|it| it["agent"] == "192.0.2.10");
        let limited: u64 = ours.filter_map(|it| it["limited"].as_u64()).sum();
        assert_eq!(limited, 9 + 4, "{records:#?}");
    });
}
