//! The agents' resolver: the gateway answers every query, whichever server it was sent to, and no
//! name that policy does not list is on the wire to the internet.

pub(crate) mod client;
mod dialled;
mod forgeries;
mod over_tls;
mod resolvers_beside_it;
mod shares;
mod ways_out;

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{MessageType, ResponseCode},
    rr::RecordType,
};
use lab::{
    client::{agent, succeed},
    dns::Answer,
    gateway,
    net::{AGENT, AGENT2, ATTACKER, CDN, GATEWAY, GATEWAY_V4, Host, INTERNET, OPENAI, OTHER, PYPI},
    sandboxed, wait,
};
use policy_builder::Config;
use socket2::{Domain, Socket, Type};

use self::client::{
    addresses, anywhere, ask, ask_tcp, ask_udp, code, framed, query, rand, read, resolvers, socket,
    unframed,
};
use crate::world::{TICKET, World, get};

/// Time for which glibc and musl wait for an answer.
const CLIENTS_WAIT: Duration = Duration::from_secs(5);

/// Longest delay by one family's silence, on a busy machine.
const MOMENT: Duration = Duration::from_millis(1_500);

/// Returns the usual policy, with so many queries a second for each agent.
fn config(rate: i32) -> Config {
    gateway::usual_config().limit("dns_rate", rate)
}

#[test]
fn an_alias_leads_to_its_addresses_without_another_question() {
    sandboxed(|| {
        let world = World::with(&config(10_000));
        let aliases = vec!["one.edge.example", "two.edge.example"];
        let addresses_of = |host: Host| vec![IpAddr::from(host.v4()), host.v6().into()];
        world.dns.script(OPENAI.name, Answer::Alias(aliases, addresses_of(OPENAI)));
        let answer = ask(anywhere(), OPENAI.name, RecordType::A);
        assert_eq!(addresses(&answer), [IpAddr::from(OPENAI.v4())]);
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);

        // The owner of a listed zone chose the other name, and would learn of each query for it.
        let chosen = "c2VjcmV0.attacker.example";
        world.dns.set(chosen, &addresses_of(PYPI));
        world.dns.script(PYPI.name, Answer::Alias(vec![chosen], Vec::new()));
        for kind in [RecordType::A, RecordType::AAAA] {
            let answer = ask(anywhere(), PYPI.name, kind);
            assert!(addresses(&answer).is_empty(), "{kind}: {answer}");
        }
        world.h1_from(AGENT, PYPI.port(443), PYPI.name).map(drop).expect_err("no address");
        assert!(world.dns.was_asked(PYPI.name));
        let listed = [OPENAI.name, PYPI.name];
        let asked = world.dns.asked();
        assert!(asked.iter().all(|it| listed.contains(&it.name.as_str())), "{asked:?}");
    });
}

#[test]
fn listed_names_resolve_whatever_resolver_an_agent_asks() {
    sandboxed(|| {
        let _world = World::with(&config(10_000));
        for server in resolvers() {
            for ask in [ask_udp, ask_tcp] {
                for (kind, address) in [
                    (RecordType::A, IpAddr::from(OPENAI.v4())),
                    (RecordType::AAAA, IpAddr::from(OPENAI.v6())),
                ] {
                    let query = query("aPi.OpenAI.example.", kind);
                    let answer = ask(AGENT, server, &query)
                        .unwrap_or_else(|error| panic!("{server} {kind}: {error}"));
                    assert_eq!(addresses(&answer), [address], "{server}");
                    assert_eq!(answer.queries, query.queries);
                    assert_eq!(answer.queries[0].name().to_ascii(), "aPi.OpenAI.example.");
                    assert_eq!(answer.answers[0].ttl, 1, "the lab's are 0");
                }
            }
        }
        assert_eq!(addresses(&ask(anywhere(), CDN.name, RecordType::A)), [IpAddr::from(CDN.v4())]);
        let https = ask(anywhere(), PYPI.name, RecordType::HTTPS);
        assert_eq!((code(&https), https.answers.len()), (ResponseCode::NoError, 0));
    });
}

