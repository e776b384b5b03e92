//! ClientHellos, whole and broken.

use std::time::{Duration, Instant};

use super::{SNI, TLS_MALFORMED, clients::*, in_pieces};
use crate::{
    peek::{Peeked, Progress, parse},
    policy::Host,
};

#[test]
fn a_hello_shows_name_protocols_and_no_ech() {
    let hello = expect_hello(&hello());
    assert_eq!(hello.sni, Host::parse("api.example.com").ok());
    assert_eq!(hello.alpn, [Box::from(*b"h2"), Box::from(*b"http/1.1")]);
    assert!(!hello.ech);
    assert_eq!(expect_hello(&hybrid_hello()).sni, Host::parse("api.example.com").ok());
}

#[test]
fn truncation_asks_for_more_and_every_split_agrees() {
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
fn a_large_hello_is_read_and_fragments_cost_little() {
    let padded = |len| with_extensions(&hello(), |list| list.insert(0, (21, vec![0; len])));
    for len in [15_000, 40_000, 60_000] {
        assert_eq!(parse(&padded(len)), parse(&hello()), "{len}");
    }
    let bytes = padded(60_000);
    for cut in (0..bytes.len()).step_by(997) {
        assert_eq!(parse(&bytes[..cut]), Progress::NeedMore, "{cut}");
    }
    let fragments = in_records_of(1, message(&padded(10_500)));
    assert!(fragments.len() > 63_000);
    let start = Instant::now();
    assert_eq!(in_pieces(&fragments, 0..=fragments.len()), (parse(&hello()), fragments.len()));
    // Re-reading the prefix at every byte would take minutes.
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    println!("64 KiB of one-byte records in one-byte segments: {:?}", start.elapsed());
}

#[test]
fn a_hello_with_no_name_or_an_address_has_none() {
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
    // A number that can be read as an address names no host, however rustls takes it.
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
    let broken = with_extensions(&hello(), |list| list.insert(0, (0xfe0d, vec![9])));
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
fn anything_but_a_handshake_is_refused_at_its_first_byte() {
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
