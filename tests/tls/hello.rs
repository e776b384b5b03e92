//! The decision is made on one complete ClientHello, however it arrives; bytes that are no hello,
//! have two readings, or hide a name lead nowhere.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use lab::{
    World,
    attack::{Ask, local, say},
    audit::Record,
    client::{H2, Hello, Tls, client_hello, read_response, roots},
    gateway::usual_config,
    net::{AGENT, ATTACKER, GIT, OPENAI, PYPI},
    sandboxed,
};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, StreamOwned};

const SNI_MISSING: (&str, u8) = ("sni_missing", 109);
const MALFORMED: (&str, u8) = ("tls_malformed", 50);
const ECH: (&str, u8) = ("ech_denied", 49);
const ALPN: (&str, u8) = ("alpn_denied", 120);

/// The way in which the first flight of an agent is cut.
#[derive(Debug, Clone, Copy)]
enum Cut {
    /// Into segments of this size in bytes.
    Segments(usize),
    /// Into records of this size in bytes, sent at once.
    Records(usize),
    /// Into records of one byte, each in a segment for every byte of it.
    Both,
}

/// A stream whose first write is cut.
struct Cutting {
    stream: TcpStream,
    cut: Option<Cut>,
}

impl Write for Cutting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.cut.take() {
            None => return self.stream.write(bytes),
            Some(Cut::Records(size)) => self.stream.write_all(&records(&bytes[5..], size))?,
            Some(Cut::Segments(size)) => self.segments(bytes, size)?,
            Some(Cut::Both) => self.segments(&records(&bytes[5..], 1), 1)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Cutting {
    fn segments(&mut self, bytes: &[u8], size: usize) -> io::Result<()> {
        for (at, piece) in bytes.chunks(size).enumerate() {
            self.stream.write_all(piece)?;
            // Now and then long enough for the gateway to read the bytes so far.
            if size > 1 || at % 100 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }
}

impl Read for Cutting {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.stream.read(into)
    }
}

/// Returns handshake bytes in records of `size` bytes (RFC 8446, section 5.1).
fn records(message: &[u8], size: usize) -> Vec<u8> {
    let record = |piece: &[u8]| {
        let length = u16::try_from(piece.len()).expect("a short record").to_be_bytes();
        [&[22, 3, 1], &length[..], piece].concat()
    };
    message.chunks(size).flat_map(record).collect()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes(), &length16(content)[..]].concat()
}

fn length16(content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("a short vector").to_be_bytes();
    [&length, content].concat()
}

fn server_name(name: &[u8]) -> Vec<u8> {
    extension(0, &length16(&[&[0], &length16(name)[..]].concat()))
}

/// Returns a TLS 1.3 hello with just these extensions, besides those that every hello must have.
fn hello_with(extensions: &[Vec<u8>]) -> Vec<u8> {
    let needed = [
        extension(10, &[0, 2, 0, 29]),
        extension(13, &[0, 4, 4, 3, 8, 4]),
        extension(43, &[2, 3, 4]),
        extension(51, &[&[0, 36, 0, 29, 0, 32], &[7; 32][..]].concat()),
    ];
    let extensions: Vec<u8> = extensions.iter().chain(&needed).flatten().copied().collect();
    let body =
        [&[3, 3][..], &[9; 32], &[0], &[0, 4, 0x13, 1, 0x13, 2], &[1, 0], &length16(&extensions)]
            .concat();
    let length = u32::try_from(body.len()).expect("a short body").to_be_bytes();
    records(&[&[1], &length[1..], &body].concat(), 16_000)
}

/// Checks that the hello is refused with this reason and alert before anything is dialled.
#[track_caller]
fn refused(world: &World, what: &str, to: SocketAddr, bytes: &[u8], (reason, alert): (&str, u8)) {
    let before = world.before();
    let stream = AGENT.connect(to).expect("the gateway accepts");
    let me = stream.local_addr().expect("a socket");
    let answer = say(stream, bytes);
    world.connection_refused(what, me, reason);
    assert!(answer.is_empty() || answer == [0x15, 3, 3, 0, 2, 2, alert], "{what}: {answer:?}");
    world.nobody_was_dialled(what, before);
}

