//! However many names one group has asked for, and whoever keeps silent about them, another group's
//! resolve.

use std::{
    io::Write as _,
    net::TcpStream,
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