#[test]
fn a_group_resolves_the_names_of_its_own_rules_only() {
    sandboxed(|| {
        let world = World::usual();
        let message = query(PYPI.name, RecordType::A);
        let answer = ask_udp(AGENT2, anywhere(), &message).expect("an answer");
        assert_eq!(code(&answer), ResponseCode::NXDomain);
        assert!(!world.dns.was_asked(PYPI.name));
        let message = query(OPENAI.name, RecordType::A);
        let answer = ask_udp(AGENT2, anywhere(), &message).expect("an answer");
        assert_eq!(addresses(&answer), [IpAddr::from(OPENAI.v4())]);
        let record = world.gateway.audit.wait_reason("dns_denied");
        assert!(record.is("dns"));
        assert_eq!(record["group"], "operations");
        assert_eq!(record["name"], "pypi.example.");
        assert_eq!(record["type"], "A");
        assert_eq!(record["server"], anywhere().ip().to_string());
    });
}

#[test]
fn private_answers_are_withheld() {
    sandboxed(|| {
        let world = World::with(&config(10_000));
        let inside = [
            "127.0.0.1",
            "0.0.0.0",
            "10.9.9.9",
            "192.168.9.9",
            "100.64.0.9",
            "169.254.169.254",
            "224.0.0.1",
            "192.0.2.1",
            "203.0.113.2",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "fd00::9",
            "fe80::1",
            "2001:db8:a::1",
            "2001:db8:f::2",
        ];
        for text in inside {
            let address: IpAddr = text.parse().expect("an address");
            let kind = if address.is_ipv4() { RecordType::A } else { RecordType::AAAA };
            world.dns.set(PYPI.name, &[address]);
            let answer = ask(anywhere(), PYPI.name, kind);
            assert_eq!(
                (code(&answer), addresses(&answer)),
                (ResponseCode::NoError, vec![]),
                "{text}"
            );
            world.dns.set(PYPI.name, &[address, PYPI.v4().into(), PYPI.v6().into()]);
            let answer = ask(anywhere(), PYPI.name, kind);
            assert_eq!(addresses(&answer).len(), 1, "{text}: {:?}", addresses(&answer));
            assert!(!addresses(&answer).contains(&address), "{text}");
        }
        let record = world.gateway.audit.wait_reason("private_address");
        assert!(record.is("dns"));
    });
}

#[test]
fn what_does_not_resolve_is_told_in_time() {
    sandboxed(|| {
        let world = World::usual();
        for (answer, expected) in [
            (Answer::Addresses(Vec::new()), ResponseCode::NoError),
            (Answer::Fails, ResponseCode::ServFail),
            (Answer::Silent, ResponseCode::ServFail),
        ] {
            world.dns.script(PYPI.name, answer.clone());
            let begun = Instant::now();
            let told = ask(anywhere(), PYPI.name, RecordType::A);
            assert_eq!((code(&told), told.answers.len()), (expected, 0), "{answer:?}");
            assert!(begun.elapsed() < Duration::from_secs(5), "{answer:?}");
        }
        let unknown = ask(anywhere(), "unknown.cdn.example", RecordType::A);
        assert_eq!(code(&unknown), ResponseCode::NXDomain);
    });
}

#[test]
fn silence_in_one_family_costs_a_moment() {
    sandboxed(|| {
        let world = World::with(&config(10_000));
        let both = vec![IpAddr::from(OPENAI.v4()), OPENAI.v6().into()];
        for (number, silent) in ["AAAA", "A"].into_iter().enumerate() {
            world.dns.script(OPENAI.name, Answer::SilentFor(silent, both.clone()));
            let used = both[number];
            for kind in [RecordType::A, RecordType::AAAA] {
                let begun = Instant::now();
                let answer = ask(anywhere(), OPENAI.name, kind);
                let given = if kind.to_string() == silent { vec![] } else { vec![used] };
                // Not even an error: musl takes one of a family for one of the name.
                assert_eq!((code(&answer), addresses(&answer)), (ResponseCode::NoError, given));
                assert!(begun.elapsed() < MOMENT, "{kind}: {:?}", begun.elapsed());
            }
            let begun = Instant::now();
            assert_eq!(world.ask(&get(&[TICKET])).status, 200, "silent for {silent}");
            assert!(begun.elapsed() < 2 * MOMENT, "{:?}", begun.elapsed());
            let used = used.to_string();
            world.gateway.audit.wait_for(|record| record["upstream"] == used);
        }
        // If the resolver says at once that there is none, nobody waits.
        world.dns.set(OPENAI.name, &both[..1]);
        let begun = Instant::now();
        assert_eq!(addresses(&ask(anywhere(), OPENAI.name, RecordType::A)), both[..1]);
        assert!(begun.elapsed() < Duration::from_millis(400), "{:?}", begun.elapsed());
    });
}