#[test]
fn a_whole_request_works_however_its_hello_is_cut() {
    sandboxed(|| {
        let world = World::usual();
        let bundle = std::fs::read_to_string(world.lab.dir.join("agents.pem")).expect("a bundle");
        let config = ClientConfig::builder()
            .with_root_certificates(roots(&bundle).expect("certificates"))
            .with_no_client_auth();
        let config = Arc::new(config);
        let size = client_hello(&Hello::h1(OPENAI.name)).len();
        assert!(size > 1400, "with ML-KEM a hello takes two segments, this one has {size} bytes");
        let cuts =
            [Cut::Segments(1), Cut::Segments(1400), Cut::Records(1), Cut::Records(700), Cut::Both];
        for (name, path, to) in
            [(OPENAI, "/status/200", ATTACKER.port(443)), (PYPI, "/status/200", PYPI.port6(443))]
        {
            for cut in cuts {
                let before = world.before();
                let stream =
                    Cutting { stream: AGENT.connect(to).expect("a connection"), cut: Some(cut) };
                let sni = name.name.to_owned().try_into().expect("a name");
                let session = ClientConnection::new(Arc::clone(&config), sni).expect("a session");
                let mut tls = StreamOwned::new(session, stream);
                let ask = Ask::to(name).good().path(path).h1();
                tls.write_all(ask.as_bytes())
                    .unwrap_or_else(|error| world.fail(&format!("{cut:?}"), error));
                let answer = read_response(&mut tls)
                    .unwrap_or_else(|error| world.fail(&format!("{cut:?}"), error));
                assert_eq!(answer.status, 200, "{cut:?}");
                drop(tls);
                let new = world.connections_since(before);
                assert_eq!(new.len(), 1, "{cut:?}");
                assert!([name.port(443), name.port6(443)].contains(&new[0].local), "{cut:?}");
            }
        }
        world.ends_well();
    });
}

#[test]
fn a_hello_without_one_plain_name_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        let to = OPENAI.port(443);
        refused(&world, "no name", to, &hello_with(&[]), SNI_MISSING);
        for address in ["198.51.100.10", "2001:db8:e::10", "::ffff:198.51.100.10"] {
            let hello = hello_with(&[server_name(address.as_bytes())]);
            let before = world.before();
            let stream = AGENT.connect(to).expect("the gateway accepts");
            let me = stream.local_addr().expect("a socket");
            say(stream, &hello);
            let record = world.recorded(address, me, &[]);
            assert!(
                ["sni_missing", "tls_malformed"].contains(&record["reason"].as_str().unwrap_or("")),
                "{record}"
            );
            world.nobody_was_dialled(address, before);
        }
        for name in [
            &b""[..],
            b"api.openai.example\0",
            b"api.openai.example\0.attacker.example",
            b"attacker.example\0api.openai.example",
            b"api.openai.example:443",
            b"api.openai.example/",
            b"user@api.openai.example",
            b"api..openai.example",
            b".api.openai.example",
            b"*.openai.example",
            b"api.openai.example ",
            b" api.openai.example",
            b"api.openai.example..",
            b"api.openai.example\r\nHost: x",
            b"\xc3\xa1pi.openai.example",
            b"\xff\xfe",
            &[b'a'; 300],
        ] {
            let what = name.escape_ascii().to_string();
            refused(&world, &what, to, &hello_with(&[server_name(name)]), MALFORMED);
        }
        let two = extension(
            0,
            &length16(
                &[&[0], &length16(b"api.openai.example")[..], &[0], &length16(b"attacker.example")]
                    .concat(),
            ),
        );
        refused(&world, "two names in one list", to, &hello_with(&[two]), MALFORMED);
        let twice = [server_name(b"api.openai.example"), server_name(b"attacker.example")];
        refused(&world, "two lists of names", to, &hello_with(&twice), MALFORMED);
        let other = extension(0, &length16(&[&[1], &length16(b"api.openai.example")[..]].concat()));
        refused(&world, "a name of another type", to, &hello_with(&[other]), MALFORMED);
        world.ends_well();
    });
}

