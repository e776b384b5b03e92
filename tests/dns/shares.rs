//! However many names one group has asked for, and however silent their servers are, another
//! group's names resolve.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{MessageType, ResponseCode},
    rr::RecordType,
};
use lab::{
    audit::Record,
    client::{Hello, client_hello},
    gateway,
    net::{AGENT, AGENT_V4, AGENT2, CDN, GATEWAY, PYPI},
    sandboxed, wait,
};
use policy_builder::{Config, Table, agent, group};

use super::client::{addresses, anywhere, ask_udp, ask_udp_of, code, query};
use crate::{dns::over_tls, world::World};

/// A zone whose server never answers.
const SILENT: &str = "dark.cdn.example";

/// Changes a policy so that both groups may reach any name of the CDN, and one agent may connect
/// fast.
fn shared(config: Config) -> Config {
    config
        .splice("pypi", |it| it.more("groups", &["operations"]))
        .limit("agent_connections", 4096)
        .limit("agent_new_connections", 10_000)
}

/// Opens connections to ever new names in the silent zone and keeps them, at a rate that would fill
/// the gateway's lookups, until it is told to stop.
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

/// Checks that, while one group's agent has `enough` unanswered names under way, all of the other
/// group's new names are soon answered.
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
fn unanswered_names_keep_no_other_groups_names_from_resolving() {
    sandboxed(|| {
        let world = World::with(&shared(gateway::usual_config()));
        assert_the_other_group_resolves(&world, 1_500);
    });
}

#[test]
fn over_tls_they_do_not_either() {
    sandboxed(|| {
        let world = World::prepared(&shared(over_tls::over_tls()), |lab, dns| {
            dns.start_tls(&lab.public.issue(over_tls::NAME));
        });
        assert_the_other_group_resolves(&world, 400);
    });
}

#[test]
fn one_groups_answers_tell_another_nothing() {
    sandboxed(|| {
        let world = World::with(&shared(gateway::usual_config()));
        world.dns.set_ttl(60);
        let ttl_for = |agent| {
            let answer = ask_udp(agent, anywhere(), &query(PYPI.name, RecordType::A));
            answer.expect("an answer").answers[0].ttl
        };
        ttl_for(AGENT);
        wait::expect("some of its time to pass", || ttl_for(AGENT) < 58);
        let asked = world.dns.asked().len();
        assert!(ttl_for(AGENT2) >= 59, "it has all of its time");
        assert_eq!(world.dns.asked().len(), 2 * asked, "it is asked for again");
    });
}

