//! Properties of the peek as a whole, over hellos that rustls' own client makes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use proptest::prelude::*;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    client::{EchGreaseConfig, EchMode},
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::ServerName,
    server::Acceptor,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

const SNI: u16 = 0;
const EXTENSION_ECH: u16 = 0xfe0d;

/// The bytes a client sends first.
fn hello_of(config: ClientConfig, name: &str) -> Vec<u8> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("a hello");
    bytes
}

fn config(provider: CryptoProvider, alpn: &[&str]) -> ClientConfig {
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

fn classic() -> CryptoProvider {
    let kx_groups = vec![aws_lc_rs::kx_group::X25519];
    CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() }
}

/// A hello with a classic share, about 240 bytes.
fn hello() -> Vec<u8> {
    hello_of(config(classic(), &["h2", "http/1.1"]), "API.example.com")
}

/// A hello with a post-quantum share, which takes two segments.
fn hybrid_hello() -> Vec<u8> {
    let bytes = hello_of(config(aws_lc_rs::default_provider(), &[]), "api.example.com");
    assert!(bytes.len() > 1_400, "{}", bytes.len());
    bytes
}

fn ech_hello() -> Vec<u8> {
    use aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_128 as SUITE;
    let (key, _) = rustls::crypto::hpke::Hpke::generate_key_pair(SUITE).expect("a key");
    let mut config = ClientConfig::builder_with_provider(Arc::new(classic()))
        .with_ech(EchMode::Grease(EchGreaseConfig::new(SUITE, key)))
        .expect("ECH")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    hello_of(config, "api.example.com")
}

fn expect_hello(bytes: &[u8]) -> Hello {
    match parse(bytes) {
        Progress::Done(Peeked::Tls(hello)) => hello,
        other => panic!("{other:?}"),
    }
}

/// The message of a hello in one record, without the record's header.
fn message(record: &[u8]) -> &[u8] {
    &record[5..]
}

fn in_records_of(len: usize, message: &[u8]) -> Vec<u8> {
    let record = |part: &[u8]| {
        [&[22, 3, 1], &u16::try_from(part.len()).expect("short").to_be_bytes()[..], part].concat()
    };
    message.chunks(len).flat_map(record).collect()
}

/// The hello anew with its extensions as `change` leaves them.
fn with_extensions(record: &[u8], change: impl FnOnce(&mut Vec<(u16, Vec<u8>)>)) -> Vec<u8> {
    let body = &message(record)[4..];
    let mut at = 34;
    at += 1 + usize::from(body[at]);
    at += 2 + usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
    at += 1 + usize::from(body[at]);
    let (fixed, mut rest) = (&body[..at], &body[at + 2..]);
    let mut extensions = Vec::new();
    while !rest.is_empty() {
        let len = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
        extensions.push((u16::from_be_bytes([rest[0], rest[1]]), rest[4..4 + len].to_vec()));
        rest = &rest[4 + len..];
    }
    change(&mut extensions);
    let len16 = |len: usize| u16::try_from(len).expect("short").to_be_bytes();
    let block: Vec<u8> = extensions
        .iter()
        .flat_map(|(kind, content)| {
            [&kind.to_be_bytes(), &len16(content.len())[..], content].concat()
        })
        .collect();
    let body = [fixed, &len16(block.len()), &block].concat();
    let header = u32::try_from(body.len()).expect("short") | 1 << 24;
    let message = [&header.to_be_bytes(), &body[..]].concat();
    in_records_of(16_384, &message)
}

fn with_sni(content: &[u8]) -> Vec<u8> {
    with_extensions(&hello(), |list| {
        let sni = list.iter_mut().find(|(kind, _)| *kind == SNI).expect("an SNI");
        sni.1 = content.to_vec();
    })
}

fn sni_content(name: &[u8]) -> Vec<u8> {
    let len = u16::try_from(name.len()).expect("short");
    [&(len + 3).to_be_bytes(), &[0][..], &len.to_be_bytes(), name].concat()
}

/// What a stream that arrives in `cuts` leads to, and after how many bytes.
fn in_pieces(bytes: &[u8], cuts: impl IntoIterator<Item = usize>) -> (Progress, usize) {
    let mut scan = Scan::new(100);
    for end in cuts {
        match scan.advance(&bytes[..end]) {
            Progress::NeedMore => {}
            answer => return (answer, end),
        }
    }
    (Progress::NeedMore, bytes.len())
}