#[test]
fn an_answer_too_long_for_a_datagram_comes_in_streams() {
    sandboxed(|| {
        let world = World::usual();
        let v4 = |last| IpAddr::from([198, 51, 100, last]);
        let all: Vec<_> = (100..115).map(v4).chain([IpAddr::from(PYPI.v6())]).collect();
        world.dns.script(PYPI.name, Answer::Truncated(all.clone()));
        let told = addresses(&ask(anywhere(), PYPI.name, RecordType::A));
        assert_eq!(told.len(), 15, "{told:?}");
        assert!(told.iter().all(|address| all.contains(address)), "{told:?}");
        assert_eq!(world.dns.asked().len(), 4, "each kind twice: {:?}", world.dns.asked());
        world.dns.script(PYPI.name, Answer::Truncated(vec![PYPI.v4().into(), PYPI.v6().into()]));
        let mut spliced = world.h1(PYPI).expect("a flow resolves it too");
        let head = "GET /a HTTP/1.1\r\nHost: pypi.example\r\n\r\n";
        assert_eq!(spliced.ask(head).expect("an answer").status, 200);
    });
}

#[test]
fn one_question_upstream_serves_the_agents_and_the_gateway() {
    sandboxed(|| {
        let world = World::usual();
        world.dns.set_ttl(60);
        for _ in 0..20 {
            let answer = ask(anywhere(), OPENAI.name, RecordType::A);
            assert!((50..=60).contains(&answer.answers[0].ttl), "{}", answer.answers[0].ttl);
            ask(anywhere(), OPENAI.name, RecordType::AAAA);
        }
        assert_eq!(world.ask(&get(&[TICKET])).status, 200);
        assert_eq!(world.dns.asked().len(), 2, "A and AAAA: {:?}", world.dns.asked());
    });
}

#[test]
fn malformed_messages_leave_the_resolver_serving() {
    sandboxed(|| {
        let mut world = World::with(&config(100_000));
        let good = query(OPENAI.name, RecordType::A).to_vec().expect("a message");
        let sink = socket(AGENT, anywhere());
        for length in 0..good.len() {
            sink.send(&good[..length]).expect("sent");
            for value in [0, 0xc0, 0xff] {
                let mut changed = good.clone();
                changed[length] = value;
                sink.send(&changed).expect("sent");
            }
        }
        for length in 0..1_400 {
            let random: Vec<u8> = (0..length).map(|_| rand() as u8).collect();
            if length % 7 == 0 {
                sink.send(&random).expect("sent");
            }
        }
        for length in [0, 1, 11, 12, 13, good.len() - 1] {
            let mut stream = AGENT.connect(anywhere()).expect("TCP is answered");
            let announced = u16::try_from(good.len()).expect("short").to_be_bytes();
            stream.write_all(&announced).expect("sent");
            stream.write_all(&good[..length]).expect("sent");
            drop(stream);
        }
        let mut stream = AGENT.connect(anywhere()).expect("TCP is answered");
        stream.write_all(&[0xff; 64 * 1024]).ok();
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0, "too long");
        for server in resolvers() {
            for ask in [ask_udp, ask_tcp] {
                let answer = ask(AGENT, server, &query(OPENAI.name, RecordType::A));
                assert_eq!(addresses(&answer.expect("an answer")).len(), 1);
            }
        }
        assert!(world.gateway.is_alive());
        assert!(!world.gateway.stderr().contains("panicked"), "{}", world.gateway.stderr());
    });
}

