//! Names that lead inside, names that do not resolve, and agents that dial the gateway itself: the
//! gateway connects to no address that policy did not mean.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use lab::{
    Lab, World,
    client::{Hello, Tls},
    dns::Answer,
    gateway::{Gateway, usual_config, with_absent_vault},
    net::{
        AGENT, AGENT2, ANTHROPIC, CDN, GATEWAY, GATEWAY_V4, GATEWAY_V6, GIT, HOSTS, Host, INTERNET,
        OPENAI, PYPI, VAULT,
    },
    origin::Origin,
    sandboxed, wait,
};
use policy_builder::Config;

use crate::faults::{CHAT, Trap, assert_refused, connections, descriptors};

/// Every form of an address inside, the gateway's own addresses, and the resolver that it asks.
const INSIDE: [&str; 23] = [
    "127.0.0.1",
    "127.8.9.1",
    "0.0.0.0",
    "10.9.9.9",
    "172.16.0.9",
    "192.168.9.9",
    "100.64.0.9",
    "169.254.169.254",
    "224.0.0.1",
    "255.255.255.255",
    "192.0.2.1",
    "192.0.2.129",
    "203.0.113.2",
    "203.0.113.53",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "fd00::9",
    "2001:db8:a::1",
    "2001:db8:b::1",
    "2001:db8:f::2",
];

/// Returns listeners inside, which would notice a connection.
fn traps() -> [Trap; 2] {
    // These are the addresses to which the lab's routes lead when nothing stops them.
    for line in [
        "ip addr add 10.9.9.9/32 dev lo",
        "ip addr add 172.16.0.9/32 dev lo",
        "ip addr add 192.168.9.9/32 dev lo",
        "ip addr add 100.64.0.9/32 dev lo",
        "ip addr add 169.254.169.254/32 dev lo",
        "ip addr add fd00::9/128 dev lo nodad",
        "ip addr add 64:ff9b::a9fe:a9fe/128 dev lo nodad",
    ] {
        INTERNET.shell(line);
    }
    let outside = [
        "10.9.9.9:443",
        "172.16.0.9:443",
        "192.168.9.9:443",
        "100.64.0.9:443",
        "169.254.169.254:443",
        "203.0.113.53:443",
        "203.0.113.200:443",
        "[fd00::9]:443",
        "[64:ff9b::a9fe:a9fe]:443",
    ];
    let outside = outside.map(|address| address.parse().expect("an address"));
    // The wildcard covers all of the gateway's own addresses, in both families.
    let here = ["[::]:443"].map(|address| address.parse().expect("an address"));
    let own = ["127.0.0.1:443", "[::1]:443", "192.0.2.1:443", "203.0.113.2:443"];
    let own = own.map(|address| address.parse().expect("an address"));
    [
        Trap::set(GATEWAY, &here).prove(GATEWAY, &own),
        Trap::set(INTERNET, &outside).prove(GATEWAY, &outside),
    ]
}

#[test]
fn a_name_that_resolves_inside_is_never_dialled() {
    sandboxed(|| {
        let world = World::usual();
        let traps = traps();
        for (number, inside) in INSIDE.into_iter().enumerate() {
            let address: IpAddr = inside.parse().expect("an address");
            world.dns.set(OPENAI.name, &[address]);
            world.dns.set(PYPI.name, &[address]);
            let answer = world.ask(CHAT);
            assert_eq!(answer.reason().as_deref(), Some("private_address"), "{inside}");
            assert_eq!(answer.status, 502, "{inside}");
            world.open(AGENT, PYPI).map(drop).expect_err("nothing to splice to");
            for record in &connections(&world.gateway, 2 * number + 2)[2 * number..] {
                assert_eq!(record["reason"], "private_address", "{inside}: {record}");
                assert!(!record.has("upstream"), "{inside}: {record}");
            }
        }
        traps.iter().for_each(Trap::assert_untouched);
        world.origin.log().assert_untouched();
    });
}

/// Returns the answers about each name, in turns: a public address after each of those inside, one
/// of which has a public address beside it.
fn turns(host: Host) -> Answer {
    let public = vec![IpAddr::from(host.v4()), host.v6().into()];
    let vault = VAULT.to_string();
    let inside = INSIDE.into_iter().chain([vault.as_str()]);
    let inside = inside.map(|text| text.parse::<IpAddr>().expect("an address"));
    let turns = inside.flat_map(|address| [vec![address], public.clone()]);
    let beside = [&public[..], &["169.254.169.254".parse().expect("an address")]].concat();
    Answer::Alternating(turns.chain([beside]).collect())
}