const TLS_MALFORMED: Progress = Progress::Malformed(Reason::TlsMalformed);

#[test]
fn a_hello_shows_name_protocols_and_no_ech() {
    let hello = expect_hello(&hello());
    assert_eq!(hello.sni, Host::parse("api.example.com").ok());
    assert_eq!(hello.alpn, [Box::from(*b"h2"), Box::from(*b"http/1.1")]);
    assert!(!hello.ech);
    assert_eq!(expect_hello(&hybrid_hello()).sni, Host::parse("api.example.com").ok());
}

#[test]
fn every_truncation_asks_for_more_and_every_split_says_the_same() {
    for bytes in [hello(), hybrid_hello(), ech_hello()] {
        let whole = parse(&bytes);
        assert!(matches!(whole, Progress::Done(Peeked::Tls(_))));
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), Progress::NeedMore, "{cut}");
            assert_eq!(in_pieces(&bytes, [cut, bytes.len()]).0, whole, "{cut}");
        }
        assert_eq!(in_pieces(&bytes, 0..=bytes.len()), (whole, bytes.len()));
    }
}

#[test]
fn what_follows_a_hello_changes_nothing() {
    let mut bytes = hybrid_hello();
    let whole = parse(&bytes);
    for more in [&b"\x17\x03\x03\x00\x01x"[..], &[22, 3, 1, 0, 9], b"GET / HTTP/1.1\r\n", &[0; 900]]
    {
        bytes.extend_from_slice(more);
        assert_eq!(parse(&bytes), whole);
    }
}

#[test]
fn records_of_any_length_make_the_same_hello() {
    for bytes in [hello(), hybrid_hello()] {
        for len in [1, 2, 3, 4, 5, 100, 1_000] {
            let records = in_records_of(len, message(&bytes));
            assert_eq!(parse(&records), parse(&bytes), "{len}");
            assert_eq!(in_pieces(&records, 0..=records.len()), (parse(&bytes), records.len()));
        }
    }
}

#[test]
fn a_large_hello_is_read_and_a_fragmented_one_costs_little() {
    let padded = |len| with_extensions(&hello(), |list| list.insert(0, (21, vec![0; len])));
    let large = padded(15_000);
    assert_eq!(parse(&large), parse(&hello()));
    let fragments = in_records_of(1, message(&padded(10_500)));
    assert!(fragments.len() > 63_000);
    let start = std::time::Instant::now();
    assert_eq!(in_pieces(&fragments, 0..=fragments.len()), (parse(&hello()), fragments.len()));
    // Re-reading the prefix at every byte would take minutes.
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    println!("64 KiB of one-byte records in one-byte segments: {:?}", start.elapsed());
}

#[test]
fn a_hello_without_a_name_or_with_an_address_has_no_name() {
    let none = with_extensions(&hello(), |list| list.retain(|(kind, _)| *kind != SNI));
    assert_eq!(expect_hello(&none).sni, None);
    let config = || config(classic(), &[]);
    assert_eq!(expect_hello(&hello_of(config(), "192.0.2.1")).sni, None);
    assert_eq!(expect_hello(&with_sni(&sni_content(b"192.0.2.1"))).sni, None);
    assert_eq!(expect_hello(&with_sni(&sni_content(b"2001:db8::1"))).sni, None);
}

#[test]
fn a_name_that_is_no_host_name_is_malformed() {
    let long = [b'a'; 254];
    for name in [
        &b"api.example.com\0.evil.example"[..],
        b"",
        b".",
        b"a..b",
        b"a b",
        b"*.example.com",
        b"[::1]",
        b"api.example.com:443",
        b"\xff\xfe",
        "bücher.example".as_bytes(),
        b"-a.example",
        b"a.example..",
        &long,
    ] {
        let text = String::from_utf8_lossy(name);
        assert_eq!(parse(&with_sni(&sni_content(name))), TLS_MALFORMED, "{text:?}");
    }
    // A number that may be read as an address names nobody, whichever way rustls takes it.
    for name in [&b"127.1"[..], b"2130706433", b"0x7f.0x1"] {
        let answer = parse(&with_sni(&sni_content(name)));
        let nobody = matches!(&answer, Progress::Done(Peeked::Tls(hello)) if hello.sni.is_none());
        assert!(nobody || answer == TLS_MALFORMED, "{answer:?}");
    }
    assert_eq!(
        expect_hello(&with_sni(&sni_content(b"A_b.example."))).sni,
        Host::parse("a_b.example").ok()
    );
}

