//! The cost of reading the first bytes of a connection.

use std::hint::black_box;

use cloakroom::peek::{Progress, parse};
use criterion::{Criterion, criterion_group};

use crate::world::client_hello;

fn peek(c: &mut Criterion) {
    let classic = client_hello("api.openai.example", false);
    let hybrid = client_hello("api.openai.example", true);
    let inputs = [
        ("peek/ClientHello with X25519", classic),
        ("peek/ClientHello with X25519MLKEM768", hybrid),
        ("peek/HTTP head", HEAD.to_vec()),
    ];
    for (name, bytes) in inputs {
        assert!(matches!(parse(&bytes), Progress::Done(_)), "{name}");
        c.bench_function(name, |bench| bench.iter(|| parse(black_box(&bytes))));
    }
}

criterion_group!(benches, peek);

const HEAD: &[u8] = b"GET /packages/index.html HTTP/1.1\r\nHost: pypi.example\r\n\
    User-Agent: curl/8.14.1\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate, br\r\n\
    Authorization: Bearer 0123456789abcdef\r\nConnection: keep-alive\r\n\r\n";