/// An agent has 256 lookups and 16 connections at once; further ones are dropped, and counted.
#[test]
fn queries_and_connections_beyond_the_share_are_summed() {
    sandboxed(|| {
        let mut world = World::with(&super::config(10_000));
        world.dns.silence(SILENT);
        let socket = AGENT.enter(|| UdpSocket::bind("0.0.0.0:0")).expect("a socket");
        for number in 0..256 + 9 {
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
        let sums = records.iter().filter(|it| it.is("dns_summary"));
        let ours = sums.filter(|it| it["agent"] == "192.0.2.10");
        let limited: u64 = ours.filter_map(|it| it["limited"].as_u64()).sum();
        assert_eq!(limited, 9 + 4, "{records:#?}");
    });
}

/// Returns a policy with a second group on the first one's interface, which has many addresses and
/// may reach the CDN too.
fn with_a_large_group() -> Config {
    gateway::usual_config()
        .with(group("large", "agents0", &["10.7.0.0/16"]))
        .splice("pypi", |it| it.more("groups", &["operations", "large"]))
}

/// Returns an address of the large group for which the first agent answers.
fn of_large(number: u32) -> IpAddr {
    IpAddr::from((0x0a07_4000 + number).to_be_bytes())
}

/// Returns a message that the resolver ignores, so that nothing waits for the cards of made-up
/// sources.
fn unanswered() -> Vec<u8> {
    let mut message = query(CDN.name, RecordType::A);
    message.metadata.message_type = MessageType::Response;
    message.to_vec().expect("a message")
}

/// Sends it from ever new sources, as often as the gateway accepts from one group.
fn make_up_sources(count: u32) {
    let (message, begun) = (unanswered(), Instant::now());
    for number in 0..count {
        let socket = UdpSocket::bind((of_large(number), 0)).expect("a socket");
        socket.send_to(&message, anywhere()).expect("sent");
        let due = Duration::from_secs_f64(f64::from(number) / 4_500.0);
        thread::sleep(due.saturating_sub(begun.elapsed()));
    }
}

/// Sends it from a few hundred sources, as fast as possible.
fn flood_from_many(end: Instant) {
    let bind = |number| UdpSocket::bind((of_large(number), 0)).expect("a socket");
    let (message, sockets) = (unanswered(), (0..500).map(bind).collect::<Vec<_>>());
    while Instant::now() < end {
        // The sender's own queue may be full, which is the strongest flood.
        sockets.iter().for_each(|socket| drop(socket.send_to(&message, anywhere())));
    }
}

/// Returns how many of these addresses of the first agent get the CDN's.
fn told(own: impl Iterator<Item = IpAddr>) -> usize {
    let question = query(CDN.name, RecordType::A);
    own.filter(|own| {
        let answer = ask_udp_of(AGENT, *own, anywhere(), &question);
        answer.is_ok_and(|answer| !addresses(&answer).is_empty())
    })
    .count()
}

/// Returns a world in which the first agent has most addresses of a large group besides its own.
fn with_many_addresses(config: &Config) -> World {
    let world = World::with(config);
    world.dns.set_ttl(60);
    GATEWAY.shell("ip addr add 10.7.0.1/16 dev agents0");
    AGENT.shell("for net in 10.7.64.0/18 10.7.128.0/17; do ip route add local $net dev lo; done");
    assert_eq!(told([of_large(40_000), AGENT_V4.into()].into_iter()), 2, "in peace");
    world
}

/// Requires that another group on the same interface is answered during this flood.
#[track_caller]
fn assert_the_other_group_is_told(flood: impl FnOnce() + Send) {
    let during = thread::scope(|scope| {
        scope.spawn(|| AGENT.enter(flood));
        let one = |_| {
            thread::sleep(Duration::from_millis(100));
            AGENT_V4.into()
        };
        told((0..10).map(one))
    });
    assert_eq!(during, 10);
}

#[test]
fn made_up_sources_silence_neither_new_agents_nor_other_groups() {
    sandboxed(|| {
        let _world = with_many_addresses(&with_a_large_group());
        // More than the gateway tells apart.
        assert_the_other_group_is_told(|| make_up_sources(30_000));
        thread::sleep(Duration::from_secs(1));
        let new = (0..50).map(|number| of_large(41_000 + number));
        assert_eq!(told(new), 50, "new agents of the same group");
    });
}

#[test]
fn a_host_of_many_addresses_leaves_others_the_shared_socket() {
    sandboxed(|| {
        let _world = with_many_addresses(&with_a_large_group().limit("dns_rate", 50));
        let end = Instant::now() + Duration::from_secs(3);
        assert_the_other_group_is_told(move || flood_from_many(end));
        let listed = GATEWAY.shell("nft list chain inet cloakroom prerouting");
        let group = listed.lines().find(|line| line.contains("@dns_groups"));
        let cut = group.is_some_and(|line| !line.contains("packets 0 "));
        assert!(cut, "no flood: {listed}");
    });
}

/// Nobody can make up a card, so a group that binds many has the rate of each.
#[test]
fn each_card_that_a_group_binds_has_its_rate() {
    sandboxed(|| {
        let own = |card: u8| format!("10.7.1.{card}");
        let mac = |card: u8| format!("02:00:00:00:01:{card:02x}");
        let bind = |large: Table, card| large.with(agent(&mac(card), &[&own(card)]));
        let config =
            with_a_large_group().group("large", |it| CARDS.fold(it, bind)).limit("dns_rate", 20);
        let world = World::with(&config);
        world.dns.set_ttl(60);
        GATEWAY.shell("ip addr add 10.7.0.1/16 dev agents0");
        AGENT.shell("sysctl -qw net.ipv4.conf.all.arp_ignore=1");
        for card in CARDS {
            let (name, own, mac, table) =
                (format!("card{card}"), own(card), mac(card), 1_000 + u32::from(card));
            AGENT.shell(&format!(
                "set -e; ip link add link eth0 name {name} type macvlan mode bridge; \
                 ip link set {name} address {mac} up; ip addr add {own}/32 dev {name}; \
                 ip rule add from {own} lookup {table}; ip route add 10.7.0.1 dev {name} table {table}; \
                 ip route add default via 10.7.0.1 dev {name} table {table}"
            ));
        }
        let sockets: Vec<UdpSocket> =
            CARDS.map(|card| patient(own(card).parse().expect("an address"))).collect();
        let question = query(CDN.name, RecordType::A).to_vec().expect("a query");
        let begun = Instant::now();
        for round in 0..ROUNDS {
            for socket in &sockets {
                socket.send(&question).expect("sent");
            }
            let due = Duration::from_millis(u64::from(round) * 62);
            thread::sleep(due.saturating_sub(begun.elapsed()));
        }
        let answered = |socket: &UdpSocket| {
            (0..ROUNDS).take_while(|_| socket.recv(&mut [0; 512]).is_ok()).count()
        };
        let answered: Vec<usize> = sockets.iter().map(answered).collect();
        assert!(answered.iter().all(|it| *it == usize::from(ROUNDS)), "{answered:?}");
    });
}

/// Sixteen queries a second of each, which is more than twice the rate of a group that binds none.
const CARDS: std::ops::Range<u8> = 10..34;
const ROUNDS: u16 = 48;

/// The resolvers are slow and the names are new, so each lookup is under way for a while.
#[test]
fn two_hundred_new_names_a_second_fit_agent_and_group() {
    sandboxed(|| {
        let mut world = World::usual();
        world.dns.answer_after(Duration::from_millis(500));
        let others = (0..64).map(|number| IpAddr::from([192, 0, 2, 32 + number]));
        let others: Vec<IpAddr> = others.collect();
        for other in &others {
            AGENT.shell(&format!("ip addr add {other}/25 dev eth0"));
        }
        let groups = [vec![IpAddr::from(AGENT_V4)], others];
        for (number, agents) in groups.iter().enumerate() {
            let (answered, of) = ask_for_new_names(agents, &format!("g{number}"));
            assert_eq!(answered, of, "{} agents", agents.len());
        }
        world.gateway.terminate(Duration::from_secs(10));
        assert_not_limited(&world);
    });
}

/// Asks for 200 names and opens as many connections a second, in turn from each of these, for three
/// seconds. Returns how many of the queries had an answer, and how many there were.
fn ask_for_new_names(agents: &[IpAddr], label: &str) -> (usize, usize) {
    let begun = Instant::now();
    let sockets: Vec<UdpSocket> = agents.iter().map(|own| patient(*own)).collect();
    let (mut sent, mut answered) = (vec![0_usize; agents.len()], vec![0_usize; agents.len()]);
    let take = |from: usize| sockets[from].recv(&mut [0; 512]).is_ok();
    AGENT.enter(|| {
        for number in 0..600_u32 {
            let due = begun + Duration::from_millis(5) * number;
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let from = number as usize % agents.len();
            // The receive queue has little room.
            sockets[from].set_nonblocking(true).expect("a socket");
            answered[from] += (0..).take_while(|_| take(from)).count();
            for kind in [RecordType::A, RecordType::AAAA] {
                let query = query(&format!("{label}n{number}.cdn.example"), kind);
                sockets[from].send(&query.to_vec().expect("a query")).expect("sent");
                sent[from] += 1;
            }
            let to = PYPI.port(443);
            AGENT.connect_from(agents[from], to).expect("a connection");
        }
    });
    println!("{} agents in {:?}", agents.len(), begun.elapsed());
    for from in 0..agents.len() {
        sockets[from].set_nonblocking(false).expect("a socket");
        answered[from] += (answered[from]..sent[from]).take_while(|_| take(from)).count();
    }
    (answered.iter().sum(), sent.iter().sum())
}

/// Returns a socket of the first agent that asks the gateway and waits for as long as clients do.
fn patient(own: IpAddr) -> UdpSocket {
    AGENT.enter(|| {
        let socket = UdpSocket::bind((own, 0)).expect("a socket");
        socket.connect(anywhere()).expect("a route");
        socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        socket
    })
}

/// Asserts that nothing was refused for its rate or its share.
#[track_caller]
fn assert_not_limited(world: &World) {
    let records = world.gateway.audit.records();
    let limited = |it: &&Record| {
        ["rate_limit", "dns_rate", "connection_limit"].iter().any(|word| it["reason"] == *word)
    };
    let limited: Vec<_> = records.iter().filter(limited).collect();
    assert!(limited.is_empty(), "{limited:#?}");
}

#[test]
fn two_hundred_dual_stack_connections_a_second_are_within_rates() {
    sandboxed(|| {
        let mut world = World::usual();
        world.dns.set_ttl(60);
        let (connections, begun) = (1_000_u32, Instant::now());
        let questions = [RecordType::A, RecordType::AAAA]
            .map(|kind| query(PYPI.name, kind).to_vec().expect("a query"));
        let socket = super::client::socket(AGENT, anywhere());
        socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a timeout");
        let answered = thread::scope(|scope| {
            let answers = scope.spawn(|| {
                (0..2 * connections).take_while(|_| socket.recv(&mut [0; 512]).is_ok()).count()
            });
            AGENT.enter(|| {
                for number in 0..connections {
                    let due = begun + Duration::from_millis(5) * number;
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    questions.iter().for_each(|it| assert!(socket.send(it).is_ok()));
                    TcpStream::connect(PYPI.port(443)).expect("a connection");
                }
            });
            answers.join().expect("it ends")
        });
        println!("{connections} connections in {:?}", begun.elapsed());
        assert_eq!(answered, 2 * connections as usize);
        world.gateway.terminate(Duration::from_secs(10));
        assert_not_limited(&world);
    });
}