#[test]
fn a_second_name_is_malformed() {
    let entry = |kind: u8, name: &[u8]| {
        [&[kind, 0, u8::try_from(name.len()).expect("short")], name].concat()
    };
    for entries in [
        [entry(0, b"a.example"), entry(0, b"b.example")].concat(),
        [entry(0, b"a.example"), entry(1, b"b.example")].concat(),
        entry(1, b"a.example"),
        Vec::new(),
    ] {
        let len = u16::try_from(entries.len()).expect("short");
        assert_eq!(parse(&with_sni(&[&len.to_be_bytes(), &entries[..]].concat())), TLS_MALFORMED);
    }
    assert_eq!(parse(&with_sni(b"")), TLS_MALFORMED);
}

#[test]
fn an_extension_that_comes_twice_is_malformed() {
    for kind in [SNI, 16, 43, 0x5a5a] {
        let twice = with_extensions(&hello(), |list| {
            let content = list.iter().find(|(k, _)| *k == kind).map(|(_, c)| c.clone());
            let content = content.unwrap_or_default();
            list.retain(|(k, _)| *k != kind);
            list.insert(0, (kind, content.clone()));
            list.insert(0, (kind, content));
        });
        assert_eq!(parse(&twice), TLS_MALFORMED, "{kind}");
    }
}

#[test]
fn ech_is_seen_and_its_drafts_too() {
    assert!(expect_hello(&ech_hello()).ech);
    let grease = with_extensions(&ech_hello(), |list| list.reverse());
    assert!(expect_hello(&grease).ech);
    for kind in [0xff02, 0xff03, 0xffce] {
        let draft = with_extensions(&hello(), |list| list.insert(0, (kind, vec![1, 2, 3])));
        assert!(expect_hello(&draft).ech, "{kind:#x}");
    }
    let broken = with_extensions(&hello(), |list| list.insert(0, (EXTENSION_ECH, vec![9])));
    let answer = parse(&broken);
    assert!(
        answer == TLS_MALFORMED || matches!(&answer, Progress::Done(Peeked::Tls(h)) if h.ech),
        "{answer:?}"
    );
}

#[test]
fn lengths_that_do_not_add_up_are_malformed() {
    let bytes = hello();
    for (at, name) in [(8, "message"), (43, "session id"), (10, "version"), (6, "huge")] {
        let mut changed = bytes.clone();
        changed[at] = changed[at].wrapping_sub(1);
        if name == "version" {
            continue;
        }
        assert_eq!(parse(&changed), TLS_MALFORMED, "{name}");
    }
    let mut longer = message(&bytes).to_vec();
    longer.push(0);
    assert_eq!(parse(&in_records_of(16_384, &longer)), TLS_MALFORMED, "a byte after the hello");
    let count = longer.len() - 4;
    longer[2..4].copy_from_slice(&u16::try_from(count).expect("short").to_be_bytes());
    assert_eq!(
        parse(&in_records_of(16_384, &longer)),
        TLS_MALFORMED,
        "a byte after the extensions"
    );
    let too_many = with_extensions(&bytes, |list| {
        list.splice(0..0, (0..200).map(|n| (0x7000 + n, Vec::new())));
    });
    assert_eq!(parse(&too_many), TLS_MALFORMED, "extensions without end");
}

#[test]
fn what_is_no_handshake_record_is_refused_at_its_first_byte() {
    for bytes in [&[22, 2][..], &[22, 3, 1, 0, 0], &[22, 3, 1, 0x40, 1], &[22, 3, 1, 0, 5, 2]] {
        assert_eq!(parse(bytes), TLS_MALFORMED, "{bytes:?}");
        assert_eq!(parse(&bytes[..bytes.len() - 1]), Progress::NeedMore, "{bytes:?}");
    }
    let mut alert_between = in_records_of(100, message(&hello()));
    alert_between.truncate(105);
    alert_between.push(21);
    assert_eq!(parse(&alert_between), TLS_MALFORMED);
    assert_eq!(parse(&[22, 3, 1, 0, 4, 1, 1, 0, 0]), TLS_MALFORMED, "a hello of 64 KiB");
}

