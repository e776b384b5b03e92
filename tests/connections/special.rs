//! Addresses that clouds and the site itself use for their own services: they are never told by DNS
//! and never dialled, by whatever way an agent comes. A listener there would notice.

use std::{
    fs,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    time::{Duration, Instant},
};

use hickory_proto::rr::RecordType;
use lab::{
    client::{Hello, Tls},
    dns::{Answer, TRANSLATORS},
    gateway,
    net::{AGENT, GATEWAY, GIT, INTERNET, OPENAI, PYPI},
    sandboxed, tools, wait,
};
use policy_builder::Config;

use crate::{
    connections::nameless::{Speakers, config, reaches, refused},
    dns::client::{addresses, anywhere, ask},
    lifecycle::control::tell,
    world::{TICKET, World, first_event, get, get_path},
};

/// The addresses that [`site`] closes.
const OURS: [&str; 5] =
    ["198.51.100.200", "198.51.100.255", "2001:db8:ff::9", "203.0.113.7", "2001:db8:f::7"];

/// 10.9.9.9 and 169.254.169.254, as a translator of each length of [`site`] writes them, and those
/// of the addresses above that a translator writes.
const TRANSLATED: [&str; 9] = [
    "3fff:32:a09:909::",
    "2001:db8:640a:909:9::",
    "2001:db8:7048:a09:9:900::",
    "2001:db8:7056:560a:9:909::",
    "2001:db8:7064:6400:a:909:900:0",
    "2001:db8:7096::10.9.9.9",
    "2001:db8:7096::169.254.169.254",
    "2001:db8:7096::198.51.100.200",
    "64:ff9b::10.9.9.9",
];

/// Returns [`config`] of a site that has addresses and translators of its own.
fn site() -> Config {
    let translators = [
        "3fff:32::/32",
        "2001:db8:6400::/40",
        "2001:db8:7048::/48",
        "2001:db8:7056:5600::/56",
        "2001:db8:7064:6400::/64",
        "2001:db8:7096::/96",
    ];
    config()
        .gateway("never_dial", ["198.51.100.192/26", "2001:db8:ff::/48"])
        .gateway("public_addresses", ["203.0.113.7", "2001:db8:f::7"])
        .gateway("nat64_prefixes", translators)
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Returns an address in each prefix that clouds document as their own (the wire server, service
/// endpoints, metadata), row by row of the program's table. A link-local IPv6 address needs its
/// link, so no name leads to it.
fn clouds() -> Vec<String> {
    let table = tools::repository().join("appliance/src/policy/special.rs");
    let table = fs::read_to_string(table).expect("the table");
    let rows: Vec<_> = table.split("\n    cloud(").skip(1).map(inside).collect();
    assert!(rows.len() > 12, "the table is written in another way: {rows:?}");
    let link = |address: &IpAddr| matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    rows.iter().filter(|address| !link(address)).map(IpAddr::to_string).collect()
}

/// Returns an address in the prefix that a row begins with: `v4([161, 26, 0, 0], 16)` or its like.
fn inside(row: &str) -> IpAddr {
    let (maker, rest) = row.split_once("([").expect("a row");
    let (parts, rest) = rest.split_once(']').expect("an address");
    let parts = parts.split(", ").map(|part| match part.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16),
        None => part.parse(),
    });
    let parts: Vec<u16> = parts.collect::<Result<_, _>>().expect("numbers");
    if maker == "v4" {
        let octets: Vec<u8> = parts.into_iter().map(|part| part as u8).collect();
        let first = Ipv4Addr::from(<[u8; 4]>::try_from(octets).expect("four"));
        let one = rest.starts_with(", 32)");
        return Ipv4Addr::from(u32::from(first) + if one { 0 } else { 0x0e02 }).into();
    }
    let mut segments = [0; 8];
    segments[..parts.len()].copy_from_slice(&parts);
    let first = Ipv6Addr::from(segments);
    Ipv6Addr::from(u128::from(first) + if maker == "one_v6" { 0 } else { 0x254 }).into()
}

/// Gives this address to the internet.
fn settle(text: &str) {
    let (length, nodad) = if text.contains(':') { (128, "nodad") } else { (32, "") };
    // A neighbour answers for the addresses of its own link.
    let device = if text.starts_with("2001:db8:f:") { "wan0" } else { "lo" };
    INTERNET.shell(&format!("ip addr add {text}/{length} dev {device} {nodad}"));
}

/// Gives these addresses to a host on the internet that listens on both ports that agents try.
fn traps(texts: &[&str]) -> Vec<TcpListener> {
    let mut traps = Vec::new();
    for text in texts {
        settle(text);
        for port in [443, 22] {
            let listener = INTERNET.enter(|| TcpListener::bind((address(text), port)));
            let listener = listener.unwrap_or_else(|error| panic!("{text}: {error}"));
            listener.set_nonblocking(true).expect("a socket");
            // The trap would notice a connection.
            let to = listener.local_addr().expect("bound");
            GATEWAY.connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
            wait::expect("the trap is reached", || listener.accept().is_ok());
            traps.push(listener);
        }
    }
    traps
}