#[test]
fn a_name_that_changes_its_mind_never_leads_inside() {
    sandboxed(|| {
        let builder = World::builder();
        // One agent asks for all five, faster than its usual rate of connections allows.
        let config = with_a_vault(&builder.lab).limit("agent_new_connections", 100_000);
        let world = builder.start(&config);
        let traps = traps();
        let head = |host: Host, credential: &str| {
            let path = if credential.is_empty() { "/a" } else { "/v1/models" };
            format!("GET {path} HTTP/1.1\r\nHost: {}\r\n{credential}\r\n", host.name)
        };
        let agents = [
            (OPENAI, head(OPENAI, "Authorization: Bearer OPENAI_API_KEY\r\n"), true),
            (ANTHROPIC, head(ANTHROPIC, "X-Api-Key: ANTHROPIC_API_KEY\r\n"), true),
            (GIT, head(GIT, ""), true),
            (PYPI, head(PYPI, ""), false),
            (CDN, head(CDN, ""), false),
        ];
        agents.iter().for_each(|(host, ..)| world.dns.script(host.name, turns(*host)));
        let each = 100;
        let begun = Instant::now();
        let good: usize = thread::scope(|scope| {
            let world = &world;
            let agents = agents.iter().map(|(host, request, intercepted)| {
                let open = move |number: usize| {
                    let to = [host.port(443), host.port6(443)][number % 2];
                    world.h1_from(AGENT, to, host.name)
                };
                let ask = move |number| match open(number).and_then(|mut tls| tls.ask(request)) {
                    Ok(answer) if answer.status == 200 => true,
                    Ok(answer) => {
                        assert_refused(&answer, 502, "private_address");
                        false
                    }
                    // A spliced connection has no peer that could answer.
                    Err(error) => {
                        assert!(!intercepted, "{host:?}: {error}");
                        false
                    }
                };
                scope.spawn(move || (0..each).filter(|number| ask(*number)).count())
            });
            let agents: Vec<_> = agents.collect();
            agents.into_iter().map(|agent| agent.join().expect("an agent's share")).sum()
        });
        let all = each * agents.len();
        println!("{good} of {all} in {:?}", begun.elapsed());
        assert!(good > all / 4 && good < all * 3 / 4, "{good} answered of {all}");
        traps.iter().for_each(Trap::assert_untouched);
        world.origin.log().wait_all_closed();
        assert_eq!(world.origin.log().requests().len(), good);
        let public = agents.map(|(host, ..)| [host.v4().to_string(), host.v6().to_string()]);
        // Over IPv4 and over IPv6.
        let (mut private, mut dialled) = ([0; 2], [0; 2]);
        for record in connections(&world.gateway, all) {
            let family = usize::from(record["dialled"].as_str().is_some_and(|it| it.contains('[')));
            match record["upstream"].as_str() {
                Some(upstream) => {
                    assert!(public.as_flattened().iter().any(|it| it == upstream), "{record}");
                    dialled[family] += 1;
                }
                None => {
                    assert_eq!(record["reason"], "private_address", "{record}");
                    private[family] += 1;
                }
            }
        }
        println!("over IPv4 and IPv6: {dialled:?} answered, {private:?} refused");
        assert_eq!([dialled, private].map(|of| of.iter().sum::<usize>()), [good, all - good]);
        assert!([dialled, private].as_flattened().iter().all(|of| *of > all / 10));
    });
}

/// Returns the usual policy beside a Vault that is known by its name and does not answer.
fn with_a_vault(lab: &Lab) -> Config {
    let everybody = HOSTS.map(|host| (host.name, vec![host.v4().into(), host.v6().into()]));
    let vault = ("vault.example", vec![VAULT.into()]);
    lab.names(&[&everybody[..], &[vault]].concat());
    lab.write("secret-id", "00000000-0000-0000-0000-000000000000\n");
    with_absent_vault(usual_config())
        .vault("address", "https://vault.example:8200")
        .binding("OPS_OPENAI_KEY", |it| it.set("secret", "vault:kv/agents/ops#api_key"))
}

