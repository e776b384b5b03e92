//! Connections that are allowed, and where they lead: to the name, never to the address that an
//! agent chose.

mod addresses;
mod nameless;
mod relay;
mod special;

use std::{
    io::Write as _,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use lab::{
    World,
    client::{Hello, Tls, client_hello, tls_over},
    dns::Answer,
    gateway::{self, OPENAI_SECRET},
    net::{AGENT, AGENT2, ATTACKER, GATEWAY, Host, OPENAI, OTHER, PYPI},
    sandboxed, wait,
    world::{TICKET, get},
};

/// Checks that the agent's handshake fails, the audit has the reason, and nothing arrives anywhere.
#[track_caller]
fn refused(world: &World, to: Host, hello: &Hello, reason: &str) {
    let outcome = Tls::open(AGENT, to.port(443), hello);
    assert!(outcome.is_err(), "{hello:?} was answered");
    let record = world.gateway.audit.wait_reason(reason);
    assert_eq!(record["decision"], "refuse");
    world.origin.log().assert_untouched();
}

#[test]
fn a_name_that_policy_does_not_list_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        for name in [OTHER.name, ATTACKER.name, "cdn.example", "xpypi.example", "openai.example"] {
            refused(&world, OTHER, &Hello::h1(name), "sni_denied");
        }
        assert!(!world.dns.was_asked(ATTACKER.name), "a denied name is never resolved");
    });
}

#[test]
fn a_hello_without_a_name_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        let hello = Hello { sni: None, ..Hello::h1(OPENAI.name) };
        refused(&world, OPENAI, &hello, "sni_missing");
    });
}

#[test]
fn a_hello_whose_name_is_an_address_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        // rustls never sends an address as a name, so one of the same length is made by hand.
        let name = "aaaaaaaaaaaaa";
        let address = OPENAI.v4().to_string();
        assert_eq!(name.len(), address.len());
        let mut bytes = client_hello(&Hello::h1(name));
        let at = bytes.windows(name.len()).position(|at| at == name.as_bytes()).expect("SNI");
        bytes[at..at + name.len()].copy_from_slice(address.as_bytes());
        let mut stream = AGENT.connect(OPENAI.port(443)).expect("the gateway accepts");
        stream.write_all(&bytes).expect("sent");
        let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
        world.gateway.audit.wait_for(|record| record["decision"] == "refuse");
        world.origin.log().assert_untouched();
    });
}

#[test]
fn a_group_gets_nothing_that_is_another_groups() {
    sandboxed(|| {
        let world = World::usual();
        let outcome = Tls::open(AGENT2, PYPI.port(443), &Hello::h1(PYPI.name));
        assert!(outcome.is_err());
        let record = world.gateway.audit.wait_reason("sni_denied");
        assert_eq!(record["group"], "operations");
        world.origin.log().assert_untouched();
    });
}

#[test]
fn an_allowed_name_at_the_attackers_address_never_leads_there() {
    sandboxed(|| {
        let world = World::usual();
        if let Ok(mut tls) = world.h1_from(AGENT, ATTACKER.port(443), OPENAI.name) {
            let _ = tls.ask(get(&[TICKET]));
        }
        if let Ok(mut tls) = world.h1_from(AGENT, ATTACKER.port6(443), PYPI.name) {
            let _ = tls.ask("GET / HTTP/1.1\r\nHost: pypi.example\r\n\r\n");
        }
        std::thread::sleep(wait::QUIET);
        let attackers = [IpAddr::from(ATTACKER.v4()), IpAddr::from(ATTACKER.v6())];
        for connection in world.origin.log().connections() {
            assert!(!attackers.contains(&connection.local.ip()), "{connection:#?}");
        }
        wait::expect("a record for each", || world.connections().len() == 2);
    });
}

#[test]
fn a_port_that_no_rule_names_is_closed() {
    sandboxed(|| {
        let world = World::usual();
        for port in [22, 8443, 15_001] {
            AGENT.connect(OPENAI.port(port)).expect_err("closed");
            AGENT.connect(OPENAI.port6(port)).expect_err("closed");
        }
        world.origin.log().assert_untouched();
    });
}

