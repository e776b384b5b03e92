//! Plain HTTP heads, and bytes that are neither TLS nor HTTP.

use super::{
    super::{Peeked, PlainHead, Progress, parse},
    in_pieces,
};
use crate::{policy::Host, reason::Reason};

pub(super) const HEAD: &[u8] = b"GET /v1?x=1 HTTP/1.1\r\nHost: API.example.com:80\r\n\
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
            b"user:pass:word",
            b"OPENAI_API_KEY",
            b"bearer OPENAI_API_KEY",
            b"OPENAI_API_KEY",
        ]
    );
    assert!(!format!("{head:?}").contains("OPENAI"));
}

#[test]
fn a_head_cut_anywhere_says_the_same_whatever_follows() {
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