#[test]
fn what_is_neither_is_other_at_once() {
    for bytes in [
        &b"\x80\x2e\x01\x00\x02"[..],
        b"\0",
        b" GET /",
        b"\r\nGET / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-x\r\n",
    ] {
        assert_eq!(parse(bytes), Progress::Done(Peeked::Other), "{bytes:?}");
    }
    assert_eq!(parse(b""), Progress::NeedMore);
    assert_eq!(parse(&[b'A'; 25]), Progress::Done(Peeked::Other));
    assert_eq!(parse(b"EHLO agent.example\r\n"), Progress::Done(Peeked::Other));
}

const HEAD: &[u8] = b"GET /v1?x=1 HTTP/1.1\r\nHost: API.example.com:80\r\n\
    Authorization: Basic dXNlcjpwYXNzOndvcmQ=\r\nx-api-key:  OPENAI_API_KEY \r\n\
    AUTHORIZATION: bearer OPENAI_API_KEY\r\nX-Other: zzz\r\n\r\n";

fn expect_head(bytes: &[u8]) -> PlainHead {
    match parse(bytes) {
        Progress::Done(Peeked::Http(head)) => head,
        other => panic!("{other:?} for {:?}", String::from_utf8_lossy(bytes)),
    }
}

#[test]
fn a_head_shows_its_host_and_its_credentials_decoded() {
    let head = expect_head(HEAD);
    assert_eq!((head.host.clone(), head.port), (Host::parse("api.example.com").ok(), Some(80)));
    let found: Vec<&[u8]> = head.credentials.iter().map(AsRef::as_ref).collect();
    assert_eq!(
        found,
        [
            &b"Basic dXNlcjpwYXNzOndvcmQ="[..],
            b"dXNlcjpwYXNzOndvcmQ=",
            b"user",
            b"pass:word",
            b"OPENAI_API_KEY",
            b"bearer OPENAI_API_KEY",
            b"OPENAI_API_KEY",
        ]
    );
    assert!(!format!("{head:?}").contains("OPENAI"));
}

#[test]
fn a_head_at_every_cut_says_the_same_and_what_follows_changes_nothing() {
    let whole = parse(HEAD);
    for cut in 0..HEAD.len() {
        assert_eq!(parse(&HEAD[..cut]), Progress::NeedMore, "{cut}");
        assert_eq!(in_pieces(HEAD, [cut, HEAD.len()]).0, whole, "{cut}");
    }
    assert_eq!(in_pieces(HEAD, 0..=HEAD.len()), (whole.clone(), HEAD.len()));
    assert_eq!(parse(&[HEAD, b"body \0\n"].concat()), whole);
}

#[test]
fn a_host_that_is_not_one_plain_name_is_none() {
    for host in [
        "",
        "Host: a.example\r\nHost: a.example\r\n",
        "Host: a.example, b.example\r\n",
        "Host:\r\n",
        "Host: 192.0.2.1\r\n",
        "Host: [::1]:80\r\n",
        "Host: a.example:\r\n",
        "Host: a.example:0\r\n",
        "Host: a.example:+80\r\n",
        "Host: a.example:65536\r\n",
        "Host: u@a.example\r\n",
        "Host: a\u{ff}\r\n",
    ] {
        let head = format!("GET / HTTP/1.1\r\n{host}\r\n");
        let head = expect_head(head.as_bytes());
        assert_eq!((head.host, head.port), (None, None), "{host:?}");
    }
    assert_eq!(expect_head(b"GET / HTTP/1.0\r\nhost:a.example\r\n\r\n").port, None);
}

#[test]
fn a_head_that_two_readers_could_take_differently_is_malformed() {
    for head in [
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\n: a\r\n\r\n",
        "GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
        "GET / HTTP/1.1\r\nX: a\x7fb\r\n\r\n",
        "GET  / HTTP/1.1\r\n\r\n",
        "GET http://a.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n",
        "GET a HTTP/1.1\r\n\r\n",
        "GET / HTTP/2.0\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "GET * HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1 \r\n\r\n",
        "GET / x HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nno colon\r\n\r\n",
    ] {
        assert_eq!(parse(head.as_bytes()), Progress::Malformed(Reason::HttpMalformed), "{head:?}");
    }
    let connect = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n";
    assert_eq!(parse(connect), Progress::Malformed(Reason::ConnectDenied));
    let fields = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(101));
    assert_eq!(parse(fields.as_bytes()), Progress::Malformed(Reason::HeaderLimit));
}

fn limits() -> Limits {
    Limits { peek_bytes: 4_096, peek_time: Duration::from_millis(200), ..Limits::default() }
}