#[test]
fn bytes_that_are_neither_tls_nor_http_are_refused() {
    sandboxed(|| {
        let world = World::usual();
        for bytes in [&b"SSH-2.0-OpenSSH_9.9\r\n"[..], b"\x00\x01\x02\x03\x04\x05\x06\x07"] {
            let mut stream = AGENT.connect(OPENAI.port(443)).expect("the gateway accepts");
            stream.write_all(bytes).expect("sent");
            let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
        }
        wait::expect("a refusal for each", || {
            world.connections().iter().filter(|it| it["decision"] == "refuse").count() == 2
        });
        world.origin.log().assert_untouched();
    });
}

#[test]
fn a_hello_in_one_byte_segments_is_understood() {
    sandboxed(|| {
        let _world = World::usual();
        let hello = client_hello(&Hello::h1(OPENAI.name));
        let mut stream = AGENT.connect(OPENAI.port(443)).expect("the gateway accepts");
        for byte in hello {
            stream.write_all(&[byte]).expect("sent");
        }
        let mut answer = [0; 1];
        std::io::Read::read_exact(&mut stream, &mut answer).expect("a server's flight");
        assert_eq!(answer, [22], "a handshake record");
    });
}

#[test]
fn a_hello_in_records_of_one_byte_each_is_understood() {
    sandboxed(|| {
        let world = World::usual();
        for (host, hello) in [
            (OPENAI, world.hello(OPENAI.name)),
            (PYPI, Hello::h1(PYPI.name).trusting(world.lab.public.pem())),
        ] {
            let socket = AGENT.connect(host.port(443)).expect("the gateway accepts");
            let mut splitter = Splitter { socket, done: false };
            let request = get(&[TICKET]).replace(OPENAI.name, host.name);
            let answer = tls_over(&mut splitter, &hello, request.as_bytes()).expect("an answer");
            assert_eq!(answer.status, 200);
        }
    });
}

#[test]
fn an_oversized_hello_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        let mut stream = AGENT.connect(OPENAI.port(443)).expect("the gateway accepts");
        // A ClientHello that announces 128 KiB, in records of 16 KiB.
        let mut first = vec![1, 2, 0, 0];
        first.resize(16 * 1024, 0);
        for record in std::iter::once(first).chain(std::iter::repeat_n(vec![0; 16 * 1024], 7)) {
            let header = [22, 3, 1, 0x40, 0];
            if stream.write_all(&[&header[..], &record].concat()).is_err() {
                break;
            }
        }
        let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
        world.gateway.audit.wait_for(|record| record["decision"] == "refuse");
        world.origin.log().assert_untouched();
    });
}

/// Cuts the first record, the ClientHello, into records of one byte each (RFC 8446, section 5.1).
struct Splitter {
    socket: std::net::TcpStream,
    done: bool,
}

impl std::io::Write for Splitter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.done {
            return self.socket.write(bytes);
        }
        self.done = true;
        let (header, hello) = bytes.split_at(5);
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        assert_eq!(hello.len(), length, "one whole record");
        let records = hello.iter().flat_map(|byte| [22, 3, 1, 0, 1, *byte]);
        self.socket.write_all(&records.collect::<Vec<u8>>())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.socket.flush()
    }
}

impl std::io::Read for Splitter {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.socket.read(buffer)
    }
}

#[test]
fn a_truncated_hello_is_refused_in_time_undialled() {
    sandboxed(|| {
        let config = gateway::usual_config().limit("peek_time", "1s");
        let world = World::with(&config);
        let hello = client_hello(&Hello::h1(OPENAI.name));
        let mut stream = AGENT.connect(OPENAI.port(443)).expect("the gateway accepts");
        stream.write_all(&hello[..hello.len() / 2]).expect("sent");
        stream.set_read_timeout(Some(Duration::from_secs(8))).expect("a socket");
        let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
        world.gateway.audit.wait_reason("peek_timeout");
        assert!(!world.dns.was_asked(OPENAI.name));
        world.origin.log().assert_untouched();
    });
}

#[test]
fn a_name_at_our_own_address_is_not_dialled() {
    sandboxed(|| {
        let world = World::usual();
        let own = own_services();
        for address in [
            "127.0.0.1",
            "0.0.0.0",
            "10.0.0.1",
            "169.254.169.254",
            "192.168.0.1",
            "100.64.0.1",
            "224.0.0.1",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "fe80::1",
            "fd00:ec2::254",
            "64:ff9b::7f00:1",
            "2002:7f00:1::1",
            "192.0.2.1",
            "203.0.113.2",
            "2001:db8:f::2",
        ] {
            let address: IpAddr = address.parse().expect("an address");
            world.dns.set(OPENAI.name, &[address]);
            if let Ok(mut tls) = world.h1(OPENAI) {
                let answer = tls.ask(get(&[TICKET]));
                assert!(answer.is_err() || answer.is_ok_and(|it| it.status == 502), "{address}");
            }
            world.origin.log().assert_untouched();
            for service in &own {
                assert!(service.accept().is_err(), "{address} led to a service of the gateway");
            }
        }
        world.gateway.audit.wait_reason("private_address");
    });
}