#[test]
fn a_hello_that_is_not_one_is_refused_at_once() {
    sandboxed(|| {
        let world = World::usual();
        let to = OPENAI.port(443);
        let good = hello_with(&[server_name(b"api.openai.example")]);
        let changed = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        for (what, bytes) in [
            ("another handshake message", changed(5, 2)),
            ("another major version", changed(1, 2)),
            ("an alert in the middle", [&good[..5], &[0x15, 3, 3, 0, 2, 2, 0]].concat()),
            ("application data first", [&[23, 3, 3, 0, 1], &good[..]].concat()),
            ("an empty record", [&[22, 3, 1, 0, 0], &good[..]].concat()),
            ("a record beyond the bound", [&[22, 3, 1, 0xff, 0xff], &good[5..]].concat()),
            ("a message longer than any", changed(6, 1)),
            ("a length short of the body", changed(8, good[8] - 1)),
            ("extensions that do not add up", changed(good.len() - 33, 31)),
            ("an early data hello cut in two", [&good[..], &[23, 3, 3, 0, 1, 0]].concat()),
        ] {
            let before = world.before();
            let stream = AGENT.connect(to).expect("the gateway accepts");
            let me = stream.local_addr().expect("a socket");
            let begun = Instant::now();
            say(stream, &bytes);
            if what.starts_with("an early data") || what.starts_with("application data") {
                // The hello itself is whole, or it is no TLS at all: nothing is forwarded all the
                // same.
                world.records(what, me, 0);
                world.nothing_arrived(what, before);
                continue;
            }
            assert!(begun.elapsed() < Duration::from_secs(5), "{what}: it waited");
            world.connection_refused(what, me, "tls_malformed");
            world.nobody_was_dialled(what, before);
        }
        // 12,000 bytes of padding in one-byte records are 72,000 bytes on the wire.
        let padded = hello_with(&[server_name(b"api.openai.example"), extension(21, &[0; 12_000])]);
        let oversized = records(&padded[5..], 1);
        assert!(oversized.len() > 65_536);
        refused(&world, "oversized", to, &oversized, MALFORMED);
        world.ends_well();
    });
}