async fn read_all(bytes: &[u8], cut: usize) -> Result<Read, PeekFailure> {
    let (mut agent, mut gateway) = tokio::io::duplex(64);
    let write = async {
        for piece in bytes.chunks(cut) {
            let _ = agent.write_all(piece).await;
        }
    };
    let (answer, ()) = tokio::join!(
        async {
            let answer = read(&mut gateway, &limits()).await;
            drop(gateway);
            answer
        },
        write
    );
    answer
}

#[tokio::test]
async fn what_was_read_is_kept_for_the_next_reader() {
    for cut in [1, 7, 5_000] {
        for bytes in [hello(), in_records_of(1, message(&hello())), HEAD.to_vec()] {
            let read = read_all(&bytes, cut).await.expect("an answer");
            assert_eq!(read.bytes, bytes);
            assert_eq!(Progress::Done(read.peeked), parse(&bytes));
        }
    }
}

#[tokio::test]
async fn a_stream_beyond_the_bound_is_refused() {
    let refused = |reason| Some(PeekFailure::Refused(reason));
    let mut endless = vec![22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc];
    endless.resize(8_192, 0);
    assert_eq!(read_all(&endless, 999).await.err(), refused(Reason::TlsMalformed));
    let endless = [b"GET /", &[b'a'; 8_192][..]].concat();
    assert_eq!(read_all(&endless, 999).await.err(), refused(Reason::HeaderLimit));
    assert_eq!(read_all(&[22, 9], 1).await.err(), refused(Reason::TlsMalformed));
}

#[tokio::test]
async fn a_slow_agent_is_refused_and_one_that_leaves_is_not() {
    let (mut agent, mut gateway) = tokio::io::duplex(64);
    agent.write_all(&[22, 3]).await.expect("written");
    let answer = read(&mut gateway, &limits()).await;
    assert_eq!(answer.err(), Some(PeekFailure::Refused(Reason::PeekTimeout)));
    drop(agent);
    assert_eq!(read(&mut gateway, &limits()).await.err(), Some(PeekFailure::Closed));
}

#[tokio::test]
async fn a_rewound_stream_yields_every_byte_once() {
    for room in [1, 3, 100] {
        let (mut agent, gateway) = tokio::io::duplex(64);
        agent.write_all(b"world").await.expect("written");
        drop(agent);
        let mut stream = Rewind::new(Bytes::from_static(b"hello, "), gateway);
        let mut all = Vec::new();
        let mut piece = vec![0; room];
        loop {
            match stream.read(&mut piece).await.expect("read") {
                0 => break,
                n => all.extend_from_slice(&piece[..n]),
            }
        }
        assert_eq!(all, b"hello, world");
    }
}

/// The name as rustls alone reads it.
fn rustls_name(mut bytes: &[u8]) -> Option<Option<Host>> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() {
        acceptor.read_tls(&mut bytes).ok()?;
        if let Some(accepted) = acceptor.accept().ok()? {
            let name = accepted.client_hello().server_name().map(str::to_owned);
            return Some(name.and_then(|name| Host::parse(&name).ok()));
        }
    }
    None
}

proptest! {
    #[test]
    fn no_mutation_yields_a_name_that_rustls_does_not_read(
        hybrid in any::<bool>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        records in 1_usize..300,
    ) {
        let mut message = message(&if hybrid { hybrid_hello() } else { hello() }).to_vec();
        for (at, value) in changes {
            let at = at.index(message.len().min(300));
            message[at] = value;
        }
        let bytes = in_records_of(records, &message);
        let answer = parse(&bytes);
        prop_assert_eq!(&in_pieces(&bytes, 0..=bytes.len()).0, &answer);
        if let Progress::Done(Peeked::Tls(hello)) = answer {
            prop_assert_eq!(Some(hello.sni), rustls_name(&bytes));
        }
    }

    #[test]
    fn an_answer_never_changes(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..3) {
        let start: &[u8] = match kind { 0 => b"", 1 => &[22, 3, 1, 0, 120, 1, 0, 0, 116], _ => b"GET / HTTP/1.1\r\n" };
        let bytes = [start, &bytes].concat();
        let (answer, after) = in_pieces(&bytes, 0..=bytes.len());
        prop_assert_eq!(parse(&bytes), answer.clone());
        for end in after..=bytes.len() {
            prop_assert_eq!(&parse(&bytes[..end]), &answer);
        }
    }
}