/// Starts the gateway's own services on loopback, where a careless dial would end.
fn own_services() -> Vec<std::net::TcpListener> {
    ["127.0.0.1:443", "[::1]:443"]
        .map(|address| {
            let listener = GATEWAY.enter(|| std::net::TcpListener::bind(address)).expect("a port");
            listener.set_nonblocking(true).expect("a socket");
            listener
        })
        .into()
}

#[test]
fn mixed_answers_never_lead_to_a_private_address() {
    sandboxed(|| {
        let world = World::usual();
        let private = IpAddr::from([127, 0, 0, 1]);
        let own = own_services();
        let sets = [vec![OPENAI.v4().into()], vec![private]];
        world.dns.script(OPENAI.name, Answer::Alternating(sets.to_vec()));
        for _ in 0..4 {
            if let Ok(mut tls) = world.h1(OPENAI) {
                let _ = tls.ask(get(&[TICKET]));
            }
        }
        let places = world.origin.log().connections();
        assert!(places.iter().all(|connection| connection.local.ip() == OPENAI.v4()));
        assert!(own.iter().all(|service| service.accept().is_err()), "loopback was dialled");
    });
}

#[test]
fn an_address_that_does_not_answer_outweighs_a_private_one() {
    sandboxed(|| {
        let world = World::usual();
        // Nobody has the first.
        let silent = IpAddr::from([203, 0, 113, 250]);
        for addresses in
            [[silent, IpAddr::from([127, 0, 0, 1])], [IpAddr::from([127, 0, 0, 1]), silent]]
        {
            world.dns.set(OPENAI.name, &addresses);
            let mut tls = world.must_h1(AGENT, SocketAddr::new(silent, 443), OPENAI.name);
            let answer = tls.ask(get(&[TICKET])).expect("an answer");
            assert_eq!(answer.reason().as_deref(), Some("upstream_unreachable"), "{addresses:?}");
        }
        world.origin.log().assert_untouched();
    });
}

#[test]
fn the_leaf_is_for_one_name_and_one_day() {
    sandboxed(|| {
        let _world = World::usual();
        let script = "echo | openssl s_client -connect api.openai.example:443 -servername \
            api.openai.example -CAfile /run/lab/agents.pem -verify_return_error 2>/dev/null \
            | openssl x509 -noout -ext subjectAltName -checkend 86400";
        let output = AGENT.command("sh").args(["-c", script]).output().expect("openssl");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(text.matches("DNS:").count(), 1, "{text}");
        assert!(text.contains("DNS:api.openai.example"), "{text}");
        assert!(text.contains("will expire"), "it lives longer than a day: {text}");
    });
}

#[test]
fn every_connection_has_exactly_one_record() {
    sandboxed(|| {
        let world = World::usual();
        world.ask(&get(&[TICKET]));
        let _ = Tls::open(AGENT, OTHER.port(443), &Hello::h1(OTHER.name));
        drop(AGENT.connect(OPENAI.port(443)).expect("a connection without a byte"));
        let mut reset = AGENT.connect(OPENAI.port(443)).expect("a connection");
        reset.write_all(&client_hello(&Hello::h1(OPENAI.name))).expect("sent");
        drop(reset);
        wait::expect("four records of connections", || world.connections().len() == 4);
        std::thread::sleep(wait::QUIET);
        let mut flows: Vec<String> =
            world.connections().iter().map(|record| record["flow"].to_string()).collect();
        flows.sort();
        flows.dedup();
        assert_eq!(flows.len(), 4, "each flow has an id of its own");
        let request = world.gateway.audit.wait_for(|record| record.is("request"));
        assert!(flows.contains(&request["flow"].to_string()), "a request names its flow");
        assert_eq!(world.origin.log().requests().len(), 1);
        assert!(world.origin.log().holds(OPENAI_SECRET));
    });
}