#[test]
fn an_answer_is_never_answered() {
    sandboxed(|| {
        let _world = World::usual();
        let socket = socket(AGENT, anywhere());
        socket.set_read_timeout(Some(wait::QUIET)).expect("a timeout");
        let mut answer = query(OPENAI.name, RecordType::A);
        answer.metadata.message_type = MessageType::Response;
        socket.send(&answer.to_vec().expect("a message")).expect("sent");
        socket.recv(&mut [0; 512]).expect_err("a loop");
    });
}

#[test]
fn queries_in_a_stream_are_answered_in_their_order() {
    sandboxed(|| {
        let _world = World::usual();
        let mut stream = AGENT.connect(anywhere()).expect("TCP is answered");
        let names = [OPENAI.name, "no.attacker.example", CDN.name, PYPI.name];
        let queries = names.map(|name| query(name, RecordType::A));
        let all: Vec<u8> = queries.iter().flat_map(framed).collect();
        for byte in &all[..20] {
            stream.write_all(&[*byte]).expect("sent");
        }
        stream.write_all(&all[20..]).expect("sent");
        for query in &queries {
            let answer = read(query, &unframed(&mut stream).expect("an answer")).expect("DNS");
            assert_eq!(answer.queries, query.queries);
        }
    });
}

#[test]
fn an_agent_that_asks_too_much_is_slowed_down_alone() {
    sandboxed(|| {
        let world = World::with(&config(50));
        let held: Vec<_> = (0..60).filter_map(|_| AGENT.connect(anywhere()).ok()).collect();
        let message = query("a.attacker.example", RecordType::A).to_vec().expect("a message");
        let floods: Vec<_> = resolvers().into_iter().map(|to| socket(AGENT, to)).collect();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let (mut served, mut slowest) = (0, Duration::ZERO);
        std::thread::scope(|scope| {
            for flood in &floods[..2] {
                scope.spawn(|| {
                    // The test measures the load of the gateway, not that of the machine.
                    rustix::process::setpriority_process(None, 19).expect("a thread may be nice");
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        // The sender's own queue may be full, which is the strongest flood.
                        (0..100).for_each(|_| drop(flood.send(&message)));
                        std::thread::sleep(Duration::from_millis(5));
                    }
                });
            }
            for number in 0..60 {
                let begun = Instant::now();
                let asked = if number % 10 == 0 { ask_tcp } else { ask_udp };
                let answer = asked(AGENT2, anywhere(), &query(OPENAI.name, RecordType::A));
                served += usize::from(answer.is_ok_and(|answer| !addresses(&answer).is_empty()));
                slowest = slowest.max(begun.elapsed());
                std::thread::sleep(Duration::from_millis(30));
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(served, 60, "the other agent is served; slowest {slowest:?}");
        assert!(slowest < CLIENTS_WAIT, "{slowest:?}");
        let record =
            world.gateway.audit.wait_for(|it| it["reason"] == "dns_rate" && it.is("dns_summary"));
        assert_eq!(record["group"], "research");
        // The kernel drops queries above four times the rate before anybody reads them.
        assert!(record["limited"].as_u64() > Some(100), "{record}");
        world.gateway.audit.wait_for(|it| it["reason"] == "dns_rate" && it.is("packets"));
        let of_their_own = world.gateway.audit.records().iter().filter(|it| it.is("dns")).count();
        assert!(of_their_own < 400, "{of_their_own} records");
        drop(held);
    });
}

#[test]
fn curl_works_with_any_resolver_and_no_hosts_file() {
    sandboxed(|| {
        let world = World::usual();
        world.lab.names(&[]);
        for (server, family) in [("8.8.8.8", "-4"), ("192.0.2.1", "-6"), ("2001:db8:a::1", "-4")] {
            world.lab.write("resolv.conf", format!("nameserver {server}\noptions timeout:3\n"));
            let mut curl = agent(&world.lab, AGENT, "curl");
            curl.args(["-sS", family, "--fail", "--max-time", "10", "-H", TICKET]);
            succeed(curl.arg("https://api.openai.example/v1/models"));
            let mut curl = agent(&world.lab, AGENT, "curl");
            curl.args(["-sS", family, "--fail", "--max-time", "10"]);
            succeed(curl.arg("https://pypi.example/"));
        }
        let python = "import socket; print(socket.getaddrinfo('files.cdn.example', 443))";
        let printed = succeed(agent(&world.lab, AGENT, "python3").args(["-c", python]));
        assert!(printed.contains(&CDN.v4().to_string()) && printed.contains(&CDN.v6().to_string()));
        let python = "import socket\ntry: socket.getaddrinfo('attacker.example', 443)\n\
                      except socket.gaierror as error: print(error.errno == socket.EAI_NONAME)";
        let printed = succeed(agent(&world.lab, AGENT, "python3").args(["-c", python]));
        assert_eq!(printed.trim(), "True", "at once, and for good");
        assert!(!world.dns.was_asked(ATTACKER.name));
    });
}

#[test]
fn a_dead_daemon_answers_no_name_and_passes_no_query() {
    sandboxed(|| {
        let mut world = World::usual();
        ask(anywhere(), OPENAI.name, RecordType::A);
        let before = world.dns.asked().len();
        let wan = world.lab.capture(INTERNET);
        world.gateway.kill();
        for server in resolvers() {
            let begun = Instant::now();
            let message = query("dead.attacker.example", RecordType::A);
            ask_udp(AGENT, server, &message).expect_err("nobody is there");
            ask_tcp(AGENT, server, &message).expect_err("nobody is there");
            assert!(begun.elapsed() < Duration::from_secs(2), "{server} is not refused at once");
        }
        assert_eq!(world.dns.asked().len(), before);
        assert!(!wan.holds("attacker"));
    });
}

#[test]
fn a_reload_changes_which_names_there_are() {
    sandboxed(|| {
        let world = World::usual();
        assert_eq!(code(&ask(anywhere(), OTHER.name, RecordType::A)), ResponseCode::NXDomain);
        let wider = gateway::usual_config()
            .splice("pypi", |it| it.set("hosts", [OTHER.name, "*.cdn.example"]));
        gateway::install(&world.lab, &wider);
        world.gateway.reload();
        wait::expect("the new name resolves", || {
            code(&ask(anywhere(), OTHER.name, RecordType::A)) == ResponseCode::NoError
        });
        assert_eq!(code(&ask(anywhere(), PYPI.name, RecordType::A)), ResponseCode::NXDomain);
    });
}

#[test]
fn no_other_program_is_reached_on_port_53() {
    sandboxed(|| {
        let _world = World::usual();
        // A resolver of the gateway's own, on loopback or on the WAN, is neither in the way nor
        // reachable, whichever of its addresses an agent asks.
        let own = ["lo", "wan0"].map(|interface| GATEWAY.enter(|| bound_to(interface)));
        for server in resolvers() {
            for ask in [ask_udp, ask_tcp] {
                let answer = ask(AGENT, server, &query(OPENAI.name, RecordType::A));
                assert_eq!(addresses(&answer.expect("an answer")).len(), 1, "{server}");
            }
        }
        for (udp, tcp) in &own {
            udp.recv(&mut [0; 512]).expect_err("a question for another program");
            tcp.accept().map(drop).expect_err("a connection to another program");
        }
        AGENT.connect(SocketAddr::from((GATEWAY_V4, 5353))).expect_err("not DNS");
    });
}

/// Opens another program's sockets on port 53 of every address, bound to an interface as
/// systemd-resolved binds its own.
fn bound_to(interface: &str) -> (UdpSocket, TcpListener) {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 53)).into();
    let [udp, tcp] = [Type::DGRAM, Type::STREAM].map(|kind| {
        let socket = Socket::new(Domain::IPV6, kind, None).expect("a socket");
        socket.bind_device(Some(interface.as_bytes())).expect("an interface");
        socket.bind(&any).expect("port 53");
        socket.set_nonblocking(true).expect("a socket");
        socket
    });
    tcp.listen(8).expect("a listener");
    (udp.into(), tcp.into())
}