#[test]
fn an_unresolvable_name_is_answered_in_time() {
    sandboxed(|| {
        let world = World::usual();
        let nothing = [
            ("no address", Answer::Addresses(Vec::new())),
            ("fails", Answer::Fails),
            ("silent", Answer::Silent),
        ];
        for (number, (name, answer)) in nothing.into_iter().enumerate() {
            world.dns.script(OPENAI.name, answer);
            let begun = Instant::now();
            // The agent's side of the lab gives up after ten seconds.
            let answer = world.ask(CHAT);
            println!("{name}: {:?}", begun.elapsed());
            assert_refused(&answer, 502, "resolve_failed");
            let record = &connections(&world.gateway, number + 1)[number];
            assert_eq!(record["reason"], "resolve_failed", "{name}: {record}");
        }
        // The name is listed by a suffix, so the gateway asks, and it does not exist.
        let hello = Hello::h1("nothing.cdn.example");
        let refused = Tls::open(AGENT, PYPI.port(443), &hello).map(drop).expect_err("NXDOMAIN");
        println!("{refused}");
        let record = world.gateway.audit.wait_for(|record| record["sni"] == "nothing.cdn.example");
        assert_eq!(record["reason"], "resolve_failed", "{record}");
        world.origin.log().assert_untouched();
    });
}

#[test]
fn without_a_resolver_nothing_is_dialled() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        // Nobody listens on port 53 there, because Dns is not started.
        let _gateway = Gateway::start(&lab, &usual_config());
        let trust = fs::read_to_string(lab.dir.join("agents.pem")).expect("it was made");
        let hello = Hello::h1(OPENAI.name).trusting(&trust);
        let begun = Instant::now();
        let mut tls = Tls::open(AGENT, OPENAI.port(443), &hello).expect("TLS");
        assert_refused(&tls.ask(CHAT).expect("an answer"), 502, "resolve_failed");
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        origin.log().assert_untouched();
    });
}

#[test]
fn dialling_the_gateway_or_another_agent_leads_nowhere() {
    sandboxed(|| {
        let world = World::usual();
        let neighbour = Trap::set(AGENT2, &[SocketAddr::from(([0, 0, 0, 0], 443))]);
        let traps = traps();
        assert_eq!(world.ask(CHAT).status, 200);
        let open_before = settled(&world.gateway);

        let wan = Ipv4Addr::new(203, 0, 113, 2);
        let closed = [
            (GATEWAY_V4.into(), 443),
            (GATEWAY_V4.into(), 15_001),
            (GATEWAY_V4.into(), 22),
            (GATEWAY_V6.into(), 443),
            (GATEWAY_V6.into(), 15_001),
            (wan.into(), 443),
            (wan.into(), 15_001),
            (Ipv4Addr::new(192, 0, 2, 129).into(), 443),
            (Ipv4Addr::new(10, 9, 9, 9).into(), 443),
            (Ipv4Addr::new(169, 254, 169, 254).into(), 443),
            ("fd00::9".parse::<IpAddr>().expect("an address"), 443),
            ("2001:db8:f::2".parse().expect("an address"), 443),
        ];
        thread::scope(|scope| {
            for (address, port) in closed {
                let to = SocketAddr::from((address, port));
                scope.spawn(move || AGENT.connect(to).map(drop).expect_err(&to.to_string()));
            }
        });
        // The neighbour's address is captured like any other, and only the name decides.
        let to = SocketAddr::from((Ipv4Addr::new(192, 0, 2, 140), 443));
        let mut tls = Tls::open(AGENT, to, &world.hello(OPENAI.name)).expect("carried by its name");
        assert_eq!(tls.ask(CHAT).expect("an answer").status, 200);
        drop(tls);
        let nameless = Hello { sni: None, ..Hello::h1("unused") };
        Tls::open(AGENT, to, &nameless).map(drop).expect_err("no name, no way");
        world.gateway.audit.wait_reason("sni_missing");

        neighbour.assert_untouched();
        traps.iter().for_each(Trap::assert_untouched);
        assert_eq!(world.origin.log().wait_requests(2).len(), 2);
        wait::expect("every descriptor is given back", || {
            descriptors(&world.gateway) <= open_before
        });
    });
}

/// Returns the number of descriptors of a gateway whose connections have ended.
fn settled(gateway: &Gateway) -> usize {
    let idle = || gateway.sockets().iter().all(|state| state == "LISTEN" || state == "TIME-WAIT");
    wait::expect("no connection is open", idle);
    descriptors(gateway)
}