#[track_caller]
fn assert_untouched(traps: &[TcpListener]) {
    for trap in traps {
        assert!(trap.accept().is_err(), "somebody got to {:?}", trap.local_addr());
    }
}

/// Returns the addresses that the agent is given for the name, in both families.
fn told(name: &str) -> Vec<IpAddr> {
    let kinds = [RecordType::A, RecordType::AAAA];
    kinds.into_iter().flat_map(|kind| addresses(&ask(anywhere(), name, kind))).collect()
}

/// Points a name of each kind there, and shows that each way ends before anything is connected to.
#[track_caller]
fn assert_closed(world: &World, text: &str) {
    let to = address(text);
    for host in [OPENAI, PYPI, GIT] {
        world.dns.set(host.name, &[to]);
        assert_eq!(told(host.name), [] as [IpAddr; 0], "{text} is told for {}", host.name);
    }
    let from = world.connections().len();
    let answer = world.ask(&get(&[TICKET]));
    assert_eq!(answer.reason().as_deref(), Some("private_address"), "intercepted: {text}");
    world.h1(PYPI).map(drop).expect_err("spliced");
    wait::expect("a record of each", || world.connections().len() >= from + 2);
    for record in &world.connections()[from..] {
        assert_eq!(record["reason"], "private_address", "{text}: {record}");
        assert!(!record.has("upstream"), "{text}: {record}");
    }
    refused(AGENT, SocketAddr::new(to, 22));
}

#[test]
fn addresses_of_clouds_and_site_are_neither_told_nor_dialled() {
    sandboxed(|| {
        let world = World::with(&site());
        let clouds = clouds();
        let clouds: Vec<_> = clouds.iter().map(String::as_str).collect();
        let all = [&clouds[..], &OURS, &TRANSLATED].concat();
        let traps = traps(&all);
        for text in all {
            assert_closed(&world, text);
        }
        assert_untouched(&traps);
        world.assert_nothing_forwarded();
        // An address of that form that belongs to nobody is told and dialled, also by [[tcp]].
        let open = ["2001:db8:7096::198.51.100.12", "3fff:32:c633:640c::", "198.51.100.191"];
        open.iter().for_each(|text| settle(text));
        let _speakers = Speakers::start(&open.map(address));
        for text in open {
            world.dns.set(GIT.name, &[address(text)]);
            assert_eq!(told(GIT.name), [address(text)]);
            reaches(AGENT, SocketAddr::new(address(text), 22));
        }
    });
}

#[test]
fn a_wide_private_prefix_opens_no_cloud_service() {
    sandboxed(|| {
        let private =
            |prefixes: &[&str]| config().tcp("ssh", |it| it.set("private_prefixes", prefixes));
        let world = World::with(&private(&["169.254.0.0/16", "fc00::/7", "100.64.0.0/10"]));
        let inside = ["169.254.169.254", "fd00:ec2::254", "100.100.100.200"];
        let traps = traps(&inside);
        for text in inside {
            world.dns.set(GIT.name, &[address(text)]);
            assert!(told(GIT.name).is_empty(), "{text}");
            refused(AGENT, SocketAddr::new(address(text), 22));
        }
        assert_untouched(&traps);
        drop(traps);
        gateway::install(&world.lab, &private(&["169.254.169.254/32"]));
        world.gateway.reload();
        let to = address("169.254.169.254");
        let _speakers = Speakers::start(&[to]);
        world.dns.set(GIT.name, &[to]);
        wait::expect("it is told", || told(GIT.name) == [to]);
        reaches(AGENT, SocketAddr::new(to, 22));
    });
}

#[test]
fn a_reload_cuts_connections_to_addresses_that_it_closes() {
    sandboxed(|| {
        let (world, _speakers) = (World::with(&config()), Speakers::start(&[]));
        assert_eq!(told(GIT.name).len(), 2);
        let mut ssh = reaches(AGENT, GIT.port(22));
        let other = reaches(AGENT, GIT.port6(22));
        let spliced = world.h1(PYPI).expect("spliced");
        let streaming = world.h1(OPENAI).expect("intercepted");
        let streaming = first_event(streaming, &get_path("/sse", &[TICKET]));
        let closed = [GIT, PYPI, OPENAI].map(|host| host.v4().to_string());
        gateway::install(&world.lab, &config().gateway("never_dial", closed));
        let begun = Instant::now();
        world.gateway.reload();
        assert_eq!(ssh.read(&mut [0; 16]).unwrap_or(0), 0, "it was cut");
        assert!(begun.elapsed() < Duration::from_secs(5));
        let revoked =
            || world.connections().iter().filter(|it| it["reason"] == "policy_revoked").count();
        wait::expect("three are cut", || revoked() == 3);
        drop((spliced, streaming));
        // The address given before is no longer good; the name's other address is.
        refused(AGENT, GIT.port(22));
        assert_eq!(told(GIT.name), [IpAddr::from(GIT.v6())]);
        drop(other);
        reaches(AGENT, GIT.port6(22));
        assert_eq!(revoked(), 3, "nobody else was");
    });
}