#[test]
fn a_hello_that_never_completes_is_refused_in_time() {
    sandboxed(|| {
        let world = World::with(&usual_config().limit("peek_time", "1s"));
        let good = hello_with(&[server_name(b"api.openai.example")]);
        for (what, bytes) in [
            ("nothing", &b""[..]),
            ("one byte", &good[..1]),
            ("all but one", &good[..good.len() - 1]),
        ] {
            let before = world.before();
            let stream = AGENT.connect(OPENAI.port6(443)).expect("the gateway accepts");
            let me = stream.local_addr().expect("a socket");
            let begun = Instant::now();
            say(stream, bytes);
            let elapsed = begun.elapsed();
            assert!((900..4000).contains(&elapsed.as_millis()), "{what}: {elapsed:?}");
            world.connection_refused(what, me, "peek_timeout");
            world.nobody_was_dialled(what, before);
        }
        let before = world.before();
        let mut stream = AGENT.connect(OPENAI.port(443)).expect("the gateway accepts");
        let me = stream.local_addr().expect("a socket");
        let begun = Instant::now();
        for byte in good.iter().cycle() {
            if stream.write_all(&[*byte]).is_err() || begun.elapsed() > Duration::from_secs(4) {
                break;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        assert!(begun.elapsed() < Duration::from_secs(4), "a trickle keeps nothing open");
        world.connection_refused("a trickle", me, "peek_timeout");
        world.nobody_was_dialled("a trickle", before);
        world.ends_well();
    });
}

#[test]
fn a_hello_that_is_cut_off_reaches_nobody() {
    sandboxed(|| {
        let world = World::usual();
        let good = hello_with(&[server_name(b"api.openai.example")]);
        let before = world.before();
        for end in [0, 1, 5, 6, good.len() / 2, good.len() - 1] {
            let mut stream = AGENT.connect(OPENAI.port(443)).expect("the gateway accepts");
            let me = stream.local_addr().expect("a socket");
            stream.write_all(&good[..end]).expect("sent");
            drop(stream);
            let record = world.recorded("cut off", me, &[]);
            assert_eq!(
                (record["decision"].as_str(), record["end"].as_str()),
                (Some("none"), Some("closed"))
            );
        }
        world.nobody_was_dialled("cut off", before);
        world.ends_well();
    });
}

#[test]
fn a_hidden_name_is_refused_or_ignored_by_rule() {
    sandboxed(|| {
        let world = World::usual();
        let ech = extension(
            0xfe0d,
            &[&[0, 0, 1, 0, 1, 7, 0, 32], &[5; 32][..], &[0, 64], &[6; 64]].concat(),
        );
        let spliced = hello_with(&[server_name(b"pypi.example"), ech.clone()]);
        refused(&world, "ECH to a spliced host", PYPI.port(443), &spliced, ECH);
        for draft in [0xff02, 0xff03, 0xffce] {
            let old = hello_with(&[server_name(b"pypi.example"), extension(draft, &[1; 40])]);
            refused(&world, "a draft of ECH", ATTACKER.port6(443), &old, ECH);
        }
        let inner = hello_with(&[server_name(b"pypi.example"), extension(0xfd00, &[1; 40])]);
        refused(&world, "what only an inner hello has", PYPI.port(443), &inner, MALFORMED);
        // Where TLS ends here, the public name counts: the hidden one is never used.
        let asked = Ask::to(OPENAI).good().path("/status/200");
        let hello = Hello { ech: true, ..world.hello(OPENAI.name) };
        let mut tls = Tls::open(AGENT, OPENAI.port(443), &hello).expect("served");
        let me = tls.socket().local_addr().expect("a socket");
        assert_eq!(tls.ask(asked.h1()).expect("an answer").status, 200);
        drop(tls);
        assert_eq!(world.recorded("ECH over HTTP/1.1", me, &[None])["ech"], true);
        let hello = Hello { ech: true, ..world.hello2(OPENAI.name) };
        let mut h2 = H2::open(AGENT, OPENAI.port6(443), &hello).expect("served");
        let me = h2.local_addr();
        assert_eq!(h2.ask(asked.h2(), asked.body).expect("an answer").status, 200);
        drop(h2);
        assert_eq!(world.recorded("ECH over HTTP/2", me, &[None])["ech"], true);
        let hello = hello_with(&[server_name(b"attacker.example"), ech]);
        refused(
            &world,
            "ECH behind an unlisted name",
            OPENAI.port(443),
            &hello,
            ("sni_denied", 112),
        );
        world.ends_well();
    });
}

#[test]
fn a_hidden_name_is_passed_where_the_rule_allows_it() {
    sandboxed(|| {
        let config = usual_config().splice("pypi", |it| it.set("ech", "allow"));
        let world = World::with(&config);
        let hello = Hello { ech: true, ..world.hello(PYPI.name) };
        let mut tls = Tls::open(AGENT, PYPI.port(443), &hello).expect("passed");
        let me = tls.socket().local_addr().expect("a socket");
        assert_eq!(tls.ask(Ask::to(PYPI).path("/status/200").h1()).expect("an answer").status, 200);
        drop(tls);
        let record = world.recorded("ECH", me, &[]);
        assert_eq!((&record["ech"], &record["decision"]), (&true.into(), &"splice".into()));
        world.ends_well();
    });
}

#[test]
fn a_protocol_that_the_gateway_does_not_carry_is_refused() {
    sandboxed(|| {
        let world = World::usual();
        let alpn = |names: &[&[u8]]| {
            let names: Vec<u8> =
                names.iter().flat_map(|name| [&[name.len() as u8], *name].concat()).collect();
            extension(16, &length16(&names))
        };
        let to = OPENAI.port(443);
        for (what, names, expected) in [
            ("another protocol", &[&b"http/1.0"[..]][..], ALPN),
            ("h2c", &[b"h2c"], ALPN),
            ("h3", &[b"h3", b"h3-29"], ALPN),
            ("in capitals", &[b"H2", b"HTTP/1.1"], ALPN),
            ("acme", &[b"acme-tls/1"], ALPN),
            ("an empty name", &[b""], MALFORMED),
        ] {
            let hello = hello_with(&[server_name(b"api.openai.example"), alpn(names)]);
            refused(&world, what, to, &hello, expected);
        }
        let before = world.before();
        let hello = Hello { alpn: vec![b"spdy/3", b"http/1.1"], ..world.hello(OPENAI.name) };
        let mut tls = Tls::open(AGENT, to, &hello).expect("one of them is carried");
        let answer = tls.ask(Ask::to(OPENAI).good().path("/status/200").h1()).expect("an answer");
        assert_eq!(answer.status, 200);
        assert_eq!(world.connections_since(before)[0].alpn.as_deref(), Some("http/1.1"));
        drop(tls);
        world.ends_well();
    });
}

#[test]
fn no_session_is_resumed_and_no_data_is_early() {
    sandboxed(|| {
        let world = World::usual();
        let bundle = std::fs::read_to_string(world.lab.dir.join("agents.pem")).expect("a bundle");
        for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
            let mut config = ClientConfig::builder_with_protocol_versions(&[version])
                .with_root_certificates(roots(&bundle).expect("certificates"))
                .with_no_client_auth();
            config.enable_early_data = true;
            let config = Arc::new(config);
            for host in [OPENAI, OPENAI, GIT, OPENAI] {
                let stream = AGENT.connect(OPENAI.port(443)).expect("a connection");
                let sni = host.name.to_owned().try_into().expect("a name");
                let mut session =
                    ClientConnection::new(Arc::clone(&config), sni).expect("a session");
                assert!(session.early_data().is_none(), "a ticket allows early data");
                let mut tls = StreamOwned::new(session, stream);
                let ask = Ask::to(host)
                    .path("/v1/x")
                    .field("authorization", "Bearer sk-attacker-key")
                    .h1();
                tls.write_all(ask.as_bytes()).expect("sent");
                let answer = read_response(&mut tls).expect("an answer");
                assert_eq!(answer.reason().as_deref(), Some("foreign_credential"));
                assert_eq!(tls.conn.handshake_kind(), Some(HandshakeKind::Full), "{version:?}");
                assert_eq!(tls.conn.tls13_tickets_received(), 0);
            }
        }
        world.origin.log().assert_no_request();
        world.ends_well();
    });
}

#[test]
fn old_versions_and_renegotiation_are_refused() {
    sandboxed(|| {
        let world = World::usual();
        let client = |arguments: &[&str], input: &str| {
            let mut openssl = AGENT.command("openssl");
            openssl
                .args(["s_client", "-connect", "198.51.100.10:443", "-servername", OPENAI.name])
                .args(arguments);
            run(&mut openssl, input)
        };
        for version in ["-tls1", "-tls1_1"] {
            let before = world.before();
            let said = client(&[version, "-cipher", "ALL:@SECLEVEL=0"], "");
            assert!(said.contains("no peer certificate available"), "{version}: {said}");
            world.nothing_arrived(version, before);
        }
        let before = world.before();
        let said = client(&["-tls1_2", "-crlf"], "R\n");
        assert!(said.contains("RENEGOTIATING"), "{said}");
        assert!(said.contains("error") || said.contains("no renegotiation"), "{said}");
        world.nothing_arrived("renegotiation", before);
        world.ends_well();
    });
}

fn run(command: &mut Command, input: &str) -> String {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("openssl starts");
    let mut stdin = child.stdin.take().expect("it was piped");
    std::thread::sleep(Duration::from_millis(500));
    // It may have ended already, which is an answer too.
    let _ = stdin.write_all(input.as_bytes());
    std::thread::sleep(Duration::from_millis(500));
    drop(stdin);
    let output = child.wait_with_output().expect("openssl ends");
    [output.stdout, output.stderr].iter().map(|text| String::from_utf8_lossy(text)).collect()
}

#[test]
fn an_agent_that_distrusts_the_leaf_gets_nothing() {
    sandboxed(|| {
        let world = World::usual();
        let before = world.before();
        let hello = Hello::h1(OPENAI.name).trusting(world.lab.public.pem());
        Tls::open(AGENT, OPENAI.port(443), &hello).err().expect("the leaf is the gateway's");
        let record = world.gateway.audit.wait_reason("agent_tls_failed");
        assert_eq!(
            (&record["decision"], &record["alert"]),
            (&"refuse".into(), &"unknown_ca".into())
        );
        // OpenSSL, which trusts only the system's CAs.
        let mut curl = lab::client::agent(&world.lab, AGENT, "curl");
        curl.env_remove("CURL_CA_BUNDLE").env_remove("SSL_CERT_FILE");
        let status = curl.args(["-sS", "https://api.openai.example/v1/models"]).status();
        assert!(!status.expect("curl starts").success());
        let refused = |record: &&Record| record["reason"] == "agent_tls_failed";
        lab::wait::until(lab::wait::SOON, || {
            let records = world.gateway.audit.records();
            let alerts = records.iter().filter(refused).map(|record| record["alert"].clone());
            alerts.eq(["unknown_ca"; 2]).then_some(())
        })
        .expect("both say unknown_ca");
        world.nothing_arrived("untrusted", before);
        let tls = world.must_h1(AGENT, OPENAI.port(443), OPENAI.name);
        let me = local(&tls);
        drop(tls);
        world.recorded("nothing asked", me, &[]);
        world.nothing_arrived("nothing asked", before);
        world.ends_well();
    });
}

#[test]
fn a_handshake_that_stalls_is_ended() {
    sandboxed(|| {
        let world = World::with(&usual_config().limit("head_time", "1s"));
        let before = world.before();
        let stream = AGENT.connect(OPENAI.port(443)).expect("the gateway accepts");
        let me = stream.local_addr().expect("a socket");
        let begun = Instant::now();
        // The gateway answers with its own flight, and then gets nothing.
        say(stream, &client_hello(&Hello::h1(OPENAI.name)));
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
        let record = world.recorded("stalled", me, &[]);
        assert_eq!(record["reason"], "agent_tls_failed");
        assert!(record["alert"].is_null(), "it said nothing: {record}");
        world.nothing_arrived("stalled", before);
        world.ends_well();
    });
}