/// Drops packets that would open a connection to port 443 of the internet, until it is removed.
const HELD: &str = "nft -f - <<'END'
table inet held {
    chain in {
        type filter hook input priority 0;
        tcp dport 443 tcp flags & (syn | ack) == syn counter drop
    }
}
END";

#[test]
fn a_reload_stops_dials_to_addresses_that_it_closes() {
    sandboxed(|| {
        let world = World::with(&config());
        INTERNET.shell(HELD);
        let hello = Hello::h1(PYPI.name).trusting(world.lab.public.pem());
        let dialling =
            std::thread::spawn(move || Tls::open(AGENT, PYPI.port(443), &hello).map(drop));
        wait::expect("the gateway dials", || {
            !INTERNET.shell("nft list table inet held").contains("packets 0 ")
        });
        let closed = [PYPI.v4().to_string(), PYPI.v6().to_string()];
        gateway::install(&world.lab, &config().gateway("never_dial", closed));
        tell(&world, &["reload"], 0);
        INTERNET.shell("nft delete table inet held");
        assert!(dialling.join().expect("it returns").is_err());
        wait::expect("the record says why", || {
            world.connections().iter().any(|it| it["reason"] == "private_address")
        });
    });
}

/// Returns an address below 2001:db8:64::/96 or below fd64::/96, as that network's translator
/// writes it.
fn made_up(prefix: &str, inner: Ipv4Addr) -> IpAddr {
    let prefix: Ipv6Addr = prefix.parse().expect("an address");
    Ipv6Addr::from(u128::from(prefix) | u128::from(u32::from(inner))).into()
}

#[test]
fn made_up_addresses_are_judged_by_their_ipv4_address() {
    sandboxed(|| {
        let shown = [170, 171].map(|last| made_up("2001:db8:64::", Ipv4Addr::new(192, 0, 0, last)));
        let private = made_up("fd64::", Ipv4Addr::new(192, 0, 0, 170));
        let world = World::prepared(&config(), |_, dns| {
            dns.set(TRANSLATORS, &[&shown[..], &[private]].concat());
        });
        world.dns.wait_asked(TRANSLATORS);
        let inside = Ipv4Addr::new(10, 9, 9, 9);
        let closed = [
            made_up("2001:db8:64::", inside),
            made_up("2001:db8:64::", Ipv4Addr::new(168, 63, 129, 16)),
            made_up("2001:db8:64::", Ipv4Addr::new(203, 0, 113, 53)),
            // An attacker who can forge an answer could open a private network with it.
            made_up("fd64::", GIT.v4()),
        ];
        let closed = closed.map(|address| address.to_string());
        let traps = traps(&closed.each_ref().map(String::as_str));
        closed.iter().for_each(|text| assert_closed(&world, text));
        assert_untouched(&traps);
        let log = world.gateway.stderr();
        assert!(log.contains("NAT64") && log.contains("fd64::/96"), "{log}");
        let open = made_up("2001:db8:64::", GIT.v4());
        settle(&open.to_string());
        let _speakers = Speakers::start(&[open]);
        world.dns.set(GIT.name, &[open]);
        assert_eq!(told(GIT.name), [open]);
        reaches(AGENT, SocketAddr::new(open, 22));

        // If the operator states that the prefix is this site's, it counts as such, and the other
        // address is like any.
        drop(traps);
        gateway::install(&world.lab, &config().gateway("nat64_prefixes", ["fd64::/96"]));
        world.gateway.reload();
        let own = made_up("fd64::", GIT.v4());
        world
            .dns
            .set(GIT.name, &[own, made_up("2001:db8:64::", inside), made_up("fd64::", inside)]);
        let open = [own, made_up("2001:db8:64::", inside)];
        wait::expect("the stated one counts", || told(GIT.name) == open);
    });
}

#[test]
fn no_ipv6_address_is_used_while_translators_are_unknown() {
    sandboxed(|| {
        let world = World::prepared(&config(), |_, dns| dns.script(TRANSLATORS, Answer::Fails));
        let both = [IpAddr::from(OPENAI.v4()), OPENAI.v6().into()];
        assert_eq!(told(OPENAI.name), both[..1]);
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        world.dns.set(PYPI.name, &[PYPI.v6().into()]);
        let over_v6 = || world.h1_from(AGENT, PYPI.port6(443), PYPI.name).map(drop);
        over_v6().expect_err("nothing that could be judged");
        let log = world.gateway.stderr();
        assert!(log.contains("nat64_prefixes"), "{log}");
        // At last the resolver says that there is none.
        world.dns.set(TRANSLATORS, &[]);
        wait::expect("IPv6 is used", || told(OPENAI.name) == both);
        over_v6().expect("over IPv6");
    });
}
